"""A ZeroMQ context whose sockets are closed in the end."""

import pytest
import zmq


class Kept(zmq.Context):
    """Keeps its sockets, so that they are not collected open."""

    def socket(self, *arguments, **options):
        socket = super().socket(*arguments, **options)
        self.__dict__.setdefault("kept", []).append(socket)
        return socket


@pytest.fixture
def context():
    context = Kept()
    yield context
    context.destroy(linger=0)
