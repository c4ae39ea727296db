"""Early exits for text: a small transformer over token ids, trained, streamed, learned and offloaded as images are.

python -m eex.experiments.text --data train.tsv --out my-text-model
"""

import functools
import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tyro
from numpy.typing import NDArray

from eex.policies.core.errors import EexError
from eex.policies.core.files import digest_of
from eex.policies.core.options import check_seed
from eex.policies.core.schedule import Piece
from eex.policies.registry import RECOMMENDED
from eex.stream.config import StreamConfig
from eex.stream.frames.batch import Batch
from eex.stream.guard import guarded, hush, keep_memory_flat, share_cores

if TYPE_CHECKING:
    from torch import Tensor

    from eex.models.architecture import Network
    from eex.models.network import EarlyExitNet

PADDING, UNKNOWN = 0, 1
"""Token ids of the places after a text and of words that are not in the vocabulary."""
FEWEST_WORDS = 16
"""Words of a text that is held out, at least: whole sentences rather than phrases."""
BLANKED = 0.1
"""Share of the words that are unknown to the network while it is trained, as misspelt ones will be."""
TYPOS, DROPPED = 0.3, 0.3
"""Share of the words that are misspelt, or left out, where texts are spoiled."""

Ids = NDArray[np.int32]


@dataclass(frozen=True)
class TextConfig:
    """Train a small text classifier with an exit after each block, measure it, and stream texts through it.

    The stream's texts are as they came at first, then misspelt, then some words are missing. A policy learns where each
    of them should stop; what no edge exit answers goes to a worker process.
    """

    out: Path
    """Folder of the model. If there is one already, it is measured and streamed without being trained again."""
    data: Path | None = None
    """Texts to train on: a file with a line "text<TAB>label" each, such as SST-2's train.tsv."""
    test: Path | None = None
    """Texts to measure and stream, in a file of the same kind. By default, texts held out of --data."""
    epochs: int = 2
    """Passes over the texts."""
    blocks: int = 4
    """Blocks of the transformer; an exit stands after each."""
    width: int = 64
    """Numbers per token."""
    vocabulary: int = 8000
    """Most words that are known, the most frequent ones."""
    length: int = 32
    """Words of a text that are looked at; the rest is cut off."""
    holdout: int = 800
    """Texts held out of --data for calibration and, without --test, for measuring and streaming."""
    frames: int = 6000
    """Texts to stream, a third of them as they came, a third misspelt, a third with words missing. 0 streams none."""
    policy: str = RECOMMENDED
    """Policy that chooses the thresholds."""
    compare: str = "fixed"
    """Comma-separated policies to play over the same texts afterwards."""
    overhead: float = 0.1
    """Price of offloading a text, in units of confidence."""
    worker: str = "embedded"
    """Cloud worker, as for eex-stream: embedded, none, or its endpoint."""
    send: str = "auto"
    """How offloaded texts are sent, as for eex-stream; input sends their token ids."""
    seed: int = 0
    """Random seed."""
    quiet: bool = False
    """Print errors only."""

    def check(self) -> None:
        """Raise `EexError` if a value is out of range."""
        check_seed(self.seed)
        for name, low in (("epochs", 1), ("blocks", 2), ("width", 4), ("length", 1), ("holdout", 1), ("frames", 0)):
            if getattr(self, name) < low:
                raise EexError(f"--{name} must be at least {low}, got {getattr(self, name)}")
        if self.width % 4:
            raise EexError(f"--width must be a multiple of 4, one part for each attention head; got {self.width}")
        if self.vocabulary < 3:
            raise EexError(
                f"--vocabulary must be at least 3, padding and unknown words included; got {self.vocabulary}"
            )


# ---- texts


def read_texts(path: Path) -> tuple[list[str], list[str]]:
    """Texts and labels of a file with a line "text<TAB>label" each, with or without a line of titles.

    Raises
    ------
    EexError
        If the file cannot be read, a line has another form, or there is none.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise EexError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise EexError(f"{path}: is not UTF-8 text: {error.reason} at byte {error.start:,}") from None
    texts, labels = [], []
    for number, line in enumerate(lines, 1):
        text, tab, label = line.rstrip("\r").rpartition("\t")
        if not line.strip() or (number == 1 and (text.lower(), label.lower()) == ("sentence", "label")):
            continue
        if not (tab and text.strip() and label.strip()):
            raise EexError(f"{path}, line {number}: expected text<TAB>label, got {line[:60]!r}")
        texts.append(text)
        labels.append(label.strip())
    if not texts:
        raise EexError(f"{path}: no texts; expected lines of text<TAB>label")
    return texts, labels


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case; punctuation that stands apart counts as words."""
    return text.lower().split()


