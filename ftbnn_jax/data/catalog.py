"""Names of TFDS's data sets, read from its sources, since importing it takes seconds.

A set is a folder in `tensorflow_datasets/datasets`, or a class that derives from one of TFDS's builders
and whose name in snake case is that of the set.
"""

import difflib
import functools
import importlib.util
import os
import pathlib
import re
import sys

from ftbnn_jax.data.lazy import tfds
from ftbnn_jax.errors import UserError

# Where TFDS has its sets if it is not told.
DATA_DIR = "~/tensorflow_datasets"
# Sets of our own.
BUILT_IN = ("digits", "fake")
_CLASS = re.compile(r"^class (\w+)\(\s*([^)]*)\)", re.MULTILINE)
# Packages of TFDS without data sets. Those in `datasets` have a folder each.
_WITHOUT = {"core", "dataset_collections", "datasets", "proto", "scripts", "testing"}


def check(dataset: str, data_dir: str, where: str) -> None:
    """Raises a UserError that tells the nearest name if there is no such data set.

    Args:
      dataset: its name, which a config and a version may follow: "mnist/3.0.1".
      data_dir: TFDS's directory on this machine, where sets of any other name may be; "" for none.
      where: what gives the name, for the message.
    """
    name = re.split("[/:]", dataset)[0]
    # To read the sources takes a second.
    if (name and os.path.isdir(os.path.join(data_dir, name))) or name in names():
        return
    if os.path.isdir(os.path.expanduser(dataset)):
        raise UserError(f"no such data set; a folder of images is given as folder:{dataset}", where)
    known = [*BUILT_IN, "folder:PATH", *sorted(names())]
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0)[0]
    raise UserError(f"no such data set; the nearest is {nearest!r}", where)


def name_for_tfds(dataset: str) -> str:
    """Returns "mnist/3.0.1" as "mnist:3.0.1", as TFDS has it."""
    return re.sub(r"/(\d+\.\d+\.\d+)$", r":\1", dataset)


def names() -> frozenset[str]:
    """Returns the names of the sets that TFDS can prepare."""
    # A program that has imported it may have sets of its own.
    if "tensorflow_datasets" in sys.modules:
        return frozenset(tfds.list_builders(with_community_datasets=False))
    return _in_sources()


@functools.cache
def _in_sources() -> frozenset[str]:
    spec = importlib.util.find_spec("tensorflow_datasets")
    if spec is None or not spec.origin:
        # The import says what is missing.
        return frozenset(tfds.list_builders(with_community_datasets=False))
    root = pathlib.Path(spec.origin).parent
    found = {path.name for path in (root / "datasets").glob("*/") if not path.name.startswith("_")}
    bases: dict[str, set[str]] = {}
    for path in root.glob("*/**/*.py"):
        if path.relative_to(root).parts[0] in _WITHOUT or path.name.endswith("_test.py"):
            continue
        for name, inherited in _CLASS.findall(path.read_text(encoding="utf-8")):
            bases[name] = {base.strip().rpartition(".")[2] for base in inherited.split(",")}
    # Bases of sets are called so, and are none themselves.
    builders = {base for inherited in bases.values() for base in inherited if base.endswith("Builder")}
    while more := {n for n, inherited in bases.items() if n not in builders and inherited & builders}:
        builders |= more
    sets = (n for n in builders & bases.keys() if not n.endswith("Builder"))
    return frozenset(found | {_snake_case(name) for name in sets})


def _snake_case(name: str) -> str:
    name = re.sub(r"(.)([A-Z][a-z0-9]+)", r"\1_\2", name)
    return re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name).lower()
