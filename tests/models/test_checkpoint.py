"""A killed training resumes exactly where it was, and only from a checkpoint of its own."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_training import SHAPE, Killed, killer, noise, same, tiny_data, tiny_network, tiny_recipe, weights
from torch import nn

from eex.models.card import save
from eex.models.checkpoint import Checkpoint
from eex.models.cutting import cut
from eex.models.network import make
from eex.models.training import Recipe, fit
from eex.policies.core.errors import EexError


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize(
    ("method", "phase", "epoch"),
    [("joint", "joint", 1), ("branch-wise", "exit 2", 2), ("two-stage", "branches", 0), ("expert", "expert", 1)],
)
def test_killed_and_resumed_equals_uninterrupted(tmp_path, method, phase, epoch, optimizer):
    images, labels = tiny_data()
    expert = "noisy" if method == "expert" else "pristine"
    arguments = {"expert": expert, "distort": noise, "validation": tiny_data(30, seed=1)}
    plan = tiny_recipe(method, optimizer=optimizer, patience=2)
    whole, checkpoint = tiny_network("noisy"), tmp_path / "run" / "half.safetensors"
    expected = fit(whole, images, labels, plan, **arguments)
    with pytest.raises(Killed):
        fit(
            tiny_network("noisy"), images, labels, plan, checkpoint=checkpoint, report=killer(phase, epoch), **arguments
        )
    resumed = tiny_network("noisy")
    history = fit(resumed, images, labels, plan, checkpoint=checkpoint, **arguments)
    assert same(weights(whole), weights(resumed))
    assert [{k: v for k, v in row.items() if k != "seconds"} for row in history] == [
        {k: v for k, v in row.items() if k != "seconds"} for row in expected
    ]
    finished = tiny_network("noisy")  # a finished run is not trained again
    assert len(fit(finished, images, labels, plan, checkpoint=checkpoint, **arguments)) == len(expected)
    assert same(weights(whole), weights(finished))
    assert [f.name for f in checkpoint.parent.iterdir()] == ["half.safetensors"]


def test_a_resumed_training_drops_out_what_an_unbroken_one_does(tmp_path):
    def forgetful():
        net = tiny_network()
        net.branches[0]["pristine"] = nn.Sequential(nn.Dropout(0.5), net.branches[0]["pristine"])
        return net

    (images, labels), plan = tiny_data(), tiny_recipe(epochs=3)
    whole, again, resumed = forgetful(), forgetful(), forgetful()
    fit(whole, images, labels, plan)
    torch.rand(7)  # whatever else is drawn
    fit(again, images, labels, plan)
    assert same(weights(whole), weights(again))
    checkpoint = tmp_path / "half.safetensors"
    with pytest.raises(Killed):
        fit(forgetful(), images, labels, plan, checkpoint=checkpoint, report=killer("joint", 1))
    before = torch.get_rng_state()
    fit(resumed, images, labels, plan, checkpoint=checkpoint)
    assert same(weights(whole), weights(resumed))
    assert torch.equal(torch.get_rng_state(), before)  # of whoever calls


def test_a_checkpoint_of_other_settings_gives_one_clear_line(tmp_path):
    path, (images, labels) = tmp_path / "run.safetensors", tiny_data()
    fit(tiny_network(), images, labels, tiny_recipe(epochs=1), checkpoint=path)
    cases = [
        (tiny_network(), images, tiny_recipe(epochs=2), "settings"),
        (tiny_network(), images[:90], tiny_recipe(epochs=1), "images or labels"),
        (tiny_network(), images.flip(0), tiny_recipe(epochs=1), "images or labels"),
        (tiny_network("noisy"), images, tiny_recipe(epochs=1), "settings"),
    ]
    for net, some, plan, differing in cases:
        with pytest.raises(EexError, match=f"belongs to a run with other {differing};") as caught:
            fit(net, some, labels[: len(some)], plan, checkpoint=path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, 100, -10])
def test_a_damaged_checkpoint_gives_one_clear_line(tmp_path, keep):
    path, (images, labels) = tmp_path / "run.safetensors", tiny_data()
    fit(tiny_network(), images, labels, tiny_recipe(epochs=1), checkpoint=path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(EexError, match="not a training checkpoint") as caught:
        fit(tiny_network(), images, labels, tiny_recipe(epochs=1), checkpoint=path)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_network_of_the_same_name_gives_one_clear_line(tmp_path):
    path, (images, labels) = tmp_path / "run.safetensors", tiny_data()
    fit(tiny_network(), images, labels, tiny_recipe(epochs=1), checkpoint=path)
    other = make("resnet", "abc", after=[0, 2], width=16, structure="pool_fc", input_shape=SHAPE)
    other.architecture = tiny_network().architecture  # as two modules of a user's own may read
    with pytest.raises(EexError, match="belongs to another network") as caught:
        fit(other, images, labels, tiny_recipe(epochs=1), checkpoint=path)
    assert "\n" not in str(caught.value)


def test_checkpoint_is_safetensors(tmp_path: Path):
    from safetensors import safe_open

    path, (images, labels) = tmp_path / "run.safetensors", tiny_data()
    net = tiny_network()
    fit(net, images, labels, tiny_recipe(epochs=1), checkpoint=path)
    with safe_open(path, framework="pt") as file:
        saved = {k.removeprefix("net."): file.get_tensor(k) for k in file.keys() if k.startswith("net.")}  # noqa: SIM118
    assert same(weights(net), saved)


def test_stages_that_share_a_module_go_on_and_are_saved(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.block, self.gate = (
                nn.Conv2d(3, 4, 3, padding=1),
                nn.Conv2d(4, 4, 3, padding=1),
                nn.Identity(),
            )
            self.end, self.head = nn.ReLU(), nn.Linear(4, 3)

        def forward(self, x):
            x = self.gate(self.block(self.stem(x)))
            return self.head(self.end(self.block(x)).mean((2, 3)))

    def tied():
        torch.manual_seed(0)
        return cut(Tied(), ["gate", "end"], ["a", "b", "c"], input_shape=(3, 8, 8), structure="pool_fc")

    images = torch.randint(0, 256, (96, 3, 8, 8), dtype=torch.uint8)
    labels = torch.arange(96) % 3
    plan = Recipe(epochs=3, batch=32, lr=0.05)

    def kill(progress):
        if progress.epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(tied(), images, labels, plan, checkpoint=tmp_path / "state", report=kill)
    net = tied()
    history = fit(net, images, labels, plan, checkpoint=tmp_path / "state")
    assert len(history) == 3
    save(net, tmp_path / "model", name="tied", half=False)
    saved = load_file(tmp_path / "model" / "weights.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("state", "tensors"),
    [
        ("[" * 100_000 + "]" * 100_000, {}),
        ('{"run": {}}', {}),
        ('{"run": {}, "phase": -1, "epoch": 0, "best": 0, "since_best": 0, "history": []}', {}),
        ('{"run": [], "phase": 0, "epoch": 0, "best": 0, "since_best": 0, "history": []}', {}),
        ('{"run": {}, "phase": 0, "epoch": 0, "best": 0, "since_best": 0, "history": {}}', {}),
        (
            '{"run": {}, "phase": 0, "epoch": 0, "best": Infinity, "since_best": 0, "history": []}',
            {"optimizer.a.b.c": 1},
        ),
    ],
)
def test_a_checkpoint_of_impossible_contents_gives_one_clear_line(tmp_path, state, tensors):
    path, net = tmp_path / "run.safetensors", tiny_network()
    saved = {f"net.{k}": v.clone() for k, v in net.state_dict().items()}
    save_file(saved | {k: torch.zeros(v) for k, v in tensors.items()}, path, metadata={"state": state})
    with pytest.raises(EexError, match=r"not a training checkpoint|an optimizer's state") as caught:
        Checkpoint(net, {}, 0, path)
    assert "\n" not in str(caught.value)
