"""Training early-exit networks: joint, branch-wise, two-stage, by distillation, and experts on a frozen backbone."""

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

from eex.models.arrays import laid_out
from eex.models.augmentation import augment, cut_out
from eex.models.checkpoint import Checkpoint, tensors_digest, weights_digest
from eex.models.network import PRISTINE, EarlyExitNet
from eex.policies.core.code import code_digest
from eex.policies.core.errors import EexError

Method = Literal["joint", "branch-wise", "two-stage", "distillation", "hybrid", "expert"]
REPORT_S = 0.1
AT_ONCE = 1 << 31
"""Bytes of training images that are kept on the GPU, at most."""
Distort = Callable[[Tensor, torch.Generator], Tensor]
"""Distorts images (B, C, H, W) in [0, 1] on their device, in `fit` the network's, drawing kind and level from a
generator on the CPU; or token ids (B, T)."""


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Parameters
    ----------
    method
        joint: all stages and branches at once, on the weighted sum of the exits' losses (BranchyNet). branch-wise: the
        first stage with its branch, then the next ones, each on frozen stages before it. two-stage: the backbone with
        its final exit, then all side branches on the frozen backbone. distillation: joint, and each side branch also
        follows the final exit's softened output. hybrid: joint, then the side branches alone on the frozen backbone.
        expert: only the branches of one expert, on a frozen backbone and distorted images.
    epochs
        Passes over the images, in each phase of the method.
    loss_weights
        Weight of each exit's loss, the final one included; empty for equal weights.
    optimizer, lr, momentum, weight_decay
        "sgd" (Nesterov momentum) or "adam" (decoupled weight decay); `lr` is the peak rate. Norms and biases do
        not decay.
    stage_lr
        Peak rate of the stages, where they come pretrained: None = as `lr`, which applies to the branches; 0 = the
        stages are frozen, norms included.
    schedule
        "one-cycle": linear warm-up over a fifth of the steps, then linearly down to 0. "cosine": from the peak to 0.
    batch
        Images per step.
    patience
        Stop a phase after this many epochs without a better validation loss, and go back to the best; 0 = never.
    shift, flip, cutout
        Augmentation: shifts by up to this many pixels, mirrored padding; horizontal flips; a square of this side
        painted grey at a drawn place (DeVries and Taylor, 2017), 0 = none.
    distorted_share
        Share of each batch that is distorted when a `distort` function is given.
    distillation_temperature, distillation_weight
        Temperature of the final exit's output that side branches follow, and the weight of that term.
    precision
        "fp32", "bf16", or "auto": bf16 where the processor or the GPU computes with it.
    seed
        Seed of everything random.
    """

    method: Method = "joint"
    epochs: int = 16
    loss_weights: tuple[float, ...] = ()
    optimizer: Literal["sgd", "adam"] = "sgd"
    lr: float = 0.12
    stage_lr: float | None = None
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["one-cycle", "cosine"] = "one-cycle"
    batch: int = 128
    patience: int = 0
    shift: int = 2
    flip: bool = True
    cutout: int = 0
    distorted_share: float = 0.5
    distillation_temperature: float = 3.0
    distillation_weight: float = 1.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch"):
            if getattr(self, name) < 1:
                raise EexError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("patience", "shift", "cutout", "weight_decay", "momentum", "stage_lr"):
            if not 0 <= (getattr(self, name) or 0) < math.inf:
                raise EexError(f"{name} must be at least 0, and finite, got {getattr(self, name)}")
        if self.loss_weights and not (all(0 <= w < math.inf for w in self.loss_weights) and any(self.loss_weights)):
            raise EexError(f"loss_weights must be at least 0, and one of them more, got {self.loss_weights}")
        if not 0 < self.lr < math.inf:
            raise EexError(f"the learning rate must be positive, got {self.lr}")
        if not 0 <= self.distorted_share <= 1:
            raise EexError(f"distorted_share must lie in [0, 1], got {self.distorted_share}")


Teacher = Callable[[Tensor], Tensor]
"""Gives the probabilities (B, K) of the classes for images (B, C, H, W) in [0, 1], to be learned instead of labels."""


def teacher_of(net: EarlyExitNet) -> Teacher:
    """What a network's final exit answers to images, calibrated, as it is now: training the network changes it no more.

    References
    ----------
    Hinton, Vinyals and Dean (2015), Distilling the knowledge in a neural network.
    """
    taught = copy.deepcopy(net).eval().requires_grad_(False)
    last, expert = taught.exits - 1, taught.experts[0]

    @torch.no_grad()
    def teach(x: Tensor) -> Tensor:
        x = laid_out(x.to(taught.mean.device))
        for i in range(taught.exits):
            x = taught.stage(i, x)
        return softmax(taught.branch(last, expert, x).float(), dim=1)

    return teach


@torch.no_grad()
def taught(teacher: Teacher, images: Tensor, batch: int = 250) -> Tensor:
    """A teacher's probabilities (N, K) on the CPU for uint8 images (N, C, H, W)."""
    return torch.cat([teacher(as_taken(part)).cpu() for part in torch.split(images, batch)])


