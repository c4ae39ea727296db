"""The connection of a run to its worker."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from eex.stream.config import StreamConfig, embedded_processes

if TYPE_CHECKING:
    from eex.models.network import EarlyExitNet
    from eex.stream.wire.offload import Offloader
    from eex.stream.worker.embedded import EmbeddedWorker

PATIENCE_S = 15.0
"""How long a run waits for its worker over an emulated link, which may be slow or down at first."""


def embedded_worker(config: StreamConfig) -> "EmbeddedWorker":
    """A worker process on this machine, for the model of the run."""
    from eex.stream.worker.embedded import EmbeddedWorker

    models = () if config.model is None else (config.model,)
    return EmbeddedWorker(models, config.network, processes=embedded_processes(config.worker))


@contextlib.contextmanager
def connected(config: StreamConfig, worker: "EmbeddedWorker | None", net: "EarlyExitNet") -> "Iterator[Offloader]":
    """What takes a run's frames to the cloud, over the link that is to be emulated; closed with the block.

    Raises
    ------
    EexError
        If no worker can be used.
    """
    from eex.stream.wire.client import ZmqOffloader
    from eex.stream.wire.emulated_link import emulated
    from eex.stream.wire.keys import EdgeKeys, default_folder, edge_keys
    from eex.stream.wire.offload import NoOffloader

    if config.worker == "none":
        yield NoOffloader()
        return
    keys: EdgeKeys | None
    if worker is not None:
        endpoints, keys = [worker.endpoint(60.0)], worker.keys
    else:
        endpoints = [part.strip() for part in config.worker.split(",")]
        keys = None if config.plain else edge_keys(config.keys or default_folder(), config.key)
    with contextlib.ExitStack() as stack:
        if config.link:
            endpoints = stack.enter_context(emulated(config.link, endpoints, config.seed))
        offloader = ZmqOffloader(
            endpoints, net.fingerprint, config.deadline_ms, keys=keys, anywhere=config.plain_beyond_loopback
        )
        stack.enter_context(contextlib.closing(offloader))
        offloader.connect(PATIENCE_S if config.link else 5.0)
        yield offloader
