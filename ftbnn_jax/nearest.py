"""Which known name was meant by one that is not known: by its meaning, its words, its letters."""

import difflib
import re
from collections.abc import Iterable, Mapping

# Letters of which an abbreviation has at least so many, and the likeness from which on a word is the
# same one, misspelt.
_ABBREVIATION = 3
_SAME_WORD = 0.7


def nearest(name: str, known: Iterable[str], meanings: Mapping[str, str] | None = None) -> str:
    """Returns the known name that is nearest to `name`.

    Args:
      name: what was written, "lr" or "model.widht".
      known: the names that there are, at least one.
      meanings: what other names are usual for some of these; of a name with dots, for its last part.
    """
    parents, dot, last = name.rpartition(".")
    meant = f"{parents}{dot}{(meanings or {}).get(last.lower(), last)}"
    return max(known, key=lambda candidate: _likeness(meant, candidate))


def _likeness(name: str, other: str) -> float:
    """Returns how much of both names the words that they share are, plus the same for letters.

    "epochs" is a whole word of "num_epochs", however many letters it shares with other names.
    """
    words, others = _words(name), _words(other)
    shared = sum(max((_of_words(word, o) for o in others), default=0.0) for word in words)
    return 2 * shared / max(1, len(words) + len(others)) + _letters(name, other)


def _words(name: str) -> list[str]:
    return re.findall(r"[^\W_]+", name.lower())


def _of_words(word: str, other: str) -> float:
    """Returns 1 for the same word, less for one cut short or misspelt, 0 for another one."""
    if len(word) >= _ABBREVIATION and other.startswith(word):
        return 1.0 if word == other else _SAME_WORD
    likeness = _letters(word, other)
    return likeness if likeness >= _SAME_WORD else 0.0


def _letters(name: str, other: str) -> float:
    return difflib.SequenceMatcher(None, name.lower(), other.lower()).ratio()
