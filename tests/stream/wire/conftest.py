"""A socket to play a worker with."""

import pytest
from loopback import bound_router


@pytest.fixture
def router():
    """A bound ROUTER."""
    with bound_router() as socket:
        yield socket