@dataclass(frozen=True)
class Phase:
    """A part of a training run: which stages and exits learn, and which exits the loss is taken from."""

    name: str
    stages: tuple[int, ...]
    exits: tuple[int, ...]


@dataclass(frozen=True)
class Progress:
    """Where a training run stands, reported after steps and after each epoch.

    `accuracy` (per exit, in [0, 1]) and `validation_loss` are of the last finished epoch; empty and NaN before it.
    `resumed` is set in the first report of a run that goes on from a checkpoint, at its `epoch`.
    """

    phase: str
    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    images_per_second: float
    validation_loss: float = math.nan
    accuracy: tuple[float, ...] = ()
    resumed: bool = False


def phases(method: Method, exits: int) -> list[Phase]:
    """The phases of a method for a network with this many exits.

    Raises
    ------
    EexError
        If no method has this name.
    """
    every = tuple(range(exits))
    match method:
        case "joint" | "distillation":
            return [Phase(method, every, every)]
        case "branch-wise":
            return [Phase(f"exit {i + 1}", (i,), (i,)) for i in every]
        case "two-stage":
            return [Phase("backbone", every, (exits - 1,)), Phase("branches", (), every[:-1])]
        case "hybrid":
            return [Phase("joint", every, every), Phase("branches", (), every[:-1])]
        case "expert":
            return [Phase("expert", (), every)]
    raise EexError(f"unknown training method '{method}'")


def use_bf16(precision: str, device: torch.device) -> bool:
    """Whether to compute in bfloat16: as asked, or where the hardware multiplies in it."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    # oneDNN emulates bfloat16 elsewhere, at a tenth of the speed of float32
    claims = ("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_arm_bf16_supported")
    return any(getattr(torch.cpu, claim, lambda: False)() for claim in claims)


def _autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    if use_bf16(precision, device):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def fit(
    net: EarlyExitNet,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    *,
    expert: str = PRISTINE,
    distort: Distort | None = None,
    validation: tuple[Tensor, Tensor] | None = None,
    checkpoint: Path | str | None = None,
    source: str = "",
    modules: Sequence[str] = (),
    teacher: Teacher | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> list[dict[str, Any]]:
    """Train a network in place.

    Parameters
    ----------
    net
        The network, on the device to train on.
    images, labels
        uint8 images (N, C, H, W) and int64 classes (N,).
    expert
        Whose branches learn.
    distort
        Applied to `recipe.distorted_share` of every batch.
    validation
        Held-out images and labels, looked at after each epoch; needed for `recipe.patience`.
    checkpoint
        File that is written after every epoch; if it exists, training resumes from it. It must come from the same
        settings, images, labels and network, whose code counts too.
    source
        What else the run depends on, in words, such as how images are distorted: training resumes only from a
        checkpoint that was made with the same.
    modules
        Names of the modules whose code makes the network, besides those that define its layers.
    teacher
        Learn from its answers to the images, before they are distorted, instead of the labels.
    report
        Called after every step (on a GPU a few times per second) and every epoch.

    Returns
    -------
    list of dict
        One row per epoch: phase, epoch, loss, validation_loss, accuracy per exit, seconds.

    Raises
    ------
    EexError
        If the images and labels do not fit the network, or the checkpoint is of another run.
    """
    _check_data(net, images, labels)
    if recipe.patience and validation is None:
        raise EexError("early stopping (patience) needs validation images: hold some out")
    weights = recipe.loss_weights or (1.0,) * net.exits
    if len(weights) != net.exits:
        raise EexError(f"loss_weights must name {net.exits} exits, got {len(weights)}")
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    run = {} if checkpoint is None else _identity(net, images, labels, recipe, expert, validation, source, modules)
    state = Checkpoint(net, run, recipe.patience, None if checkpoint is None else Path(checkpoint))
    task = _Task(net, images, labels, recipe, expert, distort, validation, weights, teacher, report)
    plan = phases(recipe.method, net.exits)
    if state.resumed:
        at = plan[state.phase].name, state.epoch, recipe.epochs, 0, task.steps
        report(Progress(*at, math.nan, math.nan, resumed=True))
    for number in range(state.phase, len(plan)):
        _fit_phase(task, number, plan[number], state)
    net.requires_grad_(True)
    net.eval()
    return state.history


@dataclass(frozen=True)
class _Task:
    """What `fit` was given; `weights` are the exits' loss weights."""

    net: EarlyExitNet
    images: Tensor
    labels: Tensor
    recipe: Recipe
    expert: str
    distort: Distort | None
    validation: tuple[Tensor, Tensor] | None
    weights: tuple[float, ...]
    teacher: Teacher | None
    report: Callable[[Progress], None]

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        return len(self.images) // self.recipe.batch or 1


