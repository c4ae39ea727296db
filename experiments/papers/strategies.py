"""The survey of deployment strategies: training, branch structures, placement, overthinking, exit rules and energy."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from eex.experiments.papers.claims import (
    NONE,
    OWN,
    Claim,
    Facts,
    Group,
    Margin,
    Tables,
    above,
    at_least,
    images_tested,
    larger,
    listed,
    seeds_interval,
    words,
)
from eex.experiments.papers.paper import (
    Images,
    PaperRecipe,
    Work,
    among,
    condition_name,
    confidences,
    difference,
    mean_of,
)
from eex.experiments.plotting import Plot
from eex.policies.algorithms.fixed import Fixed
from eex.policies.core.base import Bools, Floats, Ints
from eex.policies.core.schedule import PRISTINE

if TYPE_CHECKING:
    from torch import Tensor

    from eex.models.network import EarlyExitNet

TITLE = "Deployment strategies for early-exit deep neural networks in resource-constrained environments (survey)"
MISSING = """
- Networks of the size that the survey's sources train (`--recipe paper`: width 64, 30 epochs, three seeds) need a
  GPU.
- Energy was not measured: the machine is a virtual one without a counter. It takes one with RAPL.
- The capsule network and the searched branch structure of the survey's table are not built.
- BranchyNet's speed-up needs its networks, with far more work after the first exit.
"""
METHODS = ("joint", "branch-wise", "two-stage", "distillation", "hybrid")
STRUCTURES = ("fc", "multi_fc", "pool_fc", "conv_fc", "conv_pool_fc", "multi_conv")
SHARES = (0.25, 0.5, 0.75)
"""Of the backbone's multiply-adds, before each side branch that is placed by cost."""
UNIFORM = len(SHARES)
PAIRS = (("multi_fc", "pool_fc"), ("conv_fc", "fc"), ("multi_conv", "conv_fc"), ("conv_pool_fc", "fc"))
"""Structures of which the survey says that the first does more than the second."""
TAUGHT = 5000
"""Training images, as they are, on which the accuracy that overfitting shows in is measured."""
CONFIDENCE, CONTROLLER = "confidence", "controller, logistic"
"""Exit rules that are compared; beside the latter stands a controller with a hidden layer."""
LOST = 0.005
"""Accuracy that a threshold chosen on validation images may cost there."""
NOTES = """
- The survey measures nothing. Its sentences are put to the test here, on one compact residual network for CIFAR-10
  (width 32 and 23 million multiply-adds in the recipe "standard"), trained for as many epochs in every phase of a
  method: a method of two phases sees the images twice as often.
- Each ± of ours is half the 95 % interval of a difference on the same test images, the mean of three seeds. Verdicts,
  and the ± of a limit, add how the seeds differ.
- The first seed was trained and timed on a core with AVX-512, where a seed takes an hour, the others on one with AVX2,
  where it takes 3.7 hours.
- Structures are compared on one frozen backbone, that of the two-stage training, so that only the branch differs.
- Learned gating: a network with a side branch at every place is trained jointly; then gates (a linear layer on the
  averaged features each) are trained on validation images to stop where cross-entropy + price x cost is least, and
  the places whose gates stop most images are kept. The survey's works train gates along with the network.
- The learned controller and the temperatures of the confidence rule that it is compared with come from the same
  validation images, pristine and distorted. There are no expert branches here.
"""


@dataclass(frozen=True)
class StrategiesRecipe(PaperRecipe):
    """How much is trained and measured."""

    width: int  # of the residual network
    epochs: int  # of every phase of every training
    lr: float = 0.12  # the peak; SGD, one cycle
    batch: int = 128
    validation: int = 5000  # images held out: for thresholds, temperatures, gates and controllers
    structure: str = "conv_fc"  # of the side branches, where structures are not compared
    price: float = 0.5  # of the whole network's work to a gate, in units of cross-entropy
    # of the images on which exit rules are compared: kind and level
    conditions: tuple[tuple[str, float], ...] = ((PRISTINE, 0.0), ("gaussian_blur", 1.0), ("gaussian_noise", 20.0))
    timed: int = 8000  # test images of a timed pass
    repeats: int = 5  # passes


RECIPES = {
    "quick": StrategiesRecipe(width=8, epochs=1, validation=200, timed=256, repeats=2),
    "reduced": StrategiesRecipe(width=16, epochs=4, seeds=2),
    "standard": StrategiesRecipe(width=32, epochs=10, seeds=3),
    "paper": StrategiesRecipe(width=64, epochs=30, seeds=3),
}


TABLES = (
    "images", "gradients", "methods", "differences", "phases", "structures", "structure_pairs", "gates", "places",
    "placements", "placement_pairs", "overthinking", "rules", "rule_gains", "thresholds", "energy",
)  # fmt: skip
ONCE = ()
OF_AUTHORS = ()


def networks(work: Work, recipe: StrategiesRecipe) -> "Trained":
    """Networks trained by every method, with every structure and at every placement but the one that gates find."""
    trained = Trained(work, recipe, work.images(recipe.validation))
    for method in METHODS:
        trained.of_method(method)
    for structure in STRUCTURES:
        trained.of_structure(structure)
    trained.all_places()
    trained.at(trained.places()["by cost"])
    return trained


def measure(work: Work, recipe: StrategiesRecipe) -> None:
    """Train by every method, with every structure and at every placement; measure exits, rules and energy."""
    trained = networks(work, recipe)
    makers = {
        "gradients": _gradients, "methods": _methods, "differences": _differences, "phases": _phases,
        "structures": _structures, "structure_pairs": _structure_pairs, "gates": _gates, "places": _places,
        "placements": _placements, "placement_pairs": _placement_pairs, "overthinking": _overthinking, "rules": _rules,
        "rule_gains": _rule_gains, "thresholds": _thresholds, "energy": _energy,
    }  # fmt: skip
    work.tables(images=trained.images.counts, **{name: partial(make, trained) for name, make in makers.items()})


# ---- what is counted


def overthought(right: Bools) -> dict[str, float]:
    """How often depth does harm, as shares of the images, from whether each exit is right, (N, exits).

    `final`: right at the end; `overthought`: some earlier exit right and the end wrong; `oracle`: some exit right.

    Examples
    --------
    >>> overthought(np.array([[1, 0], [0, 0], [0, 1], [1, 1]], dtype=bool))
    {'final': 0.5, 'overthought': 0.25, 'oracle': 0.75}
    """
    final, early = right[:, -1], right[:, :-1].any(axis=1)
    return {
        "final": float(final.mean()),
        "overthought": float((early & ~final).mean()),
        "oracle": float((early | final).mean()),
    }


