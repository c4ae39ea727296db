"""AdaEE: a bandit learns the threshold while the stream runs, at any distortion and overhead (Pacheco et al.)."""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, cast

import numpy as np
import pandas as pd

from eex.experiments.papers.deex import routed
from eex.experiments.papers.paper import Claim, Work
from eex.experiments.plotting import paper_figure
from eex.policies.algorithms.arms import GRID
from eex.policies.algorithms.fixed import Fixed
from eex.policies.core.base import Floats, Ints
from eex.policies.core.errors import EexError
from eex.policies.core.references import best_arm, best_arm_of_segments, fixed_rewards, oracle
from eex.policies.core.replay import Order, draw_frames, replay
from eex.policies.core.schedule import PRISTINE
from eex.policies.core.trace import Trace, read_trace, write_trace

TITLE = "Pacheco, Bajpai, Shifrin, Couto, Menasché, Hanawal, Campista: AdaEE, UCB-based adaptive early exit"
NOTES = """
- The paper's own figures are not at hand: its sentences are taken from the survey of deployment strategies, and there
  is nothing published to set beside ours.
- The streams are recordings of the shipped model on CIFAR-10's test images, with the expert branches that its
  classifier selects: one stream a distortion level, and one that goes through all of them (`changing`). Beside them,
  the authors' own traces of a one-branch AlexNet (`--published FOLDER` names the folder of their CSV files). Frames are
  drawn anew from a stream in each round, and feedback is not late.
- Beside AdaEE (`ucb`, c = 1, the thresholds 0, 0.1 … 1) play `gain-curve`, the policy that we recommend, `random`, and
  every fixed threshold. Regret is against the best fixed threshold of hindsight, of each segment where the stream
  changes.
- With three edge exits all of them share one threshold.
"""
POLICIES = ("ucb", "gain-curve", "random")
MARKS = 16
"""Rounds at which curves are kept."""
FAR = 0.3
"""From which distance on a fixed threshold counts as far from the best."""
SUBLINEAR = 0.5
"""Regret of the second half of the rounds, as a share of the first half's, that counts as well below it."""
STATIC = 0.8
"""The fixed threshold that stands for a static policy."""
CHANGING = "changing"
OURS, AUTHORS = "our recordings", "its authors' traces"


@dataclass(frozen=True)
class Recipe:
    """How much is recorded and played.

    Parameters
    ----------
    levels
        Distortions recorded: kind and level.
    frames
        Of each.
    exits
        Edge exits of the network that is cut behind so many.
    overheads
        Prices of offloading, in units of confidence.
    rounds, runs
        Frames played, and how often.
    long
        Frames that UCB alone plays of the first stream, to see whether it settles later.
    """

    levels: tuple[tuple[str, float], ...]
    frames: int
    rounds: int
    runs: int
    long: int
    exits: tuple[int, ...] = (1, 3)
    overheads: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)


LEVELS = (
    (PRISTINE, 0.0),
    *(("gaussian_blur", s) for s in (0.5, 1.0, 1.5, 2.0)),
    *(("gaussian_noise", s) for s in (10.0, 20.0, 30.0, 40.0)),
)
RECIPES = {
    "quick": Recipe(
        (LEVELS[0], LEVELS[2], LEVELS[6]), frames=500, rounds=1000, runs=3, long=4000, overheads=(0.05, 0.3)
    ),
    "reduced": Recipe(LEVELS, frames=8000, rounds=10_000, runs=10, long=200_000),
    "paper": Recipe(LEVELS, frames=8000, rounds=100_000, runs=50, long=1_000_000),
}


