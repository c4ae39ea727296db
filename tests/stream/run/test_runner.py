"""A run from Python: policies one after another over the same frames, each from a fresh start."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from eex.policies.algorithms.fixed import Fixed
from eex.policies.core.errors import EexError
from eex.stream import StreamConfig
from eex.stream.run import run
from eex.stream.run.display import bought

pytestmark = pytest.mark.timeout(240)

OPTIONS = {"frames": 300, "distortion": "pristine:150, gaussian_noise@20:150", "regret": False, "pictures": False}
OPTIONS["deadline_ms"] = 60_000


class Watching(Fixed):
    """Sends every frame to the cloud, and notes what it knows of the link before each choice."""

    seen: list = []  # noqa: RUF012 (of all instances, which `run` makes)

    def __init__(self, p_tar: float = 1.0, exits: int = 1, runs: int = 1, seed: int = 0) -> None:
        super().__init__(p_tar, exits, runs, seed)
        self.mine = []
        Watching.seen.append(self.mine)

    def choose(self, context):
        self.mine.append((context.link_ms, context.queue, context.reachable))
        return super().choose(context)


@pytest.mark.process
def test_each_policy_begins_with_a_link_that_nobody_has_measured(tmp_path, monkeypatch, cloud):
    monkeypatch.setitem(sys.modules, "watching", sys.modules[__name__])
    Watching.seen.clear()
    policy = "watching:Watching"
    config = StreamConfig(
        policy=policy, compare=f"{policy},{policy}", out=tmp_path, worker=cloud[1], plain=True, **OPTIONS
    )
    summary = run(config)
    played = [seen for seen in Watching.seen if seen]
    assert len(played) == 3
    for seen in played:
        link_ms, queue, reachable = seen[0]
        assert np.isnan(link_ms)
        assert (queue, reachable) == (0, True)
        assert np.isfinite(seen[-1][0])
    rows = summary["policies"]
    assert [row["policy"] for row in rows] == [policy, f"{policy} (2)", f"{policy} (3)"]
    for row in rows:
        assert row["bytes_offloaded"] == pytest.approx(rows[0]["bytes_offloaded"], rel=1e-3)
        assert row["link"]["requests"] == row["link"]["replies"] == rows[0]["link"]["requests"]
    assert summary["link"] == rows[0]["link"]


@pytest.mark.process
def test_the_order_of_what_is_compared_does_not_matter(tmp_path, cloud):
    names = ["fixed:p_tar=0.8", "fixed:p_tar=0.95", "random"]
    outcomes = []
    for order in (names, names[::-1]):
        config = StreamConfig(
            policy=order[0], compare=",".join(order[1:]), out=tmp_path, worker=cloud[1], plain=True, **OPTIONS
        )
        summary = run(config)
        outcomes.append({row["policy"]: row for row in summary["policies"]})
    for name in names:
        one, other = (played[name] for played in outcomes)
        for figure in ("accuracy", "exit_shares", "offloaded_share", "fallbacks"):
            assert one[figure] == other[figure], figure
        assert one["mean_reward"] == pytest.approx(other["mean_reward"], rel=1e-6)  # summed in the order of the replies
        assert one["bytes_offloaded"] == pytest.approx(other["bytes_offloaded"], rel=1e-3)  # headers hold numbers


def test_what_a_run_leaves(tmp_path):
    summary = run(StreamConfig(worker="none", partition=4, exit_cost="auto", out=tmp_path, **OPTIONS))
    folder = Path(summary["folder"])
    assert folder.parent == tmp_path
    costs = summary["exit_cost"]
    assert costs == pytest.approx([0.02, 0.02], rel=1e-3)  # the shipped model's stages take about the same
    taken_for = {row["expert"]: row["frames"] for row in summary["by_expert"]}
    assert list(taken_for) == ["pristine", "gaussian_blur", "gaussian_noise", "unknown"]
    assert sum(taken_for.values()) == 300
    assert taken_for["pristine"] > 120
    assert taken_for["gaussian_noise"] > 120
    assert json.loads((folder / "config.json").read_text())["exit_cost"] == "auto"  # for other networks, too
    priced = json.loads((folder / "records" / "priced.json").read_text())
    assert [float(cost) for cost in priced["exit_cost"].split(",")] == pytest.approx(costs, rel=1e-5)
    assert priced["reward"] == "utility"
    assert summary["policies"][0]["policy"] == "stop-curve"
    assert json.loads((folder / "summary.json").read_text())["frames"] == summary["frames"] == 300
    assert {path.name for path in folder.iterdir()} >= {"config.json", "curves.arrow", "records", "state.npz"}
    assert not list(folder.glob("*.png"))
    assert 0 < summary["source_seconds"] < summary["seconds"]
    for share, mentioned in ((0.1, False), (0.4, True)):
        lines = bought(summary | {"source_seconds": share * summary["seconds"]})
        assert ("the run waited 40 % of its time for images to be read, decoded and distorted" in lines) == mentioned


def test_wishes_are_kept_and_it_is_said_when_they_cannot_be(tmp_path, capsys):
    wishes = ("offload <= 20 %", "mean latency <= 0.001 ms")
    summary = run(
        StreamConfig(
            worker="none", aim=wishes, compare="fixed", out=tmp_path, **OPTIONS | {"partition": 4, "frames": 1000}
        )
    )
    kept, impossible = summary["policies"][0]["aims"]
    assert (kept["wish"], kept["limit"], kept["kept"], kept["problem"]) == (wishes[0], 0.2, True, "")
    assert kept["came_to"] <= summary["offloaded_share"] + 0.01
    assert impossible["kept"] is False
    assert impossible["problem"].startswith(f"'{wishes[1]}' cannot be kept: the mean latency is ")
    assert "aims" not in summary["policies"][1]  # it heeds no price
    lines = bought(summary)
    assert any(line.startswith(f"stop-curve: wish '{wishes[0]}': kept; ") for line in lines)
    assert any(line.startswith(f"stop-curve: wish '{wishes[1]}': not kept; ") for line in lines)


def test_a_policy_that_heeds_no_price_keeps_no_wish(tmp_path):
    config = StreamConfig(worker="none", policy="fixed", aim=("offload <= 20 %",), out=tmp_path, **OPTIONS)
    with pytest.raises(EexError, match="--aim: policy fixed heeds no price"):
        run(config)
    assert not list(tmp_path.iterdir())


def test_pictures_that_cannot_be_drawn_cost_no_summary(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "eex.stream.run.pictures", None)  # as where matplotlib finds no folder to cache in
    summary = run(StreamConfig(worker="none", out=tmp_path, **OPTIONS | {"pictures": True}))
    folder = Path(summary["folder"])
    assert json.loads((folder / "summary.json").read_text())["frames"] == 300
    assert not list(folder.glob("*.png"))
    assert summary["unrecorded"] == ""
    assert f"warning: {folder}: no pictures were drawn" in capsys.readouterr().err
