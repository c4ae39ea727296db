"""Every training method learns, leaves frozen parts alone and repeats itself."""

import math

import pytest
import torch
from tiny_training import SHAPE, Killed, killer, noise, same, tiny_data, tiny_network, tiny_recipe, weights
from torch import Tensor

from eex.models.network import make
from eex.models.training import Progress, Recipe, all_logits, estimate_norms, evaluate, fit, phases
from eex.policies.core.errors import EexError

METHODS = ["joint", "branch-wise", "two-stage", "distillation", "hybrid"]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_lowers_the_loss_of_every_exit(method, optimizer):
    net, (images, labels) = tiny_network(), tiny_data()
    before = evaluate(net, images, labels)
    lr = 0.05 if optimizer == "sgd" else 0.01
    history = fit(net, images, labels, tiny_recipe(method, epochs=6, optimizer=optimizer, lr=lr, schedule="cosine"))
    after = evaluate(net, images, labels)
    assert all(a < b for a, b in zip(after.loss, before.loss, strict=True))
    assert [row["phase"] for row in history] == [p.name for p in phases(method, 3) for _ in range(6)]
    assert not net.training
    assert all(p.requires_grad for p in net.parameters())


def test_stages_may_learn_at_a_rate_of_their_own():
    def moved(**changes) -> tuple[float, float]:
        net, (images, labels) = tiny_network(), tiny_data()
        before = weights(net)
        fit(net, images, labels, tiny_recipe(epochs=1, batch=96, momentum=0.0, weight_decay=0.0, flip=False, **changes))
        after = weights(net)
        far = {part: 0.0 for part in ("stages", "branches")}
        for name in after:
            if name.endswith(".weight"):
                far[name.split(".")[0]] += float((after[name] - before[name]).norm() ** 2)
        return far["stages"] ** 0.5, far["branches"] ** 0.5

    stages, branches = moved()
    slow, same = moved(stage_lr=0.005)
    assert slow == pytest.approx(stages / 10, rel=1e-3)  # one step of plain SGD
    assert same == pytest.approx(branches, rel=1e-5)


def test_an_expert_learns_and_all_else_stays():
    net, (images, labels) = tiny_network("noisy"), tiny_data()
    before, score = weights(net), evaluate(net, images, labels, expert="noisy", distort=noise)
    fit(net, images, labels, tiny_recipe("expert", distorted_share=1.0), expert="noisy", distort=noise)
    after = weights(net)
    changed = {k for k in after if not torch.equal(after[k], before[k])}
    assert changed
    assert all(k.startswith("branches.") and ".noisy." in k for k in changed)
    again = evaluate(net, images, labels, expert="noisy", distort=noise)
    assert all(a < b for a, b in zip(again.loss, score.loss, strict=True))


@pytest.mark.parametrize(
    ("method", "second", "kept"),
    [
        ("two-stage", "branches", ["stages.", "branches.2."]),
        ("hybrid", "branches", ["stages.", "branches.2."]),
        ("branch-wise", "exit 2", ["stages.0.", "branches.0."]),
        ("branch-wise", "exit 3", ["stages.0.", "stages.1.", "branches.0.", "branches.1."]),
    ],
)
def test_what_a_later_phase_freezes_stays_bit_identical(method, second, kept):
    net, (images, labels) = tiny_network(), tiny_data()
    at_start: dict[str, Tensor] = {}

    def report(progress: Progress) -> None:
        if progress.phase == second and not at_start:  # after its first step, which must not have touched them either
            at_start.update(weights(net))

    order = [p.name for p in phases(method, 3)]
    earlier: dict[str, Tensor] = {}

    def both(progress: Progress) -> None:
        if progress.phase == order[order.index(second) - 1]:
            earlier.clear()
            earlier.update(weights(net))
        report(progress)

    fit(net, images, labels, tiny_recipe(method, epochs=2), report=both)
    for prefix in kept:  # batch norm's running statistics and counts are among them
        assert same(earlier, at_start, prefix)
        assert same(earlier, weights(net), prefix)
    assert not same(at_start, weights(net))


