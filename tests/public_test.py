"""The package's public face: its examples run, and what loads a network needs numpy and jax alone."""

import doctest
import subprocess
import sys

import pytest

import ftbnn_jax


def test_the_examples_of_the_package_run():
    result = doctest.testmod(ftbnn_jax)
    assert result.attempted > 10
    assert result.failed == 0


def test_public_names_are_found_and_others_are_not():
    assert {"pack", "verify", "load", "budget", "estimate"} <= set(dir(ftbnn_jax))
    assert all(callable(getattr(ftbnn_jax, name)) for name in ("pack", "verify", "load", "estimate"))
    with pytest.raises(AttributeError, match="unpack"):
        ftbnn_jax.unpack  # noqa: B018


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("ftbnn_jax", "jax flax"),
        ("ftbnn_jax; ftbnn_jax.load", "flax optax orbax ml_collections tensorflow rich"),
    ],
)
def test_imports_are_lazy(statement, absent):
    check = f"import sys, {statement}; print([m for m in {absent.split()!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
