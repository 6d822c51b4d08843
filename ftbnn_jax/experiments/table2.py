"""Table 2: the learnt slopes of a run's FPReLU by block, beside the published ones.

    python -m ftbnn_jax.experiments.table2 RUN

RUN is a work directory, of `configs/baseline.py` or any other net with FPReLU or PReLU. Published slopes
are those of the baseline on ImageNet.
"""

import sys
from collections.abc import Sequence

import rich.table

from ftbnn_jax import command, published, report
from ftbnn_jax.config import TrainConfig
from ftbnn_jax.deploy import audit
from ftbnn_jax.errors import UserError
from ftbnn_jax.experiments import results
from ftbnn_jax.host import machine, paths
from ftbnn_jax.train import checkpoint

_SIDES = ("negative", "positive")


def _shown(slopes: Sequence[float] | None) -> str:
    """Mean, least and largest as the paper prints them."""
    return "" if slopes is None else "{:.2f} [{:.2f} {:.2f}]".format(*slopes)


def main(arguments: Sequence[str]) -> int:
    """Does what the command line says and returns the exit status."""
    parser = command.ArgumentParser(
        prog="python -m ftbnn_jax.experiments.table2",
        description="Learnt slopes by block, beside the paper's Table 2.",
    )
    parser.add_argument("run", type=paths.local_argument, metavar="RUN", help="work directory")
    options = parser.parse_args(list(arguments))
    machine.start_jax()
    run = results.read(options.run)
    variables, experiment, step = checkpoint.load_variables(run.path)
    config = TrainConfig.from_dict(experiment["config"])
    rows = audit.layers(config, variables, experiment["channels"], ())
    if not any(row["negative_slope"] for row in rows):
        raise UserError(f"{run.path}: the network has no slopes; PReLU and FPReLU have")
    table = rich.table.Table(title=f"Learnt slopes at step {step:,}", title_justify="left")
    for header in ("block", *_SIDES, *(f"{side}, published" for side in _SIDES)):
        table.add_column(header, justify="left" if header == "block" else "right")
    for row in rows:
        ours = (_shown(row[f"{side}_slope"]) for side in _SIDES)
        table.add_row(row["name"], *ours, *map(_shown, published.TABLE2.get(row["name"], (None, None))))
    report.console.print(table)
    report.console.print("mean [least largest] over the channels")
    return 0


if __name__ == "__main__":
    sys.exit(command.run(main))
