"""Train a network, calibrate it, add experts and the distortion classifier, write weights and card."""

import copy
import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from eex.policies.core.errors import EexError
from eex.stream.network import make_network, pick_device

if TYPE_CHECKING:
    import torch

    from eex.models.network import EarlyExitNet
    from eex.models.training import Distort, Progress
    from eex.stream.frames.sources import Source


Structure = Literal["pool_fc", "conv_fc", "multi_fc", "fc", "multi_conv", "conv_pool_fc"]
LEVELS = {"pristine": (0.0,), "gaussian_blur": (0.5, 1.0, 1.5, 2.0), "gaussian_noise": (5.0, 10.0, 20.0, 30.0, 40.0)}
"""Levels at which a finished model is measured: blur in pixels, noise on the 0–255 scale."""
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 1.0)
HELD_OUT = 0  # whatever the seed: what one training held out, another that starts from its model must not see


@dataclass(frozen=True)
class TrainConfig:
    """Train an early-exit network, calibrate it, add experts and a distortion classifier, and write weights and card.

    A killed run goes on where it was when the same command is given again.
    """

    data: str
    """Labelled images: a folder or zip of train/class/image, CIFAR-10's or Caltech-256's own folder."""
    out: Path
    """Folder for the model; checkpoints go to its folder 'training', which may be deleted afterwards."""
    name: str = "model"
    """Of the model, for its card."""
    backbone: Literal["resnet", "alexnet", "mobilenet_v2"] = "resnet"
    """Backbone that is cut into stages."""
    width: int = 64
    """Of the resnet's feature maps; other backbones have theirs."""
    size: int = 0
    """Scale and crop images to this side; 0 = as they are, all of one size. With --network, to what it takes."""
    network: str = ""
    """Instead of a backbone, and all that places branches on it: module:function of one's own that returns a network
    cut by eex.models.cut."""
    weights: Path | None = None
    """Published torchvision state dict (safetensors) to start mobilenet_v2 from."""
    start: tuple[Path, ...] = ()
    """Folder of a model of the same architecture to go on from; of several models, from the mean of their weights."""
    shares: tuple[float, ...] = (0.15, 0.35, 0.6)
    """Side branches at these shares of the multiply-adds; empty to place them otherwise."""
    after: tuple[int, ...] = ()
    """Side branches behind these blocks, counted from 0; wins over --shares."""
    uniform: int = 0
    """This many side branches at equal distances; wins over --shares."""
    structure: Structure = "conv_fc"
    """Of the side branches."""
    final_structure: Literal[""] | Structure = ""
    """Of the final exit; by default as the side branches."""
    confidence: Literal["top", "entropy"] = "top"
    """What thresholds are compared with: the top softmax probability, or 1 - normalised entropy of all of them."""
    partition: int = 0
    """Stages on the edge; 0 = all but the last."""
    method: Literal["joint", "branch-wise", "two-stage", "distillation", "hybrid"] = "joint"
    """How backbone and side branches are trained."""
    epochs: int = 20
    """Passes over the images, in each phase of the method; 0 keeps what --start gives."""
    loss_weights: tuple[float, ...] = (0.4, 0.4, 0.5, 1.0)
    """Of each exit; one number stands for all exits."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """SGD with Nesterov momentum, or Adam with decoupled weight decay."""
    lr: float = 0.12
    """Peak learning rate."""
    stage_lr: float = 0.0
    """Of the backbone's stages, where they come pre-trained (--weights, --start); 0 = as --lr."""
    weight_decay: float = 5e-4
    """Of kernels and matrices; norms and biases do not decay."""
    schedule: Literal["one-cycle", "cosine"] = "one-cycle"
    """Of the learning rate."""
    batch: int = 128
    """Images a step."""
    patience: int = 0
    """Stop after so many epochs without a better validation loss; 0 = never."""
    shift: int = 2
    """Augmentation: images are shifted by up to this many pixels."""
    cutout: int = 0
    """Augmentation of the main training, not the experts': side of a square painted grey; 0 = none."""
    experts: str = "gaussian_blur@0.4..2.5, gaussian_noise@4..45"
    """Expert branches: kind@lowest..highest level they are trained on, between commas; empty for none."""
    expert_epochs: int = 5
    """Passes over the images for each expert."""
    expert_lr: float = 0.03
    """Peak learning rate of expert branches."""
    classifier_epochs: int = 6
    """Passes over the images for the distortion classifier."""
    holdout: int = 2500
    """Training images held out for validation and calibration."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bfloat16 where the hardware multiplies in it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train."""
    threads: int = 0
    """Processor threads; 0 = all cores."""
    seed: int = 0
    """Of everything that is drawn; the same seed on the same machine gives the same model."""
    measure: bool = True
    """Measure the finished model on the test split, by exit, expert, distortion and level."""
    quiet: bool = False
    """No progress bars."""


