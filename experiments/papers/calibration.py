"""Calibration: what temperature scaling of side branches does to outages and missed deadlines (Pacheco et al.)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from eex.experiments.papers.paper import Claim, Images, Work, confidences
from eex.experiments.plotting import paper_figure
from eex.policies.algorithms.fixed import Fixed
from eex.policies.core.base import Bools, Context, Floats, Ints
from eex.policies.core.errors import EexError
from eex.policies.core.metrics import (
    BATCH,
    device_probability,
    expected_calibration_error,
    inference_outage,
    missed_deadline,
    reliability,
)
from eex.policies.core.routing import route

if TYPE_CHECKING:
    from torch import nn

    from eex.models.network import EarlyExitNet

TITLE = (
    "Pacheco, Couto, Simeone: Calibration-aided edge inference offloading via adaptive model partitioning of deep "
    "neural networks (2021)"
)
NOTES = """
- B-AlexNet is BranchyNet's for 32x32 images, trained from scratch: joint training with Adam at 0.001, cross-entropy,
  loss weights falling from 1 at the first exit to 0.3 at the last, no weight decay. The paper says no more than
  "BranchyNet methodology" of its training and names no augmentation, so there is none; the recipe "paper" trains a
  third network with flips and shifts, to show what that choice is worth. Side branches stand right behind the first
  and second ReLU, as in the paper, and are BranchyNet's: pooling, local normalisation, two convolutions of 32 maps,
  pooling, one linear layer.
- The paper splits CIFAR-10 into 45,000, 3,000 and 7,000 images, so that validation and test share the original test
  split. Here the 3,000 come from the training split, 45,000 of the rest are trained on, and the whole test split is for
  testing. Every probability over batches is over many drawn splits of it into batches of 512; they share their images.
- Each side branch has its temperature from the validation images. The cloud's exit answers whatever reaches it, so its
  temperature would change no answer and no figure; it is left at 1.
- The paper takes the device's processing delays from another paper's table for an Intel i7, and the cloud's from a K80;
  neither is in its text. Here every stage and exit is timed on this machine, one frame at a time, for device and cloud
  alike. Communication is the paper's: the features at the partition point in float32 over 18.8 Mbit/s.
- The reduced recipe trains for 10 epochs, where BranchyNet takes 100 or more. Its branches come out far less
  overconfident than the paper's must have been: what the paper repairs is hardly broken here. The recipe "paper", which
  trains for 100 epochs, was not run.
- This network is less accurate than the paper's must have been (a batch accuracy of 0.85 is reached there nine times
  out of ten), so deadlines are also shown at a target that it can meet: two points below the accuracy of the
  one-branch network's final exit on the validation images.
"""
RATE_MBIT = 18.8
"""Average uplink of the paper's Wi-Fi."""
P_TAR = (0.75, 0.825, 0.85)
NEARLY = 0.87
"""Of the grid of p_tar, the last value that is clearly below 0.875."""
CALIBRATIONS = ("conventional", "calibrated")
NETWORKS = {"one branch": (1, False), "two branches": (2, False), "one branch, augmented": (1, True)}
"""Side branches, and whether the training images are flipped and shifted."""


@dataclass(frozen=True)
class Recipe:
    """How much is trained and measured.

    Parameters
    ----------
    epochs, batch, lr
        Passes over the training images, images a step, and the rate of Adam, which falls along a cosine.
    train, validation
        Images to train on, at most, and held out.
    shift
        Pixels by which the images of the augmented network are shifted, at most; half of them are flipped too.
    draws
        Drawn splits of the test images into batches.
    networks
        Which of `NETWORKS` to train.
    """

    epochs: int
    batch: int = 128
    lr: float = 0.001
    train: int = 45_000
    validation: int = 3000
    shift: int = 4
    draws: int = 100
    networks: tuple[str, ...] = tuple(NETWORKS)


RECIPES = {
    "quick": Recipe(2, batch=64, validation=200, draws=5, networks=("one branch", "two branches")),
    "reduced": Recipe(10, networks=("one branch", "two branches")),
    "paper": Recipe(100, batch=512),
}


