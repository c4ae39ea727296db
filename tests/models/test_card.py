"""Weights and card: what is saved is loaded, and what does not belong together is refused in one line."""

import hashlib
import json
from dataclasses import replace

import pytest
import torch

from eex.models.architecture import Preprocessing
from eex.models.card import CARD, SHIPPED, WEIGHTS, fingerprint, load, read_card, save
from eex.models.network import EarlyExitNet, make
from eex.models.spectrum import DistortionClassifier
from eex.policies.core.errors import EexError, ModelError

SHIPPED_FINGERPRINT = "f62f3ed2a3e49588"  # edges and workers of earlier versions know it by this
EXPERTS = ("pristine", "dark")


def small_net(confidence="top", expert="dark"):
    torch.manual_seed(0)
    net = make("resnet", "abcd", uniform=2, width=8)
    net.add_expert(expert)
    net.classifier = DistortionClassifier(net.experts)
    net.temperature[0][expert] = 2.5
    net.architecture = replace(net.architecture, confidence=confidence)
    return net.eval()


def own_net():
    plain = small_net()
    architecture = replace(plain.architecture, backbone="custom")
    return EarlyExitNet(list(plain.stages), list(plain.branches), architecture)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save(small_net(), folder, name="small")
    return folder


@pytest.mark.parametrize("half", [True, False])
def test_what_is_saved_is_loaded(tmp_path, half):
    net = small_net()
    card = save(net, tmp_path / "new" / "model", name="small", half=half, training={"epochs": 3})
    assert sorted(p.name for p in (tmp_path / "new" / "model").iterdir()) == [CARD, WEIGHTS]
    assert read_card(tmp_path / "new" / "model") == card
    assert (card.name, card.training, card.classifier) == ("small", {"epochs": 3}, EXPERTS)
    again = load(tmp_path / "new" / "model")
    assert again.architecture == net.architecture
    assert again.temperature == net.temperature
    assert again.fingerprint == net.fingerprint
    assert not again.training
    exact = [k for k, v in net.state_dict().items() if not half or v.dim() < 2 or v.dtype != torch.float32]
    for name, value in net.state_dict().items():
        expected = value if name in exact else value.half().float()
        assert torch.equal(again.state_dict()[name], expected)


@pytest.mark.parametrize("scale", [1e6, 1e-8])
def test_weights_beyond_half_precision_are_saved_as_they_are(tmp_path, scale):
    net = small_net()
    kernel = next(net.stages[1].parameters())
    kernel.data *= scale
    save(net, tmp_path)
    assert torch.equal(next(load(tmp_path).stages[1].parameters()), kernel)


def test_what_a_confidence_is_is_saved(tmp_path):
    plain, net = small_net(), small_net("entropy")
    save(plain, tmp_path / "top")
    save(net, tmp_path / "entropy")
    assert "confidence" not in json.loads((tmp_path / "top" / CARD).read_text())["architecture"]
    assert json.loads((tmp_path / "entropy" / CARD).read_text())["architecture"]["confidence"] == "entropy"
    again = load(tmp_path / "entropy")
    assert again.architecture.confidence == read_card(tmp_path / "entropy").architecture.confidence == "entropy"
    assert load(tmp_path / "top").architecture.confidence == "top"
    assert again.fingerprint == net.fingerprint != plain.fingerprint
    own = load(tmp_path / "entropy", net=small_net())  # a network of one's own is made without knowing
    assert own.architecture.confidence == "entropy"


def test_when_the_classifier_abstains_is_saved_and_changes_no_fingerprint(tmp_path):
    plain, net = small_net(), small_net()
    net.abstain_below = 0.7
    save(plain, tmp_path / "never")
    save(net, tmp_path / "unsure")
    assert "abstain_below" not in json.loads((tmp_path / "never" / CARD).read_text())
    assert [load(tmp_path / name).abstain_below for name in ("never", "unsure")] == [0.0, 0.7]
    assert net.fingerprint == plain.fingerprint


def test_the_shipped_model_is_what_it_was():
    assert load().fingerprint == SHIPPED_FINGERPRINT
    assert "confidence" not in json.loads((SHIPPED / CARD).read_text())["architecture"]


