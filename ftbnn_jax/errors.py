"""The one exception that is a message to the user rather than a bug."""

import argparse
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
