"""What a worker keeps of what edges share: the latest of each, for the others, across restarts, within bounds."""

import numpy as np
import pytest

from eex.policies.core.errors import EexError
from eex.policies.core.fleet import MOST_FRAMES, Layout
from eex.stream.wire.protocol import SumsHeader
from eex.stream.worker import fleets as fleets_module
from eex.stream.worker.fleets import FLEETS, HALF_LIFE_S, Fleets

LAYOUT = Layout(exits=1)


def sums(frames=100.0, gain=0.5, layout=LAYOUT):
    """All frames are of one confidence; all are offloaded."""
    flat = np.zeros(layout.size, dtype=np.float32)
    of = layout.views(flat)
    of["seen"][0, 20] = of["offloads"][0, 20] = frames
    of["gains"][0, 20], of["squares"][0] = gain * frames, gain**2 * frames
    return flat


def header(edge, **changes):
    return SumsHeader(
        **{"id": 1, "model": "m", "policy": "stop-curve", "edge": edge, "exits": 1, "bins": 50, "coarse": 25} | changes
    )


class Clock:
    def __init__(self):
        self.now = 1e9

    def __call__(self):
        self.now += 2.0  # no pool is handed out twice
        return self.now


def of(flat, name="offloads"):
    return float(LAYOUT.views(flat)[name].sum())


def test_an_edge_gets_what_all_others_have_shared_last():
    fleets = Fleets(clock=Clock())
    edges, others = fleets.take_in(header("a"), sums(50), "")
    assert (edges, of(others)) == (0, 0.0)
    fleets.take_in(header("a"), sums(100), "")  # in place of the 50
    edges, others = fleets.take_in(header("b"), sums(30), "")
    assert (edges, of(others)) == (1, pytest.approx(100, abs=0.1))
    edges, others = fleets.take_in(header("a"), sums(100), "")
    assert (edges, of(others)) == (1, pytest.approx(30, abs=0.1))
    assert fleets.edges == 2


@pytest.mark.parametrize(
    "changes", [{"model": "other"}, {"policy": "other"}, {"exits": 2}, {"bins": 100, "coarse": 50}, {"answerer": "x"}]
)
def test_who_does_not_agree_on_everything_is_of_another_fleet(changes):
    fleets = Fleets(clock=Clock())
    fleets.take_in(header("a"), sums(), "")
    answerer = changes.pop("answerer", "")
    theirs = header("b", **changes)
    layout = Layout(theirs.exits, theirs.bins, theirs.coarse)
    assert fleets.take_in(theirs, np.zeros(layout.size, dtype=np.float32), "", answerer)[0] == 0


def test_nonsense_is_refused_and_keeps_nothing():
    fleets = Fleets(clock=Clock())
    with pytest.raises(ValueError, match="negative"):
        fleets.take_in(header("a"), -sums(), "")
    assert fleets.edges == 0


def test_a_key_counts_once_however_many_edges_it_has():
    fleets = Fleets(clock=Clock())
    for k in range(10):
        fleets.take_in(header(str(k)), sums(MOST_FRAMES), "one key")
    assert of(fleets.take_in(header("a"), sums(0), "another")[1]) == pytest.approx(MOST_FRAMES, rel=1e-3)
    assert of(fleets.take_in(header("3"), sums(MOST_FRAMES), "one key")[1]) == pytest.approx(MOST_FRAMES, rel=1e-3)


def test_what_is_not_shared_again_fades():
    clock = Clock()
    fleets = Fleets(clock=clock)
    fleets.take_in(header("a"), sums(100), "")
    clock.now += HALF_LIFE_S
    assert of(fleets.take_in(header("b"), sums(0), "")[1]) == pytest.approx(50, abs=0.1)


