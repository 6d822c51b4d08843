"""What every test runs under: the CPU, several devices, and real data where there is some."""

import atexit
import os
import pathlib
import shutil
import tempfile

# Read when JAX starts its backend, so they must be there before any test module imports it. A platform
# or a device count that the caller chose stays.
_DEVICE_COUNT_FLAG = "--xla_force_host_platform_device_count"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if _DEVICE_COUNT_FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICE_COUNT_FLAG}=4".strip()

# Compiling takes most of the tests' time: one cache for this process and those that it starts, the
# workers of pytest-xdist among them.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _CACHE = tempfile.mkdtemp(prefix="ftbnn_jax_tests_")
    atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import pytest  # noqa: E402

_REPOSITORY = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> pathlib.Path:
    """Root of the source tree."""
    return _REPOSITORY


def _real_data(variable: str, default: pathlib.Path, needed: str) -> pathlib.Path:
    directory = pathlib.Path(os.environ.get(variable) or default)
    if not (directory / needed).exists():
        pytest.skip(f"{directory} holds no {needed}; {variable} can name a directory that does")
    return directory


@pytest.fixture(scope="session")
def tfds_data_dir() -> pathlib.Path:
    """Directory in which TFDS finds MNIST prepared; skips the test where there is none."""
    return _real_data("TFDS_DATA_DIR", _REPOSITORY.parent / "shared" / "tfds", "mnist")


@pytest.fixture(scope="session")
def imagenet_manual_dir() -> pathlib.Path:
    """Directory with ImageNet's two archives; skips the test where there is none."""
    default = _REPOSITORY.parent / "shared" / "imagenet_manual"
    return _real_data("FTBNN_IMAGENET_MANUAL_DIR", default, "ILSVRC2012_img_val.tar")
