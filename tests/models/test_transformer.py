"""The transformer over token ids: a network for texts among those for images."""

import numpy as np
import pytest
import torch
from exporting import export

from eex.models.card import load, read_card, save
from eex.models.fast import optimised
from eex.models.network import EarlyExitNet, make
from eex.models.onnx import load_onnx
from eex.models.training import Recipe, all_logits, fit
from eex.policies.core.errors import EexError, ModelError
from eex.stream.groups import every_exit


def tiny(**options):
    torch.manual_seed(0)
    options = {"after": (0,), "structure": "pool_fc", "input_shape": (6,), "vocabulary": 20, "width": 8} | options
    return make("transformer", ["a", "b", "c"], blocks=2, heads=2, **options)


def ids(count=5, seed=0):
    return torch.randint(20, (count, 6), generator=torch.Generator().manual_seed(seed), dtype=torch.int32)


def test_ids_answer_alike_whatever_their_type_and_strange_ones_end_nothing():
    net = tiny().eval()
    expected = torch.stack(net(ids()))
    assert expected.shape == (2, 5, 3)
    torch.testing.assert_close(torch.stack(net(ids().float())), expected)
    strange = torch.tensor([[-5.0, 1e9, torch.nan, torch.inf, 3.0, 19.4]])
    nearest = torch.stack(net(strange))
    assert bool(nearest.isfinite().all())


def test_multiply_adds_are_counted():
    costs = tiny().costs()
    n, c = 7, 8  # tokens with the class token, numbers of each
    block = n * c * (3 * c + c + 4 * c) + 2 * n * n * c
    assert costs.stage_macs == (block,) * 2
    assert costs.feature_bytes == (4 * n * c,) * 2


@pytest.mark.parametrize(
    ("shape", "options", "said"),
    [
        ((6,), {"width": 9}, "heads that divide the width"),
        ((6,), {"vocabulary": 0}, "expected positive numbers"),
        ((6, 6), {}, "transformer takes texts"),
    ],
)
def test_what_is_no_transformer(shape, options, said):
    with pytest.raises(ValueError, match=said):
        tiny(input_shape=shape, **options)


def test_texts_have_no_mean():
    net = tiny()
    assert (net.architecture.mean, net.architecture.std, net.architecture.takes_images) == ((), (), False)
    with pytest.raises(ValueError, match="mean and std must name 0 channels"):
        tiny(mean=(0.5,), std=(1.0,))
    assert isinstance(net, EarlyExitNet)


def test_saved_optimised_and_exported_it_answers_the_same(tmp_path):
    net = tiny().eval()
    net.temperature = [{"pristine": 1.5}, {"pristine": 0.5}]
    save(net, tmp_path / "model", half=False)
    loaded = load(tmp_path / "model")
    assert loaded.fingerprint == net.fingerprint
    export(tmp_path / "model", tmp_path / "onnx")
    expected = every_exit(net, ids())
    for form in (loaded, optimised(loaded), load_onnx(tmp_path / "onnx", threads=1)):
        found = every_exit(form, form.array(ids().numpy()))
        np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
        np.testing.assert_array_equal(found[1], expected[1])
    card = tmp_path / "model" / "card.json"
    card.write_text(
        card.read_text().replace('"input_shape": [6]', '"input_shape": [6, 6]').replace("[\n   6\n  ]", "[6, 6]")
    )
    with pytest.raises(ModelError, match="input shape must be positive"):
        read_card(tmp_path / "model")


def test_it_is_trained_as_networks_for_images_are():
    net, data = tiny(), ids(600, seed=1)
    labels = (data[:, 0] % 3).long()
    history = fit(net, data, labels, Recipe(epochs=8, optimizer="adam", lr=0.02, batch=60), validation=(data, labels))
    assert min(history[-1]["accuracy"]) > 0.9
    assert all_logits(net, data).shape == (2, 600, 3)
    with pytest.raises(EexError, match=r"expected integer token ids of shape \(N, 6\), got torch.float32"):
        fit(net, data.float(), labels, Recipe())
