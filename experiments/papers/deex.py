"""Decision early exit: the first exit decides whether the other side branches are worth a visit (Barbosa et al.)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from eex.experiments.papers.paper import Claim, Images, Work, confidences, seeds_interval
from eex.experiments.plotting import confusion_figure, paper_figure
from eex.policies.algorithms.deex import DEEx
from eex.policies.algorithms.deex_ucb import DEExUCB
from eex.policies.algorithms.fixed import Fixed
from eex.policies.core.base import Context, Floats, Ints, Policy
from eex.policies.core.routing import answer, route

if TYPE_CHECKING:
    from torch import Tensor

    from eex.models.network import EarlyExitNet
    from eex.stream.wire.offload import Offloader

TITLE = "Barbosa, Pacheco, Couto, Medeiros, Campista: Decision Early-Exit, hastening offloading in BranchyNets"
PAIR = ("cat", "dog")
CROSS = {"binary": 0.85, "full": 0.75}
PUBLISHED_EARLY = {"binary": 0.2695, "full": 0.4784}
PUBLISHED_SAVED = {"binary": (0.10, 0.14, 0.41), "full": (0.20, 0.29, 0.385)}
"""Time saved at the crossing, as the text and as the captions of Figs. 6 and 7 have it; and with all at branch 2."""
PUBLISHED_SECONDS = {"binary": (4.2, 7.1), "full": (20.9, 34.0)}
PUBLISHED_ACCURACY = {"binary": (0.75, 0.91), "full": (0.70, 0.91)}
NOTES = """
- The paper starts from AlexNet with ImageNet's weights, at 224 pixels and a learning rate of 0.001. Here B-AlexNet for
  32x32 images (BranchyNet's) is trained from scratch, with the rate that suits it: the final exit stays far below the
  paper's 0.91, and every figure that depends on it shifts.
- The paper counts the time of Colab's GPU. Here it is the project's own engine in micro-batches of 32, policy, routing
  and records included, on the processor, side branch 2 evaluated only for the frames that go there.
- The paper gives the time saved at the crossing twice, 10 % and 14 % (binary), 20 % and 29 % (full): both are shown.
- The future work is here too: the same network cut after its second exit with a real worker behind an emulated link;
  four side branches; `extended` (what does not reach p_tar at the last branch goes to the cloud); three tiers; and
  p_d learned online (the policy `deex-ucb`).
"""


@dataclass(frozen=True)
class Recipe:
    """How much is trained and measured.

    Parameters
    ----------
    epochs, pair_epochs, more_epochs
        Of the network with two side branches on all classes, on cats and dogs, and of the one with four.
    lr, batch
        Peak learning rate and images a step (SGD, one cycle).
    validation
        Images held out.
    step
        Between values of p_d.
    repeats, timed
        Timed passes, over so many test images; 0 = all.
    sent
        Test images that are streamed to a real worker.
    links
        In front of it; "" for the loopback itself.
    rounds
        Frames over which p_d is learned.
    """

    epochs: int
    pair_epochs: int
    more_epochs: int
    lr: float = 0.01
    batch: int = 128
    validation: int = 5000
    step: float = 0.05
    repeats: int = 10
    timed: int = 0
    sent: int = 2000
    links: tuple[str, ...] = ("", "wifi", "sao-paulo")
    rounds: int = 20_000


RECIPES = {
    "quick": Recipe(2, 2, 1, validation=200, step=0.25, repeats=2, timed=300, sent=64, links=("",), rounds=1000),
    "reduced": Recipe(16, 20, 8, timed=2000),
    "paper": Recipe(60, 60, 60),
}


def run(work: Work, recipe: Recipe) -> list[Claim]:
    """Train three networks, and measure what p_d does to answers, time and accuracy."""
    images = work.images(recipe.validation)
    sets = {"binary": images.of(*PAIR), "full": images}
    nets = {name: _network(work, recipe, name, data) for name, data in sets.items()}
    said = {name: _said(work, name, nets[name], data) for name, data in sets.items()}
    answers = work.rows("answers", lambda: pd.concat([_answers(name, *said[name], recipe) for name in sets]))
    crossing = {name: cross(answers[answers["dataset"] == name]) for name in sets}
    confusion = work.rows(
        "confusion", lambda: pd.concat([_confusion(name, *said[name], sets[name], crossing[name]) for name in sets])
    )
    times = work.rows("times", lambda: _times(nets, sets, recipe))
    extended = work.rows("extended", lambda: _extended(*said["full"], crossing["full"]))
    more = work.rows("more_branches", lambda: _more_branches(work, recipe, images))
    sent = work.rows("partitioned", lambda: _partitioned(work, recipe, nets["full"], images))
    tiers = work.rows("three_tiers", lambda: _three_tiers(work, recipe, images))
    learned = work.rows("learned", lambda: _learned(*said["full"], recipe))
    _draw(work, answers, times, confusion, extended, more, sent, learned, images.classes)
    return _claims(answers, times, confusion, crossing, more, sent, tiers, learned, extended)


# ---- networks


def network(classes: Sequence[str], after: Sequence[int] = (0, 1)) -> "EarlyExitNet":
    """B-AlexNet with one linear layer at each side branch; by default behind its first two convolutions."""
    from eex.models.network import make

    return make("alexnet", classes, after=after, structure="fc", final_structure="pool_fc")


def _network(work: Work, recipe: Recipe, name: str, data: Images) -> "EarlyExitNet":
    import torch

    epochs = {"binary": recipe.pair_epochs, "full": recipe.epochs, "more": recipe.more_epochs}[name]
    torch.manual_seed(work.seed)
    net = network(data.classes, range(4 if name == "more" else 2))
    _train(work, name, net, data, recipe, epochs)
    return net


def _train(work: Work, name: str, net: "EarlyExitNet", data: Images, recipe: Recipe, epochs: int) -> None:
    from eex.models.training import Recipe as Training

    training = Training(epochs=epochs, lr=recipe.lr, batch=recipe.batch, seed=work.seed)
    work.trained(name, net, data.train, training, validation=data.validation)


def _said(work: Work, name: str, net: "EarlyExitNet", data: Images) -> tuple[Floats, Ints, Ints]:
    """Confidence and prediction of every exit for the test images, (N, exits), and their classes (N,)."""
    from eex.models.training import all_logits

    logits = work.kept(f"{name}-logits", lambda: all_logits(net, data.test[0]))
    return *confidences(logits), data.test[1].numpy()


# ---- what p_d does, from what every exit says of every image


def _grid(recipe: Recipe) -> Floats:
    return np.round(np.arange(0, 1 + recipe.step / 2, recipe.step), 4)


def routed(policy: Policy, confidence: Floats, prediction: Ints) -> tuple[Ints, Ints]:
    """Where each frame leaves, and its answer, under a policy that does not learn; both (N,)."""
    chosen = policy.choose(Context(frames=len(confidence)))
    exit, _, visited = route(confidence, chosen)
    seen = np.arange(confidence.shape[1]) < visited[:, None]
    seen[:, -1] = exit == confidence.shape[1] - 1
    told = np.where(seen, confidence, np.nan)
    return exit, answer(told, np.where(seen, prediction, -1), exit, chosen.exit_at[0, :, -1])


def _answers(name: str, confidence: Floats, prediction: Ints, label: Ints, recipe: Recipe) -> pd.DataFrame:
    rows = []
    for p_d in _grid(recipe):
        exit, said = routed(DEEx(p_d=p_d, exits=2), confidence, prediction)
        right = said == label
        row = {"dataset": name, "p_d": p_d, "accuracy": right.mean()}
        for e in (1, 2):
            here = exit == e
            row |= {f"ratio_{e + 1}": here.mean(), f"accuracy_{e + 1}": right[here].mean() if here.any() else np.nan}
        rows.append(row)
    return pd.DataFrame(rows)


def cross(rows: pd.DataFrame) -> float:
    """The smallest p_d from which on branch 2 answers its frames better than the final exit answers the others.

    NaN where there is none.
    """
    both = rows.dropna(subset=["accuracy_2", "accuracy_3"]).sort_values("p_d")
    above = both.loc[both["accuracy_2"] >= both["accuracy_3"], "p_d"]
    return float(above.iloc[0]) if len(above) else float("nan")


def _confusion(
    name: str, confidence: Floats, prediction: Ints, label: Ints, data: Images, crossing: float
) -> pd.DataFrame:
    rows = []
    for case, p_d in (("all at branch 2", 0.0), ("all at exit 3", None), ("crossing", crossing)):
        if p_d is None:
            said = prediction[:, -1]
        elif np.isnan(p_d):
            continue
        else:
            said = routed(DEEx(p_d=p_d, exits=2), confidence, prediction)[1]
        counts = np.zeros((len(data.classes), len(data.classes)), dtype=int)
        np.add.at(counts, (label, said), 1)
        for (i, j), count in np.ndenumerate(counts):
            row = {"dataset": name, "case": case, "true": data.classes[i], "answer": data.classes[j], "count": count}
            rows.append(row)
    return pd.DataFrame(rows)


def _extended(confidence: Floats, prediction: Ints, label: Ints, crossing: float) -> pd.DataFrame:
    """What sending on pays that does not reach p_tar at branch 2, at the p_d of the crossing (0.5 without one)."""
    p_d = 0.5 if np.isnan(crossing) else crossing
    rows = []
    for p_tar in np.round(np.arange(0, 1.01, 0.1), 2):
        exit, said = routed(DEEx(p_d=p_d, p_tar=p_tar, extended=True, exits=2), confidence, prediction)
        rows.append({"p_d": p_d, "p_tar": p_tar, "offloaded": (exit == 2).mean(), "accuracy": (said == label).mean()})
    return pd.DataFrame(rows)


# ---- time


def _pixels(data: Images, most: int = 0) -> "tuple[Tensor, Tensor]":
    images, labels = data.test
    most = most or len(images)
    return images[:most].float() / 255, labels[:most]


def _times(nets: "dict[str, EarlyExitNet]", sets: dict[str, Images], recipe: Recipe) -> pd.DataFrame:
    """Seconds to answer all test images, the values of p_d in turn within each pass."""
    from eex.experiments.papers.live import play
    from eex.models.fast import optimised

    rows = []
    for name, data in sets.items():
        fast, (images, labels) = optimised(nets[name]), _pixels(data, recipe.timed)
        play(fast, DEEx(exits=2), images[:512], labels[:512])  # warm up
        for repeat in range(recipe.repeats):
            for p_d in _grid(recipe):
                _, seconds = play(fast, DEEx(p_d=p_d, exits=2), images, labels)
                rows.append({"dataset": name, "p_d": p_d, "repeat": repeat, "seconds": seconds})
    return pd.DataFrame(rows)


def _more_branches(work: Work, recipe: Recipe, images: Images) -> pd.DataFrame:
    """Four side branches: DEEx beside a fixed threshold at each of them; accuracy, multiply-adds, and time a frame."""
    from eex.experiments.papers.live import play
    from eex.models.fast import optimised

    net = _network(work, recipe, "more", images)
    confidence, prediction, label = _said(work, "more", net, images)
    costs = net.costs()
    fast, (pixels, labels) = optimised(net), _pixels(images, recipe.timed)
    play(fast, DEEx(exits=4), pixels[:512], labels[:512])
    rows = []
    makers: dict[str, Callable[[float], Policy]] = {
        "DEEx, p_tar 0.8": lambda t: DEEx(p_d=t, p_tar=0.8, exits=4),
        "DEEx extended, p_tar 0.8": lambda t: DEEx(p_d=t, p_tar=0.8, extended=True, exits=4),
        "the same threshold at each exit": lambda t: Fixed(t, exits=4),
    }
    for name, make in makers.items():
        for t in np.round(np.arange(0, 1.01, 0.1 if recipe.step <= 0.1 else 0.5), 2):
            exit, said = routed(make(t), confidence, prediction)
            seconds = [play(fast, make(t), pixels, labels)[1] for _ in range(min(3, recipe.repeats))]
            rows.append(
                {
                    "policy": name,
                    "threshold": t,
                    "accuracy": (said == label).mean(),
                    "offloaded": (exit == 4).mean(),
                    "macs": _macs(exit, make(t), confidence, costs.stage_macs, costs.branch_macs),
                    "us_a_frame": 1e6 * float(np.median(seconds)) / len(labels),
                }
            )
    return pd.DataFrame(rows)


def _macs(
    exit: Ints, policy: Policy, confidence: Floats, stage_macs: Sequence[int], branch_macs: Sequence[int]
) -> float:
    """Mean multiply-adds a frame: stages up to where it left, and the branches that it visited."""
    chosen = policy.choose(Context(frames=len(confidence)))
    visited = route(confidence, chosen)[2]
    stages, branches = np.cumsum(stage_macs), np.concatenate([[0], np.cumsum(branch_macs)])
    last = exit == len(stage_macs) - 1
    return float((stages[exit] + branches[visited] + last * branch_macs[-1]).mean())


def _partitioned(work: Work, recipe: Recipe, net: "EarlyExitNet", images: Images) -> pd.DataFrame:
    """The edge here, the rest in a worker process behind a link: seconds a frame, answers and bytes against p_d."""
    from eex.experiments.papers.live import cloud, play
    from eex.models.card import load, save
    from eex.models.fast import optimised

    model = work.out / "work" / "model"
    save(net, model, name="deex")
    saved = load(model)
    fast, (pixels, labels) = optimised(saved), _pixels(images, recipe.sent)
    rows = []
    for link in recipe.links:
        with cloud(model, saved.fingerprint, link) as offloader:
            play(fast, DEEx(p_d=1.0, exits=2), pixels[:64], labels[:64], offloader=offloader)
            for p_d in _grid(recipe)[:: max(1, round(0.25 / recipe.step))]:
                for repeat in range(min(3, recipe.repeats)):
                    found, seconds = play(fast, DEEx(p_d=p_d, exits=2), pixels, labels, offloader=offloader)
                    rows.append(
                        {
                            "link": link or "loopback",
                            "p_d": p_d,
                            "repeat": repeat,
                            "ms_a_frame": 1000 * seconds / len(labels),
                            "latency_ms": found.latency_ms.mean(),
                            "offloaded": found.offloaded.mean(),
                            "fallback": found.fallback.mean(),
                            "bytes": found.bytes.mean(),
                            "accuracy": (found.answer == found.label).mean(),
                        }
                    )
    return pd.DataFrame(rows)


def _three_tiers(work: Work, recipe: Recipe, images: Images) -> pd.DataFrame:
    """Four side branches: two on the device, two at an edge nearby, the final exit in a cloud far away; and without
    the edge between. The device decides at exit 1 and answers at exit 2 (DEEx extended, p_d = p_tar / 2)."""
    from eex.experiments.papers.live import cloud, play, tiers
    from eex.models.card import load, save
    from eex.models.fast import optimised

    net = _network(work, recipe, "more", images)
    net.partition, model = 2, work.out / "work" / "model-more"
    save(net, model, name="deex-more")
    saved = load(model)
    saved.partition = 2
    fast, (pixels, labels) = optimised(saved), _pixels(images, recipe.sent)
    fast.partition = 2
    near, far = "5@200", recipe.links[-1]
    rows = []

    def measured(name: str, offloader: "Offloader", p_tar: float) -> dict[str, object]:
        policy = DEEx(p_d=p_tar / 2, p_tar=p_tar, extended=True, exits=2)
        found, seconds = play(fast, policy, pixels, labels, offloader=offloader)
        return {
            "tiers": name,
            "p_tar": p_tar,
            "device": 1 - found.offloaded.mean(),
            "latency_ms": found.latency_ms.mean(),
            "ms_a_frame": 1000 * seconds / len(labels),
            "fallback": found.fallback.mean(),
            "accuracy": (found.answer == found.label).mean(),
        }

    for p_tar in (0.6, 0.8, 0.9)[: 1 if recipe.repeats < 3 else 3]:
        with cloud(model, saved.fingerprint, far) as offloader:
            play(fast, Fixed(1.0, exits=2), pixels[:64], labels[:64], offloader=offloader)
            rows.append(measured("device, cloud", offloader, p_tar) | {"edge": 0.0})
        with tiers(model, saved.fingerprint, 4, p_tar, near, far) as (offloader, counted):
            play(fast, Fixed(1.0, exits=2), pixels[:64], labels[:64], offloader=offloader)
            before = counted()["here"]
            row = measured("device, edge, cloud", offloader, p_tar)
            rows.append(row | {"edge": (counted()["here"] - before) / len(labels)})
    return pd.DataFrame(rows)


# ---- p_d learned while the stream runs


def _learned(confidence: Floats, prediction: Ints, label: Ints, recipe: Recipe) -> pd.DataFrame:
    """`deex-ucb` on the test images drawn anew, ten runs an overhead, against the best p_d of hindsight."""
    from eex.policies.core.replay import replay
    from eex.policies.core.trace import Trace

    trace = Trace(confidence, prediction, label, tuple(map(str, range(int(prediction.max()) + 1))))
    marks = np.unique(np.linspace(recipe.rounds / 50, recipe.rounds, 50).astype(int))
    rows = []
    for overhead in (0.05, 0.1, 0.2):
        policy = DEExUCB(exits=2, runs=10)
        played = replay(policy, trace, overhead=overhead, rounds=recipe.rounds, order="resampled")
        skipped = confidence[played.frame][:, :, 0][..., None] < policy.grid  # (runs, rounds, arms)
        gain = np.maximum(0, confidence[:, -1] - confidence[:, 0])[played.frame][..., None] - overhead
        earned = np.where(skipped, gain, 0.0)
        best = earned.sum(axis=1).argmax(axis=1)
        regret = np.cumsum(np.take_along_axis(earned, best[:, None, None], axis=2)[..., 0] - played.reward, axis=1)
        p_d = policy.grid[played.arm]
        for k in range(len(played.frame)):
            for m, mark in enumerate(marks):
                since = marks[m - 1] if m else 0
                rows.append(
                    {
                        "overhead": overhead,
                        "run": k,
                        "round": mark,
                        "regret": regret[k, mark - 1],
                        "p_d": p_d[k, since:mark].mean(),
                        "best_p_d": policy.grid[best[k]],
                    }
                )
    return pd.DataFrame(rows)


# ---- what is shown


def _draw(
    work: Work,
    answers: pd.DataFrame,
    times: pd.DataFrame,
    confusion: pd.DataFrame,
    extended: pd.DataFrame,
    more: pd.DataFrame,
    sent: pd.DataFrame,
    learned: pd.DataFrame,
    classes: Sequence[str],
) -> None:
    names = {"ratio_2": "branch 2", "ratio_3": "exit 3"}
    ratios = answers.melt(["dataset", "p_d"], list(names), "exit", "ratio").replace({"exit": names})
    work.draw(
        "fig3-ratio",
        paper_figure(
            ratios,
            "p_d",
            "ratio",
            "exit",
            "dataset",
            title="Fig. 3: share of images answered at each exit",
            xlabel="p_d",
        ),
    )
    published = pd.DataFrame(
        [
            {"dataset": name, "p_d": p_d, "seconds": s, "source": "published"}
            for name, pair in PUBLISHED_SECONDS.items()
            for p_d, s in zip((0.0, 1.0), pair, strict=True)
        ]
    )
    both = pd.concat([_mean_times(times).assign(source="ours"), published])
    both["seconds"] = both["seconds"] / both.groupby(["dataset", "source"])["seconds"].transform("max")
    both["half"] = both["half"].fillna(0)
    work.draw(
        "fig4-time",
        paper_figure(
            both.assign(line="all images"),
            "p_d",
            "seconds",
            "line",
            "dataset",
            title="Fig. 4: time to answer the test images, as a share of the longest",
            xlabel="p_d",
            ylabel="time",
        ),
    )
    names = {"accuracy_2": "branch 2", "accuracy_3": "exit 3", "accuracy": "overall"}
    accuracy = answers.melt(["dataset", "p_d"], list(names), "exit", "value").replace({"exit": names})
    work.draw(
        "fig5-accuracy",
        paper_figure(
            accuracy, "p_d", "value", "exit", "dataset", title="Fig. 5: accuracy", xlabel="p_d", ylabel="accuracy"
        ),
    )
    for name, number in (("binary", 6), ("full", 7)):
        rows = confusion[confusion["dataset"] == name]
        order = list(PAIR) if name == "binary" else list(classes)
        matrices = {
            case: part.pivot(index="true", columns="answer", values="count").loc[order, order].to_numpy()
            for case, part in rows.groupby("case", sort=False)
        }
        work.draw(f"fig{number}-confusion-{name}", confusion_figure(matrices, order))
    table = extended.melt(["p_tar"], ["offloaded", "accuracy"], "quantity", "value")
    work.draw(
        "extended",
        paper_figure(
            table,
            "p_tar",
            "value",
            "quantity",
            title=f"What does not reach p_tar at branch 2 goes to the cloud (p_d = {extended['p_d'].iloc[0]:g})",
        ),
    )
    table = more.assign(macs=more["macs"] / 1e6)
    work.draw(
        "more-branches",
        paper_figure(
            table,
            "macs",
            "accuracy",
            "policy",
            title="Four side branches: accuracy against cost",
            xlabel="million multiply-adds a frame",
        ),
    )
    table = sent.groupby(["link", "p_d"], sort=False)["ms_a_frame"].mean().reset_index()
    work.draw(
        "partitioned",
        paper_figure(
            table,
            "p_d",
            "ms_a_frame",
            "link",
            title="Cut after branch 2, the rest in a worker process: time a frame, many under way",
            ylabel="ms a frame",
        ),
    )
    table = learned.groupby(["overhead", "round"])["p_d"].mean().reset_index()
    work.draw(
        "learned",
        paper_figure(table, "round", "p_d", "overhead", title="p_d played by deex-ucb, by overhead", ylabel="p_d"),
    )


def _mean_times(times: pd.DataFrame) -> pd.DataFrame:
    """Mean seconds and half-width of their 95 % interval by dataset and p_d."""
    rows = []
    for (name, p_d), part in times.groupby(["dataset", "p_d"], sort=False):
        mean, half = seeds_interval(part["seconds"].tolist())
        rows.append({"dataset": name, "p_d": p_d, "seconds": mean, "half": half})
    return pd.DataFrame(rows)


def _claims(
    answers: pd.DataFrame,
    times: pd.DataFrame,
    confusion: pd.DataFrame,
    crossing: dict[str, float],
    more: pd.DataFrame,
    sent: pd.DataFrame,
    tiers: pd.DataFrame,
    learned: pd.DataFrame,
    extended: pd.DataFrame,
) -> list[Claim]:
    claims = []
    scratch = "B-AlexNet from scratch at 32 pixels, not ImageNet's AlexNet at 224"
    for name in PUBLISHED_SECONDS:
        rows = answers[answers["dataset"] == name].set_index("p_d")
        took = _mean_times(times[times["dataset"] == name]).set_index("p_d")
        early, late = took["seconds"].loc[0.0], took["seconds"].loc[1.0]
        halves = took["half"].loc[0.0], took["half"].loc[1.0]
        saved = 1 - early / late
        claims.append(
            Claim(
                f"{name}: answering all at branch 2 takes less time than all at exit 3",
                f"-{100 * PUBLISHED_SAVED[name][2]:.1f} % ({PUBLISHED_SECONDS[name][0]:g} s against "
                f"{PUBLISHED_SECONDS[name][1]:g} s)",
                f"-{100 * saved:.1f} % ({early:.2f} ± {halves[0]:.2f} s against {late:.2f} ± {halves[1]:.2f} s)",
                early + halves[0] < late - halves[1],
            )
        )
        at_two, at_three = rows["accuracy"].loc[0.0], rows["accuracy_3"].loc[1.0]
        published = PUBLISHED_ACCURACY[name]
        images = confusion[(confusion["dataset"] == name) & (confusion["case"] == "all at exit 3")]["count"].sum()
        margin = 1.96 * math.sqrt(2 * at_three * (1 - at_three) / images)
        claims.append(
            Claim(
                f"{name}: and is less accurate",
                f"{published[0]:.2f} against {published[1]:.2f}",
                f"{at_two:.3f} against {at_three:.3f} (± {margin:.3f})",
                bool(at_two < at_three - margin),
                f"{scratch}; its last layers add little to what branch 2 sees",
            )
        )
        p_d = crossing[name]
        if np.isnan(p_d):
            found, ours = None, "no crossing"
        else:
            found = p_d
            ours = f"{p_d:g}, {100 * rows['ratio_2'].loc[p_d]:.1f} % answered early"
        claims.append(
            Claim(
                f"{name}: from some p_d on, branch 2 is more accurate than exit 3, each on its own images",
                f"{CROSS[name]:g}, {100 * PUBLISHED_EARLY[name]:.2f} % answered early",
                ours,
                found is not None,
                "where the two lines meet depends on how far the exits' accuracies are apart",
            )
        )
        if found is not None:
            at = 1 - took["seconds"].loc[found] / late
            text, caption = (f"{100 * s:.0f} %" for s in PUBLISHED_SAVED[name][:2])
            all_late = rows["accuracy"].loc[1.0]
            claims.append(
                Claim(
                    f"{name}: time saved at the crossing, at about the accuracy of exit 3",
                    f"{text} (text), {caption} (caption)",
                    f"{100 * at:.1f} %, accuracy {rows['accuracy'].loc[found]:.3f} against {all_late:.3f}",
                    bool(at > 0 and rows["accuracy"].loc[found] > all_late - 0.01),
                )
            )
    claims.append(_claim_of_more(more))
    near, far = sent["link"].iloc[0], sent["link"].iloc[-1]
    table = sent.groupby(["link", "p_d"])["ms_a_frame"].mean()
    low, high = sent["p_d"].min(), sent["p_d"].max()
    claims.append(
        Claim(
            "future work: cut behind branch 2, a higher p_d costs communication too",
            "not published",
            f"{near}: {table[near, low]:.2f} to {table[near, high]:.2f} ms a frame; "
            f"{far}: {table[far, low]:.2f} to {table[far, high]:.2f}",
            bool(table[far, high] > table[far, low]),
        )
    )
    by_tiers = tiers.groupby("tiers", sort=False)[["latency_ms", "accuracy", "edge"]].mean()
    two, three = by_tiers.loc["device, cloud"], by_tiers.loc["device, edge, cloud"]
    claims.append(
        Claim(
            "future work: an edge between device and cloud, with side branches of its own, answers sooner",
            "not published",
            f"latency {three['latency_ms']:.0f} ms against {two['latency_ms']:.0f} ms without it, accuracy "
            f"{three['accuracy']:.3f} against {two['accuracy']:.3f}; {100 * three['edge']:.0f} % answered at the edge",
            bool(three["latency_ms"] < two["latency_ms"]),
            "what the edge answers early must save more than all the others lose by its link and its turn",
        )
    )
    first, last = extended.iloc[0], extended.iloc[-1]
    claims.append(
        Claim(
            "future work: sending on what does not reach p_tar at branch 2 is more accurate and offloads more",
            "not published",
            f"accuracy {first['accuracy']:.3f} to {last['accuracy']:.3f}, "
            f"offloaded {100 * first['offloaded']:.1f} to {100 * last['offloaded']:.1f} %",
            bool(extended["accuracy"].max() > first["accuracy"] and last["offloaded"] > first["offloaded"]),
        )
    )
    final = learned[learned["round"] == learned["round"].max()].groupby("overhead").mean()
    half = learned[learned["round"] >= learned["round"].max() / 2].groupby("overhead")["round"].min().iloc[0]
    middle = learned[learned["round"] == half].groupby("overhead").mean()
    slower = (final["regret"] - middle["regret"]) < middle["regret"]
    claims.append(
        Claim(
            "future work: p_d can be learned while the stream runs (deex-ucb, the overhead prices an offload)",
            "not published",
            "; ".join(
                f"overhead {o:g}: p_d {r['p_d']:.2f} at the end, best {r['best_p_d']:.2f}, regret {r['regret']:.0f}"
                for o, r in final.iterrows()
            )
            + f" after {int(learned['round'].max()):,} frames",
            bool(slower.all()),
            "holds: less regret in the second half than in the first",
        )
    )
    return claims


def _claim_of_more(more: pd.DataFrame) -> Claim:
    """At the same accuracy, but for 0.2 points, does DEEx's skipping cost less than visiting every exit?"""
    fixed = more[more["policy"] == "the same threshold at each exit"].sort_values("accuracy")
    best = more[more["policy"] == "DEEx extended, p_tar 0.8"].sort_values("accuracy").iloc[-1]
    reach = fixed[fixed["accuracy"] >= best["accuracy"] - 0.002]
    rival = reach.sort_values("macs").iloc[0] if len(reach) else fixed.iloc[-1]
    return Claim(
        "future work: with four side branches, skipping those in between saves work",
        "not published",
        f"DEEx extended, p_d {best['threshold']:g}: accuracy {best['accuracy']:.3f} for {best['macs'] / 1e6:.1f} M "
        f"multiply-adds; fixed {rival['threshold']:g}: {rival['accuracy']:.3f} for {rival['macs'] / 1e6:.1f} M",
        bool(best["macs"] < rival["macs"]),
        "a skipped frame saves a few cheap branches, and loses what they would have answered",
    )
