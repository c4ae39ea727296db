"""What a session gives back, as JSON."""

import json
from pathlib import Path

import msgspec

from eex.stream.live.answers import Answer, Refusal, iso, schema


def test_answers_and_refusals_are_told_apart_in_json():
    answer = Answer(
        stream="door",
        frame=3,
        name="",
        label="cat",
        index=3,
        confidence=0.75,
        exit=2,
        where="cloud",
        fallback=False,
        latency_ms=12.5,
        captured=iso(0.5),
    )
    refusal = Refusal(stream="door", frame=4, name="", reason="stale", detail="replaced", captured=iso(0.75))
    for given in (answer, refusal):
        assert msgspec.json.decode(msgspec.json.encode(given), type=Answer | Refusal) == given
    assert b'"kind":"answer"' in msgspec.json.encode(answer)


def test_the_schema_names_both():
    assert {"Answer", "Refusal"} <= set(schema()["$defs"])


def test_the_documented_schema_is_that_of_the_answers():
    documented = Path(__file__).parents[3] / "docs" / "answers.schema.json"
    assert json.loads(documented.read_text()) == schema()