def test_fingerprints_differ_where_answers_may(tmp_path):
    nets = [small_net(), small_net("entropy"), small_net(expert="blurred"), small_net(), small_net()]
    nets[3].temperature[1]["dark"] = 3.0
    with torch.no_grad():
        next(nets[4].parameters()).add_(1.0)
    assert {net.fingerprint for net in nets} == {""}  # until they are saved
    for net in nets:
        save(net, tmp_path)
    assert len({net.fingerprint for net in nets}) == 5
    again = small_net()
    save(again, tmp_path, name="of another name")
    assert again.fingerprint == nets[0].fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "one"}, "not a model card"),
        ({"format": 2}, "has format 2, expected 1"),
        ({"colour": "red"}, "not a model card"),
        ({"sha256": "0" * 64}, "does not match its card"),
        ({"temperatures": [{"pristine": 1.0, "dark": 1.0}] * 2}, "a temperature for each of 3 exits"),
        ({"temperatures": [{"pristine": 1.0, "dark": 0.0}] * 3}, "temperatures must be positive"),
        ({"classifier": ["pristine", "fog"]}, "the classifier distinguishes"),
        ({"abstain_below": 1.5}, "abstain_below must lie in"),
        ({"architecture": {"experts": ["pristine", "unknown"]}}, "it stands for distortions that no expert is for"),
        ({"architecture": {"backbone": "vgg"}}, "describes no network"),
        ({"architecture": {"backbone": "custom"}}, "holds a user's own network"),
        ({"architecture": {"options": {"width": 16}}}, "weights do not fit the card"),
        ({"architecture": {"options": {"width": 1000}}}, "the file has room for"),
        ({"architecture": {"options": {"width": 10**9}}}, "describes no network|the file has room for"),
        ({"architecture": {"experts": ["pristine", "a.b"]}}, "expert 'a.b': no possible name"),
        ({"architecture": {"experts": ["pristine", ""]}}, "expert '': no possible name"),
        ({"architecture": {"experts": ["pristine", "forward"]}}, "expert 'forward': no possible name"),
        ({"architecture": {"experts": ["pristine", "a\0"]}}, "NUL"),
        ({"architecture": {"experts": [f"e{k}" for k in range(10_000)]}}, "the number of experts must lie in 1…100"),
        ({"architecture": {"structures": ["conv_fc"] * 100_000}}, "the number of exits must lie in"),
        ({"architecture": {"classes": [str(k) for k in range(900_000)]}}, "the file has room for"),
        ({"architecture": {"input_shape": [3, 10**9, 10**9]}}, "the number of pixels must lie in"),
        ({"architecture": {"input_shape": [3, -32, -32]}}, "the input shape must be positive"),
    ],
)
def test_a_card_that_does_not_fit(saved, tmp_path, change, message):
    card = json.loads((saved / CARD).read_text())
    change = {key: card[key] | value if isinstance(value, dict) else value for key, value in change.items()}
    (tmp_path / CARD).write_text(json.dumps(card | change))
    (tmp_path / WEIGHTS).write_bytes((saved / WEIGHTS).read_bytes())
    with pytest.raises(ModelError, match=message) as caught:
        load(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_and_missing_weights(saved, tmp_path):
    card = json.loads((saved / CARD).read_text())
    half = (saved / WEIGHTS).read_bytes()[:5000]
    (tmp_path / CARD).write_text(json.dumps(card | {"sha256": hashlib.sha256(half).hexdigest()}))
    with pytest.raises(ModelError, match="are missing"):
        load(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(half)
    with pytest.raises(ModelError, match="weights do not fit the card"):
        load(tmp_path)
    with pytest.raises(ModelError, match="no such model card"):
        load(tmp_path / "nowhere")


def test_a_network_of_ones_own_must_be_the_cards(tmp_path):
    save(own_net(), tmp_path)
    assert load(tmp_path, net=own_net()).fingerprint
    with pytest.raises(ModelError, match="the network differs from its card: backbone is resnet, the card says custom"):
        load(tmp_path, net=small_net())


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EexError, match="cannot be written"):
        save(small_net(), tmp_path / "file")


def test_a_card_that_is_nested_too_deeply(saved, tmp_path):
    text = (saved / CARD).read_text()
    (tmp_path / CARD).write_text(
        text.replace('"training": {', '"training": {"x": ' + "[" * 100_000 + "]" * 100_000 + ",", 1)
    )
    with pytest.raises(ModelError, match="not a model card of this version of eex: it is nested deeper than"):
        read_card(tmp_path)


HEADERS = {
    "terabytes": {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}},
    "overflow": {"a": {"dtype": "F32", "shape": [10**12, 10**12], "data_offsets": [0, 4]}},
    "many axes": {"a": {"dtype": "F32", "shape": [1] * 100, "data_offsets": [0, 4]}},
    "empty": {"a": {"dtype": "F32", "shape": [2**62, 0], "data_offsets": [0, 0]}},
    "a name with NUL": {"a\0b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
}


@pytest.mark.parametrize("name", HEADERS)
def test_weights_with_an_absurd_header(saved, tmp_path, name):
    header = json.dumps(HEADERS[name]).encode()
    weights = len(header).to_bytes(8, "little") + header + bytes(4)
    card = json.loads((saved / CARD).read_text()) | {"sha256": hashlib.sha256(weights).hexdigest()}
    (tmp_path / CARD).write_text(json.dumps(card))
    (tmp_path / WEIGHTS).write_bytes(weights)
    with pytest.raises(ModelError, match="weights do not fit the card"):
        load(tmp_path)
    with pytest.raises(ModelError, match="weights do not fit the card"):
        load(tmp_path, net=small_net())


@pytest.mark.parametrize("name", ["a.b", "", "forward", "a/b"])
def test_a_name_that_no_expert_can_have(name):
    with pytest.raises(ValueError, match="no possible name"):
        small_net().add_expert(name)


def test_preprocessing_is_part_of_the_card_and_of_what_a_model_is(tmp_path):
    net = small_net()
    before = save(net, tmp_path / "usual")
    assert "preprocessing" not in json.loads((tmp_path / "usual" / CARD).read_text())["architecture"]
    net.architecture = replace(net.architecture, preprocessing=Preprocessing(0.875, "bicubic"))
    save(net, tmp_path / "other")
    again = load(tmp_path / "other")
    assert again.architecture.preprocessing == Preprocessing(0.875, "bicubic")
    assert again.fingerprint != load(tmp_path / "usual").fingerprint == fingerprint(before)


@pytest.mark.parametrize("wrong", [{"crop": 0}, {"crop": 1.5}, {"interpolation": "sinc"}])
def test_a_preprocessing_that_is_none_is_refused(tmp_path, wrong):
    save(small_net(), tmp_path)
    card = json.loads((tmp_path / CARD).read_text())
    card["architecture"]["preprocessing"] = wrong
    (tmp_path / CARD).write_text(json.dumps(card))
    with pytest.raises(ModelError, match=f"not a model card of this version of eex: .*{next(iter(wrong))}"):
        read_card(tmp_path)
