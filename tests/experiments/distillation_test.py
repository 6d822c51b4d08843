import json

import pytest
import runs

from ftbnn_jax import config
from ftbnn_jax.errors import UserError
from ftbnn_jax.experiments import distillation
from ftbnn_jax.train import stages


def _config(member):
    return config.load(member.config, config.split_overrides(member.overrides)[0])


def test_all_rows_train_the_same_net_for_the_same_number_of_epochs():
    (teacher,), rows = distillation.plan("runs", 21, [3, 4])
    assert (teacher.seed, _config(teacher).num_epochs) == (3, 21)
    found = {row.name: _config(row) for row in rows}
    assert [(row.name, row.seed) for row in rows] == [(name, seed) for name in found for seed in (3, 4)]
    # Three stages of 5, 5 and 11.
    lengths = {
        name: [stage.config.num_epochs for stage in stages.resolve(c, "x")] for name, c in found.items()
    }
    assert lengths == {"labels": [21], "outputs": [21], "attention": [21], "stages": [5, 5, 11]}
    assert {c.model.width for c in found.values()} == {16}
    # Stages end with what the other rows are.
    (*_, last) = stages.resolve(found["stages"], "x")
    assert {last.config.model, found["labels"].model} == {found["attention"].model}
    learns = {name: (bool(c.teacher), c.attention_weight > 0) for name, c in found.items()}
    assert learns["labels"][0] is False
    assert learns["outputs"] == (True, False)
    assert learns["attention"] == learns["stages"] == (True, True)
    assert found["stages"].teacher == teacher.directory("runs")
    losses = {
        (c.label_weight, c.teacher_weight, c.attention_weight)
        for c in (found["attention"], *(stage.config for stage in stages.resolve(found["stages"], "x")))
    }
    assert len(losses) == 1


def test_what_has_finished_is_printed_and_drawn(tmp_path, capsys):
    _, rows = distillation.plan(str(tmp_path), 8, [0])
    runs.write(tmp_path / "outputs" / "seed0", [0.5, 0.625])
    rows[1].finish(str(tmp_path))
    output = tmp_path / "found"
    arguments = [f"--workdir={tmp_path}", "--report", "--seeds=0", "--epochs=8"]
    assert distillation.main([*arguments, f"--output={output}"]) == 0
    assert "62.50" in capsys.readouterr().out
    saved = {row["name"]: row for row in json.loads((tmp_path / "found.json").read_text())}
    assert saved["outputs"]["accuracy"] == [0.625]
    assert saved["outputs"]["config"] == "cifar10"
    assert saved["stages"]["accuracy"] == saved["teacher"]["accuracy"] == []
    assert (tmp_path / "found.png").exists()


def test_three_stages_need_four_epochs(tmp_path):
    with pytest.raises(UserError, match="--epochs=3: four are needed"):
        distillation.main([f"--workdir={tmp_path}", "--epochs=3"])
