"""The survey of deployment strategies: training, branch structures, placement, overthinking, exit rules and energy."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from eex.experiments.papers.paper import Claim, Images, Work
from eex.experiments.plotting import paper_figure
from eex.policies.algorithms.fixed import Fixed
from eex.policies.core.base import Bools, Context, Floats, Thresholds
from eex.policies.core.schedule import PRISTINE

if TYPE_CHECKING:
    from torch import Tensor

    from eex.models.network import EarlyExitNet
    from eex.models.training import Method

TITLE = "Deployment strategies for early-exit deep neural networks in resource-constrained environments (survey)"
METHODS: tuple["Method", ...] = ("joint", "branch-wise", "two-stage", "distillation", "hybrid")
STRUCTURES = ("fc", "multi_fc", "pool_fc", "conv_fc", "conv_pool_fc", "multi_conv")
SHARES = (0.25, 0.5, 0.75)
"""Of the backbone's multiply-adds, before each side branch that is placed by cost."""
UNIFORM = len(SHARES)
PAIRS = (("multi_fc", "pool_fc"), ("conv_fc", "fc"), ("multi_conv", "conv_fc"), ("conv_pool_fc", "fc"))
"""Structures of which the survey says that the first does more than the second."""
TAUGHT = 5000
"""Training images, as they are, on which the accuracy that overfitting shows in is measured."""
LOST = 0.005
"""Accuracy that a threshold chosen on validation images may cost there."""
NOTES = """
- The survey measures nothing: its sentences are put to the test here, on one compact residual network for CIFAR-10
  (width 16, 5.8 million multiply-adds) that is trained for a few epochs, as many in every phase of a method:
  one of two phases passes the images twice.
- Each ± is half the 95 % interval of a difference on the same test images, averaged over the seeds; it knows the test
  images' chance, not what other seeds would change.
- Structures are compared on one frozen backbone, that of the two-stage training, so that only the branch differs.
- Learned gating: a network with a side branch at every place is trained jointly; then gates (a linear layer on the
  averaged features each) are trained on validation images to stop where cross-entropy + price x cost is least, and the
  places whose gates stop most images are kept. The survey's works train gates along with the network.
- The learned controller and the temperatures of the confidence rule that it is compared with come from the same
  validation images, pristine and distorted. There are no expert branches here.
- The capsule network and the searched branch structure of the survey's table are not built.
"""


@dataclass(frozen=True)
class Recipe:
    """How much is trained and measured.

    Parameters
    ----------
    width
        Of the residual network.
    epochs
        Of every phase of every training.
    seeds
        Trainings of each method.
    lr, batch
        Peak learning rate and images a step (SGD, one cycle).
    validation
        Images held out: for thresholds, temperatures, gates and controllers.
    structure
        Of the side branches, where structures are not what is compared.
    price
        What the whole network's work is worth to a gate, in units of cross-entropy.
    conditions
        Distortions of the images on which exit rules are compared: kind and level.
    timed, repeats
        Test images of a timed pass, and passes.
    """

    width: int
    epochs: int
    seeds: int
    lr: float = 0.12
    batch: int = 128
    validation: int = 5000
    structure: str = "conv_fc"
    price: float = 0.5
    conditions: tuple[tuple[str, float], ...] = ((PRISTINE, 0.0), ("gaussian_blur", 1.0), ("gaussian_noise", 20.0))
    timed: int = 8000
    repeats: int = 5


RECIPES = {
    "quick": Recipe(width=8, epochs=1, seeds=1, validation=200, timed=256, repeats=2),
    "reduced": Recipe(width=16, epochs=4, seeds=2),
    "paper": Recipe(width=64, epochs=30, seeds=3),
}


def run(work: Work, recipe: Recipe) -> list[Claim]:
    """Train by every method, with every structure and at every placement; measure exits, rules and energy."""
    bench = Bench(work, recipe, work.images(recipe.validation))
    gradients = work.rows("gradients", bench.gradients)
    methods = work.rows("methods", bench.methods)
    differences = work.rows("differences", bench.differences)
    phases = work.rows("phases", bench.phases)
    structures = work.rows("structures", bench.structures)
    pairs = work.rows("structure_pairs", bench.structure_pairs)
    gates = work.rows("gates", bench.gates)
    placements = work.rows("placements", lambda: bench.placements(gates))
    overthinking = work.rows("overthinking", bench.overthinking)
    rules = work.rows("rules", bench.rules)
    thresholds = work.rows("thresholds", bench.thresholds)
    energy = work.rows("energy", bench.energy)
    _draw(work, methods, structures, placements, overthinking, rules)
    return [
        *_of_methods(methods, differences, phases, gradients),
        *_of_structures(structures, pairs),
        *_of_placements(placements, gates),
        *_of_overthinking(overthinking),
        *_of_rules(rules, thresholds),
        *_of_energy(energy, methods),
    ]


# ---- what is counted


