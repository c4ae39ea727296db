import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from eex.policies.core.errors import EexError
from eex.stream.frames.frames import NetworkConfig
from eex.stream.network import load_network, make_module, make_network, pick_device


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:one", "cuda:-1", "cpu:0", "auto:0", ""])
def test_names_that_are_no_device(name):
    with pytest.raises(EexError, match="expected auto, cpu, cuda, or cuda:N"):
        pick_device(name)


def test_a_gpu_by_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == "cpu"
    for name in ("cuda", "cuda:1"):
        with pytest.raises(EexError, match=f"--device {name}: this torch sees no GPU"):
            pick_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [pick_device(name) for name in ("auto", "cpu", "cuda", "cuda:1")] == ["cuda", "cpu", "cuda", "cuda:1"]
    with pytest.raises(EexError, match=r"--device cuda:2: this machine has 2, counted from cuda:0"):
        pick_device("cuda:2")


class Run:
    """Runs something when it is unpickled."""

    def __reduce__(self):
        return print, ("this was run",)


def test_a_librarys_weights_are_not_run(monkeypatch, tmp_path, capsys):
    torch.save({"weight": torch.zeros(2), "more": Run()}, tmp_path / "published.pth")

    def get_model(name, weights):
        return torch.load(tmp_path / "published.pth", weights_only=False)

    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", SimpleNamespace(get_model=get_model))
    with pytest.raises(EexError, match="torchvision cannot make it: UnpicklingError"):
        make_module("torchvision:resnet18", pretrained=True)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("math:pi", "--network math:pi: must name a function, got a float"),
        (".my:network", "--network .my:network: cannot be imported: TypeError"),
        ("raising:network", "--network raising:network: cannot be imported: ZeroDivisionError: division by zero"),
        ("leaving:network", "--network leaving:network: cannot be imported: SystemExit: bye"),
        ("math:nothing", "--network math:nothing: cannot be imported: AttributeError"),
        ("math:gcd", "--network math:gcd: must return a torch.nn.Module"),
    ],
)
def test_what_names_no_function_is_refused_in_one_line(monkeypatch, tmp_path, name, message):
    (tmp_path / "raising.py").write_text("1 / 0")
    (tmp_path / "leaving.py").write_text("import sys; sys.exit('bye')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(EexError, match=message) as caught:
        make_network(name)
    assert "\n" not in str(caught.value)


def test_a_model_whose_name_is_too_long():
    with pytest.raises(EexError, match="cannot be read: File name too long"):
        load_network(NetworkConfig(model=Path("x" * 300)))
