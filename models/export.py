"""A model as ONNX files, one per stage, branch and distortion classifier, with the card that describes them."""

import copy
import logging
import warnings
from dataclasses import asdict
from pathlib import Path

import msgspec
import torch
from torch import Tensor, nn

from eex.models.card import CARD, load, read_card
from eex.models.comparing import check_same
from eex.models.network import EarlyExitNet
from eex.models.onnx import MANIFEST, Manifest, OnnxNet, Session, branch_file, digest, stage_file
from eex.policies.core.errors import EexError, ModelError
from eex.policies.core.files import replacing

OPSET = 20


def export(model: Path | None, out: Path, net: EarlyExitNet | None = None) -> list[Path]:
    """Write a saved model's stages, calibrated branches and classifier as ONNX in float32, and its card.

    Each weight is written once. The batch axis is dynamic. The manifest, which names the files and their SHA-256, is
    written last: a folder without one holds no exported model.

    Parameters
    ----------
    model
        Folder of weights and card; by default the shipped model.
    out
        Folder to write to; the model's own folder gives one that both backends run.
    net
        For a custom backbone: the network as its own code cuts it.

    Returns
    -------
    list of Path
        The ONNX files.

    Raises
    ------
    EexError
        If the model cannot be loaded, one of its operations has no ONNX form, the files do not answer as the model
        does, or the folder cannot be written.
    """
    card = read_card(model)
    net = load(model, "cpu", net)
    parts: dict[str, bytes] = {}
    x = torch.rand(2, *net.architecture.input_shape)
    if net.classifier is not None:
        parts["classifier.onnx"] = to_onnx(net.classifier, x, "the distortion classifier")
    with torch.no_grad():
        for i in range(net.exits):
            parts[stage_file(i)] = to_onnx(_Stage(net, i), x, f"stage {i + 1}")
            x = net.stage(i, x)
            for expert in net.experts:
                name = f"the branch '{expert}' at exit {i + 1}"
                parts[branch_file(i, expert)] = to_onnx(_Branch(net, i, expert), x, name)
    costs = {k: list(v) for k, v in asdict(net.costs()).items()}
    _check(net, parts)
    manifest = Manifest(1, net.fingerprint, costs, {name: digest(data) for name, data in parts.items()})
    for name, data in parts.items():
        with replacing(out / name) as part:
            part.write_bytes(data)
    if not (out / CARD).exists() or read_card(out) != card:
        with replacing(out / CARD) as part:
            part.write_bytes(msgspec.json.format(msgspec.json.encode(card), indent=1) + b"\n")
    with replacing(out / MANIFEST) as part:
        part.write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n")
    return [out / name for name in parts]


def _check(net: EarlyExitNet, parts: dict[str, bytes]) -> None:
    """Raise `ModelError` if ONNX files, by name, do not answer as the network does."""

    def run(name: str) -> Session:
        return Session(parts[name], Path(name), torch.get_num_threads())

    stages = [run(stage_file(i)) for i in range(net.exits)]
    branches = [{expert: run(branch_file(i, expert)) for expert in net.experts} for i in range(net.exits)]
    classifier = None if net.classifier is None else run("classifier.onnx")
    exported = OnnxNet(stages, branches, net.architecture, net.temperature, classifier, net.costs())
    check_same(net, exported, "the exported model")


class _Stage(nn.Module):
    """A stage with the normalisation of images before it."""

    mean: Tensor
    std: Tensor

    def __init__(self, net: EarlyExitNet, i: int) -> None:
        super().__init__()
        self.layers = copy.deepcopy(net.stages[i])
        self.normalises = i == 0 and net.architecture.takes_images
        self.register_buffer("mean", net.mean.clone())
        self.register_buffer("std", net.std.clone())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers((x - self.mean) / self.std if self.normalises else x)
        return out


class _Branch(nn.Module):
    """A branch with its temperature."""

    def __init__(self, net: EarlyExitNet, i: int, expert: str) -> None:
        super().__init__()
        self.layers = copy.deepcopy(net.branches[i][expert])  # type: ignore[index]
        self.temperature = net.temperature[i][expert]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x) / self.temperature
        return out


def to_onnx(module: nn.Module, x: Tensor, name: str) -> bytes:
    """An ONNX model of a module of one float32 tensor (B, …), B dynamic.

    Parameters
    ----------
    x
        An example.
    name
        Of the module, for errors.

    Raises
    ------
    EexError
        If the exporter is not installed, or an operation has no ONNX form.
    """
    try:
        import onnxruntime  # noqa: F401 (what is exported is compared)
        import onnxscript  # noqa: F401 (torch's exporter needs it)
    except ImportError:
        raise EexError("exporting needs onnx, onnxscript and onnxruntime: pip install 'eex[export]'") from None
    module.eval()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns that torchvision is not installed
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's exporter, about itself
            batch = torch.export.Dim("batch", min=1)
            program = torch.onnx.export(
                module, (x,), dynamo=True, dynamic_shapes=({0: batch},), opset_version=OPSET, verbose=False
            )
    except Exception as error:
        line = next((line for line in str(error.__cause__ or error).splitlines() if line.strip()), "no reason given")
        raise ModelError(f"{name} cannot be exported to ONNX: {line.strip()[:300]}") from None
    assert program is not None
    data: bytes = program.model_proto.SerializeToString()
    return data
