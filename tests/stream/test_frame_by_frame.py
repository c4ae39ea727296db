"""What the engine does around the network, frame by frame; counted in calls, which no load changes."""

import sys

import numpy as np
import pytest

from eex.models.architecture import Architecture, Costs
from eex.models.onnx import OnnxNet
from eex.policies.core.base import Context
from eex.policies.core.columns import COLUMNS, OUTCOMES, Outcomes
from eex.policies.registry import make_policy
from eex.stream.driver import Driver
from eex.stream.frames.batch import Batch

FRAMES, CLASSES, EXPERTS = 512, 10, ("pristine", "gaussian_blur", "gaussian_noise")


class Known:
    """A stage or branch whose answers are known: numbers of frames go in."""

    def __init__(self, rows):
        self.rows = rows

    def __call__(self, x):
        return self.rows[x[:, 0].astype(int)]


def known_net():
    """A network of four exits of rising accuracy, with a distortion classifier."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, FRAMES)
    stages = [lambda x: x] * 4
    branches = []
    for scale in (6.0, 7.0, 8.0, 9.0):
        logits = rng.normal(size=(FRAMES, CLASSES)) + scale * (np.arange(CLASSES) == labels[:, None])
        branches.append(dict.fromkeys(EXPERTS, Known(logits.astype(np.float32))))
    architecture = Architecture("resnet", tuple("abcdefghij"), (0, 1, 2), ("linear",) * 4, EXPERTS)
    classifier = Known(rng.normal(size=(FRAMES, len(EXPERTS))).astype(np.float32))
    costs = Costs((1,) * 4, (1,) * 4, (4,) * 4)
    return OnnxNet(stages, branches, architecture, [dict.fromkeys(EXPERTS, 1.0)] * 4, classifier, costs), labels


def play(name, batch=1, frames=FRAMES, **options):
    """The finished rows of all frames, and the calls of functions that each frame took from the 100th on."""
    net, labels = known_net()
    driver = Driver(net, make_policy(name, exits=3), clock=lambda: 1.0, **options)
    numbers = np.arange(frames, dtype=np.float32)[:, None]
    calls, rows = 0, []

    def count(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    for start in range(0, frames, batch):
        part = slice(start, start + batch)
        fed = Batch(numbers[part], ["frame"] * len(numbers[part]), labels[part])
        if start == 100:
            sys.setprofile(count)
        driver.feed(fed)
    sys.setprofile(None)
    driver.drain()
    rows = list(driver.take())
    return {c.name: np.concatenate([getattr(piece, c.name) for piece in rows]) for c in COLUMNS}, calls / (frames - 100)


@pytest.mark.parametrize(("name", "most"), [("fixed", 260), ("ucb", 260), ("gain-curve", 280), ("stop-curve", 350)])
def test_a_frame_takes_few_calls_beside_the_network(name, most):
    _, calls = play(name, frames=300)
    assert calls < most


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kind": "utility", "exit_cost": 0.02},
        {"kind": "utility", "exit_cost": np.array([0.015, 0.025])},
        {"overhead": 0.01},
    ],
    ids=str,
)
def test_frame_by_frame_the_routing_is_that_of_batches(options):
    alone, together = play("fixed", **options)[0], play("fixed", batch=32, **options)[0]
    for name in set(alone) - {"captured", "feedback_rank", "feedback_at"}:
        np.testing.assert_array_equal(alone[name], together[name], err_msg=name)


@pytest.mark.parametrize("name", ["gain-curve", "stop-curve", "ucb"])
def test_learning_from_one_frame_is_learning_from_many(name):
    """Outcomes that come one at a time and all at once leave the same state, but for rounding; failed ones too."""
    rng = np.random.default_rng(1)
    rows, _ = play(name, kind="utility")
    one, many = make_policy(name, exits=3), make_policy(name, exits=3)
    for policy in (one, many):
        policy.choose(Context(frames=FRAMES, overhead=0.1))
    outcomes = Outcomes(**{column: rows[column] for column in OUTCOMES})[rng.permutation(FRAMES)]
    outcomes.reward[::17] = np.nan
    outcomes.confidence[::13, -1] = np.nan
    for k in range(FRAMES):
        one.learn(outcomes[k : k + 1])
    many.learn(outcomes)
    expected = many.state_dict()
    for array, values in one.state_dict().items():
        np.testing.assert_allclose(values, expected[array], rtol=1e-9, err_msg=array)
