import itertools

import numpy as np
import pytest

from ftbnn_jax.bench import tune_convolution
from ftbnn_jax.errors import UserError
from ftbnn_jax.ops.conv import algorithms, table


def test_the_least_median_wins(monkeypatch):
    # A clock on which the first call takes 1, 5 and 1 seconds and the second one 2 each time.
    durations = [1, 2, 5, 2, 1, 2]
    ticks = itertools.chain.from_iterable((10 * i, 10 * i + d) for i, d in enumerate(durations))
    monkeypatch.setattr(tune_convolution.time, "perf_counter", lambda: next(ticks))
    calls = {"steady": lambda: np.zeros(1), "slower": lambda: np.zeros(1)}
    assert tune_convolution.fastest(calls, rounds=3) == "steady"


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
