"""Published weights: the tensors of a state dict, from a safetensors file or one that torch.save wrote."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eex.policies.core.errors import EexError

WRAPPERS = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before the names of all weights."""
INSIDE = ("state_dict", "model_state_dict", "model", "state_dict_ema", "model_ema", "net")
"""Keys under which training scripts keep the state dict in a checkpoint."""
CONVERT = "torch.save(net.state_dict(), 'net.pth') where the file was made"


def read_state(path: Path | str) -> dict[str, Tensor]:
    """The weights in a file, by name.

    Of files that torch.save wrote (.pth, .pt, .bin), tensors alone are read (`torch.load(weights_only=True)`): nothing
    in them is run. A state dict inside a checkpoint is found, and names lose the `module.` that DataParallel puts
    before them.

    Raises
    ------
    EexError
        If the file cannot be read, or holds something else than weights.

    Examples
    --------
    ::

        def network():
            net = torchvision.models.resnet18(num_classes=2)
            net.load_state_dict(read_state("resnet18.pth"))
            return cut(net, ["layer2", "layer3", "layer4"], ["cat", "dog"], input_shape=(3, 64, 64))
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise EexError(f"{path}: cannot be read: {error.strerror}") from None
    saved_by_torch = start[:1] == b"\x80" or zipfile.is_zipfile(path)
    found: Any = _of_torch(path) if saved_by_torch else _of_safetensors(path)
    for key in INSIDE:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
            break
    if not isinstance(found, Mapping):
        raise EexError(f"{path}: holds a {type(found).__name__}, not a state dict; write one: {CONVERT}")
    weights = {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
    if not weights:
        raise EexError(f"{path}: holds no weights, but {', '.join(map(str, list(found)[:5])) or 'nothing'}")
    return without_wrappers(weights)


def without_wrappers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by their names in the module itself, without what DataParallel or torch.compile puts before them."""
    while prefix := next((p for p in WRAPPERS if weights and all(name.startswith(p) for name in weights)), ""):
        weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return dict(weights)


def _of_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(path.read_bytes())  # a path need not be UTF-8, which load_file wants
    except (SafetensorError, OSError) as error:
        raise EexError(f"{path}: neither a safetensors file nor one that torch.save wrote: {error}") from None


def _of_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise EexError(
            f"{path}: holds more than tensors (a whole pickled module, say), which is not read, because it could run "
            f"code; write the weights alone: {CONVERT}"
        ) from None
    except Exception as error:  # damaged archives and TorchScript raise all kinds of exceptions
        reason = " ".join(str(error).partition("(Could this")[0].split())[:200].rstrip(".")  # no plea to report it
        raise EexError(f"{path}: not a state dict that torch.save wrote: {reason}; write one: {CONVERT}") from None
