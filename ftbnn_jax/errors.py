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


def run_command(main: Callable[[Sequence[str]], int]) -> int:
    """Runs a command's `main` on the command line's arguments and returns the exit status.

    A user's mistake becomes one line and status 2, Ctrl-C one word and 130.
    """
    try:
        return main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
