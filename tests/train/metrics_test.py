"""The files a run writes, and what it shows."""

import contextlib
import io
import itertools
import json

import pytest

from ftbnn_jax import report
from ftbnn_jax.errors import UserError
from ftbnn_jax.host import paths
from ftbnn_jax.train import metrics


def test_resuming_drops_the_lines_of_steps_to_come(tmp_path):
    writer = metrics.MetricsWriter(str(tmp_path), step=0)
    for step in (10, 20, 30):
        writer.write("train", step, {"loss": 1.0 / step}, times={"images_per_second": 5.0})
    writer.write("eval", 30, {"accuracy": 0.5})
    writer.close()
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 40, "kin')  # As a killed process leaves it.
    writer = metrics.MetricsWriter(str(tmp_path), step=20)
    assert not writer.was_evaluated(30)
    writer.write("train", 30, {"loss": 0.25})
    writer.write("eval", 30, {"accuracy": 0.75})
    writer.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 10, "kind": "train", "loss": 0.1},
        {"step": 20, "kind": "train", "loss": 0.05},
        {"step": 30, "kind": "train", "loss": 0.25},
        {"step": 30, "kind": "eval", "accuracy": 0.75},
    ]
    assert [json.loads(line) for line in (tmp_path / "times.jsonl").read_text().splitlines()] == [
        {"step": 10, "kind": "train", "images_per_second": 5.0},
        {"step": 20, "kind": "train", "images_per_second": 5.0},
    ]
    assert writer.values("eval", "accuracy") == [(30, 0.75)]
    writer = metrics.MetricsWriter(str(tmp_path), step=30)
    assert writer.was_evaluated(30)
    writer.close()


def test_what_is_not_finite_is_null_and_left_out(tmp_path):
    """Earlier versions wrote NaN and Infinity, which are no JSON; such an evaluation is made again."""
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 1, "kind": "train", "loss": NaN}\n{"step": 2, "kind": "eval", "loss": Infinity}\n'
        '{"step": 2, "kind": "train", "loss": 0.5}\n'
    )
    writer = metrics.MetricsWriter(str(tmp_path), step=2)
    assert not writer.was_evaluated(2)
    writer.write("train", 3, {"loss": float("inf"), "accuracy": 0.5})
    writer.close()
    assert path.read_text() == (
        '{"step": 1, "kind": "train", "loss": null}\n{"step": 2, "kind": "train", "loss": 0.5}\n'
        '{"step": 3, "kind": "train", "loss": null, "accuracy": 0.5}\n'
    )
    assert writer.values("train", "loss") == [(2, 0.5)]
    assert metrics.MetricsWriter(str(tmp_path), step=3, writes=False).was_evaluated(2) is False


@pytest.mark.parametrize(
    "line",
    [
        b"{broken",
        b"[]",
        b"3",
        b"\xff\x00",
        b"",
        b'{"step": 3}',
        b'{"step": "3", "kind": "eval"}',
        b'{"step": 3, "kind": "test"}',
        b'{"step": 3, "kind": "eval", "loss": "small"}',
    ],
)
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "kind": "eval"}\n' + line + b'\n{"step": 4, "kind": "eval"}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 2 is damaged; delete it, or the file"):
        metrics.MetricsWriter(str(tmp_path), step=9)


def test_lines_in_a_pipe(capsys, monkeypatch):
    """Of 10 steps in 20 seconds, 5 were an evaluation: 1.5 seconds a step, of 8 images each."""
    now = iter([100.0, 110.0, 115.0, 120.0])
    progress = metrics.Progress("reading")
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: next(now))
    progress.begin(first_step=10, last_step=100, batch_size=8)
    with progress.pause("evaluating"):
        pass
    times = progress.train(20, {"loss": 2.0, "accuracy": 0.125})
    progress.close()
    assert times == {"seconds_per_step": 1.5, "images_per_second": pytest.approx(8 / 1.5)}
    # 80 steps are left: two minutes.
    assert capsys.readouterr().out == (
        "step 20/100  loss 2.0000  accuracy 12.50%  0:02:00 left  5 images/s\n"
    )


@pytest.mark.parametrize("width", [1, 20, 35, 50, 80, 200])
def test_the_bar_fits_into_the_terminal_and_says_what_is_done(monkeypatch, width):
    terminal = report.make_console(file=io.StringIO(), force_terminal=True, width=width, height=9)
    monkeypatch.setattr(metrics, "console", terminal)
    with contextlib.closing(metrics.Progress("reading")) as progress:
        column = progress._bar.columns[0]

        def shown():
            paper = report.make_console(file=io.StringIO(), width=width)
            paper.print(column.render(progress._bar.tasks[0]))
            return paper.file.getvalue().splitlines()

        first = shown()
        # 345 steps of 256 images take 100 seconds.
        monkeypatch.setattr(metrics.time, "perf_counter", itertools.count(0, 100).__next__)
        progress.begin(0, 12_000, 256)
        progress.train(345, {"loss": 2.0, "accuracy": 0.125})
        # What takes no time is not worth a word.
        with progress.doing("reading"):
            trained = shown()
        monkeypatch.setattr(column, "_SECONDS", -1.0)
        with progress.pause("evaluating"):
            lines = shown()
    for found in (first, lines, trained):
        assert len(found) == 1
        assert len(found[0]) <= width
    if width >= 35:
        words = [found[0].split()[0] for found in (first, lines, trained)]
        assert words == ["reading", "evaluating", "training"]
        assert "345/12000" in trained[0]
    assert ("loss 2.0000" in trained[0]) == (width >= 50)
    assert ("883 images/s" in trained[0]) == (width > 80)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00:00"), (59.6, "0:01:00"), (3599, "0:59:59"), (90061, "25:01:01")]
)
def test_times(seconds, text):
    assert metrics.format_seconds(seconds) == text


def test_in_a_bucket_the_file_is_written_anew_each_time(tmp_path, monkeypatch):
    """There is no appending there; what a reader finds is whole lines all the same."""
    monkeypatch.setattr(paths, "is_remote", lambda path: True)
    path = tmp_path / "metrics.jsonl"
    writer = metrics.MetricsWriter(str(tmp_path), 0)
    for step in (1, 2, 3):
        writer.write("train", step, {"loss": 1.0 / step})
        assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == list(
            range(1, step + 1)
        )
    writer.close()
    metrics.MetricsWriter(str(tmp_path), 2).close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


def test_a_process_that_does_not_write_leaves_no_file(tmp_path):
    writer = metrics.MetricsWriter(str(tmp_path), 0, writes=False)
    writer.write("train", 1, {"loss": 1.0})
    writer.close()
    assert not list(tmp_path.iterdir())
