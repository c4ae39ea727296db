"""The environment is found by its name, without torch."""

import subprocess
import sys

from eex.policies.core.trace import write_trace


def test_found_by_name_in_a_fresh_process(make_trace, tmp_path):
    write_trace(tmp_path / "trace.arrow", make_trace())
    program = (
        "import gymnasium, sys\n"
        "env = gymnasium.make('eex.envs:eex/Threshold-v0', trace=sys.argv[1])\n"
        "assert 'torch' not in sys.modules and 'stable_baselines3' not in sys.modules\n"
        "print(env.reset(seed=0)[0].shape)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "trace.arrow"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.stdout == "(15,)\n", done.stderr