def overthought(right: Bools) -> dict[str, float]:
    """How often depth does harm, as shares of the images.

    Parameters
    ----------
    right
        Whether each exit is right, (N, exits), the final exit last.

    Returns
    -------
    dict
        final: right at the end; overthought: some earlier exit right and the end wrong; oracle: some exit right.

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


def trade(score: Floats, right: Bools, macs: Sequence[float], points: int = 60) -> pd.DataFrame:
    """Accuracy and mean multiply-adds under thresholds that cover all scores.

    Parameters
    ----------
    score
        Of the side branches, (N, exits - 1).
    right
        Of every exit, (N, exits).
    macs
        Of an image that leaves there, (exits,).
    points
        Thresholds: quantiles of the scores, and one above all.

    Returns
    -------
    DataFrame
        threshold, early (share that leaves before the end), macs, accuracy.
    """
    cost = np.asarray(macs, dtype=float)
    rows = []
    for threshold in [*np.unique(np.quantile(score, np.linspace(0, 1, points))), np.inf]:
        exit = leaves(score, threshold)
        rows.append(
            {
                "threshold": min(threshold, 2.0),
                "early": (exit < score.shape[1]).mean(),
                "macs": cost[exit].mean(),
                "accuracy": right[np.arange(len(exit)), exit].mean(),
            }
        )
    return pd.DataFrame(rows)


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
    """Accuracy of a curve of `trade` for so many multiply-adds a frame, straight between its points."""
    rows = curve.sort_values("macs")
    return float(np.interp(macs, rows["macs"], rows["accuracy"]))


def cheapest(curve: pd.DataFrame, lost: float = LOST) -> float:
    """The threshold of a curve that costs least and loses at most so much accuracy against the whole network."""
    whole = curve.loc[curve["threshold"].idxmax(), "accuracy"]
    good = curve[curve["accuracy"] >= whole - lost - 1e-12]
    return float(good.loc[good["macs"].idxmin(), "threshold"])


def difference(a: Bools, b: Bools) -> tuple[float, float]:
    """Mean of a - b and half its 95 % interval, both (seeds, N): on the same images, averaged over the seeds first."""
    apart = (a.astype(float) - b.astype(float)).mean(axis=0)
    return float(apart.mean()), float(1.96 * apart.std(ddof=1) / len(apart) ** 0.5)


class FirstSure(Fixed):
    """A fixed threshold at the side branches; what reaches none is answered by the final exit, however sure."""

    def choose(self, context: Context) -> Thresholds:
        """As `Fixed`, with 0 at the final exit."""
        chosen = super().choose(context)
        exit_at = chosen.exit_at.copy()
        exit_at[..., -1] = 0.0
        return dataclasses.replace(chosen, exit_at=exit_at)


# ---- what is trained and measured


@dataclass
class Bench:
    """Networks by name and what they say, made once and kept in the folder."""

    work: Work
    recipe: Recipe
    images: Images
    temperatures: dict[Any, list[float]] = field(default_factory=dict)

    # -- networks

    def network(self, after: Sequence[int], structure: str, seed: int) -> "EarlyExitNet":
        """Untrained: side branches after these blocks, and averaged features with a linear layer at the end."""
        import torch

        from eex.models.network import make

        torch.manual_seed(self.work.seed + seed)
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
        """Blocks behind which side branches stand: at equal distances, by cost, and all candidates."""
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

    def train(self, name: str, net: "EarlyExitNet", method: "Method", seed: int = 0) -> pd.DataFrame:
        """Train in place, or load; one row an epoch."""
        from eex.models.training import Recipe as Training

        r = self.recipe
        training = Training(method=method, epochs=r.epochs, lr=r.lr, batch=r.batch, seed=self.work.seed + seed)
        seen, labels = self.images.validation
        return self.work.trained(name, net, self.images.train, training, validation=(seen[:1000], labels[:1000]))

    def of_method(self, method: "Method", seed: int) -> tuple["EarlyExitNet", pd.DataFrame]:
        """A network with uniformly placed branches, trained by a method."""
        net = self.network(self.places()["uniform"], self.recipe.structure, seed)
        return net, self.train(f"{method}-{seed}", net, method, seed)

    def joint(self) -> "EarlyExitNet":
        """The network that rules and energy are measured on."""
        return self.of_method("joint", 0)[0]

    # -- what they say

    def logits(self, name: str, net: "EarlyExitNet", split: str, condition: tuple[str, float] = (PRISTINE, 0)) -> Any:
        """Logits (exits, N, K) of a split under a distortion; "taught" are training images as they are."""
        from eex.models.training import all_logits
        from eex.stream.frames.distortions import random_distortion

        kind, level = condition
        distort = None if kind == PRISTINE else random_distortion(kind, level, level)
        seen = self.images.train[0][:TAUGHT] if split == "taught" else getattr(self.images, split)[0]
        where = f"{name}-{split}" + ("" if distort is None else f"-{kind}-{level:g}")
        return self.work.kept(where, lambda: all_logits(net, seen, distort=distort))

    def labels(self, split: str) -> "Tensor":
        """Classes of a split."""
        labels: Tensor = self.images.train[1][:TAUGHT] if split == "taught" else getattr(self.images, split)[1]
        return labels

    def right(self, name: str, net: "EarlyExitNet", split: str, condition: tuple[str, float] = (PRISTINE, 0)) -> Bools:
        """Whether each exit is right, (N, exits)."""
        found = self.logits(name, net, split, condition).argmax(dim=2) == self.labels(split)
        right: Bools = found.T.numpy()
        return right

    def calibrated(self, name: str, net: "EarlyExitNet", conditions: Sequence[tuple[str, float]]) -> Any:
        """Temperatures of the exits, from validation images under these distortions."""
        import torch

        from eex.models.calibration import fit_temperature

        key = (name, tuple(conditions))
        if key not in self.temperatures:
            said = torch.cat([self.logits(name, net, "validation", c) for c in conditions], dim=1)
            labels = self.labels("validation").repeat(len(conditions))
            self.temperatures[key] = [fit_temperature(out, labels) for out in said]
        return self.temperatures[key]

    # -- tables

    def gradients(self) -> pd.DataFrame:
        """Norm of the gradient in each stage of the untrained network, with the loss at the end and at every exit."""
        import torch
        from torch.nn.functional import cross_entropy

        rows = []
        for seed in range(self.recipe.seeds):
            net = self.network(self.places()["uniform"], self.recipe.structure, seed).train()
            for start in range(0, 8 * 128, 128):
                x = self.images.train[0][start : start + 128].float() / 255
                y = self.images.train[1][start : start + 128]
                for loss in ("the final exit's", "all exits'"):
                    outputs = net(x)
                    net.zero_grad()
                    wanted = outputs if loss == "all exits'" else outputs[-1:]
                    torch.stack([cross_entropy(out, y) for out in wanted]).sum().backward()  # type: ignore[no-untyped-call]
                    for i, stage in enumerate(net.stages):
                        norm = torch.stack([p.grad.square().sum() for p in stage.parameters() if p.grad is not None])
                        rows.append({"loss": loss, "stage": i + 1, "seed": seed, "norm": float(norm.sum().sqrt())})
        return pd.DataFrame(rows).groupby(["loss", "stage"], sort=False, as_index=False)["norm"].mean()

    def methods(self) -> pd.DataFrame:
        """Each method's exits, one row a seed."""
        rows = []
        for method in METHODS:
            for seed in range(self.recipe.seeds):
                net, epochs = self.of_method(method, seed)
                name, costs = f"{method}-{seed}", net.costs()
                said = self.logits(name, net, "test").argmax(dim=2)
                right, taught = self.right(name, net, "test"), self.right(name, net, "taught")
                for e in range(net.exits):
                    rows.append(
                        {
                            "method": method,
                            "seed": seed,
                            "exit": e + 1,
                            "macs": costs.of_exit(e),
                            "accuracy": right[:, e].mean(),
                            "train_accuracy": taught[:, e].mean(),
                            "as_final": float((said[e] == said[-1]).float().mean()),
                            "right_here_wrong_at_end": (right[:, e] & ~right[:, -1]).mean(),
                            "seconds": epochs["seconds"].sum(),
                        }
                    )
        return pd.DataFrame(rows)

    def differences(self) -> pd.DataFrame:
        """Accuracy of each method's exits less that of joint training's, on the same images."""
        found = {
            m: np.stack([self.right(f"{m}-{s}", self.of_method(m, s)[0], "test") for s in range(self.recipe.seeds)])
            for m in METHODS
        }
        rows = []
        for method in METHODS[1:]:
            for e in range(found[method].shape[2]):
                mean, half = difference(found[method][:, :, e], found["joint"][:, :, e])
                rows.append({"method": method, "less": "joint", "exit": e + 1, "difference": mean, "half": half})
        return pd.DataFrame(rows)

    def phases(self) -> pd.DataFrame:
        """Validation accuracy of the final exit after each phase of the trainings that have several."""
        rows = []
        for method in ("two-stage", "hybrid"):
            for seed in range(self.recipe.seeds):
                net, epochs = self.of_method(method, seed)
                for phase, part in epochs.groupby("phase", sort=False):
                    final = part[f"accuracy_{net.exits}"].iloc[-1]
                    rows.append({"method": method, "seed": seed, "phase": phase, "final_accuracy": final})
        return pd.DataFrame(rows)

    def structures(self) -> pd.DataFrame:
        """Every branch structure at every place of one frozen backbone, with its cost."""
        plain = self.right("two-stage-0", self.of_method("two-stage", 0)[0], "test")
        rows = []
        for structure in STRUCTURES:
            net = self.of_structure(structure)
            right, costs = self.right(f"structure-{structure}", net, "test"), net.costs()
            for e in range(net.exits - 1):
                rows.append(
                    {
                        "structure": structure,
                        "exit": e + 1,
                        "macs": costs.branch_macs[e],
                        "share_of_backbone": costs.branch_macs[e] / sum(costs.stage_macs),
                        "weights": sum(p.numel() for p in net.branches[e].parameters()),
                        "accuracy": right[:, e].mean(),
                        "backbone_accuracy": plain[:, -1].mean(),
                    }
                )
        return pd.DataFrame(rows)

    def of_structure(self, structure: str) -> "EarlyExitNet":
        """Side branches of a structure on the frozen backbone of the two-stage training."""
        frozen = self.of_method("two-stage", 0)[0]
        net = self.network(frozen.architecture.after, structure, 0).to(frozen.mean.device)
        net.stages.load_state_dict(frozen.stages.state_dict())
        net.branches[-1].load_state_dict(frozen.branches[-1].state_dict())
        self.train(f"structure-{structure}", net, "expert")
        return net

    def structure_pairs(self) -> pd.DataFrame:
        """What one structure classifies better than another at each exit, on the same images."""
        found = {s: self.right(f"structure-{s}", self.of_structure(s), "test") for s in STRUCTURES}
        rows = []
        for one, other in PAIRS:
            for e in range(found[one].shape[1] - 1):
                mean, half = difference(found[one][None, :, e], found[other][None, :, e])
                rows.append({"structure": one, "less": other, "exit": e + 1, "difference": mean, "half": half})
        return pd.DataFrame(rows)

    def gates(self) -> pd.DataFrame:
        """How many validation images a gate at each place stops, and which places are kept."""
        import torch
        from torch.nn.functional import cross_entropy

        from eex.experiments.papers.gating import fit_gates, pooled_features, stop_shares

        net = self.network(self.places()["all"], self.recipe.structure, 0)
        self.train("all-places", net, "joint")
        said, labels = self.logits("all-places", net, "validation"), self.labels("validation")
        losses = torch.stack([cross_entropy(out, labels, reduction="none") for out in said], dim=1)
        costs = net.costs()
        # what stopping there would cost without the branches on the way, which are candidates only
        cost = np.cumsum(costs.stage_macs) + np.array(costs.branch_macs)
        pooled = pooled_features(net, self.images.validation[0])
        gates = fit_gates(pooled, losses, torch.tensor(cost / costs.whole).float(), self.recipe.price)
        with torch.no_grad():
            share = stop_shares(gates([x.clone() for x in pooled])).mean(dim=0).numpy()
        kept = sorted(np.argsort(-share[:-1], kind="stable")[:UNIFORM])
        return pd.DataFrame(
            {
                "after": [*self.places()["all"], len(cost) - 1],
                "cost": cost / costs.whole,
                "stopped": share,
                "kept": [*(i in kept for i in range(len(cost) - 1)), False],
            }
        )

    def placements(self, gates: pd.DataFrame) -> pd.DataFrame:
        """Accuracy against multiply-adds under the confidence rule, for each placement."""
        places = self.places()
        learned = [int(a) for a in gates.loc[gates["kept"], "after"]]
        tables = []
        for placement, after in (("uniform", places["uniform"]), ("by cost", places["by cost"]), ("gates", learned)):
            net = self.network(after, self.recipe.structure, 0)
            name = "joint-0" if after == places["uniform"] else f"placed-{_listed(after).replace(' ', '-')}"
            self.train(name, net, "joint")
            curve = trade(self.confidence(name, net), self.right(name, net, "test"), self.macs(net))
            tables.append(curve.assign(placement=placement, after=_listed(after)))
        return pd.concat(tables)

    def macs(self, net: "EarlyExitNet", extra: int = 0) -> list[int]:
        """Multiply-adds of an image that leaves at each exit; `extra` for each side branch that it visits."""
        costs, last = net.costs(), net.exits - 1
        return [costs.of_exit(e) + extra * min(e + 1, last) for e in range(net.exits)]

    def confidence(
        self,
        name: str,
        net: "EarlyExitNet",
        split: str = "test",
        condition: tuple[str, float] = (PRISTINE, 0),
        calibrated_on: Sequence[tuple[str, float]] = ((PRISTINE, 0),),
    ) -> Floats:
        """Calibrated confidence of each side branch, (N, exits - 1)."""
        from eex.experiments.papers.paper import confidences

        temperatures = self.calibrated(name, net, calibrated_on)
        return confidences(self.logits(name, net, split, condition), temperatures)[0][:, :-1]

    def overthinking(self) -> pd.DataFrame:
        """Right early and wrong late, for each method on pristine images and for joint training on distorted ones.

        Beside it, what leaving early makes of it at the threshold that is most accurate on pristine validation images
        and at the cheapest (`cheapest`): `rescued` and `harmed` images are those that only the early exit, and only the
        final exit, answers right. `surest`: every exit is visited, and the most confident one answers.
        """
        from eex.experiments.papers.paper import confidences

        cases: list[tuple[Method, tuple[str, float]]] = [(m, (PRISTINE, 0.0)) for m in METHODS]
        cases += [("joint", c) for c in self.recipe.conditions if c[0] != PRISTINE]
        rows = []
        for method, condition in cases:
            for seed in range(self.recipe.seeds):
                name, net = f"{method}-{seed}", self.of_method(method, seed)[0]
                curve = trade(
                    self.confidence(name, net, "validation"), self.right(name, net, "validation"), self.macs(net)
                )
                most = curve.sort_values(["accuracy", "macs"], ascending=[False, True])["threshold"].iloc[0]
                right = self.right(name, net, "test", condition)
                told, said = confidences(
                    self.logits(name, net, "test", condition), self.calibrated(name, net, [(PRISTINE, 0)])
                )
                image = np.arange(len(right))
                surest = said[image, told.argmax(axis=1)] == self.labels("test").numpy()
                for rule, threshold in (("most accurate", most), ("cheapest", cheapest(curve))):
                    exit = leaves(told[:, :-1], threshold)
                    early = right[image, exit]
                    mean, half = difference(early[None], right[None, :, -1])
                    rows.append(
                        {
                            "method": method,
                            "condition": _named(condition),
                            "seed": seed,
                            "rule": rule,
                            **overthought(right),
                            "surest": surest.mean(),
                            "threshold": threshold,
                            "left_early": (exit < right.shape[1] - 1).mean(),
                            "early_accuracy": early.mean(),
                            "rescued": (early & ~right[:, -1]).mean(),
                            "harmed": (~early & right[:, -1]).mean(),
                            "gain": mean,
                            "half": half,
                        }
                    )
        return pd.DataFrame(rows)

    def rules(self) -> pd.DataFrame:
        """Accuracy against multiply-adds: the confidence rule, and controllers that learned when an exit is right."""
        import torch

        from eex.experiments.papers.controller import fit_controller

        net, conditions = self.joint(), self.recipe.conditions
        held = torch.cat([self.logits("joint-0", net, "validation", c)[:-1] for c in conditions], dim=1)
        labels = self.labels("validation").repeat(len(conditions))
        controllers = {
            "controller, logistic": fit_controller(held, labels, hidden=0, seed=self.work.seed),
            "controller, 32 hidden": fit_controller(held, labels, hidden=32, seed=self.work.seed),
        }
        tables = []
        for condition in conditions:
            right = self.right("joint-0", net, "test", condition)
            said = self.logits("joint-0", net, "test", condition)[:-1]
            plain = self.confidence("joint-0", net, "test", condition, conditions)
            scores = {"confidence": (plain, 0)}
            scores |= {n: (c(said).T.double().numpy(), c.macs) for n, c in controllers.items()}
            for rule, (score, extra) in scores.items():
                curve = trade(score, right, self.macs(net, extra))
                tables.append(curve.assign(rule=rule, condition=_named(condition), auc=_auc(score, right[:, :-1])))
        return pd.concat(tables)

    def thresholds(self) -> pd.DataFrame:
        """What one threshold, chosen on pristine validation images, does to images of every condition."""
        net = self.joint()
        curve = trade(
            self.confidence("joint-0", net, "validation"), self.right("joint-0", net, "validation"), self.macs(net)
        )
        threshold = cheapest(curve)
        rows = []
        for condition in self.recipe.conditions:
            score = self.confidence("joint-0", net, "test", condition)
            right, exit = self.right("joint-0", net, "test", condition), leaves(score, threshold)
            answered, gone = right[np.arange(len(exit)), exit], exit < score.shape[1]
            rows.append(
                {
                    "condition": _named(condition),
                    "threshold": threshold,
                    "left_early": gone.mean(),
                    "accuracy_early": answered[gone].mean() if gone.any() else np.nan,
                    "confidence_early": score[np.arange(len(exit)), np.minimum(exit, score.shape[1] - 1)][gone].mean(),
                    "accuracy": answered.mean(),
                    "whole": right[:, -1].mean(),
                    "macs": np.array(self.macs(net))[exit].mean(),
                }
            )
        return pd.DataFrame(rows)

    def energy(self) -> pd.DataFrame:
        """Passes over the same test images: the network without its side branches, and leaving early."""
        import torch

        from eex.experiments.bench.engine import plain, timed
        from eex.experiments.papers.energy import find_meter
        from eex.experiments.papers.live import play
        from eex.models.fast import optimised

        net = self.joint()
        for temperatures, t in zip(net.temperature, self.calibrated("joint-0", net, [(PRISTINE, 0.0)]), strict=True):
            temperatures[PRISTINE] = t
        curve = trade(
            self.confidence("joint-0", net, "validation"), self.right("joint-0", net, "validation"), self.macs(net)
        )
        threshold, costs, fast = min(cheapest(curve), 1.0), net.costs(), optimised(net)
        order = np.random.default_rng(0).permutation(len(self.images.test[0]))[: self.recipe.timed]
        images, labels = self.images.test[0][order].float() / 255, self.images.test[1][order]
        whole = self.right("joint-0", net, "test")[order, -1].mean()
        bytes_so_far = np.cumsum(costs.feature_bytes)
        meter, told = find_meter()
        fixed = FirstSure(p_tar=threshold, exits=net.edge_exits)
        rows = []
        with torch.inference_mode():
            for repeat in range(self.recipe.repeats + 1):
                before = meter.read()
                seconds = timed(lambda: plain(fast, images.to(fast.mean.device), 32), fast.mean.device)
                between = meter.read()
                found, took = play(fast, fixed, images, labels)
                after = meter.read()
                exit = found.exit
                both = (
                    ("without side branches", seconds, meter.joules(before, between), whole, costs.whole, -1),
                    (
                        f"early exit at {threshold:.3f}",
                        took,
                        meter.joules(between, after),
                        (found.answer == found.label).mean(),
                        np.array([costs.of_exit(e) for e in range(net.exits)])[exit].mean(),
                        exit,
                    ),
                )
                for name, s, joules, accuracy, macs, where in both:
                    rows.append(
                        {
                            "pass": name,
                            "repeat": repeat,
                            "us_a_frame": 1e6 * s / len(labels),
                            "uj_a_frame": 1e6 * joules / len(labels),
                            "accuracy": accuracy,
                            "macs": macs,
                            "feature_bytes": bytes_so_far[where].mean(),
                            "weight_bytes": 4 * sum(p.numel() for p in net.parameters()),
                            "side_branch_bytes": 4 * sum(p.numel() for b in net.branches[:-1] for p in b.parameters()),
                            "meter": told,
                        }
                    )
        return pd.DataFrame(rows[2:])  # the first pass of each warms up


