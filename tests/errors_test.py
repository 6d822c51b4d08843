"""What an error says and what it says it of."""

import pickle

import pytest

from ftbnn_jax.errors import UserError


@pytest.mark.parametrize(
    ("error", "where", "what", "text"),
    [
        (UserError("all in one text"), "", "all in one text", "all in one text"),
        (
            UserError("must be 1", "config.seed=2"),
            "config.seed=2",
            "must be 1",
            "config.seed=2: must be 1",
        ),
        (
            UserError("must be 1", "config.seed=2").within("x.py: "),
            "x.py: config.seed=2",
            "must be 1",
            "x.py: config.seed=2: must be 1",
        ),
        (UserError("no such place", "~nobody").within("--x="), "--x=~nobody", "no such place", None),
        (UserError("has nothing").within("x.py: "), "x.py", "has nothing", "x.py: has nothing"),
    ],
)
def test_the_text_is_the_place_and_what_is_wrong_with_it(error, where, what, text):
    # Also where another process has raised it.
    for found in (error, pickle.loads(pickle.dumps(error))):
        assert (found.where, found.what) == (where, what)
        assert str(found) == (text or f"{where}: {what}")