def make_vocabulary(texts: Sequence[str], size: int) -> list[str]:
    """The most frequent words, each of them at least twice there, by their ids; the first two stand for no word."""
    counts = Counter(word for text in texts for word in words_of(text))
    ranked = sorted((word for word, count in counts.items() if count > 1), key=lambda word: (-counts[word], word))
    return ["<padding>", "<unknown>", *ranked][:size]


def ids_of(texts: Sequence[Sequence[str]], index: Mapping[str, int], length: int) -> Ids:
    """Token ids of texts given as words, (N, length) int32: padded, or cut off."""
    ids = np.full((len(texts), length), PADDING, dtype=np.int32)
    for row, words in zip(ids, texts, strict=True):
        found = [index.get(word, UNKNOWN) for word in words[:length]]
        row[: len(found)] = found
    return ids


def hold_out(texts: Sequence[str], count: int, seed: int) -> tuple[list[int], list[int]]:
    """Indices of texts to train on and of those held out: `count` long ones, drawn.

    Where a data set has every phrase of a sentence as a text of its own, a text that contains a held-out one, or is
    part of it, is left out of both: accuracy would be measured on what was trained on.

    Raises
    ------
    EexError
        If nothing would be left to train on.
    """
    words = [tuple(words_of(text)) for text in texts]
    long = [i for i, of in enumerate(words) if len(of) >= FEWEST_WORDS] or list(range(len(texts)))
    held = sorted(np.random.default_rng(seed).permutation(long)[:count].tolist())
    whole = {words[i] for i in held}
    parts = {of[a:b] for of in whole for a, b in itertools.combinations(range(len(of) + 1), 2) if b - a > 1}
    sizes = sorted({len(of) for of in whole})

    def related(of: tuple[str, ...]) -> bool:
        inside = (of[a : a + size] for size in sizes if size <= len(of) for a in range(len(of) - size + 1))
        return of in parts or any(part in whole for part in inside)

    kept = [i for i, of in enumerate(words) if not related(of)]
    if not kept:
        raise EexError(f"--holdout {count}: nothing would be left of {len(texts):,} texts to train on")
    return kept, held


def misspelt(words: Sequence[str], rng: np.random.Generator) -> list[str]:
    """Words of which some have two neighbouring letters exchanged."""
    found = list(words)
    for k, word in enumerate(found):
        if len(word) > 2 and rng.random() < TYPOS:
            at = int(rng.integers(len(word) - 1))
            found[k] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return found


def shortened(words: Sequence[str], rng: np.random.Generator) -> list[str]:
    """Words of which some are missing; the first one stays if no other does."""
    return [word for word in words if rng.random() >= DROPPED] or list(words[:1])


SPOILED: dict[str, Callable[[Sequence[str], np.random.Generator], list[str]]] = {
    "as it came": lambda words, rng: list(words),
    "misspelt": misspelt,
    "words missing": shortened,
}
"""What happens to the texts of a stream, one after another."""


# ---- the model


@dataclass(frozen=True)
class Texts:
    """Texts to measure and stream: their words, their classes (N,), and the vocabulary of the model."""

    words: Sequence[Sequence[str]]
    labels: NDArray[np.int64]
    index: Mapping[str, int]
    length: int

    def ids(self, name: str, numbers: Sequence[int], places: Sequence[int], seed: int) -> Ids:
        """Token ids of texts, spoiled as `SPOILED` names it; what is drawn depends on seed and place in the stream."""
        spoil = SPOILED[name]
        spoiled = [spoil(self.words[i], np.random.default_rng((seed, p))) for i, p in zip(numbers, places, strict=True)]
        return ids_of(spoiled, self.index, self.length)


