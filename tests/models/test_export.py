import json
import subprocess
import sys
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from exporting import export
from torch import nn

from eex.models.arrays import to_numpy
from eex.models.card import SHIPPED, load, save
from eex.models.cutting import cut
from eex.models.export import to_onnx
from eex.models.network import make
from eex.models.onnx import CLASSIFIER, MANIFEST, branch_file, digest, load_onnx, stage_file
from eex.models.spectrum import DistortionClassifier
from eex.policies.core.errors import EexError, ModelError
from eex.stream.frames.frames import FrameConfig
from eex.stream.groups import every_exit
from eex.stream.network import load_network


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small model in both forms: weights and ONNX files."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    net = make("resnet", ["a", "b", "c"], shares=[0.5], width=8, input_shape=(3, 16, 16))
    net.add_expert("gaussian_blur")
    net.classifier = DistortionClassifier(("pristine", "gaussian_blur"))
    net.temperature[0]["gaussian_blur"] = 2.0
    net.abstain_below = 0.6
    save(net.eval(), folder)
    export(folder, folder)
    return folder


@pytest.fixture
def exported(model, tmp_path):
    """The ONNX form alone."""
    for path in model.iterdir():
        if path.name != "weights.safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def config(model, backend, device="cpu"):
    return FrameConfig(model=model, backend=backend, device=device, batch=2)


@pytest.mark.parametrize("backend", ["torch", "onnx", "auto"])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_backends_answer_like_the_saved_model(model, backend, batch):
    saved, net = load(model), load_network(config(model, backend))
    assert (net.fingerprint, net.experts) == (saved.fingerprint, saved.experts)
    assert net.abstain_below == saved.abstain_below == 0.6
    assert net.costs().feature_bytes == saved.costs().feature_bytes
    if backend == "onnx":
        assert net.costs() == saved.costs()
    images = torch.rand(batch, 3, 16, 16)
    with torch.inference_mode():
        expected, found = every_exit(saved, images), every_exit(net, net.array(images.numpy()))
        np.testing.assert_allclose(found[0], expected[0], atol=1e-4)
        np.testing.assert_array_equal(found[1], expected[1])
        np.testing.assert_allclose(found[2], expected[2], atol=1e-4)
        x = saved.stage(0, images)
        near = {"atol": 1e-4, "rtol": 1e-4}
        np.testing.assert_allclose(to_numpy(net.stage(0, net.array(images.numpy()))), x.numpy(), **near)
        for expert in saved.experts:
            logits = net.branch(0, expert, net.array(x.numpy(), 1))
            np.testing.assert_allclose(to_numpy(logits), saved.branch(0, expert, x).numpy(), **near)


def test_large_frames_are_run_one_by_one_on_a_processor(exported, monkeypatch):
    x = np.random.default_rng(0).random((3, 3, 16, 16), dtype=np.float32)
    expected = load_onnx(exported).stage(0, x)
    monkeypatch.setattr("eex.models.onnx.LARGE_BYTES", x[0].nbytes)
    net, ran = load_onnx(exported), []
    whole = net.stages[0].session.run

    class Counted:
        def run(self, outputs, given):
            ran.append([len(value) for value in given.values()])
            return whole(outputs, given)

    net.stages[0].session = Counted()
    np.testing.assert_allclose(net.stage(0, x), expected, rtol=1e-5, atol=1e-5)
    assert ran == [[1], [1], [1]]
    monkeypatch.setattr("eex.models.onnx.LARGE_BYTES", x[0].nbytes + 1)
    net.stage(0, x)
    assert ran[3:] == [[3]]


def test_auto_says_what_it_measured(model, caplog):
    load_network(config(model, "auto"))
    assert "a micro-batch of 2 takes" in caplog.text


def test_an_exported_model_needs_no_weights(exported):
    assert load_network(config(exported, "auto")).fingerprint == load_network(config(exported, "onnx")).fingerprint
    with pytest.raises(EexError, match=r"--backend torch: .* holds no weights\.safetensors"):
        load_network(config(exported, "torch"))
    with pytest.raises(EexError, match="--device cuda: ONNX files run on the processor"):
        load_network(config(exported, "onnx", "cuda"))


def test_a_gpu_takes_the_weights_of_a_model_in_both_forms(model, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EexError, match="--device cuda: this torch sees no GPU"):
        load_network(config(model, "auto", "cuda"))


