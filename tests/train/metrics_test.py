"""The files a run writes, and what it shows."""

import json

import pytest
from tensorboardX.proto import event_pb2

from ftbnn_jax.errors import UserError
from ftbnn_jax.host import paths
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


def test_tensorboard_reads_the_events(tmp_path):
    writer = metrics.MetricsWriter(str(tmp_path), 4)
    writer.write("train", 5, {"loss": 0.5}, images_per_second=12.0)
    writer.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    events = [event_pb2.Event.FromString(payload) for payload in payloads(path.read_bytes())]
    assert events[0].file_version == "brain.Event:2"
    assert (events[1].step, events[1].session_log.status) == (5, event_pb2.SessionLog.START)
    values = {v.tag: v.simple_value for v in events[2].summary.value}
    assert (events[2].step, values) == (5, {"train/loss": 0.5, "train/images_per_second": 12.0})


def payloads(content: bytes) -> list[bytes]:
    """The records of a TFRecord file: length, 4 bytes, payload, 4 bytes."""
    found = []
    while content:
        length = int.from_bytes(content[:8], "little")
        found.append(content[12 : 12 + length])
        content = content[12 + length + 4 :]
    return found