def train(config: TextConfig, say: Callable[[str], None]) -> None:
    """Train a model on the texts of --data, calibrate it and save it; the card keeps the vocabulary.

    Raises
    ------
    EexError
        If the texts cannot be used or the folder cannot be written.
    """
    import torch

    from eex.models.calibration import calibrate
    from eex.models.card import save
    from eex.models.network import PRISTINE, make
    from eex.models.training import Progress, Recipe, evaluate, fit

    if config.data is None:
        raise EexError(f"{config.out}: holds no model yet; name the texts to train on (--data)")
    texts, labels = read_texts(config.data)
    classes = sorted(set(labels))
    if len(classes) < 2:
        raise EexError(f"{config.data}: training needs at least two labels, got {classes[0]!r} alone")
    kept, held = hold_out(texts, config.holdout, config.seed)
    words = make_vocabulary([texts[i] for i in kept], config.vocabulary)
    index = {word: i for i, word in enumerate(words)}
    ids = torch.from_numpy(ids_of([words_of(text) for text in texts], index, config.length))
    target = torch.tensor([classes.index(label) for label in labels])
    say(f"{len(kept):,} texts to train on, {len(held):,} held out, {len(words):,} words, {len(classes)} labels")
    torch.manual_seed(config.seed)
    net = make(
        "transformer",
        classes,
        after=range(config.blocks - 1),
        structure="pool_fc",
        input_shape=(config.length,),
        vocabulary=len(words),
        width=config.width,
        blocks=config.blocks,
    )
    recipe = Recipe(
        epochs=config.epochs, optimizer="adam", lr=1e-3, weight_decay=0.01, distorted_share=1.0, seed=config.seed
    )

    def report(at: Progress) -> None:
        if at.step == at.steps and at.accuracy:
            shares = " / ".join(f"{100 * a:.1f}" for a in at.accuracy)
            say(f"epoch {at.epoch + 1} of {at.epochs}: {shares} % of the held-out texts are right, by exit")

    check = ids[held], target[held]
    checkpoint = config.out / "training" / "text.safetensors"
    try:
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EexError(f"{config.out}: cannot write there (--out): {error.strerror}") from None
    what = f"{BLANKED} of the words unknown"
    data = ids[kept], target[kept]
    fit(net, *data, recipe, distort=blanked, validation=check, checkpoint=checkpoint, source=what, report=report)
    calibration = calibrate(net, *check, PRISTINE)
    training = {
        "words": words,
        "held": held,
        "data": config.data.name,
        "data_sha256": digest_of(config.data),
        "epochs": config.epochs,
        "validation_accuracy": list(evaluate(net, *check).accuracy),
        "validation_ece": {PRISTINE: calibration},
    }
    save(net, config.out, name="text", training=training)


def blanked(ids: "Tensor", generator: Any) -> "Tensor":
    """Token ids (B, T) of which some are made unknown."""
    import torch

    chosen = torch.rand(ids.shape, generator=generator) < BLANKED
    return torch.where(chosen.to(ids.device) & (ids != PADDING), UNKNOWN, ids)


def texts_of(config: TextConfig, classes: Sequence[str]) -> Texts:
    """The texts to measure and stream: those of --test, or those that were held out of --data.

    Raises
    ------
    EexError
        If they cannot be read, or have a label that the model does not know.
    """
    from eex.models.card import read_card

    card = read_card(config.out)
    vocabulary = card.training.get("words")
    if not vocabulary:
        raise EexError(f"{config.out}: is not a model of this command: its card has no words")
    path = config.test or config.data
    if path is None:
        raise EexError("name the texts to measure and stream: --test, or --data to take those held out of it")
    texts, labels = read_texts(path)
    if config.test is None:
        held = card.training["held"]
        if digest_of(path) != card.training.get("data_sha256"):
            raise EexError(f"{path}: is not the file that {config.out} was trained on; name other texts by --test")
        texts, labels = [texts[i] for i in held], [labels[i] for i in held]
    if unknown := sorted(set(labels) - set(classes)):
        raise EexError(f"{path}: the model does not know the label {unknown[0]!r}; expected {', '.join(classes)}")
    index = {word: i for i, word in enumerate(vocabulary)}
    numbers = np.array([classes.index(label) for label in labels])
    return Texts([words_of(text) for text in texts], numbers, index, card.architecture.input_shape[0])


def measure(net: "EarlyExitNet", texts: Texts, seed: int = 0) -> dict[str, Any]:
    """How well a model does: accuracy by exit for each way in which texts are spoiled, and cost by threshold.

    Returns
    -------
    dict
        `exits`: rows of text, exit (from 1), accuracy, confidence, ECE; `thresholds`: accuracy and multiply-adds, as a
        share of the whole network's, at fixed thresholds, on texts as they came.
    """
    import torch

    from eex.models.network import PRISTINE
    from eex.models.training import all_logits
    from eex.stream.training.measuring import by_exit, by_threshold

    labels, numbers = torch.from_numpy(texts.labels), range(len(texts.words))
    rows, found = [], {}
    for name in SPOILED:
        found[name] = all_logits(net, torch.from_numpy(texts.ids(name, numbers, numbers, seed)))
        rows += [{"texts": name} | row for row in by_exit(net, found[name], labels, PRISTINE)]
    return {"exits": rows, "thresholds": by_threshold(net, found["as it came"], labels)}


# ---- the stream


