"""What is printed is what was given: rich reads no markup in it."""

import io

import pytest
import rich.table

from ftbnn_jax import report
from ftbnn_jax.train import metrics

_TEXTS = ["run[1]", "[/red]", "[bold]x", ":smile:", "a [link=x]"]


@pytest.mark.parametrize("text", _TEXTS)
def test_brackets_and_colons_are_printed(capsys, text):
    report.print_table(f"title {text}", [(f"name {text}", f"value {text}")])
    table = rich.table.Table(caption=f"caption {text}")
    table.add_column(f"header {text}")
    table.add_row(f"cell {text}")
    report.print_wide(table)
    report.console.print(f"line {text}")
    output = capsys.readouterr().out
    for place in ("title", "name", "value", "caption", "header", "cell", "line"):
        assert f"{place} {text}" in output


@pytest.mark.parametrize("text", _TEXTS)
def test_the_bar_of_a_training_shows_what_it_is_given(monkeypatch, text):
    stream = io.StringIO()
    monkeypatch.setattr(
        metrics, "console", report.make_console(file=stream, force_terminal=True, width=200)
    )
    bar = metrics.Progress(text)
    bar._bar.refresh()
    bar.close()
    assert text in stream.getvalue()


def test_a_warning_is_one_line(capsys):
    report.warn("a\nb")
    assert capsys.readouterr().err == "warning: a\\nb\n"