def test_a_folder_whose_name_is_too_long(model, tmp_path):
    with pytest.raises(EexError, match=r"cannot be written: File name too long \(--out\)"):
        export(model, tmp_path / ("x" * 300))


def test_what_is_not_exported():
    with pytest.raises(EexError, match="run eex-export --out DIR"):
        load_network(config(None, "onnx"))
    with pytest.raises(ModelError, match=r"onnx\.json: missing"):
        load_network(config(SHIPPED, "onnx"))


@pytest.mark.parametrize("data", [b"", b"\x08\x07 no ONNX"])
def test_a_damaged_file(exported, data):
    (exported / "stage-1.onnx").write_bytes(data)
    with pytest.raises(ModelError, match=r"stage-1\.onnx: does not match onnx\.json"):
        load_onnx(exported)
    change(exported, lambda manifest: manifest["sha256"].update({"stage-1.onnx": digest(data)}))
    with pytest.raises(ModelError, match=r"stage-1\.onnx: ONNX Runtime .* cannot run it"):
        load_onnx(exported)


def test_a_missing_file(exported):
    (exported / "stage-2.onnx").unlink()
    with pytest.raises(ModelError, match=r"stage-2\.onnx: cannot be read"):
        load_onnx(exported)


def onnx_model(op, weights=None):
    """An ONNX model of one operation on (B, 4); `weights` names the file that keeps them."""
    import onnx
    from onnx import helper

    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 4]) for name in "xy")
    stored = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[4])
    if weights is not None:
        stored.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", weights), ("offset", "0"), ("length", "16")):
            stored.external_data.add(key=key, value=value)
    inputs = ["x"] if weights is None else ["x", "w"]
    graph = helper.make_graph([helper.make_node(op, inputs, ["y"])], "g", [x], [y], [stored] * (weights is not None))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (partial(onnx_model, "Frobnicate"), "ONNX Runtime .* cannot run it: .*Frobnicate"),
        (partial(onnx_model, "Add", "../secret.bin"), "keeps weights in another file, which is not read"),
        (partial(onnx_model, "Add", "stage-2.onnx"), "keeps weights in another file, which is not read"),
    ],
    ids=["unknown operator", "another folder", "the same folder"],
)
def test_a_file_of_another_origin(exported, made, message):
    (exported.parent / "secret.bin").write_bytes(bytes(16))
    data = made()
    (exported / "stage-1.onnx").write_bytes(data)
    change(exported, lambda manifest: manifest["sha256"].update({"stage-1.onnx": digest(data)}))
    with pytest.raises(ModelError, match=rf"stage-1\.onnx: {message}") as raised:
        load_onnx(exported)
    assert "\n" not in str(raised.value)


def test_a_truncated_file(exported):
    data = (exported / "stage-1.onnx").read_bytes()[:-100]
    (exported / "stage-1.onnx").write_bytes(data)
    change(exported, lambda manifest: manifest["sha256"].update({"stage-1.onnx": digest(data)}))
    with pytest.raises(ModelError, match=r"stage-1\.onnx: ONNX Runtime .* cannot run it"):
        load_onnx(exported)


@pytest.mark.parametrize("name", ["cuda", "tensorrt", "openvino", "coreml"])
def test_a_provider_that_is_not_installed(exported, monkeypatch, name):
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(EexError, match=rf"--provider {name}: ONNX Runtime .* as installed has cpu only") as raised:
        load_network(FrameConfig(model=exported, backend="onnx", provider=name, device="cpu"))
    assert "\n" not in str(raised.value)


def test_sessions_that_spin_leave_room_for_others(exported):
    """In a process of its own: ONNX Runtime's pool of threads, once made, is there for good."""
    program = (
        "import sys, numpy as np; from eex.models.onnx import load_onnx; x = np.ones((2, 3, 16, 16), np.float32)\n"
        "nets = [load_onnx(sys.argv[1], 1, spin=spin) for spin in (True, False)]\n"
        "assert (nets[0].stage(0, x) == nets[1].stage(0, x)).all()"
    )
    subprocess.run([sys.executable, "-c", program, exported], check=True, timeout=100)


