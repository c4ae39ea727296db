"""AdaEE: a bandit learns the threshold while the stream runs, at any distortion and overhead (Pacheco et al.)."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, cast

import numpy as np
import pandas as pd

from eex.experiments.papers.claims import (
    NONE,
    OWN,
    SUBLINEAR,
    Claim,
    Facts,
    Group,
    Margin,
    Tables,
    above,
    larger,
    less_in_median,
    listed,
    seeds_interval,
    slowing,
)
from eex.experiments.papers.paper import PaperRecipe, Work, condition_name, routed
from eex.experiments.plotting import Plot
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
- We do not have the paper's text or figures. That it converges, adapts and is not rigid are sentences of the survey of
  deployment strategies, and the rows on how the threshold moves say what these come to. Random and far thresholds are
  our own yardsticks.
- The streams are recordings of the shipped model on CIFAR-10's test images, with the expert branches that its
  classifier selects: one stream per distortion level, and one that goes through all of them, again and again
  (`changing`). Beside them stand the authors' own traces (`--published FOLDER` names the folder of their CSV files):
  one of a one-branch AlexNet, and a timed one, which is also named after AlexNet but is of MobileNetV2 by the authors'
  configuration. Frames are drawn from a stream with replacement, and feedback is not delayed.
- The authors play the frames of each bin of the confidence gained (0 to 0.1, 0.1 to 0.2, …) separately, and count
  regret against an oracle that knows for each frame whether offloading pays. We do the same on their traces, with
  their arms, c = 1 and overheads. At these overheads offloading pays for all frames of a bin or for none, so that the
  best fixed threshold is that oracle, and their regret is ours. Frames that lose confidence (6 and 18 % of the two
  traces) are in no bin.
- AdaEE (`ucb`, c = 1, the thresholds 0, 0.1 … 1) is compared with `gain-curve`, `random`, and every fixed threshold.
  Regret is against the best fixed threshold in hindsight, of each segment where the stream changes.
- Three edge exits share one threshold.
- Nothing is trained, and instead of seeds there are runs.
"""
MISSING = """
- The authors' curves beside ours. They are published as six drawings (`cumulative_regret_delta_conf_bin_overhead_*.pdf`
  in `plots/` of github.com/pachecobeto95/adaptive_early_exit), which we did not have and would have to read off. Their
  traces are played instead, with their definition of regret.
"""
POLICIES = ("ucb", "gain-curve", "random")
MARKS = 16
"""Rounds at which curves are kept."""
FAR = 0.3
"""From which distance on a fixed threshold counts as far from the best."""
AGAINST = ["regret", "slowing", "slowing_half"]
"""Columns that are kept for both definitions of regret: against the best threshold, and against the oracle."""
STATIC = 0.8
"""The fixed threshold that stands for a static policy."""
CHANGING = "changing"
THEIRS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
"""The overheads of its authors' figures."""
SOURCES = {"ours": "our recordings", "authors": "its authors' traces"}


@dataclass(frozen=True)
class AdaEERecipe(PaperRecipe):
    """How much is recorded and played."""

    levels: tuple[tuple[str, float], ...]  # distortions recorded: kind and level
    frames: int  # of each distortion
    rounds: int  # frames played
    runs: int  # repetitions
    exits: tuple[int, ...] = (1, 3)  # edge exits after which the network is cut
    overheads: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)  # prices of offloading, in units of confidence


LEVELS = (
    (PRISTINE, 0.0),
    *(("gaussian_blur", s) for s in (0.5, 1.0, 1.5, 2.0)),
    *(("gaussian_noise", s) for s in (10.0, 20.0, 30.0, 40.0)),
)
RECIPES = {
    "quick": AdaEERecipe((LEVELS[0], LEVELS[2], LEVELS[6]), frames=500, rounds=1000, runs=3, overheads=(0.05, 0.3)),
    "reduced": AdaEERecipe(LEVELS, frames=8000, rounds=10_000, runs=10),
    "standard": AdaEERecipe(LEVELS, frames=8000, rounds=1_000_000, runs=8),
    "paper": AdaEERecipe(LEVELS, frames=8000, rounds=1_000_000, runs=20),
}


