"""Schedules: each form of the grammar, what it says of each frame, and what its errors say."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eex.policies.core.errors import EexError
from eex.policies.core.schedule import KINDS, MAX_LEVEL, Piece, parse_schedule

RANDOM = "random(pristine, gaussian_blur@0.5..2, gaussian_noise@5..40):6000/500"


BLUR_AND_NOISE = [KINDS.index("gaussian_blur"), KINDS.index("gaussian_noise")]


def blur_and_noise(levels):
    """Their columns; all others are 0."""
    assert not np.delete(levels, BLUR_AND_NOISE, axis=1).any()
    return levels[:, BLUR_AND_NOISE]


def levels(text, *frames, seed=0):
    return blur_and_noise(parse_schedule(text, seed).levels(np.array(frames))).tolist()


def test_piecewise():
    text = "pristine:2000, gaussian_blur@1.0:2000, gaussian_noise@20:2000"
    assert parse_schedule(text).length == 6000
    expected = [[0, 0], [0, 0], [1, 0], [1, 0], [0, 20], [0, 20]]
    assert levels(text, 0, 1999, 2000, 3999, 4000, 5999) == expected
    assert levels(text, 6000, 8000, 6_000_000_004_000) == [[0, 0], [1, 0], [0, 20]]  # starts again


def test_ramp_has_both_ends():
    assert levels("gaussian_blur@0.5..2:4", 0, 1, 2, 3) == [[0.5, 0], [1.0, 0], [1.5, 0], [2.0, 0]]
    assert levels("gaussian_noise@30..10:3", 0, 1, 2) == [[0, 30], [0, 20], [0, 10]]
    assert levels("gaussian_blur@0.5..2:1", 0, 1) == [[0.5, 0], [0.5, 0]]


def test_mixture_in_either_order():
    assert levels("gaussian_blur@1+gaussian_noise@10:2", 0) == [[1, 10]]
    assert levels("gaussian_noise@10 + gaussian_blur@1..3:3", 1) == [[2, 10]]


def test_recurring():
    flat = "pristine:2, gaussian_blur@1:3, " * 4 + "gaussian_noise@9:1"
    nested = "2x(2x(pristine:2, gaussian_blur@1:3)), gaussian_noise@9:1"
    frames = np.arange(50)
    assert parse_schedule(nested).length == 21
    np.testing.assert_array_equal(parse_schedule(nested).levels(frames), parse_schedule(flat).levels(frames))


def test_random_pieces():
    schedule = parse_schedule(RANDOM, seed=3)
    each = blur_and_noise(schedule.levels(np.arange(6000))).reshape(12, 500, 2)
    assert schedule.length == 6000
    assert (each == each[:, :1]).all()
    blur, noise = each[:, 0].T
    assert not (blur * noise).any()
    assert all(0.5 <= b <= 2 for b in blur[blur > 0])
    assert all(5 <= n <= 40 for n in noise[noise > 0])


def test_random_draws_uniformly():
    schedule = parse_schedule("random(pristine, gaussian_blur@0.5..2, gaussian_noise@5..40):30000/1", seed=1)
    blur, noise = blur_and_noise(schedule.levels(np.arange(30000))).T
    np.testing.assert_allclose([(blur > 0).mean(), (noise > 0).mean()], 1 / 3, atol=0.015)
    np.testing.assert_allclose([blur[blur > 0].mean(), noise[noise > 0].mean()], [1.25, 22.5], rtol=0.02)


def test_random_is_seeded_and_parts_differ():
    assert parse_schedule(RANDOM, 7) == parse_schedule(RANDOM, 7)
    assert parse_schedule(RANDOM, 7) != parse_schedule(RANDOM, 8)
    both = parse_schedule(f"{RANDOM}, {RANDOM}", 7).levels(np.arange(12000))
    assert (both[:6000] != both[6000:]).any()
    again = parse_schedule(f"2x({RANDOM})", 7).levels(np.arange(12000))
    np.testing.assert_array_equal(again[:6000], again[6000:])  # a repeat repeats its draws


def test_last_random_piece_may_be_shorter():
    assert [s.stop - s.start for s in parse_schedule("random(gaussian_blur@1..2):7/3").segments] == [3, 3, 1]


@pytest.mark.parametrize(
    ("text", "level", "name"),
    [
        ("pristine", [0, 0], "pristine"),
        ("gaussian_blur@1", [1, 0], "gaussian_blur"),
        ("gaussian_blur@1+gaussian_noise@10", [1, 10], "gaussian_blur+gaussian_noise"),
        ("gaussian_noise@0", [0, 0], "pristine"),
    ],
)
def test_alone_is_the_whole_stream(text, level, name):
    schedule = parse_schedule(text)
    assert schedule.length == 0
    assert levels(text, 0, 10**15) == [level, level]
    assert schedule.names(np.array([5])).tolist() == [name]
    assert [(p.start, p.stop, p.name) for p in schedule.pieces(9)] == [(0, 9, name)]


def test_names_follow_the_levels():
    schedule = parse_schedule(
        "pristine:1, gaussian_blur@0..2:2, gaussian_noise@1+gaussian_blur@1:1, gaussian_noise@3:1"
    )
    assert schedule.names(np.arange(6)).tolist() == [
        "pristine",
        "pristine",
        "gaussian_blur",
        "gaussian_blur+gaussian_noise",
        "gaussian_noise",
        "pristine",
    ]


def test_pieces():
    schedule = parse_schedule("pristine:2, gaussian_blur@1:3, gaussian_noise@5..10:2, pristine:1")
    assert schedule.pieces(12) == [
        Piece(0, 2, "pristine", "pristine"),
        Piece(2, 5, "gaussian_blur", "gaussian_blur@1"),
        Piece(5, 7, "gaussian_noise", "gaussian_noise@5..10"),
        Piece(7, 10, "pristine", "pristine"),  # over the schedule's end
        Piece(10, 12, "gaussian_blur", "gaussian_blur@1"),
    ]
    assert schedule.pieces(0) == []


def test_no_frames():
    assert parse_schedule("pristine:3").levels(np.zeros(0, dtype=np.int64)).shape == (0, len(KINDS))
    assert parse_schedule("pristine:3").names(np.zeros(0, dtype=np.int64)).shape == (0,)


def level(kind):
    return st.floats(0, MAX_LEVEL[kind], allow_subnormal=False).map(lambda x: f"{kind}@{x!r}")


def ramp(kind):
    return st.tuples(level(kind), st.floats(0, MAX_LEVEL[kind])).map(lambda t: f"{t[0]}..{t[1]!r}")


KIND = st.sampled_from(KINDS)
SINGLE = KIND.flatmap(lambda k: level(k) | ramp(k))
MIXTURE = st.tuples(level("gaussian_blur"), ramp("gaussian_noise")).map(" + ".join)
DISTORTION = st.just("pristine") | SINGLE | MIXTURE
FRAMES = st.integers(1, 50)
PIECE = st.builds("{}:{}".format, DISTORTION, FRAMES)
DRAWN = st.builds(
    lambda c, n, s: f"random({','.join(c)}):{n}/{s}", st.lists(DISTORTION, min_size=1, max_size=3), FRAMES, FRAMES
)
PART = st.recursive(
    PIECE | DRAWN,
    lambda part: st.builds(
        lambda n, p: f"{n}x( {' ,'.join(p)})", st.integers(1, 3), st.lists(part, min_size=1, max_size=3)
    ),
    max_leaves=6,
)
TEXT = st.lists(PART, min_size=1, max_size=4).map(", ".join)


@settings(deadline=None)
@given(TEXT, st.integers(0, 5))
def test_round_trip(text, seed):
    schedule = parse_schedule(text, seed)
    again = parse_schedule(str(schedule), seed)
    assert again == schedule
    assert str(again) == str(schedule)


@settings(max_examples=50, deadline=None)
@given(TEXT, st.lists(st.integers(0, 10**12), min_size=1, max_size=30))
def test_a_frame_alone_is_as_in_a_batch(text, frames):
    schedule = parse_schedule(text)
    together = schedule.levels(np.array(frames))
    alone = np.concatenate([schedule.levels(np.array([f])) for f in frames])
    np.testing.assert_array_equal(together, alone)
    assert (together >= 0).all()
    assert (together <= [MAX_LEVEL[k] for k in KINDS]).all()


@settings(max_examples=50, deadline=None)
@given(TEXT, st.integers(1, 300))
def test_pieces_cover_the_stream(text, total):
    schedule = parse_schedule(text)
    pieces = schedule.pieces(total)
    assert [p.start for p in pieces] == [0] + [p.stop for p in pieces[:-1]]
    assert pieces[-1].stop == total
    names = schedule.names(np.arange(total))
    for piece in pieces:
        assert set(names[piece.start : piece.stop]) <= {piece.name, "pristine", *piece.name.split("+")}


@settings(deadline=None)
@given(st.text(alphabet="0123456789x()@:/,.+- eprgistnaubldmo_", max_size=40))
def test_any_text_is_a_schedule_or_one_line(text):
    try:
        parse_schedule(text)
    except EexError as error:
        assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ["at its end", "expected 'pristine' or KIND@LEVEL", "motion_blur", "gaussian_noise", "jpeg"]),
        ("pristine:5, gausian_blur@1:5", ["character 13", "'gausian_blur@1:5'", "did you mean 'gaussian_blur'"]),
        ("noise@3", ["did you mean 'gaussian_noise'", "'pristine' or KIND@LEVEL"]),
        ("snow@3", ["no distortion 'snow'", "expected 'pristine'"]),
        ("gaussian_blur:5", ["character 14", "'@' and a level"]),
        ("gaussian_blur@:5", ["character 15", "a level, a number"]),
        ("gaussian_blur@nan:5", ["a level, a number"]),
        ("gaussian_blur@-1:5", ["character 15", "from 0 to 20"]),
        ("gaussian_blur@20.5:5", ["from 0 to 20"]),
        ("gaussian_noise@256:5", ["from 0 to 255"]),
        ("gaussian_noise@1..1e999:5", ["character 19", "from 0 to 255"]),
        ("gaussian_blur@1, pristine:5", ["character 16", "':' and a number of frames"]),
        ("gaussian_blur@1..2", ["at its end", "frames that the ramp takes"]),
        ("pristine:0", ["character 10", "whole number from 1"]),
        ("pristine:2.5", ["character 10", "whole number from 1"]),
        ("pristine:" + "9" * 5000, ["whole number from 1"]),
        ("pristine:5 pristine:5", ["character 12", "expected ','"]),
        ("pristine:5,", ["at its end"]),
        ("gaussian_blur@1+gaussian_blur@2:5", ["character 17", "twice"]),
        ("4x(pristine:5", ["at its end", "or ')'"]),
        ("4(pristine:5)", ["character 2", "'x('"]),
        ("0x(pristine:5)", ["character 1", "how many times"]),
        ("1x(" * 5000, ["20 deep"]),
        ("99999x(99999x(99999x(pristine:1)))", ["pieces"]),
        ("random(pristine):1000000000000/1", ["pieces", "100,000"]),
        ("random(pristine):5", ["'/' and the frames of a piece"]),
        ("random(pristine:5):5/5", ["character 16", "the number of frames is given once"]),
        ("random", ["'(' and distortions"]),
    ],
)
def test_errors_are_one_line_that_points_at_the_place(text, said):
    with pytest.raises(EexError) as caught:
        parse_schedule(text)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 300
    for words in said:
        assert words in message


def test_needs_numpy_only():
    code = "import sys, eex.policies.core.schedule; sys.exit(any(m in sys.modules for m in ('torch', 'zmq', 'scipy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
