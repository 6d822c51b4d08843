"""How commands read their arguments, and how they end."""

import os
import signal
import subprocess
import sys

import pytest

from ftbnn_jax import command
from ftbnn_jax.errors import UserError


def _parser() -> command.ArgumentParser:
    parser = command.ArgumentParser(prog="test")
    parser.add_argument("place", nargs="?")
    parser.add_argument("--number", type=command.whole(0, 9))
    parser.add_argument("--mode", choices=("train", "verify"))
    parser.add_argument("--file", action="append")
    parser.add_argument("--json", nargs="?", const=True, type=command.truth)
    return parser


@pytest.mark.parametrize(
    ("arguments", "field", "expected"),
    [
        (["--number=3"], "number", 3),
        (["--number", "3"], "number", 3),
        (["--file=a", "--file=a"], "file", ["a", "a"]),
        (["--json"], "json", True),
        (["--json=False"], "json", False),
        (["--", "--number=3"], "place", "--number=3"),
    ],
)
def test_arguments_with_and_without_an_equals_sign(arguments, field, expected):
    assert getattr(_parser().parse_args(arguments), field) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--number=3", "--number=3"], "--number: given 2 times; once would do"),
        (["--number", "3", "--number=4"], "--number: given 2 times; once would do"),
        (["--num=3"], "unrecognized arguments: --num, the nearest is --number"),
        (["-number=3"], "unrecognized arguments: -number=3"),
        (["--nojson"], "unrecognized arguments: --nojson, the nearest is --json"),
        (["--json=maybe"], "--json: 'maybe' is neither true nor false"),
        (["--json", "place"], "--json: 'place' is neither true nor false"),
        (["--number"], "--number: expected one argument"),
        (["--number", "--json"], "--number: expected one argument"),
        (["--mode=trian"], "--mode=trian: must be one of train, verify"),
        (["here", "there"], "unrecognized arguments: there"),
        *(([f"--number={n}"], "is not a whole number of at least 0 and at most 9") for n in ("x", "-1")),
        *(([f"--number={n}"], "is not a whole number") for n in ("", "10", "1.0", "٣", "9" * 5000)),
    ],
)
def test_a_wrong_argument_is_named(arguments, message):
    with pytest.raises(UserError) as error:
        _parser().parse_args(arguments)
    assert message in str(error.value)


def _raise(error):
    raise error


class JaxRuntimeError(RuntimeError):
    """Named as XLA's is."""


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("a\nb\x1b[2J\u2028é"), 2, "error: a\\nb\\x1b[2J\\u2028é"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (FileNotFoundError(2, "No such file", "x\n"), 2, "error: x\\n: No such file"),
        (OSError(28, "No space left on device"), 2, "error: No space left on device"),
        (
            MemoryError("9 TiB"),
            2,
            "error: out of memory (9 TiB); a smaller batch, image or network would do",
        ),
        (
            JaxRuntimeError("RESOURCE_EXHAUSTED: x"),
            2,
            "error: out of memory (RESOURCE_EXHAUSTED: x); a smal",
        ),
    ],
)
def test_every_end_is_one_line(error, status, line, capsys):
    assert command.run(lambda _: _raise(error), []) == status
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(line)
    assert output.err.count("\n") == 1


@pytest.mark.parametrize(
    "error", [RuntimeError("RESOURCE_EXHAUSTED"), ValueError("x"), AssertionError()]
)
def test_a_bug_is_not_hidden(error):
    with pytest.raises(type(error)):
        command.run(lambda _: _raise(error), [])


def _python(code: str, **arguments) -> subprocess.Popen:
    start = (
        "import os, signal, sys; sys.argv[0] = '-m'; import ftbnn_jax; from ftbnn_jax import command; "
    )
    return subprocess.Popen(
        [sys.executable, "-c", start + code], stderr=subprocess.PIPE, text=True, **arguments
    )


@pytest.mark.parametrize(
    ("code", "status", "line"),
    [
        # As in the imports before `run`, and in the interpreter's end after it.
        ("os.kill(os.getpid(), signal.SIGINT)", 130, "interrupted\n"),
        ("command.run(lambda _: os.kill(os.getpid(), signal.SIGINT))", 130, "interrupted\n"),
        # Through a text, after which Python ends by the signal, and where exceptions are ignored.
        ("command.run(lambda _: exec('os.kill(os.getpid(), signal.SIGINT); 1'))", 130, "interrupted\n"),
        (
            "import gc; gc.callbacks.append(lambda *_: os.kill(os.getpid(), signal.SIGINT)); "
            "command.run(lambda _: gc.collect())",
            130,
            "interrupted\n",
        ),
        ("command.run(lambda _: 0); os.kill(os.getpid(), signal.SIGINT)", 130, "interrupted\n"),
        (
            "raise ValueError('invalid truth value for environment JAX_ENABLE_X64')",
            2,
            "error: JAX_ENABLE_X64=maybe: invalid truth value for environment JAX_ENABLE_X64\n",
        ),
    ],
)
def test_a_command_is_never_without_an_end_of_its_own(code, status, line):
    process = _python(code, env={**os.environ, "JAX_ENABLE_X64": "maybe"})
    assert (process.communicate()[1], process.returncode) == (line, status)


def test_ctrl_c_in_a_module_that_does_not_let_it_out(tmp_path):
    """As compiled ones: whatever they import, an exception ends the process in a way of their own."""
    (tmp_path / "deaf.py").write_text(
        "import os, signal\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "except KeyboardInterrupt:\n"
        "    os._exit(134)\n"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    process = _python(
        "command.run(lambda _: __import__('deaf'))", env={**os.environ, "PYTHONPATH": path}
    )
    assert (process.communicate()[1], process.returncode) == ("interrupted\n", 130)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that is full")
def test_output_that_cannot_be_written_is_one_line():
    with open("/dev/full", "w") as full:
        process = _python("sys.exit(command.run(lambda _: print('x')))", stdout=full)
        assert process.communicate()[1] == "error: No space left on device\n"
    assert process.returncode == 2


def test_a_reader_that_has_gone_is_no_mistake():
    process = _python("sys.exit(command.run(lambda _: print('x' * 10**6)))", stdout=subprocess.PIPE)
    process.stdout.close()
    assert (process.communicate()[1], process.returncode) == ("", 128 + signal.SIGPIPE)