def train(config: TrainConfig) -> dict[str, Any]:
    """Train as configured; returns what was measured.

    Raises
    ------
    EexError
        If the data, the network or the folder cannot be used.
    """
    from eex.stream.frames.sources import load_all, open_source

    for name in ("threads", "seed"):
        if getattr(config, name) < 0:
            raise EexError(f"--{name} must be at least 0, got {getattr(config, name)}")
    own = None
    if config.network:
        import torch

        torch.manual_seed(config.seed)  # its first weights are drawn when it is made
        own = make_network(config.network)
    if own is not None and config.weights is not None:
        raise EexError("--weights is for mobilenet_v2; a network of one's own (--network) comes with its weights")
    if config.size < 0:
        raise EexError(f"--size must be at least 0, got {config.size}")
    shape = own.architecture.input_shape if own is not None else (3, config.size, config.size)
    fitted: dict[str, Any] = {"shape": shape, "resize": True} if own is not None or config.size else {}
    source = open_source(config.data, split="train", **fitted)
    arrays, classes, skipped = load_all(source)
    if not source.classes or classes.min() < 0:
        raise EexError(f"{config.data}: training needs labelled images, in a folder for each class")
    if not 0 < config.holdout < len(arrays):
        raise EexError(f"--holdout must be between 1 and {len(arrays) - 1}, got {config.holdout}")
    # only now: torch takes seconds, and what is wrong above is told at once
    import torch

    from eex.models.calibration import calibrate
    from eex.models.card import load, read_card, save
    from eex.models.network import PRISTINE
    from eex.models.spectrum import DistortionClassifier, fit_classifier, recall
    from eex.models.training import Recipe, evaluate, fit

    ranges = parse_experts(config.experts)
    if config.threads:
        torch.set_num_threads(config.threads)
    images, labels = torch.from_numpy(arrays), torch.from_numpy(classes)
    order = torch.from_numpy(np.random.default_rng(HELD_OUT).permutation(len(images)))
    held, kept = order[: config.holdout], order[config.holdout :]
    validation = (images[held], labels[held])
    torch.manual_seed(config.seed)
    net = _network(config, own, source.classes, tuple(arrays.shape[1:]))
    net.architecture = dataclasses.replace(net.architecture, confidence=config.confidence)
    device = torch.device(pick_device(config.device))
    net.to(device)
    if config.start:
        _start_from(config.start, net, images[kept])
    elif not config.epochs:
        raise EexError("--epochs 0 needs --start: there would be nothing trained")
    recipe = Recipe(
        method=config.method,
        epochs=max(1, config.epochs),
        loss_weights=_weights(config.loss_weights, net.exits),
        optimizer=config.optimizer,
        lr=config.lr,
        stage_lr=config.stage_lr,
        weight_decay=config.weight_decay,
        schedule=config.schedule,
        batch=config.batch,
        patience=config.patience,
        shift=config.shift,
        cutout=config.cutout,
        precision=config.precision,
        seed=config.seed,
    )
    adapted = dataclasses.replace(
        recipe,
        method="expert",
        epochs=config.expert_epochs,
        lr=config.expert_lr,
        loss_weights=(1.0,) * net.exits,
        cutout=0,
    )
    if config.classifier_epochs < 1:
        raise EexError(f"--classifier-epochs must be at least 1, got {config.classifier_epochs}")
    test = _test_split(config.data, source, fitted) if config.measure else None
    for name, reason in ((frame.name, frame.reason) for frame in skipped):
        _say(f"skipped {name}: {reason}")
    if config.measure and test is None:
        _say(f"{config.data} has no test split: the model will not be measured")
    states = config.out / "training"
    try:
        states.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EexError(f"{config.out}: cannot write there (--out): {error.strerror}") from None
    calibration: dict[str, Any] = {}
    with training_bars(config.quiet) as report:
        history = []
        if config.epochs:
            history = fit(
                net,
                images[kept],
                labels[kept],
                recipe,
                validation=validation,
                checkpoint=states / "pristine.safetensors",
                source=f"{Path(config.data).name} {config.weights} {config.network} {config.start}",
                report=report(PRISTINE),
            )
        score = evaluate(net, *validation)
        calibration[PRISTINE] = calibrate(net, *validation, PRISTINE)
        for kind, distort in ranges.items():
            net.add_expert(kind)
            history += fit(
                net,
                images[kept],
                labels[kept],
                adapted,
                expert=kind,
                distort=distort,
                validation=validation,
                checkpoint=states / f"{kind}.safetensors",
                source=config.experts,
                report=report(kind),
            )
            calibration[kind] = calibrate(net, *validation, kind, distort)
        if ranges:
            torch.manual_seed(config.seed)
            classifier = DistortionClassifier((PRISTINE, *ranges))
            fit_classifier(
                classifier,
                images[kept],
                ranges,
                epochs=config.classifier_epochs,
                seed=config.seed,
                report=report("classifier"),
            )
            net.classifier = classifier.to(device)
    training = _plain(config) | {
        "history": history,
        "validation_accuracy": list(score.accuracy),
        "validation_ece": calibration,
        "start": [read_card(folder).training for folder in config.start],
    }
    if ranges:
        training["validation_recall"] = recall(classifier, validation[0], ranges)
    save(net, config.out, name=config.name, training=training)
    net = load(config.out, str(device), own)  # as it is stored: kernels in half precision
    measured: dict[str, Any] = {}
    if test is not None:
        pixels, truth, _ = load_all(test)
        measured = measure(net, torch.from_numpy(pixels), torch.from_numpy(truth))
        save(net, config.out, name=config.name, training=training, measured=measured)
    return measured