def _fit_phase(task: _Task, number: int, phase: Phase, state: Checkpoint) -> None:
    """Train one phase, from the epoch at which its checkpoint stands."""
    recipe = task.recipe
    optimizer = make_optimizer(task.net, _freeze_all_but(task.net, phase, task.expert, recipe.stage_lr == 0), recipe)
    state.start_phase(number, optimizer)
    for epoch in range(state.epoch, recipe.epochs):
        if state.stopped:
            break
        started = time.perf_counter()
        seed = recipe.seed * 1_000_003 + number * 10_007 + epoch
        with _seeded(seed, task.net.mean.device):
            loss, speed = _fit_epoch(task, phase, epoch, optimizer, torch.Generator().manual_seed(seed))
        _check_weights(task.net, epoch)
        row: dict[str, Any] = {"phase": phase.name, "epoch": epoch, "loss": loss}
        if task.validation is not None:
            score = evaluate(
                task.net, *task.validation, expert=task.expert, distort=task.distort, precision=recipe.precision
            )
            row["validation_loss"] = sum(score.loss[i] * task.weights[i] for i in phase.exits)
            row["accuracy"] = list(score.accuracy)
        row["seconds"] = time.perf_counter() - started
        state.history.append(row)
        validation_loss = row.get("validation_loss", math.nan)
        accuracy = tuple(row.get("accuracy", ()))
        at = phase.name, epoch, recipe.epochs, task.steps, task.steps
        task.report(Progress(*at, loss, speed, validation_loss, accuracy))
        state.end_epoch(epoch + 1, optimizer, validation_loss)
    state.end_phase()


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's own generator, which dropout draws from: a resumed run draws what an unbroken one does."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _fit_epoch(
    task: _Task, phase: Phase, epoch: int, optimizer: torch.optim.Optimizer, generator: torch.Generator
) -> tuple[float, float]:
    """One pass over the images: mean loss, and images per second."""
    net, recipe, steps, device = task.net, task.recipe, task.steps, task.net.mean.device
    rate = learning_rate(recipe, steps * recipe.epochs)
    started, total, reported = time.perf_counter(), torch.zeros((), device=device), -math.inf
    # what fits is augmented where it is trained on: copying every batch would take longer than its step on a GPU
    images = task.images.to(device) if task.images.numel() < AT_ONCE else task.images
    for step, (x, y) in enumerate(_batches(images, task.labels, recipe, generator)):
        for group in optimizer.param_groups:
            group["lr"] = rate(epoch * steps + step) * group["share"]
        if task.teacher is not None:
            y = task.teacher(x)
        x = x.to(device, non_blocking=True)
        if task.distort is not None:
            share = round(len(x) * recipe.distorted_share)
            x = torch.cat([task.distort(x[:share], generator), x[share:]])
        x = laid_out(x)
        with _autocast(recipe.precision, device), several_per_channel():
            loss = _loss(net, x, y.to(device), phase, task.expert, task.weights, recipe)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += loss.detach()
        now = time.perf_counter()
        if device.type == "cpu" or now - reported > REPORT_S:  # a report waits for the GPU
            mean, speed, reported = float(total) / (step + 1), (step + 1) * recipe.batch / (now - started), now
            _check_loss(mean, epoch)
            task.report(Progress(phase.name, epoch, recipe.epochs, step + 1, steps, mean, speed))
    mean = float(total) / steps
    _check_loss(mean, epoch)
    return mean, steps * recipe.batch / (time.perf_counter() - started)