def run(work: Work, recipe: Recipe) -> list[Claim]:
    """Train B-AlexNets, calibrate their side branches, and measure what that changes."""
    images = work.images(recipe.validation)
    if tuple(images.test[0].shape[1:]) != (3, 32, 32):
        raise EexError(f"{work.data}: B-AlexNet takes colour images of 32x32 pixels; scale yours with --size 32")
    if len(images.test[0]) < BATCH:
        raise EexError(f"{work.data}: one batch takes {BATCH} test images, there are {len(images.test[0])}")
    nets = {name: _network(work, recipe, name, images) for name in recipe.networks}
    said = {name: Answers.of(work, name, net, images) for name, net in nets.items()}
    times = work.rows("times", lambda: pd.concat([_times(name, net, images) for name, net in nets.items()]))
    exits = work.rows("exits", lambda: pd.concat([_exits(name, s) for name, s in said.items()]))
    diagrams = work.rows("reliability", lambda: pd.concat([_reliability(name, s) for name, s in said.items()]))
    order = batch_order(len(images.test[0]), recipe.draws, work.seed)
    targets = work.rows("targets", lambda: pd.concat([_targets(name, s, order) for name, s in said.items()]))
    reachable = _reachable(exits)
    deadlines = work.rows(
        "deadlines",
        lambda: pd.concat(
            [_deadlines(name, s, order, times[times["network"] == name], reachable) for name, s in said.items()]
        ),
    )
    _draw(work, diagrams, targets, deadlines)
    return _claims(_Found(exits, targets, deadlines), reachable)


# ---- networks


def b_alexnet(classes: Sequence[str], branches: int) -> "EarlyExitNet":
    """B-AlexNet with side branches right behind its first ReLUs: images (B, 3, 32, 32).

    The partition point is behind the last side branch; features there: (32, 32, 32) with one branch, (64, 16, 16) with
    two.
    """
    from torch import nn

    from eex.models.alexnet import alexnet
    from eex.models.network import CUSTOM, PRISTINE, Architecture, EarlyExitNet

    layers = [layer for block in alexnet() for layer in block.children()]
    behind = [k + 1 for k, layer in enumerate(layers) if isinstance(layer, nn.ReLU)][:branches]
    stages = [nn.Sequential(*layers[a:b]) for a, b in pairwise([0, *behind, len(layers)])]
    exits = [_branch(32, 32, len(classes)), _branch(64, 16, len(classes))][:branches]
    exits.append(nn.Linear(128, len(classes)))
    architecture = Architecture(CUSTOM, tuple(classes), tuple(range(branches)), (CUSTOM,) * (branches + 1))
    return EarlyExitNet(stages, [{PRISTINE: exit} for exit in exits], architecture)


def _file(network: str) -> str:
    return network.replace(",", "").replace(" ", "-")


