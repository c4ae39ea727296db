"""The options of a run and their parsed form. Heavy libraries are not imported, so --help is instant."""

from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from eex.policies.core.aims import parse_aims
from eex.policies.core.base import Reward
from eex.policies.core.errors import EexError
from eex.policies.core.exit_cost import parse_exit_cost
from eex.policies.core.files import parse_json
from eex.policies.core.price import Price, parse_price
from eex.policies.core.schedule import Schedule
from eex.policies.registry import RECOMMENDED, split_option, split_policies
from eex.stream.frames.frames import FrameConfig
from eex.stream.wire.connection import Connection, ConnectionConfig

__all__ = [
    "Choice",
    "FrameConfig",
    "PolicyConfig",
    "Resolved",
    "StreamConfig",
    "earlier",
    "from_json",
    "overridden",
    "to_json",
]


@dataclass(frozen=True)
class Choice:
    """A policy to play: the arguments of `make_policy` and the label used in reports."""

    label: str
    policy: str
    options: dict[str, str]


@dataclass(frozen=True)
class Resolved:
    """The parsed options of a stream; their text is not read again after this.

    Attributes
    ----------
    schedule
        Distortion schedule.
    price
        Price of offloading a frame.
    connection
        How frames reach the cloud.
    policies
        The policy of the run first, then those compared with it.
    """

    schedule: Schedule
    price: Price
    connection: Connection
    policies: tuple[Choice, ...]


@dataclass(frozen=True)
class PolicyConfig:
    """Options that say who chooses thresholds, and what offloading costs."""

    policy: str = RECOMMENDED
    """Policy that chooses the thresholds. `eex-stream --list-policies` shows all of them."""
    policy_option: tuple[str, ...] = ()
    """Option of the policy, as name=value. Can be repeated."""
    overhead: float | str = 0.1
    """Price of offloading a frame, in units of confidence. It can also be a price per second of round trip (0.2/s), per
    megabyte (0.01/MB) or per joule (0.05/J@1.3W), a sum of these with +, or a budget (budget=10/s, budget=20%)."""
    exit_cost: float | str = "auto"
    """Price of each edge exit that a frame visits after the first, in units of confidence: a number, one per further
    exit (0.01,0.03), or auto, in proportion to the multiply-adds of the stages, 0.02 on average (auto:0.05: 0.05).
    AdaEE uses 0."""
    aim: tuple[str, ...] = ()
    """Wish that the policy keeps to, by prices on top of those above: "accuracy within 1 point of the whole network",
    "mean latency <= 8 ms", "p99 <= 40 ms" or "offload <= 10 %". Can be repeated, or several separated by commas."""
    reward: Reward = "utility"
    """What frames earn: the utility, which is the confidence of the answer less the prices paid for it, or AdaEE's
    reward, which is 0 wherever a frame leaves on the edge. To compare with AdaEE, add --exit-cost 0."""
    drop_below: float = 0.0
    """Drop a frame instead of offloading it if its confidence at the last edge exit is below this value. Dropped frames
    are not sent and get no answer. 0 drops no frames."""
    gather: int = 0
    """Run a deeper stage only once this many frames are waiting for it: higher throughput, but later answers. 0 runs
    every stage at once."""

    def price(self) -> Price:
        """The price of offloading.

        Raises
        ------
        EexError
            If one of the options is out of range or cannot be parsed.
        """
        if self.gather < 0:
            raise EexError(f"--gather must be at least 0, got {self.gather}")
        try:
            price = parse_price(self.overhead)
            parse_exit_cost(self.exit_cost)
        except EexError as error:
            raise EexError(f"--{str(error).replace('exit cost', 'exit-cost', 1)}") from None
        if not 0 <= self.drop_below <= 1:
            raise EexError(f"--drop-below must lie in [0, 1], a confidence; got {self.drop_below:g}")
        try:
            parse_aims(self.aim)
        except EexError as error:
            raise EexError(f"--aim: {error}") from None
        return price

    def options(self) -> dict[str, str]:
        """Options of the policy, by name."""
        return dict(split_option(pair) for pair in self.policy_option)