def _listed(after: Sequence[int]) -> str:
    return " ".join(str(a) for a in after)


def _named(condition: tuple[str, float]) -> str:
    return condition[0] if condition[0] == PRISTINE else f"{condition[0].removeprefix('gaussian_')} {condition[1]:g}"


def _auc(score: Floats, right: Bools) -> float:
    """Probability that a right answer, of any exit and image, has a higher score than a wrong one."""
    from scipy.stats import rankdata

    ranks, good = rankdata(score.ravel()), right.ravel()
    n, m = int(good.sum()), int((~good).sum())
    return float((ranks[good].sum() - n * (n + 1) / 2) / (n * m)) if n and m else float("nan")


# ---- what is shown


def _draw(
    work: Work,
    methods: pd.DataFrame,
    structures: pd.DataFrame,
    placements: pd.DataFrame,
    overthinking: pd.DataFrame,
    rules: pd.DataFrame,
) -> None:
    exits = methods.groupby(["method", "exit"], sort=False, as_index=False).mean(numeric_only=True)
    exits["exit"] = "exit " + exits["exit"].astype(str)
    work.draw(
        "methods",
        paper_figure(exits, "exit", "accuracy", "method", title="Accuracy of each exit by training method", xlabel=" "),
    )
    harm = exits[exits["exit"] < exits["exit"].max()]
    work.draw(
        "overthinking",
        paper_figure(
            harm,
            "exit",
            "right_here_wrong_at_end",
            "method",
            title="Overthinking: images that an exit answers right and the final exit wrong",
            xlabel=" ",
            ylabel="share of the test images",
        ),
    )
    shown = structures.assign(exit="exit " + structures["exit"].astype(str), kilo=structures["macs"] / 1e3)
    work.draw(
        "structures",
        paper_figure(
            shown,
            "kilo",
            "accuracy",
            "structure",
            "exit",
            title="Branch structures on one frozen backbone",
            xlabel="thousand multiply-adds of the branch",
        ),
    )
    million = placements.assign(million=placements["macs"] / 1e6)
    work.draw(
        "placements",
        paper_figure(
            million[["million", "accuracy", "placement"]],
            "million",
            "accuracy",
            "placement",
            title="Three side branches, placed by three rules: accuracy against work",
            xlabel="million multiply-adds a frame",
        ),
    )
    work.draw(
        "rules",
        paper_figure(
            rules.assign(million=rules["macs"] / 1e6),
            "million",
            "accuracy",
            "rule",
            "condition",
            title="Exit rules: calibrated confidence and learned controllers",
            xlabel="million multiply-adds a frame",
        ),
    )
    work.draw(
        "rules-gain",
        paper_figure(
            _gains(rules),
            "million",
            "gain",
            "rule",
            "condition",
            title="Accuracy that a learned controller wins over calibrated confidence for the same work",
            xlabel="million multiply-adds a frame",
            ylabel="points",
            level=0,
        ),
    )


