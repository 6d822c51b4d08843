"""What every test runs under: the CPU, several devices, and real data where there is some."""

import atexit
import os
import pathlib
import shutil
import tempfile
from importlib import metadata

# Read when JAX starts its backend, so they must be there before any test module imports it. A platform
# or a device count that the caller chose stays.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
_XLA_FLAGS = os.environ.get("XLA_FLAGS", "")
if "--xla_force_host_platform_device_count" not in _XLA_FLAGS:
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", "4")

# Nearly every program here is small and runs a few times, so that compiling it takes far longer than
# running it. A level of optimisation that the caller chose stays: the one of users is 3.
if "--xla_backend_optimization_level" not in _XLA_FLAGS:
    os.environ["XLA_FLAGS"] = (
        f"{_XLA_FLAGS} --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
        "--xla_cpu_parallel_codegen_split_count=1 --xla_cpu_multi_thread_eigen=false"
    ).strip()
    # XLA ends a process that gives it a flag which it has not, and later ones have not this one.
    if metadata.version("jaxlib").startswith("0.10."):
        os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

# Compiling takes most of the tests' time: one cache for this process and those that it starts, the
# workers of pytest-xdist among them.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _CACHE = tempfile.mkdtemp(prefix="ftbnn_jax_tests_")
    atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import pytest  # noqa: E402

_REPOSITORY = pathlib.Path(__file__).resolve().parents[1]


# Modules that take longest, the longest first: a worker that begins one last has the others wait.
_LONGEST = (
    *("loop_test", "main_test", "contract_test", "budget_paper_test", "distributed_test", "step_test"),
    *("c_verify_test", "command_line_fuzz_test", "stages_test", "c_program_test", "verify_test"),
    *("disk_test", "run_tests_test", "resnet_test", "tfrecords_test", "convolution_test"),
    *("encoded_images_test", "interrupt_test", "sweep_test", "checkpoint_test", "report_test"),
)


def pytest_collection_modifyitems(items):
    def rank(item):
        name = item.path.stem
        return _LONGEST.index(name) if name in _LONGEST else len(_LONGEST)

    items.sort(key=rank)


# pytest-xdist alone lets the other workers go on for minutes, runs the test that killed a worker once
# more, and forgets a worker that died between its tests: then all have passed.
_DIED = pytest.StashKey[list]()


@pytest.hookimpl(optionalhook=True)
def pytest_handlecrashitem(report):
    """Ends the run where a worker has died in a test."""
    pytest.exit(report.longrepr, returncode=pytest.ExitCode.TESTS_FAILED)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    """Remembers a worker that died, whatever it was doing."""
    if error:
        node.config.stash.setdefault(_DIED, []).append(node.gateway.id)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    if session.config.stash.get(_DIED, []):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


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


@pytest.fixture(scope="session")
def serialize():
    """Returns a function that makes the `tf.train.Example` of features, bytes or whole numbers."""
    from ftbnn_jax.data.lazy import tf

    train = tf.train

    def example(**features):
        values = {
            key: train.Feature(bytes_list=train.BytesList(value=[value]))
            if isinstance(value, bytes)
            else train.Feature(int64_list=train.Int64List(value=[value]))
            for key, value in features.items()
        }
        return train.Example(features=train.Features(feature=values)).SerializeToString()

    return example


@pytest.fixture(scope="session")
def write_split(serialize):
    """Returns a function that writes images (bytes each) as records and returns their split.

    Labels are numbers, counted over all files; `per_file` records go into each.
    """
    from ftbnn_jax.data import tfrecords
    from ftbnn_jax.data.lazy import tf

    def write(directory, images, per_file=5):
        files = []
        for start in range(0, len(images), per_file):
            part = images[start : start + per_file]
            files.append(tfrecords.RecordFile(f"{directory}/train-{start // per_file}", 0, len(part)))
            with tf.io.TFRecordWriter(files[-1].path) as writer:
                for label, image in enumerate(part, start):
                    writer.write(serialize(image=image, label=label))
        names = tuple(map(str, range(len(images))))
        return tfrecords.RecordSplit(
            tuple(files), *tfrecords.index_files(files), "image", "label", names, channels=3
        )

    return write