@dataclass(frozen=True)
class StreamConfig(PolicyConfig, ConnectionConfig, FrameConfig):
    """Stream images through an early-exit network while a policy learns where each frame should stop.

    At the end, a table shows what adapting gained. Records, summary and pictures go to a new folder under --out.
    """

    compare: str = ""
    """Comma-separated policies to play over the same frames afterwards, with their options after colons:
    fixed,fixed:p_tar=0.95,ucb:c=0.5"""
    commit: int = 10_000
    """Save the records and the state of the policy every this many frames; --resume continues from the last save. 0
    saves once, at the end."""
    regret: bool = True
    """Whether every exit is evaluated on every frame after the run, to report regret and the accuracy of each exit. The
    source must be readable a second time."""
    pictures: bool = True
    """Whether pictures of the run are drawn into its folder: thresholds, exits and regret over time."""
    out: Path = Path("runs")
    """Folder in which each run creates its own folder."""

    def check(self) -> None:
        """Raise `EexError` if a value is out of range. Not done on construction, where tyro would catch it."""
        self.resolve()

    def resolve(self) -> Resolved:
        """Parse the options.

        Raises
        ------
        EexError
            If an option is out of range or cannot be parsed.
        """
        FrameConfig.check(self)
        self._at_least(commit=0)
        return Resolved(self.schedule(), self.price(), self.connection(self.usual_answerer), self._choices())

    def _choices(self) -> tuple[Choice, ...]:
        rivals = split_policies(self.compare)
        named = [(":".join([self.policy, *self.policy_option]), self.policy, self.options())]
        named += [(name, name, {}) for name in rivals]
        labels = [label for label, _, _ in named]
        again = [labels[:k].count(label) for k, label in enumerate(labels)]
        return tuple(
            Choice(f"{label} ({k + 1})" if k else label, policy, given)
            for (label, policy, given), k in zip(named, again, strict=True)
        )


Config = TypeVar("Config", bound=FrameConfig)


def earlier(arguments: list[str], kind: type[Config]) -> Config:
    """The defaults of a command's options: those in the file given by --config, if any, else the built-in ones.

    Raises
    ------
    EexError
        If the file is not the configuration of a run.
    """
    path = last_given(arguments, "--config")
    return from_json(Path(path), kind) if path else kind()


def last_given(arguments: list[str], option: str) -> str:
    """The value of an option on a command line, the last one where it is repeated; empty if there is none."""
    values = [a.partition("=")[2] or b for a, b in pairwise([*arguments, ""]) if a.partition("=")[0] == option]
    return values[-1] if values else ""


def overridden(config: Config, arguments: list[str]) -> Config:
    """An earlier configuration whose repeatable options are empty where the arguments name them.

    They would add to them otherwise. The options of another policy go with that policy.
    """
    named = {a.partition("=")[0].removeprefix("--").replace("-", "_") for a in arguments if a.startswith("--")}
    if "policy" in named:
        named.add("policy_option")
    repeatable = {field.name for field in fields(config) if isinstance(getattr(config, field.name), tuple)}
    emptied: dict[str, Any] = dict.fromkeys(named & repeatable, ())
    return replace(config, **emptied)


LASTING = (
    "source", "split", "distortion", "shuffle", "resize", "truncated", "seed", "policy_option", "overhead", "exit_cost",
    "aim", "reward", "drop_below",
)  # fmt: skip
"""Options that say which frames a run plays and what they earn: sums of frames under others would mean nothing."""


def check_goes_on(config: StreamConfig, folder: Path) -> None:
    """Raise `EexError` if a folder holds no run that could go on, or one whose frames would not be of one kind then."""
    path = folder / "config.json"
    began, now = to_json(from_json(path, StreamConfig)), to_json(config)
    for name in LASTING:
        if began[name] != now[name]:
            option = f"--{name.replace('_', '-')}"
            raise EexError(
                f"{folder} began with {option} {began[name]}, not {now[name]}, and a run goes on as it began; "
                f"a new run with other options is: --config {path} {option} …"
            )


def to_json(config: StreamConfig) -> Any:
    """Convert a configuration to plain JSON values."""
    return msgspec.to_builtins(config, enc_hook=str)


def from_json(path: Path, kind: type[Config]) -> Config:
    """Read the configuration of an earlier run, or the fields of it that `kind` has.

    Raises
    ------
    EexError
        If the file cannot be read or is not the configuration of a run.
    """
    try:
        given = parse_json(path.read_bytes())
        if unknown := sorted(set(given) - {field.name for field in fields(StreamConfig)}):
            raise ValueError(f"it has '{unknown[0]}', which is no option of eex-stream")
        return msgspec.convert(given, type=kind, dec_hook=lambda kind, value: kind(value))
    except OSError as error:
        raise EexError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, OverflowError) as error:
        raise EexError(f"{path}: not the configuration of a run: {error}") from None
