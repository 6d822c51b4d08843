"""How FPReLU's gain over no activation grows with the length of the training, beside PReLU's.

    python -m ftbnn_jax.experiments.fprelu --workdir=DIR [--steps=1000,4000,16000] [--output=NAME]

Rows of Table 3 in small, on CIFAR-10 (`configs/ablation.py:ROW,cifar10`), each trained for several
lengths with its own schedule. Of each row and length it prints

- the test accuracy,
- the share of PReLU's gain, `(row - none) / (prelu - none)`, of accuracies with the same seed,
- the bend of its slopes, `|r - l| / (|r| + |l|)`, mean over all channels: 0 is a straight line, 0.6 is
  PReLU at its usual start (r = 1, l = 0.25), 1 is ReLU.

Lengths from 10,000 steps on are those of the paper's rows alone. What follows `--` is handed to every
run. Finished runs are kept, so it may be stopped and started again. NAME.json and NAME.png are what the
runs gave.
"""

import statistics
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import rich.table

from ftbnn_jax import command, plots, report
from ftbnn_jax.errors import UserError
from ftbnn_jax.experiments import members, outputs, results, sweep
from ftbnn_jax.nn import variables as nn_variables
from ftbnn_jax.train import checkpoint

_STEPS = (1000, 4000, 16000)
_LONG = 10_000
_PAPER_ROWS = ("none", "prelu", "fprelu")
_ROWS = (*_PAPER_ROWS, "fprelu_025", "prelu_1")


def bend(slopes: dict[str, np.ndarray]) -> float | None:
    """Returns how far activations are from straight lines; None where there are no slopes.

    Args:
      slopes: by name, `.../negative_slope` `[C]`, and `.../positive_slope` `[C]` where it is not 1.
    """
    found = []
    for name, left in slopes.items():
        module, _, side = name.rpartition("/")
        if side == "negative_slope":
            right = slopes.get(f"{module}/positive_slope", np.ones_like(left))
            found.append(np.abs(right - left) / np.maximum(np.abs(right) + np.abs(left), 1e-12))
    return float(np.concatenate(found).mean()) if found else None


def plan(
    steps: Sequence[int], seeds: Sequence[int], overrides: Sequence[str] = ()
) -> dict[tuple[str, int], list[members.Member]]:
    """Returns the runs by row and number of steps, the shortest first.

    Args:
      steps: lengths of the training.
      seeds: of each row and length.
      overrides: arguments for each run.
    """
    found = {}
    for count in sorted(steps):
        for row in _PAPER_ROWS if count >= _LONG else _ROWS:
            entry = {f"{row}-{count}": f"ablation:{row},cifar10"}
            length = f"--config.num_steps={count}"
            found[row, count] = members.make(entry, seeds, [length, *overrides])
    return found


def _measured(run: results.Run, seed: int) -> dict[str, Any]:
    variables, _, step = checkpoint.load_variables(run.path)
    slopes = {
        name: np.asarray(array)
        for name, array in nn_variables.by_name(variables["params"]).items()
        if name.endswith("_slope")
    }
    return {"seed": seed, "step": step, "accuracy": run.final_accuracy(), "bend": bend(slopes)}


def shares(found: dict[tuple[str, int], list[dict[str, Any]]], row: str, steps: int) -> list[float]:
    """Returns a row's share of PReLU's gain, one for each seed that all three rows have.

    Args:
      found: by row and steps, a list of `seed` and `accuracy`.
      row: whose share it is.
      steps: of the trainings.
    """
    by_seed = [
        {run["seed"]: run["accuracy"] for run in found.get((name, steps), ())}
        for name in (row, "none", "prelu")
    ]
    row_of, none_of, prelu_of = by_seed
    seeds = sorted(row_of.keys() & none_of.keys() & prelu_of.keys())
    return [(row_of[s] - none_of[s]) / (prelu_of[s] - none_of[s]) for s in seeds]


def _print(found: dict[tuple[str, int], list[dict[str, Any]]]) -> None:
    table = rich.table.Table(title="FPReLU against the length of the training", title_justify="left")
    for header in ("row", "steps", "seeds", "test accuracy, %", "share of PReLU's gain, %", "bend"):
        table.add_column(header, justify="left" if header == "row" else "right")
    for (row, steps), runs in found.items():
        bends = [run["bend"] for run in runs if run["bend"] is not None]
        table.add_row(
            row,
            f"{steps:,}",
            str(len(runs)),
            results.spread([run["accuracy"] for run in runs], 100),
            "" if row in ("none", "prelu") else results.spread(shares(found, row, steps), 100, 0),
            results.spread(bends, digits=3),
        )
    report.console.print(table)


def _figure(found: dict[tuple[str, int], list[dict[str, Any]]]) -> Any:
    """Draws the share of the gain (left) and the bend (right) against the steps."""
    figure = plots.new_figure(9, 3.6)
    left, right = figure.subplots(1, 2)
    for row, style in zip(_ROWS, plots.STYLES, strict=False):
        lengths = [steps for name, steps in found if name == row and found[name, steps]]
        gains = {n: shares(found, row, n) for n in lengths}
        bends = {n: [r["bend"] for r in found[row, n] if r["bend"] is not None] for n in lengths}
        for axis, values, scale in ((left, gains, 100), (right, bends, 1)):
            drawn = [n for n in lengths if values[n]]
            if drawn and (axis is right or row not in ("none", "prelu")):
                means = [scale * statistics.fmean(values[n]) for n in drawn]
                axis.plot(drawn, means, label=row, markersize=5, **style)
                for n in drawn:
                    points = [scale * value for value in values[n]]
                    axis.scatter([n] * len(points), points, color=style["color"], s=8)
    left.set_ylabel("share of PReLU's gain (%)")
    right.set_ylabel("bend |r - l| / (|r| + |l|)")
    lengths = sorted({steps for _, steps in found})
    for axis in (left, right):
        axis.set_xscale("log")
        axis.set_xticks(lengths, [f"{n:,}" for n in lengths])
        axis.minorticks_off()
        axis.set_xlabel("steps")
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False, fontsize=8)
    return figure


def main(arguments: Sequence[str]) -> int:
    """Does what the command line says and returns the exit status."""
    parser = command.ArgumentParser(
        prog="python -m ftbnn_jax.experiments.fprelu",
        description="Train rows of Table 3 in small for several lengths, and compare what FPReLU gains.",
        epilog="What follows -- is handed to every run: -- --config.compute_dtype=float32",
    )
    sweep.add_arguments(parser, seeds="0,1")
    parser.add_argument("--steps", type=sweep.numbers, default=_STEPS, metavar="N,N")
    outputs.add_argument(parser)
    own, overrides = sweep.split_arguments(arguments)
    options = parser.parse_args(own)
    if 0 in options.steps:
        raise UserError("--steps=0: a training has at least one step")
    outputs.check(options.output)
    runs = plan(options.steps, options.seeds, overrides)
    wanted = [member for group in runs.values() for member in group]
    status = 0 if options.report else sweep.run(wanted, options.workdir, options.shard, options.jobs)
    if status == command.UNFINISHED:
        return status
    found = {
        place: [
            _measured(results.read(member.directory(options.workdir)), member.seed)
            for member in group
            if member.is_finished(options.workdir)
        ]
        for place, group in runs.items()
    }
    _print(found)
    if options.output:
        rows = [{"row": r, "steps": n, "runs": measured} for (r, n), measured in found.items()]
        outputs.write(options.output, rows, _figure(found))
    return status


if __name__ == "__main__":
    sys.exit(command.run(main))
