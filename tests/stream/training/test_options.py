"""The options of a training: what they stand for, and what is out of range."""

from pathlib import Path

import pytest

from eex.models.architecture import Preprocessing
from eex.policies.core.errors import EexError
from eex.stream.training.options import Rates, TrainConfig


def options(**changes):
    return TrainConfig(data="images", out=Path("out"), **changes)


def test_the_defaults_are_in_range():
    options().check()
    assert options().expert_levels() == {"gaussian_blur": (0.4, 2.5), "gaussian_noise": (4.0, 45.0)}
    assert options(experts=" ").expert_levels() == {}
    assert options(experts="gaussian_blur@1..1").expert_levels() == {"gaussian_blur": (1.0, 1.0)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threads": -1}, r"--threads must lie in \[0, 1024\], got -1"),
        ({"seed": -1}, "--seed must be at least 0"),
        ({"seed": 2**32}, "--seed must be at most 4294967295"),
        ({"expert_epochs": 0}, "--expert-epochs must be at least 1"),
        ({"cutout": -1}, "--cutout must be at least 0"),
        ({"expert_lr": float("nan")}, "--expert-lr must be more than 0, and finite, got nan"),
        ({"lr": 0.0}, "--lr must be more than 0, and finite, got 0"),
        ({"stage_lr": -0.1}, "--stage-lr must be at least 0, and finite, got -0.1"),
        ({"weight_decay": float("inf")}, "--weight-decay must be at least 0, and finite, got inf"),
        ({"loss_weights": (1.0, float("nan"))}, "--loss-weights must be at least 0, and one of them more, got 1 nan"),
        ({"loss_weights": (0.0,)}, "--loss-weights must be at least 0, and one of them more, got 0"),
        ({"epochs": -1}, "--epochs must be at least 0"),
        ({"size": -1}, "--size must be at least 0"),
        ({"classifier_epochs": 0}, "--classifier-epochs must be at least 1"),
        ({"epochs": 0}, "--epochs 0 needs --start"),
        ({"network": "mine:make", "weights": Path("w")}, "--weights is for a backbone"),
        ({"exits": "3"}, "--exits goes with --network"),
        ({"network": "mine:make", "exits": "1"}, "--exits must be auto or a number from 2 on"),
        ({"network": "mine:make", "exits": "some"}, "--exits must be auto or a number from 2 on"),
        ({"freeze": True}, "--freeze needs a pretrained backbone"),
        ({"freeze": True, "network": "mine:make", "patience": 2}, "--patience does not go with --freeze"),
        ({"mean": (0.5,)}, "--mean goes with --network"),
        ({"uniform": -1}, "--uniform must be at least 0, got -1"),
        ({"partition": -1}, "--partition must be at least 0, got -1"),
        ({"shares": (5.0, -2.0)}, r"--shares must rise within \(0, 1\), got 5 -2"),
        ({"network": "mine:make", "shares": (0.5, 0.5)}, r"--shares must rise within \(0, 1\), got 0.5 0.5"),
        ({"network": "mine:make", "after": (1,)}, "--after is for a backbone, and does not go with --network"),
        ({"network": "mine:make", "final_structure": "fc"}, "--final-structure is for a backbone"),
        ({"mix": "snow@1..2"}, "--mix: 'snow@1..2': expected a kind among rotation, fog"),
        ({"mix_share": 1.5}, r"--mix-share must lie in \[0, 1\], got 1.5"),
        ({"experts": "snow@1..2"}, "expected a kind among rotation, fog"),
        ({"experts": "gaussian_blur@1..2,gaussian_blur@2..3"}, "--experts: gaussian_blur is named twice"),
        ({"experts": "gaussian_blur"}, "is not kind@lowest..highest"),
        ({"experts": "gaussian_blur@2..1"}, "a rising range of gaussian_blur"),
        ({"experts": "gaussian_blur@1..1e9"}, "a rising range of gaussian_blur"),
        ({"experts": "gaussian_blur@nan..2"}, "a rising range of gaussian_blur"),
    ],
)
def test_what_is_out_of_range(changes, message):
    with pytest.raises(EexError, match=message):
        options(**changes).check()


def test_epochs_may_be_0_with_a_model_to_start_from():
    options(epochs=0, start=(Path("model"),)).check()