TABLES = ("ours",)
ONCE = ()
OF_AUTHORS = ("authors", "bins")


def networks(work: Work, recipe: AdaEERecipe) -> None:
    """Nothing is trained: the streams come from the shipped model and from its authors' networks."""


def measure(work: Work, recipe: AdaEERecipe) -> None:
    """Record the streams, play every policy on each, and measure what it loses."""
    sources: dict[str, Callable[[], list[Stream]]] = {}
    if work.published is not None:
        sources["authors"] = partial(_authors, work.published)
    sources["ours"] = partial(_ours, work, recipe)
    for name, streams in sources.items():
        work.table(name, partial(_play_all, work, name, streams, recipe))
        if name == "authors":
            work.table("bins", partial(_play_bins, work, streams, recipe))


# ---- streams


@dataclass(frozen=True)
class Stream:
    """A trace, how it is played, and what it is called."""

    name: str
    trace: Trace
    order: Order = "resampled"


def _ours(work: Work, recipe: AdaEERecipe) -> list[Stream]:
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
            streams.append(Stream(condition_name(kind, level), trace[here]))
        # as many frames of each level as make up the rounds, or all there are, which are then gone through again
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
    """The trace of the same network cut after this many exits; the answers of the cloud stay as they are.

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


# ---- what is played


def _play_all(work: Work, source: str, streams: Callable[[], list[Stream]], recipe: AdaEERecipe) -> pd.DataFrame:
    tables = []
    for stream in streams():
        name = f"{source}-{stream.trace.edge_exits}-{stream.name}"
        tables.append(work.kept_table(name, partial(_play, stream, recipe, work.seed)))
    return pd.concat(tables, ignore_index=True)


def _play_bins(work: Work, streams: Callable[[], list[Stream]], recipe: AdaEERecipe) -> pd.DataFrame:
    """UCB alone, as its authors play it: on the frames of each bin of the confidence gained, at each of `THEIRS`."""
    priced = dataclasses.replace(recipe, overheads=THEIRS)
    tables = []
    for stream in streams():
        gained = stream.trace.confidence[:, -1] - stream.trace.confidence[:, 0]
        for lower in np.arange(10) / 10:
            here = np.flatnonzero((gained >= lower) & (gained <= lower + 0.1))
            if len(here):
                part = Stream(stream.name, stream.trace[here])
                name = f"bin-{stream.name}-{lower:.1f}"
                rows = work.kept_table(name, partial(_play, part, priced, work.seed, ("ucb",)))
                tables.append(rows[rows["policy"] == "ucb"].assign(bin=f"{lower:.1f} to {lower + 0.1:.1f}"))
    columns = ["stream", "bin", "overhead", "round", "half", "threshold", *AGAINST, *(f"{a}_oracle" for a in AGAINST)]
    return pd.concat(tables, ignore_index=True)[columns]


def _play(stream: Stream, recipe: AdaEERecipe, seed: int, policies: Sequence[str] = POLICIES) -> pd.DataFrame:
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
            theirs = at_marks(marks, oracle(trace.confidence, o)[frame] - played.reward[mine], thresholds[mine])
            table[[f"{name}_oracle" for name in AGAINST]] = theirs[AGAINST]
            table["accuracy"], table["offloaded"] = right[mine].mean(), played.offloaded[mine].mean()
            tables.append(table.assign(policy=name, overhead=o))
    for a, threshold in enumerate(GRID):
        exit, answered, _ = routed(Fixed(threshold, exits=trace.edge_exits), trace.confidence, trace.prediction)
        for o in recipe.overheads:
            reward = earned[o][frame, a]
            table = at_marks(marks[-1:], against[o] - reward, np.full(reward.shape, threshold))
            table["regret_oracle"] = (oracle(trace.confidence, o)[frame] - reward).sum(axis=1).mean()
            table["accuracy"] = (answered == trace.label)[frame].mean()
            table["offloaded"] = (exit == trace.edge_exits)[frame].mean()
            tables.append(table.assign(policy="fixed", overhead=o))
    rows = pd.concat(tables, ignore_index=True)
    rows["best_threshold"] = rows["overhead"].map({o: np.median(np.array(GRID)[best[o][0]]) for o in recipe.overheads})
    rows.loc[rows["round"] < recipe.rounds, ["accuracy", "offloaded"]] = np.nan  # they are of all rounds
    return rows.assign(stream=stream.name, exits=trace.edge_exits)


def at_marks(marks: Ints, lost: Floats, thresholds: Floats) -> pd.DataFrame:
    """Regret so far and the mean threshold since the mark before, at each mark, and at the last how it slowed down.

    From marks (numbers of rounds, rising, the last one all of them), and the regret of each round and the threshold
    played, (runs, rounds) each. Columns round; regret, threshold, both means over the runs, and `slowing`; half, the
    threshold's and slowing's, half their 95 % intervals over the runs.

    Examples
    --------
    >>> at_marks(np.array([1, 3]), np.array([[1.0, 0.0, 2.0]]), np.array([[0.5, 0.2, 0.4]]))["threshold"].tolist()
    [0.5, 0.30000000000000004]
    """
    regret = np.cumsum(lost, axis=1)
    before = np.concatenate([[0], marks[:-1]])
    played = np.stack([thresholds[:, a:b].mean(axis=1) for a, b in zip(before, marks, strict=True)])
    table = pd.DataFrame({"round": marks})
    table["regret"], table["half"] = zip(*map(seeds_interval, regret[:, marks - 1].T), strict=True)
    table["threshold"], table["threshold_half"] = zip(*map(seeds_interval, played), strict=True)
    table[["slowing", "slowing_half"]] = np.nan
    table.loc[table.index[-1], ["slowing", "slowing_half"]] = slowing(regret)
    return table


# ---- figures


def _curves(tables: Tables) -> pd.DataFrame:
    """All sources' rows; of many levels every second one, so that a figure stays readable."""
    curves = pd.concat([tables[name] for name in SOURCES if name in tables], ignore_index=True)
    names = list(dict.fromkeys(curves["stream"]))
    levels = names[: names.index(CHANGING)]
    shown = [*(levels[::2] if len(levels) > 4 else levels), *names[names.index(CHANGING) :]]
    curves = curves[curves["stream"].isin(shown)]
    return curves.assign(case=[f"{e} edge exit{'s' * (e > 1)}" for e in curves["exits"]])


