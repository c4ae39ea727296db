"""`eex-train-rl` as a user runs it."""

import numpy as np
import pytest
from commands import call

from eex.policies.core.trace import Trace, write_trace

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def trained(tmp_path):
    """Train for a moment, with a setting that stable-baselines3 warns of."""
    confidence = np.random.default_rng(0).uniform(size=(300, 2))
    write_trace(tmp_path / "trace.arrow", Trace(confidence, np.zeros((300, 2), int), np.zeros(300, int), ("cat",)))
    small = (
        "--steps 64 --envs 8 --rounds 50 --switch 5 30 --layers 4 --evaluate-rounds 60 --evaluate-seeds 1 --threads 1"
    )
    odd = ("--setting", "n_steps=8", "batch_size=60")

    def run(*more):
        where = ("--trace", tmp_path / "trace.arrow", "--out", tmp_path / "agent")
        return call("train_rl", *where, *small.split(), *odd, *more)

    return run


def test_quiet_shows_nothing_that_a_library_warns_of(trained):
    done = trained("--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.filterwarnings("default")
def test_a_librarys_warning_is_one_line(trained):
    done = trained()
    assert done.returncode == 0
    lines = [line for line in done.stderr.splitlines() if "mini-batch" in line]
    assert len(lines) == 1
    assert lines[0].startswith("warning: stable_baselines3: You have specified a mini-batch size of 60")


@pytest.mark.filterwarnings("default")
def test_the_end_says_how_it_did_beside_the_policies_it_is_meant_to_beat(trained):
    done = trained("--reward", "utility")
    assert (done.returncode, done.stdout.count("ucb"), done.stdout.count("stop-curve")) == (0, 1, 1)
