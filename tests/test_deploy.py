"""What `deploy/` starts can be started: options that exist, streams that can be read, another user."""

import configparser
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import tyro
from generate import call_of

from eex.stream.live.streams import read_streams

DEPLOY = Path(__file__).parent.parent / "deploy"


def unit():
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str
    parser.read(DEPLOY / "eex-live.service")
    return parser


def parsed(arguments):
    args, kwargs = call_of("eex-live", *arguments)
    command = tyro.cli(*args, **kwargs | {"args": arguments})
    command.live.check()
    return command


def test_the_unit_starts_the_command_with_options_that_it_has():
    service = unit()["Service"]
    defaults = dict(word.split("=", 1) for word in shlex.split(service["Environment"]))
    for options, worker in (("", "embedded"), ("--worker tcp://cloud.example:5555", "tcp://cloud.example:5555")):
        given = defaults | {"OPTIONS": options}
        line = re.sub(r"\$\{?(\w+)\}?", lambda match: given[match[1]], service["ExecStart"])  # noqa: B023
        program, *arguments = shlex.split(line)
        assert Path(program).name == "eex-live"
        command = parsed(arguments)
        assert command.answers == ("/var/lib/eex/answers.jsonl",)
        assert command.live.keep_records == "10GB"
        assert command.live.worker == worker


def test_the_unit_gives_no_rights_that_it_does_not_take():
    service = unit()["Service"]
    assert service["DynamicUser"] == service["NoNewPrivileges"] == "yes"
    assert service["ProtectSystem"] == "strict"
    assert service["CapabilityBoundingSet"] == ""
    assert service["ExecReload"].startswith("/bin/kill -HUP")


@pytest.mark.process
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze (Debian: systemd)")
def test_systemd_understands_the_unit():
    done = subprocess.run(
        ["systemd-analyze", "verify", DEPLOY / "eex-live.service"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if "eex-live" in line and "is not executable" not in line]
    assert said == []


def test_the_container_runs_the_command_as_another_user():
    lines = (DEPLOY / "Containerfile").read_text().replace("\\\n", " ").splitlines()
    last = {line.split(None, 1)[0]: line.split(None, 1)[1] for line in lines if line and not line.startswith("#")}
    assert int(last["USER"]) > 0
    assert json.loads(last["ENTRYPOINT"]) == ["eex-live"]
    command = parsed(json.loads(last["CMD"]))
    assert command.answers == ("-",)
    copied = {line.split()[1] for line in lines if line.startswith("COPY") and "--from" not in line}
    assert {"pyproject.toml", "policies", "models", "envs", "stream", "experiments"} <= copied
    assert all((DEPLOY.parent / name).exists() for name in copied)


def test_the_streams_can_be_read():
    assert list(read_streams(DEPLOY / "streams.toml")) == ["door", "yard", "uploads"]
