"""Config files: finding one, running it, and what it raises told in one line."""

import contextlib
import functools
import glob
import os
import re
import runpy
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ftbnn_jax import extras
from ftbnn_jax.config.experiment import LISTS_OF_NAMES, TrainConfig, plain
from ftbnn_jax.config.overrides import apply
from ftbnn_jax.errors import UserError, summary
from ftbnn_jax.host import paths
from ftbnn_jax.nearest import nearest

# The configs that come with the package, which lie in `configs/` in a clone.
_SHIPPED = os.path.join(os.path.dirname(os.path.dirname(__file__)), "configs")
_FOLDER = "configs"


def run_file(file: str) -> dict[str, Any]:
    """Returns what a config file defines, by name. The same text is run once in a process.

    Raises:
      OSError: it cannot be read.
    """
    with open(file, "rb") as stream:
        return _run(file, stream.read())


@functools.lru_cache(maxsize=64)
def _run(file: str, content: bytes) -> dict[str, Any]:
    return runpy.run_path(file)


@contextlib.contextmanager
def told(path: str, file: str = "") -> Iterator[None]:
    """Makes one line of whatever a config file raises, SystemExit included, with the line in the file.

    Args:
      path: what the message begins with.
      file: where `path` leads to; "" for `path` itself.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise
    except UserError as error:
        raise error.within(f"{path}: ") from error
    except BaseException as error:
        if isinstance(error, ImportError) and (missing := extras.missing(error.name or "")):
            raise missing.within(f"{path}: ") from error
        file = os.path.abspath(file or path)
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f"line {f.lineno}: " for f in frames if os.path.abspath(f.filename) == file]
        where = f"{path}: {lines[-1] if lines else ''}{type(error).__name__}"
        hint = "; x.shape[0] would do, len(x) does not" if "_DimExpr" in str(error) else ""
        raise UserError(f"{where}: {summary(error)}{hint}") from error


def load(path: str, overrides: Sequence[str] = ()) -> TrainConfig:
    """Runs a config file and returns its experiment.

    Args:
      path: path of a Python file with a function `get_config`, or what `find` takes; what follows a
        colon is its argument, as in "derived44_g5:90".
      overrides: values for some of its fields, "model.width=32".

    Raises:
      UserError: there is no such file, it does not hold a config, or an override does not fit it.
    """
    file, _, argument = paths.expand(path).partition(":")
    file = find(file)
    with told(path, file):
        defined = run_file(file)
        get_config = defined.get("get_config")
        if get_config is None:
            raise UserError("has no function get_config, which returns what config.make does")
        values = plain(get_config(argument) if argument else get_config())
        if "get_network" in defined and isinstance(values, Mapping) and not values.get("network"):
            values = {**values, "network": file}
        config = TrainConfig.from_dict(values).to_dict()
    for override in overrides:
        apply(config, override, LISTS_OF_NAMES)
    return TrainConfig.from_dict(config)


def find(file: str) -> str:
    """Returns the path of a config file.

    Args:
      file: its path; or one that comes with the package, by its name, "derived44_g5", or as it lies in a
        clone, "configs/derived44_g5.py". A file of that very path goes before one of the package's.

    Raises:
      UserError: there is neither; it names the nearest.
    """
    if os.path.isfile(file):
        return file
    folder, name = os.path.split(file)
    stem, ending = os.path.splitext(name)
    shipped = {os.path.splitext(n)[0] for n in os.listdir(_SHIPPED) if re.fullmatch("[a-z].*[.]py", n)}
    known = sorted(glob.glob(os.path.join(glob.escape(folder), "*.py")))
    if folder in ("", _FOLDER) and ending in ("", ".py"):
        if stem in shipped:
            return os.path.join(_SHIPPED, f"{stem}.py")
        known += [os.path.join(folder, one) + ending for one in sorted(shipped)]
    raise UserError(
        f"{file}: no such config file" + (f"; the nearest is {nearest(file, known)}" if known else "")
    )
