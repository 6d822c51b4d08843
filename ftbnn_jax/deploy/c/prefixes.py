"""What every name of a C program begins with, so that several networks fit into one program."""

import re

from ftbnn_jax.errors import UserError

# In the text of the kernels, and of a program for which no other is asked.
DEFAULT = "ftbnn"
# Names of files and of this package stay as they are.
_PREFIXED = re.compile(r"(ftbnn|FTBNN)_(?!jax\b|\w+\.[cho]\b)")
# C and C++ keep underscores at either end, and two of them, to themselves.
_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9]*(_[A-Za-z0-9]+)*")
_KEYWORD = re.compile(
    "auto|break|case|char|const|continue|default|do|double|else|enum|extern|float|for|goto|if|inline|int|"
    "long|register|restrict|return|short|signed|sizeof|static|struct|switch|typedef|union|unsigned|void|"
    "volatile|while"
)


def check(prefix: str) -> None:
    """Raises a UserError unless names of C and C++ can begin with `prefix` and an underscore."""
    if not _IDENTIFIER.fullmatch(prefix) or _KEYWORD.fullmatch(prefix):
        raise UserError(
            f"--prefix={prefix!r}: must be a C identifier: letters, digits, single underscores between "
            "them, no keyword"
        )


def apply(files: dict[str, str], prefix: str) -> dict[str, str]:
    """Returns files, by name, in which all names begin with `prefix`, and macros with its capitals.

    Raises:
      UserError: one of them would be a name that the files have already.
    """
    if prefix == DEFAULT:
        return files

    def in_place(match: re.Match[str]) -> str:
        return f"{prefix.upper() if match[1].isupper() else prefix}_"

    # Weights are numbers and take long; their names are in the header.
    words = {word for name in files if name != "weights.c" for word in re.findall(r"\w+", files[name])}
    own = {word for word in words if not _PREFIXED.match(word)}
    taken = own & {_PREFIXED.sub(in_place, word) for word in words - own}
    if taken:
        raise UserError(
            f"--prefix={prefix!r}: the program has a {min(taken)} of its own; take another prefix"
        )
    return {name: _PREFIXED.sub(in_place, text) for name, text in files.items()}