def run(work: Work, recipe: Recipe) -> list[Claim]:
    """Record the streams, play every policy on each, and measure what it loses."""
    sources: dict[str, Callable[[], list[Stream]]] = {OURS: partial(_ours, work, recipe)}
    if work.published is not None:
        sources[AUTHORS] = partial(_authors, work.published)
    elif not work.quiet:
        print("adaee: without --published FOLDER of its authors' CSV files, on our recordings alone", file=sys.stderr)
    tables, claims = [], []
    for source, streams in sources.items():
        name = "ours" if source == OURS else "authors"
        rows = work.rows(name, partial(_play_all, streams, recipe, work.seed))
        long = work.rows(f"{name}_long", partial(_play_long, streams, recipe, work.seed))
        tables.append(rows)
        claims += _claims(source, rows, long)
    curves = pd.concat(tables, ignore_index=True)
    _draw(work, curves, curves[curves["round"] == curves["round"].max()])
    return claims


# ---- streams


@dataclass(frozen=True)
class Stream:
    """A trace, how it is played, and what it is called."""

    name: str
    trace: Trace
    order: Order = "resampled"


def _ours(work: Work, recipe: Recipe) -> list[Stream]:
    """The shipped model cut after each number of exits, at every level, and through all levels in turn."""
    path = work.out / "work" / "trace.arrow"
    if not path.exists():
        from eex.stream.config import FrameConfig
        from eex.stream.run.recording import record

        texts = (k if k == PRISTINE else f"{k}@{level:g}" for k, level in recipe.levels)
        schedule = ", ".join(f"{text}:{recipe.frames}" for text in texts)
        config = FrameConfig(
            source=work.data,
            distortion=schedule,
            resize=True,
            batch=250,
            seed=work.seed,
            device=cast(Literal["cpu", "cuda"], work.device),
        )
        write_trace(path, record(config)[0])
    whole = read_trace(path)
    streams = []
    for exits in recipe.exits:
        trace = first_exits(whole, exits)
        for kind, level in recipe.levels:
            here = np.flatnonzero((whole.distortion == kind) & (whole.level == level))
            streams.append(Stream(_named(kind, level), trace[here]))
        # as many frames of each level as make up the rounds
        few = -(-recipe.rounds // len(recipe.levels))
        part = np.concatenate([np.flatnonzero(whole.segments == k)[:few] for k in range(whole.segments[-1] + 1)])
        streams.append(Stream(CHANGING, trace[part], "segments"))
    return streams


def _authors(folder: Path) -> list[Stream]:
    """The CSV files of a folder."""
    files = sorted(folder.glob("*.csv"))
    if not files:
        raise EexError(f"{folder}: has no .csv files (--published)")
    return [Stream(path.stem, read_trace(path)) for path in files]


def first_exits(trace: Trace, exits: int) -> Trace:
    """The trace of the same network cut after so many exits: the cloud says what it said.

    Raises
    ------
    EexError
        If it has fewer.
    """
    if not 1 <= exits <= trace.edge_exits:
        raise EexError(f"the model has {trace.edge_exits} edge exits, {exits} are wanted")
    kept = [*range(exits), -1]
    seconds = None if trace.seconds is None else trace.seconds[:, kept]
    return dataclasses.replace(
        trace, confidence=trace.confidence[:, kept], prediction=trace.prediction[:, kept], seconds=seconds
    )


def _named(kind: str, level: float) -> str:
    return kind if kind == PRISTINE else f"{kind.removeprefix('gaussian_')} {level:g}"


# ---- what is played


def _play_all(streams: Callable[[], list[Stream]], recipe: Recipe, seed: int) -> pd.DataFrame:
    return pd.concat([_play(stream, recipe, seed) for stream in streams()], ignore_index=True)


def _play_long(streams: Callable[[], list[Stream]], recipe: Recipe, seed: int) -> pd.DataFrame:
    """UCB alone on the first stream, for long: few runs at three overheads."""
    few = recipe.overheads[:: max(1, len(recipe.overheads) // 3)]
    longer = dataclasses.replace(recipe, rounds=recipe.long, runs=min(4, recipe.runs), overheads=few)
    return _play(streams()[0], longer, seed, ("ucb",))


def _play(stream: Stream, recipe: Recipe, seed: int, policies: Sequence[str] = POLICIES) -> pd.DataFrame:
    """Every policy and every fixed threshold on the same frames of a stream; means over the runs at each mark."""
    from eex.policies.registry import make_policy

    trace, keys, overheads = stream.trace, np.arange(recipe.runs), np.array(recipe.overheads)
    marks = np.unique(np.linspace(recipe.rounds / MARKS, recipe.rounds, MARKS).astype(int))
    frame = draw_frames(trace, recipe.rounds, stream.order, seed, keys)
    earned = {o: fixed_rewards(trace.confidence, o, np.array(GRID)) for o in recipe.overheads}
    best = {o: best_arm(earned[o], frame) for o in recipe.overheads}
    against = {
        o: best_arm_of_segments(earned[o], frame, trace.segments) if stream.order == "segments" else best[o][1]
        for o in recipe.overheads
    }
    tables = []
    for name in policies:
        policy = make_policy(name, exits=trace.edge_exits, runs=len(keys) * len(overheads), seed=seed)
        policy.keys = (keys + 1_000_003 * np.round(1e6 * overheads).astype(np.int64)[:, None]).ravel()
        played = replay(
            policy,
            trace,
            np.repeat(overheads, len(keys)),
            rounds=recipe.rounds,
            order=stream.order,
            seed=seed,
            keys=np.tile(keys, len(overheads)),
        )
        thresholds = np.asarray(policy.grid)[played.arm]  # type: ignore[attr-defined]
        right = played.answer == trace.label[played.frame]
        for k, o in enumerate(recipe.overheads):
            mine = slice(k * len(keys), (k + 1) * len(keys))
            table = at_marks(marks, against[o] - played.reward[mine], thresholds[mine])
            table["regret_oracle"] = (oracle(trace.confidence, o)[frame] - played.reward[mine]).sum(axis=1).mean()
            table["accuracy"], table["offloaded"] = right[mine].mean(), played.offloaded[mine].mean()
            tables.append(table.assign(policy=name, overhead=o))
    for a, threshold in enumerate(GRID):
        exit, said = routed(Fixed(threshold, exits=trace.edge_exits), trace.confidence, trace.prediction)
        for o in recipe.overheads:
            reward = earned[o][frame, a]
            table = at_marks(marks[-1:], against[o] - reward, np.full(reward.shape, threshold))
            table["regret_oracle"] = (oracle(trace.confidence, o)[frame] - reward).sum(axis=1).mean()
            table["accuracy"] = (said == trace.label)[frame].mean()
            table["offloaded"] = (exit == trace.edge_exits)[frame].mean()
            tables.append(table.assign(policy="fixed", overhead=o))
    rows = pd.concat(tables, ignore_index=True)
    rows["best_threshold"] = rows["overhead"].map({o: np.median(np.array(GRID)[best[o][0]]) for o in recipe.overheads})
    rows.loc[rows["round"] < recipe.rounds, ["regret_oracle", "accuracy", "offloaded"]] = (
        np.nan
    )  # they are of all rounds
    return rows.assign(stream=stream.name, exits=trace.edge_exits)


def at_marks(marks: Ints, lost: Floats, thresholds: Floats) -> pd.DataFrame:
    """Regret so far and the mean threshold since the mark before, at each mark, over the runs.

    Parameters
    ----------
    marks
        Numbers of rounds, rising, the last one all of them.
    lost
        Regret of each round, (runs, rounds).
    thresholds
        Played, (runs, rounds).

    Returns
    -------
    DataFrame
        round; regret and `half`, half its 95 % interval over the runs (Student's t); threshold.

    Examples
    --------
    >>> at_marks(np.array([1, 3]), np.array([[1.0, 0.0, 2.0]]), np.array([[0.5, 0.2, 0.4]]))["threshold"].tolist()
    [0.5, 0.30000000000000004]
    """
    from scipy.special import stdtrit

    runs = len(lost)
    regret = np.cumsum(lost, axis=1)[:, marks - 1]
    before = np.concatenate([[0], marks[:-1]])
    mean = [thresholds[:, a:b].mean() for a, b in zip(before, marks, strict=True)]
    half = stdtrit(runs - 1, 0.975) * regret.std(axis=0, ddof=1) / runs**0.5 if runs > 1 else np.nan
    return pd.DataFrame({"round": marks, "regret": regret.mean(axis=0), "half": half, "threshold": mean})


def slowing(curves: pd.DataFrame, policy: str = "ucb") -> pd.Series:
    """Regret of the second half of the rounds as a share of the first half's, by stream, exits and overhead."""
    mine = curves[curves["policy"] == policy]
    whole = mine[mine["round"] == mine["round"].max()].set_index(["stream", "exits", "overhead"])["regret"]
    half = mine[mine["round"] == mine["round"].max() // 2].set_index(["stream", "exits", "overhead"])["regret"]
    return (whole - half) / half


# ---- what is shown


def _draw(work: Work, curves: pd.DataFrame, ends: pd.DataFrame) -> None:
    middle = sorted(curves["overhead"].unique())[len(curves["overhead"].unique()) // 3]
    names = list(dict.fromkeys(curves["stream"]))
    levels = names[: names.index(CHANGING)]  # every second of many, so that a figure stays readable
    shown = [*(levels[::2] if len(levels) > 4 else levels), *names[names.index(CHANGING) :]]
    curves, ends = (rows[rows["stream"].isin(shown)] for rows in (curves, ends))
    played = curves[curves["policy"].isin(POLICIES)]
    for exits, part in played.groupby("exits"):
        case = f"{exits} edge exit{'s' if exits > 1 else ''}"
        at = part[part["overhead"] == middle]
        work.draw(
            f"regret-{exits}",
            paper_figure(
                at,
                "round",
                "regret",
                "policy",
                "stream",
                title=f"Cumulative regret against the best fixed threshold, {case}, overhead {middle:g}",
            ),
        )
        mine = part[part["policy"] == "ucb"].drop(columns="half")
        work.draw(
            f"thresholds-{exits}",
            paper_figure(
                mine.assign(overhead="overhead " + mine["overhead"].map("{:g}".format)),
                "round",
                "threshold",
                "overhead",
                "stream",
                title=f"Threshold that AdaEE plays, mean of each stretch of rounds, {case}",
            ),
        )
        late = part[part["round"] == part["round"].max()].drop(columns="half")
        best = late[late["policy"] == "ucb"].assign(threshold=late["best_threshold"], policy="best of hindsight")
        work.draw(
            f"chosen-{exits}",
            paper_figure(
                pd.concat([late[late["policy"] != "random"], best]),
                "overhead",
                "threshold",
                "policy",
                "stream",
                title=f"Threshold played at the end against the overhead, {case}",
            ),
        )
        trade = ends[ends["exits"] == exits].drop(columns="half")
        trade = trade[(trade["policy"] != "fixed") | (trade["overhead"] == trade["overhead"].min())]
        work.draw(
            f"accuracy-{exits}",
            paper_figure(
                trade,
                "offloaded",
                "accuracy",
                "policy",
                "stream",
                title=f"Accuracy against the share offloaded, {case}: policies by overhead, fixed by threshold",
                xlabel="share offloaded",
            ),
        )


NONE = "—"


def _claims(source: str, mine: pd.DataFrame, long: pd.DataFrame) -> list[Claim]:
    last = mine[mine["round"] == mine["round"].max()]
    cells = ["stream", "exits", "overhead"]
    by = {p: last[last["policy"] == p].set_index(cells) for p in (*POLICIES, "fixed")}
    ucb, fixed = by["ucb"], by["fixed"]
    count, slower = len(ucb), slowing(mine)
    steady = slower[slower.index.get_level_values("stream") != CHANGING]
    # every fixed threshold beside UCB in the same stream, at the same overhead
    pairs = fixed.join(ucb["regret"].rename("ucb"))
    far = pairs[(pairs["threshold"] - pairs["best_threshold"]).abs() >= FAR - 1e-9]
    beaten = (far["ucb"] < far["regret"]).mean()
    costly = far[far["regret"] > 0.5 * by["random"]["regret"].reindex(far.index)]
    under = (ucb["regret"] < by["random"]["regret"]).sum()
    low, high = (ucb.xs(o, level="overhead")["threshold"] for o in (min_of(last), max_of(last)))
    best = [ucb.xs(o, level="overhead")["best_threshold"] for o in (min_of(last), max_of(last))]
    share = by["gain-curve"]["regret"].sum() / ucb["regret"].sum()
    settled = slowing(long).droplevel(["stream", "exits"])
    final = long[(long["policy"] == "ucb") & (long["round"] == long["round"].max())].set_index("overhead")
    claims = [
        Claim(
            f"{source}: UCB converges, its regret grows ever more slowly",
            NONE,
            f"regret of the second half of {last['round'].max():,} rounds over that of the first: median "
            f"{steady.median():.2f} ({steady.min():.2f} to {steady.max():.2f}); "
            f"below {SUBLINEAR:g} in {(steady < SUBLINEAR).sum()} of {len(steady)} streams and overheads, "
            f"below 1 in {(steady < 1).sum()}",
            bool(steady.median() < SUBLINEAR),
            f"holds: median below {SUBLINEAR:g}; thresholds differ by hundredths of confidence a frame, and c = 1 is "
            "made for rewards that fill [0, 1]: UCB is still exploring",
        ),
        Claim(
            f"{source}: UCB converges when it plays for long",
            NONE,
            f"{long['stream'].iloc[0]}, {long['round'].max():,} rounds: second half over first, and mean threshold at "
            "the end (best): "
            + ", ".join(
                f"overhead {o:g} {ratio:.2f}, {final.loc[o, 'threshold']:.2f} ({final.loc[o, 'best_threshold']:g})"
                for o, ratio in settled.items()
            ),
            bool(settled.median() < SUBLINEAR),
            f"holds: median below {SUBLINEAR:g}",
        ),
        Claim(
            f"{source}: UCB ends below random thresholds",
            NONE,
            f"in {under} of {count} streams and overheads; its regret is "
            f"{_percent(ucb['regret'].sum() / by['random']['regret'].sum())} of random's",
            bool(under == count),
        ),
        Claim(
            f"{source}: UCB ends below every fixed threshold far from the best ({FAR:g} or more)",
            NONE,
            f"below {_percent(beaten)} of {len(far)} such thresholds; below "
            f"{_percent((costly['ucb'] < costly['regret']).mean())} of the {len(costly)} that lose more than half of "
            "what random loses",
            bool(beaten == 1),
            "a threshold may be far and lose little: below the lowest confidence of an exit all are alike",
        ),
        Claim(
            f"{source}: the threshold follows the overhead, dearer offloading lowers it",
            NONE,
            f"mean threshold at the end {low.mean():.2f} at overhead {min_of(last):g}, {high.mean():.2f} at "
            f"{max_of(last):g} (best of hindsight {best[0].mean():.2f}, {best[1].mean():.2f}); lower in "
            f"{(high < low).sum()} of {len(low)} streams",
            bool((high < low).all()),
        ),
        Claim(
            f"{source}: the threshold played approaches the best one",
            NONE,
            f"rank correlation over streams and overheads {_rank(ucb):.2f} (gain-curve {_rank(by['gain-curve']):.2f}); "
            f"mean distance {_apart(ucb):.2f} (gain-curve {_apart(by['gain-curve']):.2f}, "
            f"random {_apart(by['random']):.2f})",
            bool(_rank(ucb) > 0.7 and _apart(ucb) < 0.5 * _apart(by["random"])),
            "holds: correlation above 0.7, and less than half of random's distance; of equally good thresholds "
            "hindsight names the lowest",
        ),
        Claim(
            f"{source}: beside it, gain-curve (ours)",
            NONE,
            f"its regret is {_percent(share)} of UCB's, against the per-frame oracle "
            f"{_percent(by['gain-curve']['regret_oracle'].sum() / ucb['regret_oracle'].sum())}",
            bool(share < 1),
            "holds: less regret than UCB in all; it shares what one threshold teaches with all others, and has 51 of "
            "them where hindsight has 11, so that its regret may be below 0",
        ),
    ]
    if source == OURS:
        claims += _of_distortion(last, ucb, fixed)
    return claims


def _of_distortion(last: pd.DataFrame, ucb: pd.DataFrame, fixed: pd.DataFrame) -> list[Claim]:
    """What only streams of several levels can tell."""
    names = [s for s in dict.fromkeys(last["stream"]) if s != CHANGING]
    hardest = [kind[-1] for kind in ([s for s in names if s.startswith(k)] for k in ("blur", "noise")) if kind]
    low, lowest = min_of(last), int(last["exits"].min())
    static = fixed[np.isclose(fixed["threshold"], STATIC)].xs(low, level="overhead")["offloaded"].unstack("stream")
    at = [o for o in sorted(last["overhead"].unique()) if o <= 0.2]
    spread = ucb.loc[[i for i in ucb.index if i[0] in names and i[2] in at]]
    moved = spread.groupby(["exits", "overhead"])[["threshold", "best_threshold"]].agg(lambda t: t.max() - t.min())
    rows = []
    for (stream, exits, overhead), row in ucb.iterrows():
        if stream == PRISTINE:
            continue
        pristine = ucb.loc[(PRISTINE, exits, overhead), "best_threshold"]
        same = fixed.loc[[(stream, exits, overhead)]]
        rigid = same.loc[np.isclose(same["threshold"], pristine), "regret"].iloc[0]
        rows.append({"stream": stream, "ucb": row["regret"], "rigid": rigid})
    both = pd.DataFrame(rows)
    sums = both.groupby("stream", sort=False)[["ucb", "rigid"]].sum()
    return [
        Claim(
            "the best threshold moves with the distortion, and UCB's with it",
            NONE,
            "highest less lowest over the levels: "
            + "; ".join(
                f"{e} exit{'s' * (e > 1)}, overhead {o:g}: played {r['threshold']:.2f}, best {r['best_threshold']:.2f}"
                for (e, o), r in moved.iterrows()
            ),
            bool((moved["threshold"] >= 0.5 * moved["best_threshold"]).all() and moved["best_threshold"].max() > 0),
            "holds: everywhere at least half of the way that the best threshold moves",
        ),
        Claim(
            f"distortion lowers confidence, so a static threshold ({STATIC:g}) offloads more",
            NONE,
            "; ".join(
                f"{e} exit{'s' * (e > 1)}: "
                + ", ".join(f"{s} {_percent(static.loc[e, s])}" for s in (PRISTINE, *hardest))
                for e in static.index
            ),
            bool(all(static.loc[lowest, s] > static.loc[lowest, PRISTINE] for s in hardest)),
        ),
        Claim(
            "a static threshold is rigid: the one that is best on pristine images loses to UCB on distorted ones",
            NONE,
            "regret over all overheads, of UCB and of pristine's best threshold: "
            + ", ".join(f"{s} {r['ucb']:.0f} and {r['rigid']:.0f}" for s, r in sums.iterrows()),
            bool((sums["ucb"] < sums["rigid"]).all()),
            f"in {last['round'].max():,} rounds exploring costs more than a threshold that is somewhat off; adapting "
            "pays only where the distortion is heavy",
        ),
    ]


def min_of(rows: pd.DataFrame) -> float:
    """The lowest overhead."""
    return float(rows["overhead"].min())


def max_of(rows: pd.DataFrame) -> float:
    """The highest overhead."""
    return float(rows["overhead"].max())


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _rank(rows: pd.DataFrame) -> float:
    return float(rows["threshold"].corr(rows["best_threshold"], method="spearman"))


def _apart(rows: pd.DataFrame) -> float:
    return float((rows["threshold"] - rows["best_threshold"]).abs().mean())
