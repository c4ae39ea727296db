"""How the frames of a run are sent."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np

from eex.policies.core.errors import EexError
from eex.stream.frames.frames import Playable
from eex.stream.wire.connection import Connection

if TYPE_CHECKING:
    from eex.models.architecture import Network
    from eex.stream.planning.measure import Sending
    from eex.stream.wire.offload import Offloader

SAMPLES = 64
"""Frames that ways of sending are compared on."""


def choose_sending(
    connection: Connection,
    net: "Network",
    frames: Playable | None,
    connect: "Callable[[], AbstractContextManager[Offloader]]",
) -> "Sending":
    """How frames are sent: as asked for, or whatever is fastest over the link.

    To a worker on this machine features go as they are, without measuring: there is nothing to gain on the way, and the
    time to encode is lost. For a worker or link that cannot be measured, such as one that is down at first, it is the
    fewest bytes.

    Parameters
    ----------
    frames
        To measure with; None, or a camera or a video, whose frames come only once, measures with noise.
    connect
        Opens a connection to measure over; it is closed again, so that no policy starts from what it learned.
    """
    from eex.stream.planning import measure
    from eex.stream.wire.security import is_loopback

    if not connection.offloads or net.partition == net.exits:
        return measure.Sending(None, "nothing is sent")
    if connection.encoding is not None:
        why = "as asked for" if connection.answer_with is None else "another model answers images"
        return measure.Sending(connection.encoding, why)
    if connection.link is None and all(map(is_loopback, connection.endpoints)):
        return measure.Sending(None, "features as they are: the worker is on this machine")
    if frames is not None and frames.live:
        frames = None
    images = _samples(frames, net)
    found = measure.candidates(net, images, net.partition, agreement=frames is not None)
    try:
        with connect() as offloader:
            cloud_ms = measure.worker_times(offloader, net, images, sorted({c.stage for c in found}))
            if connection.link is not None:
                link = measure.first_condition(connection.link)
            else:
                link = measure.measure_link(offloader, net, images, net.partition)
    except EexError as error:
        return measure.smallest(found, str(error))
    return measure.cheapest(found, link, cloud_ms)


def _samples(frames: Playable | None, net: "Network") -> Any:
    """The first frames of a stream, to measure with; noise for a live one."""
    from eex.models.arrays import joined

    batches = [] if frames is None else [batch.images for batch in frames.batches(SAMPLES, {})]
    if batches:
        return joined(batches)
    shape = (SAMPLES, *net.architecture.input_shape)
    return net.array(np.random.default_rng(0).random(shape, dtype=np.float32))
