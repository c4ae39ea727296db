"""Local exits over edge and cloud: eight models with one exit each against one model with eight (Lee et al.)."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from eex.experiments.papers.nodes import DROPPED, EDGE, FALLBACK, Nodes, Resources
from eex.experiments.papers.paper import Claim, Images, Work, seeds_interval
from eex.experiments.plotting import paper_figure
from eex.policies.core.base import Bools, Floats, Ints

if TYPE_CHECKING:
    from torch import Tensor

    from eex.models.network import EarlyExitNet

TITLE = "Lee, Hong, Hong, Kim: Performance analysis of local exit for distributed DNNs over cloud and edge (2020)"
EXITS = 8
T = 0.3
"""The threshold of the entropy that the paper's figures are for."""
THRESHOLDS = (0.1, 0.3, 0.5, 0.8)
DROP_ABOVE = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

PUBLISHED = pd.DataFrame(
    [
        ("SEM", 1, "edge_accuracy", 0.8720),
        ("SEM", 1, "cloud_accuracy", 0.8851),
        ("SEM", 2, "cloud_accuracy", 0.8613),
        ("SEM", 3, "local", 0.5383),
        ("SEM", 3, "accuracy", 0.8604),
        ("SEM", 8, "local", 0.9139),
        ("SEM", 8, "edge_accuracy", 0.9524),
        ("SEM", 8, "cloud_accuracy", 0.5807),
        ("SEM", 8, "accuracy", 0.9204),
        ("MEM", 2, "accuracy", 0.8431),
        ("MEM", 8, "accuracy", 0.8610),
    ],
    columns=["model", "exit", "quantity", "value"],
)
"""At T = 0.3, from the text; the figures themselves are not in it."""
PUBLISHED_FINAL = pd.DataFrame(
    [
        ("SEM", 2, "edge", 0.7265),
        ("SEM", 3, "edge", 0.7776),
        ("SEM", 6, "edge", 0.8892),
        ("SEM", 7, "edge", 0.9098),
        ("SEM", 7, "cloud", 0.9210),
        ("MEM", 2, "edge", 0.6459),
        ("MEM", 4, "edge", 0.7606),
        *(("MEM", k, "cloud", 0.8858) for k in range(1, EXITS + 1)),
    ],
    columns=["model", "exit", "quantity", "value"],
)

NAMES = {
    "local": "left locally",
    "edge_accuracy": "edge accuracy",
    "cloud_accuracy": "cloud accuracy",
    "accuracy": "overall accuracy",
}
NOTES = """
- The table with the paper's widths and training parameters is not in the text. The network here has the usual widths
  (64, 64, 128, 128, 256, 256, 512, 512, 512, halving the map where they double), SGD with momentum 0.9 and a one-cycle
  rate. It has nine blocks: an exit behind each of the first eight, and behind exit 8 "just one more convolutional
  block", as the text says, before the cloud's exit. The reduced recipe is a quarter as wide, starts with a
  convolution of stride 2, and trains for few epochs; one seed.
- 5,000 training images (2,000 in the reduced recipe) are held out; accuracy over epochs (Fig. 9) is on them. All else
  is on the 8,000 test images that we have, so shares stand where the paper counts frames of 10,000.
- Test, edge and cloud node are three processes on one machine, joined by ZeroMQ on the loopback, encrypted. The edge
  node is the project's engine, the cloud node its worker, which answers the edge node, which tells the test node: the
  paper's cloud tells the test node itself. A batch is sent once the last one is answered. Edge and cloud latency run
  from the sending of a frame's batch until its class is back; overall latency is the time from the first sending to
  the last class, a frame.
- The paper does not say on what machine its containers ran: compare shapes, not milliseconds. Edge and cloud node run
  on processors, also where training ran on a GPU.
- Future work, done here: weights of the losses that rise or fall with depth (their mean is 1); an edge node on one
  processor with limited memory, and one that gets a quarter of a processor besides; dropping frames whose entropy is
  above a threshold (`eex-stream --drop-below` on any stream).
"""


@dataclass(frozen=True)
class Recipe:
    """How much is trained and measured.

    Parameters
    ----------
    width, stride
        Of the network (`eex.models.cnn`).
    epochs, lr, batch
        Of each of the trainings (SGD, one cycle).
    validation
        Images held out.
    weightings
        Of the multi-exit model's losses, names in `WEIGHTINGS`; the first is the paper's.
    thresholds
        Of the entropy, that latencies are measured at.
    images, rounds
        Test images that the test node sends each time, and how many times, in turn.
    drop_above
        Of the entropy, for latencies with dropping.
    edges
        What the edge node may use; the first is the paper's, for the others latencies are measured at T = 0.3 alone.
    """

    width: int
    stride: int
    epochs: int
    lr: float = 0.1
    batch: int = 128
    validation: int = 5000
    weightings: tuple[str, ...] = ("equal", "rising", "falling")
    thresholds: tuple[float, ...] = THRESHOLDS
    images: int = 960
    rounds: int = 3
    drop_above: float = 0.6
    edges: tuple[Resources, ...] = (
        Resources("all cores"),
        Resources("one core, 384 MB", threads=1, memory_mb=384),
        Resources("a quarter of a core, 384 MB", threads=1, memory_mb=384, share=0.25),
    )


