"""`eex-regret`: the command that compares policies over traces, by what each loses against hindsight."""

import contextlib
import hashlib
import inspect
import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np
import tyro
from numpy.typing import NDArray

import eex.policies
from eex.experiments.sweep import Columns, Part, Sweep, check_ray, exit_cost_of, parts_left, play_all, play_on_ray
from eex.policies.algorithms.arms import GRID
from eex.policies.core.aims import Aim, parse_aims
from eex.policies.core.base import Policy, Reward, classes_of
from eex.policies.core.code import own_source, own_sources
from eex.policies.core.errors import EexError
from eex.policies.core.exit_cost import parse_exit_cost
from eex.policies.core.files import alone_in, digest_of, replacing, take_paths, write_file
from eex.policies.core.link import parse_link
from eex.policies.core.options import check_seed, check_words
from eex.policies.core.references import best_fixed, best_per_exit
from eex.policies.core.replay import Order, times_of
from eex.policies.core.trace import Trace, read_trace
from eex.policies.registry import POLICIES, make_policy, playable, split_policies
from eex.policies.wrappers.aim import aims_of
from eex.stream.guard import guarded, hush

if TYPE_CHECKING:
    import pandas as pd

BASELINE = "ucb"
"""The policy, without options, that others are compared with: AdaEE's."""
NEAR = 0.05
"""A policy is within 5 % of the best arm where it loses at most this share of what an arm drawn evenly loses …"""
STRETCH = 0.1
"""… over stretches of this share of the rounds."""
MOST_FRAMES = 200_000
"""Frames of a trace, at most, by which the best thresholds on all of it are found."""


@dataclass(frozen=True)
class RegretConfig:
    """Compare policies over traces: what each loses against hindsight, on the same frames, over many runs."""

    trace: tuple[Path, ...] = ()
    """Traces: Arrow files written by eex-record, the same columns as Parquet, or CSV files: AdaEE's authors'
    or with one row per frame and exit. They may be larger than memory."""
    policies: str = ""
    """Comma-separated, options after colons: ucb,ucb:c=0.5,fixed:p_tar=0.9. By default all that need no options;
    eex-stream --list-policies shows them."""
    overheads: str = "0.05,0.1,0.2,0.3,0.4,0.5"
    """Prices of offloading a frame, in units of confidence."""
    rounds: int = 10_000
    """Frames that each run plays."""
    runs: int = 50
    """Independent runs; run k plays the same frames under every policy and overhead."""
    order: Order = "resampled"
    """Frames drawn from all of the trace; or in order, again and again; or in order, each drawn from its segment of
    unchanged distortion."""
    delay: int = 0
    """Delay of all feedback, in rounds."""
    link: str = ""
    """Simulated link instead of a fixed delay: round trips in ms, each for a number of frames: "12:3000, 213:3000"."""
    exit_cost: float | str = 0.0
    """Price of each edge exit after the first that a frame visits, in units of confidence: a number, one per further
    exit (0.01,0.03), or auto, in proportion to the times that the trace holds, 0.02 on average (auto:0.05: 0.05). AdaEE
    has none."""
    reward: Reward = "adaee"
    """What frames earn, and regret is of: AdaEE's reward, which is 0 wherever a frame leaves on the edge, or the
    utility, which is the confidence of the answer less the prices paid for it."""
    aim: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Wish that policies which heed prices keep to: "offload <= 10 %", "mean latency <= 8 ms", "p99 <= 40 ms" or
    "accuracy within 1 point of the whole network". Can be repeated, or several separated by commas."""
    exit_ms: str = ""
    """Milliseconds after which each exit answers, comma-separated, the cloud's last: 2,4,6,40. By default, the times
    that the trace holds. A link's round trip comes on top."""
    seed: int = 0
    """Seed of all random draws."""
    grid: str = " ".join(f"{t:g}" for t in GRID)
    """Space- or comma-separated thresholds: what hindsight chooses from, and the arms of every policy that has arms
    and is not given others."""
    out: Path | None = None
    """Folder for the results. By default, a folder under runs/ that the same command finds again."""
    processes: int = 0
    """Processes to play in; 0 = as many as there are cores."""
    ray: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="[ADDRESS]")] = None
    """Play on a Ray cluster, at this address or started here (pip install 'eex[ray]'); the same numbers."""

    def __post_init__(self) -> None:
        take_paths(self)


