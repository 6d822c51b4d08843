import pytest
import runs

from ftbnn_jax import config
from ftbnn_jax.errors import UserError
from ftbnn_jax.experiments import table2


def _layer(name, negative=None, positive=None):
    return {"name": name, "negative_slope": negative, "positive_slope": positive}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Returns a function that gives the directory of a run with these layers."""
    runs.write(tmp_path, [0.5])
    experiment = {"config": config.load("quickstart").to_dict(), "channels": 1}
    monkeypatch.setattr(table2.checkpoint, "load_variables", lambda path: ({}, experiment, 1234))

    def made(*layers):
        monkeypatch.setattr(table2.audit, "layers", lambda *_: list(layers))
        return str(tmp_path)

    return made


def test_slopes_stand_beside_the_published_ones(run, capsys):
    layers = [
        _layer("block1_3", [1.5, -0.25, 3], [1, 0.5, 2]),
        _layer("block1_4"),
        _layer("other", [1, 1, 1]),
    ]
    assert table2.main([run(*layers)]) == 0
    printed = capsys.readouterr().out
    assert "step 1,234" in printed
    lines = {cells[0]: cells[1:] for line in printed.splitlines() if (cells := _cells(line))}
    assert lines["block1_3"] == [
        "1.50 [-0.25 3.00]",
        "1.00 [0.50 2.00]",
        "0.87 [0.33 4.49]",
        "0.75 [0.26 1.40]",
    ]
    # A ReLU has none, and the paper has no such block.
    assert lines["block1_4"] == [""] * 4
    assert lines["other"] == ["1.00 [1.00 1.00]", "", "", ""]


def _cells(line):
    return [cell.strip() for cell in line.strip("│").split("│")] if line.startswith("│") else []


def test_a_network_without_slopes_is_told(run):
    with pytest.raises(UserError, match="the network has no slopes"):
        table2.main([run(_layer("block1_1"))])
