"""Few test images."""

import dataclasses

import pytest

from ftbnn_jax.data import sets


@pytest.fixture(scope="module")
def few_test_images():
    """The first 66 of a set's test images are all there are: they are evaluated again and again."""
    whole = sets.open_split

    def few(config, *, train):
        split = whole(config, train=train)
        if train or not split.shape:
            return split
        return dataclasses.replace(split, images=split.images[:66], labels=split.labels[:66])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sets, "open_split", few)
        yield
