"""A program for microcontrollers on a core that QEMU emulates, before it is written anywhere."""

import json
import shutil
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ftbnn_jax.deploy.c import build, golden, memory_map, profile, schedule
from ftbnn_jax.errors import UserError

CORE = "cortex-m4"
_TOOLS = ("make", memory_map.COMPILER, "qemu-system-arm")
# Multiply-adds of a network that takes seconds.
_MOST = 50_000_000


class Counted(NamedTuple):
    """One prediction on `CORE`.

    Attributes:
      instructions: that it took.
      compared: integers of binary products that were compared with the reference's.
      differing: how many of them, and of the logits, differ.
    """

    instructions: int
    compared: int
    differing: int

    def rows(self) -> Iterator[tuple[str, str]]:
        """Yields the lines of a table."""
        yield f"instructions on a {CORE}", f"{self.instructions:,} a prediction, counted by QEMU"
        yield (
            f"integers on a {CORE}",
            f"{self.differing:,} of {self.compared:,} differ from the reference's",
        )


def count(files: Mapping[str, bytes], network: schedule.Network) -> Counted | None:
    """Runs the first golden vectors; None where tools are missing or the network is too large for that.

    Args:
      files: of a program of `--target=cortex-m`, by path, with `golden.bin`.
      network: that it is.

    Raises:
      UserError: the program cannot be built or run.
    """
    loops = profile.describe(network)
    multiply_adds = sum(loop.binary_multiply_adds + loop.real_multiply_adds for loop in loops)
    if multiply_adds > _MOST or not all(map(shutil.which, _TOOLS)):
        return None
    with build.scratch() as scratch:
        for name, content in files.items():
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            (scratch / name).write_bytes(content)
        (scratch / "golden.bin").write_bytes(golden.shortened(network, files["golden.bin"]))
        command = ["make", "-s", "-C", str(scratch / "bare_metal"), f"CORE={CORE}", "FORM=json"]
        result = build.run(command)
    try:
        found = json.loads(result.stdout)
    except ValueError as error:
        lines = (result.stderr + result.stdout).strip().splitlines() or ["it prints nothing"]
        raise UserError(f"the test on an emulated {CORE}: {lines[0]}") from error
    blocks = found["blocks"]
    differing = sum(block["differing"] + block["end_to_end"] for block in blocks)
    return Counted(
        found["instructions"],
        2 * sum(block["compared"] for block in blocks),
        differing + found["logits_differing"],
    )
