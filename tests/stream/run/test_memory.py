"""A long stream takes no more memory than a short one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from eex.models.network import Architecture, EarlyExitNet
from eex.policies.registry import make_policy
from eex.stream.driver import Driver
from eex.stream.frames.batch import Batch
from eex.stream.run.records import RecordWriter, read_batches
from eex.stream.run.tally import Reference, Tally
from eex.stream.wire.offload import InMemoryOffloader

STATM = Path("/proc/self/statm")
BATCH = 256
FRAMES = 4000 * BATCH


def resident_mib() -> float:
    return int(STATM.read_text().split()[1]) * 4096 / 2**20


def tiny_net() -> EarlyExitNet:
    architecture = Architecture("custom", tuple("abcd"), (0,), ("custom",) * 2, input_shape=(3, 2, 2))
    branches = [{"pristine": nn.Sequential(nn.Flatten(), nn.Linear(12, 4))} for _ in range(2)]
    return EarlyExitNet([nn.Identity(), nn.Identity()], branches, architecture).eval()


@pytest.mark.soak
@pytest.mark.skipif(not STATM.exists(), reason="reads resident memory from /proc")
def test_a_million_frames_at_constant_memory(tmp_path):
    torch.manual_seed(0)
    net = tiny_net()
    cloud = InMemoryOffloader(lambda stage, expert, x: (np.full(len(x), 0.9), np.zeros(len(x), dtype=np.int64)))
    engine = Driver(net, make_policy("ucb", exits=1), cloud)
    tally = Tally(2)
    hindsight = Reference(2, 0.1, np.linspace(0, 1, 11))
    names, labels = ["frame"] * BATCH, np.zeros(BATCH, dtype=np.int64)
    early = 0.0
    with RecordWriter(tmp_path, net.classes, net.experts) as writer:
        for start in range(0, FRAMES, BATCH):
            engine.feed(Batch(torch.rand(BATCH, 3, 2, 2), names, labels))
            for rows in engine.take():
                tally.add(rows)
                writer.write(rows)
                confidence = np.nan_to_num(rows.confidence, nan=0.5)
                hindsight.add(rows.frame, ["pristine"] * len(rows), rows.label, confidence, rows.prediction)
            if start == FRAMES // 5:
                early = resident_mib()
        engine.drain()
        for rows in engine.take():
            tally.add(rows)
            writer.write(rows)
        late = resident_mib()
    assert tally.frames == FRAMES
    assert sum(len(batch) for batch in read_batches(tmp_path)) == FRAMES
    assert late - early < 4, f"grew from {early:.0f} to {late:.0f} MiB"
