"""The engine that runs a stream: frames, the network's edge part, offloading, records.

>>> from eex.stream import StreamConfig
>>> from eex.stream.run import run
>>> summary = run(StreamConfig(frames=2000))  # doctest: +SKIP
>>> summary["accuracy"]  # doctest: +SKIP
0.89
"""

from typing import TYPE_CHECKING

from eex.policies.core.face import lazily

if TYPE_CHECKING:
    from eex.stream.config import FrameConfig, StreamConfig
    from eex.stream.driver import Driver
    from eex.stream.engine import Engine, Request
    from eex.stream.frames.batch import Batch
    from eex.stream.frames.checks import check_source
    from eex.stream.frames.sources import Frame, Skipped, Source, open_source
    from eex.stream.groups import every_exit
    from eex.stream.run.records import outcomes_of, read_records
    from eex.stream.wire.client import ZmqOffloader
    from eex.stream.wire.offload import InMemoryOffloader, Offloader, Reply

_MODULES = {
    "Batch": "frames.batch",
    "Driver": "driver",
    "Engine": "engine",
    "Frame": "frames.sources",
    "FrameConfig": "config",
    "InMemoryOffloader": "wire.offload",
    "Offloader": "wire.offload",
    "Reply": "wire.offload",
    "Request": "engine",
    "Skipped": "frames.sources",
    "Source": "frames.sources",
    "StreamConfig": "config",
    "ZmqOffloader": "wire.client",
    "check_source": "frames.checks",
    "every_exit": "groups",
    "open_source": "frames.sources",
    "outcomes_of": "run.records",
    "read_records": "run.records",
}

__all__ = [
    "Batch",
    "Driver",
    "Engine",
    "Frame",
    "FrameConfig",
    "InMemoryOffloader",
    "Offloader",
    "Reply",
    "Request",
    "Skipped",
    "Source",
    "StreamConfig",
    "ZmqOffloader",
    "check_source",
    "every_exit",
    "open_source",
    "outcomes_of",
    "read_records",
]


__getattr__, __dir__ = lazily(__name__, _MODULES)
