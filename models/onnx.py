"""An exported model, run by ONNX Runtime."""

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from eex.models.card import fingerprint, read_card
from eex.models.network import Costs, EarlyExitNet
from eex.policies.core.errors import EexError, ModelError
from eex.policies.core.files import parse_json

MANIFEST = "onnx.json"


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the ONNX files in a folder are.

    Attributes
    ----------
    format
        Version of this layout: 1.
    fingerprint
        Fingerprint of the model that was exported; that of the card beside it must be the same.
    costs
        Multiply-adds of stages and branches; bytes of features.
    sha256
        SHA-256 of each file, by name.
    """

    format: int
    fingerprint: str
    costs: dict[str, list[int]]
    sha256: dict[str, str]


def stage_file(i: int) -> str:
    """File name of stage i, counted from 0; files count from 1."""
    return f"stage-{i + 1}.onnx"


def branch_file(i: int, expert: str) -> str:
    """File name of an expert's branch at exit i.

    Raises
    ------
    EexError
        If the expert's name would lead to another folder.
    """
    if any(c in expert for c in "/\\\0") or expert.startswith("."):
        raise EexError(f"expert {expert!r}: the name cannot be part of a file's; rename the expert")
    return f"branch-{i + 1}-{expert}.onnx"


def digest(data: bytes) -> str:
    """SHA-256 in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


class Session(nn.Module):
    """A function of one float32 array, (B, ...) to (B, ...), in ONNX Runtime."""

    def __init__(self, data: bytes, path: Path, threads: int) -> None:
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads of sessions would fight
        options.log_severity_level = 4
        try:
            self.session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors have no public base class
            line = " ".join(str(error).split())[:300]
            raise ModelError(f"{path}: ONNX Runtime {onnxruntime.__version__} cannot run it: {line}") from None
        self.input = self.session.get_inputs()[0].name

    def forward(self, x: Tensor) -> Tensor:
        array: Any = self.session.run(None, {self.input: x.float().contiguous().numpy()})[0]
        return torch.from_numpy(array)


class OnnxNet(EarlyExitNet):
    """An exported network; its stages, branches and classifier are ONNX Runtime's. It infers only, on the processor."""

    measured: Costs

    def stage(self, i: int, x: Tensor) -> Tensor:
        """Features after stage i; the first one's file includes the normalisation."""
        out: Tensor = self.stages[i](x)
        return out

    def costs(self) -> Costs:
        """Multiply-adds and bytes as counted when the model was exported."""
        return self.measured


def load_onnx(folder: Path, threads: int = 0) -> OnnxNet:
    """Load a model that `eex.models.export.export` wrote.

    Parameters
    ----------
    folder
        Folder of the ONNX files, their manifest and the model's card.
    threads
        Processor threads; 0 takes as many as torch does.

    Raises
    ------
    EexError
        If ONNX Runtime is not installed; if files are missing, damaged or do not belong together.
    """
    try:
        import onnxruntime  # noqa: F401
    except ImportError:
        raise EexError("--backend onnx needs ONNX Runtime: pip install 'eex[onnx]'") from None
    threads = threads or torch.get_num_threads()
    card, path = read_card(folder), folder / MANIFEST
    try:
        manifest = msgspec.convert(parse_json(path.read_bytes()), type=Manifest)
    except FileNotFoundError:
        raise ModelError(f"{path}: missing; --backend onnx runs a folder that eex-export wrote") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ModelError(f"{path}: not written by this version of eex ({error}); run eex-export again") from None
    if manifest.format != 1:
        raise ModelError(f"{path}: has format {manifest.format}, expected 1; run this version's eex-export again")
    if manifest.fingerprint != fingerprint(card):
        raise ModelError(f"{path}: does not match the card beside it; run eex-export again")

    def session(name: str) -> Session:
        try:
            data = (folder / name).read_bytes()
        except OSError as error:
            raise ModelError(f"{folder / name}: cannot be read: {error.strerror}; run eex-export again") from None
        if digest(data) != manifest.sha256.get(name):
            raise ModelError(f"{folder / name}: does not match {MANIFEST} (damaged or replaced); run eex-export again")
        return Session(data, folder / name, threads)

    count = len(card.temperatures)
    try:
        costs = Costs(**{k: tuple(v) for k, v in manifest.costs.items()})
    except TypeError as error:
        raise ModelError(f"{path}: {error}; run eex-export again") from None
    stages = [session(stage_file(i)) for i in range(count)]
    branches = [{e: session(branch_file(i, e)) for e in card.architecture.experts} for i in range(count)]
    net = OnnxNet(stages, branches, card.architecture)
    net.measured = costs
    if card.classifier:
        net.classifier = session("classifier.onnx")
    net.fingerprint = manifest.fingerprint
    return net.eval()