@contextmanager
def several_per_channel() -> Iterator[None]:
    """Raise `EexError` where a batch norm in training gets one value per channel: of one image, with maps of 1x1."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise EexError(
            "a batch norm cannot learn from one image at a time, which has one value per channel there: "
            "expected --batch 2 or more, and as many images to train on"
        ) from None


def _check_loss(mean: float, epoch: int) -> None:
    if not math.isfinite(mean):
        raise _diverged(f"the loss is {mean}", epoch)


def _check_weights(net: EarlyExitNet, epoch: int) -> None:
    """Raise `EexError` if a weight is not finite: the last step may have made it so, after its loss was taken."""
    for name, value in net.state_dict().items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise _diverged(f"{name} is not finite", epoch)


def _diverged(what: str, epoch: int) -> EexError:
    kept = f"the checkpoint holds the state after epoch {epoch}" if epoch else "nothing is kept"
    return EexError(f"{what} in epoch {epoch + 1}: training stops here, {kept}; a lower learning rate may help")


def _identity(
    net: EarlyExitNet,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    expert: str,
    validation: tuple[Tensor, Tensor] | None,
    source: str,
    modules: Sequence[str],
) -> dict[str, str]:
    """What a run depends on: a checkpoint of which any of it differs belongs to another run."""
    settings = repr((recipe, expert, source, net.architecture))
    if recipe.method == "expert":  # its frozen part comes from elsewhere: another one makes another run
        settings += weights_digest(net, without=f".{expert}.")
    return {
        "settings": settings,
        "images or labels": tensors_digest(images, labels, *(validation or ())),
        "code of the network": code_digest({*modules, *(type(module).__module__ for module in net.modules())}),
    }


def _check_data(net: EarlyExitNet, images: Tensor, labels: Tensor) -> None:
    architecture = net.architecture
    right = images.dtype == torch.uint8 if architecture.takes_images else not images.is_floating_point()
    if not right or tuple(images.shape[1:]) != architecture.input_shape:
        expected = "uint8 images" if architecture.takes_images else "integer token ids"
        raise EexError(
            f"expected {expected} of shape (N, {', '.join(map(str, architecture.input_shape))}), "
            f"got {images.dtype} of {tuple(images.shape)}"
        )
    if len(labels) != len(images) or not len(images):
        raise EexError(f"expected a label for each image and at least one, got {len(images)} and {len(labels)}")
    if int(labels.min()) < 0 or int(labels.max()) >= len(net.classes):
        raise EexError(f"labels must lie in 0…{len(net.classes) - 1}, got {int(labels.min())}…{int(labels.max())}")


def _freeze_all_but(net: EarlyExitNet, phase: Phase, expert: str, stages: bool) -> list[nn.Module]:
    """Freeze all but what a phase trains, norms included, and the `stages` too if asked; the modules that learn."""
    net.requires_grad_(False)
    net.eval()
    trained: list[nn.Module] = [] if stages else [net.stages[i] for i in phase.stages]
    trained += [net.branches[i][expert] for i in phase.exits]  # type: ignore[index]
    for module in trained:
        module.requires_grad_(True)
        module.train()
    first = net.exits if stages else min(phase.stages, default=net.exits)
    for stage in list(net.stages)[:first]:  # what learns may share layers with those before it
        stage.requires_grad_(False)
        stage.eval()
    return trained


def make_optimizer(net: EarlyExitNet, modules: Sequence[nn.Module], recipe: Recipe) -> torch.optim.Optimizer:
    """An optimizer whose groups hold, as `share`, their part of the learning rate."""
    stages = {id(p) for p in net.stages.parameters()}
    share = 1.0 if recipe.stage_lr is None else recipe.stage_lr / recipe.lr
    groups = []
    for decays in (True, False):
        # a module that stages share is there twice
        parameters = list(dict.fromkeys(p for m in modules for p in m.parameters() if (p.dim() > 1) == decays))
        if share == 1:
            parts = [(parameters, 1.0)]
        else:
            parts = [
                ([p for p in parameters if id(p) not in stages], 1.0),
                ([p for p in parameters if id(p) in stages], share),
            ]
        decay = recipe.weight_decay if decays else 0.0
        groups += [{"params": part, "weight_decay": decay, "share": of} for part, of in parts if part]
    if recipe.optimizer == "adam":
        return torch.optim.AdamW(groups, lr=recipe.lr)
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0)


def learning_rate(recipe: Recipe, steps: int) -> Callable[[int], float]:
    """Learning rate by step."""
    if recipe.schedule == "cosine":
        return lambda step: recipe.lr * 0.5 * (1 + math.cos(math.pi * step / steps))
    warm = max(1, steps // 5)
    return lambda step: recipe.lr * min((step + 1) / warm, (steps - step) / max(1, steps - warm))


def _batches(
    images: Tensor, labels: Tensor, recipe: Recipe, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches in a drawn order, augmented images (B, C, H, W) in [0, 1], or token ids (B, T) as they are, and labels; a
    last short one is left out."""
    order = torch.randperm(len(images), generator=generator)
    batch = min(recipe.batch, len(images))
    for start in range(0, len(images) - batch + 1, batch):
        index = order[start : start + batch]
        x = images[index.to(images.device)]
        if x.dim() == 4:
            x = as_taken(augment(x, recipe.shift, recipe.flip, generator))
            x = cut_out(x, recipe.cutout, generator)
        yield x, labels[index]


