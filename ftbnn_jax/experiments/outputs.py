"""What an experiment leaves when it is given `--output=NAME`: NAME.json and NAME.png."""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ftbnn_jax import plots, report
from ftbnn_jax.experiments import members
from ftbnn_jax.host import paths


def add_argument(parser: argparse.ArgumentParser) -> None:
    """Adds `--output`; `check` looks at what was given, before anything is trained."""
    parser.add_argument(
        "--output", type=paths.local_argument, metavar="NAME", help="write NAME.json and NAME.png"
    )


def check(output: str | None) -> None:
    """Raises a UserError where nothing can be written there."""
    if output:
        plots.check_path(f"{output}.png")


def write(output: str, rows: Sequence[Mapping[str, Any]], figure: Any) -> None:
    """Writes both files, one row a line."""
    lines = ",\n ".join(map(report.to_json, rows))
    paths.write_whole(f"{output}.json", f"[{lines}]\n")
    plots.save(figure, f"{output}.png")


def accuracy_rows(
    wanted: Sequence[members.Member], found: Mapping[str, Sequence[float]]
) -> list[dict[str, Any]]:
    """Returns rows for `write`, one a config, of the final test accuracies of its runs.

    Args:
      wanted: the runs.
      found: from `sweep.accuracies`.
    """
    first = {m.name: m for m in reversed(wanted)}
    return [
        {
            "name": name,
            "config": first[name].config,
            "overrides": list(first[name].overrides),
            "accuracy": list(values),
        }
        for name, values in found.items()
    ]


def dots(found: Mapping[str, Sequence[float]]) -> Any:
    """Draws a line for each config, with a dot for each run and a stroke at the mean."""
    figure = plots.new_figure(6.4, 1 + 0.35 * max(1, len(found)))
    axis = figure.subplots()
    style = plots.STYLES[2]
    for place, values in enumerate(found.values()):
        axis.scatter([100 * v for v in values], [place] * len(values), color=style["color"], s=18)
        if values:
            mean = 100 * statistics.fmean(values)
            axis.plot([mean] * 2, [place - 0.3, place + 0.3], color="#000000", linewidth=1)
    axis.set_yticks(range(len(found)), list(found))
    axis.set_ylim(len(found) - 0.5, -0.5)
    axis.set_xlabel("test accuracy (%)")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.3)
    return figure