def _test_split(data: str, train: "Source", fitted: Any) -> "Source | None":
    """The images to measure a model on; None where there are none but those it is trained on."""
    from eex.stream.frames.sources import open_source

    try:
        test = open_source(data, split="test", **fitted)
    except EexError:
        return None
    return None if list(test.names) == list(train.names) else test


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def parse_experts(text: str) -> dict[str, "Distort"]:
    """Distortion functions by expert from "kind@lowest..highest, …".

    Raises
    ------
    EexError
        If a kind is unknown or a range is none.
    """
    from eex.policies.core.schedule import KINDS, MAX_LEVEL
    from eex.stream.frames.distortions import random_distortion

    found = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        kind, _, span = part.partition("@")
        low, _, high = span.partition("..")
        try:
            bounds = float(low), float(high)
        except ValueError:
            raise EexError(f"--experts: '{part}' is not kind@lowest..highest, such as gaussian_blur@0.4..2.5") from None
        if kind not in KINDS:
            raise EexError(f"--experts: '{part}': expected a kind among {', '.join(KINDS)}")
        if not 0 <= bounds[0] <= bounds[1] <= MAX_LEVEL[kind]:
            raise EexError(f"--experts: '{part}': expected a rising range of {kind} from 0 to {MAX_LEVEL[kind]:g}")
        found[kind] = random_distortion(kind, *bounds)
    return found


