"""The engine and its driver against a slow reference, on a network whose numbers do not depend on the batches."""

import gc
import tracemalloc
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from nets import CLASSES, EXPERTS, PixelClassifier, pictures, tiny_net
from routes import route

from eex.models.fast import optimised
from eex.models.network import make
from eex.policies.algorithms.deex import DEEx
from eex.policies.algorithms.fixed import Fixed
from eex.policies.algorithms.ucb import UCB
from eex.policies.core.base import Context, Outcomes, Policy
from eex.policies.core.columns import Rows, joined
from eex.policies.core.price import parse_price
from eex.policies.core.replay import replay
from eex.policies.core.reward import reward
from eex.policies.core.routing import answer
from eex.policies.core.schedule import KINDS
from eex.policies.core.trace import Trace
from eex.policies.registry import POLICIES, make_policy
from eex.stream.driver import Driver
from eex.stream.frames.batch import Batch
from eex.stream.groups import every_exit
from eex.stream.run.records import RecordWriter, feedback_of, read_records
from eex.stream.run.tally import Reference, Tally
from eex.stream.streams import Streams
from eex.stream.wire.encoding import ENCODINGS, Encoding
from eex.stream.wire.offload import InMemoryOffloader, NoOffloader

pytestmark = pytest.mark.timeout(120)

OVERHEAD = 0.1
CLOCKS = {"edge_ms", "link_ms", "cloud_ms", "latency_ms", "captured"}  # differ from run to run
ALL, EVERY_THIRD = range(10**9), range(0, 10**9, 3)  # ids of messages: a process counts them from its first driver on
COSTS = CLOCKS | {"bytes", "queue", "link_estimate_ms", "feedback_rank", "feedback_at"}


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def cloud_of(net, **options):
    """An in-memory cloud that runs the rest of the network, and knows what it was asked."""

    def answer(stage, expert, features):
        asked.append((stage, expert, len(features)))
        with torch.inference_mode():
            x = torch.from_numpy(features)
            for i in range(stage, net.exits):
                x = net.stage(i, x)
            confidence, prediction = net.branch(net.exits - 1, expert, x).softmax(dim=1).max(dim=1)
        return confidence.numpy(), prediction.numpy()

    asked = []
    cloud = InMemoryOffloader(answer, **{"window": 10_000} | options)
    cloud.asked = asked
    return cloud


def feed(engine, images, first, stop):
    engine.feed(
        Batch(
            images[first:stop],
            [f"picture {k}" for k in range(first, stop)],
            np.arange(first, stop) % 10,
            np.outer(np.arange(first, stop), np.ones(len(KINDS))),
        )
    )


def play(engine, images, batch=32, after=lambda: None):
    """Feed all images, drain, and give the rows in the order in which they were taken."""
    pieces = []
    for first in range(0, len(images), batch):
        feed(engine, images, first, min(first + batch, len(images)))
        after()
        pieces += engine.take()
    if isinstance(engine.offloader, InMemoryOffloader):
        engine.offloader.held = False
        engine.offloader.release()
    engine.drain()
    pieces += engine.take()
    assert engine.under_way == 0
    assert list(engine.take()) == []
    rows = joined(pieces)
    np.testing.assert_array_equal(rows.frame, np.arange(len(images)))  # each frame once, in order
    assert rows.name.tolist() == [f"picture {k}" for k in range(len(images))]
    np.testing.assert_array_equal(rows.label, np.arange(len(images)) % 10)
    np.testing.assert_array_equal(rows.levels[:, 0], np.arange(len(images)))
    return rows


def assert_as_routed(rows, net, images, policy):
    """Everything in the rows follows from every exit's word, the thresholds, and which frames fell back."""
    confidence, prediction, _ = every_exit(net, images)
    chosen = policy.choose(Context(frames=len(images)))
    exit, offloaded, visited = route(confidence, chosen)
    confidence[:, :-1][np.arange(net.exits - 1) >= visited[:, None]] = np.nan
    confidence[~offloaded | rows.fallback, -1] = np.nan
    prediction[np.isnan(confidence)] = -1
    best_edge = np.nan_to_num(confidence[:, :-1], nan=-1).argmax(axis=1)
    np.testing.assert_array_equal(rows.confidence, confidence)
    np.testing.assert_array_equal(rows.prediction, prediction)
    np.testing.assert_array_equal(rows.offloaded, offloaded)
    assert not (rows.fallback & ~offloaded).any()
    np.testing.assert_array_equal(rows.exit, np.where(rows.fallback, best_edge, exit))
    np.testing.assert_array_equal(
        rows.answer, answer(confidence, prediction, rows.exit, np.asarray(chosen.exit_at)[0, :, -1])
    )
    np.testing.assert_array_equal(rows.exit_at, chosen.exit_at[0])
    np.testing.assert_array_equal(rows.skip_below, chosen.skip_below[0])
    np.testing.assert_array_equal(rows.reward, reward(confidence, offloaded, rows.sent, np.full(len(images), OVERHEAD)))
    return visited


def assert_same_rows(one, other, but=COSTS):
    for f in fields(Rows):
        if f.name not in but:
            np.testing.assert_array_equal(getattr(one, f.name), getattr(other, f.name), err_msg=f.name)


class Told(Policy):
    """Passes everything on to a policy, and keeps what it was asked and told."""

    def __init__(self, policy):
        super().__init__(policy.exits)
        self.policy, self.contexts, self.outcomes = policy, [], []

    def choose(self, context):
        self.contexts.append(context)
        return self.policy.choose(context)

    def learn(self, outcomes):
        self.outcomes.append(outcomes)
        self.policy.learn(outcomes)


