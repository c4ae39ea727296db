"""Replay against a reference that plays one frame of one run at a time, in plain Python."""

import math
from collections import defaultdict

import numpy as np
import pytest

from eex.policies.algorithms.deex import DEEx
from eex.policies.algorithms.fixed import Fixed
from eex.policies.algorithms.stop_curve import StopCurve
from eex.policies.core.base import Context, Outcomes, Policy, Thresholds
from eex.policies.core.draws import uniform
from eex.policies.core.errors import EexError
from eex.policies.core.link import parse_link
from eex.policies.core.replay import Feedback, draw_frames, replay
from eex.policies.core.trace import Trace
from eex.policies.registry import make_policy

KEYS = np.array([4, 0, 7])
PRICES = np.array([0.05, 0.2, 0.4])
LINK = parse_link("12:40, down:10, 213:30, jitter=15, frame=10, deadline=220")


def make_trace(exits, frames=90, experts=False):
    rng = np.random.default_rng(exits)
    return Trace(
        confidence=rng.uniform(0.1, 1.0, (frames, exits + 1)).round(3),
        prediction=rng.integers(0, 5, (frames, exits + 1)),
        label=rng.integers(-1, 5, frames),
        classes=tuple("abcde"),
        distortion=np.where(np.arange(frames) % 40 < 25, "pristine", "gaussian_blur"),
        probabilities=rng.dirichlet(np.ones(3), frames) if experts else None,
        experts=("pristine", "gaussian_blur", "gaussian_noise") if experts else (),
    )


class Probe(Policy):
    """Draws thresholds that send frames every way there is, and notes what it is told and when."""

    def __init__(self, exits=1, runs=1, seed=0):
        super().__init__(exits, runs, seed)
        self.contexts, self.told = [], []

    def choose(self, context):
        self.contexts.append(context)
        u = uniform(self.seed, self.keys, np.array([context.first]), 2 * self.exits + 1, purpose=5)
        arm = (10 * u[..., 0]).astype(np.int64)
        exit_at, skip_below = u[..., : self.exits + 1], 0.4 * u[..., self.exits + 1 :]
        return Thresholds(exit_at, skip_below, arm, u[..., 0], audited=u[..., 0] < 0.1)

    def learn(self, outcomes):
        self.told.append((len(self.contexts), outcomes))


def one_frame(trace, row, exit_at, skip_below, price, exit_cost, took, lost, sent):
    """What becomes of a frame, by the words of `Thresholds` and `Outcomes`."""
    exits = trace.edge_exits
    confidence, prediction = [math.nan] * (exits + 1), [-1] * (exits + 1)
    exit, visited = exits, 0
    for e in range(exits):
        confidence[e], prediction[e] = float(trace.confidence[row, e]), int(trace.prediction[row, e])
        visited += 1
        if confidence[e] >= exit_at[e]:
            exit = e
            break
        if confidence[e] < skip_below[e]:
            break
    offloaded = exit == exits
    earned = -exit_cost * (visited - 1)
    lost, sent = offloaded and lost, offloaded and sent
    if offloaded and not lost:
        confidence[-1], prediction[-1] = float(trace.confidence[row, -1]), int(trace.prediction[row, -1])
    if offloaded:
        gain = 0.0 if lost else max(0.0, confidence[-1] - confidence[visited - 1])
        earned += gain - price
    if offloaded and not sent:
        earned = math.nan
    seen = [-1.0 if math.isnan(c) else c for c in confidence]
    if lost:
        exit = seen[:-1].index(max(seen[:-1]))
    unsure = exit == exits and confidence[-1] < exit_at[-1]
    return {
        "exit": exit,
        "offloaded": offloaded,
        "fallback": lost,
        "sent": sent,
        "confidence": confidence,
        "prediction": prediction,
        "latency_ms": took if offloaded else 0.0,
        "overhead": price,
        "reward": earned,
        "answer": prediction[seen.index(max(seen))] if unsure else prediction[exit],
    }


def thresholds_of(policy, key, t):
    """Of one frame, by a policy of a single run."""
    single = type(policy)(exits=policy.exits, seed=policy.seed)
    single.keys = np.array([key])
    return single.choose(Context(first=t))


