"""The front over real sockets: batches of all edges, models, replicas, a drain; `test_service.py` has its rules."""

import numpy as np
import pytest
from loopback import PATIENCE_S, Cloud, Gate, collect, features, submit, until

from eex.policies.core.errors import OffloadError
from eex.stream.worker.clients import Limits
from eex.stream.worker.log import LINES_A_SECOND, Throttled
from eex.stream.worker.pool import LocalReplica, ReplicaLostError

pytestmark = pytest.mark.timeout(120)


def test_what_comes_while_the_model_runs_is_run_together():
    gate = Gate()
    with (
        Cloud([LocalReplica({"model-a": gate})], limits=Limits(batch=6)) as cloud,
        cloud.edge() as a,
        cloud.edge() as b,
    ):
        submit(a, 1, 1, "blur", features())
        assert gate.entered.wait(PATIENCE_S)
        for id in range(2, 6):
            submit(a, id, 1, "blur", features(1, id % 2))
            submit(b, id, 1, "blur", features(1, id % 2))
        submit(b, 9, 1, "pristine", features(2))
        until(lambda: cloud.front.service.queued == 10)
        gate.open.set()
        replies = collect(a, 5)
        for id in range(2, 6):
            assert replies[id].prediction.tolist() == [id % 2]
        assert set(collect(b, 5)) == {2, 3, 4, 5, 9}
        assert gate.batches[:2] == [(1, "blur", 1), (1, "blur", 6)]
        assert sorted(gate.batches[2:]) == [(1, "blur", 2), (1, "pristine", 2)]
        assert cloud.front.stats.batch_frames.total == 11


def test_several_models_and_one_that_it_does_not_have():
    tails = {m: lambda stage, expert, x, m=m: (np.full(len(x), 0.5), np.full(len(x), m == "model-b")) for m in "ab"}
    replica = LocalReplica({f"model-{m}": tails[m] for m in "ab"})
    replica._tails["model-b"] = lambda stage, expert, x: (np.full(len(x), 0.5), np.ones(len(x)))
    with Cloud([replica]) as cloud, cloud.edge("model-a") as a, cloud.edge("model-b") as b:
        submit(a, 1, 1, "blur", features())
        submit(b, 1, 1, "pristine", features())
        submit(b, 2, 1, "blur", features())
        assert collect(a, 1)[1].prediction.tolist() == [0]
        replies = collect(b, 2)
        assert replies[1].prediction.tolist() == [1]
        assert replies[2].failed == "unknown expert 'blur', expected one of pristine"
        with pytest.raises(OffloadError, match="the worker has model model-a, model-b, the edge model-c"):
            cloud.edge("model-c")
        assert cloud.front.stats.refusals == {"expert": 1, "model": 1}


def test_it_finishes_what_it_has_taken_on_and_refuses_the_rest():
    gate = Gate()
    with Cloud([LocalReplica({"model-a": gate})], limits=Limits(drain_s=PATIENCE_S)) as cloud, cloud.edge() as edge:
        submit(edge, 1, 1, "blur", features())
        assert gate.entered.wait(PATIENCE_S)
        cloud.stop.set()
        until(lambda: cloud.front.service.draining)
        submit(edge, 2, 1, "blur", features())
        assert collect(edge, 1)[2].failed == "the worker is about to stop"
        assert not edge.reachable
        gate.open.set()
        assert not collect(edge, 1)[1].failed


class Lossy:
    """A replica that goes away with its first batch."""

    def __init__(self):
        self.lost = self.recovered = False

    def run(self, model, stage, expert, x):
        if not self.lost:
            self.lost = True
            raise ReplicaLostError("gone")
        return np.full(len(x), 0.5), np.zeros(len(x))

    def recover(self):
        self.recovered = True

    def close(self):
        pass


def test_what_a_lost_replica_had_is_given_to_another():
    replicas = [Lossy(), Lossy()]
    replicas[1].lost = True
    with Cloud(replicas) as cloud, cloud.edge() as edge:
        for id in range(6):
            submit(edge, id, 1, "blur", features())
        assert not any(r.failed for r in collect(edge, 6).values())
        id = 100
        while not replicas[0].lost:  # the other one had it all
            submit(edge, id, 1, "blur", features())
            collect(edge, 1)
            id += 1
        until(lambda: replicas[0].recovered and cloud.front.pool.ready == 2)
        assert len(cloud.front.service.clients) == 1


def test_a_log_takes_so_many_lines_per_second_and_no_more():
    lines, now = [], [0.0]
    log = Throttled(lines.append, clock=lambda: now[0])
    for k in range(10 * LINES_A_SECOND):
        now[0] = k / 1000
        log(str(k))
    assert lines == [str(k) for k in range(LINES_A_SECOND)]
    now[0] = 1.0015  # more than a second after the first two
    for line in "abc":
        log(line)
    assert lines[LINES_A_SECOND:] == ["a", "b"]
