"""What edges of a fleet have learned, on its way to a worker and back. Neither sockets nor a clock."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from eex.policies.core.fleet import Layout
from eex.stream.wire.peer import SUMS_ID, Peer
from eex.stream.wire.protocol import Buffer, FleetHeader, ReplyHeader, SumsHeader, pack


class Shares:
    """Sums that were sent, and what came back.

    Attributes
    ----------
    fleet
        Other edges and their sums, as a worker last sent them; None if none came since somebody took them.
    problem
        Why the worker refused the latest sums; empty if it did not.
    under_way
        How many sums the worker has not answered yet.
    """

    def __init__(self) -> None:
        self.fleet: tuple[int, NDArray[Any]] | None = None
        self.problem, self.under_way = "", 0

    def send(
        self, peer: Peer, model: str, policy: str, edge: str, layout: Layout, sums: NDArray[np.float32]
    ) -> list[Buffer]:
        """Send sums to a worker: the message, empty if it does not take it."""
        header = SumsHeader(SUMS_ID, model, policy, edge, exits=layout.exits, bins=layout.bins, coarse=layout.coarse)
        message = pack(header, sums)
        if not peer.send(message):
            return []
        self.under_way += 1
        return message

    def answered(self, header: FleetHeader | ReplyHeader, arrays: list[NDArray[Any]]) -> None:
        """The worker sends the others' sums, or refuses these."""
        self.under_way = max(0, self.under_way - 1)
        if isinstance(header, FleetHeader):
            self.fleet, self.problem = (header.edges, arrays[0].copy()), ""
        elif header.refusal != "busy":  # a busy worker read the sums before these late, and so found these too soon
            self.problem = header.error

    def restarted(self) -> None:
        """A worker that was restarted answers none of those under way."""
        self.under_way = 0

    def take(self) -> tuple[int, NDArray[Any]] | None:
        """`fleet`, once."""
        fleet, self.fleet = self.fleet, None
        return fleet
