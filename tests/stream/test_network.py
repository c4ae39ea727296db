import pytest
import torch

from eex.policies.core.errors import EexError
from eex.stream.network import pick_device


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
