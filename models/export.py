"""A model as ONNX files, one per stage, branch and distortion classifier, with the card that describes them."""

import copy
import logging
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from msgspec import structs
from numpy.typing import NDArray
from torch import Tensor, nn

from eex.models.calibration import fit_temperature
from eex.models.card import CARD, WEIGHTS, Card, load, read_card
from eex.models.comparing import check_same
from eex.models.network import EarlyExitNet
from eex.models.onnx import (
    CLASSIFIER,
    MANIFEST,
    Manifest,
    OnnxNet,
    Precision,
    Session,
    branch_file,
    digest,
    reduced_fingerprint,
    stage_file,
)
from eex.models.quantising import Samples, compared_exit, divided, parts_of, to_fp16, to_int8
from eex.models.spectrum import FLOOR, DistortionClassifier, fourier
from eex.policies.core.errors import EexError, ModelError
from eex.policies.core.files import replacing

OPSET = 20


def export(
    model: Path | str | None,
    out: Path | str,
    net: EarlyExitNet | None = None,
    precision: Precision = "fp32",
    samples: Samples | None = None,
) -> list[Path]:
    """Write a saved model's stages, calibrated branches and classifier as ONNX, and its card.

    Each weight is written once. The batch axis is dynamic. The manifest, which names the files and their SHA-256, is
    written last: a folder without one holds no exported model. A reduced precision has a fingerprint of its own; in
    int8, stages and branches are quantised, temperatures fitted anew on one half of the held-out images, and the exits
    measured on the other half; what was measured is `measured["int8"]` on the card. The classifier stays in float32.

    Parameters
    ----------
    model
        Folder of weights and card; by default the shipped model.
    out
        Folder to write to; the model's own folder gives one that both backends run.
    net
        For a custom backbone: the network as its own code cuts it.
    precision
        That the files compute in; inputs and outputs are float32 in any case.
    samples
        For int8: images to quantise by and to measure on.

    Returns
    -------
    list of Path
        The ONNX files.

    Raises
    ------
    EexError
        If the model cannot be loaded, one of its operations has no ONNX form, the files do not answer as the model
        does, or the folder cannot be written or holds weights that the model's card is not for.
    """
    card, out = read_card(model), Path(out)
    try:
        holds = (out / WEIGHTS).exists()
    except OSError as error:
        raise EexError(f"{out}: cannot be written: {error.strerror} (--out)") from None
    if holds and (precision != "fp32" or read_card(out) != card):
        why = " of another model" if precision == "fp32" else f", and a model in {precision} has a card of its own"
        raise EexError(f"{out}: holds {WEIGHTS}{why}; name another folder")
    net = load(model, "cpu", net)
    parts: dict[str, bytes] = {}
    x = torch.rand(2, *net.architecture.input_shape)
    if net.classifier is not None:
        classifier = _Classifier(net.classifier, x) if type(net.classifier) is DistortionClassifier else net.classifier
        parts[CLASSIFIER] = to_onnx(classifier, x, "the distortion classifier")
    with torch.no_grad():
        for i in range(net.exits):
            parts[stage_file(i)] = to_onnx(_Stage(net, i), x, f"stage {i + 1}")
            x = net.stage(i, x)
            for expert in net.experts:
                name = f"the branch '{expert}' at exit {i + 1}"
                parts[branch_file(i, expert)] = to_onnx(_Branch(net, i, expert), x, name)
    costs = {k: list(v) for k, v in asdict(net.costs()).items()}
    exported = _running(net, parts)
    check_same(net, exported, "the exported model")
    if precision == "int8":
        if samples is None:
            raise ValueError("int8 needs samples to quantise by")
        parts, card = _in_int8(net, exported, parts, card, samples)
    elif precision == "fp16":
        parts = {n: data if n == CLASSIFIER else to_fp16(data, n) for n, data in parts.items()}
        check_same(net, _running(net, parts), "the model in fp16", torch.float16)
    sha256 = {name: digest(data) for name, data in parts.items()}
    manifest = Manifest(1, net.fingerprint, costs, sha256)
    if precision != "fp32":
        own = reduced_fingerprint(card, precision, sha256)
        manifest = Manifest(1, own, costs, sha256, precision, tail=net.fingerprint)
    for name, data in parts.items():
        with replacing(out / name) as part:
            part.write_bytes(data)
    if not (out / CARD).exists() or read_card(out) != card:
        with replacing(out / CARD) as part:
            part.write_bytes(msgspec.json.format(msgspec.json.encode(card), indent=1) + b"\n")
    with replacing(out / MANIFEST) as part:
        part.write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n")
    return [out / name for name in parts]


