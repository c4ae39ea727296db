"""Branches on kept features: the backbone stays as it is, and they learn what they would learn without keeping."""

import pytest
import torch
from tiny_training import noise, same, tiny_data, tiny_network, tiny_recipe, weights

from eex.models import frozen
from eex.models.frozen import fit_frozen
from eex.models.network import PRISTINE, make
from eex.models.training import estimate_norms, evaluate
from eex.policies.core.errors import EexError


def test_branches_learn_and_stages_stay():
    net, (images, labels) = tiny_network(), tiny_data()
    estimate_norms(net, images)  # so that it lets anything through
    before = weights(net)
    history = fit_frozen(net, images, labels, tiny_recipe(epochs=30, lr=0.3), validation=tiny_data(60, seed=1))
    after = weights(net)
    assert same(before, after, "stages.")
    assert not any(same(before, after, f"branches.{i}.") for i in range(net.exits))
    assert not any(module.training for module in net.modules())
    score = evaluate(net, *tiny_data(60, seed=1))
    assert min(score.accuracy) > 0.8
    last = [row for row in history if "accuracy" in row]
    assert [row["phase"] for row in last] == ["exit 1", "exit 2", "exit 3"]
    assert [row["accuracy"][0] for row in last] == pytest.approx(list(score.accuracy), abs=0.05)  # kept in float16
    assert len(history) == 30 * net.exits


def test_the_backbone_runs_once_over_each_view():
    net, (images, labels) = tiny_network(), tiny_data()
    seen = []
    net.stages[0].register_forward_hook(lambda module, given, out: seen.append(len(out)))
    fit_frozen(net, images, labels, tiny_recipe(epochs=5))
    assert sum(seen) == frozen.VIEWS * len(images)


def test_an_expert_learns_from_distorted_images_and_others_stay():
    net, (images, labels) = tiny_network("noise"), tiny_data()
    before = weights(net)
    fit_frozen(net, images, labels, tiny_recipe(), expert="noise", distort=noise)
    after = weights(net)
    assert not same(before, after)
    assert all(torch.equal(v, after[k]) for k, v in before.items() if ".noise." not in k)


def test_branches_learn_mixtures_of_two_images():
    net = tiny_network()
    black_and_white = torch.tensor([0, 255], dtype=torch.uint8).repeat(48)
    images = black_and_white[:, None, None, None].expand(96, 3, 8, 8)
    seen = []
    net.branches[0][PRISTINE].register_forward_pre_hook(lambda branch, given: seen.append(given[0].detach().cpu()))
    fit_frozen(net, images, black_and_white.long() // 255, tiny_recipe(epochs=2, flip=False, shift=0))
    x = torch.cat(seen)
    dark, light = (net.stage(0, torch.full((1, 3, 8, 8), level)).detach() for level in (0.0, 1.0))
    share = ((x - dark) * (light - dark)).sum((1, 2, 3)) / ((light - dark) ** 2).sum()
    torch.testing.assert_close(x, dark + share[:, None, None, None] * (light - dark), atol=0.02, rtol=0.01)
    assert ((share > 0.05) & (share < 0.95)).any()
    assert share.min() > -0.01
    assert share.max() < 1.01


def test_the_same_seed_gives_the_same_branches():
    found = []
    for _ in range(2):
        net = tiny_network()
        fit_frozen(net, *tiny_data(), tiny_recipe(), distort=noise)
        found.append(weights(net))
    assert same(*found)


def test_what_does_not_fit_or_diverges_is_said(monkeypatch):
    net, data = tiny_network(), tiny_data()
    with pytest.raises(EexError, match=r"the loss at exit 1 is (nan|inf) in epoch 1: lower the learning rate"):
        fit_frozen(net, *data, tiny_recipe(lr=1e30))
    monkeypatch.setattr(frozen, "MOST_BYTES", 100)
    with pytest.raises(EexError, match="the features of 96 images at exit 1 take"):
        fit_frozen(net, *data, tiny_recipe())


def test_a_norm_of_one_value_per_channel_asks_for_a_larger_batch():
    net, (images, labels) = make("resnet", "abc", uniform=1, width=8, input_shape=(3, 8, 8)), tiny_data(4)
    with pytest.raises(EexError, match="one value per channel there: expected --batch 2 or more"):
        fit_frozen(net, images, labels, tiny_recipe(batch=1))
