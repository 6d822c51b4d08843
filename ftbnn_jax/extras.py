"""What `pip install ftbnn-jax` leaves out, said in one line that names the extra which brings it."""

import contextlib
import importlib.util
import sys
from collections.abc import Iterator

from ftbnn_jax.errors import UserError

# Top-level modules of each extra in setup.cfg that this package imports.
_MODULES = {
    "train": (
        *("absl", "cv2", "etils", "flax", "google", "google_crc32c", "ml_collections", "optax", "orbax"),
        *("sklearn", "tensorboardX", "tensorflow", "tensorflow_datasets"),
    ),
    "figures": ("matplotlib",),
    "onnx": ("onnx", "onnxruntime"),
    "torch": ("torch",),
    "wandb": ("wandb",),
}
# The first Python that has no TensorFlow yet; setup.cfg says the same.
_NO_TENSORFLOW = (3, 14)


class MissingExtraError(UserError, ImportError):
    """A module that an extra brings is not installed; an ImportError, and one line in a command."""

    def __init__(self, what: str, where: str = ""):
        UserError.__init__(self, what, where)


def missing(module: str) -> MissingExtraError | None:
    """Returns the error for a module that is not installed; None where no extra brings it."""
    top = module.partition(".")[0]
    if top == "tensorflow" and sys.version_info >= _NO_TENSORFLOW:
        return MissingExtraError("has no release for Python 3.14; 3.13 would do", top)
    for extra, modules in _MODULES.items():
        if top in modules:
            return MissingExtraError(f"needs the extra: pip install 'ftbnn-jax[{extra}]'", top)
    return None


@contextlib.contextmanager
def named() -> Iterator[None]:
    """Imports go in here whose modules an extra brings.

    Raises:
      MissingExtraError: one of these is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        found = missing(error.name or "")
        if found is None:
            raise
        raise found from error


def require(*modules: str) -> None:
    """Raises a MissingExtraError unless these top-level modules are installed; imports none of them."""
    for module in modules:
        if importlib.util.find_spec(module) is None and (error := missing(module)):
            raise error