@pytest.mark.parametrize(
    ("given", "exits", "expected"),
    [
        ((0.3,), 3, (0.3, 0.3, 0.3)),
        ((1.0, 2.0), 2, (1.0, 2.0)),
        (TrainConfig.loss_weights, 4, TrainConfig.loss_weights),
        (TrainConfig.loss_weights, 3, (0.5, 0.5, 1.0)),
    ],
)
def test_weights_of_the_exits_losses(given, exits, expected):
    assert options(loss_weights=given).weights_of_losses(exits) == expected


def test_weights_for_another_number_of_exits():
    with pytest.raises(EexError, match="--loss-weights must name 2 exits"):
        options(loss_weights=(1.0, 2.0, 3.0)).weights_of_losses(2)


@pytest.mark.parametrize(
    ("changes", "structures"),
    [
        ({}, ("conv_fc", "")),
        ({"structure": "fc"}, ("fc", "")),
        ({"freeze": True}, ("squeeze_conv", "pool_fc")),
        ({"freeze": True, "structure": "fc"}, ("fc", "pool_fc")),
        ({"freeze": True, "final_structure": "fc"}, ("squeeze_conv", "fc")),
        ({"freeze": True, "start": (Path("earlier"),)}, ("conv_fc", "")),  # it has its own
    ],
)
def test_branches_that_suit_what_learns(changes, structures):
    assert options(**changes).branch_structures() == structures


@pytest.mark.parametrize(
    ("changes", "optimizer", "rates"),
    [
        ({}, "sgd", Rates(0.12, 0.03, 5e-4)),
        ({"freeze": True}, "adam", Rates(0.003, 0.003, 0.1)),
        ({"optimizer": "adam"}, "adam", Rates(0.003, 0.003, 0.1)),
        ({"freeze": True, "optimizer": "sgd"}, "sgd", Rates(0.12, 0.03, 5e-4)),
        ({"freeze": True, "lr": 0.01, "weight_decay": 0.0}, "adam", Rates(0.01, 0.003, 0.0)),
    ],
)
def test_rates_that_suit_the_optimizer(changes, optimizer, rates):
    config = options(**changes)
    assert config.optimizing() == (optimizer, rates)
    kept = config.on_the_card()
    assert (kept["optimizer"], kept["lr"], kept["expert_lr"]) == (optimizer, rates.lr, rates.expert_lr)


def test_the_card_keeps_names_instead_of_paths():
    config = TrainConfig(data="/home/me/pets", out=Path("/tmp/x"), weights=Path("/data/published.safetensors"), seed=3)
    kept = config.on_the_card()
    assert (kept["data"], kept["weights"], kept["seed"]) == ("pets", "published.safetensors", 3)
    assert not {"out", "threads", "quiet", "measure", "device", "start", "confidence"} & set(kept)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, Preprocessing()),
        ({"backbone": "efficientnet_lite0"}, Preprocessing()),
        ({"backbone": "efficientnet_lite0", "pretrained": True}, Preprocessing(0.875, "bicubic")),
        ({"backbone": "efficientnet_lite0", "pretrained": True, "crop": 1.0}, Preprocessing(1.0, "bicubic")),
        ({"crop": 0.9, "interpolation": "bicubic"}, Preprocessing(0.9, "bicubic")),
    ],
)
def test_published_weights_bring_their_preprocessing(changes, expected):
    assert options(**changes).preprocessing() == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pretrained": True}, "--pretrained goes with --backbone efficientnet_lite0 or --network"),
        (
            {"pretrained": True, "backbone": "efficientnet_lite0", "weights": Path("a.pth")},
            "--pretrained and --weights both name weights",
        ),
        ({"crop": 0.0}, r"--crop must lie in \(0, 1\], got 0"),
    ],
)
def test_pretrained_and_crop_are_checked(changes, message):
    with pytest.raises(EexError, match=message):
        options(**changes).check()
    options(pretrained=True, backbone="efficientnet_lite0", freeze=True).check()


def test_classes_are_listed_or_in_a_file(tmp_path):
    names = tuple(f"kind of animal {k}" for k in range(40))  # longer than a path may be
    assert options(classes=", ".join(names)).class_names() == names
    (tmp_path / "classes.txt").write_text("\n".join(names))
    assert options(classes=str(tmp_path / "classes.txt")).class_names() == names
    assert options().class_names() == ()
