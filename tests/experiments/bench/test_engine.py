"""The table of speeds: what is measured answers what it should."""

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from eex.experiments.bench.engine import Bench, engine, joules, main, plain, spent
from eex.models.card import load, read_card, save
from eex.models.fast import optimised
from eex.models.network import make
from eex.stream.frames.sources import load_all, open_source
from eex.stream.groups import every_exit


@pytest.fixture(scope="module")
def net():
    return optimised(load(None, "cpu"))


@pytest.fixture(scope="module")
def frames():
    arrays, labels, _ = load_all(open_source("sample"))
    return torch.from_numpy(arrays[:96]).float() / 255, labels[:96]


@pytest.mark.parametrize("batch", [1, 32])
def test_the_engine_answers_as_the_first_sure_exit(net, frames, batch):
    images, labels = frames
    confidence, prediction, _ = every_exit(net, images)
    early = confidence[:, :-1] >= 0.8
    exit = np.where(early.any(axis=1), early.argmax(axis=1), net.edge_exits)
    rival = engine(Bench(threshold=0.8), net, "torch", images, labels)
    assert (rival.leaves == exit).all()
    assert (rival.answers(images, labels, batch) == prediction[np.arange(len(exit)), exit]).all()
    assert 0 < rival.beside(images, labels, batch) < 1


def test_the_whole_network_answers_as_its_last_exit(net, frames):
    images, labels = frames
    pristine = [net.experts.index("pristine")] * len(images)
    x = images
    with torch.inference_mode():
        for i in range(net.exits):
            x = net.stage(i, x)
        expected = net.branch(net.exits - 1, net.experts[pristine[0]], x).argmax(dim=1).numpy()
    assert (plain(net)(images, labels, 32) == expected).all()


def test_energy_is_read_where_the_machine_tells(tmp_path):
    def write(package, used, most=1000):
        (tmp_path / package).mkdir(exist_ok=True)
        (tmp_path / package / "energy_uj").write_text(f"{used}\n")
        (tmp_path / package / "max_energy_range_uj").write_text(f"{most}\n")

    assert joules(tmp_path) == {}
    assert spent({}, {}) is None
    write("intel-rapl:0", 900)
    write("intel-rapl:1", 100)
    write("intel-rapl:0:0", 5)  # the cores of a package, which are counted with it
    before = joules(tmp_path)
    write("intel-rapl:0", 200)  # the counter has started anew
    write("intel-rapl:1", 400)
    assert spent(before, joules(tmp_path)) == pytest.approx(600e-6)


def test_images_and_threshold_of_ones_own(tmp_path, capsys, monkeypatch):
    for k, name in enumerate(("Cat", "dog", "unicorn")):
        (tmp_path / "images" / "test" / name).mkdir(parents=True)
        for i in range(3):
            noise = np.random.default_rng(10 * k + i).integers(0, 256, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / "images" / "test" / name / f"{i}.png")
    monkeypatch.setattr("eex.experiments.bench.engine.learners", lambda: iter(()))
    options = ["--batches", "1", "--rounds", "1", "--frames", "4", "--runtimes", "torch", "--precisions", "fp32"]
    options += ["--device", "cpu", "--json"]

    def rows(*more):
        monkeypatch.setattr("sys.argv", ["bench", *options, *more])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        return {row["what"]: row for row in json.loads(capsys.readouterr().out)["rows"]}

    found = rows("--source", str(tmp_path / "images"), "--threshold", "0")
    assert found["engine"]["threshold"] == 0
    assert found["engine"]["ratio_by_multiply_adds"] > 2  # every frame leaves at the first exit
    assert (found["whole"]["accuracy"] * 6) % 1 == pytest.approx(0, abs=1e-9)  # of six images: no model knows unicorns
    assert rows("--source", str(tmp_path / "images"), "--threshold", "1")["engine"]["ratio_by_multiply_adds"] <= 1


@pytest.mark.soak
def test_rows_as_json(tmp_path):
    torch.manual_seed(0)
    small = make("resnet", read_card().architecture.classes, uniform=1, width=8)  # is soon exported
    save(small.eval(), tmp_path)
    arguments = ["--rounds", "1", "--frames", "32", "--batches", "1", "8", "--device", "cpu", "--threads", "1"]
    arguments += ["--runtimes", "torch", "onnxruntime", "--json", "--model", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "eex.experiments.bench.engine", *arguments],
        capture_output=True,
        text=True,
        timeout=280,
        check=True,
    )
    measured = json.loads(done.stdout)
    rows = measured["rows"]
    assert {row["batch"] for row in rows} == {1, 8}
    measured_here = {(row["what"], row["backend"], row["precision"], row["device"]) for row in rows}
    assert measured_here == {
        (what, backend, precision, "cpu")
        for what, backends in (("whole", ("onnxruntime",)), ("engine", ("onnxruntime", "onnxruntime --spin")))
        for backend, precision in (("torch", "fp32"), *itertools.product(backends, ("fp32", "int8")))
    }
    for batch, precision in itertools.product((1, 8), ("fp32", "int8")):
        alike = [row for row in rows if (row["batch"], row["precision"]) == (batch, precision)]
        assert max(row["ratio_to_best_whole"] for row in alike if row["what"] == "whole") == 1
    assert all(0 < row["accuracy"] <= 1 for row in rows)
    assert all(row["frames_per_second"] * row["milliseconds"] == pytest.approx(1000) for row in rows)
    assert all(row["us_in_network"] > 0 and row["us_around"] > 0 for row in measured["single_frames"])
    assert {row["policy"] for row in measured["single_frames"]} == {"fixed", "ucb", "gain-curve", "stop-curve"}
    assert {row["policy"] for row in measured["policies"]} >= {"ucb", "gain-curve", "stop-curve"}
