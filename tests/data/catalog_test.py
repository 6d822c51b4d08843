"""Names of data sets: those that TFDS knows, told without importing it."""

import subprocess
import sys

import pytest

from ftbnn_jax.data import catalog
from ftbnn_jax.data.lazy import tfds
from ftbnn_jax.errors import UserError

_ASK = """
import sys
from ftbnn_jax.data import catalog
from ftbnn_jax.errors import UserError
try:
    catalog.check("cifar01/1.0.0", "", "config.dataset='cifar01/1.0.0'")
except UserError as error:
    print(error)
print(sorted({"tensorflow", "tensorflow_datasets", "jax"} & set(sys.modules)))
"""


def test_the_names_in_the_sources_are_those_of_tfds():
    # Those of other tests are registered with TFDS as well.
    ours = {"tiny_shapes", "tiny_words"}
    builders = set(tfds.list_builders(with_community_datasets=False)) - ours
    assert catalog._in_sources() == builders


def test_a_wrong_name_is_told_before_tensorflow_is_imported(repository):
    output = subprocess.run(
        [sys.executable, "-c", _ASK], cwd=repository, capture_output=True, text=True, check=True
    ).stdout
    assert output.splitlines() == [
        "config.dataset='cifar01/1.0.0': no such data set; the nearest is 'cifar10'",
        "[]",
    ]


def test_a_prepared_set_of_another_name_and_a_folder(tmp_path):
    (tmp_path / "mine").mkdir()
    catalog.check("mine/1.0.0", str(tmp_path), "")
    with pytest.raises(UserError, match=f"a folder of images is given as folder:{tmp_path}"):
        catalog.check(str(tmp_path), "", "")
    with pytest.raises(UserError, match="the nearest is 'folder:PATH'"):
        catalog.check("folder", "", "")
