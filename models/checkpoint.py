"""Checkpoints of a training: what a killed run resumes from."""

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from torch import Tensor

from eex.models.network import EarlyExitNet
from eex.policies.core.errors import EexError
from eex.policies.core.files import read_metadata, replacing


class _State(msgspec.Struct):
    """What a checkpoint holds besides tensors."""

    run: dict[str, str] | str
    phase: Annotated[int, msgspec.Meta(ge=0)]
    epoch: Annotated[int, msgspec.Meta(ge=0)]
    best: float
    since_best: Annotated[int, msgspec.Meta(ge=0)]
    history: list[dict[str, Any]]


class Checkpoint:
    """Where a training stands, from which a killed one resumes: one safetensors file, replaced whole after every epoch.

    Parameters
    ----------
    net
        The network that is trained; gets the weights in the file, if there is one.
    run
        What the run depends on, by name: texts that must equal those in the file.
    patience
        Epochs without a better validation loss after which a phase stops and returns to its best weights; 0 = never.
    path
        The file; None keeps nothing.

    Raises
    ------
    EexError
        If the file is damaged or of another run, or cannot be written.
    """

    def __init__(self, net: EarlyExitNet, run: dict[str, str], patience: int, path: Path | None) -> None:
        self.net, self.run, self.patience, self.path = net, run, patience, path
        self.phase, self.epoch, self.best, self.since_best = 0, 0, math.inf, 0
        self.resumed = False
        self.history: list[dict[str, Any]] = []
        self.optimizer: dict[str, Tensor] = {}
        self.best_weights: dict[str, Tensor] = {}
        if path is not None and path.exists():
            self._load(path)

    def _load(self, path: Path) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            data = path.read_bytes()  # a path need not be UTF-8, which safe_open wants
            tensors = load(data)
            meta = msgspec.convert(read_metadata(data, "state"), type=_State)
        except (SafetensorError, KeyError, ValueError, OSError) as error:
            raise EexError(f"{path}: not a training checkpoint ({error}); delete it to start anew") from None
        theirs = meta.run if isinstance(meta.run, dict) else {}  # an older eex wrote a text
        if differing := [name for name in self.run if theirs.get(name) != self.run[name]]:
            what = " and ".join(differing)
            raise EexError(f"{path}: belongs to a run with other {what}; repeat those, or delete it to start anew")
        self.phase, self.epoch = meta.phase, meta.epoch
        self.best, self.since_best, self.history = meta.best, meta.since_best, meta.history
        try:
            self.net.load_state_dict(_part(tensors, "net."))
        except RuntimeError:  # a user's own module may differ where its architecture reads the same
            raise EexError(f"{path}: belongs to another network; delete it to start anew") from None
        self.optimizer = _part(tensors, "optimizer.")
        if strange := [key for key in self.optimizer if not re.fullmatch(r"[0-9]{1,9}\.\w+", key)]:
            raise EexError(f"{path}: has an optimizer's state '{strange[0]}', which is none; delete it to start anew")
        self.best_weights = _part(tensors, "best.")
        self.resumed = True

    def start_phase(self, phase: int, optimizer: torch.optim.Optimizer) -> None:
        """Begin a phase, or give the optimizer the state in which a killed run left it."""
        if phase != self.phase:
            self.phase, self.epoch, self.best, self.since_best = phase, 0, math.inf, 0
            self.best_weights = {}
        elif self.optimizer:
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in self.optimizer.items():
                index, name = key.split(".")
                state.setdefault(int(index), {})[name] = value
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
            self.optimizer = {}

    @property
    def stopped(self) -> bool:
        """Whether patience has run out in this phase."""
        return bool(self.patience) and self.since_best >= self.patience

    def end_epoch(self, epoch: int, optimizer: torch.optim.Optimizer, validation_loss: float) -> None:
        """Note how many epochs of the phase are done, and write the file."""
        self.epoch = epoch
        if validation_loss < self.best:
            self.best, self.since_best = validation_loss, 0
            if self.patience:
                self.best_weights = {k: v.detach().clone() for k, v in self.net.state_dict().items()}
        else:
            self.since_best += 1
        if self.path is not None:
            self._save(optimizer)

    def end_phase(self) -> None:
        """Give the network its best weights of the phase, where patience kept them."""
        if self.best_weights:
            self.net.load_state_dict(self.best_weights)

    def _save(self, optimizer: torch.optim.Optimizer) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        assert self.path is not None
        tensors = {f"net.{k}": v.contiguous().clone() for k, v in self.net.state_dict().items()}
        for index, entries in optimizer.state_dict()["state"].items():
            for name, value in entries.items():
                if value is not None:
                    tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value).contiguous()
        tensors |= {f"best.{k}": v.contiguous() for k, v in self.best_weights.items()}
        meta = {
            "run": self.run,
            "phase": self.phase,
            "epoch": self.epoch,
            "best": self.best,
            "since_best": self.since_best,
            "history": self.history,
        }
        try:
            with replacing(self.path) as part:
                save_file(tensors, part, metadata={"state": json.dumps(meta)})
        except SafetensorError as error:
            raise EexError(f"{self.path}: cannot be written: {error}") from None


def tensors_digest(*tensors: Tensor) -> str:
    """SHA-256 of the types, shapes and values of tensors."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def weights_digest(net: EarlyExitNet, without: str = "") -> str:
    """SHA-256 of all weights, except those with a given text in their name."""
    digest = hashlib.sha256()
    for name, value in net.state_dict().items():
        if not without or without not in name:
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