def told_of(policy):
    """All outcomes a `Told` policy heard, by frame."""
    columns = {f.name: np.concatenate([getattr(o, f.name) for o in policy.outcomes]) for f in fields(Outcomes)}
    outcomes = Outcomes(**columns)
    return outcomes[np.argsort(outcomes.frame, kind="stable")]


# ---- the slow reference

FIXED_POLICIES = {
    "fixed": Fixed(0.45, exits=3),
    "fixed-0": Fixed(0.0, exits=3),
    "fixed-1": Fixed(1.0, exits=3),
    "deex": DEEx(0.3, 0.5, exits=3),
    "deex-extended": DEEx(0.3, 0.5, extended=True, exits=3),
}
every_fixed = pytest.mark.parametrize("policy", FIXED_POLICIES.values(), ids=FIXED_POLICIES)


@every_fixed
@pytest.mark.parametrize("batch", [1, 32])
def test_frames_leave_where_the_reference_says(policy, batch):
    net, images = tiny_net(), pictures(300)
    rows = play(Driver(net, policy, cloud_of(net), overhead=OVERHEAD), images, batch)
    visited = assert_as_routed(rows, net, images, policy)
    assert not rows.fallback.any()
    np.testing.assert_array_equal(rows.sent, rows.offloaded)
    if policy is FIXED_POLICIES["fixed"]:
        assert np.unique(rows.exit).tolist() == [0, 1, 2, 3]  # else the reference says little
    if policy is FIXED_POLICIES["deex"]:
        assert np.unique(visited[rows.offloaded]).tolist() == [1]
        assert set(rows.exit.tolist()) == {1, 2, 3}


def test_a_real_backbone_agrees_but_for_rounding():
    torch.manual_seed(0)
    net = optimised(make("resnet", CLASSES, uniform=2, width=8).eval())
    images = torch.rand(48, 3, 32, 32)
    confidence, prediction, _ = every_exit(net, images)
    policy = Fixed(float(np.median(confidence[:, 0])), exits=2)
    exit, _, _ = route(confidence, policy.choose(Context(frames=48)))
    rows = play(Driver(net, policy, cloud_of(net)), images, batch=20)
    far = (np.abs(confidence[:, :-1] - policy.p_tar[:-1]) > 1e-5).all(axis=1)
    assert far.sum() > 40
    assert len(np.unique(exit)) > 1
    np.testing.assert_array_equal(rows.exit[far], exit[far])
    seen = ~np.isnan(rows.confidence)
    np.testing.assert_allclose(rows.confidence[seen], confidence[seen], atol=1e-5)
    np.testing.assert_array_equal(rows.prediction[seen], prediction[seen])


# ---- whatever the network does