def as_taken(frames: Tensor) -> Tensor:
    """Stored frames as a network takes them: images (B, C, H, W), uint8, in [0, 1]; token ids (B, T) as they are."""
    return frames.float() / 255 if frames.dim() == 4 else frames


def _loss(
    net: EarlyExitNet, x: Tensor, y: Tensor, phase: Phase, expert: str, weights: Sequence[float], recipe: Recipe
) -> Tensor:
    """Loss of a batch x with classes y (B,), or with their probabilities (B, K)."""
    outputs: dict[int, Tensor] = {}
    first_trained = min(phase.stages, default=net.exits)
    for i in range(max(phase.exits) + 1):
        with nullcontext() if i >= first_trained else torch.no_grad():
            x = net.stage(i, x)
        if i in phase.exits:
            outputs[i] = net.logits(i, expert, x).float()
    loss = torch.stack([cross_entropy(out, y) * weights[i] for i, out in outputs.items()]).sum()
    if recipe.method == "distillation":
        # Hinton et al. (2015), eq. 4: T² keeps the gradient's size; the teacher is the final exit of the same network
        t = recipe.distillation_temperature
        last = max(outputs)
        teacher = softmax(outputs[last].detach() / t, dim=1)
        for i, out in outputs.items():
            if i != last:
                student = log_softmax(out / t, dim=1)
                soft = kl_div(student, teacher, reduction="batchmean") * t * t
                loss = loss + recipe.distillation_weight * weights[i] * soft
    return loss


@dataclass(frozen=True)
class Score:
    """How well a network does on some images: mean cross-entropy and accuracy (in [0, 1]) of each exit."""

    loss: tuple[float, ...]
    accuracy: tuple[float, ...]


def evaluate(
    net: EarlyExitNet,
    images: Tensor,
    labels: Tensor,
    *,
    expert: str = PRISTINE,
    distort: Distort | None = None,
    precision: str = "fp32",
) -> Score:
    """Score every exit of one expert on uint8 images (N, C, H, W) or token ids (N, T), all of them distorted where
    `distort` is given."""
    logits = all_logits(net, images, expert=expert, distort=distort, precision=precision)
    losses = tuple(float(cross_entropy(out, labels)) for out in logits)
    return Score(losses, tuple(float((out.argmax(1) == labels).float().mean()) for out in logits))


@torch.inference_mode()
def all_logits(
    net: EarlyExitNet,
    images: Tensor,
    *,
    expert: str = PRISTINE,
    distort: Distort | None = None,
    precision: str = "fp32",
    batch: int = 250,
    seed: int = 1,
) -> Tensor:
    """Logits of every exit, as trained, float32 (exits, N, K) on the CPU, for uint8 images (N, C, H, W) or token ids
    (N, T)."""
    device = net.mean.device
    modes = [(m, m.training) for m in net.modules()]  # a phase trains some parts and not others
    net.eval()
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for start in range(0, len(images), batch):
        x = as_taken(images[start : start + batch].to(device))
        if distort is not None:
            x = distort(x, generator)
        with _autocast(precision, device):
            outputs = net(laid_out(x), expert)
        parts.append(torch.stack([out.float().cpu() for out in outputs]))
    for module, mode in modes:
        module.training = mode
    return torch.cat(parts, dim=1)


@torch.no_grad()
def estimate_norms(net: EarlyExitNet, images: Tensor, *, expert: str = PRISTINE, most: int = 12_800) -> None:
    """Estimate means and variances of all batch norms that an expert's features pass through anew, from uint8 images
    (N, C, H, W); keep the weights."""
    passed = nn.ModuleList([*net.stages, *(branches[expert] for branches in net.branches)])  # type: ignore[index]
    norms = [m for m in passed.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [m.momentum for m in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # plain averages
    net.train()
    for start in range(0, min(len(images), most), 256):
        x = images[start : start + 256].to(net.mean.device).float() / 255
        if len(x) > 1 or not start:  # a norm may not take a last one alone
            with several_per_channel():
                net(x.contiguous(memory_format=torch.channels_last), expert)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    net.eval()
