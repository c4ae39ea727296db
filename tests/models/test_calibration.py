"""Temperatures that are known beforehand."""

import math

import pytest
import torch

from eex.models.calibration import calibrate, fit_temperature
from eex.models.network import make
from eex.policies.core.errors import EexError


def drawn(count: int = 20_000, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels drawn from their softmax: their temperature is 1."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(count, classes, generator=generator)
    return logits, torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]


@pytest.mark.parametrize("scale", [0.2, 1.0, 3.0, 10.0])
def test_temperature_of_scaled_logits(scale):
    logits, labels = drawn()
    assert fit_temperature(logits * scale, labels) == pytest.approx(scale, rel=0.03)


def test_no_other_temperature_is_more_likely():
    logits, labels = drawn(500)

    def nll(temperature):
        return float(torch.nn.functional.cross_entropy(logits.double() * 4 / temperature, labels))

    found = fit_temperature(logits * 4, labels)
    assert all(nll(found) <= nll(found * factor) for factor in (0.5, 0.99, 1.01, 2))


def test_temperature_by_hand():
    # 3 of 4 right at a margin of 5: confidence 3/4 needs 5 / T = ln 3
    logits = torch.tensor([[5.0, 0.0]]).repeat(4, 1)
    assert fit_temperature(logits, torch.tensor([0, 0, 0, 1])) == pytest.approx(5 / math.log(3))


def test_temperature_is_clipped():
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert fit_temperature(logits, torch.tensor([0, 1])) == pytest.approx(0.05)
    assert fit_temperature(logits * 50, torch.tensor([1, 0])) == pytest.approx(20)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), "expected logits"),
        (torch.zeros(4, 3), torch.zeros(3, dtype=torch.int64), "expected logits"),
        (torch.zeros(2, 3), torch.tensor([0, 3]), "labels must lie in 0…2"),
        (torch.full((2, 3), torch.nan), torch.tensor([0, 1]), "finite"),
    ],
)
def test_temperature_errors(logits, labels, message):
    with pytest.raises(EexError, match=message):
        fit_temperature(logits, labels)


def test_calibrate_sets_the_temperatures_of_one_expert():
    torch.manual_seed(0)
    net = make("resnet", "abc", uniform=1, width=8, structure="pool_fc", input_shape=(3, 16, 16))
    net.add_expert("dark")
    with torch.no_grad():  # far too sure of itself
        for branches in net.branches:
            branches["dark"][1].weight.mul_(100)
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (200, 3, 16, 16), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 3, (200,), generator=generator)
    seen = []

    def distort(x, generator):
        seen.append(len(x))
        return x / 2

    errors = calibrate(net, images, labels, "dark", distort)
    assert seen == [200]
    assert len(errors) == 2
    assert all(after < before for before, after in errors)
    assert all(t["dark"] > 2 and t["pristine"] == 1 for t in net.temperature)
    with pytest.raises(EexError, match="no expert 'fog', expected one of pristine, dark"):
        calibrate(net, images, labels, "fog")
    with pytest.raises(EexError, match="at least one image"):
        calibrate(net, images[:0], labels[:0], "dark")