@dataclass(frozen=True)
class Command:
    """Compare policies over traces: what each loses against hindsight, on the same frames, over many runs.

    A folder gets the rows that curves are drawn from (curves.arrow), summary.json and the pictures. Run the
    same command again to resume an interrupted sweep.
    """

    regret: tyro.conf.OmitArgPrefixes[RegretConfig]
    quiet: bool = False
    """Print errors only."""
    json: bool = False
    """Print only the summary, as JSON, to standard output."""
    redraw: Path | None = None
    """Redraw the figures in the folder of an earlier comparison, then exit."""


# ---- the comparison


def compare(config: RegretConfig, show: Callable[[int, int], None] = lambda done, total: None) -> dict[str, Any]:
    """Play what is configured, or what is left of it; returns the summary that also lies in the folder.

    Played on several processes (`RegretConfig.processes`), a script that calls this needs
    `if __name__ == "__main__":`.

    Parameters
    ----------
    show
        Called a few times per second with the rounds done and the total, over all runs, overheads, policies and traces.

    Raises
    ------
    EexError
        If a trace, policy, option or folder cannot be used; before anything is played or written.
    """
    sweep = _sweep(config)
    traces = {name: read_trace(path) for name, path in _named(config.trace).items()}
    for name, trace in traces.items():
        try:
            exit_cost_of(sweep, trace)
        except EexError as error:
            raise EexError(f"--{str(error).replace('exit cost', 'exit-cost', 1)}: {name}") from None
    policies, code = _checked_policies(config, sweep, traces)
    played = {
        "traces": {name: digest_of(path) for name, path in _named(config.trace).items()},
        "policies": policies,
        **msgspec.to_builtins(sweep),
        "code": code,
    }
    if config.ray is not None:
        check_ray(config.ray[0] if config.ray else "")
    folder = _open_folder(config.out, played)
    with alone_in(folder):
        if not (folder / "curves.arrow").exists():
            _play_rest(config, sweep, folder, policies, traces, show)
    from eex.experiments.plotting import draw_regret, read_curves

    curves = read_curves(folder)
    summary = {
        **summarise(curves, sweep.aims),
        "hindsight": [_hindsight(sweep, n, t, o) for n, t in traces.items() for o in sweep.overheads],
        "folder": str(folder),
    }
    _write_json(folder / "summary.json", summary)
    draw_regret(folder)
    return summary


def _play_rest(
    config: RegretConfig,
    sweep: Sweep,
    folder: Path,
    policies: dict[str, str],
    traces: dict[str, Trace],
    show: Callable[[int, int], None],
) -> None:
    """Play the parts that are not in the folder, then put all of them together."""
    parts, names = folder / "parts", (list(traces), list(policies))
    parts.mkdir(exist_ok=True)
    processes = config.processes or os.cpu_count() or 1
    left = parts_left(parts, list(policies.values()), len(traces), sweep, processes)
    weight = sweep.rounds * len(sweep.overheads)
    total = weight * sweep.runs * len(traces) * len(policies)
    before = total - weight * sum(part.last - part.first for part in left)

    def take(part: Part, rows: Columns) -> None:
        _write_rows(parts / part.name, rows, names[0][part.trace], names[1][part.policy])

    def tell(done: int) -> None:
        show(before + done, total)

    tell(0)
    if left and config.ray is not None:
        options = {"address": config.ray[0]} if config.ray else {"num_cpus": processes, "include_dashboard": False}
        play_on_ray(sweep, left, list(traces.values()), options, take, tell)
    elif left:
        play_all(sweep, left, list(traces.values()), processes, take, tell)
    _join(parts, folder / "curves.arrow")