def _in_int8(
    net: EarlyExitNet, exported: OnnxNet, parts: dict[str, bytes], card: Card, samples: Samples
) -> tuple[dict[str, bytes], Card]:
    """Exported parts in int8, and the card with the temperatures and figures that they have then.

    Parameters
    ----------
    exported
        The network in float32, as exported.
    """
    quantised = {CLASSIFIER: parts[CLASSIFIER]} if CLASSIFIER in parts else {}
    temperatures: list[dict[str, float]] = []
    rows = []
    fit, held, before = dict(samples.fit), dict(samples.held), dict(samples.held)
    odd = np.arange(len(samples.labels)) % 2 == 1  # images to measure on; temperatures are fitted on the others
    for i in range(net.exits):
        name = stage_file(i)
        quantised[name] = to_int8(parts[name], list(fit.values()), f"stage {i + 1}")
        stage = Session(quantised[name], Path(name), torch.get_num_threads())
        fit, held = ({e: _run(stage, x) for e, x in of.items()} for of in (fit, held))
        before = {e: _run(exported.stages[i], x) for e, x in before.items()}
        temperatures.append({})
        for expert in net.experts:
            name = branch_file(i, expert)
            plain = to_onnx(_Branch(net, i, expert, 1.0), torch.from_numpy(fit[expert][:2]), name)
            plain = to_int8(plain, [fit[expert]], f"the branch '{expert}' at exit {i + 1}")
            logits = _run(Session(plain, Path(name), torch.get_num_threads()), held[expert])
            fitted = fit_temperature(torch.from_numpy(logits[~odd]), torch.from_numpy(samples.labels[~odd]))
            temperatures[i][expert] = fitted
            quantised[name] = divided(plain, fitted)
            expected = _run(exported.branches[i][expert], before[expert])
            row = compared_exit(net, logits[odd] / fitted, expected[odd], samples.labels[odd])
            rows.append({"exit": i + 1, "expert": expert, **row})
    measured = card.measured | {"int8": {"images": int(odd.sum()), "source": samples.source, "exits": rows}}
    return quantised, structs.replace(card, temperatures=temperatures, measured=measured)


def _run(session: Session, x: NDArray[Any]) -> NDArray[Any]:
    """What a session makes of an array (N, ...)."""
    return np.concatenate([session(part) for part in parts_of(x)])


def _running(net: EarlyExitNet, parts: dict[str, bytes]) -> OnnxNet:
    """A network of ONNX files, by name."""

    def run(name: str) -> Session:
        return Session(parts[name], Path(name), torch.get_num_threads())

    stages = [run(stage_file(i)) for i in range(net.exits)]
    branches = [{expert: run(branch_file(i, expert)) for expert in net.experts} for i in range(net.exits)]
    classifier = None if net.classifier is None else run(CLASSIFIER)
    return OnnxNet(stages, branches, net.architecture, net.temperature, classifier, net.costs())


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
    """A branch with its temperature, or another one."""

    def __init__(self, net: EarlyExitNet, i: int, expert: str, temperature: float = 0.0) -> None:
        super().__init__()
        self.layers = copy.deepcopy(net.branches[i][expert])  # type: ignore[index]
        self.temperature = temperature or net.temperature[i][expert]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x) / self.temperature
        return out


class _Classifier(nn.Module):
    """The distortion classifier for images of one size: ONNX Runtime multiplies matrices faster than it transforms.

    For one 32x32 image the whole classifier took 190 µs with the transform, and takes 80 so; for 32, 3.8 and 1.0 ms.
    """

    columns: Tensor
    rows: Tensor

    def __init__(self, classifier: DistortionClassifier, images: Tensor) -> None:
        super().__init__()
        _, channels, self.height, width = images.shape
        self.bins = width // 2 + 1
        columns, rows = fourier(channels, self.height, width)
        self.register_buffer("columns", torch.from_numpy(columns))
        self.register_buffer("rows", torch.from_numpy(rows))
        *layers, pool = classifier.features
        self.layers = nn.Sequential(*layers)
        cells = self.layers(torch.zeros(1, 1, self.height, self.bins))
        if pool(cells).shape != cells.shape:  # else it would only copy them
            self.layers.append(pool)
        self.last = classifier.classifier

    def forward(self, images: Tensor) -> Tensor:
        parts = self.columns @ images.flatten(1, 2)
        parts = torch.cat([parts[:, : self.height], parts[:, self.height :]], dim=2) @ self.rows
        parts = parts * parts
        magnitude = (parts[..., : self.bins] + parts[..., self.bins :]).sqrt()
        out: Tensor = self.last(self.layers((magnitude + FLOOR).log().unsqueeze(1)).flatten(1))
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
