"""Models at reduced precisions: what is written, how it answers, who may run it."""

import json

import msgspec
import numpy as np
import pytest
import torch
from exporting import export

from eex.models.card import WEIGHTS, load, read_card, save
from eex.models.network import make
from eex.models.onnx import MANIFEST, int8_instructions, load_onnx
from eex.models.quantising import Samples
from eex.policies.core.errors import EexError, ModelError
from eex.stream.frames.frames import FrameConfig
from eex.stream.groups import every_exit
from eex.stream.network import load_network

EXPERTS = ("pristine", "gaussian_blur")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    net = make("resnet", ["a", "b", "c"], shares=[0.5], width=8, input_shape=(3, 16, 16))
    net.add_expert("gaussian_blur")
    save(net.eval(), folder)
    return folder


@pytest.fixture(scope="module")
def samples(model):
    """Images whose labels are what the model says of most of them."""
    rng = np.random.default_rng(0)
    images = rng.random((160, 3, 16, 16), np.float32) * rng.random((160, 1, 1, 1), np.float32)
    net = load(model)
    with torch.inference_mode():
        labels = every_exit(net, torch.from_numpy(images))[1][:, -1]
    labels[::5] = 0
    fit, held = images[:96], images[96:]
    return Samples(dict.fromkeys(EXPERTS, fit), dict.fromkeys(EXPERTS, held), labels[96:], "made up")


@pytest.fixture(scope="module")
def int8(model, samples, tmp_path_factory):
    out = tmp_path_factory.mktemp("int8")
    export(model, out, precision="int8", samples=samples)
    return out


def config(folder, backend="auto"):
    return FrameConfig(model=folder, backend=backend, batch=2)


def test_int8_answers_nearly_as_fp32_and_the_card_says_how_nearly(model, int8, samples):
    net, card = load_onnx(int8), read_card(int8)
    fp32, full = load(model), read_card(model)
    found = every_exit(net, samples.held["pristine"])
    with torch.inference_mode():
        expected = every_exit(fp32, torch.from_numpy(samples.held["pristine"]))
    same = (found[1] == expected[1]).mean(axis=0)
    assert (same > 0.8).all()
    assert not np.array_equal(found[0], expected[0])
    rows = card.measured["int8"]["exits"]
    assert [(row["exit"], row["expert"]) for row in rows] == [(e, x) for e in (1, 2) for x in EXPERTS]
    odd = np.arange(len(samples.labels)) % 2 == 1
    for column, row in enumerate(rows[::2]):
        assert row["agreement"] == (found[1] == expected[1])[odd, column].mean()
        assert row["accuracy"] == (found[1][:, column] == samples.labels)[odd].mean()
        assert row["accuracy_fp32"] == (expected[1][:, column] == samples.labels)[odd].mean()
        assert 0 <= row["ece"] <= 1
    assert card.measured["int8"]["images"] == odd.sum()
    assert card.temperatures != full.temperatures
    assert net.temperature == card.temperatures


def test_a_reduced_precision_is_a_model_of_its_own_with_the_same_tail(model, int8, tmp_path):
    export(model, tmp_path, precision="fp16")
    fp32, half, quantised = load(model), load_onnx(tmp_path), load_onnx(int8)
    assert len({fp32.fingerprint, half.fingerprint, quantised.fingerprint}) == 3
    assert fp32.tail_fingerprint == half.tail_fingerprint == quantised.tail_fingerprint == fp32.fingerprint
    images = np.random.default_rng(1).random((4, 3, 16, 16), np.float32)
    with torch.inference_mode():
        expected = every_exit(fp32, torch.from_numpy(images))[0]
    found = every_exit(half, images)[0]
    np.testing.assert_allclose(found, expected, atol=0.02)
    assert not np.array_equal(found, expected)


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_a_reduced_precision_does_not_replace_the_card_of_weights(model, samples, precision):
    before = (model / "card.json").read_bytes()
    with pytest.raises(EexError, match=rf"holds {WEIGHTS}, and a model in {precision} has a card of its own"):
        export(model, model, precision=precision, samples=samples)
    assert (model / "card.json").read_bytes() == before


def test_auto_never_takes_int8_without_the_instructions(int8, monkeypatch, caplog):
    monkeypatch.setattr("eex.models.onnx.int8_instructions", lambda: "")
    with pytest.raises(EexError, match="an int8 model, and this processor lacks VNNI"):
        load_network(config(int8))
    assert load_network(config(int8, "onnx")).exits == 2
    assert "may run more slowly than in fp32" in caplog.text
    monkeypatch.setattr("eex.models.onnx.int8_instructions", lambda: "VNNI")
    assert load_network(config(int8)).exits == 2


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("flags\t\t: fpu sse2 avx2", ""),
        ("flags\t\t: fpu avx2 avx512_vnni", "VNNI"),
        ("flags : fpu amx_int8 amx_tile", "AMX"),
        ("Features\t: fp asimd asimddp", "dot product"),
        ("model name : the avx512_vnni of my dreams", ""),
    ],
)
def test_instructions_are_read_from_the_processors_flags(tmp_path, monkeypatch, text, name):
    monkeypatch.setattr("sys.platform", "linux")
    (tmp_path / "cpuinfo").write_text(f"processor : 0\n{text}\n")
    assert int8_instructions(tmp_path / "cpuinfo") == name
    assert int8_instructions(tmp_path / "none") == ""


def test_files_of_another_precision_are_refused(int8, tmp_path):
    for path in int8.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    manifest = json.loads((int8 / MANIFEST).read_text())
    for changed in ({"precision": "fp32"}, {"precision": "fp16"}, {"tail": "", "fingerprint": manifest["tail"]}):
        (tmp_path / MANIFEST).write_bytes(msgspec.json.encode(manifest | changed))
        with pytest.raises(ModelError, match="does not match the card"):
            load_onnx(tmp_path)
    (tmp_path / MANIFEST).write_bytes(msgspec.json.encode(manifest | {"precision": "int4"}))
    with pytest.raises(ModelError, match="not written by this version of eex"):
        load_onnx(tmp_path)
