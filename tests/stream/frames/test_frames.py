"""Frames of a run: a source is played once, whole, and nothing is distorted unless asked for."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from clips import clip, pyav
from commands import call
from PIL import Image

from eex.policies.core.schedule import PRISTINE
from eex.policies.core.trace import read_trace
from eex.stream.frames import sources
from eex.stream.frames.frames import DRIFT, FrameConfig, matching
from eex.stream.frames.video import Picture, VideoError
from eex.stream.guard import SOURCE_LOST
from eex.stream.run.records import read_records


def draw(folder, names, size=32):
    for k, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(k).integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)


def stream(out, *arguments):
    options = ("--worker", "none", "--policy", "fixed", "--threads", 1, "--no-pictures", "--out", out)
    done = call("stream", *options, *arguments)
    assert done.returncode == 0, done.stderr
    return done


def summary_of(out):
    return json.loads(next(out.glob("*/summary.json")).read_text())


@pytest.mark.parametrize(("source", "schedule"), [("sample", DRIFT), ("photos", PRISTINE), ("camera", PRISTINE)])
def test_only_the_sample_is_distorted_by_default(source, schedule):
    assert str(FrameConfig(source=source).schedule()) == schedule
    assert str(FrameConfig(source=source, distortion="gaussian_blur@1").schedule()) == "gaussian_blur@1"


def test_a_folder_is_played_once_and_whole(tmp_path):
    draw(tmp_path / "photos", [f"{k}.png" for k in range(21)])
    draw(tmp_path / "photos", [f"wide{k}.png" for k in range(4)], size=40)
    done = stream(tmp_path / "out", "--source", tmp_path / "photos")
    assert "21 frames: each of the images of" in done.stdout
    assert "not distorted" in done.stdout
    assert "4 images skipped" in done.stdout
    assert "no accuracy: the images have no labels" in done.stdout
    assert "without a worker the edge answered" in done.stdout
    assert "got no reply" not in done.stdout
    summary = summary_of(tmp_path / "out")
    assert (summary["frames"], summary["skipped"]) == (21, 4)
    records = read_records(next((tmp_path / "out").iterdir()) / "records")
    assert sorted(records["name"].to_pylist()) == sorted(f"{k}.png" for k in range(21))
    assert not any(records["gaussian_blur"].to_pylist())
    assert not any(records["gaussian_noise"].to_pylist())


def test_repeated_and_distorted_frames_are_said(tmp_path):
    draw(tmp_path / "photos", [f"{k}.png" for k in range(4)])
    schedule = "pristine:5, gaussian_blur@1:5"
    done = stream(tmp_path / "out", "--source", tmp_path / "photos", "--distortion", schedule, "--no-regret")
    assert "10 frames: 4 images of" in done.stdout
    assert "each 2.5 times on average; distorted: pristine:5, gaussian_blur@1:5" in done.stdout


def test_classes_match_in_another_case(tmp_path):
    draw(tmp_path / "photos", ["CAT/1.png", "Dog/2.png", "unicorn/3.png"])
    done = stream(tmp_path / "out", "--source", tmp_path / "photos", "--no-regret")
    assert "accuracy leaves out classes that the model does not have: unicorn" in done.stdout
    assert "accuracy by class from" in done.stdout
    by_class = summary_of(tmp_path / "out")["by_class"]
    assert [(row["class"], row["frames"]) for row in by_class] == [("cat", 1), ("dog", 1)]


def test_no_class_in_common_is_said(tmp_path):
    draw(tmp_path / "photos", ["unicorn/1.png", "dragon/2.png"])
    done = stream(tmp_path / "out", "--source", tmp_path / "photos", "--no-regret")
    assert "no accuracy: the source's classes (dragon, unicorn) are none of the model's (airplane" in done.stdout
    assert summary_of(tmp_path / "out")["accuracy"] is None


def test_matching_is_never_ambiguous():
    assert matching(["Cat", "cat"], ["cat", "dog"]) == [-1, 0]
    assert matching(["CAT"], ["cat", "Cat"]) == [-1]
    assert matching(["b", "a"], ["a", "b"]) == [1, 0]


def test_accuracy_by_class_adds_up(tmp_path):
    stream(tmp_path / "out", "--frames", 200, "--no-regret")
    summary = summary_of(tmp_path / "out")
    rows = summary["by_class"]
    assert sum(row["frames"] for row in rows) == 200
    assert sum(row["frames"] * row["accuracy"] for row in rows) == pytest.approx(200 * summary["accuracy"])


def test_names_that_are_not_utf8_reach_the_records(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    draw(tmp_path / name, [f"{name}.png", "tea.png"])
    draw(tmp_path / name, [f"{name}-wide.png"], size=40)
    done = stream(tmp_path / "out", "--source", tmp_path / name)
    assert "caf\\xe9-wide.png: is 40x40" in done.stdout
    records = read_records(next((tmp_path / "out").iterdir()) / "records")
    assert sorted(records["name"].to_pylist()) == ["caf\\xe9.png", "tea.png"]
    config = next((tmp_path / "out").iterdir()) / "config.json"
    stream(tmp_path / "again", "--config", config)
    assert summary_of(tmp_path / "again")["frames"] == 2


def test_a_single_image_is_a_source(tmp_path):
    draw(tmp_path, ["photo.jpg"])
    done = stream(tmp_path / "out", "--source", tmp_path / "photo.jpg")
    assert "1 frame: each of the images of" in done.stdout


# --- videos and cameras ---


def test_a_video_is_played_whole_whatever_the_schedule(tmp_path):
    path = clip(tmp_path / "film.avi", codec="mjpeg")
    done = stream(tmp_path / "out", "--source", path, "--distortion", "pristine:5, gaussian_blur@1:5")
    assert "20 frames of" in done.stdout
    assert summary_of(tmp_path / "out")["source"]["lost"] == ""


def test_an_animation_is_a_video(tmp_path):
    pyav()
    shades = [Image.new("RGB", (32, 32), (k, 0, 0)) for k in (0, 120, 240)]
    shades[0].save(tmp_path / "moving.gif", save_all=True, append_images=shades[1:])
    shades[0].save(tmp_path / "still.gif")
    for name, count in (("moving", 3), ("still", 1)):
        stream(tmp_path / name, "--source", tmp_path / f"{name}.gif")
        assert summary_of(tmp_path / name)["frames"] == count


@pytest.mark.parametrize(("suffix", "announced"), [("avi", "20 frames"), ("mkv", "about 20 frames")])
def test_frames_that_the_file_announces_are_missed(tmp_path, suffix, announced):
    path = clip(tmp_path / f"film.{suffix}", codec="mjpeg")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    done = stream(tmp_path / "out", "--source", path)
    assert f"the file announces {announced} and ends after" in done.stdout


@pytest.mark.parametrize("command", ["stream", "record"])
def test_a_lost_camera_is_no_success_and_costs_no_results(tmp_path, monkeypatch, command):
    pyav()
    monkeypatch.setattr(sources, "REOPEN_S", (0.0,))
    left = [40, 0, 0]

    def decode(device, options):
        if not left or not (count := left.pop(0)):
            raise VideoError("cannot be opened: No such device")
        for k in range(count):
            yield Picture(k, 0.0, np.full((6, 8, 3), k, dtype=np.uint8))
        raise VideoError("broke off")

    monkeypatch.setattr(sources, "decode_video", decode)
    out = tmp_path / "t.arrow" if command == "record" else tmp_path
    options = ("--worker", "none") if command == "stream" else ()
    done = call(command, "--source", "camera:1", "--quiet", "--out", out, *options)
    assert done.returncode == SOURCE_LOST
    assert done.stderr.startswith("error: camera:1: cannot be opened: No such device; ")
    assert done.stderr.count("\n") == 1
    if command == "record":
        assert len(read_trace(out)) == 40
        return
    summary = summary_of(tmp_path)
    assert (summary["frames"], summary["interrupted"]) == (40, False)
    assert "No such device" in summary["source"]["lost"]
    assert len(read_records(Path(summary["folder"]) / "records")) == 40