def leaves(score: Floats, threshold: float) -> Any:
    """The exit that each image leaves at, (N,): the first side branch whose score (N, exits - 1) reaches it."""
    reached = score >= threshold
    return np.where(reached.any(axis=1), reached.argmax(axis=1), score.shape[1])


@dataclass(frozen=True)
class Scored:
    """What thresholds decide by.

    The score at each side branch, (N, exits - 1), whether each exit is right, (N, exits), and the multiply-adds of an
    image that leaves at each exit, (exits,).
    """

    score: Floats
    right: Bools
    macs: Sequence[float]


def trade(of: Scored, points: int = 60) -> pd.DataFrame:
    """Accuracy and mean multiply-adds under thresholds: as many quantiles of the scores as `points`, and one above all.

    Columns threshold, early (share that leaves before the end), macs, accuracy.
    """
    return trades(of, np.ones((1, len(of.score))), points)[0]


def trades(of: Scored, counts: Floats, points: int = 60) -> list[pd.DataFrame]:
    """`trade` of several selections of the images: how often each is among them, (selections, N)."""
    thresholds = [*np.unique(np.quantile(of.score, np.linspace(0, 1, points))), np.inf]
    exit = np.stack([leaves(of.score, threshold) for threshold in thresholds])  # (thresholds, N)
    shares = counts / counts.sum(axis=1, keepdims=True)
    found = {
        "early": exit < of.score.shape[1],
        "macs": np.asarray(of.macs, dtype=float)[exit],
        "accuracy": of.right[np.arange(exit.shape[1]), exit],
    }
    means = {name: shares @ values.T for name, values in found.items()}
    same = {"threshold": np.minimum(thresholds, 2.0)}
    return [pd.DataFrame(same | {n: values[k] for n, values in means.items()}) for k in range(len(counts))]


def redrawn(images: int, draws: int = 200) -> Floats:
    """How often each image is drawn, (draws, images), if as many are drawn with replacement: the bootstrap."""
    return np.random.default_rng(0).multinomial(images, np.full(images, 1 / images), size=draws).astype(float)


def cost_at(curve: pd.DataFrame, accuracy: float) -> float:
    """Mean multiply-adds for which a curve of `trade` reaches an accuracy, straight between its points; NaN if never.

    Examples
    --------
    >>> cost_at(pd.DataFrame({"macs": [1.0, 2.0, 4.0], "accuracy": [0.5, 0.7, 0.8]}), 0.75)
    3.0
    """
    rows = curve.sort_values(["macs", "accuracy"])
    macs, reached = rows["macs"].to_numpy(), np.maximum.accumulate(rows["accuracy"].to_numpy())
    at = int(np.searchsorted(reached, accuracy - 1e-12))
    if at == len(reached):
        return float("nan")
    if at == 0:
        return float(macs[0])
    share = (accuracy - reached[at - 1]) / (reached[at] - reached[at - 1])
    return float(macs[at - 1] + share * (macs[at] - macs[at - 1]))


def accuracy_at(curve: pd.DataFrame, macs: float) -> float:
    """Accuracy of a curve of `trade` for so many multiply-adds per frame, straight between its points."""
    rows = curve.sort_values("macs")
    return float(np.interp(macs, rows["macs"], rows["accuracy"]))


def cheapest(curve: pd.DataFrame, lost: float = LOST) -> float:
    """The threshold of a curve that costs least and loses at most so much accuracy against the whole network."""
    whole = curve.loc[curve["threshold"].idxmax(), "accuracy"]
    good = curve[curve["accuracy"] >= whole - lost - 1e-12]
    return float(good.loc[good["macs"].idxmin(), "threshold"])


# ---- what is trained

Condition = tuple[str, float]
"""Kind and level of the images' distortion."""
CLEAN: Condition = (PRISTINE, 0)


@dataclass(frozen=True)
class Model:
    """A trained network by its name, its epochs, and what its exits answer; logits are kept in the folder."""

    name: str
    net: "EarlyExitNet"
    epochs: pd.DataFrame
    work: Work
    images: Images

    def logits(self, split: str, condition: Condition = CLEAN) -> "Tensor":
        """Logits (exits, N, K) of a split under a distortion; "taught" are training images as they are."""
        from eex.stream.frames.distortions import random_distortion

        kind, level = condition
        distort = None if kind == PRISTINE else random_distortion(kind, level, level)
        pixels = self.images.train[0][:TAUGHT] if split == "taught" else getattr(self.images, split)[0]
        where = f"{self.name}-{split}" + ("" if distort is None else f"-{kind}-{level:g}")
        return self.work.logits(where, self.net, pixels, distort)

    def labels(self, split: str) -> "Tensor":
        """Classes of a split."""
        labels: Tensor = self.images.train[1][:TAUGHT] if split == "taught" else getattr(self.images, split)[1]
        return labels

    def right(self, split: str, condition: Condition = CLEAN) -> Bools:
        """Whether each exit is right, (N, exits)."""
        found: Bools = (self.logits(split, condition).argmax(dim=2) == self.labels(split)).T.numpy()
        return found

    def temperatures(self, conditions: Sequence[Condition] = (CLEAN,)) -> list[float]:
        """Temperatures of the exits, from validation images under these distortions."""
        import torch

        from eex.models.calibration import fit_temperature

        logits = torch.cat([self.logits("validation", c) for c in conditions], dim=1)
        labels = self.labels("validation").repeat(len(conditions))
        return [fit_temperature(out, labels) for out in logits]

    def confidence(
        self, split: str = "test", condition: Condition = CLEAN, calibrated_on: Sequence[Condition] = (CLEAN,)
    ) -> Floats:
        """Calibrated confidence of each side branch, (N, exits - 1)."""
        return confidences(self.logits(split, condition), self.temperatures(calibrated_on))[0][:, :-1]

    def macs(self, extra: int = 0) -> list[int]:
        """Multiply-adds of an image that leaves at each exit; `extra` for each side branch that it visits."""
        costs, last = self.net.costs(), self.net.exits - 1
        return [costs.of_exit(e) + extra * min(e + 1, last) for e in range(self.net.exits)]

    def scored(self, split: str = "validation") -> Scored:
        """By confidence."""
        return Scored(self.confidence(split), self.right(split), self.macs())


