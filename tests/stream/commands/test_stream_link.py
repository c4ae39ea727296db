"""`eex-stream` over emulated links: what it sends and pays, where the network is cut, and what its summary says."""

import json
from pathlib import Path

import numpy as np
import pytest

from eex.stream.commands.stream import _parse
from eex.stream.config import StreamConfig, from_json
from eex.stream.run.records import read_records
from eex.stream.run.runner import run

pytestmark = pytest.mark.timeout(200)

SCHEDULE = "pristine:64, gaussian_blur@2:64"
ALL = {
    "policy": "fixed",
    "policy_option": ("p_tar=1",),
    "distortion": SCHEDULE,
    "frames": 128,
    "regret": False,
    "plain": True,
}


@pytest.fixture(scope="module")
def play(cloud):
    """Plays a stream, with the worker that tests share."""
    _, endpoint, _ = cloud

    def play(out, **options):
        return run(StreamConfig(out=out, deadline_ms=30_000, **{**ALL, "worker": endpoint, **options}))

    return play


def test_a_slow_link_is_felt_and_the_way_of_sending_chosen_for_it(tmp_path, play):
    summary = play(tmp_path, link="40@2", partition=2, overhead="0.1/s")
    assert summary["model"]["partition"] == 2
    assert list(summary["exit_shares"]) == ["exit 1", "exit 2", "cloud"]
    assert summary["fallbacks"] == 0
    sent = summary["send"]
    assert sent["encoding"] in ("int8+zstd", "input", "input+zstd")  # fp32 would take 131 ms at 2 Mbit/s
    assert {row["send"] for row in sent["candidates"]} >= {"fp32", "fp16", "int8", "input+zstd"}
    assert sent["why"].startswith(
        f"{next(r for r in sent['candidates'] if r['send'] == sent['encoding'])['bytes']:,.0f}"
    )
    assert summary["bytes_per_offloaded_frame"] < 8192
    records = read_records(Path(summary["folder"]) / "records")
    waited = records["link_ms"].to_numpy()
    assert waited.min() >= 39
    # what a frame paid is what it waited, 0.1 a second
    paid = np.minimum(1, 0.1 * (waited + records["cloud_ms"].to_numpy()) / 1000)
    np.testing.assert_allclose(records["overhead"].to_numpy(), paid, atol=1e-4)
    assert summary["overhead"] == pytest.approx(paid.mean(), abs=1e-4)
    assert summary["price"] == "0.1/s"
    config = from_json(Path(summary["folder"]) / "config.json", StreamConfig)
    assert (config.overhead, config.link, config.partition, config.send) == ("0.1/s", "40@2", 2, "auto")


@pytest.fixture(scope="module")
def plain(tmp_path_factory, play):
    return play(tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("send", ["int8", "input+zstd"])
def test_answers_hardly_depend_on_how_frames_are_sent(send, plain, tmp_path, play):
    summary = play(tmp_path, send=send)
    assert plain["send"]["encoding"] is None
    assert "on this machine" in plain["send"]["why"]
    assert (summary["send"]["encoding"], summary["send"]["why"], summary["fallbacks"]) == (send, "as asked for", 0)
    folders = [Path(s["folder"]) / "records" for s in (summary, plain)]
    here, there = (read_records(folder)["answer"].to_numpy(zero_copy_only=False) for folder in folders)
    assert (here == there).mean() >= 0.97
    each = {"int8": 8_200, "input+zstd": 3_072}[send]
    assert summary["bytes_per_offloaded_frame"] == pytest.approx(each, rel=0.15)
    assert plain["bytes_per_offloaded_frame"] == pytest.approx(32_768, rel=0.01)


def test_a_budget_is_kept(tmp_path, play):
    summary = play(tmp_path, overhead="budget=25%:32", batch=16)
    records = read_records(Path(summary["folder"]) / "records")
    sent, offloaded = records["bytes"].to_numpy() > 0, records["offloaded"].to_numpy(zero_copy_only=False)
    assert sent.sum() == 32 + 7 * 4
    assert offloaded.sum() >= 127  # on some processors one frame has a confidence of 1
    assert summary["withheld"] == summary["fallbacks"] == offloaded.sum() - 60


def test_everything_on_the_edge(tmp_path, play):
    summary = play(tmp_path, partition=4, worker="none")
    assert summary["bytes_offloaded"] == 0
    assert summary["bytes_per_offloaded_frame"] in (None, 0.0)
    assert summary["send"] == {"encoding": None, "why": "nothing is sent", "candidates": []}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"partition": 5}, r"--partition must lie in 1…4, the model's stages; got 5"),
        ({"partition": -1}, r"--partition must be at least 0, got -1"),
        ({"send": "int4"}, r"there is no encoding 'int4'"),
        ({"link": "rio"}, r"link 'rio': 'rio' is neither"),
        ({"overhead": "cheap"}, r"--overhead 'cheap': 'cheap' is no price"),
        ({"overhead": 2.0}, r"--overhead must lie in \[0, 1\]"),
    ],
)
def test_mistakes(options, says, tmp_path, play):
    from eex.policies.core.errors import EexError

    with pytest.raises(EexError, match=says):
        play(tmp_path, worker="none", **options)
    assert not list(tmp_path.iterdir())


def test_a_number_stays_a_number_on_the_command_line(tmp_path):
    assert _parse(["--overhead", "0.25"]).stream.overhead == 0.25
    assert _parse(["--overhead", "0.25/s+budget=20%"]).stream.overhead == "0.25/s+budget=20%"
    (tmp_path / "config.json").write_text(json.dumps({"overhead": 0.5}))  # of an older run
    assert from_json(tmp_path / "config.json", StreamConfig).overhead == 0.5