def test_two_stage_leaves_side_branches_alone_at_first():
    net, (images, labels) = tiny_network(), tiny_data()
    before = weights(net)
    with pytest.raises(Killed):
        fit(net, images, labels, tiny_recipe("two-stage"), report=killer("backbone", 2))
    assert same(before, weights(net), "branches.0.")
    assert same(before, weights(net), "branches.1.")
    assert not same(before, weights(net), "branches.2.")


@pytest.mark.parametrize("distort", [None, noise])
def test_same_seed_same_weights(distort):
    images, labels = tiny_data()
    nets = [tiny_network() for _ in range(3)]
    for net, seed in zip(nets, (1, 1, 2), strict=True):
        fit(net, images, labels, tiny_recipe(epochs=1, seed=seed), distort=distort)
    assert same(weights(nets[0]), weights(nets[1]))
    assert not same(weights(nets[0]), weights(nets[2]))


def test_early_stopping_returns_to_the_best_weights():
    net, (images, _) = tiny_network(), tiny_data()
    generator = torch.Generator().manual_seed(5)
    held, held_labels = tiny_data(30, seed=1)
    shuffled = torch.randint(0, 3, (len(images),), generator=generator)  # nothing to learn but by heart
    plan = tiny_recipe(epochs=40, patience=3, optimizer="adam", lr=0.01, shift=0, flip=False)
    history = fit(net, images, shuffled, plan, validation=(held, held_labels))
    losses = [row["validation_loss"] for row in history]
    best = losses.index(min(losses))
    assert len(history) == best + 1 + 3 < 40
    assert sum(evaluate(net, held, held_labels).loss) == pytest.approx(min(losses), rel=1e-6)
    assert losses[-1] > min(losses)


def test_loss_weights_of_zero_teach_nothing():
    net, (images, labels) = tiny_network(), tiny_data()
    before = weights(net)
    fit(net, images, labels, tiny_recipe(epochs=1, loss_weights=(0.0, 0.0, 1.0), weight_decay=0.0))
    assert same(before, weights(net), "branches.0.")
    assert not same(before, weights(net), "branches.2.")


def test_report_and_history():
    net, (images, labels) = tiny_network(), tiny_data()
    told: list[Progress] = []
    history = fit(net, images, labels, tiny_recipe(epochs=2), validation=tiny_data(30, seed=1), report=told.append)
    assert [(p.epoch, p.step, p.steps) for p in told[:5]] == [(0, 1, 4), (0, 2, 4), (0, 3, 4), (0, 4, 4), (0, 4, 4)]
    assert len(told) == 2 * 5
    assert told[4].accuracy == tuple(history[0]["accuracy"])
    assert told[4].validation_loss == history[0]["validation_loss"]
    assert set(history[0]) == {"phase", "epoch", "loss", "validation_loss", "accuracy", "seconds"}


def images_of(dtype=torch.uint8, shape=SHAPE, count=4) -> Tensor:
    return torch.zeros(count, *shape, dtype=dtype)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (images_of(torch.float32), [0, 1, 2, 0], r"expected uint8 images of shape \(N, 3, 8, 8\), got torch.float32"),
        (images_of(shape=(3, 9, 8)), [0, 1, 2, 0], r"got torch.uint8 of \(4, 3, 9, 8\)"),
        (images_of(), [0, 1, 2], "a label for each image and at least one, got 4 and 3"),
        (images_of(count=0), [], "at least one, got 0 and 0"),
        (images_of(), [0, 1, 2, 3], r"labels must lie in 0…2, got 0…3"),
        (images_of(), [0, 1, -1, 2], r"labels must lie in 0…2, got -1…2"),
    ],
)
def test_bad_data(images, labels, message):
    with pytest.raises(EexError, match=message):
        fit(tiny_network(), images, torch.tensor(labels, dtype=torch.int64), tiny_recipe())


