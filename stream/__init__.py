"""Streams: sessions that answer frames as they arrive, and recorded streams, played to compare policies.

>>> from eex.stream import Session
>>> with Session(policy="gain-curve") as session:  # doctest: +SKIP
...     answer = session.answer(image)
>>> answer.label, answer.exit  # doctest: +SKIP
('cat', 1)

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
    from eex.stream.live.answers import Answer, Refusal
    from eex.stream.live.asynchronous import AsyncSession
    from eex.stream.live.config import LiveConfig, StreamOptions
    from eex.stream.live.promises import Refused
    from eex.stream.live.session import Session
    from eex.stream.run.records import outcomes_of, read_records
    from eex.stream.wire.client import ZmqOffloader
    from eex.stream.wire.offload import InMemoryOffloader, Offloader, Reply

_MODULES = {
    "Answer": "live.answers",
    "AsyncSession": "live.asynchronous",
    "Batch": "frames.batch",
    "Driver": "driver",
    "Engine": "engine",
    "Frame": "frames.sources",
    "FrameConfig": "config",
    "InMemoryOffloader": "wire.offload",
    "LiveConfig": "live.config",
    "Offloader": "wire.offload",
    "Refusal": "live.answers",
    "Refused": "live.promises",
    "Reply": "wire.offload",
    "Request": "engine",
    "Session": "live.session",
    "Skipped": "frames.sources",
    "Source": "frames.sources",
    "StreamConfig": "config",
    "StreamOptions": "live.config",
    "ZmqOffloader": "wire.client",
    "check_source": "frames.checks",
    "every_exit": "groups",
    "open_source": "frames.sources",
    "outcomes_of": "run.records",
    "read_records": "run.records",
}

__all__ = [
    "Answer",
    "AsyncSession",
    "Batch",
    "Driver",
    "Engine",
    "Frame",
    "FrameConfig",
    "InMemoryOffloader",
    "LiveConfig",
    "Offloader",
    "Refusal",
    "Refused",
    "Reply",
    "Request",
    "Session",
    "Skipped",
    "Source",
    "StreamConfig",
    "StreamOptions",
    "ZmqOffloader",
    "check_source",
    "every_exit",
    "open_source",
    "outcomes_of",
    "read_records",
]


__getattr__, __dir__ = lazily(__name__, _MODULES)