@dataclass(frozen=True)
class Trained:
    """Networks, made once and kept in the folder."""

    work: Work
    recipe: StrategiesRecipe
    images: Images

    def network(self, after: Sequence[int], structure: str) -> "EarlyExitNet":
        """Untrained: side branches after these blocks, and averaged features with a linear layer at the end."""
        import torch

        from eex.models.network import make

        torch.manual_seed(self.work.seed)
        channels, height, width = self.images.train[0].shape[1:]
        return make(
            "resnet",
            self.images.classes,
            after=after,
            structure=structure,
            final_structure="pool_fc",
            input_shape=(channels, height, width),
            width=self.recipe.width,
        )

    def places(self) -> dict[str, list[int]]:
        """Blocks after which side branches stand: at equal distances, by cost, and all candidates."""
        from eex.models.branches import place_by_share, place_uniformly
        from eex.models.network import block_macs
        from eex.models.resnet import resnet

        blocks = resnet(self.recipe.width)
        costs = block_macs(blocks, self.images.train[0].shape[1:])
        return {
            "uniform": place_uniformly(len(blocks), UNIFORM),
            "by cost": place_by_share(costs, SHARES),
            "all": list(range(len(blocks) - 1)),
        }

    def uniform(self) -> "EarlyExitNet":
        """An untrained network with uniformly placed branches."""
        return self.network(self.places()["uniform"], self.recipe.structure)

    def train(self, name: str, net: "EarlyExitNet", method: str, needs: Sequence[str] = ()) -> Model:
        """Train in place, or load."""
        r, (pixels, labels) = self.recipe, self.images.validation
        few = dataclasses.replace(self.images, validation=(pixels[:1000], labels[:1000]))
        epochs = self.work.train(name, net, few, needs=needs, method=method, epochs=r.epochs, lr=r.lr, batch=r.batch)
        return Model(name, net, epochs, self.work, self.images)

    def of_method(self, method: str) -> Model:
        """A network with uniformly placed branches, trained by a method."""
        return self.train(method, self.uniform(), method)

    def of_structure(self, structure: str) -> Model:
        """Side branches of a structure on the frozen backbone of the two-stage training."""
        frozen = self.of_method("two-stage").net
        net = self.network(frozen.architecture.after, structure).to(frozen.mean.device)
        net.stages.load_state_dict(frozen.stages.state_dict())
        net.branches[-1].load_state_dict(frozen.branches[-1].state_dict())
        return self.train(f"structure-{structure}", net, "expert", ["two-stage"])

    def at(self, after: Sequence[int]) -> Model:
        """A network with side branches after these blocks, trained jointly."""
        if after == self.places()["uniform"]:
            return self.of_method("joint")
        net = self.network(after, self.recipe.structure)
        return self.train(f"placed-{'-'.join(map(str, after))}", net, "joint")

    def all_places(self) -> Model:
        """A network with a side branch at every place."""
        return self.train("all-places", self.network(self.places()["all"], self.recipe.structure), "joint")


# ---- tables


def _gradients(trained: Trained) -> pd.DataFrame:
    """Norm of the gradient in each stage of the untrained network, with the loss at the end and at every exit."""
    import torch
    from torch.nn.functional import cross_entropy

    rows = []
    images, labels = trained.images.train
    net = trained.uniform().train()
    for start in range(0, min(8 * 128, len(images)), 128):
        x, y = images[start : start + 128].float() / 255, labels[start : start + 128]
        for loss in ("the final exit's", "all exits'"):
            outputs = net(x)
            net.zero_grad()
            wanted = outputs if loss == "all exits'" else outputs[-1:]
            torch.stack([cross_entropy(out, y) for out in wanted]).sum().backward()  # type: ignore[no-untyped-call]
            for i, stage in enumerate(net.stages):
                norm = torch.stack([p.grad.square().sum() for p in stage.parameters() if p.grad is not None])
                rows.append({"loss": loss, "stage": i + 1, "norm": float(norm.sum().sqrt())})
    return pd.DataFrame(rows).groupby(["loss", "stage"], sort=False, as_index=False)["norm"].mean()


def _methods(trained: Trained) -> Iterator[dict[str, Any]]:
    """Each method's exits."""
    for method in METHODS:
        model = trained.of_method(method)
        predicted, macs = model.logits("test").argmax(dim=2), model.macs()
        right, taught = model.right("test"), model.right("taught")
        for e in range(model.net.exits):
            yield {
                "method": method, "exit": e + 1, "macs": macs[e], "accuracy": right[:, e].mean(),
                "train_accuracy": taught[:, e].mean(),
                "as_final": float((predicted[e] == predicted[-1]).float().mean()),
                "right_here_wrong_at_end": (right[:, e] & ~right[:, -1]).mean(),
                "seconds": model.epochs["seconds"].sum(),
            }  # fmt: skip


def _differences(trained: Trained) -> Iterator[dict[str, Any]]:
    """Accuracy of each method's exits less that of joint training's, on the same images.

    `train_difference` is that on training images, `as_final_difference` that of the images for which the side exits
    answer as the final one.
    """
    models = {method: trained.of_method(method) for method in METHODS}
    found, taught = ({m: model.right(split) for m, model in models.items()} for split in ("test", "taught"))
    predicted = {m: model.logits("test").argmax(dim=2).numpy() for m, model in models.items()}
    as_final = {m: (p[:-1] == p[-1]).mean(axis=0) for m, p in predicted.items()}
    for method in METHODS[1:]:
        for e in range(found[method].shape[1]):
            row: dict[str, Any] = {"method": method, "less": "joint", "exit": e + 1}
            for prefix, a, b in (
                ("", found[method][:, e], found["joint"][:, e]),
                ("train_", taught[method][:, e], taught["joint"][:, e]),
                ("as_final_", as_final[method], as_final["joint"]),
            ):
                row[f"{prefix}difference"], row[f"{prefix}half"] = difference(a, b)
            yield row


def _phases(trained: Trained) -> Iterator[dict[str, Any]]:
    """Validation accuracy of the final exit after each phase of the trainings that have several."""
    for method in ("two-stage", "hybrid"):
        model = trained.of_method(method)
        for phase, part in model.epochs.groupby("phase", sort=False):
            yield {"method": method, "phase": phase, "final_accuracy": part[f"accuracy_{model.net.exits}"].iloc[-1]}


