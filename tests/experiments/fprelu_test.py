import json

import numpy as np
import pytest
import runs

from ftbnn_jax.errors import UserError
from ftbnn_jax.experiments import fprelu, members


def test_bend_is_0_of_a_line_and_1_of_a_relu():
    left, right = np.array([1.0, 0.0, -0.5, 0.0]), np.array([1.0, 2.0, 0.5, 0.0])
    # |1-1|/2, |2-0|/2, |0.5+0.5|/1, and 0/0, which is a line too.
    assert fprelu.bend({"a/negative_slope": left, "a/positive_slope": right}) == pytest.approx(0.5)
    # PReLU's positive slope is 1: 0.75 / 1.25.
    assert fprelu.bend({"a/act/negative_slope": np.full(3, 0.25)}) == pytest.approx(0.6)
    assert fprelu.bend({}) is None


def test_shares_compare_runs_of_the_same_seed():
    found = {
        ("none", 10): [{"seed": 0, "accuracy": 0.5}, {"seed": 1, "accuracy": 0.4}],
        ("prelu", 10): [{"seed": 1, "accuracy": 0.6}, {"seed": 0, "accuracy": 0.6}],
        ("fprelu", 10): [{"seed": 0, "accuracy": 0.52}, {"seed": 1, "accuracy": 0.5}],
    }
    assert fprelu.shares(found, "fprelu", 10) == pytest.approx([0.2, 0.5])
    assert fprelu.shares(found, "prelu_1", 10) == fprelu.shares(found, "fprelu", 20) == []


def test_what_has_finished_is_printed_and_drawn(tmp_path, monkeypatch, capsys):
    slopes = {"act": {"negative_slope": np.full(2, 0.5), "positive_slope": np.ones(2)}}
    monkeypatch.setattr(
        fprelu.checkpoint,
        "load_variables",
        lambda path: ({"params": slopes if "/fprelu-" in path else {}}, {}, 1000),
    )
    for row, accuracy in {"none": 0.5, "prelu": 0.6, "fprelu": 0.53}.items():
        overrides = ("--config.num_steps=1000",)
        member = members.Member(f"{row}-1000", f"ablation:{row},cifar10", 0, overrides)
        runs.write(tmp_path / f"{row}-1000" / "seed0", [accuracy])
        member.finish(str(tmp_path))
    output = tmp_path / "found"
    arguments = [f"--workdir={tmp_path}", "--report", "--steps=1000", "--seeds=0"]
    assert fprelu.main([*arguments, f"--output={output}"]) == 0
    printed = capsys.readouterr().out
    (row,) = [line for line in printed.splitlines() if line.startswith("│ fprelu ")]
    # (0.53 - 0.5) / (0.6 - 0.5), and |1 - 0.5| / 1.5.
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells == ["fprelu", "1,000", "1", "53.00", "30", "0.333"]
    # Rows that were not trained have no runs; the others what was read.
    saved = {
        (e["row"], e["steps"]): e["runs"] for e in json.loads((tmp_path / "found.json").read_text())
    }
    assert [r["accuracy"] for r in saved["fprelu", 1000]] == [0.53]
    assert saved["prelu_1", 1000] == []
    assert (tmp_path / "found.png").exists()


def test_long_trainings_are_of_the_papers_rows(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(fprelu.sweep, "run", lambda wanted, *_: asked.extend(wanted) or 0)
    assert fprelu.main([f"--workdir={tmp_path}", "--steps=16000,1000", "--", "--config.flip=False"]) == 0
    assert [(m.name, m.seed) for m in asked if m.name.startswith("prelu_1-")] == [
        ("prelu_1-1000", 0),
        ("prelu_1-1000", 1),
    ]
    assert [m.label for m in asked if m.name.endswith("-16000")] == [
        f"{row}-16000 seed {seed}" for row in ("none", "prelu", "fprelu") for seed in (0, 1)
    ]
    assert {m.overrides for m in asked if m.name == "none-1000"} == {
        ("--config.num_steps=1000", "--config.flip=False")
    }
    with pytest.raises(UserError, match="--steps=0"):
        fprelu.main([f"--workdir={tmp_path}", "--steps=0"])