def test_spinning_is_for_onnx_runtime(exported):
    with pytest.raises(EexError, match="--spin is for ONNX Runtime's threads; add --backend onnx"):
        load_network(FrameConfig(backend="torch", spin=True, device="cpu"))


def test_a_provider_that_does_not_exist(exported):
    with pytest.raises(EexError, match="--provider abacus: expected one of cpu, cuda"):
        load_onnx(exported, provider="abacus")


def test_a_provider_that_cannot_be_used_here(exported, monkeypatch):
    """The wheel has it, but a session does not get it: there is no GPU, for example."""
    there = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: there)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ONNX Runtime's own, of the wheel that is really installed
        with pytest.raises(EexError, match="--provider cuda: is installed, but cannot be used on this machine"):
            load_onnx(exported, provider="cuda")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"format": 2}, "has format 2, expected 1"),
        ({"fingerprint": "0" * 16}, "does not match the card"),
        ({"costs": {}}, "run eex-export again"),
        ({"extra": 1}, "not written by this version"),
    ],
)
def test_a_manifest_that_does_not_fit(exported, changed, message):
    change(exported, lambda manifest: manifest.update(changed))
    with pytest.raises(ModelError, match=message):
        load_onnx(exported)


# ---- what is exported is compared


class Habits(nn.Module):
    """A block called twice, weights that are looked at, channels that lie last, and one channel of grey."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 4, 4), nn.BatchNorm2d(8)
        self.block, self.mix, self.act = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), self.norm), nn.Linear(8, 8), nn.GELU()
        self.last, self.end, self.head = nn.Identity(), nn.Identity(), nn.Linear(8, 2)

    def forward(self, x):
        x = self.norm(self.stem(x.to(next(self.parameters()).dtype)))
        x = self.end(self.last(self.mix(self.block(self.block(x)).permute(0, 2, 3, 1))))
        return self.head(self.act(x).mean((1, 2)))


def habits():
    return cut(Habits(), ["stem", "last", "end"], "ab", input_shape=(1, 16, 16)).eval()


def test_a_network_with_habits_answers_alike(tmp_path):
    net = habits()
    nn.init.uniform_(net.stages[1].norm.running_var, 0.1, 0.3)
    save(net, tmp_path)
    export(tmp_path, tmp_path, habits())
    saved, exported = load(tmp_path, net=habits()), load_onnx(tmp_path)
    images = torch.rand(3, 1, 16, 16)
    x = images.numpy()
    for i, expected in enumerate(saved(images)):
        x = exported.stage(i, x)
        found = exported.branch(i, "pristine", x)
        np.testing.assert_allclose(found, expected.detach().numpy(), atol=1e-4, rtol=1e-4)


def test_an_export_that_answers_otherwise_is_refused(model, tmp_path, monkeypatch):
    monkeypatch.setattr("eex.models.export._Branch.forward", lambda self, x: self.layers(x))  # without the temperature
    whole = {f"stage {i + 1}": stage_file(i) for i in (0, 1)} | {"the distortion classifier": CLASSIFIER}
    whole |= {f"the branch '{e}' at exit {i + 1}": branch_file(i, e) for i in (0, 1) for e in load(model).experts}
    del whole["the branch 'gaussian_blur' at exit 1"]  # the only one with a temperature: the others are not made again
    monkeypatch.setattr(
        "eex.models.export.to_onnx",
        lambda module, x, name: (model / whole[name]).read_bytes() if name in whole else to_onnx(module, x, name),
    )
    with pytest.raises(ModelError, match=r"the exported model does not answer .* at exit 1, expert gaussian_blur, "):
        export(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_card_of_another_models_weights_is_kept(model, tmp_path):
    save(make("resnet", ["x", "y"], shares=[0.5], width=8, input_shape=(3, 16, 16)).eval(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(EexError, match=r"holds weights\.safetensors of another model; name another folder"):
        export(model, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_forms_that_differ_are_not_chosen_from(model, tmp_path, monkeypatch):
    monkeypatch.setattr("eex.models.onnx.OnnxNet.stage", lambda self, i, x: 2 * self.stages[i](x))
    with pytest.raises(ModelError, match="the ONNX form of the model does not answer as the network itself does"):
        load_network(config(model, "auto"))


def change(folder, how):
    manifest = json.loads((folder / MANIFEST).read_text())
    how(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))