def _sweep(config: RegretConfig) -> Sweep:
    if not config.trace:
        raise EexError("name at least one trace: --trace FILE")
    check_words(config)
    check_seed(config.seed)
    for name, low in (("rounds", 1), ("runs", 1), ("delay", 0), ("processes", 0)):
        if getattr(config, name) < low:
            raise EexError(f"--{name} must be at least {low}, got {getattr(config, name)}")
    try:
        parse_exit_cost(config.exit_cost)
    except EexError as error:
        raise EexError(f"--{str(error).replace('exit cost', 'exit-cost', 1)}") from None
    if config.ray and len(config.ray) > 1:
        raise EexError(f"--ray takes one address, got {' '.join(config.ray)}")
    if config.link and config.delay:
        raise EexError("--delay and --link exclude each other")
    return Sweep(
        overheads=_numbers("overheads", config.overheads),
        rounds=config.rounds,
        runs=config.runs,
        order=config.order,
        delay=config.delay,
        link=parse_link(config.link) if config.link else None,
        exit_cost=config.exit_cost,
        reward=config.reward,
        seed=config.seed,
        exit_ms=_times(config.exit_ms),
        aims=_wishes(config.aim),
        grid=tuple(sorted(_numbers("grid", config.grid))),
    )


def _numbers(option: str, text: str) -> tuple[float, ...]:
    """Different numbers in [0, 1], separated by commas or spaces."""
    try:
        numbers = tuple(dict.fromkeys(float(word) for word in text.replace(",", " ").split()))
    except ValueError:
        numbers = ()
    if not numbers or not all(0 <= x <= 1 for x in numbers):
        raise EexError(f"--{option} must be comma-separated numbers in [0, 1], got '{text}'")
    return numbers


def _times(text: str) -> tuple[float, ...]:
    """Milliseconds, separated by commas or spaces."""
    try:
        times = tuple(float(word) for word in text.replace(",", " ").split())
    except ValueError:
        times = (-1.0,)
    if not all(0 <= x < np.inf for x in times):
        raise EexError(
            f"--exit-ms must be comma-separated milliseconds, one per exit and the cloud's last; got '{text}'"
        )
    return times


def _wishes(texts: Sequence[str]) -> tuple[str, ...]:
    """Wishes in the form in which they are shown."""
    try:
        return tuple(aim.text for aim in parse_aims(texts))
    except EexError as error:
        raise EexError(f"--aim: {error}") from None


def _check_times(sweep: Sweep, traces: dict[str, Trace], policies: Sequence[Policy]) -> None:
    """Raise an `EexError` if a wish is about latency and a trace has no times, or those given do not fit."""
    aims = [*parse_aims(sweep.aims), *(aim for policy in policies if (a := aims_of(policy)) for aim in a.aims)]
    late = [aim.text for aim in aims if aim.kind in ("latency", "quantile")]
    for name, trace in traces.items():
        try:
            times = times_of(trace, sweep.exit_ms) if sweep.exit_ms else trace.seconds
            known = times is not None or sweep.link is not None
        except EexError as error:
            raise EexError(f"--exit-ms: {name}: {error}") from None
        if late and not known:
            raise EexError(
                f"'{late[0]}': the trace {name} holds no times; say when each exit answers, --exit-ms 2,4,6,40"
            )


def _named(paths: Sequence[Path]) -> dict[str, Path]:
    """Traces by the names of their files, or by their paths where those are the same."""
    stems = [path.stem for path in paths]
    return {str(p) if stems.count(p.stem) > 1 else p.stem: p for p in paths}