def _gains(rules: pd.DataFrame) -> pd.DataFrame:
    """Points of accuracy of each controller less the confidence rule's, where both spend the same."""
    tables = []
    for _, part in rules.groupby("condition", sort=False):
        plain = part[part["rule"] == "confidence"]
        for _, curve in part[part["rule"] != "confidence"].groupby("rule", sort=False):
            gain = [100 * (row.accuracy - accuracy_at(plain, row.macs)) for row in curve.itertuples()]
            tables.append(curve.assign(gain=gain, million=curve["macs"] / 1e6))
    return pd.concat(tables)


NONE = "—"


def _points(share: float, half: float | None = None) -> str:
    return f"{100 * share:+.1f}" + ("" if half is None else f" ± {100 * half:.1f}") + " points"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _of_methods(
    methods: pd.DataFrame, differences: pd.DataFrame, phases: pd.DataFrame, gradients: pd.DataFrame
) -> list[Claim]:
    last = int(methods["exit"].max())
    mean = methods.groupby(["method", "exit"])[["accuracy", "train_accuracy", "as_final", "seconds"]].mean()
    less = differences.set_index(["method", "exit"])[["difference", "half"]]
    gap = mean["train_accuracy"] - mean["accuracy"]
    alone, joint = ("two-stage", last), ("joint", last)
    apart, half = less.loc[alone, "difference"], less.loc[alone, "half"]
    claims = [
        Claim(
            "joint training: side branches are regularisers, mitigating overfitting",
            NONE,
            f"final exit, training less test accuracy: {_points(gap[joint])} joint, {_points(gap[alone])} backbone "
            f"alone; test accuracy, joint less alone: {_points(-apart, half)}",
            bool(gap[joint] < gap[alone] and -apart + half >= 0),
            "a small network and few epochs leave little overfitting to mitigate",
        )
    ]
    norm = gradients.set_index(["loss", "stage"])["norm"]
    first = norm["all exits'", 1] / norm["the final exit's", 1]
    top = int(gradients["stage"].max())
    deep = norm["all exits'", top] / norm["the final exit's", top]
    claims.append(
        Claim(
            "side branches give the early layers a stronger gradient (against vanishing gradients)",
            NONE,
            f"untrained, norm in stage 1: {first:.2f} times that of the final loss alone; in stage {top}: {deep:.2f}",
            bool(first > 1),
            f"{len(norm) // 2} losses are added; with batch norms and shortcuts nothing vanishes here anyway",
        )
    )
    after = phases[phases["method"] == "two-stage"].pivot_table(index="seed", columns="phase", values="final_accuracy")
    one = less.loc[("two-stage", 1)]
    claims.append(
        Claim(
            "two-stage training: branches on the frozen backbone leave its accuracy alone",
            NONE,
            "final exit on validation images, before and after the branches: "
            + ", ".join(f"{_percent(r['backbone'])} and {_percent(r['branches'])}" for _, r in after.iterrows())
            + f"; exit 1 less joint training's: {_points(one['difference'], one['half'])}",
            bool((after["backbone"] == after["branches"]).all()),
        )
    )
    rows = [less.loc[("branch-wise", e)] for e in (1, last)]
    claims.append(
        Claim(
            "branch-wise training: each branch with the layers before it, then frozen",
            NONE,
            f"less joint training: exit 1 {_points(rows[0]['difference'], rows[0]['half'])}, "
            f"final exit {_points(rows[1]['difference'], rows[1]['half'])}",
            bool(rows[1]["difference"] + rows[1]["half"] >= 0),
            "holds: the final exit loses nothing; early layers are made for the first exit and never for the last",
        )
    )
    kd, early = less.loc[("distillation", 1)], range(1, last)
    copies = {m: np.mean([mean["as_final"][m, e] for e in early]) for m in ("joint", "distillation")}
    claims += [
        Claim(
            "distillation: side exits mimic the final exit",
            NONE,
            "side exits agree with the final one: "
            f"{_percent(copies['distillation'])}, joint {_percent(copies['joint'])}",
            bool(copies["distillation"] > copies["joint"]),
        ),
        Claim(
            "distillation helps the early exits",
            NONE,
            "less joint training: "
            + ", ".join(f"exit {e} {_points(*less.loc[('distillation', e)])}" for e in range(1, last + 1)),
            bool(kd["difference"] - kd["half"] > 0),
            "holds: exit 1 gains more than chance; the teacher is itself still being trained, and the late exits pay",
        ),
    ]
    hybrid = [less.loc[("hybrid", e)] for e in range(1, last + 1)]
    claims.append(
        Claim(
            "hybrid training (joint, then the branches alone) complements the single methods",
            NONE,
            "less joint training: "
            + ", ".join(f"exit {e + 1} {_points(h['difference'], h['half'])}" for e, h in enumerate(hybrid[:-1]))
            + f", final exit {_points(hybrid[-1]['difference'])}",
            bool(np.mean([h["difference"] for h in hybrid[:-1]]) - np.mean([h["half"] for h in hybrid[:-1]]) > 0),
            "holds: the side exits gain more than chance; they are also trained for twice the epochs",
        )
    )
    return claims


