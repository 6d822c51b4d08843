"""Looks for the net of Figure 2, of which the paper gives neither width, stride nor epochs, among many.

    python -m ftbnn_jax.experiments.figure2_nets --workdir=DIR [--widths=2,4,8] [--strides=1,2]
        [--epochs=1,5] [--seeds=0,1] [--output=NAME]

Trains the binary models of `configs/mnist_figure2.py` in every width, stride of the stem and number of
epochs, and measures all definitions of `experiments.discrepancy`. A net reaches the figure's accuracy
where the means of its three models are within 0.3 points of the published ones (about twice the largest
published standard deviation), and its discrepancy by a definition where they are within 10% (likewise).
What follows `--` is handed to every run. Finished runs are kept, so it may be stopped and started again.
NAME.json and NAME.png are what it found.
"""

import itertools
import statistics
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import rich.table

from ftbnn_jax import command, plots, published, report
from ftbnn_jax.experiments import discrepancy, figure2, members, outputs, results, sweep
from ftbnn_jax.host import machine

_MODELS = tuple(published.FIGURE2_DISCREPANCY)
_POINTS, _SHARE = 0.3, 0.1
# Stride 1 keeps four times as many positions.
_NUM_IMAGES = 1000


class Net(NamedTuple):
    """Channels of stem and blocks, stride of the stem, epochs of the training."""

    width: int
    stride: int
    epochs: int


def plan(
    widths: Sequence[int],
    strides: Sequence[int],
    epochs: Sequence[int],
    seeds: Sequence[int],
    overrides: Sequence[str] = (),
) -> dict[Net, dict[str, list[members.Member]]]:
    """Returns the runs by net and model."""
    found = {}
    for net in itertools.starmap(Net, itertools.product(widths, strides, epochs)):
        given = [
            f"--config.model.width={net.width}",
            f"--config.model.stem_features={net.width}",
            f"--config.model.stem_stride={net.stride}",
            f"--config.num_epochs={net.epochs}",
            # The last step is evaluated whatever this says.
            "--config.eval_every=1000000",
        ]
        name = f"width{net.width}-stride{net.stride}-epochs{net.epochs}"
        found[net] = {
            model: members.make(
                {f"{model}-{name}": f"mnist_figure2:{model}"}, seeds, [*given, *overrides]
            )
            for model in _MODELS
        }
    return found


def measure(member: members.Member, workdir: str) -> dict[str, float]:
    """Returns the discrepancies of a finished run by definition, and leaves them with it."""
    return figure2.measure(member, workdir, _NUM_IMAGES, keep_features=False)


def compare(
    accuracies: dict[str, Sequence[float]], discrepancies: dict[str, Sequence[dict[str, float]]]
) -> dict[str, Any]:
    """Returns how far a net is from the figure.

    Args:
      accuracies: of each model's runs.
      discrepancies: of each model's runs, by definition.

    Returns:
      `points`: the largest difference of a model's mean accuracy from the published one, in points;
      `share`, by definition: the largest difference of a model's mean discrepancy from the published
      one, relative to it; `nearest`: the definition with the least.
    """
    points = max(
        abs(100 * statistics.fmean(values) - published.FIGURE2_ACCURACY[model][0])
        for model, values in accuracies.items()
    )
    share = {
        definition: max(
            abs(statistics.fmean(run[definition] for run in runs) / expected - 1)
            for model, (expected, _) in published.FIGURE2_DISCREPANCY.items()
            if (runs := discrepancies[model])
        )
        for definition in discrepancy.DEFINITIONS
    }
    return {"points": points, "share": share, "nearest": min(share, key=share.__getitem__)}


def _measured(runs: dict[Net, dict[str, list[members.Member]]], workdir: str) -> list[dict[str, Any]]:
    """Returns a row for each net of which a run of each model has finished."""
    rows = []
    for net, by_model in runs.items():
        finished = {
            model: [m for m in group if m.is_finished(workdir)] for model, group in by_model.items()
        }
        if not all(finished.values()):
            continue
        accuracies = {
            model: [results.read(m.directory(workdir)).final_accuracy() for m in group]
            for model, group in finished.items()
        }
        found = {model: [measure(m, workdir) for m in group] for model, group in finished.items()}
        rows.append(
            {
                **net._asdict(),
                "accuracy": accuracies,
                "discrepancy": found,
                **compare(accuracies, found),
            }
        )
    return rows


