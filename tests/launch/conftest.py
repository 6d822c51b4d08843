"""A copy of the scripts, among commands that only record how they were called."""

import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import pytest

# Writes its name and arguments, each ended by a NUL and all by a newline, then does as STUB_NAME says.
_STUB = """#!/usr/bin/env bash
{ printf '%s\\0' "${0##*/}" "$@"; echo; } >>"$RECORD"
variable=STUB_${0##*/}
eval "${!variable:-}"
"""


class Shell:
    """Runs scripts of a copy of `launch/`, beside which only stubs stand in for what they start."""

    def __init__(self, repository: pathlib.Path, directory: pathlib.Path):
        self.root = directory / "a copy"
        self._record = directory / "record"
        self._commands = directory / "commands"
        for name in ("launch", "configs"):
            shutil.copytree(repository / name, self.root / name)
        # Sets up nothing: the Python that runs the tests serves.
        python = shlex.quote(os.path.dirname(sys.executable))
        (self.root / "launch" / "environment.sh").write_text(f"PATH={python}:$PATH\n")
        self._commands.mkdir()
        for name in ("gcloud", "git", "python", "sbatch", "srun", "scontrol"):
            stub = self._commands / name
            stub.write_text(_STUB)
            stub.chmod(0o755)
        home = directory / "home"
        home.mkdir()
        self.environment = {
            **os.environ,
            "HOME": str(home),
            "PATH": f"{self._commands}:{os.environ['PATH']}",
            "PYTHONPATH": str(repository),
            "RECORD": str(self._record),
            "POLL_SECONDS": "0",
        }

    def run(self, script: str, *arguments: str, **environment: str) -> tuple[int, str, str]:
        """Returns exit status, output and errors."""
        result = subprocess.run(
            ["bash", str(self.root / "launch" / script), *arguments],
            env={**self.environment, **environment},
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        return result.returncode, result.stdout, result.stderr

    def recorded(self) -> list[list[str]]:
        """Returns the commands that were called since the last time, each with its arguments."""
        if not self._record.exists():
            return []
        text = self._record.read_text()
        self._record.unlink()
        return [line.rstrip("\0").split("\0") for line in text.splitlines()]


@pytest.fixture
def shell(repository, tmp_path) -> Shell:
    return Shell(repository, tmp_path)