def _of_structures(structures: pd.DataFrame, pairs: pd.DataFrame) -> list[Claim]:
    less = pairs.set_index(["structure", "less", "exit"])
    at = structures[structures["exit"] == 1].set_index("structure")

    def told(name: str) -> str:
        row = at.loc[name]
        size = f"{row['macs'] / 1e3:,.0f} k multiply-adds, {row['weights']:,.0f} weights"
        return f"{name} {_percent(row['accuracy'])} ({size})"

    def compare(text: str, better: str, than: str, why: str = "") -> Claim:
        gain, half = less.loc[(better, than, 1), "difference"], less.loc[(better, than, 1), "half"]
        ours = f"exit 1: {told(better)}, {told(than)}: {_points(gain, half)}"
        return Claim(text, NONE, ours, bool(gain > half), why)

    cheap, whole = at.loc["pool_fc"], at.loc["fc"]
    side = structures.groupby("structure")["accuracy"].mean()
    order = side.sort_values(ascending=False)
    claims = [
        compare("several fc layers add capacity to one (both behind pooling)", "multi_fc", "pool_fc"),
        compare("a convolution before the fc layer extracts more features", "conv_fc", "fc"),
        compare(
            "several convolutions are for more refined tasks",
            "multi_conv",
            "conv_fc",
            f"its cost is {_percent(at.loc['multi_conv', 'share_of_backbone'])} of the whole backbone's",
        ),
        Claim(
            "pooling before the fc layer reduces dimensions and cost",
            NONE,
            f"exit 1: {told('pool_fc')}, {told('fc')}",
            bool(cheap["macs"] < whole["macs"] and cheap["weights"] < whole["weights"]),
            "" if cheap["accuracy"] >= whole["accuracy"] else "it costs accuracy, too",
        ),
        Claim(
            "convolution, pooling and fc together are a balanced hybrid",
            NONE,
            f"exit 1: {told('conv_pool_fc')}, {told('fc')}, {told('multi_conv')}",
            bool(
                at.loc["fc", "accuracy"] < at.loc["conv_pool_fc", "accuracy"]
                and at.loc["conv_pool_fc", "macs"] < at.loc["multi_conv", "macs"]
            ),
            "holds: more accurate than fc and cheaper than several convolutions",
        ),
        Claim(
            "the more elaborate the branch, the better it classifies early",
            NONE,
            "mean over the side exits: " + ", ".join(f"{n} {_percent(a)}" for n, a in order.items()),
            bool(min(side[n] for n in ("conv_fc", "conv_pool_fc", "multi_conv")) > max(side["fc"], side["pool_fc"])),
            "holds: every branch with a convolution is above every one without that has a single layer",
        ),
    ]
    return claims