@dataclass(frozen=True)
class Spoiling:
    """What happens to the texts of a stream: each way of `SPOILED` in turn, for a third of them."""

    total: int

    @property
    def length(self) -> int:
        """All texts: it does not start again."""
        return self.total

    def pieces(self, total: int) -> list[Piece]:
        """The first `total` texts as pieces in order."""
        bounds = [round(k * self.total / len(SPOILED)) for k in range(len(SPOILED) + 1)]
        spans = zip(bounds, bounds[1:], SPOILED, strict=False)
        return [Piece(a, min(b, total), name, name) for a, b, name in spans if a < min(b, total)]

    def names(self, frames: NDArray[np.int64]) -> NDArray[np.str_]:
        """What happens to each text, (n,)."""
        pieces = self.pieces(self.total)
        return np.array([next(p.name for p in pieces if p.start <= at < p.stop) for at in frames.tolist()])


class Sentences:
    """Texts as micro-batches of token ids, pass after pass in new random orders: what `run` plays in place of images.

    Every pass over the stream gives the same texts.
    """

    live = False

    def __init__(self, texts: Texts, config: StreamConfig, net: "Network") -> None:
        self.texts, self.config, self.net, self.total = texts, config, net, config.frames
        self.schedule = Spoiling(self.total)

    def report(self) -> dict[str, Any]:
        """What is played, as plain JSON values."""
        return {
            "name": self.config.source,
            "items": "texts",
            "images": len(self.texts.words),
            "labelled": True,
            "unknown_classes": [],
            "known_classes": len(self.net.classes),
            "model_classes": list(self.net.classes),
            "distortion": ", ".join(SPOILED),
            "notes": [],
            "lost": "",
        }

    def batches(self, total: int, skipped: dict[str, str], first: int = 0) -> Iterator[Batch]:
        """Yield micro-batches from a frame to before another one; none is `skipped`."""
        count, seed = len(self.texts.words), self.config.seed

        @functools.cache
        def order(turn: int) -> list[int]:
            drawn: list[int] = np.random.default_rng((seed, turn)).permutation(count).tolist()
            return drawn

        for piece in self.schedule.pieces(total):
            for start in range(max(first, piece.start), piece.stop, self.config.batch):
                places = range(start, min(start + self.config.batch, piece.stop))
                numbers = [order(p // count)[p % count] for p in places]
                ids = self.texts.ids(piece.name, numbers, places, seed)
                yield Batch(self.net.array(ids), [f"text {i + 1}" for i in numbers], self.texts.labels[numbers])


def stream(config: TextConfig, texts: Texts, **more: Any) -> dict[str, Any]:
    """Stream texts through the model under a policy and those it is compared with; the summary of the run.

    Parameters
    ----------
    more
        Further fields of `StreamConfig`.

    Raises
    ------
    EexError
        If an option or the worker cannot be used.
    """
    from eex.stream.run.display import display
    from eex.stream.run.runner import run

    options = StreamConfig(
        model=config.out,
        source=str(config.test or config.data),
        frames=config.frames,
        policy=config.policy,
        compare=config.compare,
        overhead=config.overhead,
        worker=config.worker,
        send=config.send,
        seed=config.seed,
        out=config.out / "runs",
        **more,
    )

    def sentences(config: StreamConfig, schedule: object, net: "Network") -> Sentences:
        return Sentences(texts, config, net)

    if config.quiet:
        return run(options, open_frames=sentences)
    with display() as show:
        return run(options, show, open_frames=sentences)


# ---- the command


def main() -> None:
    """Entry point of `python -m eex.experiments.text`."""
    sys.exit(guarded(lambda: text(tyro.cli(TextConfig, prog="python -m eex.experiments.text"))))


def text(config: TextConfig) -> None:
    """Train, measure and stream as configured.

    Raises
    ------
    EexError
        If something of the configuration cannot be used.
    """
    config.check()
    if config.quiet:
        hush()
    share_cores()
    keep_memory_flat()
    from eex.models.card import CARD, load

    def say(line: str) -> None:
        if not config.quiet:
            print(line, flush=True)

    if not (config.out / CARD).exists():
        train(config, say)
    net = load(config.out)
    texts = texts_of(config, net.classes)
    measured = measure(net, texts, config.seed)
    for name in SPOILED:
        shares = " / ".join(f"{100 * row['accuracy']:.1f}" for row in measured["exits"] if row["texts"] == name)
        say(f"{name}: {shares} % of {len(texts.words):,} texts are right, by exit")
    for row in measured["thresholds"]:
        share, work = (f"{100 * row[name]:.1f} %" for name in ("accuracy", "macs_share"))
        say(f"threshold {row['threshold']:g}: {share} right for {work} of the multiply-adds")
    if config.frames:
        summary = stream(config, texts)
        if not config.quiet:
            from eex.stream.run.display import print_summary

            print_summary(summary)


if __name__ == "__main__":
    main()
