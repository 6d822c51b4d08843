import json
import math

import pytest
import runs

from ftbnn_jax import config
from ftbnn_jax.errors import UserError
from ftbnn_jax.experiments import results


def test_a_run_is_read_from_its_files(tmp_path):
    runs.write(tmp_path, [0.5, 0.75], losses=[2.0])
    # A line that is being written does not count.
    with open(tmp_path / "metrics.jsonl", "a") as stream:
        stream.write('{"step": 30, "kind": "ev')
    run = results.read(str(tmp_path))
    assert run.config["dataset"] == "digits"
    assert run.curve("eval", "accuracy") == ([10, 20], [0.5, 0.75])
    assert run.curve("train", "loss") == ([10], [2.0])
    assert run.final_accuracy() == 0.75


def test_of_a_run_in_stages_the_last_one_counts(tmp_path):
    """`baseline_kd.py` ends with the stage "binary"."""
    experiment = config.load(str(runs.CONFIGS / "baseline_kd.py:cifar10"))
    (tmp_path / "config.json").write_text(json.dumps(experiment.to_dict()))
    for stage, accuracy in (("tanh", 0.1), ("sign", 0.2), ("binary", 0.3)):
        runs.write(tmp_path / stage, [accuracy])
    run = results.read(str(tmp_path))
    assert (run.path, run.final_accuracy()) == (str(tmp_path / "binary"), 0.3)


def test_spread_is_mean_and_sample_deviation():
    mean, deviation = results.mean_and_deviation([1.0, 2.0, 6.0])
    assert (mean, deviation) == (3.0, pytest.approx(math.sqrt((4 + 1 + 9) / 2)))
    assert results.spread([0.98, 0.99], 100) == "98.50 ± 0.71"
    assert results.spread([0.98], 100) == "98.00"
    assert results.spread([]) == ""


def test_what_is_not_a_run_is_named(tmp_path):
    with pytest.raises(UserError, match=r"config\.json: No such file.*work directory of a run"):
        results.read(str(tmp_path))
    runs.write(tmp_path, [])
    with pytest.raises(UserError, match="has no evaluation yet"):
        results.read(str(tmp_path)).final_accuracy()
    (tmp_path / "metrics.jsonl").write_text("{broken\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 1 is damaged"):
        results.read(str(tmp_path))
    for content in (b"{broken", b"[]", b"\xff"):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(UserError, match=r"config\.json: is damaged"):
            results.read(str(tmp_path))


def test_values_that_are_not_finite_are_no_part_of_a_curve(tmp_path):
    runs.write(tmp_path, [0.5, 0.75], losses=[2.0, math.nan, 1.0, math.inf])
    run = results.read(str(tmp_path))
    assert run.curve("train", "loss") == ([10, 30], [2.0, 1.0])
    assert run.final_accuracy() == 0.75