def _of_placements(placements: pd.DataFrame, gates: pd.DataFrame) -> list[Claim]:
    curves = {str(name): part for name, part in placements.groupby("placement", sort=False)}
    finals = {n: c.loc[c["threshold"].idxmax(), "accuracy"] for n, c in curves.items()}
    target = min(finals.values()) - 0.01
    cost = {n: cost_at(c, target) for n, c in curves.items()}
    told = ", ".join(
        f"{n} (after blocks {curves[n]['after'].iloc[0]}) {c / 1e6:.2f} M, final {_percent(finals[n])}"
        for n, c in cost.items()
    )
    told = f"multiply-adds a frame for {_percent(target)}: {told}"
    stopped = gates[gates["kept"]]["stopped"].sum()
    return [
        Claim(
            "placement by cost targets the greatest computational saving",
            NONE,
            told,
            bool(cost["by cost"] < cost["uniform"]),
            "one training each, and the networks' final exits differ, which shifts what a given accuracy costs",
        ),
        Claim(
            "gating learns good places",
            NONE,
            f"{told}; the places kept stop {_percent(stopped)} of the validation images",
            bool(cost["gates"] <= min(cost["uniform"], cost["by cost"])),
            "one training each; gates look at images one by one and at no other place, so that places close to each "
            "other are kept",
        ),
    ]