def _checked_policies(config: RegretConfig, sweep: Sweep, traces: dict[str, Trace]) -> tuple[dict[str, str], str]:
    """What `make_policy` is given, by what the user wrote, each tried once; and their fingerprint."""
    exits = {trace.edge_exits for trace in traces.values()}
    texts = split_policies(config.policies)
    policies, tried = {}, []
    for text in texts or playable():
        try:
            made = [make_policy(text, exits=e, runs=1, seed=0) for e in exits]
        except EexError as error:
            if texts:
                raise
            if text not in POLICIES:  # a plug-in; one of eex's own needs options
                print(f"warning: left out: {error}", file=sys.stderr)
            continue
        policies[text] = text
        tried.append(made[0])
        if "grid=" not in text:
            armed = f"{text}:grid={' '.join(str(t) for t in sweep.grid)}"
            try:
                make_policy(armed, exits=made[0].exits)
                policies[text] = armed
            except EexError:
                pass  # has no arms
    _check_times(sweep, traces, tried)
    if sweep.aims and texts and not any(policy.priced for policy in tried):
        raise EexError(f"--aim: none of {', '.join(texts)} heeds prices; add stop-curve or gain-curve to --policies")
    return policies, fingerprint(tried, list(policies))


def fingerprint(policies: Sequence[Policy], texts: Sequence[str]) -> str:
    """What the policies of a sweep are made of, as a hash; a new one each time where that cannot be known.

    It covers eex's policies with the agents that are shipped; the files and folders that options name; and of plug-ins,
    also inside wrappers, their package, and every module outside the installed ones that is loaded with them or that
    they may import later.
    """
    files = _files_of(Path(inspect.getfile(eex.policies)).parent)
    for value in (part.partition("=")[2] for text in texts for part in re.split("[:@]", text)):
        if value and os.path.exists(value):  # Path.exists raises where it is too long for a name
            files |= _files_of(Path(value))
    foreign = {cls for policy in policies for cls in classes_of(policy) if cls.__module__.split(".")[0] != "eex"}
    try:
        for cls in foreign:
            module = sys.modules[cls.__module__.split(".")[0]]
            place = Path(inspect.getfile(module))
            files |= _files_of(place.parent if place.name == "__init__.py" else place)
    except (TypeError, KeyError):  # made where there is no file
        return secrets.token_hex(32)
    if any(own_source(cls.__module__) for cls in foreign):
        files |= {path for name in list(sys.modules) if (path := own_source(name))}
        files |= set(own_sources(cls.__module__ for cls in foreign)[0].values())
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _files_of(place: Path) -> set[Path]:
    """A file, or those under a folder that hold code or what was learned."""
    if place.is_file():
        return {place.resolve()}
    return {path.resolve() for path in place.rglob("*") if path.is_file() and path.suffix != ".pyc"}


def _hindsight(sweep: Sweep, name: str, trace: Trace, overhead: float) -> dict[str, Any]:
    """The best fixed thresholds on the whole trace, and what they earn a frame; on as many of its frames, evenly
    spaced, as memory holds at ease."""
    given = (
        trace.confidence[:: 1 + (len(trace) - 1) // MOST_FRAMES],
        overhead,
        np.array(sweep.grid),
        exit_cost_of(sweep, trace),
        sweep.reward,
    )
    threshold, earned = best_fixed(*given)
    each, most = best_per_exit(*given)
    return {
        "trace": name,
        "overhead": overhead,
        "threshold": threshold,
        "exit_cost": np.broadcast_to(given[3], trace.edge_exits - 1).tolist(),
        "reward": float(earned.mean()),
        "thresholds_per_exit": each.tolist(),
        "reward_per_exit": float(most.mean()),
    }


# ---- its folder


def _open_folder(out: Path | None, played: dict[str, Any]) -> Path:
    """The folder for what is played, new or its own from before."""
    text = json.dumps(played, sort_keys=True)
    folder = out or Path("runs") / f"regret-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "config.json").exists():
            before = json.loads((folder / "config.json").read_text())
            other = [key for key in played if not isinstance(before, dict) or before.get(key) != json.loads(text)[key]]
            if other:
                raise EexError(
                    f"{folder}: holds another comparison, which differs in {', '.join(other)}; give another --out"
                )
        elif any(folder.iterdir()):
            raise EexError(f"{folder}: holds other files than a comparison's; give another --out")
        else:
            _write_json(folder / "config.json", played)
    except OSError as error:
        raise EexError(f"{folder}: cannot write there (--out): {error.strerror}") from None
    except json.JSONDecodeError:
        raise EexError(f"{folder}: its config.json is not that of a comparison; give another --out") from None
    return folder


def _write_rows(path: Path, rows: Columns, trace: str, policy: str) -> None:
    """Write a part's rows as an Arrow file, which is there only once it is whole."""
    import pyarrow as pa

    count = len(rows["run"])
    named = {
        name: pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, dtype=np.int32)), pa.array([value]))
        for name, value in (("trace", trace), ("policy", policy))
    }
    _write_table(path, pa.table(named | {k: pa.array(v, from_pandas=False) for k, v in rows.items()}))


