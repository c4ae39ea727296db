"""Streams by the command line and by a file, and what is said of a mistake in either."""

import pytest

from eex.policies.core.errors import EexError
from eex.stream.live.streams import parse_sources, read_streams, shown, together


def toml(tmp_path, text):
    (tmp_path / "streams.toml").write_text(text)
    return tmp_path / "streams.toml"


def test_streams_of_a_file_with_what_they_have_in_common(tmp_path):
    path = toml(
        tmp_path,
        """
        [defaults]
        fps = 5
        overhead = 0.1
        [streams.door]
        source = "rtsp://10.0.0.7/main"
        keep = "all"
        [streams.yard-2]
        source = "camera:1"
        fps = 2
        changed = 0.02
        deadline_ms = 200
        """,
    )
    streams = read_streams(path)
    assert list(streams) == ["door", "yard-2"]
    assert [(s.fps, s.overhead, s.keep) for s in streams.values()] == [(5, 0.1, "all"), (2, 0.1, "auto")]
    assert (streams["yard-2"].changed, streams["yard-2"].deadline_ms) == (0.02, 200)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[streams.door]\nsource = "-"\nfsp = 5', r"stream 'door': unknown key 'fsp'; did you mean 'fps'\?$"),
        ('[streams.door]\nsource = "-"\nzzz = 5', r"stream 'door': unknown key 'zzz'; expected one of source, keep,"),
        ("[streams.door]\nfps = 5", r"stream 'door': has no source; expected source = \"…\"$"),
        ('[streams.door]\nsource = ""', r"stream 'door': its source is empty$"),
        ('[streams.door]\nsource = "-"\nfps = "5"', r"stream 'door': fps: expected `float`, got `str`$"),
        ('[streams.door]\nsource = "-"\nfps = -1', r"stream 'door': fps must be between 0 and 10000, got -1$"),
        ('[streams.door]\nsource = "-"\nfps = nan', r"stream 'door': fps must be between 0 and 10000, got nan$"),
        ('[streams.door]\nsource = "-"\nqueue = 0', r"stream 'door': queue must be between 1 and 100000, got 0$"),
        ('[streams.door]\nsource = "-"\nkeep = "old"', r"stream 'door': keep: .*'old'"),
        ('[streams."a b"]\nsource = "-"', r"stream 'a b': 'a b' is no name for a stream"),
        ("[streams]\ndoor = 5", r"stream 'door': expected a table \[streams.door\], got 5$"),
        ("streams = 5", r"\[streams\] must be a table, got 5$"),
        ("[stream.door]", r"unknown table 'stream'; expected \[defaults\] and \[streams.NAME\]$"),
        ("[defaults]\nfsp = 5", r"\[defaults\]: unknown key 'fsp'; did you mean 'fps'\?$"),
        ('[defaults]\nsource = "-"', r"\[defaults\] has a source"),
        ("[streams.door", r"not TOML: "),
        ('[streams.a]\nsource="-"\n[streams.a]\nsource="-"', r"not TOML: "),
        ("streams = " + "[" * 100_000 + "]" * 100_000, "not a file of streams: it is nested "),
        ("streams = " + "[" * 250 + "]" * 250, "not a file of streams: it is nested deeper than"),
        ("a." * 900 + "a = 1", "not a file of streams: it is nested deeper than"),
        ("a." * 100_000 + "a = 1", "not a file of streams: a line has more than 1000 dots"),
        ('[streams.door]\nsource = "a\\u0000b"', "not a file of streams: the text .* holds a NUL"),
        ("streams = " + "[" * 150 + "]" * 150, r"\[streams\] must be a table, got \[{60}…$"),
    ],
)
def test_a_mistake_in_a_file_is_named(tmp_path, text, reason):
    with pytest.raises(EexError, match=rf"^.*streams\.toml: {reason}") as raised:
        read_streams(toml(tmp_path, text))
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there_or_no_text(tmp_path):
    with pytest.raises(EexError, match="cannot be read: No such file"):
        read_streams(tmp_path / "nowhere.toml")
    (tmp_path / "a.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(EexError, match="not TOML"):
        read_streams(tmp_path / "a.toml")


@pytest.mark.parametrize(
    ("spec", "name", "source"),
    [
        ("door=rtsp://10.0.0.7/main?a=b", "door", "rtsp://10.0.0.7/main?a=b"),
        ("rtsp://admin:secret@10.0.0.7/main?a=b", "10.0.0.7", "rtsp://admin:secret@10.0.0.7/main?a=b"),
        ("camera", "camera", "camera"),
        ("camera:1", "camera-1", "camera:1"),
        ("clips/rainy day.mp4", "rainy-day", "clips/rainy day.mp4"),
        ("clips/a=b.mp4", "a-b", "clips/a=b.mp4"),
        ("-", "stdin", "-"),
        ("pipe=-:64x48", "pipe", "-:64x48"),
        ("zmq+pull:///run/eex.sock", "zmq-pull", "zmq+pull:///run/eex.sock"),
    ],
)
def test_sources_of_the_command_line(spec, name, source):
    assert [(n, options.source) for n, options in parse_sources([spec]).items()] == [(name, source)]


def test_two_streams_of_one_name(tmp_path):
    with pytest.raises(
        EexError, match=r"^--source: two streams are named 'a'; give each a name of its own, as NAME=SPEC$"
    ):
        parse_sources(["a=camera", "a=camera:1"])
    with pytest.raises(EexError, match="two streams are named 'camera'"):
        parse_sources(["camera", "camera"])
    with pytest.raises(EexError, match="two streams are named 'a'"):
        together(parse_sources(["a=camera"]), read_streams(toml(tmp_path, '[streams.a]\nsource = "-"')))


def test_standard_input_feeds_one_stream():
    with pytest.raises(EexError, match=r"^streams 'a' and 'b' both read standard input; only one can$"):
        together(parse_sources(["a=-", "b=-:64x48"]))


def test_defaults_for_the_command_line():
    assert parse_sources(["a=camera"], {"fps": 3})["a"].fps == 3
    with pytest.raises(EexError, match=r"^stream 'a': changed must be between 0 and 1, got 20$"):
        parse_sources(["a=camera"], {"changed": 20})


@pytest.mark.parametrize("spec", ["=x", "a b=camera", "ä=camera", f"{'a' * 65}=camera"])
def test_names_that_cannot_be(spec):
    with pytest.raises(EexError, match="is no name for a stream"):
        parse_sources([spec])


def test_passwords_are_not_shown():
    assert shown("rtsp://admin:se:cr@et@10.0.0.7/main") == "rtsp://admin:***@10.0.0.7/main"
    assert shown("http://10.0.0.7:80/a@b") == "http://10.0.0.7:80/a@b"
    assert shown("mqtt://u:pa/ss@h/t") == "mqtt://u:***@h/t"


@pytest.mark.parametrize(
    ("spec", "hidden"),
    [
        ("http://h/v.cgi?user=admin&pwd=s/ec#ret", "http://h/v.cgi?user=admin&pwd=***"),
        ("http://h/v?loginpas=a&rate=5: is away", "http://h/v?loginpas=***&rate=5: is away"),
        ("https://h/live.m3u8?Token=abc", "https://h/live.m3u8?Token=***"),
        (
            "rtsp://h/user=admin_password=a_channel=1_stream=0.sdp",
            "rtsp://h/user=admin_password=***_channel=1_stream=0.sdp",
        ),
        ("key-door=rtsp://h/main", "key-door=rtsp://h/main"),
        ("zmq+pull://h:1?keys=folder", "zmq+pull://h:1?keys=folder"),
    ],
)
def test_passwords_beside_the_host_are_not_shown_either(spec, hidden):
    assert shown(spec) == hidden
