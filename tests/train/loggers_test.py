"""Loggers: what they write, and what they do where a run goes on."""

import contextlib
import sys
import types

import event_files
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from ftbnn_jax import config
from ftbnn_jax.errors import UserError
from ftbnn_jax.train import loggers, metrics


def test_a_config_can_name_all_of_them():
    assert config.experiment._ALLOWED["loggers"] == tuple(loggers.LOGGERS)


def test_tensorboard_reads_the_events(tmp_path):
    writer = metrics.MetricsWriter(str(tmp_path), 4, names=("tensorboard",))
    writer.write("train", 5, {"loss": 0.5}, {"flip_rate/a": 0.25}, {"images_per_second": 12.0})
    writer.histograms("eval", 5, {"slope": np.array([0.5, 0.5, 2.0]), "bad": np.array([np.nan])})
    writer.image("eval", 5, "predictions", np.zeros((4, 6, 3), np.uint8))
    writer.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    version, start, scalars, *others = event_files.events(path.read_bytes())
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (5, event_pb2.SessionLog.START)
    values = {v.tag: v.simple_value for v in scalars.summary.value}
    expected = {"train/loss": 0.5, "train/flip_rate/a": 0.25, "train/images_per_second": 12.0}
    assert (scalars.step, values) == (5, expected)
    histogram, image = (event.summary.value[0] for event in others)
    assert (histogram.tag, histogram.histo.num, histogram.histo.max) == ("eval/slope", 3, 2.0)
    assert (image.tag, image.image.width, image.image.height) == ("eval/predictions", 6, 4)


def test_a_table_goes_on_where_its_run_does(tmp_path):
    for step, steps in ((0, (10, 20, 30)), (20, (30, 40))):
        writer = metrics.MetricsWriter(str(tmp_path), step, names=("csv",))
        for number in steps:
            writer.write("train", number, {"loss": number / 8}, {"flip_rate/b": 0.5} if step else {})
        writer.write("eval", steps[-1], {"loss": float("nan"), "accuracy": 0.25})
        writer.close()
    assert (tmp_path / "train.csv").read_text() == (
        "step,loss,flip_rate/b\n10,1.25,\n20,2.5,\n30,3.75,0.5\n40,5.0,0.5\n"
    )
    assert (tmp_path / "eval.csv").read_text() == "step,accuracy\n40,0.25\n"


@pytest.mark.parametrize("content", ["step\nten\n", "a,b\n1,2\n", "\n\n\x00"])
def test_another_table_of_that_name_is_named(tmp_path, content):
    (tmp_path / "train.csv").write_text(content)
    writer = metrics.MetricsWriter(str(tmp_path), 0, names=("csv",))
    with contextlib.closing(writer), pytest.raises(UserError, match=r"train\.csv: is no table of a run"):
        writer.write("train", 1, {"loss": 1.0})
    assert (tmp_path / "train.csv").read_text() == content


class Weights(types.ModuleType):
    """In the place of wandb."""

    def __init__(self):
        super().__init__("wandb")
        self.started, self.logged, self.finished = [], [], 0
        self.Histogram = self.Image = np.shape

    def init(self, **arguments):
        self.started.append(arguments)
        return self

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.finished += 1


def test_weights_and_biases_goes_on_with_the_same_run(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", module := Weights())
    for step in (0, 5):
        fields = {"seed": 3}
        writer = metrics.MetricsWriter(str(tmp_path), step, names=("wandb",), config=fields)
        writer.write("train", step + 1, {"loss": 0.5})
        writer.histograms("eval", step + 1, {"slope": np.zeros(7)})
        writer.image("eval", step + 1, "predictions", np.zeros((4, 6, 3), np.uint8))
        writer.close()
    first, second = module.started
    assert first == second
    assert (first["config"], first["resume"], first["name"]) == (fields, "allow", tmp_path.name)
    assert module.logged[:3] == [
        (1, {"train/loss": 0.5}),
        (1, {"eval/slope": (7,)}),
        (1, {"eval/predictions": (4, 6, 3)}),
    ]
    assert module.finished == 2


def test_a_missing_or_failing_package_is_one_line(tmp_path, monkeypatch):
    def start():
        metrics.MetricsWriter(str(tmp_path), 0, names=("wandb",))

    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"^wandb: needs the extra: pip install 'ftbnn-jax\[wandb\]'$"):
        start()
    monkeypatch.setitem(sys.modules, "wandb", module := Weights())

    def refuse(**_):
        raise RuntimeError("api_key not configured\nmore of it")

    monkeypatch.setattr(module, "init", refuse)
    with pytest.raises(
        UserError, match=r"wandb: Weights & Biases does not start: api_key not configured$"
    ):
        start()