def _print(rows: Sequence[dict[str, Any]]) -> None:
    table = rich.table.Table(title="Nets beside Figure 2", title_justify="left")
    for header in ("channels", "stride", "epochs", "runs"):
        table.add_column(header, justify="right")
    for model in _MODELS:
        table.add_column(f"{model}: accuracy, %", justify="right")
    table.add_column("off by at most, points", justify="right")
    table.add_column("nearest definition")
    table.add_column(f"it gives {', '.join(_MODELS)}", justify="right")
    table.add_column("off by at most, %", justify="right")
    for row in rows:
        runs = row["discrepancy"]
        given = [[run[row["nearest"]] for run in runs[model]] for model in _MODELS]
        table.add_row(
            *(str(row[name]) for name in Net._fields),
            ", ".join(str(len(values)) for values in given),
            *(results.spread(row["accuracy"][model], 100) for model in _MODELS),
            f"{row['points']:.2f}",
            row["nearest"],
            ", ".join(results.spread(values) for values in given),
            f"{100 * row['share'][row['nearest']]:.0f}",
        )
    report.console.print(table)
    accurate = [row for row in rows if row["points"] <= _POINTS]
    near = [row for row in rows if row["share"][row["nearest"]] <= _SHARE]
    both = [row for row in accurate if row in near]
    report.console.print(
        f"of {len(rows)} nets {len(accurate)} are within {_POINTS} points of the published accuracies, "
        f"{len(near)} within {_SHARE:.0%} of the discrepancies by one of {len(discrepancy.DEFINITIONS)} "
        f"definitions, {len(both)} within both"
    )


def _figure(rows: Sequence[dict[str, Any]]) -> Any:
    """Draws how far each net is off, in discrepancy against accuracy; the box is the figure's."""
    figure = plots.new_figure(6.4, 4.2)
    axis = figure.subplots()
    # Both axes are logarithmic and have no place for an exact 0.
    least_points, least_percent = _POINTS / 30, 100 * _SHARE / 30
    for width, style in zip(sorted({row["width"] for row in rows}), plots.STYLES, strict=False):
        drawn = [row for row in rows if row["width"] == width]
        axis.scatter(
            [max(least_points, row["points"]) for row in drawn],
            [max(least_percent, 100 * row["share"][row["nearest"]]) for row in drawn],
            label=f"{width} channels",
            color=style["color"],
            marker=style["marker"],
            s=28,
        )
    axis.set_xscale("log")
    axis.set_yscale("log")
    (left, _), (bottom, top) = axis.get_xlim(), axis.get_ylim()
    left, bottom = min(left, _POINTS / 2), min(bottom, 100 * _SHARE / 2)
    axis.set_xlim(left=left)
    axis.set_ylim(bottom, max(top, 100))
    axis.plot([left, _POINTS, _POINTS], [100 * _SHARE, 100 * _SHARE, bottom], "--", color="0.4")
    axis.set_xlabel("largest difference from a published accuracy (points)")
    axis.set_ylabel("largest difference from a published\ndiscrepancy (%), nearest definition")
    for scale in (axis.xaxis, axis.yaxis):
        scale.set_major_formatter("{x:g}")
        scale.set_minor_formatter("")
    axis.grid(alpha=0.3)
    if rows:
        axis.legend(frameon=False, fontsize=8)
    return figure


def main(arguments: Sequence[str]) -> int:
    """Does what the command line says and returns the exit status."""
    parser = command.ArgumentParser(
        prog="python -m ftbnn_jax.experiments.figure2_nets",
        description="Look for the net of Figure 2 among many.",
        epilog="What follows -- is handed to every run: -- --config.compute_dtype=float32",
    )
    sweep.add_arguments(parser, seeds="0,1")
    for name, default in (
        ("widths", (2, 4, 8, 16, 32, 64)),
        ("strides", (1, 2)),
        ("epochs", (1, 5)),
    ):
        parser.add_argument(f"--{name}", type=sweep.numbers, default=default, metavar="N,N")
    outputs.add_argument(parser)
    own, overrides = sweep.split_arguments(arguments)
    options = parser.parse_args(own)
    outputs.check(options.output)
    runs = plan(options.widths, options.strides, options.epochs, options.seeds, overrides)
    wanted = [m for by_model in runs.values() for group in by_model.values() for m in group]
    machine.start_jax()
    status = 0 if options.report else sweep.run(wanted, options.workdir, options.shard, options.jobs)
    if status == command.UNFINISHED:
        return status
    rows = _measured(runs, options.workdir)
    _print(rows)
    if options.output:
        outputs.write(options.output, rows, _figure(rows))
    return status


if __name__ == "__main__":
    sys.exit(command.run(main))
