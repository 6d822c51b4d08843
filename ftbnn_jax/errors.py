"""Exceptions that tell of bad input rather than of a bug, and messages of one line."""

_LONGEST = 200


class UserError(ValueError):
    """Bad input: a config value, a data set, a checkpoint or an artifact.

    The message is one line, "WHERE: WHAT", that names the file or field, the value found and what would
    be right. Commands print it without a traceback and exit with status 2 (`command.run`).

        UserError("must be at least 1", where="config.batch_size=0")

    Attributes:
      what: what is wrong and what would be right.
      where: the file or field, with its value; "" where `what` names it.
    """

    def __init__(self, what: str, where: str = ""):
        super().__init__(f"{where}: {what}" if where else what)
        self.what = what
        self.where = where

    def within(self, prefix: str) -> "UserError":
        """Returns the error with more before its place: "configs/x.py: ", "config.data_dir="."""
        return UserError(self.what, f"{prefix}{self.where}".removesuffix(": "))


class CorruptRecordError(ValueError):
    """A record or a file holds no readable image; the message says what is wrong, in one line."""


def one_line(text: str) -> str:
    """Returns text whose line breaks, and whatever else is not printable, are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def summary(error: BaseException) -> str:
    """Returns the first line of an error's message, at most 200 characters, or else its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
