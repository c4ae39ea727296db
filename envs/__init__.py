"""Environments in which agents learn to choose thresholds; importing this registers them with Gymnasium.

Gymnasium 1.0 and later load no entry points, so `eex/Threshold-v0` is known once this package is imported, which
`gymnasium.make("eex.envs:eex/Threshold-v0", …)` does by itself. The other names are loaded when they are first used, so
that stable-baselines3 and torch are loaded only by what needs them.
"""

from typing import TYPE_CHECKING

import gymnasium

from eex.policies.core.face import lazily

if TYPE_CHECKING:
    from eex.envs.checks import check_environment
    from eex.envs.episodes import Episodes
    from eex.envs.evaluate import held_out, score
    from eex.envs.export import export_agent
    from eex.envs.playlist import reordered
    from eex.envs.sb3 import ThresholdVecEnv
    from eex.envs.threshold import ThresholdEnv
    from eex.envs.train import TrainRLConfig, train_rl
    from eex.envs.vector import ThresholdVectorEnv

ID = "eex/Threshold-v0"

_MODULES = {
    "Episodes": "episodes",
    "ThresholdEnv": "threshold",
    "ThresholdVecEnv": "sb3",
    "ThresholdVectorEnv": "vector",
    "TrainRLConfig": "train",
    "check_environment": "checks",
    "export_agent": "export",
    "held_out": "evaluate",
    "reordered": "playlist",
    "score": "evaluate",
    "train_rl": "train",
}

__all__ = [
    "ID",
    "Episodes",
    "ThresholdEnv",
    "ThresholdVecEnv",
    "ThresholdVectorEnv",
    "TrainRLConfig",
    "check_environment",
    "export_agent",
    "held_out",
    "register",
    "reordered",
    "score",
    "train_rl",
]


def register() -> None:
    """Make `eex/Threshold-v0` known to `gymnasium.make` and `gymnasium.make_vec`; again is harmless."""
    if ID not in gymnasium.registry:
        gymnasium.register(
            ID,
            entry_point="eex.envs.threshold:ThresholdEnv",
            vector_entry_point="eex.envs.vector:ThresholdVectorEnv",
        )


__getattr__, __dir__ = lazily(__name__, _MODULES)


register()
