"""Random command lines and environments: one line for each mistake, no traceback, no other status."""

import os
import subprocess
import sys

import pytest

_SEED = os.environ.get("FUZZ_SEED", "0")
_COUNT = os.environ.get("FUZZ_COUNT", "30")


@pytest.mark.slow
def test_no_command_line_ends_in_a_traceback(repository):
    fuzzer = repository / "tests" / "command_line_fuzz.py"
    command = [sys.executable, fuzzer, f"--seed={_SEED}", f"--count={_COUNT}", "--interrupted=1"]
    environment = {**os.environ, "PYTHONPATH": str(repository), "JAX_NUM_CPU_DEVICES": "1"}
    # Warnings and logs of the libraries are the fuzzer's own business.
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"{_COUNT} cases of seed {_SEED}, 0 broken" in done.stdout
