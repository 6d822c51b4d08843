"""TensorFlow and its data sets, imported when something of theirs is first asked for.

The import takes seconds, and done plainly it speaks of all that it does and takes the accelerator.
"""

import functools
import importlib.util
import os
import re
from collections.abc import Callable
from typing import Any

from ftbnn_jax import extras


class _Module:
    """Stands for a module that `load` imports when an attribute is first asked for."""

    def __init__(self, load: Callable[[], Any]):
        self._load = load

    def __getattr__(self, name: str) -> Any:
        return getattr(self._load(), name)


@functools.cache
def _import_tensorflow() -> Any:
    # JAX sets 1, and every failed operation would be announced.
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    # These kernels are of no use for reading data, and announced on every start.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    with extras.named():
        import tensorflow

    tensorflow.config.set_visible_devices([], "GPU")
    return tensorflow


@functools.cache
def _import_tensorflow_datasets() -> Any:
    # By itself it would import TensorFlow plainly.
    _import_tensorflow()
    with extras.named():
        import tensorflow_datasets

    return tensorflow_datasets


tf: Any = _Module(_import_tensorflow)
tfds: Any = _Module(_import_tensorflow_datasets)


@functools.cache
def has_tensorflow() -> bool:
    """Whether TensorFlow is installed; it is not imported."""
    return importlib.util.find_spec("tensorflow") is not None


def first_line(error: Exception) -> str:
    """Returns what an error says, in one line; TensorFlow's, without where in the graph they arose."""
    text = re.sub(r"\{\{.*?\}\}|\[\[.*|\[Op:.*", "", getattr(error, "message", str(error)))
    text = re.sub(r"^\s*Error in user-defined function .*? iterator: \S+: ", "", text)
    where = re.compile(r"\s*$|Graph execution error:|Detected at node|  File |<stack traces")
    lines = [line.strip() for line in text.splitlines() if not where.match(line)]
    return lines[0] if lines else type(error).__name__