def _join(parts: Path, path: Path) -> None:
    """Put all parts into one file, in an order that does not depend on how the sweep was cut, and remove them."""
    import pyarrow as pa

    tables = []
    for part in sorted(parts.glob("*.arrow"), key=lambda p: [int(n) for n in p.stem.split("-")]):
        with part.open("rb") as source, pa.ipc.open_file(source) as reader:
            tables.append(reader.read_all())
    table = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
    numbers = {name: table[name].combine_chunks() for name in ("round", "run", "overhead", "policy", "trace")}
    order = np.lexsort([getattr(c, "indices", c).to_numpy() for c in numbers.values()])
    _write_table(path, table.take(order))
    shutil.rmtree(parts)


def _write_table(path: Path, table: Any) -> None:
    import pyarrow as pa

    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with (
        replacing(path) as part,
        part.open("wb") as sink,
        pa.ipc.new_file(sink, table.schema, options=options) as writer,
    ):
        writer.write_table(table)


def _write_json(path: Path, value: Any) -> None:
    write_file(path, json.dumps(value, indent=1) + "\n")


# ---- what comes of it


def summarise(curves: "pd.DataFrame", aims: Sequence[str] = ()) -> dict[str, Any]:
    """The comparison as plain JSON values, from its saved rows.

    Parameters
    ----------
    aims
        The wishes that were played under.

    Returns
    -------
    dict
        rows: one a trace, policy and overhead. regret_X: final regret, its mean over the runs, and regret_X_ci95, half
        the width of its 95 % interval (Student's t; None if the runs do not differ); reward, utility, offloaded_share,
        accuracy (None without labels), paid: mean cost of a frame's way; accuracy_less_costs: what came of the
        confidence that the utility counts; differs, latency_ms: means; aims: for each wish its limit, the runs' mean
        cost and the share of runs that kept it; rounds_to_best: as `rounds_to_best`, None for never; ratio_to_ucb: of
        regret_best_arm, None where `ucb` was not played.

        sums: one a trace and policy, the regrets summed over the overheads, and ratio_to_ucb for regret_best_arm,
        dynamic_ratio_to_ucb for regret_dynamic.
    """
    regrets = [name for name in curves if name.startswith("regret_") and name != "regret_even"]
    last = curves[curves["round"] == curves["round"].max()]
    keys = ["trace", "policy", "overhead"]
    rows = []
    for key, runs in last.groupby(keys, sort=False, observed=True):
        row = dict(zip(keys, key, strict=True)) | _means(runs, regrets)
        row |= {name: float(runs[name].mean()) for name in ("reward", "utility", "offloaded", "accuracy")}
        row["offloaded_share"] = row.pop("offloaded")
        row |= {name: float(runs[name].mean()) for name in ("latency_ms", "differs") if name in runs}
        if aims:
            row["aims"] = [_came_to(aim, runs[f"aim_{j}"].to_numpy()) for j, aim in enumerate(parse_aims(aims))]
        row["accuracy"] = None if np.isnan(row["accuracy"]) else row["accuracy"]
        if "paid" in runs:  # else it was played before that was kept
            row["paid"] = float(runs["paid"].mean())
            known = row["accuracy"] is not None
            row["accuracy_less_costs"] = row["accuracy"] - row["paid"] if known else None
        rows.append(row)
    by_key = dict(iter(curves.groupby(keys, sort=False, observed=True)))
    for row in rows:
        row["rounds_to_best"] = rounds_to_best(by_key[row["trace"], row["policy"], row["overhead"]])
    sums = []
    for (trace, policy), runs in last.groupby(keys[:2], sort=False, observed=True):
        whole = runs.groupby("run")[regrets].sum()
        sums.append({"trace": trace, "policy": policy} | _means(whole, regrets))
    _add_ratios(rows, "regret_best_arm", "ratio_to_ucb")
    _add_ratios(sums, "regret_best_arm", "ratio_to_ucb")
    _add_ratios(sums, "regret_dynamic", "dynamic_ratio_to_ucb")
    return {"rounds": int(curves["round"].max()), "runs": int(curves["run"].nunique()), "rows": rows, "sums": sums}


