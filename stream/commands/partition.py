"""`eex-partition`: find where to cut the network."""

import json
import math
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tyro

from eex.policies.core.errors import EexError
from eex.policies.core.link import parse_link
from eex.stream.frames.frames import FrameConfig
from eex.stream.guard import guarded, share_cores
from eex.stream.wire.connection import Connection, ConnectionConfig

SHORT_DRIFT = "pristine:200, gaussian_blur@1:200, gaussian_noise@20:200"
"""Distortion of the shipped sample: enough frames of each kind to count where they leave."""
DEADLINE_MS = 5000.0
"""Deadline for replies of the measured worker."""


@dataclass(frozen=True)
class Command:
    """Find the partition point between edge and cloud that minimises the expected time per frame.

    Measures the stages and exits on this machine, each encoding and, with --worker, the worker and the link to it. The
    share of frames that leave at each exit comes from a trace, or from running the frames of the source.
    """

    measure: tyro.conf.OmitArgPrefixes[FrameConfig] = field(default_factory=FrameConfig)
    threshold: float = 0.8
    """Confidence at which a frame leaves at a side branch, the same for all."""
    trace: Path | None = None
    """Trace written by eex-record. Frames that leave at each exit are counted there instead of being run."""
    link: str = ""
    """Link to the cloud: sao-paulo, north-california, paris, wifi, or MS@MBIT, such as 40@10 for a round trip of 40 ms
    at 10 Mbit/s. With --worker, the link is measured instead. Without both, sending takes no time."""
    worker: str = ""
    """Cloud worker to measure, as tcp://host:port."""
    keys: Path | None = None
    """Folder with this edge's key and worker.pub. By default, the folder where eex-keys writes them."""
    key: str = "edge"
    """Name of this edge's key in that folder."""
    plain: bool = False
    """Connect without encryption to a worker on this machine that was started with --plain."""
    cloud_speed: float = 1.0
    """Speed of the cloud relative to this machine; used if no worker is measured."""
    send: str = "auto"
    """Encoding of sent frames: fp32, fp16, int8 or input, each also with +zstd; auto finds the fastest for each
    partition point."""
    at_once: int = 1
    """Frames per micro-batch while stages are measured."""
    json: bool = False
    """Print only JSON to standard output."""

    def check(self) -> None:
        """Raise `EexError` if a value is out of range."""
        from eex.stream.wire.encoding import parse_encoding

        self.measure.check()
        if self.measure.partition:
            raise EexError("--partition is what eex-partition finds; leave it out")
        if not 0 <= self.threshold <= 1:
            raise EexError(f"--threshold must lie in [0, 1], got {self.threshold:g}")
        if not 0 < self.cloud_speed < math.inf:
            raise EexError(f"--cloud-speed must be more than 0, got {self.cloud_speed:g}")
        if not 1 <= self.at_once <= 4096:
            raise EexError(f"--at-once must lie in 1…4096, got {self.at_once}")
        if self.worker in ("embedded", "none"):
            raise EexError(f"--worker {self.worker}: expected tcp://host:port, a worker that runs elsewhere")
        if self.link and self.worker:
            raise EexError("--link and --worker exclude each other: the link to a worker is measured")
        if self.send != "auto":
            parse_encoding(self.send)
        if self.link:
            parse_link(self.link)

    def connection(self) -> Connection | None:
        """Connection to the worker to measure; None if there is none."""
        if not self.worker:
            return None
        options = ConnectionConfig(
            worker=self.worker, keys=self.keys, key=self.key, plain=self.plain, deadline_ms=DEADLINE_MS
        )
        return options.connection()


def found_by(command: Command) -> dict[str, Any]:
    """The measurements and the recommended partition point, as plain JSON values.

    Raises
    ------
    EexError
        If model, source, trace, link or worker cannot be used.
    """
    command.check()
    from eex.stream.frames.frames import Frames
    from eex.stream.network import load_network
    from eex.stream.planning.survey import recommendation, survey

    measure = command.measure
    if measure.source == "sample" and not (measure.distortion or measure.frames):
        measure = replace(measure, distortion=SHORT_DRIFT)
    net = load_network(measure)
    net.partition = max(1, net.exits - 1)  # so that every side branch runs on the edge
    times, speed = survey(
        net,
        Frames(measure, measure.schedule(), net),
        command.trace,
        command.threshold,
        link=parse_link(command.link) if command.link else None,
        connection=command.connection(),
        cloud_speed=command.cloud_speed,
        send=command.send,
        at_once=command.at_once,
    )
    return recommendation(times, speed) | {"threshold": command.threshold, "model": net.fingerprint}


def _print(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("partition", "sent as", box=None, padding=(0, 2, 0, 0))
    for title in ("bytes", "sent", "edge ms", "link ms", "cloud ms", "all ms"):
        table.add_column(title, justify="right")
    last, chosen = found["plans"][-1]["partition"], found["recommended"]
    for row in found["plans"]:
        where = {0: "0 (cloud)", last: f"{last} (edge)"}.get(row["partition"], str(row["partition"]))
        table.add_row(
            where,
            row["send"] or "–",
            f"{row['bytes']:,.0f}" if row["send"] else "–",
            f"{100 * row['sent_share']:.1f} %",
            *(f"{row[k]:.2f}" for k in ("edge_ms", "link_ms", "cloud_ms", "ms")),
            style="bold" if row["partition"] == chosen["partition"] else "",
        )
    link, console = found["link"], Console(markup=False)
    rate = "without limit" if link["mbit"] is None else f"{link['mbit']:.3g} Mbit/s"
    leave = " ".join(f"{100 * share:.0f} %" for share in found["leave"])
    console.print(
        f"expected time per frame; threshold {found['threshold']:g}: of the frames that reach each side branch, "
        f"{leave} leave; link {link['round_trip_ms']:.3g} ms, {rate}",
        highlight=False,
    )
    console.print(table)
    console.print(f"fastest: eex-stream {found['option']}   ({chosen['ms']:.2f} ms)", soft_wrap=True, highlight=False)
    if chosen["partition"] == last:
        cloud = min(found["plans"][1:-1], key=lambda row: row["ms"], default=None)
        if cloud is not None:
            console.print(
                f"with the cloud: eex-stream --partition {cloud['partition']} --send {cloud['send']}   "
                f"({cloud['ms']:.2f} ms)",
                soft_wrap=True,
                highlight=False,
            )
    if found["plans"][0]["ms"] < chosen["ms"]:
        console.print(
            f"sending every image straight to the cloud would take {found['plans'][0]['ms']:.2f} ms, but eex-stream "
            f"runs at least one stage on the edge: without it, there is nothing to learn",
            soft_wrap=True,
            highlight=False,
        )


def main() -> None:
    """Entry point of `eex-partition`."""
    sys.exit(guarded(_main))


def _main() -> None:
    command = tyro.cli(Command, prog="eex-partition", config=(tyro.conf.FlagCreatePairsOff,))
    share_cores()
    found = found_by(command)
    if command.json:
        print(json.dumps(found))
    else:
        _print(found)


if __name__ == "__main__":
    main()
