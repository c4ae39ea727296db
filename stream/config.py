"""The options of a run, and what they resolve to. Nothing heavy is imported, so help comes at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import tyro

from eex.policies.core.errors import EexError
from eex.policies.core.price import Price, parse_price
from eex.policies.core.schedule import Schedule, parse_schedule
from eex.policies.registry import RECOMMENDED, split_option
from eex.stream.frames.frames import FrameConfig
from eex.stream.wire.connection import Connection, ConnectionConfig

__all__ = ["Choice", "FrameConfig", "Resolved", "StreamConfig", "earlier", "from_json", "to_json"]


@dataclass(frozen=True)
class Choice:
    """A policy to play: what `make_policy` takes, and the label that it is reported under."""

    label: str
    policy: str
    options: dict[str, str]


@dataclass(frozen=True)
class Resolved:
    """A stream's options, parsed; nothing after this reads their text.

    Attributes
    ----------
    schedule
        Of the distortions.
    price
        Of offloading a frame.
    connection
        How frames reach the cloud.
    policies
        The first is the run's, the others are compared with it.
    """

    schedule: Schedule
    price: Price
    connection: Connection
    policies: tuple[Choice, ...]


@dataclass(frozen=True)
class StreamConfig(ConnectionConfig, FrameConfig):
    """Stream images through an early-exit network while a policy learns where each frame should stop.

    The last screen, and a folder of its own under --out, show what adapting gained.
    """

    policy: str = RECOMMENDED
    """Policy that chooses the thresholds. --list-policies shows them all."""
    policy_option: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """An option of the policy, as name=value. Repeat it for several."""
    compare: str = ""
    """Comma-separated policies to play over the very same frames afterwards; their options follow after colons:
    fixed,fixed:p_tar=0.95,ucb:c=0.5"""
    overhead: float | str = 0.1
    """Price of offloading a frame, in units of confidence. It can also be a price per second of round trip (0.2/s), per
    megabyte (0.01/MB) or per joule (0.05/J@1.3W), a sum of these with +, or a budget (budget=10/s, budget=20%)."""
    exit_cost: float = 0.0
    """Price of each further edge exit that a frame visits, in units of confidence; AdaEE has none."""
    drop_below: float = 0.0
    """Drop a frame instead of offloading it when the last edge exit's confidence is below this: nothing is sent, and it
    gets no answer. 0 drops none."""
    gather: int = 0
    """Run a deeper stage only once this many survivors wait for it: faster, but answers come later."""
    commit: int = 10_000
    """Write records and what was learned to the disk together every so many frames; --resume goes on from there. 0
    writes them once, at the end."""
    regret: bool = True
    """Afterwards, run every exit of every frame to report regret and each exit's accuracy. The source must be readable
    a second time."""
    out: Path = Path("runs")
    """Folder under which each run gets a folder of its own."""

    def check(self) -> None:
        """Raise `EexError` for a value outside its range; on construction, tyro would catch it."""
        self.resolve()

    def resolve(self) -> Resolved:
        """What the options stand for.

        Raises
        ------
        EexError
            If one of them is outside its range or cannot be parsed.
        """
        FrameConfig.check(self)
        if self.gather < 0:
            raise EexError(f"--gather must be at least 0, got {self.gather}")
        try:
            price = parse_price(self.overhead)
        except EexError as error:
            raise EexError(f"--{error}") from None
        if not 0 <= self.exit_cost <= 1:
            raise EexError(f"--exit-cost must lie in [0, 1], units of confidence; got {self.exit_cost:g}")
        if not 0 <= self.drop_below <= 1:
            raise EexError(f"--drop-below must lie in [0, 1], a confidence; got {self.drop_below:g}")
        return Resolved(parse_schedule(self.distortion, self.seed), price, self.connection(), self._choices())

    def _choices(self) -> tuple[Choice, ...]:
        rivals = [name.strip() for name in self.compare.split(",") if name.strip()]
        options = dict(split_option(pair) for pair in self.policy_option)
        named = [(":".join([self.policy, *self.policy_option]), self.policy, options)]
        named += [(name, name, {}) for name in rivals]
        labels = [label for label, _, _ in named]
        again = [labels[:k].count(label) for k, label in enumerate(labels)]
        return tuple(
            Choice(f"{label} ({k + 1})" if k else label, policy, given)
            for (label, policy, given), k in zip(named, again, strict=True)
        )


Config = TypeVar("Config", bound=FrameConfig)


def earlier(arguments: list[str], kind: type[Config]) -> Config:
    """What the options of a command start from: the file given by --config among its arguments, or the defaults.

    Raises
    ------
    EexError
        If the file is not the configuration of a run.
    """
    if "--config" in arguments[:-1]:
        return from_json(Path(arguments[arguments.index("--config") + 1]), kind)
    if at := [a for a in arguments if a.startswith("--config=")]:
        return from_json(Path(at[0].partition("=")[2]), kind)
    return kind()


def to_json(config: StreamConfig) -> Any:
    """A configuration as plain JSON values."""
    return msgspec.to_builtins(config, enc_hook=str)


def from_json(path: Path, kind: type[Config]) -> Config:
    """The configuration of an earlier run, or the part of it that a kind of configuration holds.

    Raises
    ------
    EexError
        If the file is none.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind, dec_hook=lambda kind, value: kind(value))
    except OSError as error:
        raise EexError(f"{path}: cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise EexError(f"{path}: not the configuration of a run: {error}") from None