def _came_to(aim: Aim, cost: NDArray[Any]) -> dict[str, Any]:
    """What came of a wish in runs of these mean costs, (runs,)."""
    return {
        "wish": aim.text,
        "limit": aim.limit,
        "came_to": float(cost.mean()),
        "kept_share": float(np.mean(aim.kept(cost))),
    }


def _means(runs: "pd.DataFrame", names: Sequence[str]) -> dict[str, float | None]:
    """Mean over the runs of each column, and half the width of its 95 % interval."""
    from scipy.special import stdtrit

    values: dict[str, float | None] = {}
    n = len(runs)
    for name in names:
        values[name] = float(runs[name].mean())
        differ = n > 1 and runs[name].nunique() > 1  # copies of one path, as played in order, have no interval
        values[f"{name}_ci95"] = float(stdtrit(n - 1, 0.975) * runs[name].std() / n**0.5) if differ else None
    return values


def _add_ratios(rows: list[dict[str, Any]], regret: str, name: str) -> None:
    """Each row's regret over that of the baseline on the same trace and, if rows have one, overhead."""

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["trace"], row.get("overhead")

    base = {key(row): row[regret] for row in rows if row["policy"] == BASELINE}
    for row in rows:
        row[name] = row[regret] / base[key(row)] if base.get(key(row), 0) > 0 else None


def rounds_to_best(curves: "pd.DataFrame") -> int | None:
    """After how many rounds one policy at one overhead came within 5 % of the best arm, and stayed; None for never.

    Within 5 %, where 0 % is the best fixed threshold in hindsight and 100 % an arm drawn evenly every round: the first
    round after which, over every following stretch of a tenth of the rounds, the runs' mean regret grows by at most
    5 % of what drawing arms evenly would lose there. (5 % of the best arm's own reward would not do: where offloading
    hardly pays, that is about 0.) Known to the checkpoints' resolution.
    """
    mean = curves.groupby("round")[["regret_best_arm", "regret_even"]].mean()
    # regret of drawing evenly is best_arm's reward less even's
    even = mean["regret_best_arm"] - mean["regret_even"]
    at = np.append(0, mean.index.to_numpy())
    lost, even_lost = np.append(0, mean["regret_best_arm"]), np.append(0, even)
    stretch = at[-1] * STRETCH
    starts = at[at + stretch <= at[-1]]

    def grown(values: Any) -> Any:
        return np.interp(starts + stretch, at, values) - np.interp(starts, at, values)

    far = grown(lost) > NEAR * grown(even_lost) + 1e-9
    if far[-1]:
        return None
    return int(starts[np.flatnonzero(far)[-1] + 1]) if far.any() else 0


