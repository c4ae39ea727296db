"""What distortion each frame of a stream has, written as a line of text.

schedule    = distortion | part {"," part}
part        = distortion ":" frames
            | count "x(" part {"," part} ")"
            | "random(" distortion {"," distortion} ")" ":" frames "/" frames of a piece
distortion  = "pristine" | kind "@" levels {"+" kind "@" levels}
levels      = level | level ".." level
"""

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from eex.policies.core.base import Floats, Ints
from eex.policies.core.errors import EexError

MAX_LEVEL = {
    "rotation": 45.0,  # degrees
    "fog": 10.0,  # mean optical depth
    "rain": 100.0,  # streaks per 1,000 pixels
    "occlusion": 90.0,  # per cent of the image
    "dirt": 100.0,  # per cent of the image
    "motion_blur": 50.0,  # pixels
    "defocus_blur": 20.0,  # pixels, radius
    "gaussian_blur": 20.0,  # pixels, sigma
    "low_light": 12.0,  # stops
    "low_contrast": 99.0,  # per cent that are lost
    "colour_cast": 4.0,  # stops between red and blue
    "gaussian_noise": 255.0,  # sigma on the 0–255 scale
    "video": 51.0,  # quantisation parameter of H.264
    "jpeg": 99.0,  # 100 less the quality
}
"""The highest level of each kind, in its unit; a higher level spoils more."""

KINDS = tuple(MAX_LEVEL)
"""The kinds of distortion, in the order in which they are applied and in which `Schedule.levels` has its columns."""

PRISTINE = "pristine"
MAX_FRAMES = 10**12
MAX_PIECES = 100_000
MAX_DEPTH = 20
MOST_PIECES = 300
"""Pieces that can still be told apart in a picture."""


@dataclass(frozen=True)
class Segment:
    """Frames `start` to `stop` (not included), whose levels go linearly from `first` to `last`, one of each kind."""

    start: int
    stop: int
    first: tuple[float, ...]
    last: tuple[float, ...]

    @property
    def name(self) -> str:
        """Its kinds, such as "gaussian_blur+gaussian_noise"; "pristine" without any."""
        return "+".join(k for k, a, b in zip(KINDS, self.first, self.last, strict=True) if a or b) or PRISTINE

    @property
    def text(self) -> str:
        """Its kinds and levels to three digits, such as "gaussian_blur@0.5..2"."""
        used = [(k, a, b) for k, a, b in zip(KINDS, self.first, self.last, strict=True) if a or b]
        return "+".join(f"{k}@{a:.3g}" if a == b else f"{k}@{a:.3g}..{b:.3g}" for k, a, b in used) or PRISTINE


@dataclass(frozen=True)
class Piece:
    """Frames `start` to `stop` (not included) that share a name and a text, to be drawn as a plot's background."""

    start: int
    stop: int
    name: str
    text: str


@dataclass(frozen=True)
class Schedule:
    """What distortion each frame has; made by `parse_schedule`. After its end it starts again.

    Attributes
    ----------
    text
        The schedule as it can be parsed again, in its tidy form; `str` gives it.
    length
        Frames until it starts again; 0 where all frames are alike.
    segments
        In order, without gaps, from frame 0 on. What was drawn at random is drawn here.
    """

    text: str
    length: int
    segments: tuple[Segment, ...]

    def __str__(self) -> str:
        return self.text

    @cached_property
    def _table(self) -> tuple[Ints, Floats, Floats, Floats]:
        """Of each segment: start, steps from first frame to last, both (S,); first and last levels, (S, kinds)."""
        starts = np.array([s.start for s in self.segments], dtype=np.int64)
        steps = np.array([max(s.stop - s.start - 1, 1) for s in self.segments], dtype=float)
        return starts, steps, np.array([s.first for s in self.segments]), np.array([s.last for s in self.segments])

    def levels(self, frames: Ints) -> Floats:
        """Level of each kind for each frame: (n, kinds) from frame numbers (n,); 0 where a kind is not applied.

        Each frame's levels depend on its number alone, whatever it is asked together with.
        """
        at = np.asarray(frames, dtype=np.int64)
        at = at % self.length if self.length else np.zeros_like(at)
        starts, steps, first, last = self._table
        row = np.searchsorted(starts, at, side="right") - 1
        share = ((at - starts[row]) / steps[row])[:, None]  # 0 on a ramp's first frame, 1 on its last
        return np.where(share == 1, last[row], first[row] + (last[row] - first[row]) * share)

    def names(self, frames: Ints) -> NDArray[np.str_]:
        """What is applied to each frame, (n,): "pristine", "gaussian_blur", "gaussian_blur+gaussian_noise", …"""
        applied, code = np.unique((self.levels(frames) > 0) @ (1 << np.arange(len(KINDS))), return_inverse=True)
        names = ["+".join(k for b, k in enumerate(KINDS) if kinds >> b & 1) or PRISTINE for kinds in applied.tolist()]
        return np.array(names, dtype=np.str_)[code]

    def pieces(self, total: int) -> list[Piece]:
        """The first `total` frames as pieces in order; neighbours of one unchanging text are one piece.

        Where there are more than `MOST_PIECES`, it ends with the first that is too many.
        """
        pieces: list[Piece] = []
        start = 0
        while start < total and len(pieces) <= MOST_PIECES:
            for segment in self.segments:
                stop = min(start + segment.stop - segment.start, total) if self.length else total
                steady = segment.first == segment.last
                if steady and pieces and (pieces[-1].name, pieces[-1].text) == (segment.name, segment.text):
                    pieces[-1] = Piece(pieces[-1].start, stop, segment.name, segment.text)
                else:
                    pieces.append(Piece(start, stop, segment.name, segment.text))
                start = stop
                if start >= total or len(pieces) > MOST_PIECES:
                    break
        return pieces