def _of_overthinking(overthinking: pd.DataFrame) -> list[Claim]:
    keys = ["rule", "method", "condition"]
    mean = overthinking.groupby(keys, sort=False).mean(numeric_only=True)
    best, cheap = mean.loc[("most accurate", "joint", PRISTINE)], mean.loc[("cheapest", "joint", PRISTINE)]
    plain = mean.loc["most accurate"].xs(PRISTINE, level="condition")
    hard = mean.loc["most accurate"].xs("joint", level="method").drop(PRISTINE)
    room = best["oracle"] - best["final"]

    def told(row: pd.Series) -> str:
        return (
            f"{_percent(row['left_early'])} leave early, {100 * row['rescued']:.2f} % are rescued, "
            f"{100 * row['harmed']:.2f} % harmed, accuracy {_points(row['gain'], row['half'])}"
        )

    return [
        Claim(
            "overthinking: a correct intermediate answer becomes wrong with more processing",
            NONE,
            "right early and wrong at the end: "
            + ", ".join(f"{m} {_percent(r['overthought'])}" for m, r in plain.iterrows())
            + f" of pristine images; joint: final {_percent(best['final'])}, "
            + f"oracle over exits {_percent(best['oracle'])}; "
            + ", ".join(f"{c} {_percent(r['overthought'])}" for c, r in hard.iterrows()),
            bool(best["overthought"] > 0.01),
            "holds: more than one image in a hundred",
        ),
        Claim(
            "leaving early prevents overthinking",
            NONE,
            f"joint, at the threshold most accurate on validation images: {told(best)}; "
            f"at the cheapest that loses {100 * LOST:g} points there: {told(cheap)}; "
            f"an oracle would win {_points(room)}, answering with the surest of all exits "
            f"{_points(best['surest'] - best['final'])}",
            bool(best["gain"] > best["half"]),
            "holds: more accurate than the final exit, beyond chance; confidence hardly tells what depth would spoil "
            "from what it mends",
        ),
    ]