def _network(
    config: TrainConfig, own: "EarlyExitNet | None", classes: tuple[str, ...], shape: tuple[int, ...]
) -> "EarlyExitNet":
    from eex.models.network import load_torchvision_mobilenet, make

    if own is not None:
        if own.classes != classes:
            raise EexError(f"--network {config.network}: its classes are {own.classes}, the data's are {classes}")
        return own
    options: dict[str, Any] = {"width": config.width} if config.backbone == "resnet" else {}
    if config.backbone == "mobilenet_v2":
        options = {"small_images": shape[1] <= 64}
    if config.weights is not None:  # published weights are for images normalised so
        options |= {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    by_hand = bool(config.after or config.uniform)
    try:
        net = make(
            config.backbone,
            classes,
            after=config.after,
            uniform=0 if config.after else config.uniform,
            shares=() if by_hand else config.shares,
            structure=config.structure,
            final_structure=config.final_structure,
            input_shape=(shape[0], shape[1], shape[2]),
            partition=config.partition,
            **options,
        )
        if config.weights is not None:
            from safetensors import SafetensorError
            from safetensors.torch import load_file

            try:
                load_torchvision_mobilenet(net, load_file(config.weights))
            except (SafetensorError, OSError) as error:
                raise EexError(f"{config.weights}: not a safetensors file: {error}") from None
    except EexError:
        raise
    except (ValueError, RuntimeError) as error:
        raise EexError(str(error)) from None
    return net


def _start_from(folders: tuple[Path, ...], net: "EarlyExitNet", images: "torch.Tensor") -> None:
    """Give a network the mean of the weights of saved ones, but for experts that it does not have.

    Of several models, which must have been trained one from the other, the mean generalises better than each (Izmailov
    et al. 2018, Averaging weights leads to wider optima, UAI); its norms take their statistics anew from the images.
    """
    import torch

    from eex.models.card import load
    from eex.models.training import estimate_norms

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


def _weights(given: tuple[float, ...], exits: int) -> tuple[float, ...]:
    if len(given) == 1:
        return given * exits
    if len(given) == exits:
        return given
    if given == TrainConfig.loss_weights:  # the default is for four exits
        return (0.5,) * (exits - 1) + (1.0,)
    raise EexError(f"--loss-weights must name {exits} exits (or one number for all), got {len(given)}")


def measure(net: "EarlyExitNet", images: "torch.Tensor", labels: "torch.Tensor") -> dict[str, Any]:
    """How a model does on uint8 images (N, C, H, W), each distorted in every way that it has an expert for.

    Returns
    -------
    dict
        `exits`: rows of distortion, level, expert, exit (from 1), accuracy, confidence, ECE before and after
        calibration; `thresholds`: accuracy and multiply-adds, as a share of the whole network's, at fixed thresholds
        on pristine images; `classifier`: share of each kind that the distortion classifier recognises, over all levels.
    """
    import torch

    from eex.models.training import all_logits
    from eex.policies.core.metrics import expected_calibration_error
    from eex.stream.frames.distortions import DISTORTIONS

    kinds = [kind for kind in LEVELS if kind in net.experts]
    rows, recalls = [], {}
    pristine: torch.Tensor | None = None
    for kind in kinds:
        recognised = []
        for level in LEVELS[kind]:
            seen = images.float() / 255
            if kind in DISTORTIONS:
                numbers = torch.arange(len(images))
                # in pieces: a whole test split at once takes gigabytes
                pieces = [
                    DISTORTIONS[kind](
                        seen[i : i + 500], torch.full((len(seen[i : i + 500]),), level), numbers[i : i + 500], 0
                    )
                    for i in range(0, len(seen), 500)
                ]
                seen = torch.cat(pieces)
            bytes_seen = (seen * 255).round().to(torch.uint8)
            for expert in dict.fromkeys((net.experts[0], kind)):
                logits = all_logits(net, bytes_seen, expert=expert)
                if kind == net.experts[0]:
                    pristine = logits
                for e in range(net.exits):
                    plain = torch.softmax(logits[e].double(), 1).max(1)
                    scaled = torch.softmax(logits[e].double() / net.temperature[e][expert], 1).max(1)
                    right = (plain.indices == labels).numpy()
                    rows.append(
                        {
                            "distortion": kind,
                            "level": level,
                            "expert": expert,
                            "exit": e + 1,
                            "accuracy": float(right.mean()),
                            "confidence": float(scaled.values.mean()),
                            "ece_before": expected_calibration_error(plain.values.numpy(), right),
                            "ece_after": expected_calibration_error(scaled.values.numpy(), right),
                        }
                    )
            if net.classifier is not None:
                with torch.inference_mode():
                    told = [
                        net.classifier(seen[i : i + 500].to(net.mean.device)).argmax(1).cpu()
                        for i in range(0, len(seen), 500)
                    ]
                recognised.append(float((torch.cat(told) == net.experts.index(kind)).double().mean()))
        if recognised:
            recalls[kind] = float(np.mean(recognised))
    assert pristine is not None
    return {
        "images": len(images),
        "exits": rows,
        "thresholds": by_threshold(net, pristine, labels),
        "classifier": recalls,
    }


def by_threshold(net: "EarlyExitNet", logits: "torch.Tensor", labels: "torch.Tensor") -> list[dict[str, float]]:
    """Accuracy and cost at fixed thresholds, with the whole network run in one place.

    Parameters
    ----------
    logits
        Of the first expert, as trained, (exits, N, K).
    """
    import torch

    costs = net.costs()
    expert = net.experts[0]
    scaled = [net.confident(out.double() / net.temperature[e][expert]) for e, out in enumerate(logits)]
    rows = []
    for threshold in THRESHOLDS:
        exit = torch.full((len(labels),), net.exits - 1)
        for e in reversed(range(net.exits - 1)):
            exit[scaled[e][0] >= threshold] = e
        prediction = torch.stack([index for _, index in scaled])[exit, torch.arange(len(labels))]
        spent = torch.tensor([costs.of_exit(e) for e in range(net.exits)], dtype=torch.float64)[exit].mean()
        rows.append(
            {
                "threshold": threshold,
                "accuracy": float((prediction == labels).double().mean()),
                "macs_share": float(spent) / costs.whole,
                "left_early": float((exit < net.exits - 1).double().mean()),
            }
        )
    return rows


def _plain(config: TrainConfig) -> dict[str, Any]:
    """The settings, for the card; paths stay where they were."""
    values = dataclasses.asdict(config)
    for key in ("out", "threads", "quiet", "measure", "device", "start"):
        del values[key]
    del values["confidence"]  # the architecture says it
    values["data"] = Path(config.data).name
    values["weights"] = config.weights.name if config.weights else None
    return values


@contextmanager
def training_bars(quiet: bool) -> Iterator[Any]:
    """Progress bars on standard error: one for each thing that is trained."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:<15}"),
        BarColumn(),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console, disable=quiet or not console.is_terminal) as bars:

        def for_part(name: str) -> Any:
            task = bars.add_task(name, text="", total=None)
            best: list[str] = [""]

            def report(progress: "Progress") -> None:
                done = progress.epoch * progress.steps + progress.step
                if progress.accuracy:
                    best[0] = "validation " + " / ".join(f"{100 * a:.1f}" for a in progress.accuracy) + " %"
                    if not console.is_terminal and not quiet:
                        console.print(
                            f"{name}: epoch {progress.epoch + 1}/{progress.epochs}: {best[0]}", highlight=False
                        )
                text = f"{progress.phase} {progress.epoch + 1}/{progress.epochs}  loss {progress.loss:.3f}  "
                text += f"{progress.images_per_second:,.0f} images/s  {best[0]}"
                bars.update(task, completed=done, total=progress.epochs * progress.steps, text=text)

            return report

        yield for_part