def test_bad_recipes():
    weights = ({"loss_weights": (0.0, 0.0, 0.0)}, {"loss_weights": (1.0, math.nan, 1.0)}, {"weight_decay": math.inf})
    for change in ({"epochs": 0}, {"batch": 0}, {"lr": 0.0}, {"distorted_share": 1.5}, *weights):
        with pytest.raises(EexError, match="must"):
            Recipe(**change)
    images, labels = tiny_data()
    with pytest.raises(EexError, match="needs validation images"):
        fit(tiny_network(), images, labels, tiny_recipe(patience=2))
    with pytest.raises(EexError, match="loss_weights must name 3 exits, got 2"):
        fit(tiny_network(), images, labels, tiny_recipe(loss_weights=(1.0, 1.0)))
    with pytest.raises(EexError, match="unknown training method 'magic'"):
        fit(tiny_network(), images, labels, tiny_recipe("magic"))


def test_all_logits_leave_modes_alone_and_repeat_the_distortion():
    net, (images, _) = tiny_network(), tiny_data(40)
    net.stages[0].eval()
    modes = [m.training for m in net.modules()]
    one = all_logits(net, images, distort=noise, batch=40)
    assert [m.training for m in net.modules()] == modes
    assert one.shape == (3, 40, 3)
    assert torch.equal(one, all_logits(net, images, distort=noise, batch=40))
    assert not torch.equal(one, all_logits(net, images, distort=noise, batch=40, seed=2))
    whole = all_logits(net, images, batch=40)
    torch.testing.assert_close(whole, all_logits(net, images, batch=7))


def test_a_batch_larger_than_the_data_is_one_step():
    net, (images, labels) = tiny_network(), tiny_data(10)
    told: list[Progress] = []
    fit(net, images, labels, tiny_recipe(epochs=1, batch=64), report=told.append)
    assert [(p.step, p.steps) for p in told] == [(1, 1), (1, 1)]


def test_a_loss_that_is_no_number_stops_the_training():
    net, (images, labels) = tiny_network(), tiny_data()
    with pytest.raises(EexError, match=r"the loss is (nan|inf) in epoch \d+: training stops here.*lower learning rate"):
        fit(net, images, labels, tiny_recipe(epochs=30, lr=1e12))


def test_a_rate_of_nothing_freezes_the_stages():
    net, (images, labels) = tiny_network(), tiny_data()
    before = {name: value.clone() for name, value in net.stages.state_dict().items()}
    branches = {name: value.clone() for name, value in net.branches.state_dict().items()}
    fit(net, images, labels, tiny_recipe(epochs=1, stage_lr=0.0))
    after = net.stages.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not all(torch.equal(net.branches.state_dict()[name], value) for name, value in branches.items())


def test_weights_that_are_not_finite_are_not_kept(tmp_path):
    """The last step of an epoch breaks them, after its loss was taken."""
    net = tiny_network()
    images, labels = tiny_data(24)

    def report(progress):
        if progress.epoch == 1 and not progress.accuracy:
            with torch.no_grad():
                net.branches[0]["pristine"][1].weight[0, 0] = float("inf")

    with pytest.raises(EexError, match=r"branches\.0\.pristine\.1\.weight is not finite in epoch 2: .* after epoch 1"):
        fit(net, images, labels, tiny_recipe(), checkpoint=tmp_path / "part", report=report)
    fit(tiny_network(), images, labels, tiny_recipe(), checkpoint=tmp_path / "part")  # goes on from what is kept


def test_a_norm_of_one_value_per_channel_asks_for_a_larger_batch():
    net, (images, labels) = make("resnet", "abc", uniform=1, width=8, input_shape=SHAPE), tiny_data(4)
    with pytest.raises(EexError, match="one value per channel there: expected --batch 2 or more"):
        fit(net, images, labels, tiny_recipe(batch=1))


def test_norms_of_other_experts_keep_what_they_have_seen():
    net, (images, _) = tiny_network("noisy"), tiny_data(257)  # the last one does without a batch of its own
    net.branches[0]["noisy"].append(torch.nn.BatchNorm1d(3))
    net.branches[0]["pristine"].append(torch.nn.BatchNorm1d(3))
    for name, value in net.state_dict().items():
        if name.endswith("running_mean"):
            value.fill_(7.0)
    estimate_norms(net, images)
    seen = {name: bool((v != 7).any()) for name, v in net.state_dict().items() if name.endswith("running_mean")}
    assert seen == {name: ".noisy." not in name for name in seen}
    assert len(set(seen.values())) == 2