def _of_rules(rules: pd.DataFrame, thresholds: pd.DataFrame) -> list[Claim]:
    conditions = list(dict.fromkeys(rules["condition"]))
    middle = 0.5 * rules["macs"].max() + 0.5 * rules["macs"].min()
    found = {
        (str(c), str(r)): (accuracy_at(part, middle), part["auc"].iloc[0])
        for (c, r), part in rules.groupby(["condition", "rule"], sort=False)
    }
    names = [n for n in dict.fromkeys(rules["rule"]) if n != "confidence"]
    best = max(names, key=lambda n: np.mean([found[c, n][0] for c in conditions]))
    gains = [found[c, best][0] - found[c, "confidence"][0] for c in conditions]
    plain, *hard = [row for _, row in thresholds.iterrows()]
    return [
        Claim(
            "a learned controller decides better than a fixed rule on confidence",
            NONE,
            f"accuracy for {middle / 1e6:.2f} M multiply-adds, {best} less confidence: "
            + ", ".join(f"{c} {_points(g)}" for c, g in zip(conditions, gains, strict=True))
            + "; right told from wrong (AUC): "
            + ", ".join(f"{c} {found[c, best][1]:.3f} against {found[c, 'confidence'][1]:.3f}" for c in conditions),
            bool(np.mean(gains) > 0.002 and min(gains) > -0.002),
            "holds: 0.2 points more on average and nowhere 0.2 less; nearly all that an exit knows of an image is in "
            "its calibrated confidence",
        ),
        Claim(
            "distortion degrades confidence, and a fixed threshold then fails to end inference early",
            NONE,
            f"threshold {plain['threshold']:.2f}: {_percent(plain['left_early'])} of pristine images leave early, "
            + ", ".join(f"{_percent(r['left_early'])} of {r['condition']}" for r in hard),
            bool(all(r["left_early"] < plain["left_early"] for r in hard)),
        ),
        Claim(
            "static policies are rigid and fail under variable input",
            NONE,
            "of what leaves early, right (and confidence): "
            + ", ".join(
                f"{r['condition']} {_percent(r['accuracy_early'])} ({_percent(r['confidence_early'])})"
                for r in (plain, *hard)
            ),
            bool(all(r["accuracy_early"] < plain["accuracy_early"] - 0.05 for r in hard)),
            "holds: at the threshold for pristine images, early answers lose more than 5 points on distorted ones",
        ),
    ]


def _of_energy(energy: pd.DataFrame, methods: pd.DataFrame) -> list[Claim]:
    mid = energy.groupby("pass", sort=False).median(numeric_only=True)
    whole, early = mid.iloc[0], mid.iloc[1]
    extra = methods["macs"].max() / whole["macs"] - 1
    work, clock = whole["macs"] / early["macs"], whole["us_a_frame"] / early["us_a_frame"]
    measured = bool(energy["uj_a_frame"].notna().all())
    told = (
        f"{whole['uj_a_frame']:.0f} and {early['uj_a_frame']:.0f} µJ a frame ({energy['meter'].iloc[0]})"
        if measured
        else f"{energy['meter'].iloc[0]}; instead, a frame: {whole['macs'] / 1e6:.2f} and {early['macs'] / 1e6:.2f} M "
        f"multiply-adds, {whole['feature_bytes'] / 1e3:.0f} and {early['feature_bytes'] / 1e3:.0f} kB of features; "
        f"side branches add {early['side_branch_bytes'] / 1e3:.0f} kB to "
        f"{(early['weight_bytes'] - early['side_branch_bytes']) / 1e3:.0f} kB of weights"
    )
    saved = early["uj_a_frame"] < whole["uj_a_frame"] if measured else work > 1 and clock > 1
    return [
        Claim(
            "leaving early accelerates inference, at little accuracy",
            "2 to 6 times (BranchyNet: LeNet, AlexNet, ResNet on CPUs and GPUs)",
            f"{work:.2f} times fewer multiply-adds, {clock:.2f} times the frames a second "
            f"(accuracy {_percent(whole['accuracy'])} and {_percent(early['accuracy'])}); "
            f"all side branches cost {_percent(extra)} of the network without them",
            bool(clock >= 2),
            "the network is tiny: its side branches weigh much, and so does what a frame costs besides convolutions; "
            "BranchyNet accelerates networks with far more work behind the first exit",
        ),
        Claim(
            "leaving early saves energy",
            NONE,
            told,
            bool(saved),
            ""
            if measured
            else "holds: fewer multiply-adds and less time, which stand for energy where none is counted",
        ),
    ]
