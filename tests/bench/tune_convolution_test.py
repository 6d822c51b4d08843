import pytest

from ftbnn_jax.bench import tune_convolution
from ftbnn_jax.errors import UserError
from ftbnn_jax.ops.conv import algorithms, table


def test_the_least_median_wins(monkeypatch):
    monkeypatch.setattr(tune_convolution.timing, "medians", lambda calls, rounds: [c() for c in calls])
    calls = {"slow": lambda: 2.0, "fast": lambda: 1.0, "slowest": lambda: 3.0}
    assert tune_convolution.fastest(calls, rounds=3) == "fast"


@pytest.mark.parametrize(("kernel_size", "stride"), [(1, 1), (3, 1), (3, 2)])
def test_a_row_is_measured_with_algorithms_that_fit(kernel_size, stride):
    row = table.Row(kernel_size, stride, 4, 3, 5, "", "", "")
    found = tune_convolution.measure(row, batch=2, rounds=1)
    assert found[:5] == row[:5]
    for name, known in (
        (found.forward, algorithms.FORWARD),
        (found.input_gradient, algorithms.INPUT_GRADIENT),
        (found.kernel_gradient, algorithms.KERNEL_GRADIENT),
    ):
        assert name in known and algorithms.fits(name, kernel_size, stride)


def test_rows_are_printed_as_the_table_holds_them(monkeypatch, capsys):
    row = table.Row(3, 1, 4, 3, 5, "direct", "transposed", "windows")
    monkeypatch.setitem(table.ROWS, "cpu", (row,))
    monkeypatch.setattr(tune_convolution, "measure", lambda row, batch, rounds: row)
    assert tune_convolution.main([]) == 0
    printed = capsys.readouterr().out.strip().rstrip(",")
    assert eval(printed, {"Row": table.Row}) == row


def test_a_wrong_argument_is_named():
    with pytest.raises(UserError, match="--batch: '0' is not a whole number of at least 1"):
        tune_convolution.main(["--batch=0"])
