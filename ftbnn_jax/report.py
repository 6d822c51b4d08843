"""How results reach a person: one console, one form of table."""

import json
import math
import sys
from collections.abc import Mapping
from typing import Any

import rich.console
import rich.table
from rich.measure import Measurement

from ftbnn_jax.errors import one_line

_WIDEST = 10_000


def make_console(**arguments: Any) -> rich.console.Console:
    """Returns a console that prints text as it is: paths and names can hold brackets and colons."""
    return rich.console.Console(highlight=False, markup=False, emoji=False, **arguments)


# One console for everything that goes to standard output. In a pipe nothing is wrapped: whoever reads it
# there has no window of 80 columns.
console = make_console(soft_wrap=True)
if not console.is_terminal:
    console.width = _WIDEST


def warn(text: str) -> None:
    """Prints one line on standard error about something that the run goes on in spite of."""
    print(f"warning: {one_line(text)}", file=sys.stderr, flush=True)


def print_table(title: str, rows: list[tuple[str, Any]]) -> None:
    """Prints a table of names and values."""
    table = rich.table.Table(title=title, show_header=False, title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, str(value))
    console.print(table)


def print_wide(table: rich.table.Table) -> None:
    """Prints a table under its caption, as wide as it has to be: a number is never cut off."""
    wide = make_console()
    measured = Measurement.get(wide, wide.options.update(width=_WIDEST), table)
    if measured.maximum > wide.width:
        wide = make_console(width=measured.maximum)
    # A title of the table itself would be broken at the table's width.
    wide.print(table.caption, style="bold", soft_wrap=True)
    table.caption = None
    wide.print(table)


def to_json(value: Any, indent: int | None = None) -> str:
    """Returns `value` as JSON, in which numbers that are not finite are null: it has none of them."""

    def plain(inner):
        if isinstance(inner, Mapping):
            return {key: plain(item) for key, item in inner.items()}
        if isinstance(inner, list | tuple):
            return [plain(item) for item in inner]
        return None if isinstance(inner, float) and not math.isfinite(inner) else inner

    return json.dumps(plain(value), allow_nan=False, indent=indent)


def print_json(value: Any, indent: int | None = None) -> None:
    """Prints `value` on standard output, as `to_json` has it."""
    print(to_json(value, indent))
