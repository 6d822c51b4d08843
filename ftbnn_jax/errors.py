"""The one exception that is a message to the user rather than a bug; messages of one line."""

_LONGEST = 200


class UserError(ValueError):
    """Bad input: a config value, a data set, a checkpoint or an artifact.

    The message is one line that names the file or field, the value found and what would be right.
    Commands print it without a traceback and exit with status 2 (`command.run`).
    """


def one_line(text: str) -> str:
    """Returns text whose line breaks, and whatever else is not printable, are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def summary(error: BaseException) -> str:
    """Returns the first line of an error's message, at most 200 characters, or else its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
