"""The options of a connection: what they stand for, and what does not go together."""

from pathlib import Path

import pytest

from eex.models.card import CLOUD
from eex.policies.core.errors import EexError
from eex.stream.wire.connection import ConnectionConfig, connected
from eex.stream.wire.encoding import Encoding


def test_a_model_that_answers_gets_images():
    assert ConnectionConfig().connection().encoding is None
    answered = ConnectionConfig(answer_with="other").connection()
    assert (answered.answer_with, answered.encoding) == (Path("other"), Encoding("input"))
    packed = ConnectionConfig(answer_with="other", send="input+zstd").connection()
    assert packed.encoding == Encoding("input", "zstd")


def test_eex_s_cloud_model_answers_for_the_shipped_model_unless_features_are_asked_for():
    answered = ConnectionConfig().connection(CLOUD)
    assert (answered.answer_with, answered.encoding) == (CLOUD, Encoding("input"))
    own = {"answer_with": "own"}, {"answer_with": None}  # None: as configurations of older runs say it
    for other in (*own, {"send": "fp16"}, {"worker": "none"}, {"worker": "tcp://127.0.0.1:5555"}):
        assert ConnectionConfig(**other).connection(CLOUD).answer_with is None
    assert ConnectionConfig(send="input+zstd").connection(CLOUD).answer_with == CLOUD
    assert ConnectionConfig().connection().answer_with is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"send": "fp16"}, "--answer-with answers images: expected --send input or input.zstd, got fp16"),
        ({"worker": "none"}, "--answer-with goes with an embedded worker"),
        ({"worker": "tcp://10.0.0.1:5555"}, "--answer-with goes with an embedded worker"),
    ],
)
def test_a_model_that_answers_goes_with_images_and_an_embedded_worker(options, says):
    with pytest.raises(EexError, match=says):
        ConnectionConfig(answer_with="other", **options).connection()


def test_an_emulated_link_carries_no_plain_text_to_other_machines():
    connection = ConnectionConfig(worker="tcp://192.0.2.1:5555", plain=True, link="wifi").connection()
    says = r"tcp://192\.0\.2\.1:5555: .*--plain-beyond-loopback"
    with pytest.raises(EexError, match=says), connected(connection, "model", 0):
        pass


@pytest.mark.parametrize(
    ("endpoint", "why"),
    [
        ("tcp://127.0.0.1:9", "nothing listens on port 9"),
        ("tcp://nowhere.invalid:9", "the name 'nowhere.invalid' has no"),
    ],
)
def test_a_worker_that_is_not_there_is_named_behind_an_emulated_link_too(endpoint, why):
    options, said = ConnectionConfig(worker=endpoint, plain=True, plain_beyond_loopback=True, link="wifi"), []
    with connected(options.connection(), "model", 0, warn=said.append) as offloader:
        assert not offloader.reachable
        assert offloader.report()["workers"][0]["endpoint"] == endpoint
    assert said[0].startswith(f"{endpoint}: ")
    assert why in said[0]
    assert said[0].endswith("frames are answered on the edge until a worker can be reached")