def print_summary(summary: dict[str, Any]) -> None:
    """Print the tables: one a trace, a block an overhead; and the sums over the overheads."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(markup=False)
    if not console.is_terminal:
        console.width = 170
    exits = max(len(h["thresholds_per_exit"]) for h in summary["hindsight"])
    columns = {"regret_best_arm": "best fixed\nthreshold"}
    if exits > 1:
        columns["regret_best_per_exit"] = "best, one\nper exit"
    if any(abs(row["regret_dynamic"] - row["regret_best_arm"]) > 1e-6 for row in summary["rows"]):
        columns["regret_dynamic"] = "best of each\nsegment"
    columns["regret_oracle"] = "\noracle"
    for trace in dict.fromkeys(row["trace"] for row in summary["rows"]):
        title = f"{trace}: regret after {summary['rounds']:,} rounds, runs' mean ± its 95 % interval"
        table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
        table.add_column("\npolicy", no_wrap=True)
        for heading in (
            *columns.values(),
            "offloaded\nshare",
            "\naccuracy",
            *(("utility\nper frame", "accuracy\nless costs") if exits > 1 else ()),
            "rounds until\nwithin 5 %",
            "share of\nucb's",
        ):
            table.add_column(heading, justify="right", no_wrap=True)
        for best in (h for h in summary["hindsight"] if h["trace"] == trace):
            heading = (f"overhead {best['overhead']:g}", "bold"), f", best threshold {best['threshold']:g}"
            table.add_row(Text.assemble(*heading))
            for row in (r for r in summary["rows"] if (r["trace"], r["overhead"]) == (trace, best["overhead"])):
                table.add_row(
                    f"  {row['policy']}",
                    *(_with_ci(row, name) for name in columns),
                    f"{row['offloaded_share']:.1%}",
                    "" if row["accuracy"] is None else f"{row['accuracy']:.1%}",
                    *(_worths(row, summary["rounds"]) if exits > 1 else ()),
                    "never" if row["rounds_to_best"] is None else f"{row['rounds_to_best']:,}",
                    "" if row["ratio_to_ucb"] is None else f"{row['ratio_to_ucb']:.1%}",
                )
        table.add_row(Text("sum over the overheads", "bold"))
        for row in (r for r in summary["sums"] if r["trace"] == trace):
            ratio = "" if row["ratio_to_ucb"] is None else f"{row['ratio_to_ucb']:.1%}"
            table.add_row(
                f"  {row['policy']}", *(_with_ci(row, name) for name in columns), *[""] * (5 if exits > 1 else 3), ratio
            )
        console.print(table)
        for row in (r for r in summary["rows"] if r["trace"] == trace):
            for aim in row.get("aims", ()):
                came = parse_aims(aim["wish"])[0].shown(aim["came_to"])
                console.print(
                    f"{row['policy']}, overhead {row['overhead']:g}: '{aim['wish']}' kept in {aim['kept_share']:.0%} "
                    f"of the runs; {came}",
                    highlight=False,
                    soft_wrap=True,
                )
        console.print()
    console.print(f"curves, summary and pictures: {summary['folder']}", highlight=False, soft_wrap=True)


def _worths(row: dict[str, Any], rounds: int) -> tuple[str, str]:
    """What the confidence of the answers promised less the costs, and what came of it, as the table shows them."""
    came = row.get("accuracy_less_costs")
    return f"{row['utility'] / rounds:.3f}", "" if came is None else f"{came:.3f}"


def _with_ci(row: dict[str, Any], name: str) -> str:
    ci = row[f"{name}_ci95"]
    return f"{row[name]:,.1f}" + ("" if ci is None else f" ±{ci:5,.1f}")


# ---- the command


def main() -> None:
    """Entry point of `eex-regret`."""
    sys.exit(guarded(_main))


def _main() -> int:
    command = tyro.cli(
        Command,
        prog="eex-regret",
        default=Command(RegretConfig()),
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    if command.quiet:
        hush()
    if command.redraw is not None:
        from eex.experiments.plotting import draw_regret

        for path in draw_regret(command.redraw):
            if not command.quiet:
                print(path)
        return 0
    try:
        if command.quiet or command.json:
            summary = compare(command.regret)
        else:
            with _progress() as show:
                summary = compare(command.regret, show)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it was", file=sys.stderr)
        return 130
    if command.json:
        print(json.dumps(summary))
    elif not command.quiet:
        print_summary(summary)
    return 0


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error; yields the function that moves it."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        BarColumn(),
        TextColumn("{task.fields[done]} million rounds"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(markup=False, stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None, done="0")

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, done=f"{done / 1e6:.1f} of {total / 1e6:.1f}")

        yield show


if __name__ == "__main__":
    main()
