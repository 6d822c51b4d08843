import json

import pytest
import runs

from ftbnn_jax import config, published
from ftbnn_jax.experiments import discrepancy, figure2_nets


def test_a_net_is_as_far_off_as_its_worst_model():
    accuracies = {"binary": [0.98, 0.99], "prelu": [0.987], "relu": [0.9853]}
    means = {"binary": 1.04, "prelu": 1.66, "relu": 2.41}
    # One definition gives half of all, one is 10% too large for ReLU alone.
    found = {
        model: [dict.fromkeys(discrepancy.DEFINITIONS, mean / 2) | {"scaled": mean}]
        for model, mean in means.items()
    }
    found["relu"][0]["scaled"] = 2.41 * 1.1
    compared = figure2_nets.compare(accuracies, found)
    # 98.5, 98.7 and 98.53 for 98.45, 98.70 and 98.83.
    assert compared["points"] == pytest.approx(0.3)
    assert compared["nearest"] == "scaled"
    assert compared["share"]["scaled"] == pytest.approx(0.1)
    assert compared["share"]["plain"] == pytest.approx(0.5)


def test_every_net_is_trained_in_all_models_and_evaluated_once():
    plan = figure2_nets.plan([2, 64], [1], [1, 5], [0, 1])
    assert list(plan) == [(2, 1, 1), (2, 1, 5), (64, 1, 1), (64, 1, 5)]
    relu = plan[figure2_nets.Net(64, 1, 5)]["relu"]
    assert [member.seed for member in relu] == [0, 1]
    found = config.load(relu[0].config, config.split_overrides(relu[0].overrides)[0])
    shape = (found.model.width, found.model.stem_features, found.model.stem_stride, found.num_epochs)
    assert shape == (64, 64, 1, 5)
    assert found.model.activation == "relu"
    assert found.eval_every > 5 * 600


def test_what_has_finished_is_printed_and_drawn(tmp_path, capsys):
    arguments = ["--widths=2,4", "--strides=2", "--epochs=1", "--seeds=0"]
    plan = figure2_nets.plan([2, 4], [2], [1], [0])
    # The second net lacks a model.
    for net, models in ((2, ("binary", "prelu", "relu")), (4, ("binary", "relu"))):
        for model in models:
            (member,) = plan[figure2_nets.Net(net, 2, 1)][model]
            directory = tmp_path / member.name / "seed0"
            runs.write(directory, [published.FIGURE2_ACCURACY[model][0] / 100])
            exact = published.FIGURE2_DISCREPANCY[model][0]
            values = dict.fromkeys(discrepancy.DEFINITIONS, 9.0) | {"clipped": exact, "relative": None}
            (directory / "discrepancy.json").write_text(json.dumps(values))
            member.finish(str(tmp_path))
    output = tmp_path / "found"
    assert (
        figure2_nets.main([f"--workdir={tmp_path}", "--report", *arguments, f"--output={output}"]) == 0
    )
    printed = " ".join(capsys.readouterr().out.split())
    assert "of 1 nets 1 are within 0.3 points" in printed
    assert "1 within 10% of the discrepancies" in printed
    assert printed.endswith("1 within both")
    (row,) = json.loads((tmp_path / "found.json").read_text())
    assert (row["width"], row["stride"], row["epochs"], row["nearest"]) == (2, 2, 1, "clipped")
    assert row["points"] == pytest.approx(0, abs=1e-9)
    # A network that died: nothing is relative to it.
    assert row["share"]["relative"] is row["discrepancy"]["relu"][0]["relative"] is None
    assert (tmp_path / "found.png").exists()
