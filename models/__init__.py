"""Early-exit models: the network, cutting one's own, training, calibration, the form that infers fast, files.

Names are loaded when they are first used, so that `import eex.models` loads no torch.
"""

from typing import TYPE_CHECKING

from eex.policies.core.face import lazily, moved

if TYPE_CHECKING:
    from eex.models.architecture import Architecture, Costs, Network
    from eex.models.calibration import calibrate, fit_temperature
    from eex.models.card import Card, load, read_card, save
    from eex.models.cutting import cut
    from eex.models.fast import optimised
    from eex.models.network import EarlyExitNet, make
    from eex.models.spectrum import DistortionClassifier, fit_classifier
    from eex.models.state import read_state
    from eex.models.training import Recipe, evaluate, fit

_MODULES = {
    "Architecture": "architecture",
    "Card": "card",
    "Costs": "architecture",
    "DistortionClassifier": "spectrum",
    "EarlyExitNet": "network",
    "Network": "architecture",
    "Recipe": "training",
    "auto_cut": "placing",
    "calibrate": "calibration",
    "cut": "cutting",
    "evaluate": "training",
    "fit": "training",
    "fit_classifier": "spectrum",
    "fit_temperature": "calibration",
    "load": "card",
    "make": "network",
    "optimised": "fast",
    "read_card": "card",
    "read_state": "state",
    "save": "card",
}

__all__ = [
    "Architecture",
    "Card",
    "Costs",
    "DistortionClassifier",
    "EarlyExitNet",
    "Network",
    "Recipe",
    "auto_cut",
    "calibrate",
    "cut",
    "evaluate",
    "fit",
    "fit_classifier",
    "fit_temperature",
    "load",
    "make",
    "optimised",
    "read_card",
    "read_state",
    "save",
]


__getattr__, __dir__ = lazily(__name__, _MODULES)
moved("eex.models.cut", "eex.models.cutting")  # users cut networks of their own by the old name