@pytest.mark.parametrize("exit_cost", [0.0, 0.03])
@pytest.mark.parametrize("exits", [1, 2, 3])
@pytest.mark.parametrize("when", ["at once", "delay", "link"])
def test_every_frame_is_played_and_told_as_by_the_reference(exits, when, exit_cost):
    trace, rounds, seed = make_trace(exits), 400, 3
    delay, link = (13 if when == "delay" else 0), (LINK if when == "link" else None)
    probe = Probe(exits, runs=3, seed=seed)
    probe.keys = KEYS
    done = replay(
        *(probe, trace, PRICES), rounds=rounds, seed=seed, keys=KEYS, delay=delay, link=link, exit_cost=exit_cost
    )
    heard = {}  # by run and frame: before which choice, and the row
    for asked, rows in probe.told:
        for k in range(len(rows)):
            heard[int(rows.run[k]), int(rows.frame[k])] = asked, rows[k : k + 1]
    assert sum(len(rows) for _, rows in probe.told) == len(heard)  # nothing twice
    ways = set()
    for run, key in enumerate(KEYS):
        for t in range(rounds):
            took, lost = 0.0, False
            if link:
                took, lost = (float(column[0]) for column in link.round_trip_ms(t, KEYS[run : run + 1], seed))
            chosen = thresholds_of(probe, key, t)
            row = int(done.frame[run, t])
            exit_at, skip_below = chosen.exit_at[0, 0], chosen.skip_below[0, 0]
            frame = one_frame(trace, row, exit_at, skip_below, PRICES[run], exit_cost, took, lost, sent=True)
            for name in ("exit", "offloaded", "fallback", "answer"):
                assert getattr(done, name)[run, t] == frame[name], (name, run, t)
            assert done.arm[run, t] == chosen.arm[0, 0]
            assert done.reward[run, t] == pytest.approx(frame["reward"])
            late = delay + int(frame["latency_ms"] // LINK.frame_ms)
            ways.add((frame["exit"], frame["offloaded"], frame["fallback"]))
            asked, told = heard[run, t]
            assert asked == min(t + 1 + late, rounds)  # those that are under way in the end, then
            assert told.arm == chosen.arm
            assert told.probability == chosen.probability
            assert told.audited == chosen.audited
            np.testing.assert_array_equal(told.exit_at[0], exit_at)
            for name in set(frame) - {"answer", "reward"}:
                np.testing.assert_array_equal(getattr(told, name)[0], frame[name], err_msg=f"{name} {run} {t}")
            assert told.reward[0] == pytest.approx(frame["reward"])
    assert len(ways) >= exits + 1 + exits * (when == "link")  # every exit, the cloud, and fallbacks to edge exits


@pytest.mark.parametrize("extended", [False, True])
def test_deex_skips_and_answers_as_by_the_reference(extended):
    trace = make_trace(3)
    done = replay(DEEx(p_d=0.4, p_tar=0.7, extended=extended, exits=3), trace, 0.1, order="in-order")
    for t in range(len(trace)):
        last = 0.7 if extended else 0.0
        frame = one_frame(trace, t, [math.inf, 0.7, last, last], [0.4, 0, 0], 0.1, 0.0, 0.0, False, True)
        assert (done.exit[0, t], done.answer[0, t]) == (frame["exit"], frame["answer"])
        assert done.reward[0, t] == pytest.approx(frame["reward"])
    assert done.offloaded.any()
    assert (done.exit == 1).any()


def test_context():
    trace, probe = make_trace(2, experts=True), Probe(2, runs=3, seed=1)
    done = replay(probe, trace, PRICES, rounds=150, seed=1, link=LINK, exit_cost=0.02)
    back = defaultdict(list)  # by run: (heard before this choice, round trip)
    for asked, rows in probe.told:
        for k in np.flatnonzero(rows.offloaded):
            back[int(rows.run[k])].append((asked, float(rows.latency_ms[k])))
    for t, context in enumerate(probe.contexts):
        assert (context.frames, context.first, context.exit_cost) == (1, t, 0.02)
        np.testing.assert_array_equal(context.overhead, PRICES)
        np.testing.assert_array_equal(context.distortion[:, 0], trace.probabilities[done.frame[:, t]])
        for run in range(3):
            replies = [ms for asked, ms in back[run] if asked <= t]
            assert context.queue[run] == done.offloaded[run, :t].sum() - len(replies)
            estimate = math.nan
            for ms in replies:
                estimate = ms if math.isnan(estimate) else 0.8 * estimate + 0.2 * ms
            assert context.link_ms[run] == pytest.approx(estimate, nan_ok=True)


def test_without_a_classifier_or_a_link_the_context_says_so():
    probe = Probe(1, runs=2)
    replay(probe, make_trace(1), 0.3, rounds=3)
    for context in probe.contexts:
        assert context.distortion is None
        assert context.queue.tolist() == [0, 0]
        assert np.isnan(context.link_ms).all()
        assert context.overhead.tolist() == [0.3, 0.3]


# ---- a live run, replayed


def live(policy, trace, overhead, batch, rng):
    """A live stream in micro-batches, with late replies in any order: what it chose, and its feedback."""
    frames = len(trace)
    queue, link_ms = rng.integers(0, 9, frames), rng.uniform(1, 50, frames)
    sent = rng.random(frames) < 0.9
    fallback = ~sent | (rng.random(frames) < 0.1)
    order, arms, rewards = [], [], []
    waiting = []  # (frame, outcomes)
    for first in range(0, frames, batch):
        for _ in range(int(rng.integers(len(waiting) + 1))):
            frame, outcomes = waiting.pop(int(rng.integers(len(waiting))))
            policy.learn(outcomes)
            order.append((frame, first))
        chosen = policy.choose(Context(batch, first, overhead, queue=int(queue[first]), link_ms=float(link_ms[first])))
        queue[first : first + batch], link_ms[first : first + batch] = queue[first], link_ms[first]
        for k in range(batch):
            t, exit_at, skip_below = first + k, chosen.exit_at[0, k], chosen.skip_below[0, k]
            told = one_frame(trace, t, exit_at, skip_below, overhead, 0.0, 0.0, bool(fallback[t]), bool(sent[t]))
            del told["answer"]
            columns = {name: np.array([value]) for name, value in told.items()}
            own = {"arm": chosen.arm[0, k : k + 1], "probability": chosen.probability[0, k : k + 1]}
            own |= {
                "run": np.array([0]),
                "frame": np.array([t]),
                "exit_at": exit_at[None],
                "audited": np.array([False]),
            }
            waiting.append((t, Outcomes(**columns, **own)))
            arms.append(int(chosen.arm[0, k]))
            rewards.append(told["reward"])
    heard, known = (np.array(column) for column in zip(*order, strict=True))
    return arms, rewards, Feedback(heard, known, queue, link_ms, sent, fallback)


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("name", ["ucb", "thompson", "exp3", "sw-ucb:window=50"])
@pytest.mark.parametrize("exits", [1, 3])
def test_with_its_feedback_a_live_run_is_played_again(name, exits, batch):
    trace = make_trace(exits, frames=400)
    arms, rewards, feedback = live(make_policy(name, exits=exits), trace, 0.1, batch, np.random.default_rng(5))
    done = replay(make_policy(name, exits=exits), trace, 0.1, order="in-order", feedback=feedback)
    assert done.arm[0].tolist() == arms
    np.testing.assert_allclose(done.reward[0], rewards)
    assert np.isnan(rewards).any()
    probe = Probe(exits)
    replay(probe, trace, 0.1, order="in-order", feedback=feedback)
    assert [c.queue for c in probe.contexts] == feedback.queue.tolist()
    assert [c.link_ms for c in probe.contexts] == feedback.link_ms.tolist()
    assert [(int(rows.frame[0]), asked) for asked, rows in probe.told] == list(
        zip(feedback.frame.tolist(), feedback.chosen.tolist(), strict=True)
    )


# ---- many runs


@pytest.mark.parametrize("name", ["ucb", "thompson", "kl-ucb", "exp3", "epsilon-greedy", "sw-ucb", "d-ucb", "random"])
@pytest.mark.parametrize("late", [{}, {"delay": 20}, {"link": LINK}], ids=["at-once", "delay", "link"])
def test_shards_play_what_the_whole_plays(name, late):
    trace, price, keys = make_trace(2), np.linspace(0.05, 0.5, 6), np.array([0, 1, 2, 0, 1, 2])

    def played(part):
        policy = make_policy(name, exits=2, runs=len(keys[part]), seed=8)
        policy.keys = keys[part]
        return replay(policy, trace, price[part], rounds=300, seed=8, keys=keys[part], **late)

    whole, parts = played(slice(None)), [played(slice(0, 2)), played(slice(2, 6))]
    for column in ("frame", "arm", "exit", "offloaded", "fallback", "reward", "answer"):
        together = np.concatenate([getattr(part, column) for part in parts])
        np.testing.assert_array_equal(getattr(whole, column), together, err_msg=column)


def test_the_trace_is_left_as_it_was():
    trace = make_trace(3)
    before = trace.confidence.copy(), trace.prediction.copy()
    replay(Probe(3, runs=2), trace, 0.1, order="in-order", link=LINK)
    np.testing.assert_array_equal(trace.confidence, before[0])
    np.testing.assert_array_equal(trace.prediction, before[1])


def test_outcomes_that_are_kept_do_not_change():
    probe = Probe(2, runs=2)
    taken = []
    learn = probe.learn
    probe.learn = lambda outcomes: (learn(outcomes), taken.append((outcomes.reward.copy(), outcomes.confidence.copy())))
    replay(probe, make_trace(2), 0.1, rounds=50)
    for (_, outcomes), (reward, confidence) in zip(probe.told, taken, strict=True):
        np.testing.assert_array_equal(outcomes.reward, reward)
        np.testing.assert_array_equal(outcomes.confidence, confidence)


def test_as_many_rounds_as_the_trace_has_and_progress():
    said = []
    done = replay(Fixed(), make_trace(1, frames=600), 0.1, report=said.append)
    assert done.arm.shape == (1, 600)
    assert said == [256, 512, 600]


@pytest.mark.parametrize(
    ("policy", "options", "message"),
    [
        (Fixed(exits=2), {}, "the policy is for 2 edge exits, the trace has 1"),
        (Fixed(), {"overhead": 1.1}, r"overheads must lie in \[0, 1\]"),
        (Fixed(), {"overhead": math.nan}, r"overheads must lie in \[0, 1\]"),
        (Fixed(runs=2), {"overhead": np.array([0.1, -0.1])}, r"overheads must lie in \[0, 1\]"),
        (Fixed(), {"delay": -1}, "a delay must be at least 0 rounds, got -1"),
        (Fixed(runs=2), {"feedback": Feedback(*[np.arange(3)] * 6)}, "the feedback of a live run is that of one run"),
        (Fixed(), {"feedback": Feedback(*[np.arange(3)] * 6), "rounds": 4}, "4 rounds cannot be replayed"),
        (Fixed(), {"delay": math.nan}, "a delay must be at least 0 rounds, got nan"),
        (Fixed(), {"delay": 3, "link": LINK}, "delay, link and feedback exclude each other"),
        (Fixed(), {"link": "rio"}, "link 'rio'"),
        (Fixed(), {"rounds": -5}, "rounds must be at least 1"),
        (Fixed(), {"order": "resample"}, "order must be resampled, in-order or segments, got 'resample'"),
        (Fixed(), {"kind": "utilty"}, "kind must be adaee or utility, got 'utilty'"),
        (Fixed(), {"exit_cost": math.nan}, r"exit_cost must lie in \[0, 1\], got nan"),
        (Fixed(runs=2), {"overhead": np.zeros(3)}, "expected one overhead, or one for each of 2 runs, got 3"),
        (Fixed(runs=2), {"keys": np.arange(3)}, "expected a key for each of 2 runs"),
        (
            Fixed(),
            {"frames": np.zeros((2, 4), dtype=int)},
            r"frames must be numbers of rows, \(runs, rounds\) for 1 runs",
        ),
        (Fixed(), {"frames": [[-1, 0]]}, "frames must be rows from 0 to"),
        (Fixed, {}, r"a policy is made before it is played: make_policy\('ucb', exits=1\)"),
        ("ucb", {}, "a policy is made before it is played"),
    ],
)
def test_what_does_not_fit(policy, options, message):
    with pytest.raises(EexError, match=message):
        replay(policy, make_trace(1), **{"overhead": 0.1} | options)


# ---- which frames


def test_in_order():
    frames = draw_frames(make_trace(1), 200, "in-order", seed=0, keys=np.arange(2))
    assert frames.tolist() == [[t % 90 for t in range(200)]] * 2


def test_resampled():
    frames = draw_frames(make_trace(1), 30000, "resampled", seed=1, keys=np.array([3, 9, 3]))
    np.testing.assert_array_equal(frames[0], frames[2])
    assert (frames[0] == frames[1]).mean() < 0.03
    count = np.bincount(frames[0], minlength=90)
    assert len(count) == 90
    np.testing.assert_allclose(count, 30000 / 90, atol=5 * (30000 / 90) ** 0.5)
    np.testing.assert_array_equal(draw_frames(make_trace(1), 50, "resampled", 1, np.array([3])), frames[:1, :50])


def test_segments():
    trace = make_trace(1)  # changes at 25, 40, 65, 80
    bounds = [0, 25, 40, 65, 80, 90]
    frames = draw_frames(trace, 9000, "segments", seed=2, keys=np.arange(3))
    drawn = np.searchsorted(bounds, frames, side="right")
    expected = np.searchsorted(bounds, np.arange(9000) % 90, side="right")
    np.testing.assert_array_equal(drawn, np.broadcast_to(expected, (3, 9000)))
    assert set(frames.ravel()) == set(range(90))
    assert (frames != draw_frames(trace, 9000, "in-order", 2, np.arange(3))).mean() > 0.9


def test_more_exits_than_a_byte_counts():
    confidence = np.full((4, 202), 0.1)
    confidence[:, 200] = 1.0
    answers = np.zeros((4, 202), dtype=int)
    played = replay(Fixed(p_tar=0.9, exits=201), Trace(confidence, answers, answers[:, 0], ("cat",)), 0.1)
    assert (played.exit == 200).all()


def test_what_was_paid_is_the_confidence_less_the_utility():
    rng = np.random.default_rng(0)
    confidence = np.sort(rng.random((200, 4)), axis=1)
    nothing = np.zeros((200, 4), dtype=np.int64)
    trace = Trace(confidence, nothing, nothing[:, 0], ("a",))
    for kind in ("adaee", "utility"):
        policy = make_policy("fixed:p_tar=0.8", exits=3)
        played = replay(policy, trace, 0.1, order="in-order", exit_cost=0.02, kind=kind)
        at = played.exit[0]
        paid = 0.02 * np.minimum(at, 2) + 0.1 * (at == 3)
        np.testing.assert_allclose(played.paid[0], paid, atol=1e-12)
        np.testing.assert_allclose(played.utility[0], confidence[np.arange(200), at] - paid)


def test_the_frames_of_each_run_may_be_given():
    confidence = np.array([[0.9, 0.95], [0.2, 0.9]])
    nothing = np.zeros((2, 2), dtype=np.int64)
    policy = make_policy("fixed:p_tar=0.8", runs=2)
    played = replay(policy, Trace(confidence, nothing, nothing[:, 0], ("a",)), 0.1, frames=np.array([[0, 1], [1, 1]]))
    assert played.offloaded.tolist() == [[False, True], [True, True]]


@pytest.mark.parametrize("delay", [0, 50])
@pytest.mark.parametrize(
    ("name", "exits"), [("stop-curve", 3), ("stop-curve", 1), ("gain-curve", 2), ("fixed", 2), ("random", 2)]
)
def test_rounds_for_which_a_policy_is_settled_are_played_at_once_and_change_nothing(name, exits, delay):
    easy, hard = make_trace(exits, frames=600), make_trace(exits, frames=600)
    hard.confidence[:, :-1] *= 0.6  # so that some runs begin anew, each at its own time
    both = {f: np.concatenate([getattr(easy, f), getattr(hard, f)]) for f in ("confidence", "prediction", "label")}
    trace = Trace(**both, classes=easy.classes)
    rows = np.random.default_rng(0).integers(0, 600, (8, 1200)) + 600 * (np.arange(1200) >= 600)
    played, steps = [], []
    for one_by_one in (False, True):
        policy = make_policy(name, exits=exits, runs=8)
        choose = policy.choose
        if one_by_one:
            policy.settled_for = lambda first: 1
        steps.append(0)

        def counted(context, choose=choose):
            steps[-1] += 1
            return choose(context)

        policy.choose = counted
        played.append(replay(policy, trace, 0.1, frames=rows, delay=delay, exit_cost=0.02, kind="utility"))
    assert steps[1] == 1200
    assert steps[0] < 700
    for column in ("arm", "exit", "offloaded", "utility", "answer"):
        np.testing.assert_array_equal(getattr(played[0], column), getattr(played[1], column))


def test_a_policy_made_of_one_that_is_settled_is_asked_before_each_round():
    class Mixin:
        def choose(self, context):
            asked.append(context.first)
            return super().choose(context)

    class Raised(StopCurve):
        def choose(self, context):
            asked.append(context.first)
            return super().choose(context)

    class Mixed(Mixin, StopCurve):
        pass

    for cls in (Raised, Mixed):
        asked = []
        replay(cls(runs=4), make_trace(1, frames=40), 0.1)
        assert asked == list(range(40))
