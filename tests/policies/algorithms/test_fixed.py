"""A fixed threshold: at every exit, one per exit, and the final exit's own."""

import pytest

from eex.policies.core.base import Context
from eex.policies.core.errors import EexError
from eex.policies.registry import make_policy


@pytest.mark.parametrize(
    ("p_tar", "expected"),
    [
        ("0.7", [0.7, 0.7, 0.7, 0.7]),
        ("1,0.9,0.8", [1.0, 0.9, 0.8, 0.8]),
        ("0.8,0.8,0.8,0", [0.8, 0.8, 0.8, 0.0]),
    ],
)
def test_thresholds_of_each_exit(p_tar, expected):
    policy = make_policy(f"fixed:p_tar={p_tar}", exits=3, runs=2)
    assert policy.choose(Context(frames=5)).exit_at.tolist() == [[expected] * 5] * 2


@pytest.mark.parametrize("p_tar", ["0.5,0.6", "0.5,0.5,0.5,0.5,0.5", "1.5", "nan"])
def test_thresholds_that_cannot_be(p_tar):
    with pytest.raises((EexError, ValueError), match="p_tar"):
        make_policy(f"fixed:p_tar={p_tar}", exits=3)
