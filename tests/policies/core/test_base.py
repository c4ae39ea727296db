"""What a policy from elsewhere returns is checked, and the policy named."""

import dataclasses

import numpy as np
import pytest

from eex.policies.algorithms.fixed import Fixed
from eex.policies.core.base import Context
from eex.policies.core.errors import EexError
from eex.policies.core.replay import replay
from eex.policies.core.trace import Trace
from eex.policies.registry import make_policy
from eex.policies.wrappers.safe import Safe

NOTHING = np.zeros((5, 2), dtype=np.int64)
TRACE = Trace(np.full((5, 2), 0.5), NOTHING, NOTHING[:, 0], ("a",))


class Broken(Fixed):
    """Returns one column that is none."""

    column = "exit_at"
    value: object = np.nan

    def choose(self, context: Context):
        chosen = super().choose(context)
        return dataclasses.replace(chosen, **{self.column: self.value}) if self.column else self.value


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("exit_at", np.full((1, 1, 2), np.nan), r"policy Broken: exit_at must lie in \[0, 1\], or be inf; got nan"),
        ("exit_at", np.full((1, 1, 2), 70.0), r"exit_at must lie in \[0, 1\], or be inf; got 70"),
        ("skip_below", np.full((1, 1, 1), -1.0), r"skip_below must lie in \[0, 1\], or be inf; got -1"),
        ("exit_at", 0.7, r"exit_at must have the shape \(1, 1, 2\), got \(\)"),
        ("exit_at", np.full((1, 2), 0.7), r"exit_at must have the shape \(1, 1, 2\), got \(1, 2\)"),
        ("", 0.7, "choose must return Thresholds, got float"),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_thresholds_that_are_none_are_refused_by_the_policys_name(column, value, message, wrapped):
    policy = Broken()
    policy.column, policy.value = column, value
    if wrapped and column == "exit_at" and np.shape(value) == (1, 1, 2) and np.isnan(value).all():
        with pytest.raises(EexError, match="exit_at must lie"):
            replay(Safe(policy), TRACE, 0.1)
    elif not wrapped:
        with pytest.raises(EexError, match=message):
            replay(policy, TRACE, 0.1)


def test_own_policies_are_trusted():
    assert replay(make_policy("ucb"), TRACE, 0.1).exit.shape == (1, 5)
