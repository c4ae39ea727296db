"""What each encoding costs, and what it does to the answers: the shipped sample through the engine.

python -m eex.experiments.bench.send
"""

import sys
import time
from dataclasses import dataclass

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from eex.models.network import EarlyExitNet
from eex.policies.algorithms.fixed import Fixed
from eex.policies.core.columns import Rows, joined
from eex.policies.core.errors import EexError
from eex.stream.config import FrameConfig
from eex.stream.driver import Driver
from eex.stream.frames.frames import Frames
from eex.stream.guard import guarded, share_cores
from eex.stream.network import load_network
from eex.stream.wire.encoding import ENCODINGS, Encoding, encode
from eex.stream.wire.offload import InMemoryOffloader
from eex.stream.worker.tail import make_tail


@dataclass(frozen=True)
class Bench:
    """Send the frames that a fixed threshold offloads in every encoding, and compare the answers with fp32's."""

    frames: tyro.conf.OmitArgPrefixes[FrameConfig]
    threshold: float = 0.8
    """Frames with less confidence than this at every side branch are offloaded."""


def play(bench: Bench, encoding: Encoding) -> Rows:
    """Stream the frames, with the cloud in this process; the rows of the offloaded ones."""
    config = bench.frames
    net = load_network(config)
    if not isinstance(net, EarlyExitNet):
        raise EexError("the cloud's part runs in torch here: add --backend torch")
    frames = Frames(config, config.schedule(), net)
    policy = Fixed(p_tar=bench.threshold, exits=net.edge_exits)
    engine = Driver(net, policy, InMemoryOffloader(make_tail(net)), send=encoding)
    parts = []
    for batch in frames.batches(frames.total, {}):
        engine.feed(batch)
        parts += list(engine.take())
    engine.drain()
    parts += list(engine.take())
    rows = joined(parts)
    return rows[rows.offloaded]


def encode_us(encoding: Encoding, shape: tuple[int, ...], frames: int = 16) -> float:
    """Microseconds to encode a frame of values half of which are zero, as after a ReLU."""
    rng = np.random.default_rng(0)
    values = np.maximum(rng.normal(size=(frames, *shape)), 0).astype(np.float32)
    if encoding.kind == "input":
        values = rng.integers(0, 256, (frames, *shape), dtype=np.uint8)  # type: ignore[assignment]
    took = []
    for _ in range(20):
        start = time.perf_counter()
        encode(values, encoding)
        took.append(time.perf_counter() - start)
    return 1e6 * float(np.median(took)) / frames


def main() -> None:
    """Entry point."""
    sys.exit(guarded(_main))


def _main() -> None:
    bench = tyro.cli(
        Bench,
        default=Bench(FrameConfig(distortion="pristine:1000, gaussian_blur@1:1000, gaussian_noise@20:1000")),
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    share_cores()
    net = load_network(bench.frames)
    import torch

    x = torch.zeros(1, *net.architecture.input_shape)
    for i in range(net.partition):
        x = net.stage(i, x)
    table = Table("sent as", box=None, padding=(0, 2, 0, 0))
    for title in ("bytes per frame", "encoding, µs", "same answer as fp32", "confidence off by", "accuracy"):
        table.add_column(title, justify="right")
    reference = play(bench, Encoding())
    for encoding in ENCODINGS:
        rows = play(bench, encoding)
        shape = tuple(net.architecture.input_shape) if encoding.kind == "input" else tuple(x.shape[1:])
        table.add_row(
            str(encoding),
            f"{rows.bytes.mean():,.0f}",
            f"{encode_us(encoding, shape):.0f}",
            f"{100 * (rows.answer == reference.answer).mean():.2f} %",
            f"{np.abs(rows.confidence[:, -1] - reference.confidence[:, -1]).mean():.5f}",
            f"{100 * (rows.answer == rows.label).mean():.2f} %",
        )
    console = Console(markup=False)
    console.print(f"{len(reference):,} offloaded frames, partition point {net.partition}", highlight=False)
    console.print(table)


if __name__ == "__main__":
    main()
