"""The network: what its stages cost, what an exit answers and how confident it is, where branches stand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from eex.models.network import Architecture, EarlyExitNet, assemble, make, remake
from eex.models.resnet import resnet


def test_costs_by_hand():
    net = make("alexnet", "abcd", after=[0, 4], structure="pool_fc")
    costs = net.costs()
    first = 32 * 32 * 32 * 75
    middle = 16 * 16 * 64 * 25 * 32 + 64 * 9 * (64 * 96 + 96 * 96 + 96 * 64)
    assert costs.stage_macs == (first, middle, 1024 * 256 + 256 * 128)
    assert costs.branch_macs == (32 * 4, 64 * 4, 128 * 4)
    assert costs.feature_bytes == (4 * 32 * 256, 4 * 64 * 16, 4 * 128)
    assert costs.of_exit(1) == first + middle + 96 * 4
    assert costs.whole == first + middle + 1024 * 256 + 256 * 128 + 128 * 4


def test_costs_leave_the_modes_alone():
    net = make("resnet", "ab", uniform=1, width=8).eval()
    net.branches[0].train()
    net.costs()
    assert not net.stages[0].training
    assert all(m.training for m in net.branches[0].modules())


def test_forward_is_stage_then_branch_and_temperature_divides():
    net = make("resnet", "abc", uniform=2, width=8).eval()
    x = torch.rand(2, 3, 32, 32)
    outputs = net(x)
    features = net.stage(1, net.stage(0, x))
    assert torch.equal(outputs[1], net.logits(1, "pristine", features))
    net.temperature[1]["pristine"] = 2.0
    assert torch.equal(net.branch(1, "pristine", features), outputs[1] / 2)


def test_experts_start_as_copies():
    net = make("resnet", "abc", uniform=1, width=8).eval()
    net.add_expert("gaussian_blur")
    assert net.experts == net.architecture.experts == ("pristine", "gaussian_blur")
    x = torch.rand(2, 3, 32, 32)
    assert all(torch.equal(a, b) for a, b in zip(net(x), net(x, "gaussian_blur"), strict=True))
    assert not {id(p) for b in net.branches for p in b["pristine"].parameters()} & {
        id(p) for b in net.branches for p in b["gaussian_blur"].parameters()
    }
    with pytest.raises(ValueError, match="has an expert 'gaussian_blur' already"):
        net.add_expert("gaussian_blur")
    again = remake(net.architecture)
    assert again.state_dict().keys() == net.state_dict().keys()


def test_placement_arguments():
    with pytest.raises(ValueError, match="unknown backbone 'vgg', expected one of resnet"):
        make("vgg", "ab", uniform=1)
    with pytest.raises(ValueError, match="place the side branches by one of"):
        make("resnet", "ab", uniform=1, after=[0])
    with pytest.raises(ValueError, match=r"rising blocks among 0…5, got \[2, 1\]"):
        make("resnet", "ab", after=[2, 1])
    with pytest.raises(ValueError, match=r"rising blocks among 0…5, got \[6\]"):
        make("resnet", "ab", after=[6])
    with pytest.raises(ValueError, match="2 exits need as many structures"):
        assemble(resnet(8), Architecture("resnet", ("a", "b"), (1,), ("pool_fc",)))
    with pytest.raises(ValueError, match=r"partition point must lie in 1…2, got 3"):
        make("resnet", "ab", after=[1], partition=3)


def small_net(confidence="top"):
    torch.manual_seed(0)
    net = make("resnet", "abcd", uniform=2, width=8).eval()
    return EarlyExitNet(list(net.stages), list(net.branches), replace(net.architecture, confidence=confidence)).eval()


@pytest.mark.parametrize(
    ("confidence", "expected"), [("top", [0.25, 1.0, 0.5, 0.5]), ("entropy", [0.0, 1.0, 0.5, 0.25])]
)
def test_confidence_by_hand(confidence, expected):
    p = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.0, 0.0, 1.0, 0.0], [0.5, 0.5, 0.0, 0.0], [0.25, 0.5, 0.25, 0.0]])
    found, prediction = small_net(confidence).confident(p.double().log())  # 0 bits … 2 bits of 2
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert prediction.tolist()[1] == 2
    assert prediction.tolist()[3] == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_entropy_lies_in_0_to_1_whatever_the_logits(dtype):
    net = small_net("entropy")
    for scale in (0.0, 1e-4, 1.0, 100.0, 1e4):
        found, _ = net.confident(scale * torch.randn(500, 7).to(dtype))
        assert found.dtype == torch.float32
        assert found.min() >= 0
        assert found.max() <= 1
    assert net.confident(torch.zeros(1, 1))[0].tolist() == [1.0]  # one class alone is certain


def test_an_unknown_confidence():
    with pytest.raises(ValueError, match="confidence must be 'top' or 'entropy', got 'margin'"):
        small_net("margin")
