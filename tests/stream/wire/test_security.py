"""Plain text stays on the machine, and nothing that arrives is unpickled."""

from pathlib import Path

import pytest

from eex.policies.core.errors import OffloadError
from eex.stream.wire import protocol
from eex.stream.wire.client import ZmqOffloader
from eex.stream.wire.security import check_plain, is_loopback


@pytest.mark.parametrize(
    "endpoint", ["tcp://0.0.0.0:1", "tcp://*:1", "tcp://eth0:1", "tcp://10.0.0.1:1", "tcp://[::]:1"]
)
def test_plain_text_stays_on_the_machine(endpoint):
    assert not is_loopback(endpoint)
    with pytest.raises(OffloadError, match="--plain-beyond-loopback"):
        check_plain(endpoint, anywhere=False)
    with pytest.raises(OffloadError, match="--plain-beyond-loopback"):
        ZmqOffloader(endpoint, "model-a")
    check_plain(endpoint, anywhere=True)
    assert all(is_loopback(f"tcp://{host}:1") for host in ("127.0.0.1", "localhost", "[::1]"))


def test_nothing_is_pickled():
    root = Path(protocol.__file__).parents[1]
    for path in root.rglob("*.py"):
        if path.name not in ("sources.py", "training.py"):  # they read CIFAR-10's pickles without executing them
            text = path.read_text()
            assert not any(word in text for word in ("import pickle", "send_pyobj", "recv_pyobj", "pickle.loads")), path
