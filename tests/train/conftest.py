"""Few test images."""

import dataclasses
import pathlib
import sys

import pytest

from ftbnn_jax.data import sets

# Test modules are imported each by itself, so their shared helper must be found by its own name.
sys.path.insert(0, str(pathlib.Path(__file__).parent))


@pytest.fixture(scope="module")
def few_test_images():
    """The first 66 of a set's test images are all there are: they are evaluated again and again."""
    whole = sets.open_split

    def few(config, *, train, workdir=""):
        split = whole(config, train=train)
        if train or not split.shape:
            return split
        return dataclasses.replace(split, images=split.images[:66], labels=split.labels[:66])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sets, "open_split", few)
        yield
