"""The network to train: a backbone or the user's own, with new, published or earlier weights."""

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from eex.models import efficientnet
from eex.models.card import load, read_card
from eex.models.cutting import evaluated
from eex.models.network import EarlyExitNet, load_torchvision_mobilenet, make
from eex.models.placing import auto_cut
from eex.models.state import read_state
from eex.models.tracing import device_of, first_line, logits_of
from eex.models.training import estimate_norms
from eex.policies.core.errors import EexError
from eex.stream.network import ZOOS, make_module
from eex.stream.training.data import Data, few
from eex.stream.training.options import TrainConfig

IMAGENET: dict[str, tuple[float, ...]] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
"""Normalisation of the images on which published weights were trained."""
PUBLISHED: dict[
    str, tuple[Callable[[EarlyExitNet, Mapping[str, torch.Tensor]], None], dict[str, tuple[float, ...]]]
] = {
    "mobilenet_v2": (load_torchvision_mobilenet, IMAGENET),
    "efficientnet_lite0": (efficientnet.load_published, {"mean": efficientnet.MEAN, "std": efficientnet.STD}),
}
"""What loads the published weights of a backbone, and their normalisation."""


def first_network(config: TrainConfig, own: EarlyExitNet | None, data: Data) -> EarlyExitNet:
    """Build the configured network on the CPU, with its initial weights.

    Raises
    ------
    EexError
        If the network does not fit the data, or the weights do not fit the network.
    """
    if own is None:
        net = _of_backbone(config, data)
    elif own.classes == data.classes:
        net = own
    else:
        raise EexError(f"--network {config.network}: its classes are {own.classes}, the data's are {data.classes}")
    net.architecture = dataclasses.replace(
        net.architecture, confidence=config.confidence, preprocessing=config.preprocessing()
    )
    return net


def own_network(config: TrainConfig, made: nn.Module | None, data: Data) -> tuple[EarlyExitNet | None, list[str]]:
    """The network that --network names, cut into stages, and the lines of a table that says where.

    Parameters
    ----------
    made
        What the named function returned; None if it takes the number of classes and is yet to be called.
    data
        What the network is for; with --teach, its classes are `taught_classes`.

    Raises
    ------
    EexError
        If it cannot be cut, or does not fit the data.
    """
    if not config.network:
        return None, []
    if made is None:
        made = make_module(config.network, len(data.classes), config.pretrained)
    if isinstance(made, EarlyExitNet):
        for name in ("exits", "exits_by", "mean", "std", "shares", "structure", "partition"):
            if getattr(config, name) != getattr(TrainConfig, name):
                raise EexError(f"--{name.replace('_', '-')}: {config.network} returns a network that is cut already")
        return made, []
    lines: list[str] = []
    channels, height, width = data.images.shape[1:]
    usual = IMAGENET if config.pretrained else {"mean": (), "std": ()}
    try:
        net = auto_cut(
            made,
            data.classes,
            input_shape=(channels, height, width),
            exits="auto" if config.exits == "auto" else int(config.exits),
            shares=() if config.exits != "auto" and config.shares == TrainConfig.shares else config.shares,
            by=config.exits_by,
            structure=config.branch_structures()[0],
            mean=config.mean or usual["mean"],
            std=config.std or usual["std"],
            partition=config.partition,
            report=lines.extend,
        )
    except (EexError, ValueError) as error:
        raise EexError(f"--network {config.network}: {error}") from None
    return net, lines


def taught_classes(config: TrainConfig, made: nn.Module | None, data: Data) -> tuple[nn.Module | None, tuple[str, ...]]:
    """The network that --network names and that is to be taught, and its classes: with --teach, no image tells them.

    Raises
    ------
    EexError
        If the network cannot be made without their number, or has another number of them than --classes names.
    """
    given = config.class_names()
    if not config.network:
        has = read_card(config.start[0]).architecture.classes
    else:
        if made is None and not given and config.network.partition(":")[0] not in ZOOS:
            raise EexError(f"--network {config.network}: takes the number of classes; name them (--classes)")
        made = make_module(config.network, len(given), config.pretrained) if made is None else made
        has = made.classes if isinstance(made, EarlyExitNet) else tuple(map(str, range(_outputs(config, made, data))))
    named = isinstance(made, EarlyExitNet) or not config.network
    if given and (given != has if named else len(given) != len(has)):
        shown = few(has) if named else f"{len(has)} of them"
        raise EexError(f"--classes: names {len(given)} classes, but the network's are {shown}")
    return made, given or has


