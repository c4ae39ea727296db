"""`check_environment` finds an environment that breaks a clause of the contract, one for each clause."""

import numpy as np
import pytest

from eex.envs import check_environment
from eex.envs.threshold import ThresholdEnv
from eex.policies import ContractError


class OutsideItsSpace(ThresholdEnv):
    def step(self, action):
        observation, *rest = super().step(action)
        return observation + 2, *rest


class Unnamed(ThresholdEnv):
    def __init__(self, trace):
        super().__init__(trace)
        self.names = self.names[1:]


class ByChance(ThresholdEnv):
    def step(self, action):
        observation, reward, *rest = super().step(action)
        lucky = self.episodes.t > 50  # later than Gymnasium looks
        return observation, reward + lucky * np.random.default_rng().uniform(), *rest


class EarnsNothingKnown(ThresholdEnv):
    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, float("nan") if self.episodes.t > 50 else reward, *rest


class Terminates(ThresholdEnv):
    def step(self, action):
        observation, reward, _, truncated, info = super().step(action)
        return observation, reward, self.episodes.t > 60, truncated, info


BROKEN = {
    OutsideItsSpace: "Gymnasium finds no fault: UserWarning: .*observation",
    Unnamed: r"observations are named: `names` must name each column of Box.* once, got \(",
    ByChance: "a seed fixes the episode: two of seed 0 differ in step 51, reward, terminated and truncated: got ",
    EarnsNothingKnown: "rewards are finite: step 51 earned nan",
    Terminates: "episodes are only truncated: step 61 terminated; a stream goes on",
}


@pytest.mark.parametrize(("broken", "message"), BROKEN.items())
def test_broken_environments_are_found(make_trace, broken, message):
    with pytest.raises(ContractError, match=f"^{message}") as caught:
        check_environment(lambda: broken(make_trace()))
    assert "\n" not in str(caught.value)


def test_a_sound_environment_passes(make_trace):
    check_environment(lambda: ThresholdEnv(make_trace()))
