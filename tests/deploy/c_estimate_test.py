"""Times and sizes on devices: counts by hand, rates that are given, tables that are damaged."""

import json
import re

import c_programs
import numpy as np
import pytest

from ftbnn_jax.bench import device as device_command
from ftbnn_jax.bench import kernel_rates
from ftbnn_jax.deploy.c import costs, device, estimate, generate, lowering, profile
from ftbnn_jax.deploy.c.options import Options
from ftbnn_jax.errors import UserError

_TABLE = {
    "name": "mine",
    "processor": "a processor",
    "compiler": "a compiler",
    "flags": "-O2",
    "kernels": "plain C",
    "date": "2026-11-26",
    "version": "0.1.0",
    "how": "instructions",
    "clock_mhz": 50.0,
    "lanes": 4,
    "rates": {"single precision": {"row": 3.0, "loop": 100.0}},
    "code_bytes": [1000, 10],
}


@pytest.fixture
def table(tmp_path):
    """Writes a table, some of whose fields are others, and returns its path."""

    def write(**changed):
        path = tmp_path / "mine.json"
        path.write_text(json.dumps(_TABLE | changed))
        return str(path)

    return write


def test_counts_of_a_binary_product_are_those_of_its_kernel():
    network = lowering.lower(c_programs.runtime("derived").artifact)
    product = next(p for p in network.products if p.group_inputs == (4, 4, 5))
    assert (product.out_shape, product.form) == ((10, 10), "ternary")
    found = costs.of_product(product, lanes=4)
    # 9 taps of 4 bits take 2 words, as 9 of 5 do; of 5 outputs, 8 are computed.
    words = 2 * 4 + 2 * 4 + 2 * 8
    inside = [1 <= p // 10 <= 8 and 1 <= p % 10 <= 8 for p in range(100)]
    edge = sum(not all(inside[first : first + 4]) for first in range(0, 100, 4))
    assert found == {
        "word": (25 - edge) * 4 * words,
        "masked_word": edge * 4 * words,
        # Signs, and which of them are not 0.
        "gathered_word": 100 * 2 * (2 + 2 + 2),
        "tap": 100 * 9,
        "group": 100 * 3,
    }
    assert 0 < edge < 25


def test_counts_of_other_loops():
    network = lowering.lower(c_programs.runtime("derived").artifact)
    stem, pool, *_ = network.loops
    found = costs.count(network, stem, lanes=4)
    # 37 pixels become 19 a side; a kernel of 3x3x3, and 9 outputs, of which 12 are computed.
    assert (found["row"], found["real_product"]) == (19 * 19, 19 * 19 * 27 * 12)
    found = costs.count(network, pool, lanes=4)
    assert (found["loop"], found["windowed"], found["packed"]) == (1, 10 * 10 * 9 * 9, 10 * 10 * 9)


def test_an_estimate_is_counts_times_rates(table):
    artifact = c_programs.runtime("derived").artifact
    network = lowering.lower(artifact)
    found = estimate.estimate(artifact, table())
    # An instruction takes 20 ns at 50 MHz.
    rows = sum(loop.positions for loop in network.loops)
    instructions = 3 * rows + 100 * len(network.loops)
    assert found.milliseconds == pytest.approx(instructions * 20e-6)
    assert found.flash_bytes == found.weights_bytes + 1000 + 10 * len(network.loops)
    files = generate.files(artifact)
    arena = re.search(r"#define FTBNN_ARENA_BYTES (\d+)u", files["model.h"])
    assert found.ram_bytes == int(arena[1])
    sizes = {"uint32_t": 4, "int32_t": 4, "float": 4, "int16_t": 2}
    arrays = re.findall(r"extern const (\w+) \w+\[(\d+)\]", files["weights.h"])
    assert found.weights_bytes == sum(sizes[kind] * int(count) for kind, count in arrays)
    assert [layer.name for layer in found.layers] == [d.layer for d in profile.describe(network)]


def test_other_arithmetics_need_times_of_their_own(table):
    artifact = c_programs.runtime("derived").artifact
    with pytest.raises(
        UserError, match=r"--device=mine: has no times of fixed point, but of single prec"
    ):
        estimate.estimate(artifact, table(), Options(20))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"how": "guessed"}, "how='guessed': must be one of measured, instructions, emulated"),
        ({"lanes": 0}, "lanes and, of instructions, clock_mhz must be positive"),
        ({"clock_mhz": 0}, "lanes and, of instructions, clock_mhz must be positive"),
        (
            {"rates": {"single precision": {"rows": 1}}},
            "single precision: 'rows' is no unit; loop, row,",
        ),
        ({"rates": {"single precision": {"row": -1}}}, "row=-1: must be a number, not negative"),
        ({"rates": 3}, "is no table of a device"),
        ({"more": 3}, "is no table of a device: .*more"),
    ],
)
def test_a_table_that_is_none_is_named(table, changed, words):
    path = table(**changed)
    with pytest.raises(UserError, match=f"^--device={re.escape(path)}: .*{words}") as caught:
        device.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", device.names())