RECIPES = {
    "quick": Recipe(
        8,
        2,
        2,
        batch=64,
        validation=200,
        weightings=("equal", "rising"),
        thresholds=(T, 0.8),
        images=64,
        rounds=1,
        edges=(Resources("all cores"), Resources("one core, 384 MB", threads=1, memory_mb=384)),
    ),
    "reduced": Recipe(16, 2, 5, validation=2000),
    "paper": Recipe(
        64,
        1,
        100,
        edges=(
            Resources("all cores"),
            Resources("one core, 1 GB", threads=1, memory_mb=1024),
            Resources("a quarter of a core, 1 GB", threads=1, memory_mb=1024, share=0.25),
        ),
    ),
}

WEIGHTINGS: dict[str, Callable[[int], tuple[float, ...]]] = {
    "equal": lambda exits: (1.0,) * exits,
    "rising": lambda exits: tuple(2 * (k + 1) / (exits + 1) for k in range(exits)),
    "falling": lambda exits: tuple(2 * (exits - k) / (exits + 1) for k in range(exits)),
}
"""Weights of the losses of so many exits, the cloud's included, by name; their mean is 1."""


@dataclass(frozen=True)
class Case:
    """A model with the one local exit that is in use, and what it says of every test image.

    Attributes
    ----------
    model, weighting, exit
        "SEM" or "MEM", a name in `WEIGHTINGS`, and the block behind which the exit stands, from 1.
    trained
        Name of the trained network.
    entropy
        At the local exit, (N,).
    local, cloud
        Classes by local and cloud exit, (N,).
    """

    model: str
    weighting: str
    exit: int
    trained: str
    entropy: Floats
    local: Ints
    cloud: Ints

    @property
    def key(self) -> dict[str, object]:
        """What its rows begin with."""
        return {"model": self.model, "weighting": self.weighting, "exit": self.exit}


def run(work: Work, recipe: Recipe) -> list[Claim]:
    """Train eight models with one exit and one with eight, and see what they do at each exit and threshold."""
    images = work.images(recipe.validation)
    nets: dict[str, EarlyExitNet] = {}
    histories: dict[str, pd.DataFrame] = {}
    cases: list[Case] = []
    for name, model, weighting, exits in plan(recipe):
        nets[name], histories[name] = _train(work, recipe, name, images, weighting, exits)
        cases += _cases(work, name, model, weighting, exits, nets[name], images)
    label = images.test[1].numpy()
    epochs = work.rows("epochs", lambda: _epochs(recipe, histories))
    accuracy = work.rows("accuracy", lambda: _accuracy(cases, label))
    final = work.rows("final", lambda: _final(cases, label))
    dropped = work.rows("dropped", lambda: _dropped(cases, label))
    latency = work.rows("latency", lambda: _latency(work, recipe, nets, cases, images))
    _draw(work, epochs, accuracy, final, dropped, latency)
    return _claims(recipe, accuracy, final, dropped, latency)


# ---- networks


def plan(recipe: Recipe) -> list[tuple[str, str, str, tuple[int, ...]]]:
    """What is trained: name, model, weighting of its losses, and its local exits."""
    single = [(f"sem-{k}", "SEM", "equal", (k,)) for k in range(1, EXITS + 1)]
    multi = [(f"mem-{w}", "MEM", w, tuple(range(1, EXITS + 1))) for w in recipe.weightings]
    return [*single, *multi]


def network(classes: Sequence[str], exits: Sequence[int], width: int = 64, stride: int = 1) -> "EarlyExitNet":
    """The nine-block network with local exits behind some of its first eight blocks, and the cloud's behind the last.

    Each exit averages its map and has one linear layer; confidence is 1 less the normalised entropy.
    """
    from eex.models.network import make

    net = make("cnn", classes, after=[k - 1 for k in exits], structure="pool_fc", width=width, stride=stride)
    net.architecture = dataclasses.replace(net.architecture, confidence="entropy")
    return net


