"""Figures from the files that runs leave, as PNG and SVG.

    python -m ftbnn_jax.experiments.figures curves RUN... [--output=NAME]

| figure | shows |
|---|---|
| curves | accuracy or loss over the training, as in Figures 1 and 5 |
| slopes | learnt slopes by block, mean, least and largest (Table 2) |
| budget | accuracy against the total budget (Table 4) |

A RUN is a work directory, or a directory of `seedN` directories, which count as one: the mean is drawn,
and the range of the seeds as a band.
"""

import glob
import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from ftbnn_jax import budget, command, networks, plots
from ftbnn_jax.config import TrainConfig
from ftbnn_jax.deploy import audit
from ftbnn_jax.errors import UserError
from ftbnn_jax.experiments import results
from ftbnn_jax.experiments.results import Run
from ftbnn_jax.host import machine, paths
from ftbnn_jax.train import checkpoint

Group = tuple[str, list[Run]]


def read_group(path: str) -> Group:
    """Returns a label, and the run in a directory or those of its seeds.

    Raises:
      UserError: there is none.
    """
    path = path.rstrip("/")
    seeds = sorted(glob.glob(os.path.join(glob.escape(path), "seed*", "metrics.jsonl")))
    runs = [results.read(os.path.dirname(s)) for s in seeds] or [results.read(path)]
    return os.path.basename(path) or path, runs


def curves(groups: Sequence[Group], metric: str) -> Any:
    """Draws training (left) and evaluation (right) over the steps; returns the figure."""
    figure = plots.new_figure(9, 3.6)
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    scale = 100 if metric == "accuracy" else 1
    for axis, kind, title in zip(
        axes, ("train", "eval"), ("training images", "test images"), strict=True
    ):
        for style, (label, runs) in zip(_styles(len(groups)), groups, strict=True):
            steps, values = _common_curve(runs, kind, metric)
            if not len(steps):
                continue
            axis.plot(
                steps,
                scale * values.mean(0),
                label=label,
                markevery=1 if kind == "eval" else max(1, len(steps) // 8),
                markersize=5,
                **style,
            )
            if len(runs) > 1:
                low, high = scale * values.min(0), scale * values.max(0)
                axis.fill_between(steps, low, high, color=style["color"], alpha=0.15, linewidth=0)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step")
        _tidy(axis)
    axes[0].set_ylabel("accuracy (%)" if metric == "accuracy" else "loss")
    # A run that was just begun has no evaluation, and one of old may have no training accuracy.
    handles, labels = max((axis.get_legend_handles_labels() for axis in axes), key=lambda x: len(x[1]))
    if labels:
        figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    return figure


def _common_curve(runs: Sequence[Run], kind: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps that all runs have, and their values `[runs, steps]`."""
    found = [dict(zip(*run.curve(kind, metric), strict=True)) for run in runs]
    steps = sorted(set.intersection(*(set(values) for values in found)))
    return np.array(steps), np.array([[values[s] for s in steps] for values in found])


def slopes(groups: Sequence[Group]) -> Any:
    """Draws the learnt slopes of one run's FPReLU and PReLU, by block; returns the figure.

    Raises:
      UserError: there is more than one run, or it has no slopes.
    """
    if len(groups) != 1 or len(groups[0][1]) != 1:
        raise UserError("slopes: are drawn of one run; give one work directory")
    (run,) = groups[0][1]
    variables, experiment, _ = checkpoint.load_variables(run.path)
    config = TrainConfig.from_dict(experiment["config"])
    rows = audit.layers(config, variables, experiment["channels"], ())
    figure = plots.new_figure(max(5.0, 0.42 * len(rows) + 2), 3.6)
    axis = figure.subplots()
    sides = (("positive_slope", "positive side", 0.12), ("negative_slope", "negative side", -0.12))
    for style, (field, label, shift) in zip(plots.STYLES, sides, strict=False):
        there = [(i, row[field]) for i, row in enumerate(rows) if row[field]]
        if not there:
            continue
        places = np.array([i + shift for i, _ in there])
        mean, least, largest = np.array([values for _, values in there]).T
        reach = np.array([mean - least, largest - mean])
        axis.errorbar(
            places,
            mean,
            reach,
            label=label,
            fmt=style["marker"],
            color=style["color"],
            capsize=3,
            markersize=5,
        )
    if not axis.containers:
        raise UserError(f"{run.path}: the network has no slopes; PReLU and FPReLU have")
    axis.set_xticks(range(len(rows)), [row["name"] for row in rows], rotation=60, ha="right", fontsize=8)
    axis.set_xlim(-0.6, len(rows) - 0.4)
    axis.axhline(1, color="0.6", linewidth=0.8, zorder=0)
    axis.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    axis.set_ylabel("slope: mean, least, largest")
    _tidy(axis)
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    return figure


def accuracy_over_budget(groups: Sequence[Group]) -> Any:
    """Draws the final test accuracy against the total budget; returns the figure."""
    figure = plots.new_figure(6.4, 4)
    axis = figure.subplots()
    for style, (label, runs) in zip(_styles(len(groups)), groups, strict=True):
        config = TrainConfig.from_dict(runs[0].config)
        shape = (config.image_size, config.image_size, len(config.pixel_mean))
        counted = budget.count(networks.make(config), shape, memory=False)
        mean, deviation = results.mean_and_deviation([100 * run.final_accuracy() for run in runs])
        axis.errorbar(
            counted.total / 1e6,
            mean,
            deviation or 0,
            label=label,
            fmt=style["marker"],
            color=style["color"],
            capsize=3,
            markersize=7,
        )
    axis.set_xlabel("total budget, FLOPs + BOPs / 64 (M)")
    axis.set_ylabel("test accuracy (%)")
    _tidy(axis)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return figure


def _styles(count: int) -> list[dict[str, Any]]:
    if count > len(plots.STYLES):
        raise UserError(f"{count} runs: at most {len(plots.STYLES)} can be told apart in one figure")
    return list(plots.STYLES[:count])


def _tidy(axis: Any) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color="0.9", linewidth=0.6)
    axis.set_axisbelow(True)


def write(figure: Any, name: str) -> list[str]:
    """Writes a figure as PNG and SVG and returns both paths; `name` has no ending."""
    paths = [f"{name}.png", f"{name}.svg"]
    for path in paths:
        plots.check_path(path)
        plots.save(figure, path)
    return paths


def main(arguments: Sequence[str]) -> int:
    """Does what the command line says and returns the exit status."""
    parser = command.ArgumentParser(
        prog="python -m ftbnn_jax.experiments.figures", description="Draw the files that runs leave."
    )
    parser.add_argument("figure", choices=["curves", "slopes", "budget"])
    parser.add_argument(
        "runs", nargs="+", type=paths.local_argument, metavar="RUN", help="work directories"
    )
    parser.add_argument("--metric", choices=["accuracy", "loss"], default="accuracy", help="for curves")
    parser.add_argument(
        "--output",
        type=paths.local_argument,
        metavar="NAME",
        help="files NAME.png and NAME.svg (default: FIGURE)",
    )
    options = parser.parse_args(arguments)
    machine.start_jax()
    groups = [read_group(path) for path in options.runs]
    if options.figure == "curves":
        figure = curves(groups, options.metric)
    else:
        figure = {"slopes": slopes, "budget": accuracy_over_budget}[options.figure](groups)
    for path in write(figure, options.output or options.figure):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(command.run(main))
