"""What tests of policies share: the same thresholds or state, and one reward for one arm."""

from dataclasses import fields

import numpy as np

from eex.policies.core.base import Outcomes


def assert_same(one, other):
    for f in fields(one):
        np.testing.assert_array_equal(getattr(one, f.name), getattr(other, f.name), err_msg=f.name)


def assert_same_state(one, other, rtol=0.0):
    one, other = one.state_dict(), other.state_dict()
    assert set(one) == set(other)
    for name, array in one.items():
        np.testing.assert_allclose(array, other[name], rtol=rtol, err_msg=name)


def learn_reward(policy, arm, frame, earned, run=0):
    one = np.array([earned])
    policy.learn(
        Outcomes(
            run=np.array([run]),
            frame=np.array([frame]),
            arm=np.array([arm]),
            probability=one * np.nan,
            audited=np.array([False]),
            exit_at=np.zeros((1, 2)),
            confidence=np.full((1, 2), np.nan),
            prediction=np.full((1, 2), -1),
            exit=np.array([0]),
            offloaded=np.array([False]),
            fallback=np.array([False]),
            sent=np.array([False]),
            latency_ms=one * 0,
            overhead=one * 0,
            reward=one,
        )
    )