def _regret(tables: Tables) -> pd.DataFrame:
    rows = _curves(tables)
    overheads = sorted(rows["overhead"].unique())
    return rows[rows["policy"].isin(POLICIES) & (rows["overhead"] == overheads[len(overheads) // 3])]


def _thresholds(tables: Tables) -> pd.DataFrame:
    rows = _curves(tables)
    return rows[rows["policy"] == "ucb"].drop(columns="half")


def _ends(tables: Tables) -> pd.DataFrame:
    rows = _curves(tables)
    return rows[rows["round"] == rows["round"].max()].drop(columns="half")


def _chosen(tables: Tables) -> pd.DataFrame:
    late = _ends(tables)
    late = late[late["policy"].isin(POLICIES)]
    best = late[late["policy"] == "ucb"].assign(policy="best of hindsight")
    best["threshold"] = best["best_threshold"]
    return pd.concat([late[late["policy"] != "random"], best])


def _bins(tables: Tables) -> pd.DataFrame:
    rows = tables["bins"] if "bins" in tables else pd.DataFrame(columns=["stream", "overhead", "half"])
    return rows.drop(columns="half")


def _trade(tables: Tables) -> pd.DataFrame:
    rows = _ends(tables)
    return rows[(rows["policy"] != "fixed") | (rows["overhead"] == rows["overhead"].min())]


PLOTS = (
    Plot(
        "regret-{exits}", _regret, "round", "regret", "policy", "stream", each="exits",
        title="Cumulative regret against the best fixed threshold, {case}, overhead {overhead:g}",
    ),
    Plot(
        "thresholds-{exits}", _thresholds, "round", "threshold", "overhead {overhead:g}", "stream", each="exits",
        title="Threshold that AdaEE plays, mean of each stretch of rounds, {case}",
    ),
    Plot(
        "chosen-{exits}", _chosen, "overhead", "threshold", "policy", "stream", each="exits",
        title="Threshold played at the end against the overhead, {case}",
    ),
    Plot(
        "bins-{stream}", _bins, "round", "regret_oracle", "bin", "overhead {overhead:g}", each="stream",
        title="Regret as AdaEE's authors count it, by bins of the confidence gained, {stream}", ylabel="regret",
    ),
    Plot(
        "accuracy-{exits}", _trade, "offloaded", "accuracy", "policy", "stream", each="exits",
        title="Accuracy against the share offloaded, {case}: policies by overhead, fixed by threshold",
        xlabel="share offloaded",
    ),
)  # fmt: skip


# ---- claims

CELL = ["stream", "exits", "overhead"]


def _played(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The last round of each policy, by stream, exits and overhead."""
    last = rows[rows["round"] == rows["round"].max()]
    return {str(policy): part.set_index(CELL) for policy, part in last.groupby("policy")}


def _total(played: pd.DataFrame) -> tuple[float, float]:
    """Regret in all, and half its interval, which is that of streams and overheads that rise and fall together."""
    return played["regret"].sum(), played["half"].sum()


def _facts(name: str, tables: Tables, recipe: AdaEERecipe) -> Iterator[Facts]:
    """What holds for the streams of one source, where they were played."""
    if name not in tables:
        return
    rows = tables[name]
    by = _played(rows)
    ucb, curve, random = by["ucb"], by["gain-curve"], by["random"]
    steady = ucb.loc[ucb.index.get_level_values("stream") != CHANGING, ["slowing", "slowing_half"]]
    # every fixed threshold beside UCB in the same stream, at the same overhead
    pairs = by["fixed"].join(ucb[["regret", "half"]].rename(columns={"regret": "ucb", "half": "ucb_half"}))
    distance = pd.DataFrame({p: (by[p]["threshold"] - by[p]["best_threshold"]).abs() for p in POLICIES})
    far = pairs[(pairs["threshold"] - pairs["best_threshold"]).abs() >= FAR - 1e-9]
    costly = far[far["regret"] > 0.5 * random["regret"].reindex(far.index)]
    low, high = float(rows["overhead"].min()), float(rows["overhead"].max())
    of_threshold = ucb[["threshold", "threshold_half", "best_threshold"]]
    cheap, dear = (of_threshold.xs(o, level="overhead") for o in (low, high))
    yield Facts(
        source=SOURCES[name],
        limit=SUBLINEAR,
        rounds=rows["round"].max(),
        steady=steady["slowing"].agg(["median", "min", "max", "count"]),
        below=(steady["slowing"] < SUBLINEAR).sum(),
        below_1=(steady["slowing"] < 1).sum(),
        cells=len(ucb),
        limits={
            "slows": less_in_median(steady["slowing"], steady["slowing_half"]),
            "random": larger((random["regret"], random["half"]), (ucb["regret"], ucb["half"])),
            "fixed": larger((far["regret"], far["half"]), (far["ucb"], far["ucb_half"])),
            "lower": larger(*((part["threshold"], part["threshold_half"]) for part in (cheap, dear))),
            "apart": Margin(
                float((0.5 * distance["random"] - distance["ucb"]).mean()),
                float((0.5 * random["threshold_half"] + ucb["threshold_half"]).mean()),
            ),
            "less": larger(_total(ucb), _total(curve)),
        },
        under=(ucb["regret"] < random["regret"]).sum(),
        of_random=ucb["regret"].sum() / random["regret"].sum(),
        apart_by=FAR,
        far=len(far),
        beaten=(far["ucb"] < far["regret"]).mean(),
        costly=len(costly),
        beaten_costly=(costly["ucb"] < costly["regret"]).mean(),
        low=low,
        high=high,
        cheap=cheap.mean(),
        dear=dear.mean(),
        lower=(dear["threshold"] < cheap["threshold"]).sum(),
        streams=len(dear),
        rank={p: by[p]["threshold"].corr(by[p]["best_threshold"], method="spearman") for p in ("ucb", "gain-curve")},
        apart=distance.mean(),
        share=curve["regret"].sum() / ucb["regret"].sum(),
        share_of_oracle=curve["regret_oracle"].sum() / ucb["regret_oracle"].sum(),
    )


CLAIMS_OF_SOURCE = (
    Claim("{source}: UCB converges, its regret grows ever more slowly", NONE,
          "regret of the second half of {rounds:,} rounds over that of the first: median {steady[median]:.2f} "
          "({steady[min]:.2f} to {steady[max]:.2f}); below {limit:g} in {below} of {steady[count]:g} streams and "
          "overheads, below 1 in {below_1}", lambda f: f.limits["slows"], "limit: median below {limit:g}",
          "thresholds differ by hundredths of confidence per frame, and c = 1 is made for rewards that fill [0, 1]: "
          "UCB is still exploring"),
    Claim("{source}: UCB loses less than random thresholds", OWN,
          "in {under} of {cells} streams and overheads; its regret is {of_random:%} of random's",
          lambda f: f.limits["random"]),
    Claim("{source}: UCB loses less than every fixed threshold far from the best ({apart_by:g} or more)", OWN,
          "less than {beaten:%} of {far} such thresholds; less than {beaten_costly:%} of the {costly} that lose more "
          "than half of what random loses", lambda f: f.limits["fixed"],
          "a threshold may be far and lose little: below the lowest confidence of an exit all are alike"),
    Claim("{source}: the threshold follows the overhead: the dearer offloading is, the lower it is", NONE,
          "mean threshold at the end {cheap.threshold:.2f} at overhead {low:g}, {dear.threshold:.2f} at {high:g} "
          "(best in hindsight {cheap.best_threshold:.2f}, {dear.best_threshold:.2f}); lower in {lower} of {streams} "
          "streams", lambda f: f.limits["lower"]),
    Claim("{source}: the threshold played approaches the best one", NONE,
          "rank correlation over streams and overheads {rank[ucb]:.2f} (gain-curve {rank[gain-curve]:.2f}); mean "
          "distance {apart[ucb]:.2f} (gain-curve {apart[gain-curve]:.2f}, random {apart[random]:.2f})",
          lambda f: [f.rank["ucb"] > 0.7, f.limits["apart"]],
          "limit: correlation above 0.7, and less than half of random's distance; of equally good thresholds "
          "hindsight names the lowest"),
    Claim("{source}: beside it, gain-curve (ours)", OWN,
          "its regret is {share:%} of UCB's, against the per-frame oracle {share_of_oracle:%}",
          lambda f: f.limits["less"],
          "limit: less regret than UCB in all; it shares what one threshold teaches with all others, and has 51 of "
          "them where hindsight has 11, so that its regret may be below 0"),
)  # fmt: skip


def _distorted(tables: Tables, recipe: AdaEERecipe) -> Iterator[Facts]:
    """What only streams of several levels show."""
    rows = tables["ours"]
    by = _played(rows)
    ucb, fixed = by["ucb"], by["fixed"]
    names = [s for s in dict.fromkeys(rows["stream"]) if s != CHANGING]
    hardest = [kind[-1] for kind in ([s for s in names if s.startswith(k)] for k in ("blur", "noise")) if kind]
    at = fixed[np.isclose(fixed["threshold"], STATIC)].xs(rows["overhead"].min(), level="overhead")["offloaded"]
    static = at.unstack("stream")[[PRISTINE, *hardest]]
    spread = ucb.reset_index()
    spread = spread[spread["stream"].isin(names) & (spread["overhead"] <= 0.2)]
    by_overhead = spread.groupby(["exits", "overhead"])
    moved = by_overhead[["threshold", "best_threshold"]].agg(lambda t: t.max() - t.min())
    ends = by_overhead["threshold"].agg(["idxmin", "idxmax"])
    half = np.hypot(*(spread["threshold_half"].reindex(at).to_numpy() for at in (ends["idxmin"], ends["idxmax"])))
    # the threshold that is best on pristine images, held on to in every other stream
    pristine = ucb.reset_index()
    pristine = pristine[pristine["stream"] == PRISTINE].rename(columns={"best_threshold": "pristine"})
    rigid = fixed.reset_index().merge(pristine[["exits", "overhead", "pristine"]])
    rigid = rigid[np.isclose(rigid["threshold"], rigid["pristine"]) & (rigid["stream"] != PRISTINE)]
    both = rigid.set_index(CELL)[["regret", "half"]].add_prefix("rigid_").join(ucb[["regret", "half"]])
    order = [*names[1:], CHANGING]
    sums = both.groupby("stream")[["regret", "rigid_regret"]].sum().loc[order]
    halves = both.groupby("stream")[["half", "rigid_half"]].sum().loc[order]
    yield Facts(
        limit=STATIC,
        rounds=rows["round"].max(),
        moved=moved,
        moves=listed(
            "{exits} exit{s}, overhead {overhead:g}: played {threshold:.2f}, best {best_threshold:.2f}",
            moved.reset_index().assign(s=lambda m: np.where(m["exits"] > 1, "s", "")),
            "; ",
        ),
        static=static.loc[rows["exits"].min()],
        offloads="; ".join(
            f"{e} exit{'s' * (e > 1)}: "
            + listed("{stream} {share:%}", [{"stream": s, "share": v} for s, v in row.items()])
            for e, row in static.iterrows()
        ),
        adapts=larger((sums["rigid_regret"], halves["rigid_half"]), (sums["regret"], halves["half"])),
        follows=Margin(moved["threshold"] - 0.5 * moved["best_threshold"], half),
        frames=recipe.frames,
        regrets=listed("{stream} {regret:,.0f} and {rigid_regret:,.0f}", sums.reset_index(), "; "),
        wins=(sums["regret"] < sums["rigid_regret"]).sum(),
        others=len(sums),
    )


def _of_bins(tables: Tables, recipe: AdaEERecipe) -> Iterator[Facts]:
    """Their traces as they play them: bins of the confidence gained, and regret against the per-frame oracle."""
    if "bins" not in tables:
        return
    bins = tables["bins"]
    last = bins[bins["round"] == bins["round"].max()].dropna(subset=["slowing_oracle"])
    means = last.groupby("overhead")["regret_oracle"].mean().reset_index()
    yield Facts(
        limit=SUBLINEAR,
        rounds=bins["round"].max(),
        cells=len(last),
        theirs=last["slowing_oracle"].median(),
        below=(last["slowing_oracle"] < SUBLINEAR).sum(),
        slows=less_in_median(last["slowing_oracle"], last["slowing_half_oracle"]),
        means=listed("overhead {overhead:g} {regret_oracle:.0f}", means),
    )


CLAIMS = (
    Group(partial(_facts, "ours"), CLAIMS_OF_SOURCE),
    Group(_distorted, (
        Claim("the best threshold moves with the distortion, and UCB's with it", NONE,
              "range over the levels: {moves}",
              lambda f: [f.follows, f.moved["best_threshold"].max() > 0],
              "limit: everywhere at least half of the way that the best threshold moves; of equally good ones, "
              "such as all below the lowest confidence, hindsight names the lowest"),
        Claim("distortion lowers confidence, so a static threshold ({limit:g}) offloads more", NONE,
              "{offloads}", lambda f: above(f.static.drop(PRISTINE), f.static[PRISTINE], f.frames)),
        Claim("a static threshold is rigid: the one that is best on pristine images loses to UCB on distorted ones",
              NONE,
              "UCB loses less in {wins} of {others} streams; regret over all overheads, of UCB and of pristine's best "
              "threshold: {regrets}",
              lambda f: f.adapts, "limit: less in every stream",
              "in {rounds:,} rounds exploring costs more than a threshold that is a little off"),
    )),
    Group(partial(_facts, "authors"), CLAIMS_OF_SOURCE),
    Group(_of_bins, (
        Claim("its authors' traces in their bins of confidence gained, regret as they count it: UCB converges",
              "drawn for overheads 0 to 0.5, over 1,000,000 rounds",
              "regret of the second half of {rounds:,} rounds over that of the first: median {theirs:.2f} over "
              "{cells} bins and overheads, below {limit:g} in {below}; mean regret of a bin: {means}",
              lambda f: f.slows, "limit: median below {limit:g}"),
    )),
)  # fmt: skip
