"""The vector environment refuses actions that are not one per environment."""

import gymnasium
import numpy as np
import pytest

import eex.envs  # noqa: F401 (registers the environment)
from eex.policies.core.trace import Trace


@pytest.mark.parametrize("shape", [(4,), (1, 4), (3, 1), (4, 2), ()])
def test_box_actions_of_another_shape_are_refused(shape):
    trace = Trace(
        confidence=np.array([[0.6, 0.9]] * 8),
        prediction=np.zeros((8, 2), int),
        label=np.zeros(8, int),
        classes=("cat",),
    )
    envs = gymnasium.make_vec("eex/Threshold-v0", num_envs=4, trace=trace, action="box")
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=r"expected actions of shape \(4, 1\)"):
        envs.step(np.zeros(shape))
