"""How the frames of a run are sent."""

from typing import TYPE_CHECKING

from eex.policies.core.errors import EexError
from eex.policies.core.link import parse_link
from eex.stream.config import StreamConfig
from eex.stream.frames.frames import Frames
from eex.stream.wire.encoding import parse_encoding

if TYPE_CHECKING:
    import torch

    from eex.models.network import EarlyExitNet
    from eex.stream.planning.measure import Sending
    from eex.stream.wire.offload import Offloader

SAMPLES = 64
"""Frames that ways of sending are compared on."""


def choose_sending(config: StreamConfig, net: "EarlyExitNet", frames: Frames, offloader: "Offloader") -> "Sending":
    """How frames are sent, as configured, or what is fastest for the link.

    To a worker on this machine features go as they are, without measuring: nothing is gained on the way, and what
    encoding takes is lost. A worker or link that cannot be measured, such as one that is down at first, gets the fewest
    bytes.
    """
    from eex.stream.planning import measure
    from eex.stream.wire.security import is_loopback

    if config.worker == "none" or net.partition == net.exits:
        return measure.Sending(None, "nothing is sent")
    if config.send != "auto":
        return measure.Sending(parse_encoding(config.send), "as asked for")
    near = config.worker.startswith("embedded") or all(is_loopback(e.strip()) for e in config.worker.split(","))
    if near and not config.link:
        return measure.Sending(None, "features as they are: the worker is on this machine")
    images = _samples(frames, net)
    found = measure.candidates(net, images, net.partition, agreement=not frames.live)
    try:
        cloud_ms = measure.worker_times(offloader, net, images, sorted({c.stage for c in found}))
        if config.link:
            link = measure.first_condition(parse_link(config.link))
        else:
            link = measure.measure_link(offloader, net, images, net.partition)
    except EexError as error:
        return measure.smallest(found, str(error))
    return measure.cheapest(found, link, cloud_ms)


def _samples(frames: Frames, net: "EarlyExitNet") -> "torch.Tensor":
    """The first frames of a stream, to measure with; of a live one, which gives them but once, noise."""
    import torch

    batches = [] if frames.live else [pixels for pixels, *_ in frames.batches(SAMPLES, {})]
    shape = (SAMPLES, *net.architecture.input_shape)
    return (
        torch.cat(batches)
        if batches
        else torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(frames.device)
    )
