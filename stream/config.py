"""What a run is configured by: `eex-stream`'s options as data. Nothing heavy is imported, so help comes at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import tyro

from eex.policies.core.errors import EexError


@dataclass(frozen=True)
class FrameConfig:
    """Which frames are run through which network."""

    source: str = "sample"
    """Where frames come from: 'sample' (shipped test images), 'camera', or the path of an image folder, a zip of one,
    CIFAR-10's or Caltech-256's own folder, or a video."""
    split: Literal["train", "validation", "test", "all"] = "test"
    """Part of the source, where it has parts."""
    distortion: str = "pristine:2000, gaussian_blur@1:2000, gaussian_noise@20:2000"
    """What happens to the frames, and when: kind@level:frames, ramps a..b, mixtures with +, 3x(…), random(…)."""
    frames: int = 0
    """Number of frames; 0 = as many as the distortion schedule says, or else all of the source once."""
    shuffle: bool = True
    """Draw the order of the images; a video keeps its own."""
    resize: bool = False
    """Scale and crop images of another size than the model's, instead of skipping them."""
    model: Path | None = None
    """Folder of weights and card; by default the shipped model."""
    network: str = ""
    """For a network of one's own: module:function that cuts it."""
    batch: int = 32
    """Frames in a micro-batch."""
    seed: int = 0
    """Of all that is drawn: order, distortions, policies."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network runs; of a stream, its edge part."""
    partition: int = 0
    """Stages that run on the edge, the rest in the cloud; 0 = as the model says. eex-partition finds the fastest."""

    def check(self) -> None:
        """Raise `EexError` for a value outside its range; on construction, tyro would catch it."""
        for name, low in (("frames", 0), ("batch", 1), ("seed", 0), ("partition", 0)):
            if getattr(self, name) < low:
                raise EexError(f"--{name} must be at least {low}, got {getattr(self, name)}")
        if self.batch > 4096:
            raise EexError(f"--batch must be at most 4096, got {self.batch}")


@dataclass(frozen=True)
class StreamConfig(FrameConfig):
    """Stream images through an early-exit network while a policy learns where each frame should stop.

    What it prints last, and writes into a folder of its own under --out, says what adapting bought.
    """

    policy: str = "ucb"
    """Chooses the thresholds. --list-policies shows all."""
    policy_option: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """An option of the policy, as name=value; may be given several times."""
    compare: str = ""
    """Policies to play over the very same frames afterwards, between commas, options behind colons:
    fixed,fixed:p_tar=0.95,ucb:c=0.5"""
    worker: str = "embedded"
    """Cloud worker: 'embedded' starts one ('embedded:2' of two processes), tcp://host:port names one that eex-worker
    runs, or several, between commas; 'none' does without."""
    keys: Path | None = None
    """Folder with this edge's key and worker.pub; by default where eex-keys puts them."""
    key: str = "edge"
    """Name of this edge's key there."""
    plain: bool = False
    """Talk plain text to workers on this machine that were started with --plain, instead of by keys."""
    plain_beyond_loopback: bool = False
    """With --plain: to workers elsewhere, too. Everyone on the way can read and change frames."""
    link: str = ""
    """Put a link between edge and worker that is not there: sao-paulo, north-california, paris, wifi, or MS@MBIT, each
    also for a time, between commas: 40@10:30s, down:5s, jitter=5."""
    send: str = "auto"
    """How frames are sent: fp32, fp16, int8 (features), input (the image), each also with +zstd; auto takes what is
    fastest for the link."""
    overhead: float | str = 0.1
    """Price of offloading a frame, in units of confidence; also a second of round trip (0.2/s), a megabyte (0.01/MB), a
    joule (0.05/J@1.3W), sums of these with +, or a budget to keep to (budget=10/s, budget=20%)."""
    exit_cost: float = 0.0
    """Price of each further edge exit a frame visits, in units of confidence; 0 is AdaEE's."""
    drop_below: float = 0.0
    """Drop a frame that would be offloaded if the last edge exit's confidence in it is below this: nobody answers it,
    and nothing is sent. 0 drops none."""
    deadline_ms: float = 1000.0
    """After this an offloaded frame is answered on the edge."""
    gather: int = 0
    """Run a deeper stage once so many survivors wait for it; more is faster, and answers later."""
    commit: int = 10_000
    """Frames between two times at which records and what was learned go to the disk together; --resume goes on from
    there. 0 does so at the end only."""
    regret: bool = True
    """Afterwards run every exit of every frame, for regret and accuracy by exit; the source must be readable again."""
    out: Path = Path("runs")
    """Folder for the folders of runs."""

    def check(self) -> None:
        """Raise `EexError` for a value outside its range; on construction, tyro would catch it."""
        super().check()
        if self.gather < 0:
            raise EexError(f"--gather must be at least 0, got {self.gather}")
        from eex.policies.core.link import parse_link
        from eex.policies.core.price import parse_price
        from eex.stream.wire.encoding import parse_encoding

        try:
            parse_price(self.overhead)
        except EexError as error:
            raise EexError(f"--{error}") from None
        if not 0 <= self.exit_cost <= 1:
            raise EexError(f"--exit-cost must lie in [0, 1], units of confidence; got {self.exit_cost:g}")
        if not 0 <= self.drop_below <= 1:
            raise EexError(f"--drop-below must lie in [0, 1], a confidence; got {self.drop_below:g}")
        if not self.deadline_ms > 0:
            raise EexError(f"--deadline-ms must be more than 0, got {self.deadline_ms:g}")
        if self.plain_beyond_loopback and not self.plain:
            raise EexError("--plain-beyond-loopback goes with --plain")
        embedded_processes(self.worker)
        if self.link:
            parse_link(self.link)
        if self.send != "auto":
            parse_encoding(self.send)


Config = TypeVar("Config", bound=FrameConfig)


def embedded_processes(worker: str) -> int:
    """How many processes an embedded worker has, by the option's value; 0 where the worker is not embedded.

    Raises
    ------
    EexError
        If the value is none of those that the option takes.
    """
    if worker == "embedded":
        return 1
    kind, _, count = worker.partition(":")
    if kind == "embedded" and count.isdecimal() and 1 <= int(count) <= 256:
        return int(count)
    if worker != "none" and not all(part.strip().startswith("tcp://") for part in worker.split(",")):
        raise EexError(f"--worker {worker}: expected 'embedded', 'embedded:2', 'none' or tcp://host:port, …")
    return 0


def earlier(arguments: list[str], kind: type[Config]) -> Config:
    """What the options of a command start from: the file behind --config among its arguments, or the defaults.

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
