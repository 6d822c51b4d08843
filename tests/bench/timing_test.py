"""The stopwatch on a clock that only the calls move."""

import functools

import pytest

from ftbnn_jax.bench import timing


@pytest.fixture
def run(monkeypatch):
    """Times calls of given durations in ms, one list a call; returns medians and the order of calls."""
    clock = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])

    def measure(durations, **options):
        order = []

        def call(name, left):
            order.append(name)
            clock[0] += next(left) / 1e3

        calls = [functools.partial(call, *c) for c in zip("ab", map(iter, durations), strict=True)]
        return timing.medians(calls, **options), "".join(order)

    return measure


def test_each_is_called_once_a_turn_and_the_first_call_does_not_count(run):
    times, order = run([[100, 1, 5, 2], [9, 4, 4, 4]], rounds=3)
    assert times == pytest.approx([2, 4])
    assert order == "ab" * 4


def test_a_turn_has_as_many_calls_as_fit_into_it(run):
    """Beforehand there are two calls, to compile and to see how many fit."""
    times, order = run([[100] + [10] * 4, [100] + [0.25] * 13], rounds=3, turn_ms=1.0)
    assert times == pytest.approx([10, 0.25])
    assert order == "aabb" + "abbbb" * 3


@pytest.mark.parametrize(("longest_s", "rounds"), [(0.5, 3), (3.5, 4), (60, 6)])
def test_rounds_end_early_but_not_before_the_third(run, longest_s, rounds):
    _, order = run([[1000] * 7, [0] * 7], rounds=6, longest_s=longest_s)
    assert order == "ab" * (1 + rounds)
