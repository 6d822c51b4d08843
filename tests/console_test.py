"""The command `ftbnn`: what its names run, and that they are the modules' own commands."""

import pathlib
import subprocess
import sys

import pytest

import ftbnn_jax
from ftbnn_jax import __main__ as console
from ftbnn_jax import command
from ftbnn_jax.errors import UserError

# What pip makes of the entry point, without its installation.
_SCRIPT = (
    "import sys; sys.argv[0] = '/usr/bin/ftbnn'; from ftbnn_jax.__main__ import main; sys.exit(main())"
)


def _run(*arguments, start=("-m", "ftbnn_jax")):
    result = subprocess.run(
        [sys.executable, *start, *arguments], capture_output=True, text=True, check=False
    )
    return result.returncode, result.stdout, result.stderr


@pytest.mark.parametrize(
    ("arguments", "module", "before", "used"),
    [
        (["train", "--config=x"], "ftbnn_jax.main", ("--mode=train",), 1),
        (["export", "--verify"], "ftbnn_jax.main", ("--mode=export",), 1),
        (["budget", "--help"], "ftbnn_jax.budget", (), 1),
        (["predict"], "ftbnn_jax.predict", (), 1),
        (["sweep", "a.py"], "ftbnn_jax.experiments.sweep", (), 1),
        (["bench", "train_step", "--rounds=1"], "ftbnn_jax.bench.train_step", (), 2),
        (["experiment", "table3"], "ftbnn_jax.experiments.table3", (), 2),
    ],
)
def test_a_name_is_a_module_and_its_first_arguments(arguments, module, before, used):
    found, count = console.find(arguments)
    assert (found.module, found.arguments, count) == (module, before, used)


@pytest.mark.parametrize("arguments", [["bench"], ["experiment", "--help"]])
def test_a_group_alone_is_no_command(arguments):
    assert console.find(arguments) == (None, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tarin"], "tarin: no such command; the nearest is `ftbnn train`"),
        (["eval"], "eval: no such command; the nearest is `ftbnn evaluate`"),
        (["--config=x.py"], "--config=x.py: no such command"),
        (["bench", "step"], "bench step: no such command; the nearest is `ftbnn bench train_step`"),
        (["train", "--mode=export"], "--mode: `ftbnn train` says which"),
        (["verify", "--mode", "export"], "--mode: `ftbnn verify` says which"),
    ],
)
def test_a_name_that_is_none(arguments, message):
    with pytest.raises(UserError) as error:
        console.find(arguments)
    assert str(error.value).startswith(message)


def test_every_command_of_the_package_has_a_name():
    root = pathlib.Path(ftbnn_jax.__file__).parents[1]
    found = set()
    for path in root.glob("ftbnn_jax/**/*.py"):
        if '__name__ == "__main__"' in path.read_text():
            parts = path.relative_to(root).with_suffix("").parts
            found.add(".".join(p for p in parts if p != "__main__"))
    named = {c.module for c in console._COMMANDS.values()}
    for package, _ in console._GROUPS.values():
        named |= {f"{package}.{name}" for name in console._modules(package)}
    assert found - named == {"ftbnn_jax"}
    assert named <= found


@pytest.mark.parametrize("arguments", [(), ("--help",), ("help",)])
def test_help_lists_every_command(arguments):
    status, output, errors = _run(*arguments)
    assert (status, errors) == (0, "")
    listed = [line.split()[0] for line in output.splitlines() if line.startswith("  ")]
    assert listed == [*console._COMMANDS, *console._GROUPS]


def test_the_version_and_a_group():
    assert _run("--version") == (0, f"ftbnn-jax {ftbnn_jax.__version__}\n", "")
    status, output, errors = _run("bench")
    assert (status, errors) == (0, "")
    assert "  train_step " in output


@pytest.mark.parametrize("start", [("-m", "ftbnn_jax"), ("-c", _SCRIPT)])
def test_a_mistake_is_one_line_in_the_spelling_of_the_command(start):
    status, output, errors = _run("tarin", start=start)
    assert (status, output, errors.count("\n")) == (2, "", 1)
    assert errors.startswith("error: tarin: no such command; the nearest is `ftbnn train`")
    arguments = ("--config=no.py", "--workdir=run", "--runtime=c")
    status, output, errors = _run("export", *arguments, start=start)
    assert (status, output, errors) == (2, "", "error: --runtime: goes with ftbnn verify\n")


def test_the_help_of_a_command_has_its_name():
    status, output, _ = _run("bench", "packed_layer", "--help", start=("-c", _SCRIPT))
    assert status == 0
    assert output.startswith("usage: ftbnn bench packed_layer ")


@pytest.mark.parametrize(
    ("program", "expected"), [("ftbnn export", "ftbnn export"), ("x.py", "--mode=export")]
)
def test_messages_name_a_mode_as_it_was_called(monkeypatch, program, expected):
    monkeypatch.setattr(sys, "argv", [program])
    assert command.mode("export --format=c") == f"{expected} --format=c"
