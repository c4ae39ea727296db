"""An edge's part in a fleet: what its learners have learned goes to the worker, and what others have comes back."""

import contextlib
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from eex.policies.core.base import Policy
from eex.policies.core.errors import EexError
from eex.policies.core.files import write_file
from eex.policies.core.fleet import Layout, sharing
from eex.policies.core.learners import Learners
from eex.stream.wire.offload import Offloader
from eex.stream.wire.protocol import SHARE_EVERY_S

FIRST_S, MOST_S = 1.0, 60.0
"""Seconds between the first two exchanges, which double from one to the next, and at most."""
LAST_S = 3.0
"""How long an edge that ends tries at most to get its last sums to the worker …"""
AWAY_S = 0.5
"""… and how long it waits for one that has gone away."""


@runtime_checkable
class Shared(Protocol):
    """An offloader that also carries what a fleet learns (`eex.stream.wire.client.ZmqOffloader`)."""

    def share(self, policy: str, edge: str, layout: Layout, sums: NDArray[np.float32]) -> bool:
        """Send sums, without waiting; whether they were sent."""

    def take_fleet(self) -> tuple[int, NDArray[np.float32]] | None:
        """Other edges and their sums, if they have come and were not taken yet."""

    @property
    def share_problem(self) -> str:
        """Why the worker refused the latest sums; empty if it did not."""

    @property
    def shares_under_way(self) -> int:
        """How many sums the worker has not answered yet."""


def check_shares(policy: Policy, name: str) -> None:
    """Raise `EexError` if what a policy learns cannot be shared.

    Parameters
    ----------
    name
        Of the policy, as the user wrote it.
    """
    if sharing(policy) is None:
        raise EexError(f"--share: what policy {name} learns cannot be shared; use stop-curve")


class Sharing:
    """Exchanges sums with the worker every so often; it never waits, but for `finish`.

    Parameters
    ----------
    learners
        Those of the engine.
    offloader
        Which carries the sums.
    policy
        Name of the policy; edges share with those that have the same.
    note
        Receives a line for what the worker refuses.
    kept
        The file in which what is learned is kept: who goes on from it is the same edge. None where it is not.
    clock
        Returns the time in seconds.
    images
        Whether offloaded frames are sent as images, which another model may answer: such edges share with each other.

    Attributes
    ----------
    edges
        Other edges that share, as the worker last said; None before its first answer.
    """

    def __init__(
        self,
        learners: Learners,
        offloader: Offloader,
        policy: str,
        note: Callable[[str], None],
        kept: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        images: bool = False,
    ) -> None:
        if not isinstance(offloader, Shared):
            raise EexError("--share: this offloader cannot share; connect to a worker, tcp://host:port")
        self.learners, self.offloader, self.note, self.clock = learners, offloader, note, clock
        self.policy = policy.rpartition("@")[2].partition(":")[0] + " of images" * images
        self.edge = uuid4().hex if kept is None else _name_beside(kept)
        self.edges: int | None = None
        self._due, self._wait_s, self._noted, self._sent = clock(), FIRST_S, "", -math.inf

    def tend(self) -> None:
        """Send what is due, and take what has come."""
        fleet = self.offloader.take_fleet()
        if fleet is not None:
            self._take(*fleet)
        self._note_refusal()
        if self.clock() >= self._due and self._send():
            self._due = self.clock() + self._wait_s
            self._wait_s = min(2 * self._wait_s, MOST_S)

    def finish(self) -> None:
        """Get what was learned last to the worker, which may be so busy that it finds sums too soon after the last."""
        end = self.clock() + LAST_S

        def under_way() -> bool:
            return self.offloader.shares_under_way > 0

        self._poll_while(under_way, end)
        while self.clock() < end:
            self._poll_while(lambda: self.clock() < self._sent + 2 * SHARE_EVERY_S, end)
            self.offloader.take_fleet()  # the answer to earlier sums
            self._poll_while(lambda: not self.offloader.reachable, min(end, self.clock() + AWAY_S))
            if not self._send():
                return
            self._poll_while(under_way, end)
            if self._note_refusal() or self.offloader.take_fleet() is not None:
                return

    def _poll_while(self, waits: Callable[[], bool], end: float) -> None:
        """Wait, and keep the connection alive meanwhile."""
        while waits() and self.clock() < end:
            self.offloader.poll()
            time.sleep(0.005)

    def _note_refusal(self) -> bool:
        problem = self.offloader.share_problem
        if problem and problem != self._noted:
            self.note(f"the worker refused what was to be shared: {problem}")
        self._noted = problem
        return bool(problem)

    def _send(self) -> bool:
        sums, part = self.learners.sums(), sharing(self.learners.example)
        assert part is not None
        layout = part.layout
        given = np.zeros(layout.size) if sums is None else sums
        sent = self.offloader.share(self.policy, self.edge, layout, given.astype(np.float32))
        self._sent = self.clock() if sent else self._sent
        return sent

    def _take(self, edges: int, flat: NDArray[np.float32]) -> None:
        part = sharing(self.learners.example)
        assert part is not None
        if part.layout.problem(flat, moderated=True):
            self.note("the worker sent what no fleet can have learned; it is not used")
            return
        if edges:
            self.learners.take_fleet(flat[None].astype(float))
        self.edges = edges  # last: whoever reads it in another thread may rely on the rest


def _name_beside(kept: Path) -> str:
    """The name of the edge that stands beside what it has learned; a new one, which is written there, if none does."""
    path = kept.with_name(f"{kept.name}.edge")
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if re.fullmatch("[0-9a-f]{32}", name := path.read_text().strip()):
            return name
    name = uuid4().hex
    with contextlib.suppress(EexError):  # the disk is full, say: it is another edge after the next start
        write_file(path, name + "\n")
    return name
