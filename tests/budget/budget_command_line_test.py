"""`python -m ftbnn_jax.budget`, as a user runs it."""

import json
import os
import subprocess
import sys

import pytest

from ftbnn_jax.budget import __main__ as command_line
from ftbnn_jax.budget import figure3

_KEYS = {"name", "flops", "bops_blocks", "bops_bridge", "bops", "params", "total", "published"}


@pytest.fixture(autouse=True)
def in_the_repository(repository, monkeypatch):
    monkeypatch.chdir(repository)


def _run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["budget", *arguments])
    status = command_line.main()
    out, err = capsys.readouterr()
    return status, out, err


def test_json_of_a_config_with_its_layers(monkeypatch, capsys):
    status, out, err = _run(monkeypatch, capsys, "configs/quickstart.py", "--json", "--layers")
    assert (status, err) == (0, "")
    (entry,) = json.loads(out)
    assert set(entry) > _KEYS
    assert entry["name"] == "quickstart"
    assert entry["published"] is None
    # Stem and four blocks of width 48 at 8x8 and 96 at 4x4, the third after a ReLU.
    conv = 8 * 8 * 9 * 48 * 48
    assert entry["bops"] * 1e6 == pytest.approx(conv + conv + 2 * conv // 2 + conv)
    assert sum(layer["bops"] for layer in entry["layers"]) / 1e6 == pytest.approx(entry["bops"])
    assert entry["activation_bytes"] == sum(x["activation_bytes"] for x in entry["layers"])


def test_devices_are_listed_in_one_line(monkeypatch, capsys):
    status, out, err = _run(monkeypatch, capsys, "--device", "help")
    assert (status, out.count("\n"), err) == (0, 1, "")
    assert {"x86-avx2", "x86-avx512", "cortex-m4"} <= set(out.strip().split(", "))


def test_a_device_adds_milliseconds_and_kilobytes(monkeypatch, capsys):
    arguments = ["quickstart", "--image-size=6", "--device=x86-avx512", "--json", "--layers"]
    status, out, err = _run(monkeypatch, capsys, *arguments)
    assert (status, err) == (0, "")
    (entry,) = json.loads(out)
    found = entry["device"]
    assert (found["name"], found["arithmetic"]) == ("x86-avx512", "single precision")
    # Two blocks of 48 channels, and two of 96 at half the size; the first of these reads 48.
    binary = 6 * 6 * 9 * 48 * 48
    layers = found["layers"]
    assert sum(x["binary_multiply_adds"] for x in layers) == 2 * binary + 3 * 3 * 9 * 96 * (48 + 96)
    assert found["milliseconds"] == pytest.approx(sum(x["milliseconds"] for x in layers))
    # Two bytes a weight of the classifier, one bit of a binary one, four of others.
    others = entry["real_params"] + entry["state"] - 96 * 10 / 2
    assert found["weights_bytes"] == pytest.approx(entry["binary_params"] / 8 + 4 * others, rel=0.1)


@pytest.mark.parametrize("arguments", [["--image-size", "16"], ["--channels", "3"]])
def test_other_inputs(monkeypatch, capsys, arguments):
    _, out, _ = _run(monkeypatch, capsys, "configs/quickstart.py", "--json", "--layers", *arguments)
    (entry,) = json.loads(out)
    size, channels = (16, 1) if arguments[0] == "--image-size" else (8, 3)
    stem = {layer["name"]: layer for layer in entry["layers"]}["stem/conv"]
    assert stem["macs"] == size * size * 9 * channels * 48


def test_a_table_in_a_pipe_is_not_cut(repository):
    run = subprocess.run(
        [sys.executable, "-m", "ftbnn_jax.budget", "configs/derived18_g5.py:90", "--layers"],
        env={**os.environ, "PYTHONPATH": str(repository), "COLUMNS": "40"},
        capture_output=True,
        text=True,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert "…" not in run.stdout
    lines = [[cell.strip() for cell in line.split("│")] for line in run.stdout.splitlines()]
    rows = [cells for cells in lines if "derived18_g5:90" in cells]
    published = next(cells for cells in rows if "25.8" in cells)
    assert {"25.78", "-0.02", "2.28", "61.9"} <= set(published)
    layers = {cells[1]: cells for cells in lines if len(cells) > 2}
    # 192 channels, duplicated, in 5 groups: 76, 76, 76, 76, 80 on either side.
    macs = 28 * 28 * 9 * (4 * 76 * 76 + 80 * 80)
    assert f"{2 * macs:,}" in layers["block2_1/conv"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], ["give config files, --table4 or --figure3"]),
        (["--table4", "configs/baseline.py"], ["one of these alone"]),
        (["configs/baselin.py"], ["configs/baselin.py: no such config file", "configs/baseline.py"]),
        (["configs/ablation.py:gelu"], ["row='gelu'", "stage_relu_prelu"]),
        (["configs/derived18_g1.py:100"], ["budget=100", "18 layers at 90"]),
        (["configs/baseline.py", "--image-size", "0"], ["--image-size", "'0'", "at least 1"]),
        (["configs/baseline.py", "--image-size", "big"], ["--image-size", "'big'"]),
        (["quickstart", "--device=cortex-m44"], ["--device=cortex-m44", "nearest is cortex-m4;"]),
        (["quickstart", "--fixed_point"], ["--fixed_point: goes with --device=NAME"]),
        (["--table4", "--device=x86-avx512"], ["--device=x86-avx512: is for config files alone"]),
        (["quickstart", "--device=nowhere.json"], ["--device=nowhere.json: cannot be read: "]),
        (["configs/baseline.py", "--jsn"], ["--jsn", "--help"]),
        (["--table4", "--output", "x.png"], ["--output x.png", "--figure3"]),
        (["--figure3", "--output", "x.gif"], ["x.gif", ".png, .svg"]),
        (["--figure3", "--output", "no/x.png"], ["no/x.png", "no folder no"]),
    ],
)
def test_a_mistake_is_told_in_one_line(monkeypatch, capsys, arguments, said):
    status, out, err = _run(monkeypatch, capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1 and err.endswith("\n")
    for part in said:
        assert part in err


@pytest.mark.parametrize(("ending", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_figure_3(monkeypatch, capsys, tmp_path, ending, magic):
    pytest.importorskip("matplotlib", reason="matplotlib draws the figure")
    parts = dict.fromkeys((name for name, _, _ in figure3._PARTS), 1.0)
    monkeypatch.setattr(figure3, "distributions", lambda: {"one": parts, "other": parts})
    path = tmp_path / f"figure{ending}"
    status, out, _ = _run(monkeypatch, capsys, "--figure3", "--output", str(path))
    assert (status, out.strip()) == (0, str(path))
    assert path.read_bytes().startswith(magic)


def test_figure_3_without_matplotlib(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    status, _, err = _run(monkeypatch, capsys, "--figure3", "--output", str(tmp_path / "x.png"))
    assert status == 2
    assert "matplotlib: needs the extra" in err and "ftbnn-jax[figures]" in err