def one_exit(net: "EarlyExitNet", exit: int) -> "EarlyExitNet":
    """A network with one of its local exits alone, which shares its weights; exits are counted from 1."""
    from torch import nn

    from eex.models.network import EarlyExitNet

    old = net.architecture
    k = old.after.index(exit - 1)
    blocks = [block for stage in net.stages for block in stage.children()]
    stages = [nn.Sequential(*blocks[:exit]), nn.Sequential(*blocks[exit:])]
    branches = [dict(net.branches[i].named_children()) for i in (k, -1)]
    structures = (old.structures[k], old.structures[-1])
    alone = EarlyExitNet(stages, branches, dataclasses.replace(old, after=(exit - 1,), structures=structures))
    return alone.to(net.mean.device).eval()


def _train(
    work: Work, recipe: Recipe, name: str, images: Images, weighting: str, exits: Sequence[int]
) -> "tuple[EarlyExitNet, pd.DataFrame]":
    import torch

    from eex.models.training import Recipe as Training

    torch.manual_seed(work.seed)
    net = network(images.classes, exits, recipe.width, recipe.stride)
    weights = WEIGHTINGS[weighting](net.exits)
    training = Training(
        epochs=recipe.epochs, lr=recipe.lr, batch=recipe.batch, loss_weights=weights, shift=4, seed=work.seed
    )
    return net, work.trained(name, net, images.train, training, validation=images.validation)


def _cases(
    work: Work, name: str, model: str, weighting: str, exits: Sequence[int], net: "EarlyExitNet", images: Images
) -> list[Case]:
    from eex.models.training import all_logits

    entropy, prediction = entropies(work.kept(f"{name}-logits", lambda: all_logits(net, images.test[0])))
    return [
        Case(model, weighting, exit, name, entropy[k], prediction[k], prediction[-1]) for k, exit in enumerate(exits)
    ]


def entropies(logits: "Tensor") -> tuple[Floats, Ints]:
    """Normalised entropy and prediction of every exit, (exits, N) each, from logits (exits, N, K)."""
    import torch

    probabilities = torch.softmax(logits.double(), dim=2)
    entropy = torch.special.entr(probabilities).sum(dim=2) / np.log(logits.shape[2])
    return entropy.numpy(), probabilities.argmax(dim=2).numpy()


# ---- answers, from what every exit says of every image


def at_threshold(entropy: Floats, local: Bools, cloud: Bools, threshold: float) -> dict[str, float]:
    """What a threshold of the entropy does.

    Parameters
    ----------
    entropy
        At the local exit, (N,).
    local, cloud
        Where local and cloud exit are right, (N,).
    threshold
        A frame with a lower entropy leaves locally.

    Returns
    -------
    dict
        `local`, the share that leaves there; `edge_accuracy` of those; `cloud_accuracy` of the others (NaN where there
        are none); `accuracy` of all.

    Examples
    --------
    >>> right, wrong = True, False
    >>> found = at_threshold(np.array([0.1, 0.2, 0.3, 0.9]), np.array([right, wrong, wrong, wrong]),
    ...     np.array([right, right, right, wrong]), 0.3)
    >>> list(found.values())
    [0.5, 0.5, 0.5, 0.5]
    """
    leaves = entropy < threshold
    return {
        "local": float(leaves.mean()),
        "edge_accuracy": _share(local[leaves]),
        "cloud_accuracy": _share(cloud[~leaves]),
        "accuracy": float(np.where(leaves, local, cloud).mean()),
    }


def with_dropping(entropy: Floats, local: Bools, cloud: Bools, threshold: float, drop_above: float) -> dict[str, float]:
    """What dropping frames above a second threshold of the entropy saves, and costs.

    Returns
    -------
    dict
        `dropped`, their share of all frames; `cloud_saved`, their share of those that went to the cloud;
        `accuracy_answered` of the others; `accuracy_all`, where a dropped frame counts as wrong; `lost`, the share of
        the dropped that the cloud would have answered rightly.
    """
    sent = entropy >= threshold
    drops = sent & (entropy > drop_above)
    right = np.where(sent, cloud, local)
    return {
        "dropped": float(drops.mean()),
        "cloud_saved": _share(drops[sent]),
        "accuracy_answered": _share(right[~drops]),
        "accuracy_all": float((right & ~drops).mean()),
        "lost": _share(cloud[drops]),
    }


def _share(of: Bools) -> float:
    return float(of.mean()) if len(of) else float("nan")


def _accuracy(cases: Sequence[Case], label: Ints) -> pd.DataFrame:
    return pd.DataFrame(
        [
            case.key | {"threshold": t} | at_threshold(case.entropy, case.local == label, case.cloud == label, t)
            for case in cases
            for t in THRESHOLDS
        ]
    )


def _final(cases: Sequence[Case], label: Ints) -> pd.DataFrame:
    """Accuracy of local and cloud exit over all test images."""
    return pd.DataFrame(
        [c.key | {"edge": (c.local == label).mean(), "cloud": (c.cloud == label).mean()} for c in cases]
    )


