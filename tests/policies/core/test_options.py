"""What a program may give where a command line has a choice of words: the same words."""

from pathlib import Path

import pytest

from eex.envs.train import TrainRLConfig, train_rl
from eex.experiments.regret import RegretConfig, compare
from eex.policies.core.errors import EexError
from eex.stream.config import StreamConfig
from eex.stream.live.config import LiveConfig
from eex.stream.training.options import TrainConfig


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (lambda: StreamConfig(reward="utilty").check(), "--reward must be adaee or utility, got 'utilty'"),
        (lambda: StreamConfig(backend="foo").check(), "--backend must be auto, torch or onnx, got 'foo'"),
        (lambda: StreamConfig(split="tst").check(), "--split must be .*, got 'tst'"),
        (lambda: LiveConfig(reward="accuracy").check(), "--reward must be adaee or utility, got 'accuracy'"),
        (lambda: LiveConfig(learn="alone").check(), "--learn must be each or shared, got 'alone'"),
        (lambda: TrainConfig("images", Path("out"), method="joined").check(), "--method must be joint, branch-wise, "),
        (
            lambda: TrainConfig("images", Path("out"), interpolation=None).check(),
            "--interpolation must be '', bilinear",
        ),
        (lambda: compare(RegretConfig("t.arrow", order="segment")), "--order must be .* or segments, got 'segment'"),
        (lambda: compare(RegretConfig("t.arrow", reward="accuracy")), "--reward must be adaee or utility"),
        (lambda: train_rl(TrainRLConfig("t.arrow", "out", activation="gelu")), "--activation must be tanh or relu"),
    ],
)
def test_words_that_are_none(given, says):
    with pytest.raises(EexError, match=says):
        given()


def test_one_text_or_path_stands_for_several():
    assert StreamConfig(policy_option="step=0.02").policy_option == ("step=0.02",)
    assert RegretConfig(trace="t.arrow").trace == (Path("t.arrow"),)
