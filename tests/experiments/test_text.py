"""Text: a tiny transformer that learns made-up sentences and streams them through a worker."""

import json
from pathlib import Path

import numpy as np
import pytest
from commands import call, refused

from eex.experiments.text import (
    SPOILED,
    UNKNOWN,
    Sentences,
    TextConfig,
    hold_out,
    ids_of,
    make_vocabulary,
    read_texts,
    stream,
    text,
    texts_of,
    words_of,
)
from eex.models.card import load
from eex.policies.core.errors import EexError
from eex.stream.config import StreamConfig
from eex.stream.run.display import bought

pytestmark = pytest.mark.timeout(240)

GOOD, BAD = ("wonderful", "moving", "funny"), ("dull", "tedious", "awful")
SMALL = {"epochs": 6, "blocks": 2, "width": 16, "length": 8, "holdout": 100, "compare": "", "quiet": True}


def made_up(count, seed):
    """Lines of sentences that are praise where they hold one of the good words."""
    rng = np.random.default_rng(seed)
    lines = []
    for _ in range(count):
        good = int(rng.integers(2))
        thing, word = rng.choice(["film", "story", "cast", "plot"]), rng.choice(GOOD if good else BAD)
        lines.append(f"the {thing} of number {rng.integers(50)} is {word}\t{('blame', 'praise')[good]}")
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    (folder / "train.tsv").write_text("sentence\tlabel\n" + made_up(2500, seed=0))
    (folder / "test.tsv").write_text(made_up(200, seed=1))
    text(TextConfig(folder / "model", folder / "train.tsv", frames=0, **SMALL))
    return folder


@pytest.mark.process
def test_sentences_are_learned_streamed_and_offloaded_to_a_worker(trained):
    config = TextConfig(trained / "model", test=trained / "test.tsv", frames=240, policy="fixed:p_tar=1", **SMALL)
    net = load(config.out)
    summary = stream(config, texts_of(config, net.classes), deadline_ms=60_000)
    assert summary["frames"] == 240
    assert summary["fallbacks"] == 0
    assert summary["offloaded_share"] > 0.1  # it is sure of the others
    assert summary["accuracy"] > 0.75  # a third of them misspelt, from a third some words are missing
    kept = json.loads((Path(summary["folder"]) / "summary.json").read_text())
    assert kept["source"]["distortion"] == "as it came, misspelt, words missing"
    assert any(line.startswith("240 frames: ") and " texts of " in line for line in bought(kept))
    assert not any("image" in line for line in bought(kept))


def test_frames_sent_as_token_ids_get_the_answers_that_features_get(trained, capsys):
    config = TextConfig(trained / "model", test=trained / "test.tsv", frames=120, worker="none", **SMALL)
    net = load(config.out)
    texts = texts_of(config, net.classes)
    played = StreamConfig(frames=120, source="test.tsv", batch=50)
    first, again = (list(Sentences(texts, played, net).batches(120, {})) for _ in range(2))
    assert [len(batch) for batch in first] == [40, 40, 40]
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one.images, other.images)
    late = next(Sentences(texts, played, net).batches(120, {}, 90))
    assert np.array_equal(late.images, first[2].images[10:])
    assert (first[0].images == UNKNOWN).numpy().mean() < (first[1].images == UNKNOWN).numpy().mean()
    text(config)
    assert capsys.readouterr().out == ""


def test_what_was_not_trained_here_is_refused(trained, tmp_path):
    with pytest.raises(EexError, match="holds no model yet; name the texts to train on"):
        text(TextConfig(tmp_path / "none"))
    with pytest.raises(EexError, match="name the texts to measure and stream"):
        text(TextConfig(trained / "model"))
    (tmp_path / "test.tsv").write_text("the film is dull\tspam\n")
    with pytest.raises(EexError, match="does not know the label 'spam'; expected blame, praise"):
        text(TextConfig(trained / "model", test=tmp_path / "test.tsv"))
    with pytest.raises(EexError, match="is not the file that"):
        text(TextConfig(trained / "model", data=tmp_path / "test.tsv"))
    lines = (trained / "train.tsv").read_text().splitlines(keepends=True)
    (tmp_path / "train.tsv").write_text("".join([lines[0], *sorted(lines[1:])]))  # held out are others of it
    with pytest.raises(EexError, match="is not the file that"):
        text(TextConfig(trained / "model", data=tmp_path / "train.tsv"))
    with pytest.raises(EexError, match="--width must be a multiple of 4"):
        text(TextConfig(tmp_path / "none", width=10))


def test_images_are_not_streamed_through_a_network_for_texts(trained, tmp_path):
    done = call("stream", "--model", trained / "model", "--worker", "none", "--out", tmp_path)
    refused(done, "the network takes texts of 8 token ids, not images")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no texts; expected lines of text<TAB>label"),
        (b"sentence\tlabel\n", "no texts"),
        (b"good film\t1\nbad film 0\n", "line 2: expected text<TAB>label, got 'bad film 0'"),
        (b"good film\t\n", "line 1: expected text<TAB>label"),
        (b"\xff\xfe\t1\n", "is not UTF-8 text: invalid start byte at byte 0"),
    ],
)
def test_files_that_hold_no_texts(tmp_path, content, said):
    (tmp_path / "train.tsv").write_bytes(content)
    with pytest.raises(EexError, match=said):
        read_texts(tmp_path / "train.tsv")


def test_texts_are_read_and_become_ids(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_bytes(b"sentence\tlabel\r\nA good film \t1\r\n\na bad\tfilm\t0\n")
    texts, labels = read_texts(path)
    assert (texts, labels) == (["A good film ", "a bad\tfilm"], ["1", "0"])
    words = make_vocabulary(texts, 8)
    assert words == ["<padding>", "<unknown>", "a", "film"]
    index = {word: i for i, word in enumerate(words)}
    assert ids_of([words_of(t) for t in texts], index, 4).tolist() == [[2, 1, 3, 0], [2, 1, 3, 0]]
    assert ids_of([["a", "film", "a"]], index, 2).tolist() == [[2, 3]]


def test_no_part_of_a_held_out_sentence_is_trained_on():
    whole = [" ".join(f"w{i}" for i in range(k, k + 20)) for k in range(0, 100, 20)]
    parts = [" ".join(sentence.split()[:5]) for sentence in whole]
    larger = [f"{sentence} indeed" for sentence in whole]
    texts = [*whole, *parts, *larger, "w3"]
    kept, held = hold_out(texts, 2, seed=0)
    assert len(held) == 2
    for i in held:
        words = set(texts[i].split())
        assert all(len(words & set(texts[k].split())) <= 1 for k in kept)
    assert texts.index("w3") in kept  # a word alone tells nothing of a sentence
    with pytest.raises(EexError, match="nothing would be left"):
        hold_out(["one text"], 1, seed=0)


def test_spoiled_texts_depend_on_the_seed_alone():
    words = ["a", "rather", "long", "sentence", "of", "several", "words", "that", "can", "be", "misspelt"]
    for spoil in SPOILED.values():
        assert spoil(words, np.random.default_rng(3)) == spoil(words, np.random.default_rng(3))
    changed = SPOILED["misspelt"](words, np.random.default_rng(0))
    assert changed != words
    assert [sorted(word) for word in changed] == [sorted(word) for word in words]
    assert 0 < len(SPOILED["words missing"](words, np.random.default_rng(0))) < len(words)
    assert SPOILED["words missing"](["alone"], np.random.default_rng(1)) == ["alone"]
