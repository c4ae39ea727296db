"""Environments in which agents learn to choose thresholds; importing this registers them with Gymnasium.

Gymnasium 1.0 and later load no entry points, so `eex/Threshold-v0` is known once this package is imported, which
`gymnasium.make("eex.envs:eex/Threshold-v0", …)` does by itself.
"""

import gymnasium

ID = "eex/Threshold-v0"


def register() -> None:
    """Make `eex/Threshold-v0` known to `gymnasium.make` and `gymnasium.make_vec`; again is harmless."""
    if ID not in gymnasium.registry:
        gymnasium.register(
            ID,
            entry_point="eex.envs.threshold:ThresholdEnv",
            vector_entry_point="eex.envs.vector:ThresholdVectorEnv",
        )


register()