def _structures(trained: Trained) -> Iterator[dict[str, Any]]:
    """Every branch structure at every place of one frozen backbone, with its cost."""
    whole = trained.of_method("two-stage").right("test")[:, -1].mean()
    for structure in STRUCTURES:
        model = trained.of_structure(structure)
        right, costs = model.right("test"), model.net.costs()
        for e in range(model.net.exits - 1):
            yield {
                "structure": structure, "exit": e + 1, "macs": costs.branch_macs[e],
                "share_of_backbone": costs.branch_macs[e] / sum(costs.stage_macs),
                "weights": sum(p.numel() for p in model.net.branches[e].parameters()), "accuracy": right[:, e].mean(),
                "backbone_accuracy": whole,
            }  # fmt: skip


def _structure_pairs(trained: Trained) -> Iterator[dict[str, Any]]:
    """What one structure classifies better than another at each exit, on the same images."""
    found = {s: trained.of_structure(s).right("test") for s in STRUCTURES}
    for one, other in PAIRS:
        for e in range(found[one].shape[1] - 1):
            mean, half = difference(found[one][:, e], found[other][:, e])
            yield {"structure": one, "less": other, "exit": e + 1, "difference": mean, "half": half}


def _gates(trained: Trained) -> pd.DataFrame:
    """How many validation images a gate at each place stops, and which places are kept."""
    import torch
    from torch.nn.functional import cross_entropy

    from eex.experiments.papers.gating import fit_gates, pooled_features, stop_shares

    model = trained.all_places()
    labels, costs = model.labels("validation"), model.net.costs()
    losses = torch.stack([cross_entropy(out, labels, reduction="none") for out in model.logits("validation")], dim=1)
    # what stopping there would cost without the branches on the way, which are candidates only
    cost = (np.cumsum(costs.stage_macs) + np.array(costs.branch_macs)) / costs.whole
    pooled = pooled_features(model.net, trained.images.validation[0])
    gates = fit_gates(pooled, losses, torch.tensor(cost).float(), trained.recipe.price)
    with torch.no_grad():
        share = stop_shares(gates([x.clone() for x in pooled])).mean(dim=0).numpy()
    kept = np.zeros(len(cost), dtype=bool)
    kept[np.argsort(-share[:-1], kind="stable")[:UNIFORM]] = True
    return pd.DataFrame({"after": range(len(cost)), "cost": cost, "stopped": share, "kept": kept})


def _places(trained: Trained) -> Iterator[dict[str, Any]]:
    for name, after in _placed(trained).items():
        yield {"placement": name, "after": " ".join(map(str, after))}


def _placed(trained: Trained) -> dict[str, list[int]]:
    """Blocks after which the side branches of each placement stand."""
    gates, places = trained.work.table("gates", lambda: _gates(trained)), trained.places()
    kept = [int(a) for a in gates.loc[gates["kept"], "after"]]
    return {"uniform": places["uniform"], "by cost": places["by cost"], "gates": kept}


def _placements(trained: Trained) -> pd.DataFrame:
    """Accuracy against multiply-adds under the confidence rule, for each placement."""
    curves = {name: trade(trained.at(after).scored("test")) for name, after in _placed(trained).items()}
    return pd.concat([curve.assign(placement=name) for name, curve in curves.items()])


def _placement_pairs(trained: Trained) -> Iterator[dict[str, Any]]:
    """What one placement spends more than another for the same accuracy, on the same images, and its spread."""
    placed, images = _placed(trained), len(trained.images.test[1])
    counts = np.vstack([np.ones(images), redrawn(images)])
    drawn = {name: trades(trained.at(after).scored("test"), counts) for name, after in placed.items()}
    costs = [costs_alike(dict(zip(drawn, curves, strict=True)))[1] for curves in zip(*drawn.values(), strict=True)]
    for one, other in itertools.combinations(placed, 2):
        # there is nothing to compare where both are the same network
        apart = [c[one] - c[other] if placed[one] != placed[other] else np.nan for c in costs]
        half = 1.96 * np.std(apart[1:], ddof=1)
        yield {"placement": one, "less": other, "difference": apart[0], "half": half}


def costs_alike(curves: dict[str, pd.DataFrame]) -> tuple[float, dict[str, float]]:
    """An accuracy that all curves of `trade` reach, a point below the least of their final exits, and its cost."""
    target = min(c.loc[c["threshold"].idxmax(), "accuracy"] for c in curves.values()) - 0.01
    return target, {name: cost_at(curve, target) for name, curve in curves.items()}


def _overthinking(trained: Trained) -> Iterator[dict[str, Any]]:
    """Right early and wrong late, for each method on pristine images and for joint training on distorted ones.

    Beside it, what leaving early makes of it at the threshold that is most accurate on pristine validation images
    and at the cheapest (`cheapest`): `rescued` and `harmed` images are those that only the early exit, and only the
    final exit, answers right. `surest`: every exit is visited, and the most confident one answers.
    """
    cases = [(m, (PRISTINE, 0.0)) for m in METHODS]
    cases += [("joint", c) for c in trained.recipe.conditions if c[0] != PRISTINE]
    for method, condition in cases:
        model = trained.of_method(method)
        curve = trade(model.scored())
        most = curve.sort_values(["accuracy", "macs"], ascending=[False, True])["threshold"].iloc[0]
        right = model.right("test", condition)
        confidence, prediction = confidences(model.logits("test", condition), model.temperatures())
        image = np.arange(len(right))
        surest = prediction[image, confidence.argmax(axis=1)] == model.labels("test").numpy()
        for rule, threshold in (("most accurate", most), ("cheapest", cheapest(curve))):
            exit = leaves(confidence[:, :-1], threshold)
            early = right[image, exit]
            mean, half = difference(early, right[:, -1])
            yield {
                "method": method, "condition": condition_name(*condition), "rule": rule, **overthought(right),
                "surest": surest.mean(), "threshold": threshold, "left_early": (exit < right.shape[1] - 1).mean(),
                "early_accuracy": early.mean(), "rescued": (early & ~right[:, -1]).mean(),
                "harmed": (~early & right[:, -1]).mean(), "gain": mean, "half": half,
            }  # fmt: skip


def _rules(trained: Trained) -> pd.DataFrame:
    """Accuracy against multiply-adds: the confidence rule, and controllers that learned when an exit is right."""
    return pd.concat(
        trade(of).assign(rule=rule, condition=condition, auc=_auc(of.score, of.right[:, :-1]))
        for condition, rules in _scored(trained).items()
        for rule, of in rules.items()
    )


