"""The runs that a sweep consists of."""

import contextlib
import dataclasses
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence

from ftbnn_jax import config as config_lib
from ftbnn_jax.errors import UserError
from ftbnn_jax.host import paths

_FINISHED = "finished.json"
_MAIN = [sys.executable, "-m", "ftbnn_jax.main"]


@dataclasses.dataclass(frozen=True)
class Member:
    """One run of a sweep.

    Attributes:
      name: of its config in the table, and of the directory of all its seeds.
      config: file and argument, as in "configs/ablation.py:prelu,cifar10".
      seed: of the run.
      overrides: arguments for `ftbnn_jax.main`, "--config.KEY=VALUE".
    """

    name: str
    config: str
    seed: int
    overrides: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        return f"{self.name} seed {self.seed}"

    def directory(self, workdir: str) -> str:
        """Returns the run's work directory."""
        return os.path.join(workdir, self.name, f"seed{self.seed}")

    def is_finished(self, workdir: str) -> bool:
        """Whether the run has come to its end.

        Raises:
          UserError: it has, but with another config.
        """
        path = os.path.join(self.directory(workdir), _FINISHED)
        try:
            with open(path) as stream:
                found = json.load(stream)
        except FileNotFoundError:
            return False
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: {error}; delete it, and the run is looked at again") from error
        if found != self._identity():
            raise UserError(f"{path}: the run was made with {found}; take another --workdir")
        return True

    def _identity(self) -> dict[str, object]:
        argument = self.config.partition(":")[2]
        return {"argument": argument, "seed": self.seed, "overrides": list(self.overrides)}

    def start(self, workdir: str, cores: set[int] | None) -> subprocess.Popen[bytes]:
        """Starts the run, on these cores; what it prints goes into `log.txt` of its directory."""
        directory = self.directory(workdir)
        os.makedirs(directory, exist_ok=True)
        command = [*_MAIN, f"--config={self.config}", f"--workdir={directory}"]
        command += [f"--config.seed={self.seed}", *self.overrides]
        with open(os.path.join(directory, "log.txt"), "ab") as log, _on_cores(cores):
            # In a group of its own: Ctrl-C reaches the sweep alone, which hands it on.
            return subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, process_group=0
            )

    def finish(self, workdir: str) -> None:
        """Marks the run as one that has come to its end."""
        path = os.path.join(self.directory(workdir), _FINISHED)
        paths.write_whole(path, json.dumps(self._identity()))

    def last_line(self, workdir: str) -> str:
        """Returns the last line that the run printed."""
        with open(os.path.join(self.directory(workdir), "log.txt"), errors="replace") as stream:
            return ([line.strip() for line in stream if line.strip()] or ["no output"])[-1]


@contextlib.contextmanager
def _on_cores(cores: set[int] | None) -> Iterator[None]:
    """Has processes that are started inside run on these cores; all of them where that is unknown."""
    if not cores:
        yield
        return
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, mine)


def make(
    configs: Mapping[str, str],
    seeds: Sequence[int],
    overrides: Sequence[str] = (),
    grid: Mapping[str, Sequence[str]] | None = None,
) -> list[Member]:
    """Returns the runs of a sweep, one seed of all configs after the other.

    Args:
      configs: file and argument by name.
      seeds: of each config.
      overrides: arguments for each run.
      grid: values by field ("model.groups"): every config is run with every combination of them, which
        its name then tells, "derived18_g1-model.groups=1".

    Raises:
      UserError: a config cannot be used, an argument is not one that all runs can share, or two runs
        would share a directory.
    """
    values, others = config_lib.split_overrides(overrides)
    for argument in (*others, *(f"--config.{v}" for v in values if v.startswith("seed="))):
        raise UserError(f"-- {argument}: must be --config.KEY=VALUE, and no seed, which --seeds gives")
    axes = [[f"{key}={value}" for value in column] for key, column in (grid or {}).items()]
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    for (name, config), point in itertools.product(configs.items(), itertools.product(*axes)):
        full = "-".join([name, *map(_part, point)])
        if full in found:
            raise UserError(
                f"--grid: {' and '.join(point)} would share the directory {full} with another"
            )
        arguments = [f"--config.{override}" for override in point]
        config_lib.load(config, config_lib.split_overrides([*overrides, *arguments])[0])
        found[full] = config, (*overrides, *arguments)
    return [
        Member(name, config, seed, arguments)
        for seed in seeds
        for name, (config, arguments) in found.items()
    ]


def _part(override: str) -> str:
    """An override as a part of a directory's name: "model.blocks=2,2" for "model.blocks=(2, 2)"."""
    return re.sub(r"[^\w.+=,]+", "-", re.sub(r"[\s()\[\]]", "", override))


def name_of(config: str) -> str:
    """A directory's name for a config: "ablation-prelu" for "configs/ablation.py:prelu"."""
    file, _, argument = config.partition(":")
    stem = os.path.splitext(os.path.basename(file))[0]
    return re.sub(r"[^\w.+]+", "-", f"{stem}-{argument}" if argument else stem)
