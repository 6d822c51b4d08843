"""The command `ftbnn`, or `python -m ftbnn_jax`: all commands of the package by one name."""

import ast
import pathlib
import runpy
import sys
from collections.abc import Sequence
from typing import NamedTuple

import ftbnn_jax
from ftbnn_jax import command
from ftbnn_jax.errors import UserError
from ftbnn_jax.nearest import nearest


class _Command(NamedTuple):
    """A module that is run, with arguments before the user's."""

    module: str
    text: str
    arguments: tuple[str, ...] = ()


_RUN = "ftbnn_jax.main"
_COMMANDS = {
    "train": _Command(_RUN, "train a network, on from its newest checkpoint", ("--mode=train",)),
    "evaluate": _Command(_RUN, "accuracy of a checkpoint", ("--mode=evaluate",)),
    "export": _Command(
        _RUN, "pack a checkpoint into bits; also as C or ONNX; --verify", ("--mode=export",)
    ),
    "verify": _Command(_RUN, "compare the packed integers with training's", ("--mode=verify",)),
    "benchmark": _Command(_RUN, "time training's graph and the packed one", ("--mode=benchmark",)),
    "audit": _Command(_RUN, "look at weights, slopes and activations", ("--mode=audit",)),
    "predict": _Command("ftbnn_jax.predict", "classes of image files, by a packed network"),
    "budget": _Command("ftbnn_jax.budget", "count parameters, FLOPs, BOPs, bytes and memory"),
    "prepare": _Command("ftbnn_jax.data.prepare", "prepare a data set of TFDS"),
    "mean_image": _Command("ftbnn_jax.data.mean_image", "the mean of a config's training images"),
    "sweep": _Command("ftbnn_jax.experiments.sweep", "run configs with several seeds, compare them"),
}
# Commands of which there are several, each a module of the package.
_GROUPS = {
    "bench": ("ftbnn_jax.bench", "measure: what there is, without a name"),
    "experiment": ("ftbnn_jax.experiments", "repeat the paper's: what there is, without a name"),
}


def main() -> int:
    """Runs the command that the command line names; returns the exit status."""
    command.begin()
    arguments = sys.argv[1:]
    name = arguments[0] if arguments else "--help"
    if name in ("--help", "-h", "help"):
        return command.run(lambda _: _print(_help()))
    if name == "--version":
        return command.run(lambda _: _print(f"ftbnn-jax {ftbnn_jax.__version__}"))
    found, used = find(arguments)
    if found is None:
        return command.run(lambda _: _print(_group_help(name)))
    sys.argv = [" ".join([command.PROGRAM, *arguments[:used]]), *found.arguments, *arguments[used:]]
    # The module's own last lines run it, and end the process.
    runpy.run_module(found.module, run_name="__main__")
    return 0


def find(arguments: Sequence[str]) -> tuple[_Command | None, int]:
    """Returns what a command line runs, and how many of its arguments name it.

    Args:
      arguments: of `ftbnn`; at least one.

    Returns:
      None for a group without a name.

    Raises:
      UserError: there is no such command.
    """
    name = arguments[0]
    if name in _COMMANDS:
        found = _COMMANDS[name]
        if found.module == _RUN and any(a.partition("=")[0] == "--mode" for a in arguments):
            raise UserError(f"`{command.PROGRAM} {name}` says which", "--mode")
        return found, 1
    if name not in _GROUPS:
        raise _unknown(name, [*_COMMANDS, *_GROUPS])
    if len(arguments) == 1 or arguments[1] in ("--help", "-h"):
        return None, 1
    package, _ = _GROUPS[name]
    known = _modules(package)
    if arguments[1] not in known:
        raise _unknown(f"{name} {arguments[1]}", [f"{name} {other}" for other in known])
    return _Command(f"{package}.{arguments[1]}", known[arguments[1]]), 2


def _unknown(name: str, known: Sequence[str]) -> UserError:
    meant = nearest(name, known)
    return UserError(
        f"no such command; the nearest is `{command.PROGRAM} {meant}`, and `{command.PROGRAM} --help` "
        "lists them",
        name,
    )


def _modules(package: str) -> dict[str, str]:
    """Returns the modules of a package that are commands, with the first lines of their docstrings."""
    folder = pathlib.Path(__file__).parent.joinpath(*package.split(".")[1:])
    found = {}
    for path in sorted(folder.glob("*.py")):
        source = path.read_text(encoding="utf-8")
        if '__name__ == "__main__"' in source:
            text = ast.get_docstring(ast.parse(source)) or ""
            found[path.stem] = text.partition("\n")[0]
    return found


def _help() -> str:
    rows = {name: found.text for name, found in _COMMANDS.items()}
    rows |= {f"{name} NAME": text for name, (_, text) in _GROUPS.items()}
    return (
        f"usage: {command.PROGRAM} COMMAND [ARGUMENT...]\n\n{_table(rows)}\n\n"
        f"{command.PROGRAM} COMMAND --help says more; {command.PROGRAM} --version prints the version.\n"
        f"{command.PROGRAM} train --config=quickstart --workdir=runs/quickstart trains a first network."
    )


def _group_help(name: str) -> str:
    package, _ = _GROUPS[name]
    return f"usage: {command.PROGRAM} {name} NAME [ARGUMENT...]\n\n{_table(_modules(package))}"


def _table(rows: dict[str, str]) -> str:
    width = max(map(len, rows))
    return "\n".join(f"  {name:{width}}  {text}" for name, text in rows.items())


def _print(text: str) -> int:
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