def parse_schedule(text: str, seed: int = 0) -> Schedule:
    """Read a schedule.

    Parameters
    ----------
    text
        Parts in order: a distortion and how many frames have it. `a..b` is a ramp over these frames; `+` applies
        several kinds; `4x(…)` plays its parts four times, the same each time; `random(…):6000/500` is 6000 frames in
        pieces of 500, each one of the distortions, with its level drawn uniformly where it reads `a..b`. A distortion
        of one level alone, without frames, is the whole stream.
    seed
        Of the draws of `random(…)`; at least 0.

    Raises
    ------
    EexError
        If the text is not a schedule, or a level exceeds `MAX_LEVEL`; the message says where, and what was expected.

    Examples
    --------
    >>> schedule = parse_schedule("2x(pristine:2, gaussian_blur@0.5..2:4), gaussian_blur@1+gaussian_noise@20:3")
    >>> schedule.length
    15
    >>> schedule.levels(np.arange(2, 6))[:, KINDS.index("gaussian_blur")]
    array([0.5, 1. , 1.5, 2. ])
    >>> schedule.pieces(15)[-1]
    Piece(start=12, stop=15, name='gaussian_blur+gaussian_noise', text='gaussian_blur@1+gaussian_noise@20')
    """
    return _Parser(text, seed).schedule()


@dataclass(frozen=True)
class _Run:
    """Frames not yet placed: how many (0 = not given), first and last levels."""

    frames: int
    first: tuple[float, ...]
    last: tuple[float, ...]