def test_a_table_that_is_shipped_says_where_it_is_from(name):
    found = device.load(name)
    assert (found.name, device.read(found.to_json(), "")) == (name, found)
    assert all((found.processor, found.compiler, found.flags, found.kernels, found.date, found.version))
    assert {"single precision", "fixed point"} <= found.rates.keys()
    # Of each network that it was made of, it gives what that took, more or less.
    for checked in found.checked:
        assert 0.5 < checked.estimated / checked.measured < 2


def _times(name, rates, lanes):
    network = lowering.lower(c_programs.runtime(name).artifact)
    loops = kernel_rates.estimated(network, rates, lanes)
    products = [costs.time(costs.of_product(p, lanes), rates) for p in network.products]
    return kernel_rates.Times(name, "single precision", network, tuple(loops), tuple(products))


def test_rates_that_explain_all_times_are_found():
    units = ("loop", "row", "word", "masked_word", "gathered_word", "real_product", "elementwise")
    rates = {unit: float(i) for i, unit in enumerate(units, 1)}
    times = [_times(name, rates, 8) for name in c_programs.NETWORKS]
    lanes, found, checked = kernel_rates.fit(times)
    assert lanes == 8
    for time, seen in zip(times, checked, strict=True):
        assert seen.measured == pytest.approx(sum(time.loops), abs=0.1)
        np.testing.assert_allclose(
            kernel_rates.estimated(time.network, found["single precision"], lanes), time.loops, rtol=0.02
        )


def test_code_is_a_base_and_more_for_each_loop():
    assert kernel_rates.line([(9, 3000 + 9 * 70), (13, 3000 + 13 * 70)]) == (3000, 70)
    assert kernel_rates.line([(9, 3630)]) == kernel_rates.line([]) == (0, 0)


def _printed(network, ns=1000.0):
    """What `test_model --benchmark --json` prints where every loop takes as long for a row."""
    loops = [
        {"layer": d.layer, "parts": d.parts, "ns": ns * loop.positions}
        for d, loop in zip(profile.describe(network), network.loops, strict=True)
    ]
    return {"kernels": "plain C", "ns": sum(loop["ns"] for loop in loops), "loops": loops}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: p.pop("loops"), "no output of `test_model --benchmark --json`"),
        (lambda p: p["loops"][0].pop("ns"), "no output of"),
        (lambda p: p["loops"].pop(), "the times are of another network"),
        (lambda p: p["loops"][0].update(parts="copy"), "the times are of another network"),
        (lambda p: p["loops"][0].update(ns=-1), "a time is negative, or no number"),
        (lambda p: p.update(products=[]) or p["loops"][0].update(ns="x"), "no output of"),
    ],
)
def test_times_of_something_else_are_refused(change, words):
    network = lowering.lower(c_programs.runtime("none").artifact)
    printed = _printed(network)
    change(printed)
    with pytest.raises(UserError, match=f"^none: {words}"):
        kernel_rates.read("none", "single precision", network, printed)


def test_a_table_is_written_from_what_a_device_printed(tmp_path, capsys):
    folder, output = tmp_path / "nets é", tmp_path / "my board.json"
    assert device_command.main([f"--export={folder}", "--networks=narrow"]) == 0
    cases = list(device_command.cases(["narrow"]))
    assert sorted(path.name for path in folder.iterdir()) == sorted(case.folder for case in cases)
    for case in cases:
        printed = _printed(case.network)
        (folder / case.folder / "times.json").write_text(json.dumps(printed))
    given = [f"--times={folder}", "--networks=narrow", f"--output={output}", "--compiler=cc 1"]
    assert device_command.main([*given, "--how=instructions", "--clock_mhz=100"]) == 0
    found = device.load(str(output))
    assert (found.name, found.how, found.kernels) == ("my board", "instructions", "plain C")
    assert found.rates.keys() == {case.arithmetic for case in cases}
    for checked in found.checked:
        assert checked.estimated == pytest.approx(checked.measured, rel=0.05)
    # 1,000 cycles a row, at 10 ns.
    case = cases[0]
    rows = sum(loop.positions for loop in case.network.loops)
    time = estimate.estimate(case.network.artifact, str(output)).milliseconds
    assert time == pytest.approx(rows * 1000 * 10e-6, rel=0.05)
    assert "narrow, single precision" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give --output=FILE, or --export=DIR"),
        (["--output=a.json", "--export=b"], "one of these alone"),
        (["--output=a.txt"], "--output=a.txt: must end in .json"),
        (["--output=a.json", "--networks=narow"], "--networks=narow: must be some of narrow,"),
        (["--output=a.json", "--clock_mhz=5"], "--clock_mhz goes with --how=instructions"),
        (["--output=a.json", "--how=instructions"], "--clock_mhz goes with --how=instructions"),
        (["--output=a.json", "--networks=narrow", "--times=none"], "times.json: cannot be read: "),
    ],
)
def test_a_mistake_is_one_line(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert device_command.main(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert words in err
