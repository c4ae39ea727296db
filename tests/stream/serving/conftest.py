"""A service on the small network, on a free port."""

import contextlib

import pytest
import torch
from livenet import Cloud, three_exits
from served import Client

from eex.stream.live.session import Session
from eex.stream.serving.config import ServeConfig
from eex.stream.serving.run import served

torch.set_num_threads(1)


@pytest.fixture
def opened():
    """Opens services, and closes them in the end: `opened(live={…}, cloud=…, **options of ServeConfig)`."""
    with contextlib.ExitStack() as stack:

        def open_one(live=None, cloud=None, **options):
            said, own = [], stack.enter_context(contextlib.ExitStack())
            session = own.enter_context(
                Session(net=three_exits(), offloader=cloud or Cloud(), **{"worker": "none"} | (live or {}))
            )
            config = ServeConfig(**{"port": 0} | options)
            url, service = own.enter_context(served(session, config, said.append))
            client = Client(url, service, session, said)
            own.callback(client.close)
            client.stop = own.close
            return client

        yield open_one
