"""The early-exit network: a backbone cut into stages, with a side branch per expert after each."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eex.models.alexnet import alexnet
from eex.models.architecture import CUSTOM as CUSTOM
from eex.models.architecture import PRISTINE as PRISTINE
from eex.models.architecture import Architecture as Architecture
from eex.models.architecture import Costs as Costs
from eex.models.architecture import Preprocessing as Preprocessing
from eex.models.architecture import check_expert
from eex.models.branches import make_branch, place_by_share, place_uniformly
from eex.models.efficientnet import efficientnet_lite0
from eex.models.mobilenet import mobilenet_v2
from eex.models.resnet import resnet
from eex.models.transformer import transformer

BACKBONES: dict[str, Callable[..., list[nn.Module]]] = {
    "resnet": resnet,
    "mobilenet_v2": mobilenet_v2,
    "alexnet": alexnet,
    "efficientnet_lite0": efficientnet_lite0,
    "transformer": transformer,
}
"""Backbones by name: functions of their own options that return the blocks, to be cut anywhere between them."""


class EarlyExitNet(nn.Module):
    """A backbone cut into stages, with side branches after each; the last stage is followed by the final exit.

    Parameters
    ----------
    stages
        Modules that follow each other.
    branches
        Per stage, the branch of each expert, by name.
    architecture
        Names, shapes and normalisation; `partition` 0 stands for all stages but the last.

    Raises
    ------
    ValueError
        If stages and branches differ in number, the partition point lies outside the network, the input shape is that
        of neither images nor texts, mean and std are not one per channel (none for texts), or there is no such
        confidence or preprocessing.
    """

    mean: Tensor
    std: Tensor
    classifier: nn.Module | None
    fingerprint: str

    def __init__(
        self, stages: Sequence[nn.Module], branches: Sequence[Mapping[str, nn.Module]], architecture: Architecture
    ) -> None:
        super().__init__()
        if len(stages) != len(branches) or not stages:
            raise ValueError(f"each stage needs its branches: got {len(stages)} stages, {len(branches)} exits")
        for expert in branches[0]:
            _check_expert(expert)
        self.partition = architecture.partition or max(1, len(stages) - 1)
        if not 0 < self.partition <= len(stages):
            raise ValueError(f"partition point must lie in 1…{len(stages)}, got {self.partition}")
        if len(architecture.input_shape) not in (1, 3):
            raise ValueError(
                f"input_shape must be (C, H, W) for images or (T,) for texts, got {architecture.input_shape}"
            )
        channels = architecture.input_shape[0] if architecture.takes_images else 0
        if not len(architecture.mean) == len(architecture.std) == channels:
            named = len(architecture.mean), len(architecture.std)
            raise ValueError(f"mean and std must name {channels} channels each, got {named[0]} and {named[1]}")
        architecture.preprocessing.check()
        if architecture.confidence not in ("top", "entropy"):
            raise ValueError(f"confidence must be 'top' or 'entropy', got '{architecture.confidence}'")
        self.architecture = architecture
        self.stages = nn.ModuleList(stages)
        self.branches = nn.ModuleList([nn.ModuleDict(dict(b)) for b in branches])
        self.temperature: list[dict[str, float]] = [{e: 1.0 for e in b} for b in branches]
        self.classifier = None  # the distortion classifier that selects experts: images to logits, one per expert
        self.abstain_below = 0.0  # top probability of the classifier below which a distortion is unknown
        self.fingerprint = ""  # of weights, architecture and temperatures, once saved or loaded
        self.register_buffer("mean", torch.tensor(architecture.mean).view(1, channels, 1, 1))
        self.register_buffer("std", torch.tensor(architecture.std).view(1, channels, 1, 1))

    @property
    def tail_fingerprint(self) -> str:
        """Fingerprint of the model that a worker continues with: this one."""
        return self.fingerprint

    @property
    def exits(self) -> int:
        """Exits, the final one included."""
        return len(self.stages)

    @property
    def edge_exits(self) -> int:
        """Exits that may answer on the edge: those up to the partition point, but for the final exit."""
        return min(self.partition, self.exits - 1)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the logits."""
        return self.architecture.classes

    @property
    def experts(self) -> tuple[str, ...]:
        """Experts that every exit has a branch for."""
        return tuple(self.temperature[0])

    def stage(self, i: int, x: Tensor) -> Tensor:
        """Features after stage i, from the features after stage i - 1; stage 0 takes images (B, C, H, W) in [0, 1], or
        token ids (B, T)."""
        if i == 0 and self.architecture.takes_images:
            x = ((x - self.mean) / self.std).to(self.mean.dtype)
        out: Tensor = self.stages[i](x)
        return out

    def logits(self, i: int, expert: str, x: Tensor) -> Tensor:
        """Logits (B, K) of one expert's branch at exit i, as trained."""
        branches: Any = self.branches[i]
        out: Tensor = branches[expert](x)
        return out

    def branch(self, i: int, expert: str, x: Tensor) -> Tensor:
        """Calibrated logits (B, K) of one expert's branch at exit i."""
        temperature = self.temperature[i][expert]
        logits = self.logits(i, expert, x)
        return logits if temperature == 1.0 else logits / temperature

    def confident(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        r"""Confidence, in [0, 1], and predicted class of calibrated logits (B, K), both (B,).

        The confidence is the largest softmax probability :math:`\max_k p_k` or, for "entropy",

        .. math:: 1 - \varepsilon, \qquad \varepsilon = -\frac{1}{\ln K} \sum_k p_k \ln p_k,

        which is 0 for K equal probabilities and 1 where one class has them all.

        References
        ----------
        Teerapittayanon, McDanel and Kung (2016), BranchyNet: fast inference via early exiting from deep neural
        networks; the same authors (2017), Distributed deep neural networks over the cloud, the edge and end devices.
        """
        wide = logits if logits.dtype == torch.float64 else logits.float()  # half a GPU's numbers are too coarse
        probabilities = torch.softmax(wide, dim=1)
        top, prediction = probabilities.max(dim=1)
        if self.architecture.confidence == "top":
            return top, prediction
        entropy = torch.special.entr(probabilities).sum(dim=1)
        most = math.log(max(2, logits.shape[1]))  # of one class alone, the entropy is 0 anyway
        return (1 - entropy / most).clamp(0, 1), prediction  # rounding may end a little outside

    def array(self, values: NDArray[Any], stage: int = 0) -> Tensor:
        """A numpy array as a stage takes it: a tensor on the network's device, maps with their channels last."""
        x = torch.from_numpy(values).to(self.mean.device, self.mean.dtype if stage else None)
        return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x

    def inferring(self) -> AbstractContextManager[Any]:
        """Inference without gradients."""
        return torch.inference_mode()

    def forward(self, x: Tensor, expert: str = PRISTINE) -> list[Tensor]:
        """Logits (B, K) of every exit, as trained, for images (B, C, H, W) in [0, 1], or token ids (B, T)."""
        outputs = []
        for i in range(self.exits):
            x = self.stage(i, x)
            outputs.append(self.logits(i, expert, x))
        return outputs

    counted: Callable[[], Costs] | None = None
    """Gives the costs of the network that an optimised copy was made of: its own kernels cannot be counted."""

    @torch.no_grad()
    def costs(self) -> Costs:
        """Count multiply-adds and bytes of each stage and exit for one frame (convolutions, products of matrices)."""
        if self.counted is not None:
            return self.counted()
        from torch.utils.flop_counter import FlopCounterMode

        modes = [(m, m.training) for m in self.modules()]  # frozen parts of a network in training stay as they are
        self.eval()
        x = torch.zeros(1, *self.architecture.input_shape, device=self.mean.device)
        stage_macs, branch_macs, feature_bytes = [], [], []
        for i in range(self.exits):
            with FlopCounterMode(display=False) as counter:
                x = self.stage(i, x)
            stage_macs.append(counter.get_total_flops() // 2)
            feature_bytes.append(x[0].numel() * 4)
            with FlopCounterMode(display=False) as counter:
                self.branch(i, self.experts[0], x)
            branch_macs.append(counter.get_total_flops() // 2)
        for module, mode in modes:
            module.training = mode
        return Costs(tuple(stage_macs), tuple(branch_macs), tuple(feature_bytes))

    def add_expert(self, expert: str) -> None:
        """Give every exit a branch for one more expert, which starts as a copy of the first expert's."""
        import copy

        if expert in self.experts:
            raise ValueError(f"the network has an expert '{expert}' already")
        _check_expert(expert)
        first = self.experts[0]
        for branches, temperature in zip(self.branches, self.temperature, strict=True):
            assert isinstance(branches, nn.ModuleDict)
            branches[expert] = copy.deepcopy(branches[first])
            temperature[expert] = temperature[first]
        self.architecture = _replace(self.architecture, experts=self.experts)


def _check_expert(name: str) -> None:
    """Raise `ValueError` if no branch can have this name."""
    check_expert(name)
    if hasattr(nn.ModuleDict(), name):
        raise ValueError(f"expert {name!r}: no possible name; it is that of a method of torch.nn.ModuleDict")


def _replace(architecture: Architecture, **changes: Any) -> Architecture:
    import dataclasses

    return dataclasses.replace(architecture, **changes)


def assemble(blocks: Sequence[nn.Module], architecture: Architecture) -> EarlyExitNet:
    """Cut blocks into stages and give every exit its branches.

    Raises
    ------
    ValueError
        If the places of the side branches do not rise within the backbone, or a structure is unknown.
    """
    after = list(architecture.after)
    if after != sorted(set(after)) or (after and not 0 <= after[0] <= after[-1] < len(blocks) - 1):
        raise ValueError(f"side branches must stand after rising blocks among 0…{len(blocks) - 2}, got {after}")
    if len(architecture.structures) != len(after) + 1:
        raise ValueError(f"{len(after) + 1} exits need as many structures, got {list(architecture.structures)}")
    bounds = [0, *(a + 1 for a in after), len(blocks)]
    stages = [nn.Sequential(*blocks[a:b]) for a, b in pairwise(bounds)]
    branches = []
    for shape, structure in zip(feature_shapes(stages, architecture.input_shape), architecture.structures, strict=True):
        branches.append({e: make_branch(structure, shape, len(architecture.classes)) for e in architecture.experts})
    return EarlyExitNet(stages, branches, architecture)


@torch.no_grad()
def feature_shapes(modules: Sequence[nn.Module], input_shape: Sequence[int]) -> list[tuple[int, ...]]:
    """Shape of one frame's features after each of the modules, without the batch axis."""
    x = torch.zeros(1, *input_shape)
    shapes = []
    for module in modules:
        module.eval()
        x = module(x)
        shapes.append(tuple(x.shape[1:]))
        module.train()
    return shapes


def make(
    backbone: str,
    classes: Sequence[str],
    *,
    after: Sequence[int] = (),
    shares: Sequence[float] = (),
    uniform: int = 0,
    structure: str = "conv_fc",
    final_structure: str = "",
    input_shape: tuple[int, ...] = (3, 32, 32),
    partition: int = 0,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    **options: Any,
) -> EarlyExitNet:
    """A network of a named backbone with untrained weights.

    Parameters
    ----------
    backbone
        A name in `BACKBONES`.
    classes
        Class names.
    after, shares, uniform
        Where the side branches stand, one of the three: after these blocks; nearest to these shares of the
        multiply-adds; this many, at equal distances.
    structure, final_structure
        Branch structure of the side branches and of the final exit (by default the same).
    input_shape
        (C, H, W) of images, or (T,) of texts, which "transformer" takes.
    mean, std
        Per channel; by default those of CIFAR-10's images, or the means of them where there are not 3 channels. None
        for texts.
    options
        Arguments of the backbone: `width` for "resnet", `small_images` for "mobilenet_v2", `enlarge` for
        "efficientnet_lite0".

    Raises
    ------
    ValueError
        If a name is unknown or the places do not fit the backbone.
    """
    if backbone not in BACKBONES:
        raise ValueError(f"unknown backbone '{backbone}', expected one of {', '.join(BACKBONES)}")
    if sum(map(bool, (after, shares, uniform))) != 1:
        raise ValueError("place the side branches by one of: after, shares, uniform")
    axes, of = (1, "texts (T,)") if backbone == "transformer" else (3, "images (C, H, W)")
    if len(input_shape) != axes:
        raise ValueError(f"{backbone} takes {of}, got input_shape {input_shape}")
    channels = input_shape[0] if axes == 3 else 0
    if not channels:
        options = {"length": input_shape[0]} | options
    elif channels != 3:
        options = {"channels": channels} | options
    mean = tuple(mean) or _per_channel(Architecture.mean, channels)
    std = tuple(std) or _per_channel(Architecture.std, channels)
    blocks = BACKBONES[backbone](**options)
    if shares:
        after = place_by_share(block_macs(blocks, input_shape), shares)
    elif uniform:
        after = place_uniformly(len(blocks), uniform)
    structures = (structure,) * len(after) + (final_structure or structure,)
    return assemble(
        blocks,
        Architecture(
            backbone,
            tuple(classes),
            tuple(after),
            structures,
            partition=partition,
            input_shape=input_shape,
            mean=mean,
            std=std,
            options=options,
        ),
    )


def _per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    return tuple(values) if channels == len(values) else (sum(values) / len(values),) * channels


@torch.no_grad()
def block_macs(blocks: Sequence[nn.Module], input_shape: Sequence[int]) -> list[int]:
    """Multiply-adds of each block for one frame."""
    from torch.utils.flop_counter import FlopCounterMode

    x = torch.zeros(1, *input_shape)
    macs = []
    for block in blocks:
        block.eval()
        with FlopCounterMode(display=False) as counter:
            x = block(x)
        macs.append(counter.get_total_flops() // 2)
        block.train()
    return macs


def remake(architecture: Architecture) -> EarlyExitNet:
    """The network that an architecture describes, with untrained weights.

    Raises
    ------
    ValueError
        If the backbone is unknown; a custom one can only be made again by the code that cut it.
    """
    if architecture.backbone not in BACKBONES:
        raise ValueError(f"unknown backbone '{architecture.backbone}', expected one of {', '.join(BACKBONES)}")
    return assemble(BACKBONES[architecture.backbone](**architecture.options), architecture)


def load_torchvision_mobilenet(net: EarlyExitNet, state: Mapping[str, Tensor]) -> None:
    """Load a published torchvision `mobilenet_v2` state dict into the backbone of the same name.

    Its classifier goes to the final exit where that is one linear layer ("pool_fc") with as many classes, and is left
    out otherwise.

    Raises
    ------
    ValueError
        If the network is another backbone, or a weight is missing or has another shape.
    """
    from eex.models.state import without_wrappers

    state = without_wrappers(state)
    if net.architecture.backbone != "mobilenet_v2":
        raise ValueError(f"expected a mobilenet_v2 backbone, got {net.architecture.backbone}")
    blocks: list[nn.Module] = [b for s in net.stages for b in s.children()]
    for i, block in enumerate(blocks):
        prefix = f"features.{i}."
        part = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        try:
            block.load_state_dict(part)
        except RuntimeError as error:
            raise ValueError(
                f"block {i} of mobilenet_v2 does not fit the state dict: {' '.join(str(error).split())}"
            ) from None
    final: Any = net.branches[-1]
    classifier = {part: state[f"classifier.1.{part}"] for part in ("weight", "bias") if f"classifier.1.{part}" in state}
    fits = [part.shape[:1] for part in classifier.values()] == [(len(net.classes),)] * 2
    if net.architecture.structures[-1] == "pool_fc" and fits:
        final[PRISTINE][1].load_state_dict(classifier)