def test_edges_and_fleets_are_bounded(monkeypatch):
    monkeypatch.setattr(fleets_module, "EDGES", 20)
    fleets = Fleets(clock=Clock())
    fleets.take_in(header("first"), sums(), "honest")
    for k in range(25):
        fleets.take_in(header(str(k)), sums(), "crowd")
    assert fleets.edges == 20
    (fleet,) = fleets.fleets.values()
    assert ("honest", "first") in fleet.edges  # the key with most edges makes room
    for k in range(FLEETS + 3):
        fleets.take_in(header("a", policy=str(k)), sums(), "")
    assert len(fleets.fleets) == FLEETS
    monkeypatch.setattr(fleets_module, "MOST_BYTES", 40 * LAYOUT.size)
    for k in range(30):
        fleets.take_in(header(str(k)), sums(), "")
    assert fleets.edges <= 10


def test_a_key_that_is_in_many_fleets_makes_no_others_go():
    fleets = Fleets(clock=Clock())
    for key in ("a", "b"):
        fleets.take_in(header("edge"), sums(), key)
    for k in range(3 * FLEETS):
        fleets.take_in(header(f"edge {k}", policy=f"made up {k}"), sums(), "attacker")
    assert len(fleets.fleets) == FLEETS
    assert fleets.take_in(header("edge"), sums(), "a")[0] == 1


def test_it_outlasts_the_worker(tmp_path):
    path, clock = tmp_path / "fleet.msgpack", Clock()
    fleets = Fleets(path, clock)
    fleets.take_in(header("a"), sums(100), "key")
    fleets.save()
    again = Fleets(path, clock)
    assert of(again.take_in(header("b"), sums(0), "other")[1]) == pytest.approx(100, abs=0.1)


def test_it_is_saved_now_and_then(tmp_path):
    path, clock = tmp_path / "fleet.msgpack", Clock()
    fleets = Fleets(path, clock)
    fleets.take_in(header("a"), sums(100), "key")
    fleets.save_when_due()
    assert not path.exists()
    clock.now += 100
    fleets.save_when_due()
    fleets._saver.join()
    assert Fleets(path, clock).edges == 1


@pytest.mark.parametrize("content", [b"", b"junk", b"\x81\xa6format\x02", b"\x82\xa6format\x02\xa6fleets\x90"])
def test_a_damaged_file_is_named_and_left_alone(tmp_path, content):
    path = tmp_path / "fleet.msgpack"
    path.write_bytes(content)
    with pytest.raises(EexError, match=r"fleet.msgpack: not what eex-worker keeps of a fleet: .*; move it away"):
        Fleets(path)
    assert path.read_bytes() == content


def test_nonsense_in_the_file_is_refused(tmp_path):
    path = tmp_path / "fleet.msgpack"
    fleets = Fleets(path)
    fleets.take_in(header("a"), sums(100), "key")
    (fleet,) = fleets.fleets.values()
    fleet.edges["key", "a"].sums[:] = np.nan
    fleets.save()
    with pytest.raises(EexError, match="a sum is not finite"):
        Fleets(path)


def test_what_was_taken_in_can_be_read_again(tmp_path):
    """Sums at the limit of what counts as possible may be beyond it once they are capped and rounded."""
    path, refused = tmp_path / "fleet.msgpack", 0
    for offloads in np.linspace(1000, 3000, 60, dtype=np.float32):
        flat = np.zeros(LAYOUT.size, dtype=np.float32)
        views = LAYOUT.views(flat)
        views["seen"][0, 20], views["offloads"][0, 20], views["gains"][0, 20] = 4001, offloads, offloads + 4.002
        views["squares"][0] = offloads
        fleets = Fleets(path)
        try:
            fleets.take_in(header("a"), flat, "key")
        except ValueError:
            refused += 1
        fleets.save()
        Fleets(path)
    assert 0 < refused < 60


def test_a_file_that_cannot_be_looked_at_is_named(tmp_path):
    with pytest.raises(EexError, match=r"x: cannot be read: File name too long"):
        Fleets(tmp_path / ("x" * 300))


def test_a_file_that_cannot_be_written_is_said_and_nothing_is_lost(tmp_path):
    blocked = tmp_path / "file"
    fleets = Fleets(blocked / "fleet.msgpack")
    blocked.write_text("")
    fleets.take_in(header("a"), sums(100), "key")
    fleets.save()
    assert "cannot be written" in fleets.problem
    assert fleets.edges == 1
