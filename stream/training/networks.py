"""The network to train: a backbone or the user's own, with new, published or earlier weights."""

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from eex.models.card import load
from eex.models.network import EarlyExitNet, load_torchvision_mobilenet, make
from eex.models.state import read_state
from eex.models.training import estimate_norms
from eex.policies.core.errors import EexError
from eex.stream.training.data import Data
from eex.stream.training.options import TrainConfig

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
"""Normalisation of the images on which published weights were trained."""


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
    net.architecture = dataclasses.replace(net.architecture, confidence=config.confidence)
    return net


def _of_backbone(config: TrainConfig, data: Data) -> EarlyExitNet:
    channels, height, width = data.images.shape[1:]
    options: dict[str, Any] = {"width": config.width} if config.backbone == "resnet" else {}
    if config.backbone == "mobilenet_v2":
        options = {"small_images": height <= 64}
    if config.weights is not None:
        options |= IMAGENET
    try:
        net = make(
            config.backbone,
            data.classes,
            after=config.after,
            uniform=0 if config.after else config.uniform,
            shares=() if config.after or config.uniform else config.shares,
            structure=config.structure,
            final_structure=config.final_structure,
            input_shape=(channels, height, width),
            partition=config.partition,
            **options,
        )
        if config.weights is not None:
            load_torchvision_mobilenet(net, read_state(config.weights))
    except EexError:
        raise
    except (ValueError, RuntimeError) as error:
        raise EexError(str(error)) from None
    return net


def start_from(folders: Sequence[Path], net: EarlyExitNet, images: torch.Tensor) -> None:
    """Set the weights of a network to the mean of those of saved models, leaving out experts that it does not have.

    The mean of several models, each trained from the one before, generalises better than each of them (Izmailov et al.
    2018, Averaging weights leads to wider optima, UAI); its norms take their statistics anew from the images.

    Raises
    ------
    EexError
        If a model has another architecture.
    """
    state = net.state_dict()
    sums = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in state.items()}
    for folder in folders:
        given = load(folder, str(net.mean.device), copy.deepcopy(net)).state_dict()
        wrong = [name for name, value in state.items() if name not in given or given[name].shape != value.shape]
        if wrong:
            raise EexError(f"{folder}: of another architecture, {len(wrong)} weights differ: {wrong[0]}, … (--start)")
        for name, total in sums.items():
            total += given[name]
    net.load_state_dict({name: (total / len(folders)).to(state[name].dtype) for name, total in sums.items()})
    if len(folders) > 1:
        estimate_norms(net, images)