def _branch(channels: int, side: int, classes: int) -> "nn.Module":
    """BranchyNet's side branch: (B, channels, side, side) to (B, classes)."""
    from torch import nn

    from eex.models.alexnet import Flatten, LocalNorm

    return nn.Sequential(
        nn.MaxPool2d(3, 2, 1),
        LocalNorm(),
        nn.Conv2d(channels, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        Flatten(),
        nn.Linear(32 * (side // 4) ** 2, classes),
    )


def _network(work: Work, recipe: Recipe, name: str, images: Images) -> "EarlyExitNet":
    import torch

    from eex.models.training import Recipe as Training

    branches, augmented = NETWORKS[name]
    torch.manual_seed(work.seed)
    net = b_alexnet(images.classes, branches)
    training = Training(
        epochs=recipe.epochs,
        loss_weights=tuple(np.linspace(1, 0.3, branches + 1).round(4).tolist()),
        optimizer="adam",
        lr=recipe.lr,
        weight_decay=0,
        schedule="cosine",
        batch=recipe.batch,
        shift=recipe.shift if augmented else 0,
        flip=augmented,
        seed=work.seed,
    )
    pixels, labels = images.train
    work.trained(
        _file(name), net, (pixels[: recipe.train], labels[: recipe.train]), training, validation=images.validation
    )
    return net


def _times(name: str, net: "EarlyExitNet", images: Images) -> pd.DataFrame:
    """Milliseconds of each stage and exit for one frame, and bytes of its features where the cloud takes over.

    Rows of network, stage (from 1), on ("device" or "cloud"), stage_ms, exit_ms, bytes.
    """
    from eex.stream.planning.measure import stage_times

    pixels = (images.test[0][:1].float() / 255).to(net.mean.device)
    rounds = [stage_times(net.eval(), pixels) for _ in range(5)]
    stage_ms, exit_ms = (np.median(part, axis=0) for part in zip(*rounds, strict=True))
    rows = []
    for k, bytes in enumerate(net.costs().feature_bytes):
        on = "device" if k < net.partition else "cloud"
        row = {"network": name, "stage": k + 1, "on": on, "stage_ms": stage_ms[k], "exit_ms": exit_ms[k]}
        rows.append(row | {"bytes": bytes if k == net.partition - 1 else 0})
    return pd.DataFrame(rows)


# ---- what the exits say


@dataclass(frozen=True)
class Answers:
    """What every exit of a network says of the test images.

    `confidence` and `prediction` are (N, exits), the former by calibration; `label` is (N,).
    """

    temperature: tuple[float, ...]
    confidence: dict[str, Floats]
    prediction: Ints
    label: Ints
    validation_accuracy: tuple[float, ...]

    @staticmethod
    def of(work: Work, name: str, net: "EarlyExitNet", images: Images) -> "Answers":
        """From the network, whose side branches are calibrated on the validation images."""
        from eex.models.calibration import fit_temperature
        from eex.models.training import all_logits

        file = _file(name)
        held = work.kept(f"{file}-validation-logits", lambda: all_logits(net, images.validation[0]))
        logits = work.kept(f"{file}-logits", lambda: all_logits(net, images.test[0]))
        truth = images.validation[1]
        found = tuple(fit_temperature(out, truth) for out in held[:-1])
        conventional, prediction = confidences(logits)
        calibrated, _ = confidences(logits, (*found, 1.0))
        return Answers(
            (*found, 1.0),
            dict(zip(CALIBRATIONS, (conventional, calibrated), strict=True)),
            prediction,
            images.test[1].numpy(),
            tuple(float((out.argmax(1) == truth).float().mean()) for out in held),
        )

    @property
    def right(self) -> Bools:
        """Whether each exit is right, (N, exits)."""
        found: Bools = self.prediction == self.label[:, None]
        return found

    def leave(self, calibration: str, p_tar: float) -> tuple[Ints, Bools]:
        """Where each image leaves, its last exit being the cloud's, and whether that answer is right; both (N,)."""
        confidence = self.confidence[calibration]
        policy = Fixed(p_tar, exits=confidence.shape[1] - 1)
        exit, _, _ = route(confidence, policy.choose(Context(frames=len(confidence))))
        return exit, self.right[np.arange(len(exit)), exit]


def _exits(name: str, said: Answers) -> pd.DataFrame:
    """Rows of network, exit, temperature, accuracy, validation accuracy, and confidence and ECE, before and after."""
    rows = []
    for e, right in enumerate(said.right.T):
        row = {"network": name, "exit": e + 1, "temperature": said.temperature[e], "accuracy": right.mean()}
        row["validation_accuracy"] = said.validation_accuracy[e]
        for calibration, confidence in said.confidence.items():
            row[f"confidence_{calibration}"] = confidence[:, e].mean()
            row[f"ece_{calibration}"] = expected_calibration_error(confidence[:, e], right)
        rows.append(row)
    return pd.DataFrame(rows)


def _reliability(name: str, said: Answers) -> pd.DataFrame:
    """Reliability diagrams of the side branches: rows of network, exit, calibration, and each filled bin."""
    rows = []
    for e in range(said.prediction.shape[1] - 1):
        for calibration, confidence in said.confidence.items():
            found = reliability(confidence[:, e], said.right[:, e])
            for k in np.flatnonzero(found.counts):
                row = {"network": name, "exit": e + 1, "calibration": calibration, "upto": found.edges[k + 1]}
                row |= {"images": found.counts[k], "confidence": found.confidence[k], "accuracy": found.accuracy[k]}
                rows.append(row)
    return pd.DataFrame(rows)


# ---- what a target does


def batch_order(images: int, draws: int, seed: int, batch: int = BATCH) -> Ints:
    """So many drawn splits of images into full batches, one after the other, as indices.

    Examples
    --------
    >>> order = batch_order(5, draws=3, seed=0, batch=2)
    >>> len(order), all(len(set(part)) == 4 for part in order.reshape(3, 4).tolist())
    (12, True)
    """
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.permutation(images)[: images // batch * batch] for _ in range(draws)])


def _targets(name: str, said: Answers, order: Ints) -> pd.DataFrame:
    """One row a calibration and p_tar: what is answered on the device, how well, and how often a batch falls short."""
    rows = []
    for calibration in CALIBRATIONS:
        for p_tar in np.arange(100, 200) / 200:
            exit, right = said.leave(calibration, p_tar)
            here = exit < said.prediction.shape[1] - 1
            row = {"network": name, "calibration": calibration, "p_tar": p_tar}
            row["device_probability"] = device_probability(here)
            row["device_accuracy"] = right[here].mean() if here.any() else np.nan
            said_there = said.confidence[calibration][np.arange(len(exit)), exit]
            row["device_confidence"] = said_there[here].mean() if here.any() else np.nan
            row["accuracy"] = right.mean()
            row["outage"] = float(inference_outage(here[order], right[order], p_tar))
            rows.append(row | {"batches": len(order) // BATCH})
    return pd.DataFrame(rows)


def _reachable(exits: pd.DataFrame) -> float:
    """The extra target: two points below the one-branch network's final exit on the validation images."""
    one = exits[exits["network"] == "one branch"]
    return float(np.round(one["validation_accuracy"].iloc[-1] - 0.02, 3))


def exit_ms(times: pd.DataFrame) -> Floats:
    """Milliseconds of a frame that leaves at each exit, (exits,), one after another on an idle machine.

    A frame that leaves on the device has passed the stages and exits up to there; one that is offloaded all of the
    device's, its features' bytes over 18.8 Mbit/s, and the cloud's stages and exit.
    """
    communication = 8 * times["bytes"].to_numpy() / (RATE_MBIT * 1e3)
    spent = np.cumsum(times["stage_ms"].to_numpy() + times["exit_ms"].to_numpy() + communication)
    left: Floats = spent - communication  # behind the partition point only those pay it that go on
    return left


def _deadlines(name: str, said: Answers, order: Ints, times: pd.DataFrame, reachable: float) -> pd.DataFrame:
    """One row a calibration, p_tar and t_tar: the share of batches that miss the deadline."""
    by_exit = exit_ms(times)
    t_tar = np.linspace(0, 1.05 * by_exit[-1], 64)
    rows = []
    for calibration in CALIBRATIONS:
        for p_tar in (*P_TAR, reachable):
            exit, right = said.leave(calibration, p_tar)
            missed = missed_deadline(by_exit[exit][order], right[order], p_tar, t_tar)
            found = pd.DataFrame({"t_tar_ms": t_tar, "missed": missed})
            found["mean_ms"] = by_exit[exit].mean()
            rows.append(found.assign(network=name, calibration=calibration, p_tar=p_tar))
    return pd.concat(rows)[["network", "calibration", "p_tar", "t_tar_ms", "missed", "mean_ms"]]


# ---- figures


def _draw(work: Work, diagrams: pd.DataFrame, targets: pd.DataFrame, deadlines: pd.DataFrame) -> None:
    panel = diagrams["network"] + ", exit " + diagrams["exit"].astype(str)
    work.draw(
        "reliability",
        paper_figure(
            diagrams.assign(panel=panel),
            "confidence",
            "accuracy",
            "calibration",
            "panel",
            title="Reliability of the side branches, test images",
            identity=True,
        ),
    )
    thinned = targets[np.isclose(targets["p_tar"] * 80, (targets["p_tar"] * 80).round())]  # every 0.025 half, and 0.05
    work.draw(
        "fig2-device-probability",
        paper_figure(
            thinned,
            "p_tar",
            "device_probability",
            "calibration",
            "network",
            title="Fig. 2: probability of classifying on the device",
            ylabel="probability",
        ),
    )
    work.draw(
        "fig3a-accuracy-confidence",
        paper_figure(
            thinned,
            "device_confidence",
            "device_accuracy",
            "calibration",
            "network",
            title="Fig. 3(a): accuracy on the device against mean confidence, one point a p_tar",
            xlabel="mean confidence",
            ylabel="accuracy",
            identity=True,
        ),
    )
    for figure, column, title in (
        ("fig3b-device-accuracy", "device_accuracy", "Fig. 3(b): accuracy on the device; grey: the target"),
        ("fig3c-accuracy", "accuracy", "Fig. 3(c): accuracy over all images"),
    ):
        work.draw(
            figure,
            paper_figure(
                thinned,
                "p_tar",
                column,
                "calibration",
                "network",
                title=title,
                ylabel="accuracy",
                identity=column == "device_accuracy",
            ),
        )
    published = pd.DataFrame(
        {
            "p_tar": [NEARLY, NEARLY],
            "outage": [0.4, 0.0],
            "calibration": CALIBRATIONS,
            "network": "one branch",
            "source": "published",
        }
    )
    work.draw(
        "fig4-7-outage",
        paper_figure(
            pd.concat([thinned.assign(source="ours"), published]),
            "p_tar",
            "outage",
            "calibration",
            "network",
            title=f"Figs. 4 and 7: inference outage, {targets['batches'].iloc[0]:,} batches of {BATCH}",
            ylabel="share of batches",
        ),
    )
    for network, rows in deadlines.groupby("network", sort=False):
        branches, augmented = NETWORKS[str(network)]
        name = ("fig5" if branches == 1 else "fig6") + ("-augmented" if augmented else "")
        work.draw(
            f"{name}-missed-deadline",
            paper_figure(
                rows.assign(panel=[f"p_tar = {p:g}" for p in rows["p_tar"]]),
                "t_tar_ms",
                "missed",
                "calibration",
                "panel",
                title=f"Fig. {5 if branches == 1 else 6}: missed deadlines, {network}",
                xlabel="t_tar, ms",
                ylabel="share of batches",
            ),
        )


# ---- claims


@dataclass(frozen=True)
class _Found:
    """The rows, and what claims ask of them."""

    exits: pd.DataFrame
    targets: pd.DataFrame
    deadlines: pd.DataFrame

    @property
    def p_tar(self) -> Floats:
        """The grid of targets, rising."""
        return np.sort(self.targets["p_tar"].unique())

    def curve(self, column: str, calibration: str, network: str = "one branch") -> Floats:
        """A column of the targets over p_tar."""
        rows = self.targets[(self.targets["network"] == network) & (self.targets["calibration"] == calibration)]
        found: Floats = rows.sort_values("p_tar")[column].to_numpy()
        return found

    def at(self, p_tar: float, column: str, network: str = "one branch") -> tuple[float, float]:
        """A column at one p_tar: conventional, calibrated."""
        k = np.abs(self.p_tar - p_tar).argmin()
        conventional, calibrated = (float(self.curve(column, c, network)[k]) for c in CALIBRATIONS)
        return conventional, calibrated

    def deadline(self, p_tar: float, network: str = "one branch") -> tuple[pd.DataFrame, pd.DataFrame]:
        """Missed deadlines over t_tar: conventional, calibrated."""
        rows = self.deadlines[(self.deadlines["network"] == network) & np.isclose(self.deadlines["p_tar"], p_tar)]
        conventional, calibrated = (rows[rows["calibration"] == c] for c in CALIBRATIONS)
        return conventional, calibrated

    def floor(self, p_tar: float, network: str = "one branch") -> tuple[float, float]:
        """Deadlines missed however late they are, for want of accuracy: conventional, calibrated."""
        conventional, calibrated = (float(rows["missed"].min()) for rows in self.deadline(p_tar, network))
        return conventional, calibrated

    def final(self, network: str = "one branch") -> float:
        """Accuracy of the final exit alone."""
        return float(self.exits[self.exits["network"] == network]["accuracy"].iloc[-1])

    def beside(self, column: str, p_tar: float) -> str:
        """The same of the networks that decide no claim."""
        others = [n for n in self.targets["network"].unique() if n not in ("one branch", "two branches")]
        return "".join(f"; {n}: {_both(self.at(p_tar, column, n))}" for n in others)


def _both(values: tuple[float, float]) -> str:
    conventional, calibrated = values
    return f"{calibrated:.3g} calibrated, {conventional:.3g} conventional"


def _claims(found: _Found, reachable: float) -> list[Claim]:
    """The paper's sentences. The networks without augmentation decide; the augmented one is told beside them."""
    claims = _target_claims(found) + _deadline_claims(found, reachable)
    if "two branches" in set(found.targets["network"]):
        claims += _two_branch_claims(found, reachable)
    return claims


def _target_claims(found: _Found) -> list[Claim]:
    """Figs. 2, 3 and 4: the network with one side branch against p_tar."""
    device, right, sure, overall, outage = (
        [found.curve(column, c) for c in CALIBRATIONS]
        for column in ("device_probability", "device_accuracy", "device_confidence", "accuracy", "outage")
    )
    far = tuple(float(np.nanmean(np.abs(a - b))) for a, b in zip(right, sure, strict=True))
    least = tuple(float(np.nanmin(r - found.p_tar)) for r in right)
    branch = found.exits[found.exits["network"] == "one branch"].iloc[0]
    ece = (float(branch["ece_conventional"]), float(branch["ece_calibrated"]))
    at_most = float(outage[1][found.p_tar < 0.8749].max())
    lower, more_right, better, fewer = (
        device[1] <= device[0],
        ~(right[1] < right[0]),  # nothing is answered on the device, and nothing wrong, where there is no accuracy
        overall[1] >= overall[0],
        outage[1] <= outage[0],
    )
    mild = (
        f"ours is hardly overconfident (temperature {branch['temperature']:.2f}, ECE {ece[0]:.1%}): even uncalibrated, "
        "what the device answers is right more often than p_tar up to high targets"
    )
    no_better = (
        f"the final exit alone is right on {found.final():.1%}, the branch alone on {branch['accuracy']:.1%}: what "
        "calibration sends on is hardly answered better there"
    )
    return [
        Claim(
            "Fig. 2: calibration lowers the probability of classifying on the device",
            "lower for all p_tar",
            f"at p_tar 0.8 {_both(found.at(0.8, 'device_probability'))}{found.beside('device_probability', 0.8)}; "
            f"{_counted(lower)}",
            bool(lower.all()),
        ),
        Claim(
            "Fig. 3(a): calibrated, confidence on the device is nearer to accuracy",
            "near the identity; conventional below it",
            f"mean distance {_both((far[0], far[1]))}; ECE of the branch {_both(ece)}",
            far[1] < far[0],
        ),
        Claim(
            "Fig. 3(b): for all p_tar the calibrated network is more accurate on the device, and above p_tar or close",
            "above or close to p_tar; conventional below",
            f"accuracy less p_tar, at worst: {_both((least[0], least[1]))}; more accurate {_counted(more_right)}",
            bool(more_right.all() and least[1] > -0.02),
            f"{_where_not(found.p_tar, more_right)}; {mild}" if least[0] > -0.02 else "",
        ),
        Claim(
            "Fig. 3(c): the calibrated network is more accurate over all images, for any p_tar",
            "higher for any p_tar",
            f"at p_tar 0.8 {_both(found.at(0.8, 'accuracy'))}{found.beside('accuracy', 0.8)}; {_counted(better)}",
            bool(better.all()),
            "" if better.all() else no_better,
        ),
        Claim(
            "Fig. 4: for all p_tar, calibration lowers the outage",
            "lower for all p_tar",
            f"mean over p_tar {_both((float(outage[0].mean()), float(outage[1].mean())))}; lower or the same "
            f"{_counted(fewer)}",
            bool(fewer.all()),
            _where_not(found.p_tar, fewer),
        ),
        Claim(
            "Fig. 4: no outage of the calibrated branch below p_tar 0.875, and close to 0.4 of the conventional one",
            "0 calibrated, 0.4 conventional",
            f"at p_tar {NEARLY} {_both(found.at(NEARLY, 'outage'))}{found.beside('outage', NEARLY)}; calibrated, at "
            f"most {at_most:.3g} below 0.875",
            at_most < 0.01 and found.at(NEARLY, "outage")[0] > 0.2,
            mild if found.at(NEARLY, "outage")[0] < 0.2 else "",
        ),
    ]


def _counted(holds: Bools) -> str:
    return f"at {holds.sum()} of {len(holds)} targets"


def _where_not(p_tar: Floats, holds: Bools) -> str:
    where = ", ".join(f"{p:g}" for p in p_tar[~holds][:4])
    return f"not at p_tar {where}{' and more' if (~holds).sum() > 4 else ''}" if where else ""


def _deadline_claims(found: _Found, reachable: float) -> list[Claim]:
    """Fig. 5: the network with one side branch against t_tar."""
    conventional, calibrated = (float(rows["mean_ms"].iloc[0]) for rows in found.deadline(0.75))
    least = found.floor(0.75)
    short = f"the final exit alone is right on {found.final():.1%} of the test images"
    claims = [
        Claim(
            "Fig. 5(a): at p_tar 0.75 the conventional network meets tighter deadlines, and late ones are missed alike",
            "conventional better for small t_tar, equal for large",
            f"mean ms a frame {_both((conventional, calibrated))}; late deadlines missed {_both(least)}",
            conventional < calibrated and abs(least[0] - least[1]) < 0.05,
            f"{short}, so that 0.75 is no low target here" if max(least) > 0.05 else "",
        )
    ]
    for value, figure, published in (
        (0.825, "Fig. 5(b): ", "calibrated below 0.2, conventional significantly worse"),
        (0.85, "Fig. 5(c): ", "down to 0.1 calibrated, 0.7 or more conventional"),
        (reachable, "Not in the paper, at a target that this network can meet: ", "–"),
    ):
        least = found.floor(value)
        claims.append(
            Claim(
                f"{figure}at p_tar {value:g} calibration misses fewer of the late deadlines",
                published,
                _both(least),
                least[1] < 0.2 and least[1] < least[0] - 0.05,
                f"{short}: hardly a batch reaches {value:g}, calibrated or not"
                if found.final() < value
                else f"both are as accurate over all images: {_both(found.at(value, 'accuracy'))}",
            )
        )
    return claims


def _two_branch_claims(found: _Found, reachable: float) -> list[Claim]:
    """Figs. 6 and 7: what a second side branch does."""
    claims = []
    for value in (*P_TAR[1:], reachable):
        one, two = found.floor(value), found.floor(value, "two branches")
        claims.append(
            Claim(
                f"{'Fig. 6' if value in P_TAR else 'Not in the paper'}: at p_tar {value:g} a second branch makes the "
                "conventional network miss more of the late deadlines, but not the calibrated one",
                "conventional higher than with one branch, calibrated not" if value in P_TAR else "–",
                f"one branch {_both(one)}; two branches {_both(two)}",
                two[0] > one[0] and two[1] <= one[1],
                f"both final exits ({found.final():.1%}, {found.final('two branches'):.1%}) are below {value:g}"
                if max(found.final(), found.final("two branches")) < value
                else f"with two branches both are as accurate: {_both(found.at(value, 'accuracy', 'two branches'))}",
            )
        )
    outage = [[found.curve("outage", c, n).mean() for c in CALIBRATIONS] for n in ("one branch", "two branches")]
    right, sure = (found.at(NEARLY, column, "two branches")[1] for column in ("device_accuracy", "device_confidence"))
    near = found.at(NEARLY, "outage"), found.at(NEARLY, "outage", "two branches")
    claims.append(
        Claim(
            "Fig. 7: with two branches the conventional network has more outages, the calibrated one fewer",
            "conventional higher, calibrated very low",
            f"at p_tar {NEARLY}: one branch {_both(near[0])}, two {_both(near[1])}; mean over p_tar: one branch "
            f"{_both((outage[0][0], outage[0][1]))}, two {_both((outage[1][0], outage[1][1]))}",
            bool(outage[1][0] > outage[0][0] and outage[1][1] <= outage[0][1]),
            f"the second branch's temperature is from all validation images, not from those that reach it: at p_tar "
            f"{NEARLY} the calibrated device is sure by {sure:.3g} and right by {right:.3g}"
            if outage[1][1] > outage[0][1]
            else "",
        )
    )
    return claims