def _dropped(cases: Sequence[Case], label: Ints) -> pd.DataFrame:
    return pd.DataFrame(
        [
            c.key
            | {"threshold": T, "drop_above": d}
            | with_dropping(c.entropy, c.local == label, c.cloud == label, T, d)
            for c in cases
            if c.weighting == "equal"
            for d in DROP_ABOVE
        ]
    )


def _epochs(recipe: Recipe, histories: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Validation accuracy of each exit after each epoch; the cloud's has exit 9."""
    rows = []
    for name, model, weighting, exits in plan(recipe):
        for row in histories[name].to_dict("records"):
            for k, exit in enumerate((*exits, EXITS + 1)):
                told = {"epoch": row["epoch"] + 1, "accuracy": row[f"accuracy_{k + 1}"]}
                rows.append({"trained": name, "model": model, "weighting": weighting, "exit": exit} | told)
    return pd.DataFrame(rows)


# ---- three processes


def _latency(
    work: Work, recipe: Recipe, nets: "dict[str, EarlyExitNet]", cases: Sequence[Case], images: Images
) -> pd.DataFrame:
    """Latencies and answers of three processes, one row a case, threshold, edge node and round."""
    from eex.models.card import save

    played = [c for c in cases if c.weighting == "equal"]
    folders: list[Path] = []
    for case in played:
        folders.append(work.out / "work" / f"{case.model.lower()}-exit-{case.exit}")
        save(one_exit(nets[case.trained], case.exit), folders[-1], name=folders[-1].name, half=False)
    rng = np.random.default_rng(0)
    chosen = rng.permutation(len(images.test[1]))[: recipe.images]  # they lie class by class
    pixels, label = images.test[0].numpy()[chosen], images.test[1].numpy()[chosen]
    rows = []
    for number, edge in enumerate(recipe.edges):
        settings = [(T, 1.0)]
        if number == 0:
            settings = [*((t, 1.0) for t in recipe.thresholds), (T, recipe.drop_above)]
        with Nodes(folders, edge) as nodes:
            for round in range(recipe.rounds):
                for k in rng.permutation(len(played)):
                    for threshold, drop_above in settings:
                        told = nodes.measure(int(k), threshold, pixels, drop_above=drop_above)
                        entropy = played[k].entropy[chosen]
                        local, cloud = played[k].local[chosen], played[k].cloud[chosen]
                        expected = np.where(entropy < threshold, local, np.where(entropy > drop_above, -1, cloud))
                        here, there = told.where == EDGE, told.where > EDGE
                        there &= told.where != DROPPED
                        answered = told.where != DROPPED
                        rows.append(
                            played[k].key
                            | {
                                "edge": edge.name,
                                "threshold": threshold,
                                "drop_above": drop_above,
                                "round": round,
                                "local": here.mean(),
                                "dropped": 1 - answered.mean(),
                                "fallback": (told.where == FALLBACK).mean(),
                                "edge_ms": _mean(told.latency_ms[here]),
                                "cloud_ms": _mean(told.latency_ms[there]),
                                "mean_ms": _mean(told.latency_ms[answered]),
                                "overall_ms": 1000 * told.seconds / len(label),
                                "accuracy": _share((told.prediction == label)[answered]),
                                "agrees": (told.prediction == expected).mean(),
                                "peak_mb": told.peak_mb,
                            }
                        )
    return pd.DataFrame(rows)


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else float("nan")


# ---- what is shown


def _draw(
    work: Work,
    epochs: pd.DataFrame,
    accuracy: pd.DataFrame,
    final: pd.DataFrame,
    dropped: pd.DataFrame,
    latency: pd.DataFrame,
) -> None:
    equal = accuracy[accuracy["weighting"] == "equal"]
    at = _long(equal[equal["threshold"] == T], list(NAMES)).assign(source="ours")
    both = pd.concat([at, PUBLISHED.assign(source="published")]).replace({"quantity": NAMES})
    work.draw(
        "fig5-6-accuracy",
        paper_figure(
            both,
            "exit",
            "value",
            "quantity",
            "model",
            title=f"Figs. 5 and 6, A and B: what leaves locally, and accuracy, at T = {T:g} (published: points)",
            xlabel="exit behind block",
            ylabel="share of frames, accuracy",
        ),
    )
    free = latency["edge"].iloc[0]
    plain = latency[latency["drop_above"] == 1.0]
    mine = plain[(plain["edge"] == free) & (plain["threshold"] == T)]
    parts = {"edge_ms": "left locally", "cloud_ms": "answered by the cloud", "mean_ms": "all frames"}
    times = _over_rounds(_long(mine, list(parts), ["round"]), ["model", "exit", "quantity"])
    work.draw(
        "fig5-6-latency",
        paper_figure(
            times.replace({"quantity": parts}),
            "exit",
            "value",
            "quantity",
            "model",
            title=f"Figs. 5 and 6, C: from the sending of a frame's batch to its class, at T = {T:g}",
            xlabel="exit behind block",
            ylabel="latency, ms",
        ),
    )
    edges = _over_rounds(
        _long(plain[plain["threshold"] == T], ["overall_ms"], ["edge", "round"]), ["edge", "model", "exit"]
    )
    work.draw(
        "fig5-6-overall-latency",
        paper_figure(
            edges,
            "exit",
            "value",
            "model",
            "edge",
            title=f"Overall latency a frame at T = {T:g}, by what the edge node may use",
            xlabel="exit behind block",
            ylabel="ms a frame",
        ),
    )
    for number, model in ((7, "SEM"), (8, "MEM")):
        shown = _long(equal[equal["model"] == model], list(NAMES), ["threshold"]).replace({"quantity": NAMES})
        work.draw(
            f"fig{number}-thresholds-{model.lower()}",
            paper_figure(
                shown.assign(line=[f"T = {t:g}" for t in shown["threshold"]]),
                "exit",
                "value",
                "line",
                "quantity",
                title=f"Fig. {number}, A and B: the {model} at other thresholds",
                xlabel="exit behind block",
                ylabel="share of frames, accuracy",
            ),
        )
    other = _over_rounds(
        _long(plain[plain["edge"] == free], ["overall_ms"], ["threshold", "round"]), ["model", "threshold", "exit"]
    )
    work.draw(
        "fig7-8-latency",
        paper_figure(
            other.assign(line=[f"T = {t:g}" for t in other["threshold"]]),
            "exit",
            "value",
            "line",
            "model",
            title="Figs. 7 and 8, C: overall latency at other thresholds",
            xlabel="exit behind block",
            ylabel="ms a frame",
        ),
    )
    trained = epochs[(epochs["weighting"] == "equal") & (epochs["exit"] <= EXITS)]
    work.draw(
        "fig9-epochs",
        paper_figure(
            trained.assign(panel=[f"exit {e}" for e in trained["exit"]]).sort_values(["exit", "model"]),
            "epoch",
            "accuracy",
            "model",
            "panel",
            title="Fig. 9: accuracy of each local exit on held-out images, over training",
        ),
    )
    ends = _long(final[final["weighting"] == "equal"], ["edge", "cloud"]).assign(source="ours")
    ends = pd.concat([ends, PUBLISHED_FINAL.assign(source="published")])
    work.draw(
        "fig10-final",
        paper_figure(
            ends.assign(line=ends["model"] + ", " + ends["quantity"] + " exit"),
            "exit",
            "value",
            "line",
            title="Fig. 10: accuracy of each exit over all test images (published: points)",
            xlabel="exit behind block",
            ylabel="accuracy",
        ),
    )
    multi = accuracy[(accuracy["model"] == "MEM") & (accuracy["threshold"] == T)]
    ends = final[final["model"] == "MEM"].rename(columns={"edge": "local exit, all frames", "cloud": "cloud exit, all"})
    kinds = ["local exit, all frames", "cloud exit, all"]
    weights = pd.concat(
        [
            _long(ends, kinds, ["weighting"]),
            _long(multi, ["accuracy"], ["weighting"]).replace({"quantity": {"accuracy": f"overall, T = {T:g}"}}),
        ]
    )
    work.draw(
        "weights",
        paper_figure(
            weights,
            "exit",
            "value",
            "weighting",
            "quantity",
            title="The MEM with other weights of its losses",
            xlabel="exit behind block",
            ylabel="accuracy",
        ),
    )
    titles = {
        "dropped": "dropped, of all frames",
        "cloud_saved": "dropped, of frames for the cloud",
        "accuracy_answered": "accuracy over answered frames",
    }
    few = dropped[(dropped["model"] == "SEM") & dropped["exit"].isin((1, 2, 4, 6, 8))]
    shown = _long(few, list(titles), ["drop_above"]).replace({"quantity": titles})
    work.draw(
        "dropped",
        paper_figure(
            shown.assign(line=[f"SEM-{e}" for e in shown["exit"]]),
            "drop_above",
            "value",
            "line",
            "quantity",
            title=f"Dropping frames whose entropy is above a threshold, at T = {T:g}",
            xlabel="drop above",
            ylabel="share of frames, accuracy",
        ),
    )


def _long(rows: pd.DataFrame, quantities: Sequence[str], more: Sequence[str] = ()) -> pd.DataFrame:
    """One row a quantity and value."""
    return rows.melt(["model", "exit", *more], list(quantities), "quantity", "value")


def _over_rounds(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Means over rounds, with half-widths of their 95 % intervals (0 for one round)."""
    found = rows.groupby(by, sort=False)["value"].agg(lambda v: seeds_interval(list(v))).reset_index()
    found["half"] = [0.0 if np.isnan(half) else half for _, half in found["value"]]
    return found.assign(value=[mean for mean, _ in found["value"]])


# ---- claims


def trend(values: Sequence[float] | Floats) -> float:
    """Rank correlation (Spearman's) of values with their position: 1 rises throughout, -1 falls; NaN are left out.

    >>> trend([0.1, 0.2, float("nan"), 0.4]), round(trend([1, 2, 4, 3]), 2)
    (1.0, 0.8)
    """
    from scipy.stats import rankdata

    found = np.asarray(values, dtype=float)
    found = found[~np.isnan(found)]
    if len(found) < 2 or np.ptp(found) == 0:
        return 0.0
    return float(np.corrcoef(np.arange(len(found)), rankdata(found))[0, 1].round(12))


TREND = 0.8
"""Rank correlation from which on a tendency holds."""


def _percent(values: Sequence[float] | Floats | float) -> str:
    values = [values] if isinstance(values, float) else values
    return " / ".join("–" if np.isnan(v) else f"{100 * v:.1f}" for v in values) + " %"


def _claims(
    recipe: Recipe, accuracy: pd.DataFrame, final: pd.DataFrame, dropped: pd.DataFrame, latency: pd.DataFrame
) -> list[Claim]:
    exits = range(1, EXITS + 1)

    def column(
        rows: pd.DataFrame, quantity: str, model: str = "SEM", weighting: str = "equal", **where: object
    ) -> Floats:
        """A quantity at exits 1…8, mean over rounds."""
        for name, value in ({"model": model, "weighting": weighting} | where).items():
            rows = rows[rows[name] == value]
        found: Floats = rows.groupby("exit")[quantity].mean().reindex(exits).to_numpy(dtype=float)
        return found

    trained = f"{recipe.epochs} epochs at width {recipe.width}, one seed"

    def claim(text: str, published: str, ours: str, holds: bool | np.bool_, why: str = "") -> Claim:
        return Claim(text, published, ours, bool(holds), "" if holds else why or trained)

    found = {name: column(accuracy, name, threshold=T) for name in NAMES}
    multi = {name: column(accuracy, name, "MEM", threshold=T) for name in NAMES}
    edges = list(dict.fromkeys(latency["edge"]))
    plain = {"drop_above": 1.0, "threshold": T, "edge": edges[0]}
    rounds = latency[(latency["edge"] == edges[0]) & (latency["drop_above"] == 1.0) & (latency["threshold"] == T)]
    noise = rounds.groupby(["model", "exit"])["overall_ms"].std().median()
    shared = (
        "edge and cloud node share this machine's processors, and their link is its loopback; the same measurement "
        f"differs by {noise:.3f} ms (standard deviation over rounds)"
    )
    overall, overall_multi = (column(latency, "overall_ms", m, **plain) for m in ("SEM", "MEM"))
    edge_ms, cloud_ms = (column(latency, name, **plain) for name in ("edge_ms", "cloud_ms"))
    ends = {(m, e): column(final, e, m) for m in ("SEM", "MEM") for e in ("edge", "cloud")}
    single, several = ends["SEM", "edge"], ends["MEM", "edge"]
    half_way = found["local"] > 0.5
    little = (
        f"after {trained}, later blocks add little: exits 3 to 8 alone are right about {100 * single[2:].min():.1f} to "
        f"{100 * single[2:].max():.1f} % of all images"
    )
    behind = found["accuracy"] - multi["accuracy"]
    claims = [
        claim(
            "Later exits let more frames leave locally (SEM-1 … SEM-8, T = 0.3)",
            "SEM-3 53.8 %, SEM-8 91.4 %",
            _percent(found["local"]),
            trend(found["local"]) >= TREND,
            little,
        ),
        claim(
            "In SEM-3 more frames leave locally than go to the cloud",
            "5,383 of 10,000",
            f"{_percent(float(found['local'][2]))}; first in "
            + (f"SEM-{half_way.argmax() + 1}" if half_way.any() else "none"),
            bool(half_way[2]),
            f"less trained, an exit is less sure: {trained}",
        ),
        claim(
            "Later exits have the higher edge accuracy",
            "SEM-1 87.20 %, SEM-8 95.24 %",
            _percent(found["edge_accuracy"]),
            trend(found["edge_accuracy"]) >= TREND,
            little,
        ),
        claim(
            "Behind later exits cloud accuracy is lower: what is left is hard",
            "SEM-1 88.51 %, SEM-2 86.13 %, SEM-8 58.07 %",
            _percent(found["cloud_accuracy"]),
            trend(found["cloud_accuracy"]) <= -TREND,
        ),
        claim(
            "Later exits tend to the higher overall accuracy, SEM-8 is best",
            "SEM-8 92.04 %",
            _percent(found["accuracy"]),
            trend(found["accuracy"]) >= TREND and found["accuracy"].argmax() == 7,
            little,
        ),
        claim(
            "SEM-3 has the worst overall accuracy",
            "86.04 %",
            f"SEM-{found['accuracy'].argmin() + 1}, {_percent(float(found['accuracy'].min()))}",
            found["accuracy"].argmin() == 2,
        ),
        claim(
            "The MEM is worst at exit 2 and best at exit 8 (overall accuracy)",
            "84.31 %, 86.10 %",
            f"exit {multi['accuracy'].argmin() + 1} {_percent(float(multi['accuracy'].min()))}, exit "
            f"{multi['accuracy'].argmax() + 1} {_percent(float(multi['accuracy'].max()))}",
            multi["accuracy"].argmin() == 1 and multi["accuracy"].argmax() == 7,
            f"all eight lie within {100 * np.ptp(multi['accuracy']):.1f} points; {trained}",
        ),
        claim(
            "At every exit fewer frames leave the MEM locally than the SEM",
            "8 of 8 exits (Fig. 6A)",
            f"{(multi['local'] < found['local']).sum()} of 8; MEM {_percent(multi['local'])}",
            bool((multi["local"] < found["local"]).all()),
        ),
        claim(
            "At every exit the MEM is less accurate overall than the SEM",
            "8 of 8 exits; at exit 8 86.10 % against 92.04 %",
            f"{(multi['accuracy'] < found['accuracy']).sum()} of 8; at exit 8 {_percent(float(multi['accuracy'][7]))} "
            f"against {_percent(float(found['accuracy'][7]))}",
            bool((multi["accuracy"] < found["accuracy"]).all()),
            f"by {100 * behind.mean():.1f} points in the mean, at worst {100 * behind.min():+.1f} at exit "
            f"{behind.argmin() + 1}; {trained}",
        ),
        claim(
            "SEM-1 has the shortest edge latency and the longest overall latency",
            "SEM-1, SEM-1",
            f"{_shortest(edge_ms)}, SEM-{overall.argmax() + 1}",
            _shortest(edge_ms) == "SEM-1" and overall.argmax() == 0,
            shared,
        ),
        claim(
            "Cloud latency is similar in all SEMs (here: the longest within 1.5 times the shortest)",
            "similar",
            _ms(cloud_ms) + " from the batch's sending",
            _spread(cloud_ms) <= 1.5,
            shared,
        ),
        claim(
            "An exit in the middle is the fastest (overall latency): SEM-5, and exit 3 of the MEM",
            "SEM-5 3.795 ms; MEM 4.82 ms at exit 3, 4.886 ms at exit 5",
            f"SEM-{overall.argmin() + 1} of {_ms(overall)}; MEM exit {overall_multi.argmin() + 1} of "
            f"{_ms(overall_multi)}",
            overall.argmin() in range(1, 7) and overall_multi.argmin() in range(1, 7),
            shared,
        ),
        claim(
            "At every exit the MEM is slower than the SEM",
            "at exit 5 4.886 ms against 3.795 ms",
            f"{(overall_multi > overall).sum()} of 8; at exit 5 {overall_multi[4]:.3f} ms against {overall[4]:.3f} ms",
            bool((overall_multi > overall).all()),
            shared,
        ),
    ]
    by_t = {
        name: [float(np.nanmean(column(accuracy, name, threshold=t))) for t in (0.1, 0.3, 0.5)]
        for name in ("edge_accuracy", "cloud_accuracy", "accuracy")
        if not np.isnan(column(accuracy, name, threshold=0.1)).all()
    }
    gap = column(accuracy, "edge_accuracy", threshold=0.1) - column(accuracy, "edge_accuracy", threshold=0.5)
    timed = sorted(t for t in set(latency["threshold"]))
    slower = [float(column(latency, "overall_ms", **(plain | {"threshold": t})).mean()) for t in timed]
    claims += [
        claim(
            "Edge, cloud and overall accuracy rise as the threshold falls (mean of the SEMs at T = 0.1 / 0.3 / 0.5)",
            "Fig. 7B",
            "; ".join(f"{NAMES[name]} {_percent(values)}" for name, values in by_t.items()),
            len(by_t) == 3 and all(np.all(np.diff(values) < 0) for values in by_t.values()),
        ),
        claim(
            "The threshold matters most to the edge accuracy of SEM-1 (from T = 0.5 to 0.1)",
            "SEM-1",
            f"{100 * gap[0]:.1f} points in SEM-1; of all {', '.join(f'{100 * g:.1f}' for g in gap)}",
            bool(gap[0] == np.nanmax(gap)) if not np.isnan(gap).all() else False,
        ),
        claim(
            "Overall latency rises as the threshold falls (mean of the SEMs)",
            "Fig. 7C",
            ", ".join(f"T = {t:g}: {ms:.3f} ms" for t, ms in zip(timed, slower, strict=True)),
            bool(np.all(np.diff(slower) < 0)),
            shared,
        ),
        claim(
            "At the end of training each SEM's exit beats the MEM's over all images",
            "8 of 8 exits; SEM-2 72.65 %, MEM 64.59 %",
            f"{(single > several).sum()} of 8; SEM {_percent(single)}, MEM {_percent(several)}",
            bool((single > several).all()),
        ),
        claim(
            "SEM-3 beats the MEM's exit 4",
            "77.76 % against 76.06 %",
            f"{_percent(float(single[2]))} against {_percent(float(several[3]))}",
            bool(single[2] > several[3]),
        ),
        claim(
            "SEM-6's local exit beats the MEM's cloud exit",
            "88.92 % against 88.58 %",
            f"{_percent(float(single[5]))} against {_percent(float(ends['MEM', 'cloud'][5]))}",
            single[5] > ends["MEM", "cloud"][5],
        ),
        claim(
            "From SEM-7 on the cloud adds little over all images (here: less than 2 points)",
            "SEM-7 90.98 % and 92.10 %",
            f"SEM-7 {_percent(float(single[6]))} and {_percent(float(ends['SEM', 'cloud'][6]))}",
            ends["SEM", "cloud"][6] - single[6] < 0.02,
        ),
    ]
    for name in recipe.weightings[1:]:
        edge, cloud = column(final, "edge", "MEM", name), column(final, "cloud", "MEM", name)
        towards = "later" if name == "rising" else "earlier"
        gained = edge - several
        part = gained[4:] if name == "rising" else gained[:4]
        claims.append(
            claim(
                f"Future work: weights that are larger at {towards} exits make the MEM's {towards} exits better",
                "not measured",
                f"mean over exits {'5 to 8' if name == 'rising' else '1 to 4'} {100 * part.mean():+.1f} points, over "
                f"all eight {100 * gained.mean():+.1f}; cloud {100 * (cloud[0] - ends['MEM', 'cloud'][0]):+.1f}",
                part.mean() > 0,
            )
        )
    slow = column(latency, "overall_ms", **(plain | {"edge": edges[-1]}))
    peak = latency[latency["edge"] == edges[-1]]["peak_mb"].max()
    claims.append(
        claim(
            f"Future work: with restricted edge nodes ({edges[-1]}) an earlier exit is the fastest",
            "not measured",
            f"SEM-{slow.argmin() + 1} of {_ms(slow)}, where with {edges[0]} it is SEM-{overall.argmin() + 1}; at most "
            f"{peak:.0f} MB in use",
            slow.argmin() < overall.argmin(),
            shared,
        )
    )
    hopeless = dropped[(dropped["model"] == "SEM") & (dropped["drop_above"] == recipe.drop_above)].set_index("exit")
    kept = column(latency, "overall_ms", **(plain | {"drop_above": recipe.drop_above}))
    for exit in (2, 8):
        row, all_in = hopeless.loc[exit], float(found["accuracy"][exit - 1])
        claims.append(
            claim(
                f"A drop threshold saves the cloud's work on frames that it would not get right (SEM-{exit}, dropped "
                f"above {recipe.drop_above:g}; here: it would have answered less than half of them rightly)",
                "asked for",
                f"{_percent(float(row['dropped']))} dropped, {_percent(float(row['cloud_saved']))} of what went to "
                f"the cloud; accuracy over answered frames {_percent(float(row['accuracy_answered']))} instead of "
                f"{_percent(all_in)}; the cloud would have answered {_percent(float(row['lost']))} of the dropped "
                f"rightly; {kept[exit - 1]:.3f} ms a frame instead of {overall[exit - 1]:.3f} ms",
                bool(row["lost"] < 0.5),
                "the cloud is still right about most of what this exit is unsure of",
            )
        )
    agrees = latency["agrees"].min()
    claims.append(
        claim(
            "The three processes answer as the exits' logits say (our own check)",
            "",
            f"at least {_percent(float(agrees))} of the frames in each measurement; "
            f"{_percent(float(latency['fallback'].max()))} fallbacks at most",
            bool(agrees >= 0.99),
        )
    )
    return claims


def _shortest(values: Floats) -> str:
    return "none" if np.isnan(values).all() else f"SEM-{np.nanargmin(values) + 1}"


def _spread(values: Floats) -> float:
    return float(np.nanmax(values) / np.nanmin(values)) if not np.isnan(values).all() else float("nan")


def _ms(values: Floats) -> str:
    return " / ".join("–" if np.isnan(v) else f"{v:.3g}" for v in values) + " ms"
