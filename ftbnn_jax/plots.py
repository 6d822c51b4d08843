"""How figures are made: matplotlib found, styles that survive gray print, files written."""

import os
from typing import Any

from ftbnn_jax import extras
from ftbnn_jax.errors import UserError

_FORMATS = (".png", ".svg", ".pdf")

# One per line in a plot: colours that colour-blind readers keep apart (eight of Okabe and Ito, 2008, two
# of Tol, 2012), in an order of alternating lightness, each with a dash pattern and a marker of its own,
# for gray.
STYLES = (
    {"color": "#000000", "linestyle": "-", "marker": "o"},
    {"color": "#e69f00", "linestyle": "--", "marker": "s"},
    {"color": "#0072b2", "linestyle": "-.", "marker": "^"},
    {"color": "#56b4e9", "linestyle": ":", "marker": "D"},
    {"color": "#d55e00", "linestyle": (0, (5, 1, 1, 1, 1, 1)), "marker": "v"},
    {"color": "#009e73", "linestyle": (0, (1, 2)), "marker": "P"},
    {"color": "#cc79a7", "linestyle": (0, (6, 3)), "marker": "X"},
    {"color": "#7f7f7f", "linestyle": (0, (3, 1)), "marker": "*"},
    {"color": "#882255", "linestyle": (0, (1, 1)), "marker": "<"},
    {"color": "#999933", "linestyle": (0, (8, 2, 2, 2)), "marker": ">"},
)


def new_figure(width: float, height: float) -> Any:
    """Returns an empty matplotlib figure of this size, in inches.

    Raises:
      UserError: matplotlib is missing.
    """
    with extras.named():
        from matplotlib.figure import Figure
    return Figure(figsize=(width, height), layout="constrained")


def check_path(path: str) -> None:
    """Raises a UserError where a figure cannot be written to `path`."""
    if os.path.splitext(path)[1].lower() not in _FORMATS:
        raise UserError(f"{path}: the ending must be one of {', '.join(_FORMATS)}")
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise UserError(f"{path}: there is no folder {folder}")


def save(figure: Any, path: str) -> None:
    """Writes a figure; the ending of `path` says the format.

    Raises:
      UserError: the file cannot be written.
    """
    # The same figure gives the same file.
    metadata = {"Date": None} if path.endswith(".svg") else None
    try:
        figure.savefig(path, dpi=200, metadata=metadata)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error