def _rule_gains(trained: Trained) -> Iterator[dict[str, Any]]:
    """Accuracy of each controller less that of the confidence rule for the same work, and its spread.

    For images of each condition, and of "all" of them together.
    """
    images = len(trained.images.test[1])
    counts = np.vstack([np.ones(images), redrawn(images)])
    macs = middle(trained.work.table("rules", lambda: _rules(trained)))
    gains: dict[str, dict[str, Floats]] = {}
    for condition, rules in _scored(trained).items():
        at = {rule: np.array([accuracy_at(c, macs) for c in trades(of, counts)]) for rule, of in rules.items()}
        for rule, accuracy in at.items():
            if rule != CONFIDENCE:
                gains.setdefault(rule, {})[condition] = accuracy - at[CONFIDENCE]
    for rule, found in gains.items():
        for condition, gain in (found | {"all": np.mean(list(found.values()), axis=0)}).items():
            half = 1.96 * gain[1:].std(ddof=1)
            yield {"rule": rule, "condition": condition, "gain": gain[0], "half": half}


def middle(rules: pd.DataFrame) -> float:
    """Multiply-adds half-way between the least and the most that rules spend."""
    return float(rules["macs"].max() + rules["macs"].min()) / 2


def _scored(trained: Trained) -> dict[str, dict[str, Scored]]:
    """What each rule decides by, under each condition."""
    import torch

    from eex.experiments.papers.controller import fit_controller

    model, conditions, seed = trained.of_method("joint"), trained.recipe.conditions, trained.work.seed
    held = torch.cat([model.logits("validation", c)[:-1] for c in conditions], dim=1)
    labels = model.labels("validation").repeat(len(conditions))
    controllers = {
        CONTROLLER: fit_controller(held, labels, hidden=0, seed=seed),
        "controller, 32 hidden": fit_controller(held, labels, hidden=32, seed=seed),
    }
    found = {}
    for condition in conditions:
        right, logits = model.right("test", condition), model.logits("test", condition)[:-1]
        rules = {CONFIDENCE: Scored(model.confidence("test", condition, conditions), right, model.macs())}
        for name, controller in controllers.items():
            rules[name] = Scored(controller(logits).T.double().numpy(), right, model.macs(controller.macs))
        found[condition_name(*condition)] = rules
    return found


def _thresholds(trained: Trained) -> Iterator[dict[str, Any]]:
    """What one threshold, chosen on pristine validation images, does to images of every condition.

    `fewer` and `wronger` are by how much fewer of the same images leave early than under the first condition, and by
    how much fewer of those that do are right.
    """
    model = trained.of_method("joint")
    threshold, macs = cheapest(trade(model.scored())), np.array(model.macs())
    first: tuple[Bools, Floats] | None = None
    for condition in trained.recipe.conditions:
        score, right = model.confidence("test", condition), model.right("test", condition)
        exit, image = leaves(score, threshold), np.arange(len(right))
        answered, gone = right[image, exit], exit < score.shape[1]
        first = first or (gone, among(answered, gone))
        fewer, wronger = difference(first[0], gone), difference(first[1], among(answered, gone))
        yield {
            "condition": condition_name(*condition), "threshold": threshold, "left_early": gone.mean(),
            "accuracy_early": mean_of(answered[gone]), "confidence_early": mean_of(score[image[gone], exit[gone]]),
            "accuracy": answered.mean(), "whole": right[:, -1].mean(), "macs": macs[exit].mean(),
            "fewer": fewer[0], "fewer_half": fewer[1], "wronger": wronger[0], "wronger_half": wronger[1],
        }  # fmt: skip


