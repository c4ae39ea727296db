"""Checkpoints of an agent's training, from which an interrupted one goes on: weights, optimizers and counters.

stable-baselines3's own files hold pickled objects, which would be run when they are read.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from eex.policies.core.errors import EexError
from eex.policies.core.files import read_metadata, replacing

COUNTERS = ("num_timesteps", "_n_updates", "_episode_num", "_n_calls")
"""Attributes that an algorithm of stable-baselines3 counts in, if it has them."""


class _Meta(msgspec.Struct):
    """What a checkpoint holds besides tensors."""

    settings: str
    best: dict[str, Any] | None
    counters: dict[str, int]


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Attributes
    ----------
    path
        The file.
    settings
        What decides how the training goes.
    best
        How the best agent so far did when evaluated, if any was.
    counters
        Values of `COUNTERS`, by name.
    tensors
        Weights ("policy/…"), optimizers' states ("policy.optimizer/3.exp_avg") and other variables ("log_ent_coef").
    """

    path: Path
    settings: str
    best: dict[str, Any] | None
    counters: dict[str, int]
    tensors: dict[str, Any]

    def restore(self, model: Any) -> None:
        """Put a new model of the same settings where the saved one stood; what replay buffers held is lost.

        Raises
        ------
        EexError
            If the file is another model's.
        """
        _, variables = model._get_torch_save_params()
        found: dict[str, Any] = {}
        try:
            for name, parameters in model.get_parameters().items():
                part = {k.partition("/")[2]: v for k, v in self.tensors.items() if k.startswith(f"{name}/")}
                found[name] = _nested(part, parameters) if "param_groups" in parameters else part
            model.set_parameters(found, device=model.device)
            for name in variables:
                getattr(model, name).data.copy_(self.tensors[name])
        except (RuntimeError, ValueError, KeyError) as error:
            raise _unreadable(self.path, error) from None
        for name, value in self.counters.items():
            setattr(model, name, value)


def save_checkpoint(path: Path, model: Any, settings: str, best: dict[str, Any] | None) -> None:
    """Write a model of stable-baselines3, and what belongs to it (`Checkpoint`); the file is replaced whole.

    Raises
    ------
    EexError
        If the file cannot be written.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    _, variables = model._get_torch_save_params()
    tensors = {name: getattr(model, name) for name in variables}
    for name, parameters in model.get_parameters().items():
        if "param_groups" in parameters:
            for index, entries in parameters["state"].items():
                tensors |= {f"{name}/{index}.{entry}": value for entry, value in entries.items()}
        else:
            tensors |= {f"{name}/{key}": value for key, value in parameters.items()}
    known = {name: torch.as_tensor(value).detach().cpu().clone() for name, value in tensors.items()}
    counters = {name: int(getattr(model, name)) for name in COUNTERS if hasattr(model, name)}
    meta = {"settings": settings, "best": best, "counters": counters}
    try:
        with replacing(path) as part:
            save_file(known, part, metadata={"meta": json.dumps(meta)})
    except SafetensorError as error:
        raise EexError(f"{path}: cannot be written: {error}") from None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; nothing in it is run.

    Raises
    ------
    EexError
        If it cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        data = path.read_bytes()
        tensors = load(data)
        meta = msgspec.convert(read_metadata(data, "meta"), type=_Meta)
        if not {COUNTERS[0]} <= meta.counters.keys() <= set(COUNTERS):
            raise ValueError(f"counts {', '.join(meta.counters) or 'nothing'}")
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise _unreadable(path, error) from None
    return Checkpoint(path, meta.settings, meta.best, meta.counters, tensors)


def _nested(part: dict[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state dict, from its tensors by "INDEX.ENTRY"; its settings are those that it has."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in part.items():
        index, _, entry = key.partition(".")
        state.setdefault(int(index), {})[entry] = value
    return {"state": state, "param_groups": parameters["param_groups"]}


def _unreadable(path: Path, error: Exception) -> EexError:
    reason = str(error).partition("\n")[0]
    return EexError(f"{path}: not a checkpoint of this training; delete {path.parent} to begin anew: {reason}")