@every_fixed
@pytest.mark.parametrize(
    "how", ["reversed", "held", "held-reversed", "lost", "all-lost", "narrow", "on-and-off", "none"]
)
def test_each_frame_has_one_answer_whatever_the_network_does(how, policy):
    net, images = tiny_net(), pictures(400, seed=1)
    cloud = {
        "reversed": lambda: cloud_of(net, reverse=True),
        "held": lambda: cloud_of(net, held=True),
        "held-reversed": lambda: cloud_of(net, held=True, reverse=True),
        "lost": lambda: cloud_of(net, lose=EVERY_THIRD),
        "all-lost": lambda: cloud_of(net, lose=ALL),
        "narrow": lambda: cloud_of(net, window=1),
        "on-and-off": lambda: cloud_of(net),
        "none": NoOffloader,
    }[how]()
    feeds = 0

    def after():
        nonlocal feeds
        feeds += 1
        if how.startswith("held") and feeds % 3 == 0:
            cloud.release(2)
        if how == "on-and-off":
            cloud.connected = bool(feeds // 5 % 2)

    told = Told(policy)
    rows = play(Driver(net, told, cloud, overhead=OVERHEAD), images, batch=9, after=after)
    assert_as_routed(rows, net, images, policy)
    heard = told_of(told)
    np.testing.assert_array_equal(heard.frame, np.arange(400))  # the policy is told of each frame once
    np.testing.assert_array_equal(heard.reward, rows.reward)
    lost = {"lost", "all-lost", "on-and-off", "none"} & {how}
    assert rows.fallback.any() == bool(lost and rows.offloaded.any())
    if how in ("all-lost", "none"):
        np.testing.assert_array_equal(rows.fallback, rows.offloaded)
    np.testing.assert_array_equal(rows.sent, rows.offloaded if how not in ("none", "on-and-off") else rows.sent)
    if how == "none":
        assert not rows.sent.any()


@pytest.mark.parametrize("sent", [True, False], ids=["lost", "unsent"])
def test_fallback(sent):
    net, images = tiny_net(), pictures(64)
    policy = Told(Fixed(1.0, exits=3))
    cloud = cloud_of(net, lose=ALL) if sent else NoOffloader()
    rows = play(Driver(net, policy, cloud, overhead=0.25), images)
    confidence, prediction, _ = every_exit(net, images)
    best = confidence[:, :-1].argmax(axis=1)
    assert len(np.unique(best)) == 3
    np.testing.assert_array_equal(rows.answer, prediction[np.arange(64), best])
    np.testing.assert_array_equal(rows.exit, best)
    assert rows.fallback.all()
    assert rows.offloaded.all()
    assert (rows.sent == sent).all()
    np.testing.assert_array_equal(rows.reward, np.full(64, -0.25 if sent else np.nan))
    assert (rows.bytes == (40 if sent else 0)).all()  # ten float32
    np.testing.assert_array_equal(told_of(policy).reward, rows.reward)


def test_replies_that_nobody_awaits():
    net, images = tiny_net(), pictures(64)

    class Stammering(InMemoryOffloader):
        def poll(self, timeout_ms=0):
            replies = super().poll(timeout_ms)
            return [reply for reply in replies for _ in range(2)]

    policy = Told(Fixed(0.45, exits=3))
    rows = play(Driver(net, policy, Stammering(cloud_of(net).answer, window=100), overhead=OVERHEAD), images)
    assert_as_routed(rows, net, images, policy.policy)
    np.testing.assert_array_equal(told_of(policy).frame, np.arange(64))


# ---- batches, gathering, no cloud


class Delayed(Told):
    """Tells its policy of finished frames only when asked to, sorted by frame, and nothing of the link.

    What is known of the link when a frame is chosen does depend on the batch.
    """

    def choose(self, context):
        return super().choose(replace(context, queue=0, link_ms=float("nan")))

    def learn(self, outcomes):
        self.outcomes.append(outcomes)

    def release(self):
        self.policy.learn(told_of(self))
        self.outcomes.clear()


@pytest.mark.parametrize("name", POLICIES)
def test_batch_size_changes_no_choice(name):
    net, images, every = tiny_net(), pictures(384, seed=2), 128

    def played(batch):
        policy = Delayed(make_policy(name, exits=3, seed=3))
        engine, pieces = Driver(net, policy, cloud_of(net), overhead=OVERHEAD), []
        for start in range(0, len(images), every):
            for first in range(start, start + every, batch):
                feed(engine, images, first, min(first + batch, start + every))
                pieces += engine.take()
            policy.release()
        return joined(pieces)

    one_by_one = played(1)
    for batch in (7, 32, 128):
        assert_same_rows(played(batch), one_by_one)
    if name == "ucb":
        assert len(np.unique(one_by_one.arm)) == 11


@every_fixed
@pytest.mark.parametrize("gather", [16, 64, 10_000])
def test_gathering_changes_no_answer(gather, policy):
    net, images = tiny_net(), pictures(500, seed=3)
    at_once = play(Driver(net, policy, cloud_of(net)), images, batch=16)
    gathered = play(Driver(net, policy, cloud_of(net), gather=gather), images, batch=16)
    assert_same_rows(gathered, at_once)


def test_gathering_runs_deep_stages_in_company():
    net, images = tiny_net(), pictures(512)
    sizes = []
    net.stages[1].register_forward_hook(lambda module, x, y: sizes.append(len(x[0])))
    play(Driver(net, Fixed(0.5, exits=3), gather=40), images, batch=16)
    assert min(sizes[:-1]) >= 40


def test_survivors_do_not_wait_for_ever():
    net, images = tiny_net(), pictures(64)
    engine = Driver(net, Fixed(1.0, exits=3), cloud_of(net), gather=10_000)
    frames = []
    for first in range(64):
        feed(engine, images, first, first + 1)
        frames += [k for rows in engine.take() for k in rows.frame.tolist()]
    assert frames[:10] == list(range(10))


@every_fixed
@pytest.mark.parametrize("gather", [0, 64])
def test_without_a_cloud_the_rest_runs_here(gather, policy):
    net, images = tiny_net(), pictures(300, seed=4)
    far = play(Driver(net, policy, cloud_of(net)), images)
    near = play(Driver(net, policy, None, gather=gather), images)
    assert_same_rows(near, far)
    assert (near.bytes == 0).all()
    assert (far.bytes[far.offloaded] == 40).all()
    assert (far.bytes[~far.offloaded] == 0).all()


def test_partition_points():
    images = pictures(200, seed=5)
    for partition, stages in ((1, {1}), (2, {2}), (3, {3}), (4, set())):
        net = tiny_net(partition=partition)
        cloud = cloud_of(net)
        edge = min(partition, 3)
        rows = play(Driver(net, Fixed(0.45, exits=edge), cloud), images)
        assert {stage for stage, _, _ in cloud.asked} == stages
        assert rows.confidence.shape == (200, edge + 1)
        assert not rows.fallback.any()
        confidence, prediction, _ = every_exit(net, images)
        seen = ~np.isnan(rows.confidence)
        assert seen[:, 0].all()
        np.testing.assert_array_equal(rows.confidence[seen], confidence[seen])
        np.testing.assert_array_equal(rows.prediction[seen], prediction[seen])


def test_deex_skips_from_the_first_exit():
    net, images = tiny_net(), pictures(200)
    cloud = cloud_of(net)
    play(Driver(net, DEEx(0.3, 0.5, extended=True, exits=3), cloud), images)
    assert {stage for stage, _, _ in cloud.asked} == {1, 3}


# ---- replay


def replayed(policy, net, images, records):
    """What a policy does when it is replayed over all that the exits say, hearing of frames as a live run did."""
    confidence, prediction, probabilities = every_exit(net, images)
    trace = Trace(confidence, prediction, np.arange(len(images)) % 10, CLASSES, experts=())
    if probabilities is not None:
        trace = replace(trace, probabilities=probabilities, experts=net.experts)
    if isinstance(policy, str):
        policy = make_policy(policy, exits=net.edge_exits, seed=5)
    return replay(policy, trace, OVERHEAD, order="in-order", feedback=feedback_of(records))


@pytest.mark.parametrize("batch", [1, 7, 32])
@pytest.mark.parametrize("how", ["at-once", "late", "reversed", "lost", "on-and-off", "none", "here"])
@pytest.mark.parametrize("name", ["ucb", "fixed:p_tar=0.45"])
def test_replay_with_the_recorded_feedback_makes_the_live_choices(name, how, batch, tmp_path):
    net, images = tiny_net(experts=EXPERTS, classifier=PixelClassifier()), pictures(600, seed=8)
    cloud = {
        "at-once": lambda: cloud_of(net),
        "late": lambda: cloud_of(net, held=True, round_trip_ms=8.0),
        "reversed": lambda: cloud_of(net, held=True, reverse=True),
        "lost": lambda: cloud_of(net, held=True, lose=EVERY_THIRD),
        "on-and-off": lambda: cloud_of(net),
        "none": NoOffloader,
        "here": lambda: None,
    }[how]()
    feeds = 0

    def after():
        nonlocal feeds
        feeds += 1
        if how in ("late", "reversed", "lost") and feeds % 5 == 0:
            cloud.release(3)
        if how == "on-and-off":
            cloud.connected = bool(feeds // 5 % 2)

    rows = play(Driver(net, make_policy(name, exits=3, seed=5), cloud, overhead=OVERHEAD), images, batch, after)
    with RecordWriter(tmp_path, CLASSES, EXPERTS) as writer:
        writer.write(rows)
    again = replayed(name, net, images, tmp_path)
    for column in ("arm", "exit", "offloaded", "fallback", "reward", "answer"):
        np.testing.assert_array_equal(getattr(again, column)[0], getattr(rows, column), err_msg=column)
    assert np.sort(rows.feedback_rank).tolist() == list(range(600))
    assert (rows.feedback_at > rows.frame).all()
    assert (
        rows.feedback_at[np.argsort(rows.feedback_rank)][1:] >= rows.feedback_at[np.argsort(rows.feedback_rank)][:-1]
    ).all()
    late = rows.feedback_at - rows.frame
    assert (late.max() > batch) == (how in ("late", "reversed", "lost"))
    assert (rows.queue.max() > 0) == (how in ("late", "reversed", "lost"))
    assert (rows.link_estimate_ms[~np.isnan(rows.link_estimate_ms)] == (8.0 if how == "late" else 1.0)).all()


class Careful(Fixed):
    """Answers on the edge while no worker is believed to be there."""

    def choose(self, context):
        self.p_tar = (0.9 if context.reachable else 0.1,)
        return super().choose(context)


@pytest.mark.parametrize("batch", [1, 7])
def test_replay_knows_when_no_worker_was_there(batch, tmp_path):
    net, images = tiny_net(), pictures(300, seed=8)
    cloud, connected = cloud_of(net), []

    def after():
        connected.extend([cloud.connected] * batch)
        cloud.connected = len(connected) // 50 % 2 == 0

    rows = play(Driver(net, Careful(exits=3), cloud, overhead=OVERHEAD), images, batch, after)
    assert rows.reachable.tolist() == connected[:300]
    with RecordWriter(tmp_path, CLASSES, EXPERTS[:1]) as writer:
        writer.write(rows)
    again = replayed(Careful(exits=3), net, images, tmp_path)
    for column in ("exit", "offloaded", "fallback", "reward", "answer"):
        np.testing.assert_array_equal(getattr(again, column)[0], getattr(rows, column), err_msg=column)
    assert 0 < rows.offloaded[rows.reachable].mean() > rows.offloaded[~rows.reachable].mean()


def test_replay_of_a_killed_run(tmp_path):
    net, images = tiny_net(), pictures(600, seed=8)
    cloud = cloud_of(net, held=True)
    rows = play(Driver(net, make_policy("ucb", exits=3, seed=5), cloud, overhead=OVERHEAD), images, 16, cloud.release)
    with RecordWriter(tmp_path, CLASSES, EXPERTS[:1]) as writer:
        writer.write(rows)
    left = read_records(tmp_path)[:250]  # what reached the disk
    again = replayed("ucb", net, images, left)
    np.testing.assert_array_equal(again.arm[0], rows.arm[:250])


# ---- dropping


class Audits(Fixed):
    """Sends every third frame to the cloud, marked as an audit."""

    def choose(self, context):
        chosen = super().choose(context)
        audited = (np.arange(context.first, context.first + context.frames) % 3 == 0)[None]
        exit_at = np.where(audited[..., None] & (np.arange(self.exits + 1) < self.exits), np.inf, chosen.exit_at)
        return replace(chosen, audited=audited, exit_at=exit_at)


@pytest.mark.parametrize("send", [None, Encoding("input")], ids=["features", "input"])
@pytest.mark.parametrize("where", ["cloud", "here", "nowhere"])
@pytest.mark.parametrize(
    "policy", [Fixed(0.6, exits=3), Audits(0.6, exits=3), DEEx(0.4, 0.5, exits=3)], ids=["fixed", "audits", "deex"]
)
def test_hopeless_frames_are_dropped(policy, where, send):
    net, images = tiny_net(experts=EXPERTS, classifier=PixelClassifier()), pictures(400)
    cloud = {"cloud": cloud_of(net), "here": None, "nowhere": NoOffloader()}[where]
    if where == "cloud" and send is not None:
        cloud = InMemoryOffloader(lambda stage, expert, x: (np.full(len(x), 0.9), np.zeros(len(x), int)), window=1000)
    confidence, _, _ = every_exit(net, images)
    chosen, told = policy.choose(Context(frames=400)), Told(policy)
    _, offloaded, visited = route(confidence, chosen)
    last = confidence[np.arange(400), visited - 1]
    below = float(np.median(last[offloaded]))
    rows = play(Driver(net, told, cloud, overhead=OVERHEAD, send=send, drop_below=below), images)
    dropped = offloaded & (last < below) & ~chosen.audited[0]
    assert 5 < dropped.sum() < offloaded.sum() - 5
    np.testing.assert_array_equal(rows.dropped, dropped)
    np.testing.assert_array_equal(rows.offloaded, offloaded)
    np.testing.assert_array_equal(rows.exit[dropped], -1)
    np.testing.assert_array_equal(rows.answer[dropped], -1)
    assert (rows.answer[~dropped] >= 0).all()
    assert np.isnan(rows.reward[dropped]).all()
    assert np.isnan(rows.confidence[dropped, -1]).all()
    assert not (rows.sent | rows.fallback)[dropped].any()
    assert (rows.bytes[dropped] == 0).all()
    np.testing.assert_array_equal(rows.edge_ms[dropped], rows.latency_ms[dropped])
    np.testing.assert_array_equal(rows.sent[~dropped], offloaded[~dropped] & (where != "nowhere"))
    heard = told_of(told)
    np.testing.assert_array_equal(heard.frame, np.arange(400))  # awaited no more
    np.testing.assert_array_equal(heard.exit, rows.exit)


@pytest.mark.parametrize("name", sorted(POLICIES.keys() - {"rl"}))
def test_every_policy_lives_with_dropped_frames(name, tmp_path):
    net, images = tiny_net(), pictures(400)
    engine = Driver(net, make_policy(name, exits=3, seed=5), cloud_of(net), overhead=OVERHEAD, drop_below=0.45)
    rows = play(engine, images, 16)
    edge = rows.confidence[:, :-1]
    last = edge[np.arange(400), (~np.isnan(edge)).sum(axis=1) - 1]
    np.testing.assert_array_equal(rows.dropped, rows.offloaded & (last < 0.45) & ~rows.audited)
    with RecordWriter(tmp_path, CLASSES, EXPERTS[:1]) as writer:
        writer.write(rows)
    again = replayed(name, net, images, tmp_path)  # also with dropped frames it makes the live choices
    for column in ("arm", "exit", "offloaded", "fallback", "reward", "answer"):
        np.testing.assert_array_equal(getattr(again, column)[0], getattr(rows, column), err_msg=column)


def test_a_threshold_of_hindsight_drops_as_the_policy_does():
    """A fixed policy's regret against its own threshold is 0, dropping or not, and the tally keeps the books."""
    net, images = tiny_net(), pictures(500)
    confidence, prediction, _ = every_exit(net, images)
    for below in (0.0, *np.quantile(confidence[:, -2], [0.1, 0.3])):
        rows = play(Driver(net, Fixed(0.5, exits=3), cloud_of(net), overhead=OVERHEAD, drop_below=below), images)
        tally, reference = Tally(4), Reference(4, OVERHEAD, np.array([0.5]), drop_below=below)
        tally.add(rows)
        reference.add(rows.frame, ["pristine"] * 500, rows.label, confidence, prediction)
        curves = reference.curves()
        assert curves["best_fixed"].sum() == pytest.approx(tally.reward)
        assert curves["oracle"].sum() >= tally.reward
        assert tally.dropped == rows.dropped.sum() == 500 - tally.by_exit.sum()
        assert tally.labelled == 500 - tally.dropped
        assert tally.accuracy == np.mean((rows.answer == rows.label)[~rows.dropped])
        assert tally.offloaded == tally.sent
        assert tally.latency.sum() == 500 - tally.dropped
        assert (tally.dropped > 0) == (below > 0)


# ---- memory


def test_memory_stays_constant():
    net, images = tiny_net(), pictures(32)
    cloud = InMemoryOffloader(
        lambda stage, expert, x: (np.full(len(x), 0.9), np.zeros(len(x), dtype=int)), lose=range(0, 10**6, 5)
    )
    engine = Driver(net, UCB(exits=3), cloud, capacity=64)
    names, labels = [""] * 32, np.zeros(32, dtype=int)
    taken = 0

    def stream(feeds):
        nonlocal taken
        for _ in range(feeds):
            engine.feed(Batch(images, names, labels))
            taken += sum(map(len, engine.take()))
            assert engine.under_way <= 64
        gc.collect()

    tracemalloc.start()
    try:
        stream(10)
        before = tracemalloc.get_traced_memory()[0]
        stream(150)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert taken == 160 * 32
    assert grown < 60_000  # 4800 rows would be a megabyte


def test_frames_that_nobody_takes():
    net, images = tiny_net(), pictures(80)
    engine = Driver(net, Fixed(0.45, exits=3), cloud_of(net), capacity=32)
    feed(engine, images, 0, 16)
    feed(engine, images, 16, 32)
    with pytest.raises(ValueError, match="32 frames are under way: take the finished ones before feeding more"):
        feed(engine, images, 32, 33)
    assert [k for rows in engine.take() for k in rows.frame] == list(range(32))  # none is lost by that
    feed(engine, images, 32, 48)
    assert [k for rows in engine.take() for k in rows.frame] == list(range(32, 48))


def test_a_micro_batch_too_large():
    engine = Driver(tiny_net(), Fixed(0.45, exits=3), capacity=32)
    with pytest.raises(ValueError, match="a micro-batch may hold 16 frames at most, got 17"):
        feed(engine, pictures(17), 0, 17)


@pytest.mark.parametrize("batch", [1, 5, 16])
def test_feeding_waits_for_the_oldest_frame_where_the_cloud_is_slow(batch):
    net, images = tiny_net(), pictures(300, seed=6)

    class Slow(InMemoryOffloader):
        """Replies only to who waits."""

        def poll(self, timeout_ms=0):
            if timeout_ms:
                self.release(1)
            return super().poll(timeout_ms)

    policy = Fixed(0.45, exits=3)
    engine = Driver(net, policy, Slow(cloud_of(net).answer, held=True, window=100), overhead=OVERHEAD, capacity=32)
    rows = play(engine, images, batch)
    assert_as_routed(rows, net, images, policy)
    assert not rows.fallback.any()


# ---- experts and context


@pytest.mark.parametrize("batch", [1, 7, 100])
@pytest.mark.parametrize("gather", [0, 40])
@pytest.mark.parametrize("where", ["cloud", "here"])
def test_each_frame_is_judged_by_its_own_expert(where, gather, batch):
    net, images = tiny_net(experts=EXPERTS, classifier=PixelClassifier()), pictures(100, seed=7)
    policy = Fixed(0.45, exits=3)
    cloud = cloud_of(net) if where == "cloud" else None
    rows = play(Driver(net, policy, cloud, overhead=OVERHEAD, gather=gather), images, batch)
    assert_as_routed(rows, net, images, policy)
    expert = (images[:, 0, 0, 0] * 3).long().numpy()
    assert np.unique(expert).tolist() == [0, 1, 2]
    np.testing.assert_array_equal(rows.expert, expert)
    for k in range(100):  # one frame, one expert, from the network alone
        x = images[k : k + 1]
        for i in range(net.exits):
            x = net.stage(i, x)
            top, index = net.branch(i, EXPERTS[expert[k]], x).softmax(dim=1).max(dim=1)
            if not np.isnan(rows.confidence[k, i]):
                assert (rows.confidence[k, i], rows.prediction[k, i]) == (top.item(), index.item())
    if cloud is not None:
        offloaded = {EXPERTS[e]: int((rows.offloaded & (expert == e)).sum()) for e in range(3)}
        assert {e: sum(n for _, name, n in cloud.asked if name == e) for e in EXPERTS} == offloaded


def test_what_the_policy_knows_beforehand():
    net, images = tiny_net(experts=EXPERTS, classifier=PixelClassifier()), pictures(96)
    cloud = cloud_of(net, held=True, round_trip_ms=12.0)
    policy = Told(Fixed(1.0, exits=3))  # offloads every frame
    engine = Driver(net, policy, cloud, overhead=0.2)
    feed(engine, images, 0, 32)
    feed(engine, images, 32, 64)
    cloud.release()
    engine.poll()
    feed(engine, images, 64, 96)
    first, second, third = policy.contexts
    assert [(c.first, c.frames, c.overhead) for c in policy.contexts] == [(0, 32, 0.2), (32, 32, 0.2), (64, 32, 0.2)]
    assert [c.queue for c in policy.contexts] == [0, 32, 0]  # frames, in however many messages
    assert np.isnan(first.link_ms)
    assert np.isnan(second.link_ms)
    assert third.link_ms == 12.0
    assert first.distortion.shape == (1, 32, 3)
    np.testing.assert_allclose(first.distortion[0].sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(first.distortion[0].argmax(axis=1), (images[:32, 0, 0, 0] * 3).long().numpy())
    plain = Told(Fixed(1.0, exits=3))
    feed(Driver(tiny_net(), plain), images, 0, 32)
    assert plain.contexts[0].distortion is None


def test_the_policy_never_peeks():
    net, images = tiny_net(), pictures(200)
    policy = Told(Fixed(0.45, exits=3))
    play(Driver(net, policy, cloud_of(net)), images)
    heard = told_of(policy)
    for e in range(3):
        assert np.isnan(heard.confidence[(heard.exit == e), e + 1 :]).all()
        assert (heard.prediction[(heard.exit == e), e + 1 :] == -1).all()
    assert (heard.run == 0).all()


def test_latency_is_split():
    net, images = tiny_net(), pictures(100)
    rows = play(Driver(net, Fixed(0.45, exits=3), cloud_of(net, round_trip_ms=3.0)), images)
    away = rows.offloaded
    assert (rows.link_ms[away] == 3.0).all()
    assert (rows.link_ms[~away] == 0).all()
    np.testing.assert_array_equal(rows.edge_ms[~away], rows.latency_ms[~away])
    assert (rows.edge_ms > 0).all()
    assert (rows.edge_ms[away] <= rows.latency_ms[away]).all()
    lost = play(Driver(net, Fixed(1.0, exits=3), cloud_of(net, lose=ALL, round_trip_ms=3.0)), images)
    assert (lost.link_ms == 3.0).all()  # what was waited in vain


@pytest.mark.parametrize("policy", [Fixed(exits=2), Fixed(exits=4), Fixed(exits=3, runs=2)])
def test_policy_for_another_network(policy):
    with pytest.raises(ValueError, match="the network has 3 and a stream is one run"):
        Driver(tiny_net(), policy)


# ---- the price of offloading


class Contexts(Fixed):
    """Remembers what it was shown and told."""

    def __init__(self, **options):
        super().__init__(**options)
        self.shown, self.told = [], []

    def choose(self, context):
        self.shown.append(context.overhead)
        return super().choose(context)

    def learn(self, outcomes):
        self.told.append(outcomes)


def test_a_measured_price_is_expected_before_and_paid_after():
    net, images = tiny_net(), pictures(96, seed=3)
    policy = Contexts(exits=3, p_tar=1.0)  # all go to the cloud
    engine = Driver(net, policy, cloud_of(net, round_trip_ms=100.0), overhead=parse_price("0.1+0.5/s+1000/MB"))
    feature_bytes = net.costs().feature_bytes[2]
    rows = play(engine, images)
    each = engine.offloader.bytes_sent / len(images)
    assert policy.shown[0] == pytest.approx(0.1 + feature_bytes / 1e3)  # nothing is known of the link yet
    assert policy.shown[1:] == [pytest.approx(0.1 + 0.05 + each / 1e3)] * 2
    np.testing.assert_allclose(rows.overhead, 0.1 + 0.05 + each / 1e3)
    np.testing.assert_allclose(
        rows.reward, np.maximum(0, rows.confidence[:, -1] - rows.confidence[:, -2]) - rows.overhead
    )
    np.testing.assert_array_equal(np.concatenate([o.overhead for o in policy.told]), rows.overhead)


def test_a_lost_frame_has_cost_its_wait_and_one_that_stayed_what_was_expected():
    net, images = tiny_net(), pictures(64, seed=4)
    policy = Contexts(exits=3, p_tar=0.5)
    cloud = cloud_of(net, lose=ALL, round_trip_ms=300.0)
    rows = play(Driver(net, policy, cloud, overhead=parse_price("1/s")), images)
    lost = rows.offloaded
    assert 0 < lost.sum() < len(images)
    np.testing.assert_allclose(rows.reward[lost], -0.3)
    np.testing.assert_allclose(rows.overhead[~lost], np.repeat([0.0, 0.3], 32)[~lost])
    assert (rows.reward[~lost] == 0).all()


def test_a_budget_holds_frames_back_and_raises_the_price():
    net, images = tiny_net(), pictures(400, seed=5)
    policy = Contexts(exits=3, p_tar=1.0)
    engine = Driver(net, policy, cloud_of(net), overhead=parse_price("budget=25%:40"))
    rows = play(engine, images, batch=40)
    assert engine.engine.streams.meter.withheld == (rows.offloaded & ~rows.sent).sum() == 400 - 40 - 9 * 10
    assert (rows.fallback == ~rows.sent).all()
    assert np.isnan(rows.reward[~rows.sent]).all()  # what could not be sent teaches nothing
    assert policy.shown == [0.0] + [pytest.approx(0.75)] * 9
    np.testing.assert_allclose(rows.overhead, np.repeat(policy.shown, 40))
    here = Driver(
        net, Contexts(exits=3, p_tar=1.0), None, overhead=parse_price("budget=25%:40")
    )  # the rest runs on the edge too
    assert (play(here, images, batch=40).sent == rows.sent).all()


# ---- what is sent


@pytest.mark.parametrize("gather", [0, 50])
@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_frames_are_sent_as_told(encoding, gather):
    net, images = tiny_net(), pictures(70, seed=6)
    got = []

    def answer(stage, expert, features):
        got.append((stage, features))
        return np.ones(len(features)), np.zeros(len(features))

    engine = Driver(net, Fixed(exits=3, p_tar=1.0), InMemoryOffloader(answer, window=99), send=encoding, gather=gather)
    rows = play(engine, images)
    assert rows.sent.all()
    expected = images
    for i in range(3 if encoding.kind != "input" else 0):
        expected = net.stage(i, expected)
    allowed = {"fp32": 0.0, "fp16": 1e-3, "int8": 1 / 250, "input": 0.501 / 255}[encoding.kind]
    features = np.concatenate([f for _, f in got])
    np.testing.assert_allclose(features.reshape(expected.shape), expected.numpy(), rtol=0, atol=allowed + 1e-6)
    assert {stage for stage, _ in got} == {0 if encoding.kind == "input" else 3}
    if encoding.codec == "none":
        each = {"fp32": 40, "fp16": 20, "int8": 18, "input": 10}[encoding.kind]
        assert set(rows.bytes) == {each}
    assert _bytes_of(rows) == engine.offloader.bytes_sent


def _bytes_of(rows):
    tally = Tally(4)
    tally.add(rows)
    assert tally.bytes_per_frame == pytest.approx(rows.bytes.mean())
    return pytest.approx(tally.bytes)


def test_a_frame_that_skips_the_deeper_exits_is_sent_as_input_too():
    net, images = tiny_net(), pictures(64, seed=7)
    got = []

    def answer(stage, expert, features):
        got.append((stage, len(features)))
        return np.ones(len(features)), np.zeros(len(features))

    policy = DEEx(exits=3, p_d=0.4, p_tar=0.8)
    rows = play(Driver(net, policy, InMemoryOffloader(answer, window=99), send=Encoding("input")), images)
    assert 0 < rows.offloaded.sum() < len(images)
    assert {stage for stage, _ in got} == {0}
    assert sum(n for _, n in got) == rows.offloaded.sum()
    here = play(Driver(net, DEEx(exits=3, p_d=0.4, p_tar=0.8), None, send=Encoding("input")), images)
    np.testing.assert_array_equal(here.offloaded, rows.offloaded)  # nothing is sent; the encoding is of no account


class Unsteady(InMemoryOffloader):
    """A link whose round trip changes from reply to reply."""

    def _reply(self, *arguments):
        self.round_trip_ms = 50.0 + 37 * (self.bytes_sent % 11)
        return super()._reply(*arguments)


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_lives_with_a_price_that_changes(name):
    net, images = tiny_net(), pictures(600, seed=9)
    cloud = Unsteady(cloud_of(net).answer, window=10_000, lose=range(0, 10**9, 7))
    engine = Driver(net, make_policy(name, exits=3, seed=2), cloud, overhead=parse_price("0.02+1/s+budget=40%"))
    rows = play(engine, images, batch=8)
    assert ((rows.overhead >= 0) & (rows.overhead <= 1)).all()
    assert not np.isnan(rows.exit_at).any()
    assert (rows.answer >= 0).all()
    assert rows.sent.sum() <= 0.4 * 600 + 80 + 1e-9
    np.testing.assert_array_equal(np.isnan(rows.reward), rows.offloaded & ~rows.sent)
    # what was gained is what is left of the reward with the price added, for whoever learns from it
    heard = rows.sent & ~rows.fallback
    last = rows.confidence[:, :-1][np.arange(600), (~np.isnan(rows.confidence[:, :-1])).sum(axis=1) - 1]
    gain = np.maximum(0, rows.confidence[:, -1] - last)
    np.testing.assert_allclose((rows.reward + rows.overhead)[heard], gain[heard], atol=1e-12)


def test_a_driver_that_may_not_wait_learns_when_idle_and_from_all_streams_together():
    net, images = tiny_net(), pictures(8)
    told = []

    def make(runs):
        policy = Told(Fixed(0.0, exits=3, runs=runs))
        policy.runs = runs
        told.append(policy)
        return policy

    def fed(number, stream):
        batch = Batch(images[number : number + 1], ["x"], np.array([0]), streams=np.array([stream]))
        driver.feed(batch)
        return sum(len(policy.outcomes) for policy in told)

    streams = Streams(make, parse_price("0.1"))
    door, gate = streams.add("door"), streams.add("gate")
    driver = Driver(net, streams, None, waits=False)
    assert fed(0, door) == 0
    driver.idle()
    assert not any(policy.outcomes for policy in told)  # the gate's frame may come yet
    assert fed(1, gate) == 0
    driver.idle()
    assert sum(len(outcomes) for policy in told for outcomes in policy.outcomes) == 2
    streams.remove(gate)
    fed(2, door)
    driver.idle()  # the next frame of a stream that is alone does not wait for the policy
    assert sum(len(outcomes) for policy in told for outcomes in policy.outcomes) == 3


def held_back(deadlines_ms, **options):
    """A driver that may not wait, a cloud that takes one message and holds its answer back, and two streams."""
    net, now = tiny_net(), [0.0]
    cloud = cloud_of(net, window=1, held=True)
    cloud.deadline_ms = 1000.0
    streams = Streams(lambda runs: Fixed(1.0, exits=3, runs=runs), parse_price("0.1"))
    numbers = streams.add("hasty"), streams.add("patient")
    due = {number: ms for number, ms in zip(numbers, deadlines_ms, strict=True) if ms}
    left = []

    def seen(slots):
        left.extend(driver.engine.ring.source[slots].tolist())

    driver = Driver(net, streams, cloud, waits=False, deadlines_ms=due, clock=lambda: now[0], left=seen, **options)

    def fed(*streams):
        images = pictures(len(streams))
        driver.feed(Batch(images, ["x"] * len(streams), np.zeros(len(streams), int), streams=np.array(streams)))

    def at(ms):
        now[0] = ms / 1000
        driver.poll()
        return sorted(left)

    return driver, cloud, numbers, fed, at


def test_a_deadline_counts_from_when_a_frame_was_to_be_sent():
    _, cloud, (hasty, patient), fed, at = held_back((400, 0))
    fed(patient)
    fed(hasty, patient)  # wait for room
    assert at(300) == []
    cloud.release()
    assert at(301) == [patient]
    assert at(302) == [patient]  # the others are sent
    assert cloud.outstanding == 1
    assert at(401) == [hasty, patient]
    assert at(1001) == [hasty, patient, patient]


def test_a_short_deadline_does_not_end_the_wait_of_others():
    driver, cloud, (hasty, patient), fed, at = held_back((60, 0))
    fed(patient)
    fed(hasty, patient)
    assert at(61) == [hasty]
    cloud.held = False
    cloud.release()
    at(70)
    assert at(71) == [hasty, patient, patient]
    (rows,) = driver.take()
    assert sorted(rows.fallback.tolist()) == [False, False, True]


def test_a_budget_is_not_promised_twice():
    net = tiny_net()
    cloud = cloud_of(net, window=1, held=True)
    policy = Contexts(exits=3, p_tar=1.0)
    driver = Driver(net, policy, cloud, waits=False, overhead=parse_price("budget=1/s:10"), clock=lambda: 0.0)
    images = pictures(60)
    for k in range(0, 60, 4):
        driver.feed(Batch(images[k : k + 4], ["x"] * 4, np.zeros(4, dtype=int)))
    assert driver.engine.streams.meter.withheld == 50
    assert policy.shown[-1] == 1.0
    cloud.held = False
    while driver.awaits:
        cloud.release()
        driver.poll()
    (rows,) = driver.take()
    assert rows.sent.sum() == 10
    assert driver.engine.streams.meter.bucket.level == 0


def test_a_budget_takes_back_what_could_not_be_sent():
    net = tiny_net()
    cloud = cloud_of(net)
    driver = Driver(net, Fixed(1.0, exits=3), cloud, overhead=parse_price("budget=1/s:10"), clock=lambda: 0.0)
    cloud.connected = False
    driver.feed(Batch(pictures(8), ["x"] * 8, np.zeros(8, dtype=int)))
    cloud.connected = True
    driver.feed(Batch(pictures(8), ["x"] * 8, np.zeros(8, dtype=int)))
    driver.drain()
    assert np.concatenate([rows.sent for rows in driver.take()]).tolist() == [False] * 8 + [True] * 8
