"""How results reach a person: one console, one form of table."""

import sys
from typing import Any

import rich.console
import rich.table

# One console for everything that goes to standard output. In a pipe nothing is wrapped: whoever reads it
# there has no window of 80 columns.
console = rich.console.Console(highlight=False, soft_wrap=True)
if not console.is_terminal:
    console.width = 10_000


def warn(text: str) -> None:
    """Prints one line on standard error about something that the run goes on in spite of."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


def print_table(title: str, rows: list[tuple[str, Any]]) -> None:
    """Prints a table of names and values."""
    table = rich.table.Table(title=title, show_header=False, title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, str(value))
    console.print(table)