def _energy(trained: Trained) -> pd.DataFrame:
    """Passes over the same test images: the network without its side branches, and leaving early."""
    import torch

    from eex.experiments.bench.engine import joules, plain, spent, timed
    from eex.experiments.papers.live import play
    from eex.models.fast import optimised

    model = trained.of_method("joint")
    net = model.net
    for temperatures, t in zip(net.temperature, model.temperatures(), strict=True):
        temperatures[PRISTINE] = t
    threshold, costs, fast = min(cheapest(trade(model.scored())), 1.0), net.costs(), optimised(net)
    order = trained.images.drawn(trained.recipe.timed)
    images, labels = trained.images.test[0][order].float() / 255, trained.images.test[1][order]
    whole, macs, bytes_so_far = (
        model.right("test")[order, -1].mean(),
        np.array(model.macs()),
        np.cumsum(costs.feature_bytes),
    )
    fixed = Fixed(p_tar=[threshold] * net.edge_exits + [0.0], exits=net.edge_exits)  # the final exit always answers
    same = {
        "weight_bytes": 4 * sum(p.numel() for p in net.parameters()),
        "side_branch_bytes": 4 * sum(p.numel() for b in net.branches[:-1] for p in b.parameters()),
        "meter": "RAPL" if joules() else "no energy counter that we may read (a virtual machine, say)",
    }
    rows: list[dict[str, Any]] = []

    def add(name: str, seconds: float, energy: float | None, accuracy: float, macs: float, exit: "int | Ints") -> None:
        used = float("nan") if energy is None else energy
        figures = {"us_a_frame": 1e6 * seconds / len(labels), "uj_a_frame": 1e6 * used / len(labels)}
        figures |= {"accuracy": accuracy, "macs": macs, "feature_bytes": bytes_so_far[exit].mean()}
        rows.append({"pass": name, "repeat": len(rows) // 2} | figures | same)

    with torch.inference_mode():
        for _ in range(trained.recipe.repeats + 1):
            before = joules()
            seconds, _ = timed(lambda: plain(fast)(images.to(fast.mean.device), labels.numpy(), 32), fast.mean.device)
            between = joules()
            found, took = play(fast, fixed, images, labels)
            after = joules()
            add("without side branches", seconds, spent(before, between), whole, costs.whole, -1)
            right = (found.answer == found.label).mean()
            add("leaving early", took, spent(between, after), right, macs[found.exit].mean(), found.exit)
    return pd.DataFrame(rows[2:])  # the first pass of each warms up


def _auc(score: Floats, right: Bools) -> float:
    """Probability that a right answer, of any exit and image, has a higher score than a wrong one."""
    from scipy.stats import rankdata

    ranks, good = rankdata(score.ravel()), right.ravel()
    n, m = int(good.sum()), int((~good).sum())
    return float((ranks[good].sum() - n * (n + 1) / 2) / (n * m)) if n and m else float("nan")


# ---- figures


def _by_exit(tables: Tables) -> pd.DataFrame:
    return tables["methods"].groupby(["method", "exit"], sort=False, as_index=False).mean(numeric_only=True)


def _gains(tables: Tables) -> pd.DataFrame:
    """Points of accuracy of each controller less the confidence rule's, where both spend the same."""
    gains = []
    for _, part in tables["rules"].groupby("condition", sort=False):
        plain = part[part["rule"] == CONFIDENCE]
        for _, curve in part[part["rule"] != CONFIDENCE].groupby("rule", sort=False):
            gain = [100 * (row.accuracy - accuracy_at(plain, row.macs)) for row in curve.itertuples()]
            gains.append(curve.assign(gain=gain))
    return pd.concat(gains)


PLOTS = (
    Plot(
        "methods", _by_exit, "exit {exit}", "accuracy", "method",
        title="Accuracy of each exit by training method", xlabel=" ", share=True,
    ),
    Plot(
        "overthinking", lambda t: _by_exit(t)[lambda r: r["exit"] < r["exit"].max()],
        "exit {exit}", "right_here_wrong_at_end", "method", xlabel=" ", ylabel="share of the test images",
        title="Overthinking: images that an exit answers right and the final exit wrong", share=True,
    ),
    Plot(
        "structures", "structures", "macs", "accuracy", "structure", "exit {exit}", per=1e3,
        title="Branch structures on one frozen backbone", xlabel="thousand multiply-adds of the branch", share=True,
    ),
    Plot(
        "placements", "placements", "macs", "accuracy", "placement", per=1e6,
        title="Three side branches, placed by three rules: accuracy against work",
        xlabel="million multiply-adds per frame", share=True,
    ),
    Plot(
        "rules", "rules", "macs", "accuracy", "rule", "condition", per=1e6,
        title="Exit rules: calibrated confidence and learned controllers", xlabel="million multiply-adds per frame",
        share=True,
    ),
    Plot(
        "rules-gain", _gains, "macs", "gain", "rule", "condition", per=1e6, level=0,
        title="Accuracy that a learned controller wins over calibrated confidence for the same work",
        xlabel="million multiply-adds per frame", ylabel="points",
    ),
)  # fmt: skip


# ---- claims


def _of_methods(tables: Tables, recipe: StrategiesRecipe) -> Iterator[Facts]:
    """Training methods beside joint training; `less` are pairs of a difference and half its interval, by exit."""
    methods, phases = tables["methods"], tables["phases"]
    last, exits = int(methods["exit"].max()), range(1, int(methods["exit"].max()) + 1)
    mean = methods.groupby(["method", "exit"])[["accuracy", "train_accuracy", "as_final"]].mean()
    gap = (mean["train_accuracy"] - mean["accuracy"]).xs(last, level="exit")
    copies = mean["as_final"].drop(last, level="exit").groupby("method").mean()
    pairs = tables["differences"].set_index(["method", "exit"])
    less = {
        str(m): dict(zip(part["exit"], zip(part["difference"], part["half"], strict=True), strict=True))
        for m, part in tables["differences"].groupby("method")
    }
    backbone = pairs.loc["two-stage", last]
    norm = tables["gradients"].pivot(index="stage", columns="loss", values="norm")
    ratio = norm["all exits'"] / norm["the final exit's"]
    after = phases[phases["method"] == "two-stage"]
    after = after.assign(training=after.groupby("phase").cumcount())
    after = after.pivot(index="training", columns="phase", values="final_accuracy")
    alone, hybrid = less["two-stage"][last], less["hybrid"]
    early = np.array([hybrid[e] for e in exits[:-1]])

    def each(method: str, some: Sequence[int]) -> str:
        return listed("exit {e} {d:points}", [{"e": e, "d": less[method][e]} for e in some])

    yield Facts(
        gap=gap,
        overfits_less=Margin(
            backbone["train_difference"] - backbone["difference"], np.hypot(backbone["train_half"], backbone["half"])
        ),
        mimics=Margin(*pairs.loc[("distillation", 1), ["as_final_difference", "as_final_half"]]),
        joint_less_alone=(-alone[0], alone[1]),
        ratio=ratio,
        first=ratio.iloc[0],
        deep=ratio.iloc[-1],
        stages=len(ratio),
        after=after,
        phases=listed("{backbone:%} and {branches:%}", after),
        less=less,
        one=less["two-stage"][1],
        branch_wise=(less["branch-wise"][1], less["branch-wise"][last]),
        copies=copies,
        distillation=each("distillation", exits),
        distilled=less["distillation"][1],
        hybrid=each("hybrid", exits[:-1]),
        hybrid_last=hybrid[last][0],
        hybrid_early=early.mean(axis=0),
    )


def _of_structures(tables: Tables, recipe: StrategiesRecipe) -> Iterator[Facts]:
    """Branch structures at exit 1, each in words; `gains` are pairs of a difference and half its interval."""
    structures, pairs = tables["structures"], tables["structure_pairs"]
    at = structures[structures["exit"] == 1].set_index("structure")
    side = structures.groupby("structure")["accuracy"].mean().sort_values(ascending=False)
    template = "{n} {accuracy:%} ({k:,.1f} k multiply-adds, {weights:,.0f} weights)"
    first = pairs[pairs["exit"] == 1]
    yield Facts(
        **{n: words(template, {"n": n, "k": row["macs"] / 1e3, **row}) for n, row in at.iterrows()},
        at=at,
        gains=dict(zip(first["structure"], zip(first["difference"], first["half"], strict=True), strict=True)),
        share=at.loc["multi_conv", "share_of_backbone"],
        side=side,
        images=images_tested(tables),
        exits=structures["exit"].nunique(),
        sides=listed("{structure} {accuracy:%}", side.reset_index()),
        dear="" if at.loc["pool_fc", "accuracy"] >= at.loc["fc", "accuracy"] else "it costs accuracy, too",
    )


def _of_placements(tables: Tables, recipe: StrategiesRecipe) -> Iterator[Facts]:
    curves = {str(name): part for name, part in tables["placements"].groupby("placement", sort=False)}
    finals = {n: c.loc[c["threshold"].idxmax(), "accuracy"] for n, c in curves.items()}
    target, cost = costs_alike(curves)
    after = tables["places"].groupby("placement")["after"].agg(lambda a: " or ".join(dict.fromkeys(a)))  # by seed
    rows = [{"n": n, "after": after[n], "m": cost[n] / 1e6, "final": finals[n]} for n in curves]
    pairs = tables["placement_pairs"].set_index(["placement", "less"]) / 1e6
    saved = {pair: Margin(*pairs.loc[pair]) for pair in pairs.index}
    yield Facts(
        target=target,
        cheaper=saved["uniform", "by cost"],
        learned=[saved[n, "gates"] for n in ("uniform", "by cost")],
        costs=listed("{n} (after blocks {after}) {m:.2f} M, final {final:%}", rows),
        trained="one training each, and " if recipe.seeds == 1 else "",
        stopped=tables["gates"].loc[tables["gates"]["kept"], "stopped"].sum(),
    )


def _of_overthinking(tables: Tables, recipe: StrategiesRecipe) -> Iterator[Facts]:
    keys = ["rule", "method", "condition"]
    mean = tables["overthinking"].groupby(keys, sort=False).mean(numeric_only=True)
    best, cheap = mean.loc[("most accurate", "joint", PRISTINE)], mean.loc[("cheapest", "joint", PRISTINE)]
    plain = mean.loc["most accurate"].xs(PRISTINE, level="condition").reset_index()
    hard = mean.loc["most accurate"].xs("joint", level="method").drop(PRISTINE).reset_index()
    template = "{left_early:%} leave early, {r:.2f} % are rescued, {h:.2f} % harmed, accuracy {g:points}"
    early = [
        words(template, {**row, "r": 100 * row["rescued"], "h": 100 * row["harmed"], "g": (row["gain"], row["half"])})
        for row in (best, cheap)
    ]
    yield Facts(
        best=best,
        images=images_tested(tables),
        plain=listed("{method} {overthought:%}", plain),
        hard=listed("{condition} {overthought:%}", hard),
        early=early,
        lost=100 * LOST,
        room=best["oracle"] - best["final"],
        surest=best["surest"] - best["final"],
    )


def _of_rules(tables: Tables, recipe: StrategiesRecipe) -> Iterator[Facts]:
    rules = tables["rules"]
    gains = tables["rule_gains"].set_index("rule").loc[CONTROLLER].set_index("condition")
    auc = rules.groupby(["rule", "condition"], sort=False)["auc"].first()
    plain, *hard = tables["thresholds"].to_dict("records")
    wins, every = gains.loc["all"], gains.drop("all")
    yield Facts(
        million=middle(rules) / 1e6,
        rule=CONTROLLER,
        wins=Margin(wins["gain"] - 0.002, wins["half"]),
        nowhere_less=Margin(every["gain"] + 0.002, every["half"]),
        gained=listed("{c} {g:points}", [{"c": c, "g": (row["gain"], row["half"])} for c, row in every.iterrows()]),
        auc=listed(
            "{c} {a:.3f} against {b:.3f}",
            [{"c": c, "a": auc[CONTROLLER, c], "b": auc[CONFIDENCE, c]} for c in every.index],
        ),
        plain=plain,
        leave=listed("{left_early:%} of {condition}", hard),
        early=listed("{condition} {accuracy_early:%} ({confidence_early:%})", [plain, *hard]),
        fewer=[Margin(r["fewer"], r["fewer_half"]) for r in hard],
        wronger=[Margin(r["wronger"] - 0.05, r["wronger_half"]) for r in hard],
    )


def _of_energy(tables: Tables, recipe: StrategiesRecipe) -> Iterator[Facts]:
    energy = tables["energy"]
    mid = energy.groupby("pass", sort=False).median(numeric_only=True)
    whole, early = mid.iloc[0], mid.iloc[1]
    work, clock = whole["macs"] / early["macs"], whole["us_a_frame"] / early["us_a_frame"]
    both = energy.pivot(index="repeat", columns="pass", values="us_a_frame")[mid.index]
    faster = Margin(clock, seeds_interval(both.iloc[:, 0] / both.iloc[:, 1])[1])
    over = tables["overthinking"].set_index(["rule", "method", "condition"]).loc[("cheapest", "joint", PRISTINE)]
    measured = bool(energy["uj_a_frame"].notna().all())
    counted = f"{whole['uj_a_frame']:.0f} and {early['uj_a_frame']:.0f} µJ per frame ({energy['meter'].iloc[0]})"
    instead = (
        f"{energy['meter'].iloc[0]}; instead, a frame: {whole['macs'] / 1e6:.2f} and {early['macs'] / 1e6:.2f} M "
        f"multiply-adds, {whole['feature_bytes'] / 1e3:.0f} and {early['feature_bytes'] / 1e3:.0f} kB of features; "
        f"side branches add {early['side_branch_bytes'] / 1e3:.0f} kB to "
        f"{(early['weight_bytes'] - early['side_branch_bytes']) / 1e3:.0f} kB of weights"
    )
    yield Facts(
        work=work,
        clock=clock,
        whole=whole,
        early=early,
        extra=tables["methods"]["macs"].max() / whole["macs"] - 1,
        found=counted if measured else instead,
        faster=faster,
        little=Margin(0.01 + over["gain"], over["half"]),
        saves=_saves(energy) if measured else Margin(np.nan),
    )


def _saves(energy: pd.DataFrame) -> Margin:
    """Energy per frame without side branches less that of leaving early, over the repeats."""
    whole, early = (part["uj_a_frame"] for _, part in energy.groupby("pass", sort=False))
    return larger(seeds_interval(whole), seeds_interval(early))


CLAIMS = (
    Group(_of_methods, (
        Claim("joint training: side branches are regularisers, mitigating overfitting", NONE,
              "final exit, training accuracy minus test accuracy: {gap[joint]:points} joint, {gap[two-stage]:points} "
              "backbone alone; test accuracy of joint training compared with the backbone alone: "
              "{joint_less_alone:points}",
              lambda f: [f.overfits_less, Margin(*f.joint_less_alone)],
              "limit: the gap is smaller and test accuracy higher, both beyond chance"),
        Claim("side branches give the early layers a stronger gradient (against vanishing gradients)", NONE,
              "untrained, norm in stage 1: {first:.2f} times that of the final loss alone; in stage {stages}: "
              "{deep:.2f}", lambda f: f.first > 1,
              "{stages} losses are added; with batch norms and shortcuts nothing vanishes here anyway"),
        Claim("two-stage training: branches on the frozen backbone leave its accuracy alone", NONE,
              "final exit on validation images, before and after the branches: {phases}; exit 1 compared with "
              "joint training: {one:points}", lambda f: bool((f.after["backbone"] == f.after["branches"]).all())),
        Claim("branch-wise training (each branch with the layers before it, then frozen) leaves the final exit as "
              "accurate", OWN,
              "compared with joint training: exit 1 {branch_wise[0]:points}, final exit {branch_wise[1]:points}",
              lambda f: Margin(*f.branch_wise[1]),
              "limit: the final exit loses nothing; early layers are made for the first exit and never for the last"),
        Claim("distillation: side exits mimic the final exit", NONE,
              "side exits agree with the final one: {copies.distillation:%}, joint {copies.joint:%}",
              lambda f: f.mimics),
        Claim("distillation helps the early exits", NONE,
              "compared with joint training: {distillation}", lambda f: Margin(*f.distilled),
              "limit: exit 1 gains more than chance; the teacher is itself still being trained, and the late exits "
              "pay"),
        Claim("hybrid training (joint, then the branches alone) complements the single methods", NONE,
              "compared with joint training: {hybrid}, final exit {hybrid_last:points}",
              lambda f: Margin(*f.hybrid_early),
              "limit: the side exits gain more than chance; they are also trained for twice the epochs"),
    )),
    Group(_of_structures, (
        Claim("several fc layers add capacity over a single one (both after pooling)", NONE,
              "exit 1: {multi_fc}, {pool_fc}: {gains[multi_fc]:points}",
              lambda f: Margin(*f.gains["multi_fc"])),
        Claim("a convolution before the fc layer extracts more features", NONE,
              "exit 1: {conv_fc}, {fc}: {gains[conv_fc]:points}",
              lambda f: Margin(*f.gains["conv_fc"])),
        Claim("several convolutions are for more refined tasks", NONE,
              "exit 1: {multi_conv}, {conv_fc}: {gains[multi_conv]:points}",
              lambda f: Margin(*f.gains["multi_conv"]),
              "its cost is {share:%} of the whole backbone's"),
        Claim("pooling before the fc layer reduces dimensions and cost", NONE,
              "exit 1: {pool_fc}, {fc}",
              lambda f: bool((f.at.loc["pool_fc", ["macs", "weights"]] < f.at.loc["fc", ["macs", "weights"]]).all()),
              "{dear}"),
        Claim("convolution, pooling and fc together are a balanced hybrid", NONE,
              "exit 1: {conv_pool_fc}, {fc}, {multi_conv}",
              lambda f: [Margin(*f.gains["conv_pool_fc"]),
                         bool(f.at.loc["conv_pool_fc", "macs"] < f.at.loc["multi_conv", "macs"])],
              "limit: more accurate than fc and cheaper than several convolutions"),
        Claim("the more elaborate the branch, the better it classifies early", NONE,
              "mean over the side exits: {sides}",
              lambda f: above(f.side[["conv_fc", "conv_pool_fc", "multi_conv"]].min(), f.side[["fc", "pool_fc"]].max(),
                              f.images),
              "limit: each branch with a convolution is above fc and pool_fc; multi_fc, which pools first, is left "
              "out"),
    )),
    Group(_of_placements, (
        Claim("placement by cost targets the greatest computational saving", NONE,
              "multiply-adds per frame for {target:%}: {costs}", lambda f: f.cheaper,
              "{trained}the networks' final exits differ, which shifts what a given accuracy costs"),
        Claim("gating learns good places", NONE,
              "multiply-adds per frame for {target:%}: {costs}; the places kept stop {stopped:%} of the validation "
              "images", lambda f: f.learned,
              "{trained}gates look at images one by one and at no other place, so that places close to each "
              "other are kept"),
    )),
    Group(_of_overthinking, (
        Claim("overthinking: a correct intermediate answer becomes wrong with more processing", NONE,
              "right early and wrong at the end: {plain} of pristine images; joint: final {best.final:%}, oracle over "
              "exits {best.oracle:%}; {hard}", lambda f: at_least(f.best["overthought"], 0.01, f.images),
              "limit: more than one image in a hundred"),
        Claim("leaving early prevents overthinking", NONE,
              "joint, at the threshold most accurate on validation images: {early[0]}; at the cheapest that loses "
              "{lost:g} points there: {early[1]}; an oracle would win {room:points}, answering with the surest of all "
              "exits {surest:points}", lambda f: Margin(f.best["gain"], f.best["half"]),
              "limit: more accurate than the final exit, beyond chance; confidence hardly tells what depth would "
              "spoil from what it mends"),
    )),
    Group(_of_rules, (
        Claim("a learned controller decides better than a fixed rule on confidence", NONE,
              "accuracy for {million:.2f} M multiply-adds, {rule}, compared with confidence: {gained}; right and wrong "
              "answers told apart (AUC): {auc}", lambda f: [f.wins, f.nowhere_less],
              "limit: 0.2 points more on average and nowhere 0.2 less; nearly all that an exit knows of an image is "
              "in its calibrated confidence"),
        Claim("distortion degrades confidence, and a fixed threshold then fails to end inference early", NONE,
              "threshold {plain[threshold]:.2f}: {plain[left_early]:%} of pristine images leave early, {leave}",
              lambda f: f.fewer),
        Claim("static policies are rigid and fail under variable input", NONE,
              "of what leaves early, right (and confidence): {early}", lambda f: f.wronger,
              "limit: at the threshold for pristine images, early answers lose more than 5 points on distorted ones"),
    )),
    Group(_of_energy, (
        Claim("leaving early accelerates inference, at little loss of accuracy (here: at most one point)", NONE,
              "{work:.2f} times fewer multiply-adds, {clock:.2f} times the frames a second (accuracy "
              "{whole.accuracy:%} and {early.accuracy:%})",
              lambda f: [Margin(f.faster.value - 1, f.faster.half), f.little]),
        Claim("leaving early at least doubles the speed",
              "2 to 6 times (BranchyNet: LeNet, AlexNet, ResNet on CPUs and GPUs)",
              "{clock:.2f} times the frames a second; all side branches cost {extra:%} of the network without them",
              lambda f: Margin(f.faster.value - 2, f.faster.half),
              "the network is tiny: its side branches weigh much, and so does what a frame costs besides "
              "convolutions; BranchyNet accelerates networks with far more work after the first exit"),
        Claim("leaving early saves energy", NONE, "{found}", lambda f: f.saves),
    )),
)  # fmt: skip