class _Parser:
    """Recursive descent: a method for each rule of the grammar; each returns its runs and its tidy text."""

    def __init__(self, text: str, seed: int) -> None:
        self.text, self.rng = text, np.random.default_rng(seed)
        number = r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?"
        self.tokens = [(m.group(), m.start()) for m in re.finditer(rf"{number}|[^\W\d]\w*|\.\.|\S", text)]
        self.at = 0

    @property
    def token(self) -> str:
        return self.tokens[self.at][0] if self.at < len(self.tokens) else ""

    def fail(self, expected: str, at: int | None = None) -> NoReturn:
        at = self.at if at is None else at
        if at >= len(self.tokens):
            raise EexError(f"schedule, at its end: {expected}")
        place = self.tokens[at][1]
        rest = " ".join(self.text[place:].split())
        shown = rest if len(rest) <= 30 else rest[:29] + "…"
        raise EexError(f"schedule, character {place + 1}, at '{shown}': {expected}")

    def take(self, symbol: str, expected: str) -> None:
        if self.token != symbol:
            self.fail(f"expected {expected}")
        self.at += 1

    def whole(self, what: str) -> int:
        if (
            not self.token.isdecimal()
            or len(self.token) > len(str(MAX_FRAMES))
            or not 1 <= int(self.token) <= MAX_FRAMES
        ):
            self.fail(f"expected {what}, a whole number from 1 to {MAX_FRAMES:,}")
        self.at += 1
        return int(self.tokens[self.at - 1][0])

    def schedule(self) -> Schedule:
        runs, text = self.parts(depth=0)
        if self.token:
            self.fail("expected ',' and another part, or the end")
        segments, start = [], 0
        for run in runs:
            segments.append(Segment(start, start + run.frames, run.first, run.last))
            start += run.frames
        return Schedule(text, start, tuple(segments))

    def parts(self, depth: int) -> tuple[list[_Run], str]:
        """Comma-separated parts."""
        if depth > MAX_DEPTH:
            self.fail(f"brackets are nested more than {MAX_DEPTH} deep")
        began, runs, texts = self.at, [], []
        while True:
            more, text = self.part(depth)
            runs += more
            texts.append(text)
            self.check(len(runs), sum(r.frames for r in runs), began)
            if self.token != ",":
                return runs, ", ".join(texts)
            self.at += 1

    def part(self, depth: int) -> tuple[list[_Run], str]:
        if self.token == "random":
            return self.random()
        if re.fullmatch(r"-?\d.*", self.token):
            return self.repeat(depth)
        began = self.at
        run, text = self.distortion()
        if began == 0 and not self.token:  # alone: the whole stream
            if run.first != run.last:
                self.fail("expected ':' and the frames that the ramp takes, such as ':2000'")
            return [run], text
        self.take(":", "':' and a number of frames, such as ':2000'")
        frames = self.whole("a number of frames")
        return [_Run(frames, run.first, run.last)], f"{text}:{frames}"

    def repeat(self, depth: int) -> tuple[list[_Run], str]:
        began = self.at
        count = self.whole("how many times to repeat")
        self.take("x", "'x(' and the parts to repeat, such as '4x(pristine:500, gaussian_blur@1:500)'")
        self.take("(", "'(' and the parts to repeat")
        runs, text = self.parts(depth + 1)
        self.take(")", "',' and another part, or ')'")
        self.check(count * len(runs), count * sum(r.frames for r in runs), began)
        return count * runs, f"{count}x({text})"

    def random(self) -> tuple[list[_Run], str]:
        began = self.at
        self.at += 1
        self.take("(", "'(' and distortions to draw from, such as 'random(pristine, gaussian_blur@0.5..2):6000/500'")
        choices, texts = [], []
        while True:
            choice, text = self.distortion()
            choices.append(choice)
            texts.append(text)
            if self.token != ",":
                break
            self.at += 1
        self.take(")", "',' and another distortion, or ')' (the number of frames follows it once)")
        self.take(":", "':' and frames / frames of a piece, such as ':6000/500'")
        frames = self.whole("a number of frames")
        self.take("/", "'/' and the frames of a piece, such as '/500'")
        size = self.whole("the frames of a piece")
        self.check(math.ceil(frames / size), frames, began)
        runs = [self.draw(choices, min(size, frames - start)) for start in range(0, frames, size)]
        return runs, f"random({', '.join(texts)}):{frames}/{size}"

    def draw(self, choices: Sequence[_Run], frames: int) -> _Run:
        choice = choices[int(self.rng.integers(len(choices)))]
        ends = zip(choice.first, choice.last, strict=True)
        levels = tuple(a if a == b else float(a + (b - a) * self.rng.random()) for a, b in ends)
        return _Run(frames, levels, levels)

    def distortion(self) -> tuple[_Run, str]:
        if self.token == PRISTINE:
            self.at += 1
            none = (0.0,) * len(KINDS)
            return _Run(0, none, none), PRISTINE
        levels: dict[str, tuple[float, float]] = {}
        texts = []
        while True:
            kind = self.kind()
            if kind in levels:
                self.fail(f"{kind} is there twice", at=self.at - 1)
            self.take("@", f"'@' and a level, such as '{kind}@1'")
            first = last = self.level(kind)
            text = f"{kind}@{_tidy(first)}"
            if self.token == "..":
                self.at += 1
                last = self.level(kind)
                text += f"..{_tidy(last)}"
            levels[kind] = first, last
            texts.append(text)
            if self.token != "+":
                break
            self.at += 1
        ends = [levels.get(kind, (0.0, 0.0)) for kind in KINDS]
        return _Run(0, tuple(a for a, _ in ends), tuple(b for _, b in ends)), "+".join(texts)

    def kind(self) -> str:
        kind = self.token
        if kind not in KINDS:
            expected = f"expected '{PRISTINE}' or KIND@LEVEL; kinds: {', '.join(KINDS)}"
            if not kind.isidentifier():
                self.fail(expected)
            if kind == "random":
                self.fail("random(…) cannot stand within random(…) or a mixture")
            close = difflib.get_close_matches(kind.lower(), [PRISTINE, *KINDS, "random"], n=1, cutoff=0.4)
            self.fail(f"no distortion '{kind}', " + (f"did you mean '{close[0]}'? " if close else "") + expected)
        self.at += 1
        return kind

    def level(self, kind: str) -> float:
        try:
            level = float(self.token if self.token[-1:].isdecimal() else "")
        except ValueError:
            self.fail("expected a level, a number such as 1 or 0.5")
        if not 0 <= level <= MAX_LEVEL[kind]:
            self.fail(f"expected a level of {kind} from 0 to {MAX_LEVEL[kind]:g}")
        self.at += 1
        return level + 0.0  # no -0

    def check(self, pieces: int, frames: int, at: int) -> None:
        if pieces > MAX_PIECES or frames > MAX_FRAMES:
            self.fail(
                f"{pieces:,} pieces and {frames:,} frames; at most {MAX_PIECES:,} and {MAX_FRAMES:,} are possible", at
            )


def _tidy(level: float) -> str:
    return repr(level).removesuffix(".0")
