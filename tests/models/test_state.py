"""Published weights: tensors alone, of what training scripts write, and one clear line for what is something else."""

import os
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from eex.models.network import load_torchvision_mobilenet, make
from eex.models.state import read_state
from eex.policies.core.errors import EexError


@pytest.fixture
def weights():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).state_dict()


def under(prefix, weights):
    return {prefix + name: value for name, value in weights.items()}


FORMS = {
    "plain": lambda w: w,
    "DataParallel": lambda w: under("module.", w),
    "compiled": lambda w: under("_orig_mod.module.", w),
    "checkpoint": lambda w: {"epoch": 3, "state_dict": under("module.", w), "optimizer": {"lr": 0.1}},
    "model": lambda w: {"model": w, "args": None},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("old", [False, True])
def test_weights_that_torch_saved(tmp_path, weights, form, old):
    path = tmp_path / "net.pth"
    torch.save(FORMS[form](weights), path, _use_new_zipfile_serialization=not old)
    found = read_state(path)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)


@pytest.mark.parametrize("name", [b"w.safetensors", b"caf\xe9.safetensors"])
def test_weights_in_safetensors(tmp_path, weights, name):
    path = tmp_path / os.fsdecode(name)
    save_file(under("module.", weights), path)
    assert read_state(path).keys() == weights.keys()


class Bomb:
    """Unpickled, it makes the file `path`."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_nothing_in_a_file_is_run(tmp_path):
    for old in (False, True):
        torch.save({"weight": torch.ones(1), "more": Bomb(tmp_path / "mark")}, tmp_path / "net.pth",
                   _use_new_zipfile_serialization=not old)  # fmt: skip
        with pytest.raises(EexError, match="holds more than tensors"):
            read_state(tmp_path / "net.pth")
    (tmp_path / "net.pth").write_bytes(pickle.dumps(Bomb(tmp_path / "mark")))
    with pytest.raises(EexError, match=r"net\.pth"):
        read_state(tmp_path / "net.pth")
    assert not (tmp_path / "mark").exists()


def test_what_is_no_state_dict(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    torch.save(torch.ones(3), tmp_path / "tensor.pth")
    torch.save({"epoch": 3}, tmp_path / "numbers.pth")
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "damaged.pth").write_bytes(b"PK\x03\x04 a zip, nearly")
    for name, message in {
        "module": r"whole pickled module.*torch\.save\(net\.state_dict\(\), 'net\.pth'\)",
        "tensor": "holds a Tensor, not a state dict",
        "numbers": "holds no weights, but epoch",
        "empty": "neither a safetensors file nor",
        "damaged": "neither a safetensors file nor",
        "missing": "cannot be read: No such file",
    }.items():
        with pytest.raises(EexError, match=message) as caught:
            read_state(tmp_path / f"{name}.pth")
        assert "\n" not in str(caught.value)


def test_a_published_state_dict_of_a_wrapped_network_is_loaded():
    torch.manual_seed(0)
    net, other = (make("mobilenet_v2", "ab", uniform=1, structure="pool_fc", small_images=True) for _ in "ab")
    blocks = [block for stage in net.stages for block in stage.children()]
    state = {f"module.features.{i}.{k}": v for i, b in enumerate(blocks) for k, v in b.state_dict().items()}
    load_torchvision_mobilenet(other, state)
    assert torch.equal(other.stages[0].state_dict()["0.0.weight"], net.stages[0].state_dict()["0.0.weight"])
