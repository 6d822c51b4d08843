"""Figure 2: accuracy, discrepancy and features of five models on MNIST, over several seeds.

    python -m ftbnn_jax.experiments.figure2 --workdir=DIR

Trains `configs/mnist_figure2.py:MODEL` with each seed, prints the table beside the published numbers and
draws `DIR/figure2.png` and `.svg`. Finished runs are kept, so it may be stopped and started again.
"""

import io
import json
import math
import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import rich.table
from sklearn import discriminant_analysis

from ftbnn_jax import command, plots, published, report
from ftbnn_jax.experiments import discrepancy, figures, members, results, sweep
from ftbnn_jax.host import machine, paths

_TITLES = {
    "linear": "Linear",
    "binary": "Binary",
    "prelu": "Binary + PReLU",
    "relu": "Binary + ReLU",
    "fprelu": "Binary + FPReLU",
}

_NUM_IMAGES = 2000
_DISCREPANCY = "discrepancy.json"
_FEATURES = "features.npz"


def measure(
    member: members.Member, workdir: str, num_images: int = _NUM_IMAGES, keep_features: bool = True
) -> dict[str, float]:
    """Returns the discrepancies of a finished run, and leaves them with the run.

    Args:
      member: the run.
      workdir: of all runs.
      num_images: test images to take.
      keep_features: leave the features before the classifier with the run, too.
    """
    directory = member.directory(workdir)
    path = os.path.join(directory, _DISCREPANCY)
    try:
        with open(path) as stream:
            found = json.load(stream)
        # None of a network without binary convolutions; what is of another version is measured again.
        if set(found) in (set(), set(discrepancy.DEFINITIONS)):
            # JSON has no infinity, which is relative to the real outputs of a network that died: all 0.
            return {name: math.inf if value is None else value for name, value in found.items()}
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        pass
    found, features, labels = discrepancy.measure(directory, num_images)
    found = {name: value if math.isfinite(value) else math.inf for name, value in found.items()}
    if keep_features:
        content = io.BytesIO()
        np.savez_compressed(content, features=features, labels=labels)
        paths.write_whole(os.path.join(directory, _FEATURES), content.getvalue())
    paths.write_whole(path, report.to_json(found, indent=2))
    return found


def project(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Projects features onto the two directions that separate the classes best.

    Linear discriminant analysis, fitted on the first half of the images. What it has not seen is
    returned, so that separation in the picture is separation of new images.

    Args:
      features: `[n, d]`.
      labels: `[n]`.

    Returns:
      `[n - n // 2, 2]`, of the second half.
    """
    half = len(features) // 2
    # Shrinkage: there are about as many features as images.
    analysis = discriminant_analysis.LinearDiscriminantAnalysis(
        solver="eigen", shrinkage="auto", n_components=2
    )
    return analysis.fit(features[:half], labels[:half]).transform(features[half:])


def draw(panels: dict[str, tuple[np.ndarray, np.ndarray, str]]) -> Any:
    """Draws the features of each model, one colour and digit a class; returns the figure.

    Args:
      panels: by title, features `[n, d]`, labels `[n]` and a line to put below.
    """
    figure = plots.new_figure(3.1 * len(panels), 3.6)
    for axis, (title, (features, labels, caption)) in zip(
        np.atleast_1d(figure.subplots(1, len(panels))), panels.items(), strict=True
    ):
        points = project(features, labels)
        shown = labels[len(labels) - len(points) :]
        for digit in np.unique(shown):
            style = plots.STYLES[int(digit) % len(plots.STYLES)]
            of_class = points[shown == digit]
            axis.scatter(*of_class.T, s=5, color=style["color"], alpha=0.5, linewidths=0)
            # The digit itself tells classes of one colour, and all classes in gray, apart.
            axis.annotate(
                str(digit),
                np.median(of_class, axis=0),
                fontsize=11,
                weight="bold",
                ha="center",
                va="center",
                bbox={
                    "boxstyle": "circle,pad=0.15",
                    "facecolor": "white",
                    "edgecolor": style["color"],
                    "alpha": 0.9,
                },
            )
        axis.set_title(title, fontsize=11)
        axis.set_xlabel(caption, fontsize=9)
        # A few stray points must not squeeze all others together.
        for limit, values in ((axis.set_xlim, points[:, 0]), (axis.set_ylim, points[:, 1])):
            low, high = np.quantile(values, [0.005, 0.995])
            limit(low - 0.1 * (high - low), high + 0.1 * (high - low))
        axis.set_xticks([])
        axis.set_yticks([])
    return figure


def _report(wanted: Sequence[members.Member], workdir: str) -> None:
    accuracies = sweep.accuracies(wanted, workdir)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in accuracies}
    first: dict[str, str] = {}
    for member in wanted:
        if member.is_finished(workdir):
            found[member.name].append(measure(member, workdir))
            first.setdefault(member.name, member.directory(workdir))

    table = rich.table.Table(title="Figure 2 on MNIST", title_justify="left")
    table.add_column("model")
    for header in ("runs", "test accuracy, %", "published, %"):
        table.add_column(header, justify="right")
    for name, values in accuracies.items():
        table.add_row(
            name,
            str(len(values)),
            results.spread(values, 100),
            _spread(published.FIGURE2_ACCURACY, name),
        )
    report.console.print(table)

    names = [name for name in found if any(found[name])]
    table = rich.table.Table(title="Discrepancy by definition", title_justify="left")
    for header in ("definition", "average over images, positions, channels of", *names):
        table.add_column(header, justify="left" if header not in names else "right")
    for definition, formula in discrepancy.DEFINITIONS.items():
        cells = [results.spread([run[definition] for run in found[name]]) for name in names]
        table.add_row(definition, formula, *cells)
    table.add_section()
    table.add_row(
        "published", "not said", *(_spread(published.FIGURE2_DISCREPANCY, name) for name in names)
    )
    report.console.print(table)
    report.console.print(
        "mean ± sample standard deviation over the seeds; b: binary convolution, c: with the sign of "
        "Eq. 2, r: real convolution, m: mean |weight|, s: m times mean |activation|"
    )

    panels = {}
    for name, directory in first.items():
        with np.load(os.path.join(directory, _FEATURES)) as stored:
            caption = f"accuracy {results.spread(accuracies[name], 100)}"
            panels[_TITLES[name]] = stored["features"], stored["labels"], caption
    if panels:
        for path in figures.write(draw(panels), os.path.join(workdir, "figure2")):
            print(path)


def _spread(printed: dict[str, tuple[float, float]], name: str) -> str:
    """Returns mean and standard deviation of a model as the paper prints them, "" where it does not."""
    return "{:.2f} ± {:.2f}".format(*printed[name]) if name in printed else ""


def main(arguments: Sequence[str]) -> int:
    """Does what the command line says and returns the exit status."""
    parser = command.ArgumentParser(
        prog="python -m ftbnn_jax.experiments.figure2", description="Repeat the paper's Figure 2."
    )
    sweep.add_arguments(parser, seeds="0,1,2,3,4")
    parser.add_argument(
        "--models", default=",".join(_TITLES), metavar="MODEL,MODEL", help="(default: all)"
    )
    options = parser.parse_args(arguments)
    models = sweep.chosen("models", options.models, _TITLES)
    wanted = members.make({name: f"mnist_figure2:{name}" for name in models}, options.seeds)
    machine.start_jax()
    status = 0 if options.report else sweep.run(wanted, options.workdir, options.shard, options.jobs)
    if status != command.UNFINISHED:
        _report(wanted, options.workdir)
    return status


if __name__ == "__main__":
    sys.exit(command.run(main))
