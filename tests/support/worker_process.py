"""A worker process without torch, for tests of what starts and ends one."""

SCRIPT = """
import sys, threading
import numpy as np
from eex.stream.worker.embedded import read_keys
from eex.stream.worker.pool import LocalReplica
from eex.stream.wire.protocol import Welcome
from eex.stream.worker.serve import listen, stop_on_signals, stop_with_parent
stop, keys = stop_on_signals(), None
if "--with-parent" in sys.argv:
    keys = read_keys()
    stop_with_parent(stop)
assert "torch" not in sys.modules
replica = LocalReplica({"model-a": lambda stage, expert, x: (np.full(len(x), 0.5), np.full(len(x), stage))})
bind = sys.argv[sys.argv.index("--bind") + 1] if "--bind" in sys.argv else "tcp://127.0.0.1:*"
listen([Welcome("model-a", 4, ("blur",), tuple("abcd"))], [replica], bind, stop, keys=keys)
"""
