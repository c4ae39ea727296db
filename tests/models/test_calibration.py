"""Temperatures that are known beforehand, and calibration errors worked by hand."""

import math

import pytest
import torch

from eex.models.calibration import calibrate, expected_calibration_error, fit_temperature, reliability
from eex.models.network import make
from eex.policies.errors import EexError


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


def test_calibration_error_by_hand():
    confidence = torch.tensor([0.95, 0.85, 0.55, 0.5, 0.1])
    correct = torch.tensor([True, False, True, False, False])
    # bins of 0.5: (0, 0.5] holds 0.5 and 0.1: mean 0.3, accuracy 0; (0.5, 1]: mean 2.35 / 3, accuracy 2 / 3
    expected = 2 / 5 * 0.3 + 3 / 5 * abs(2.35 / 3 - 2 / 3)
    assert expected_calibration_error(confidence, correct, bins=2) == pytest.approx(expected)
    assert expected_calibration_error(confidence, correct, bins=1) == pytest.approx(abs(2.95 / 5 - 2 / 5))
    assert expected_calibration_error(torch.ones(3), torch.ones(3)) == 0
    assert expected_calibration_error(torch.ones(3), torch.zeros(3)) == 1


def test_reliability_bins():
    found = reliability(torch.tensor([0.0, 0.25, 0.3, 1.0]), torch.tensor([1, 0, 1, 1]), bins=4)
    assert found.edges.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert found.counts.tolist() == [2, 1, 0, 1]
    assert found.confidence[[0, 1, 3]].tolist() == pytest.approx([0.125, 0.3, 1])
    assert found.accuracy[[0, 1, 3]].tolist() == [0.5, 1, 1]
    assert found.accuracy[2].isnan()
    assert found.confidence[2].isnan()


@pytest.mark.parametrize(
    ("confidence", "correct", "bins", "message"),
    [
        (torch.tensor([0.5, 1.5]), torch.ones(2), 15, r"\[0, 1\]"),
        (torch.tensor([0.5]), torch.ones(2), 15, "expected a confidence"),
        (torch.zeros(0), torch.zeros(0), 15, "expected a confidence"),
        (torch.tensor([0.5]), torch.ones(1), 0, "bins must be at least 1"),
    ],
)
def test_reliability_errors(confidence, correct, bins, message):
    with pytest.raises(EexError, match=message):
        reliability(confidence, correct, bins)


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
