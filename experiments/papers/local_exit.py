"""Local exits over edge and cloud: eight models with one exit each against one model with eight (Lee et al.)."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from eex.experiments.papers.claims import (
    OWN,
    Claim,
    Facts,
    Group,
    Margin,
    Tables,
    at_least,
    images_tested,
    least_among,
    listed,
    seeds_interval,
    share_half,
    student,
    words,
)
from eex.experiments.papers.nodes import DROPPED, EDGE, FALLBACK, Nodes, Resources
from eex.experiments.papers.paper import Images, PaperRecipe, Work, among, intervals, long, mean_of
from eex.experiments.plotting import Plot
from eex.policies.core.base import Bools, Floats, Ints

if TYPE_CHECKING:
    from torch import Tensor

    from eex.models.network import EarlyExitNet

TITLE = "Lee, Hong, Hong, Kim: Performance analysis of local exit for distributed DNNs over cloud and edge (2020)"
EXITS = 8
T = 0.3
"""The threshold of the entropy that the paper's figures are for."""
THRESHOLDS = (0.1, 0.3, 0.5, 0.8)
COMPARED = (0.1, T, 0.5)
"""Those that claims compare."""
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
- SEM-k is the paper's single-exit model with its local exit after block k; the MEM has a local exit after each of
  eight blocks, of which one is in use at a time. A frame leaves there if the entropy of its class probabilities,
  normalised to [0, 1], is below the threshold T; otherwise the cloud answers.
- The table with the paper's widths and training parameters is not in the text that we have. The network here has the
  usual widths (64, 64, 128, 128, 256, 256, 512, 512, 512, halving the map where they double), and is trained by SGD
  with momentum 0.9 and a one-cycle rate. It has nine blocks: an exit after each of the first eight, and after exit 8
  "just one more convolutional block", as the text says, before the cloud's exit. In the recipe "standard" it has
  half of the width and is trained for 15 epochs; in "reduced" it has a quarter of the width, starts with a convolution
  of stride 2, which halves every map, and is trained for five.
- The networks of "standard" were trained on a GPU (an NVIDIA H200, in bfloat16), and their weights were kept in half
  precision. Everything else was done on two cores.
- 5,000 training images (2,000 in the recipe "reduced") are held out; accuracy over epochs (Fig. 9) is measured on
  them. Everything else is measured on the 8,000 test images that we have, so that shares are given where the paper
  counts frames out of 10,000.
- Test, edge and cloud node are three processes on one machine, joined by ZeroMQ on the loopback, encrypted. The edge
  node is the project's engine, the cloud node its worker, which replies to the edge node, which replies to the test
  node; in the paper the cloud replies to the test node itself. A batch is sent once the last one is answered. Edge
  and cloud latency run from the sending of a frame's batch until its class is back; overall latency is the time from
  the first sending to the last class, per frame.
- The paper names neither the machine that its containers ran on nor a link between them: compare shapes, not
  milliseconds. At T = 0.3 latencies are measured over an emulated link between edge and cloud node too (`sao-paulo`:
  a round trip of 12 ms, 93 Mbit/s). Edge and cloud node have half of the processors each, here one of two, so
  that "one core, 1 GB" differs from the unrestricted node by its limit of memory alone, which no edge node reaches. The
  test node sends 128 images in batches of 32, eight times over.
- What rises or falls from exit to exit does so if the rank correlation with the exit's number is 0.8 or more.
- Future work, done here: weights of the losses that rise or fall with depth (their mean is 1), in the recipes
  "reduced" and "paper"; an edge node on one processor with limited memory, and one that gets a quarter of a processor
  besides; dropping frames whose entropy is above a threshold (`eex-stream --drop-below` on any stream).
"""


MISSING = """
- Networks of the paper's width, trained for 100 epochs (`--recipe paper --device cuda`): 730 hours of one core with
  AVX2, by `--estimate`. Those of "standard" would take 21 hours of such a core and took two minutes of the GPU, all
  nine at the same time; at this rate those of "paper" take more than an hour of it, and we had it for 15 minutes.
- Final exits that answer 86 % of the images right: the MEM's (84.2 %) and those of SEM-2, 3 and 4 (85.0 to 85.6 %) do
  not. It takes more epochs or a wider network.
- Differences between exits of less than a tenth of a millisecond: repeats scatter by as much on a machine with two
  processors, which both nodes, the sender and the system share. It takes one with processors to spare.
- Several seeds: each network was trained once (`--seeds 3` trains two more of each).
"""


def edge_nodes(memory_mb: int) -> tuple[Resources, ...]:
    """The paper's edge node, the same over a link, on one core with so much memory, and with a quarter of that core."""
    memory = f"{memory_mb} MB" if memory_mb < 1024 else f"{memory_mb // 1024} GB"
    return (
        Resources(),
        Resources("half of the cores, link sao-paulo", link="sao-paulo"),
        Resources(f"one core, {memory}", threads=1, memory_mb=memory_mb),
        Resources(f"a quarter of a core, {memory}", threads=1, memory_mb=memory_mb, share=0.25),
    )


@dataclass(frozen=True)
class LocalExitRecipe(PaperRecipe):
    """How much is trained and measured."""

    width: int  # of the network's first block, and the stride of its first convolution (`eex.experiments.papers.cnn`)
    stride: int
    epochs: int  # of each training, with SGD and one cycle of this peak learning rate
    lr: float = 0.1
    batch: int = 128
    validation: int = 5000  # images held out
    weightings: tuple[str, ...] = ("equal", "rising", "falling")  # names in `WEIGHTINGS`; the first is the paper's
    thresholds: tuple[float, ...] = THRESHOLDS  # of the entropy, at which latencies are measured
    images: int = 960  # test images that the test node sends each time
    rounds: int = 8  # how many times it does, in turn
    drop_above: float = 0.6  # entropy above which frames are dropped, for latencies with dropping
    # of the edge node; the first are the paper's, for the others latencies are measured at T = 0.3 alone
    edges: tuple[Resources, ...] = edge_nodes(384)


