"""Where commands stand that stood elsewhere in version 0.1: their old names say so, for one release."""

import sys

_COMMANDS = {
    "data.prepare_imagenet": "data.prepare imagenet2012",
    "deploy.benchmark": "bench.packed_layer",
    "experiments.exactness": "bench.exactness",
    "ops.tune_convolution": "bench.tune_convolution",
    "train.benchmark": "bench.train_step",
    "train.input_pipeline": "bench.input",
    "train.prepare_imagenet": "data.prepare imagenet2012",
}


def new_name(arguments: list[str]) -> str | None:
    """Returns what a command line means by a module's old name; None where it means no such one.

    Args:
      arguments: as `sys.orig_argv`: the interpreter, its options, `-m`, the module, its arguments.
    """
    if "-m" not in arguments[:-1]:
        return None
    package, _, module = arguments[arguments.index("-m") + 1].partition(".")
    return f"{package}.{_COMMANDS[module]}" if module in _COMMANDS else None


def check() -> None:
    """Exits with status 2 and one line if this process is a command that has moved."""
    if name := new_name(sys.orig_argv):
        print(f"error: this command has moved: python -m {name}", file=sys.stderr)
        sys.exit(2)
