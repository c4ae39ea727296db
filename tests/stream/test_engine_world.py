"""The engine is held to the world: of the same confidences and thresholds, both make the same outcomes."""

import numpy as np
import pytest
import torch
from nets import CLASSES, EXPERTS, PixelClassifier, pictures, tiny_net

from eex.policies.core.base import Policy, Thresholds
from eex.policies.core.columns import joined
from eex.policies.core.draws import uniform
from eex.policies.core.routing import answer, seen
from eex.policies.core.world import step
from eex.stream.driver import Driver
from eex.stream.frames.batch import Batch
from eex.stream.groups import every_exit
from eex.stream.wire.offload import InMemoryOffloader, NoOffloader

pytestmark = pytest.mark.timeout(120)

FRAMES, OVERHEAD = 600, 0.1


class Anywhere(Policy):
    """Draws thresholds that send frames every way there is."""

    def choose(self, context):
        frames = np.arange(context.first, context.first + context.frames)
        u = uniform(self.seed, self.keys, frames, 2 * self.exits + 2)
        exit_at, skip_below = 0.3 + 0.7 * u[..., : self.exits + 1], 0.6 * u[..., self.exits + 1 : -1]
        arm = np.zeros(u.shape[:2], dtype=np.int64)
        return Thresholds(exit_at, skip_below, arm, np.full(u.shape[:2], np.nan), audited=u[..., -1] < 0.3)


def lossy_cloud(net):
    """Runs the rest of the network, and loses every third message."""

    def run(stage, expert, features):
        x = torch.from_numpy(features)
        with torch.inference_mode():
            for i in range(stage, net.exits):
                x = net.stage(i, x)
            confidence, prediction = net.branch(net.exits - 1, expert, x).softmax(dim=1).max(dim=1)
        return confidence.numpy(), prediction.numpy()

    return InMemoryOffloader(run, window=10_000, lose=range(0, 10**6, 3))


CLOUDS = {"whole": lambda net: None, "lossy": lossy_cloud, "none": lambda net: NoOffloader()}


@pytest.mark.parametrize("drop_below", [0.0, 0.35])
@pytest.mark.parametrize("exit_cost", [0.0, 0.02])
@pytest.mark.parametrize("exits", [2, 4])
@pytest.mark.parametrize("cloud", CLOUDS.values(), ids=CLOUDS)
def test_the_engine_makes_what_the_world_makes(cloud, exits, exit_cost, drop_below):
    kind = "utility" if exit_cost else "adaee"
    net = tiny_net(exits, EXPERTS, PixelClassifier())
    images = pictures(FRAMES)
    policy = Anywhere(exits=net.edge_exits, seed=exits)
    driver = Driver(net, policy, cloud(net), overhead=OVERHEAD, exit_cost=exit_cost, kind=kind, drop_below=drop_below)
    pieces = []
    for first in range(0, FRAMES, 32):
        batch = images[first : first + 32]
        names = [str(first + k) for k in range(len(batch))]
        driver.feed(Batch(batch, names, np.arange(len(batch)) % len(CLASSES)))
        pieces += driver.take()
    driver.drain()
    rows = joined([*pieces, *driver.take()])

    confidence, prediction, _ = every_exit(net, images)
    stepped = step(
        confidence,
        rows.exit_at,
        rows.skip_below,
        OVERHEAD,
        exit_cost,
        kind=kind,
        drop_below=drop_below,
        audited=rows.audited,
        sent=rows.sent,
        lost=rows.fallback,
    )
    confidence, prediction = seen(confidence, prediction, stepped.visited, stepped.replied)
    for name in ("exit", "offloaded", "sent", "fallback", "dropped", "reward"):
        np.testing.assert_array_equal(getattr(rows, name), getattr(stepped, name), err_msg=name)
    np.testing.assert_array_equal(rows.confidence, confidence)
    np.testing.assert_array_equal(rows.prediction, prediction)
    np.testing.assert_array_equal(rows.answer, answer(confidence, prediction, stepped.exit, rows.exit_at[:, -1]))
    assert rows.offloaded.any()
    assert (~rows.offloaded).any()
    assert rows.fallback.any() == (driver.offloader is not None)
    assert rows.dropped.any() == (drop_below > 0)