RECIPES = {
    "quick": LocalExitRecipe(
        8,
        2,
        2,
        batch=64,
        validation=200,
        weightings=("equal", "rising"),
        thresholds=(T, 0.8),
        images=64,
        rounds=1,
        edges=edge_nodes(384)[:3],
    ),
    "reduced": LocalExitRecipe(16, 2, 5, validation=2000),
    "standard": LocalExitRecipe(
        32,
        1,
        15,
        images=128,
        weightings=("equal",),
        edges=edge_nodes(1024),
    ),
    "paper": LocalExitRecipe(
        64,
        1,
        100,
        edges=edge_nodes(4096),
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
    """A model with the one local exit that is in use, and its outputs for every test image, (N,) each."""

    model: str  # "SEM" or "MEM"
    weighting: str  # a name in `WEIGHTINGS`
    exit: int  # the block that the exit follows, from 1
    trained: str  # name of the trained network
    entropy: Floats  # normalised, at the local exit
    local: Ints  # classes by the local exit, and by the cloud's
    cloud: Ints

    @property
    def key(self) -> dict[str, object]:
        """What its rows begin with."""
        return {"model": self.model, "weighting": self.weighting, "exit": self.exit}


TABLES = ("images", "epochs", "accuracy", "final", "dropped", "covariance", "latency")
ONCE = ()
OF_AUTHORS = ()


def networks(work: Work, recipe: LocalExitRecipe) -> "tuple[Images, dict[str, EarlyExitNet], dict[str, pd.DataFrame]]":
    """The images, and by name the trained networks and their epochs."""
    images = work.images(recipe.validation)
    same: dict[str, Any] = {"epochs": recipe.epochs, "lr": recipe.lr, "batch": recipe.batch, "shift": 4}
    trained = {}
    for name, _, weighting, exits in plan(recipe):
        make = partial(network, images.classes, exits, recipe.width, recipe.stride)
        trained[name] = work.trained(name, make, images, loss_weights=WEIGHTINGS[weighting](len(exits) + 1), **same)
    return images, {n: net for n, (net, _) in trained.items()}, {n: epochs for n, (_, epochs) in trained.items()}


def measure(work: Work, recipe: LocalExitRecipe) -> None:
    """Train eight models with one exit and one with eight, and see what they do at each exit and threshold."""
    images, nets, histories = networks(work, recipe)
    cases: list[Case] = []
    for name, model, weighting, exits in plan(recipe):
        entropy, prediction = entropies(work.logits(f"{name}-logits", nets[name], images.test[0]))
        cases += [
            Case(model, weighting, e, name, entropy[k], prediction[k], prediction[-1]) for k, e in enumerate(exits)
        ]
    label = images.test[1].numpy()
    work.tables(
        images=images.counts,
        epochs=lambda: _epochs(recipe, histories),
        accuracy=lambda: _accuracy(cases, label),
        final=lambda: _final(cases, label),
        dropped=lambda: _dropped(cases, label),
        covariance=lambda: _covariance(cases, label),
        latency=lambda: _latency(work, recipe, nets, cases, images),
    )


# ---- networks


def plan(recipe: LocalExitRecipe) -> list[tuple[str, str, str, tuple[int, ...]]]:
    """What is trained: name, model, weighting of its losses, and its local exits."""
    single = [(f"sem-{k}", "SEM", "equal", (k,)) for k in range(1, EXITS + 1)]
    multi = [(f"mem-{w}", "MEM", w, tuple(range(1, EXITS + 1))) for w in recipe.weightings]
    return [*single, *multi]


def network(classes: Sequence[str], exits: Sequence[int], width: int = 64, stride: int = 1) -> "EarlyExitNet":
    """The nine-block network with local exits after some of its first eight blocks, and the cloud's after the last.

    Each exit averages its map and has one linear layer; confidence is 1 less the normalised entropy.
    """
    from eex.experiments.papers.cnn import register
    from eex.models.network import make

    register()
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


def entropies(logits: "Tensor") -> tuple[Floats, Ints]:
    """Normalised entropy and prediction of every exit, (exits, N) each, from logits (exits, N, K)."""
    import torch

    probabilities = torch.softmax(logits.double(), dim=2)
    entropy = torch.special.entr(probabilities).sum(dim=2) / np.log(logits.shape[2])
    return entropy.numpy(), probabilities.argmax(dim=2).numpy()


# ---- answers, from what every exit says of every image


def at_threshold(entropy: Floats, local: Bools, cloud: Bools, threshold: float) -> dict[str, float]:
    """What a threshold of the entropy does, below which a frame leaves locally.

    From the entropy at the local exit and where local and cloud exit are right, (N,) each: `local`, the share that
    leaves there; `edge_accuracy` of those; `cloud_accuracy` of the others; `accuracy` of all. NaN where there are none.

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
        "edge_accuracy": mean_of(local[leaves]),
        "cloud_accuracy": mean_of(cloud[~leaves]),
        "accuracy": float(np.where(leaves, local, cloud).mean()),
    }


def with_dropping(entropy: Floats, local: Bools, cloud: Bools, threshold: float, drop_above: float) -> dict[str, float]:
    """What dropping frames above a second threshold of the entropy saves, and costs.

    `dropped`, their share of all frames; `cloud_saved`, their share of those that went to the cloud;
    `accuracy_answered` of the others; `accuracy_all`, where a dropped frame counts as wrong; `lost`, the share of the
    dropped for which the cloud would have been right.
    """
    sent = entropy >= threshold
    drops = sent & (entropy > drop_above)
    right = np.where(sent, cloud, local)
    return {
        "dropped": float(drops.mean()),
        "cloud_saved": mean_of(drops[sent]),
        "accuracy_answered": mean_of(right[~drops]),
        "accuracy_all": float((right & ~drops).mean()),
        "lost": mean_of(cloud[drops]),
    }


def _accuracy(cases: Sequence[Case], label: Ints) -> Iterator[dict[str, Any]]:
    for c in cases:
        for t in THRESHOLDS:
            yield c.key | {"threshold": t} | at_threshold(c.entropy, c.local == label, c.cloud == label, t)


def _final(cases: Sequence[Case], label: Ints) -> Iterator[dict[str, Any]]:
    """Accuracy of local and cloud exit over all test images."""
    return (c.key | {"edge": (c.local == label).mean(), "cloud": (c.cloud == label).mean()} for c in cases)


def _covariance(cases: Sequence[Case], label: Ints) -> pd.DataFrame:
    """Covariance of the shares that claims compare, all of the same images: a row and a column for each share.

    Shares at `T` and those of all images are named "SEM-3 accuracy"; "mean 0.1 accuracy" is the SEMs' mean at another
    threshold, and "gap-1 accuracy" what that of SEM-1 gains from the highest of `COMPARED` to the lowest.
    """
    added: dict[str, Floats] = {}  # what each image adds to a share
    at: dict[tuple[float, str], list[Floats]] = {}
    for c in (c for c in cases if c.weighting == "equal"):
        local, cloud = c.local == label, c.cloud == label
        for t in COMPARED:
            leaves = c.entropy < t
            right = np.where(leaves, local, cloud)
            shares = dict(zip(NAMES, (leaves, among(local, leaves), among(cloud, ~leaves), right), strict=True))
            if t == T:
                added |= {f"{c.model}-{c.exit} {name}": each for name, each in shares.items()}
                added |= {f"{c.model}-{c.exit} edge": local, f"{c.model}-{c.exit} cloud": cloud}
            if c.model == "SEM":
                for name, each in shares.items():
                    at.setdefault((t, name), []).append(each)
    added |= {f"mean {t:g} {name}": pd.DataFrame(each).mean().to_numpy() for (t, name), each in at.items()}
    for name in ("edge_accuracy", "accuracy"):
        ends = (at[t, name] for t in (COMPARED[0], COMPARED[-1]))
        added |= {
            f"gap-{k + 1} {name}": np.subtract(low, high, dtype=float)
            for k, (low, high) in enumerate(zip(*ends, strict=True))
        }
    found = pd.DataFrame(np.cov(np.stack(list(added.values()))) / len(label), columns=list(added))
    found.insert(0, "share", list(added))
    return found


def _dropped(cases: Sequence[Case], label: Ints) -> Iterator[dict[str, Any]]:
    for c in cases:
        for d in DROP_ABOVE if c.weighting == "equal" else ():
            found = with_dropping(c.entropy, c.local == label, c.cloud == label, T, d)
            yield c.key | {"threshold": T, "drop_above": d} | found


def _epochs(recipe: LocalExitRecipe, histories: dict[str, pd.DataFrame]) -> Iterator[dict[str, Any]]:
    """Validation accuracy of each exit after each epoch; the cloud's has exit 9."""
    for name, model, weighting, exits in plan(recipe):
        for row in histories[name].to_dict("records"):
            for k, exit in enumerate((*exits, EXITS + 1)):
                keys = {"trained": name, "model": model, "weighting": weighting, "exit": exit}
                yield keys | {"epoch": row["epoch"] + 1, "accuracy": row[f"accuracy_{k + 1}"]}


# ---- three processes


def _latency(
    work: Work, recipe: LocalExitRecipe, nets: "dict[str, EarlyExitNet]", cases: Sequence[Case], images: Images
) -> pd.DataFrame:
    """Latencies and answers of three processes, one row per case, threshold, edge node and round."""
    from eex.models.card import save

    played = [c for c in cases if c.weighting == "equal"]
    folders: list[Path] = []
    for case in played:
        folders.append(work.out / "work" / f"{case.model.lower()}-exit-{case.exit}")
        save(one_exit(nets[case.trained], case.exit), folders[-1], name=folders[-1].name, half=False)

    def measured(number: int, edge: Resources) -> pd.DataFrame:
        settings = [(T, 1.0)]
        if number == 0:
            settings = [*((t, 1.0) for t in recipe.thresholds), (T, recipe.drop_above)]
        with Nodes(folders, edge) as nodes:
            return pd.DataFrame(_rounds(nodes, edge.name, played, settings, images, recipe))

    edges = enumerate(recipe.edges)
    return pd.concat([work.kept_table(f"latency-{n + 1}", partial(measured, n, edge)) for n, edge in edges])


def _rounds(
    nodes: Nodes,
    edge: str,
    played: Sequence[Case],
    settings: Sequence[tuple[float, float]],
    images: Images,
    recipe: LocalExitRecipe,
) -> Iterator[dict[str, Any]]:
    """What one edge node does with each case, in an order that is drawn anew in every round."""
    rng = np.random.default_rng(0)
    chosen = images.drawn(recipe.images)
    pixels, label = images.test[0].numpy()[chosen], images.test[1].numpy()[chosen]
    for round in range(recipe.rounds):
        for k in rng.permutation(len(played)):
            for threshold, drop_above in settings:
                found = nodes.measure(int(k), threshold, pixels, drop_above=drop_above)
                entropy, local, cloud = (
                    column[chosen] for column in (played[k].entropy, played[k].local, played[k].cloud)
                )
                expected = np.where(entropy < threshold, local, np.where(entropy > drop_above, -1, cloud))
                here, answered = found.where == EDGE, found.where != DROPPED
                yield played[k].key | {
                    "edge": edge, "threshold": threshold, "drop_above": drop_above, "round": round,
                    "local": here.mean(), "dropped": 1 - answered.mean(),
                    "fallback": (found.where == FALLBACK).mean(), "edge_ms": mean_of(found.latency_ms[here]),
                    "cloud_ms": mean_of(found.latency_ms[answered & ~here]),
                    "mean_ms": mean_of(found.latency_ms[answered]),
                    "overall_ms": 1000 * found.seconds / len(label),
                    "accuracy": mean_of((found.prediction == label)[answered]),
                    "agrees": (found.prediction == expected).mean(), "peak_mb": found.peak_mb,
                }  # fmt: skip


# ---- figures

KEYS = ["model", "exit"]


def _equal(rows: pd.DataFrame, **where: object) -> pd.DataFrame:
    """Rows with equal weights of the losses, and what else is asked of them."""
    for name, value in ({"weighting": "equal"} | where).items():
        rows = rows[rows[name] == value]
    return rows


def _plain(tables: Tables, **where: object) -> pd.DataFrame:
    """Latencies without dropping."""
    return _equal(tables["latency"], drop_above=1.0, **where)


def _free(tables: Tables) -> str:
    """The edge node that is not restricted."""
    return str(tables["latency"]["edge"].iloc[0])


def _accuracies(tables: Tables) -> pd.DataFrame:
    ours = long(_equal(tables["accuracy"], threshold=T), KEYS, NAMES).assign(source="ours")
    return pd.concat([ours, PUBLISHED.assign(source="published").replace({"quantity": NAMES})])


def _latencies(tables: Tables) -> pd.DataFrame:
    parts = {"edge_ms": "left locally", "cloud_ms": "answered by the cloud", "mean_ms": "all frames"}
    rows = long(_plain(tables, edge=_free(tables), threshold=T), [*KEYS, "round"], parts)
    return intervals(rows, ["model", "exit", "quantity"], "value")


def _by_threshold(tables: Tables) -> pd.DataFrame:
    rows = long(_equal(tables["accuracy"]), [*KEYS, "threshold"], NAMES)
    return rows.assign(number=rows["model"].map({"SEM": 7, "MEM": 8}), file=rows["model"].str.lower())


def _trained(tables: Tables) -> pd.DataFrame:
    rows = _equal(tables["epochs"])
    return rows[rows["exit"] <= EXITS].sort_values(["exit", "model"])


def _finals(tables: Tables) -> pd.DataFrame:
    ours = long(_equal(tables["final"]), KEYS, ["edge", "cloud"]).assign(source="ours")
    return pd.concat([ours, PUBLISHED_FINAL.assign(source="published")])


def _weightings(tables: Tables) -> pd.DataFrame:
    """Accuracies of the MEM by the weights of its losses; none where there are no others to compare with."""
    multi, ends = (tables[name][tables[name]["model"] == "MEM"] for name in ("accuracy", "final"))
    exits = {"edge": "local exit, all frames", "cloud": "cloud exit, all"}
    overall = long(multi[multi["threshold"] == T], [*KEYS, "weighting"], {"accuracy": f"overall, T = {T:g}"})
    found = pd.concat([long(ends, [*KEYS, "weighting"], exits), overall])
    return found if found["weighting"].nunique() > 1 else found[:0]


def _drops(tables: Tables) -> pd.DataFrame:
    titles = {
        "dropped": "dropped, of all frames",
        "cloud_saved": "dropped, of frames for the cloud",
        "accuracy_answered": "accuracy over answered frames",
    }
    rows = _equal(tables["dropped"], model="SEM")
    return long(rows[rows["exit"].isin((1, 2, 4, 6, 8))], [*KEYS, "drop_above"], titles)


AFTER, SHARES, AT_T = "exit after block", "share of frames, accuracy", "T = {threshold:g}"
PLOTS = (
    Plot(
        "fig5-6-accuracy", _accuracies, "exit", "value", "quantity", "model", xlabel=AFTER, ylabel=SHARES,
        title=f"Figs. 5 and 6, A and B: what leaves locally, and accuracy, at T = {T:g} (published: points)",
        share=True,
    ),
    Plot(
        "fig5-6-latency", _latencies, "exit", "value", "quantity", "model", xlabel=AFTER, ylabel="latency, ms",
        title=f"Figs. 5 and 6, C: from the sending of a frame's batch to its class, at T = {T:g}",
    ),
    Plot(
        "fig5-6-overall-latency",
        lambda t: intervals(_plain(t, threshold=T), ["edge", "model", "exit"], "overall_ms"),
        "exit", "overall_ms", "model", "edge", xlabel=AFTER, ylabel="ms per frame",
        title=f"Overall latency per frame at T = {T:g}, by the resources of the edge node",
    ),
    Plot(
        "fig{number}-thresholds-{file}", _by_threshold, "exit", "value", AT_T, "quantity", each="model",
        title="Fig. {number}, A and B: the {model} at other thresholds", xlabel=AFTER, ylabel=SHARES, share=True,
    ),
    Plot(
        "fig7-8-latency",
        lambda t: intervals(_plain(t, edge=_free(t)), ["model", "threshold", "exit"], "overall_ms"),
        "exit", "overall_ms", AT_T, "model", xlabel=AFTER, ylabel="ms per frame",
        title="Figs. 7 and 8, C: overall latency at other thresholds",
    ),
    Plot(
        "fig9-epochs", _trained, "epoch", "accuracy", "model", "exit {exit}",
        title="Fig. 9: accuracy of each local exit on held-out images, over training", share=True,
    ),
    Plot(
        "fig10-final", _finals, "exit", "value", "{model}, {quantity} exit", xlabel=AFTER, ylabel="accuracy",
        title="Fig. 10: accuracy of each exit over all test images (published: points)", share=True,
    ),
    Plot(
        "weights", _weightings, "exit", "value", "weighting", "quantity", xlabel=AFTER, ylabel="accuracy",
        title="The MEM with other weights of its losses", share=True,
    ),
    Plot(
        "dropped", _drops, "drop_above", "value", "SEM-{exit}", "quantity", xlabel="drop above", ylabel=SHARES,
        scales=True,
        title=f"Dropping frames whose entropy is above a threshold, at T = {T:g}", share=True,
    ),
)  # fmt: skip


# ---- claims


def trend(values: Sequence[float] | Floats) -> Any:
    """Rank correlation (Spearman's) of values with their position: 1 rises throughout, -1 falls; NaN are left out.

    Rows of a matrix (draws, values) are correlated one by one.

    >>> trend([0.1, 0.2, float("nan"), 0.4]), round(trend([1, 2, 4, 3]), 2)
    (1.0, 0.8)
    """
    rows = pd.DataFrame(np.atleast_2d(values)).dropna(axis=1).rank(axis=1)
    rows.columns = pd.RangeIndex(rows.shape[1])
    position = pd.Series(rows.columns, dtype=float)
    with np.errstate(invalid="ignore"):
        found = rows.T.corrwith(position).fillna(0).round(12).to_numpy()
    return found if np.ndim(values) == 2 else float(found[0])


TREND = 0.8
"""Rank correlation from which on a tendency holds."""


def rising(values: Floats, spread: Floats) -> Margin:
    """Values rise with their position: by how far their rank correlation is above `TREND`, over drawn values.

    `spread` is their covariance, (n, n).
    """
    drawn = np.random.default_rng(0).multivariate_normal(values, spread, 500, method="eigh")
    return Margin(trend(values) - TREND, 1.96 * float(np.std(trend(drawn))))


def column(rows: pd.DataFrame, quantity: str, model: str = "SEM", **where: object) -> Floats:
    """A quantity at exits 1…8, mean over rounds."""
    found = _equal(rows, model=model, **where).groupby("exit")[quantity].mean()
    values: Floats = found.reindex(range(1, EXITS + 1)).to_numpy(dtype=float)
    return values


LATENCIES = (
    "SEM-1, SEM-1",
    "similar",
    "SEM-5 3.795 ms; MEM 4.82 ms at exit 3, 4.886 ms at exit 5",
    "at exit 5 4.886 ms against 3.795 ms",
)
"""Published about latencies, in the order of the claims."""


def by_round(rows: pd.DataFrame, quantity: str, model: str = "SEM") -> pd.DataFrame:
    """A measured quantity in each round (rows) at exits 1…8 (columns)."""
    return _equal(rows, model=model).pivot(index="round", columns="exit", values=quantity)


def least_at(rounds: pd.DataFrame, exits: Sequence[int]) -> Margin:
    """The least of what `by_round` tells is at one of these exits, counted from 0; compared round by round."""
    n = len(rounds)
    spread = rounds.cov().to_numpy() / n * (student(n) / 1.96) ** 2 if n > 1 else np.nan
    return least_among(rounds.mean().to_numpy(), spread, exits)


def _first(values: Floats, name: str = "SEM-") -> str:
    """The exit with the least value, in words."""
    return "none" if np.isnan(values).all() else f"{name}{int(np.nanargmin(values)) + 1}"


def answered(tables: Tables, model: str, threshold: float) -> pd.DataFrame:
    """The shares of `NAMES` at exits 1…8 (rows)."""
    return pd.DataFrame({name: column(tables["accuracy"], name, model, threshold=threshold) for name in NAMES})


class Spread:
    """How shares of the same images vary together; a share of each exit is named "SEM accuracy"."""

    def __init__(self, tables: Tables) -> None:
        self.covariance = tables["covariance"].set_index("share").fillna(0.0)

    def of(self, name: str) -> Floats:
        """Covariance of a share of exits 1…8, (8, 8)."""
        names = self._names(name)
        found: Floats = self.covariance.loc[names, names].to_numpy()
        return found

    def above(self, a: Any, b: Any, name_a: str, name_b: str, by: float = 0.0) -> Margin:
        """Shares are larger than others, by so much: of all exits, or of those that the names end on."""
        of_a, of_b = self._names(name_a), self._names(name_b)
        pairs = zip(of_a, of_b, strict=True)
        within = [self.covariance.at[p, p] + self.covariance.at[q, q] - 2 * self.covariance.at[p, q] for p, q in pairs]
        half = 1.96 * np.sqrt(np.maximum(within, 0.0))
        return Margin(np.asarray(a) - np.asarray(b) - by, half)

    def of_lead(self, name_a: str, name_b: str, exits: int = EXITS) -> Floats:
        """Covariance of the differences between shares of exits 1…`exits` and others of the last so many exits."""
        a, b = self._names(name_a)[:exits], self._names(name_b)[-exits:]
        within = self.covariance.loc[[*a, *b], [*a, *b]].to_numpy()
        sign = np.hstack([np.eye(exits), -np.eye(exits)])
        found: Floats = sign @ within @ sign.T
        return found

    def _names(self, name: str) -> list[str]:
        if name in self.covariance.index:
            return [name]
        model, _, share = name.partition(" ")
        return [f"{model}-{k} {share}".rstrip() for k in range(1, EXITS + 1)]


def _of_exits(tables: Tables, recipe: LocalExitRecipe) -> Iterator[Facts]:
    """What every exit answers at the paper's threshold and at others, and over all images."""
    final = tables["final"]
    sem, mem = (answered(tables, model, T) for model in ("SEM", "MEM"))
    at = {t: answered(tables, "SEM", t) for t in COMPARED}
    means = pd.DataFrame({t: found.mean() for t, found in at.items()}).drop("local")
    gaps = at[COMPARED[0]] - at[COMPARED[-1]]
    spread = Spread(tables)
    single, several = column(final, "edge"), column(final, "edge", "MEM")
    less, most_local = sem["accuracy"] - mem["accuracy"], np.flatnonzero(sem["local"] > 0.5)
    yield Facts(
        **sem,
        mem=mem,
        spread=spread,
        images=images_tested(tables),
        little=f"later blocks add little: exits 3 to 8 alone are right about {100 * single[2:].min():.1f} to "
        f"{100 * single[2:].max():.1f} % of all images",
        most_local=f"first in SEM-{most_local[0] + 1}" if len(most_local) else "in no SEM",
        worst=_first(sem["accuracy"]),
        least=sem["accuracy"].min(),
        mem_worst=_first(mem["accuracy"], "exit "),
        mem_best=_first(-mem["accuracy"], "exit "),
        least_mem=mem["accuracy"].min(),
        most_mem=mem["accuracy"].max(),
        mem_range=np.ptp(100 * mem["accuracy"]),
        fewer=(mem["local"] < sem["local"]).sum(),
        worse=(mem["accuracy"] < sem["accuracy"]).sum(),
        behind=100 * less.mean(),
        closest=100 * less.min(),
        closest_at=_first(less, "exit "),
        rises=[
            spread.above(means.loc[n, a], means.loc[n, b], f"mean {a:g} {n}", f"mean {b:g} {n}")
            for n in means.index
            for a, b in pairwise(at)
        ],
        by_threshold=listed("{n} {v:%}", [{"n": NAMES[n], "v": row.to_numpy()} for n, row in means.iterrows()], "; "),
        gaps=gaps,
        single=single,
        several=several,
        beats=(single > several).sum(),
        lead=single - several,
        lead_on_next=(single[:-1] - several[1:])[2:],
        cloud_beats=(column(final, "cloud") > column(final, "cloud", "MEM")).sum(),
        alone=100 * (single[2] - several[2]),
        deeper=100 * (several[3] - several[2]),
        cloud=column(final, "cloud"),
        mem_cloud=column(final, "cloud", "MEM"),
    )


def _of_latency(tables: Tables, recipe: LocalExitRecipe) -> Iterator[Facts]:
    """How fast three processes are, over each link between edge and cloud node; rounds are compared one by one."""
    for resources in (e for e in recipe.edges if e.threads == 0):
        at_t = _plain(tables, edge=resources.name, threshold=T)
        rounds = [
            by_round(at_t, name, model)
            for name, model in (("edge_ms", "SEM"), ("cloud_ms", "SEM"), ("overall_ms", "SEM"), ("overall_ms", "MEM"))
        ]
        edge, cloud, overall, mem = (measured.mean().to_numpy() for measured in rounds)
        in_cloud = rounds[1].to_numpy()
        spans = 1.5 * in_cloud[:, np.nanargmin(cloud)] - in_cloud[:, np.nanargmax(cloud)]
        noise, in_cloud_noise = at_t.groupby(KEYS)[["overall_ms", "cloud_ms"]].std().median()
        goes_on = 1 - np.array(
            [at_t.loc[(at_t["model"] == "SEM") & (at_t["exit"] == k), "local"].mean() for k in range(1, EXITS + 1)]
        )
        why = "early exits send larger maps" if resources.link else "sender and system share the nodes' processors"
        yield Facts(
            over=f", over the emulated link {resources.link}" if resources.link else "",
            published=(OWN,) * len(LATENCIES) if resources.link else LATENCIES,
            edge=edge,
            cloud=cloud,
            overall=overall,
            mem=mem,
            ends=[least_at(rounds[0], [0]), least_at(-rounds[2], [0])],
            alike=Margin(*seeds_interval(spans)),
            middle=[least_at(measured, range(1, 7)) for measured in rounds[2:]],
            mem_slower=Margin(*np.transpose([seeds_interval(apart) for _, apart in (rounds[3] - rounds[2]).items()])),
            shortest=_first(edge),
            longest=_first(-overall),
            fastest=_first(overall),
            mem_fastest=_first(mem, "exit "),
            slower=(mem > overall).sum(),
            shared=f"{why}; repeats scatter by {noise:.3f} ms (standard deviation over rounds)",
            waits=f"a frame waits for its batch, of which {words('{goes_on:%}', {'goes_on': goes_on})} go on"
            + (
                ", in larger maps after early exits"
                if resources.link
                else ", and all pass the edge node's blocks first"
            )
            + f"; repeats scatter by {in_cloud_noise:.1f} ms",
        )


def _of_thresholds(tables: Tables, recipe: LocalExitRecipe) -> Iterator[Facts]:
    """How overall latency moves with the threshold."""
    plain = _plain(tables, edge=_free(tables))
    by_t = [(t, column(plain, "overall_ms", threshold=t).mean()) for t in sorted(plain["threshold"].unique())]
    rounds = _equal(plain, model="SEM").pivot_table(index="round", columns="threshold", values="overall_ms")
    yield Facts(
        rises=[Margin(*seeds_interval(rounds[low] - rounds[high])) for low, high in pairwise(rounds)],
        by_threshold=listed("T = {t:g}: {ms:.3f} ms", [{"t": t, "ms": ms} for t, ms in by_t]),
    )


def _of_weights(tables: Tables, recipe: LocalExitRecipe) -> Iterator[Facts]:
    """What weights that rise or fall with depth do to the multi-exit model's exits."""
    for name, towards, exits in (("rising", "later", "5 to 8"), ("falling", "earlier", "1 to 4")):
        if name in recipe.weightings:
            gained, cloud = (
                100 * (column(tables["final"], end, "MEM", weighting=name) - column(tables["final"], end, "MEM"))
                for end in ("edge", "cloud")
            )
            where = slice(4, None) if towards == "later" else slice(4)
            part = gained[where]
            level = column(tables["final"], "edge", "MEM")[where].mean()
            yield Facts(
                towards=towards,
                exits=exits,
                part=part.mean(),
                better=Margin(part.mean() / 100, 2**0.5 * share_half(level, images_tested(tables))),
                all=gained.mean(),
                cloud=cloud[0],
            )


def _of_restriction(tables: Tables, recipe: LocalExitRecipe) -> Iterator[Facts]:
    """The most restricted edge node beside the free one."""
    latency = tables["latency"]
    last = latency["edge"].iloc[-1]
    rows = _plain(tables, edge=last, threshold=T)
    slow = by_round(rows, "overall_ms")
    facts = next(_of_latency(tables, recipe))
    yield Facts(
        free=_free(tables),
        restricted=last,
        slow=slow.mean().to_numpy(),
        slow_fastest=_first(slow.mean().to_numpy()),
        fastest=facts.fastest,
        earlier=least_at(slow, range(facts.overall.argmin())),
        peak=latency.loc[latency["edge"] == last, "peak_mb"].max(),
        shared=facts.shared,
    )


def _of_dropping(tables: Tables, recipe: LocalExitRecipe) -> Iterator[Facts]:
    """What a second threshold of the entropy saves, at an early and at the last exit."""
    rows = _equal(tables["dropped"], model="SEM", drop_above=recipe.drop_above).set_index("exit")
    latency = _equal(tables["latency"], edge=_free(tables), threshold=T)
    all_in = column(tables["accuracy"], "accuracy", threshold=T)
    ms, all_ms = (column(latency, "overall_ms", drop_above=d) for d in (recipe.drop_above, 1.0))
    for exit in (2, 8):
        yield Facts(
            exit=exit,
            above=recipe.drop_above,
            row=rows.loc[exit],
            images=images_tested(tables),
            all_in=all_in[exit - 1],
            ms=ms[exit - 1],
            all_ms=all_ms[exit - 1],
        )


def _of_agreement(tables: Tables, recipe: LocalExitRecipe) -> Iterator[Facts]:
    latency = tables["latency"]
    yield Facts(agrees=latency["agrees"].min(), fallback=latency["fallback"].max())


CLAIMS = (
    Group(_of_exits, (
        Claim("Later exits let more frames leave locally (SEM-1 … SEM-8, T = 0.3)", "SEM-3 53.8 %, SEM-8 91.4 %",
              "{local:%}", lambda f: rising(f.local, f.spread.of("SEM local")), otherwise="{little}"),
        Claim("In SEM-3 more frames leave locally than go to the cloud", "5,383 of 10,000",
              "{local[2]:%}; {most_local}", lambda f: at_least(f.local[2], 0.5, f.images),
              otherwise="its exit alone is right about {single[2]:%} of all images, the paper's about 77.8 %"),
        Claim("Later exits have the higher edge accuracy", "SEM-1 87.20 %, SEM-8 95.24 %",
              "{edge_accuracy:%}", lambda f: rising(f.edge_accuracy, f.spread.of("SEM edge_accuracy")),
              otherwise="{little}"),
        Claim("After later exits cloud accuracy is lower: what is left is hard",
              "SEM-1 88.51 %, SEM-2 86.13 %, SEM-8 58.07 %",
              "{cloud_accuracy:%}", lambda f: rising(-f.cloud_accuracy, f.spread.of("SEM cloud_accuracy"))),
        Claim("Later exits tend to the higher overall accuracy, SEM-8 is best", "SEM-8 92.04 %",
              "{accuracy:%}",
              lambda f: [rising(f.accuracy, f.spread.of("SEM accuracy")),
                         least_among(-f.accuracy, f.spread.of("SEM accuracy"), [7])],
              otherwise="{little}"),
        Claim("SEM-3 has the worst overall accuracy", "86.04 %",
              "{worst}, {least:%}", lambda f: least_among(f.accuracy, f.spread.of("SEM accuracy"), [2]),
              otherwise="of what leaves at exits 2 and 3 {edge_accuracy[1]:%} and {edge_accuracy[2]:%} are right, of "
              "what goes on {cloud_accuracy[1]:%} and {cloud_accuracy[2]:%}"),
        Claim("The MEM is worst at exit 2 and best at exit 8 (overall accuracy)", "84.31 %, 86.10 %",
              "{mem_worst} {least_mem:%}, {mem_best} {most_mem:%}",
              lambda f: [least_among(sign * f.mem["accuracy"], f.spread.of("MEM accuracy"), [k])
                         for sign, k in ((1, 1), (-1, 7))],
              otherwise="all eight lie within {mem_range:.1f} points"),
        Claim("At every exit fewer frames leave the MEM locally than the SEM", "8 of 8 exits (Fig. 6A)",
              "{fewer} of 8; MEM {mem[local]:%}",
              lambda f: f.spread.above(f.local, f.mem["local"], "SEM local", "MEM local")),
        Claim("At every exit the MEM is less accurate overall than the SEM",
              "8 of 8 exits; at exit 8 86.10 % against 92.04 %",
              "{worse} of 8; at exit 8 {mem[accuracy][7]:%} against {accuracy[7]:%}",
              lambda f: f.spread.above(f.accuracy, f.mem["accuracy"], "SEM accuracy", "MEM accuracy"),
              otherwise="by {behind:.1f} points in the mean, at worst {closest:+.1f} at {closest_at}"),
    )),
    Group(_of_latency, (
        Claim("SEM-1 has the shortest edge latency and the longest overall latency{over}", "{published[0]}",
              "{shortest}, {longest}",
              lambda f: f.ends,
              otherwise="{shared}"),
        Claim("Cloud latency is similar in all SEMs (here: the longest within 1.5 times the shortest){over}",
              "{published[1]}",
              "{cloud:.3g} ms from the batch's sending", lambda f: f.alike, otherwise="{waits}"),
        Claim("An exit in the middle (here: 2 to 7) is the fastest of the SEMs and of the MEM (overall latency){over}",
              "{published[2]}",
              "{fastest} of {overall:.3g} ms; MEM {mem_fastest} of {mem:.3g} ms",
              lambda f: f.middle, otherwise="{shared}"),
        Claim("At every exit the MEM is slower than the SEM{over}", "{published[3]}",
              "{slower} of 8; at exit 5 {mem[4]:.3f} ms against {overall[4]:.3f} ms",
              lambda f: f.mem_slower, otherwise="{shared}"),
    )),
    Group(_of_exits, (
        Claim("Edge, cloud and overall accuracy rise as the threshold falls (mean of the SEMs at T = 0.1 / 0.3 / 0.5)",
              "Fig. 7B", "{by_threshold}", lambda f: f.rises),
        Claim("The threshold matters most to the edge accuracy of SEM-1 (from T = 0.5 to 0.1)", "SEM-1",
              "{gaps[edge_accuracy]:points}",
              lambda f: least_among(-f.gaps["edge_accuracy"], f.spread.of("gap edge_accuracy"), [0])),
        Claim("The threshold matters most to the overall accuracy of SEM-1 (from T = 0.5 to 0.1)", "SEM-1",
              "{gaps[accuracy]:points}",
              lambda f: least_among(-f.gaps["accuracy"], f.spread.of("gap accuracy"), [0])),
    )),
    Group(_of_thresholds, (
        Claim("Overall latency rises as the threshold falls (mean of the SEMs)", "Fig. 7C",
              "{by_threshold}", lambda f: f.rises),
    )),
    Group(_of_exits, (
        Claim("At the end of training each SEM's exit beats the MEM's over all images",
              "8 of 8 exits; SEM-2 72.65 %, MEM 64.59 %",
              "{beats} of 8; SEM {single:%}, MEM {several:%}",
              lambda f: f.spread.above(f.single, f.several, "SEM edge", "MEM edge")),
        Claim("The SEMs' lead over the MEM's exits over all images is the largest at exit 2", "8.1 points",
              "{lead:points}", lambda f: least_among(-f.lead, f.spread.of_lead("SEM edge", "MEM edge"), [1])),
        Claim("Each SEM's cloud exit beats the MEM's over all images", "8 of 8; MEM 88.58 %",
              "{cloud_beats} of 8; SEM {cloud:%}, MEM {mem_cloud[0]:%}",
              lambda f: f.spread.above(f.cloud, f.mem_cloud, "SEM cloud", "MEM cloud")),
        Claim("SEM-3 beats the MEM's exit 4", "77.76 % against 76.06 %",
              "{single[2]:%} against {several[3]:%}",
              lambda f: f.spread.above(f.single[2], f.several[3], "SEM-3 edge", "MEM-4 edge"),
              otherwise="an exit to itself brings SEM-3 {alone:+.1f} points over the MEM's exit 3, another block "
              "brings exit 4 {deeper:+.1f}"),
        Claim("An SEM's lead over the MEM's next exit grows from SEM-3 on",
              "1.7 points in SEM-3",
              "SEM-3 to SEM-7 {lead_on_next:points}",
              lambda f: rising(f.lead_on_next, f.spread.of_lead("SEM edge", "MEM edge", EXITS - 1)[2:, 2:])),
        Claim("SEM-6's local exit beats the MEM's cloud exit", "88.92 % against 88.58 %",
              "{single[5]:%} against {mem_cloud[5]:%}",
              lambda f: f.spread.above(f.single[5], f.mem_cloud[5], "SEM-6 edge", "MEM-6 cloud")),
        Claim("From SEM-7 on the cloud adds little over all images (here: less than 2 points)",
              "SEM-7 90.98 % and 92.10 %",
              "SEM-7 {single[6]:%} and {cloud[6]:%}",
              lambda f: f.spread.above(f.single[6], f.cloud[6], "SEM-7 edge", "SEM-7 cloud", by=-0.02)),
    )),
    Group(_of_weights, (
        Claim("Future work: weights that are larger at {towards} exits make the MEM's {towards} exits better",
              OWN,
              "mean over exits {exits} {part:+.1f} points, over all eight {all:+.1f}; cloud {cloud:+.1f}",
              lambda f: f.better),
    )),
    Group(_of_restriction, (
        Claim("Future work: with restricted edge nodes ({restricted}) an earlier exit is the fastest", OWN,
              "{slow_fastest} of {slow:.3g} ms, where with {free} it is {fastest}; at most {peak:.0f} MB in use",
              lambda f: f.earlier, otherwise="{shared}"),
    )),
    Group(_of_dropping, (
        Claim("A drop threshold saves the cloud's work on frames that it would not get right (SEM-{exit}, dropped "
              "above {above:g}; here: it would have answered less than half of them right)", OWN,
              "{row.dropped:%} dropped, {row.cloud_saved:%} of what went to the cloud; accuracy over answered frames "
              "{row.accuracy_answered:%} instead of {all_in:%}; the cloud would have answered {row.lost:%} of the "
              "dropped right; {ms:.3f} ms per frame instead of {all_ms:.3f} ms",
              lambda f: at_least(1 - f.row["lost"], 0.5, f.row["dropped"] * f.images),
              otherwise="the cloud is still right about most of what this exit is unsure of"),
    )),
    Group(_of_agreement, (
        Claim("The three processes answer as the exits' logits say (our own check)", OWN,
              "at least {agrees:%} of the frames in each measurement; {fallback:%} fallbacks at most",
              lambda f: bool(f.agrees >= 0.99)),
    )),
)  # fmt: skip
