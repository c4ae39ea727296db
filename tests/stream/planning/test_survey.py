"""What is measured for a cut: of which trace, and sent how."""

from types import SimpleNamespace

import numpy as np
import pytest

from eex.policies.core.errors import EexError
from eex.policies.core.trace import Trace, write_trace
from eex.stream.planning import survey
from eex.stream.planning.measure import Candidate, LinkSpeed
from eex.stream.wire.encoding import ENCODINGS

NET = SimpleNamespace(classes=("a", "b"), exits=2, fingerprint="int8", tail_fingerprint="fp32")


@pytest.mark.parametrize(("model", "taken"), [("", True), ("int8", True), ("fp32", True), ("another", False)])
def test_a_trace_is_of_the_model(tmp_path, model, taken):
    path = tmp_path / "t.arrow"
    write_trace(path, Trace(np.ones((4, 2)), np.zeros((4, 2), int), np.zeros(4, int), NET.classes, model=model))
    if taken:
        assert survey.exits_of_trace(path, NET).shape == (4, 2)
    else:
        with pytest.raises(EexError, match="was recorded with another model, another, this one is int8"):
            survey.exits_of_trace(path, NET)


@pytest.mark.parametrize(
    ("send", "cut", "sent"),
    [
        (" int8", 1, ["int8"]),
        ("int8+zstd", 2, ["int8+zstd"]),
        ("int8", 0, ["input", "input+zstd"]),  # there are no features yet
        ("input", 0, ["input"]),
    ],
)
def test_sent_as_asked_for(monkeypatch, send, cut, sent):
    def candidates(net, images, cut):
        return [Candidate(e, 0, 1.0, 0.0, 0.0, 1.0) for e in ENCODINGS if cut or e.kind == "input"]

    monkeypatch.setattr(survey.measure, "candidates", candidates)
    assert [found.name for found in survey._sends(NET, None, cut, LinkSpeed(0.0, 1.0), send)] == sent
