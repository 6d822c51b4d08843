"""The files a run writes, and what it shows."""

import json

import pytest

from ftbnn_jax.train import metrics


def test_resuming_drops_the_lines_of_steps_to_come(tmp_path):
    writer = metrics.MetricsWriter(str(tmp_path), step=0)
    for step in (10, 20, 30):
        writer.write("train", step, {"loss": 1.0 / step}, images_per_second=5.0)
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
    assert writer.values("eval", "accuracy") == [(30, 0.75)]
    writer = metrics.MetricsWriter(str(tmp_path), step=30)
    assert writer.was_evaluated(30)
    writer.close()


def test_lines_in_a_pipe(capsys):
    progress = metrics.Progress(first_step=0, last_step=100, batch_size=8)
    assert progress.train(10, {"loss": 2.0, "accuracy": 0.125}) == 0.0
    assert progress.train(20, {"loss": 1.5, "accuracy": 0.5}) > 0.0
    progress.close()
    first, second = capsys.readouterr().out.splitlines()
    assert first == "step 10/100  loss 2.0000  accuracy 12.50%"
    assert second.startswith("step 20/100  loss 1.5000  accuracy 50.00%  ")
    assert second.endswith(" left") and "images/s" in second


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00:00"), (59.6, "0:01:00"), (3599, "0:59:59"), (90061, "25:01:01")]
)
def test_times(seconds, text):
    assert metrics.format_seconds(seconds) == text