@torch.no_grad()
def _outputs(config: TrainConfig, made: nn.Module, data: Data) -> int:
    """The number of logits of a network."""
    images = torch.from_numpy(data.images[:2]).to(device_of(made)).float() / 255
    try:
        with evaluated(made):
            logits = logits_of(made(images))
        return int(logits.shape[1])
    except Exception as error:  # whatever the user's code raises
        raise EexError(f"--network {config.network}: cannot answer the images: {first_line(error)}") from None


def _of_backbone(config: TrainConfig, data: Data) -> EarlyExitNet:
    channels, height, width = data.images.shape[1:]
    options: dict[str, Any] = {"width": config.width} if config.backbone == "resnet" else {}
    if config.backbone == "mobilenet_v2":
        options = {"small_images": height <= 64}
    elif config.backbone == "efficientnet_lite0" and (config.enlarge or height <= 64):
        options = {"enlarge": config.enlarge or 128 // height}
    published = PUBLISHED.get(config.backbone)
    try:
        weights = efficientnet.packaged() if config.pretrained else config.weights
    except EexError as error:
        raise EexError(f"--pretrained: {error}") from None
    if weights is not None:
        if published is None:
            raise EexError(f"--weights is for {' and '.join(PUBLISHED)}, not for {config.backbone}")
        options |= published[1]
    structure, final_structure = config.branch_structures()
    try:
        net = make(
            config.backbone,
            data.classes,
            after=config.after,
            uniform=0 if config.after else config.uniform,
            shares=() if config.after or config.uniform else config.shares,
            structure=structure,
            final_structure=final_structure,
            input_shape=(channels, height, width),
            partition=config.partition,
            **options,
        )
        if weights is not None and published is not None:
            published[0](net, read_state(weights))
    except EexError:
        raise
    except (ValueError, RuntimeError) as error:
        raise EexError(" ".join(str(error).split())) from None
    return net


def start_from(folders: Sequence[Path], net: EarlyExitNet, images: torch.Tensor) -> None:
    """Set weights and temperatures to the mean of those of saved models, leaving out experts that the network lacks.

    The mean of several models, each trained from the one before, generalises better than each of them (Izmailov et al.
    2018, Averaging weights leads to wider optima, UAI); its norms take their statistics anew from the images.

    Raises
    ------
    EexError
        If a model has other classes or another architecture.
    """
    for folder in folders:
        if (classes := read_card(folder).architecture.classes) != net.classes:
            raise EexError(f"--start {folder}: its classes {few(classes)} are not the data's, {few(net.classes)}")
    state = net.state_dict()
    sums = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in state.items()}
    temperatures = []
    for folder in folders:
        loaded = load(folder, str(net.mean.device), copy.deepcopy(net))
        given = loaded.state_dict()
        temperatures.append(loaded.temperature)
        wrong = [name for name, value in state.items() if name not in given or given[name].shape != value.shape]
        if wrong:
            raise EexError(f"{folder}: of another architecture, {len(wrong)} weights differ: {wrong[0]}, … (--start)")
        for name, total in sums.items():
            total += given[name]
    net.load_state_dict({name: (total / len(folders)).to(state[name].dtype) for name, total in sums.items()})
    for exit, own in enumerate(
        net.temperature
    ):  # which count until it is calibrated anew: a teacher is as sure as it was
        for expert in own:
            own[expert] = float(np.mean([of_model[exit][expert] for of_model in temperatures]))
    if len(folders) > 1:
        estimate_norms(net, images)
