"""The learned exit controller and the gates that place side branches."""

import math

import pytest
import torch

from eex.experiments.papers.controller import exit_features, fit_controller
from eex.experiments.papers.gating import Gates, fit_gates, pooled_features, stop_shares
from eex.models.network import make
from eex.policies.core.errors import EexError


def test_features_by_hand():
    logits = torch.log(torch.tensor([[[0.2, 0.7, 0.1]], [[1.0, 1.0, 1.0]]]))  # two exits, one image
    found = exit_features(logits)
    assert found.shape == (2, 1, 3 + 1 + 1 + 2)
    entropy = -(0.7 * math.log(0.7) + 0.2 * math.log(0.2) + 0.1 * math.log(0.1)) / math.log(3)
    assert found[0, 0].tolist() == pytest.approx([0.7, 0.2, 0.1, entropy, 0.5, 1, 0], abs=1e-6)
    assert found[1, 0, 3:].tolist() == pytest.approx([1, 0, 0, 1], abs=1e-6)


@pytest.mark.parametrize("hidden", [0, 8])
def test_controller_learns_which_exit_to_trust(hidden):
    """Both exits are equally sure of class 0; the first is right of half the images, the second of all."""
    sure = torch.tensor([2.0, 0.0]).expand(200, 2)
    labels = torch.arange(200) % 2
    second = torch.where(labels[:, None] == 0, sure, sure.flip(1))
    logits = torch.stack([sure, second])
    controller = fit_controller(logits, labels, hidden=hidden)
    said = controller(logits)
    assert said[0].mean() == pytest.approx(0.5, abs=0.1)
    assert said[1].min() > 0.85
    assert controller.macs == (6 if not hidden else 6 * 8 + 8)


def test_controller_wants_a_label_an_image():
    with pytest.raises(EexError, match="expected logits"):
        fit_controller(torch.zeros(2, 3, 4), torch.zeros(2, dtype=torch.int64))


def test_shares_add_up():
    shares = stop_shares(torch.rand(5, 3))
    assert shares.shape == (5, 4)
    assert torch.allclose(shares.sum(dim=1), torch.ones(5))


def test_gates_open_where_stopping_pays():
    """Images of one kind lose nothing by stopping at the first place; the others do anywhere but at the end."""
    easy = torch.arange(400) % 2 == 0
    feature = torch.where(easy, 1.0, -1.0)[:, None]
    losses = torch.stack([torch.where(easy, 0.0, 3.0), torch.where(easy, 0.0, 3.0), torch.zeros(400)], dim=1)
    gates = fit_gates([feature, feature], losses, torch.tensor([0.2, 0.6, 1.0]), price=0.5)
    shares = stop_shares(gates([feature, feature]))
    assert shares[easy, 0].min() > 0.9
    assert shares[~easy, 2].min() > 0.9


def test_untrained_gates_are_half_open():
    gates = Gates([3, 5])
    assert gates([torch.randn(2, 3), torch.randn(2, 5)]).tolist() == [[0.5, 0.5]] * 2


def test_pooled_features_are_means_of_the_maps():
    net = make("resnet", ["a", "b"], after=[0, 2], structure="pool_fc", width=8).eval()
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    found = pooled_features(net, images, batch=2)
    assert [tuple(x.shape) for x in found] == [(3, 4), (3, 8)]
    with torch.no_grad():
        first = net.stage(0, images.float() / 255)
    assert torch.allclose(found[0], first.mean(dim=(2, 3)), atol=1e-5)
