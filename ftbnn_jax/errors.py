"""The one exception that is a message to the user rather than a bug."""

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn


class UserError(ValueError):
    """Bad input: a config value, a data set, a checkpoint or an artifact.

    The message is one line that names the file or field, the value found and what would be right.
    `ftbnn_jax.main` prints it without a traceback and exits with status 2.
    """


class ArgumentParser(argparse.ArgumentParser):
    """Raises a UserError where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the arguments")


def positive(text: str) -> int:
    """Returns the number in an argument, a `type` for argparse; it must be whole and at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def run_command(main: Callable[[Sequence[str]], int], arguments: Sequence[str] | None = None) -> int:
    """Runs a command's `main` on arguments, or the command line's, and returns the exit status.

    A user's mistake becomes one line and status 2, Ctrl-C one word and 130.
    """
    try:
        return main(sys.argv[1:] if arguments is None else arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
