"""A full disk: told in one line, with the checkpoints that are there intact."""

import dataclasses
import pathlib
import shutil
import subprocess

import pytest

from ftbnn_jax import config as config_lib
from ftbnn_jax.errors import UserError
from ftbnn_jax.nn import spec
from ftbnn_jax.train import checkpoint, loop

_SIZE = 2 * 2**20

CONFIG = config_lib.TrainConfig(
    spec.small((1, 1), 8),
    dataset="digits",
    image_size=8,
    num_classes=10,
    batch_size=32,
    num_steps=400,
    eval_every=400,
    augment="none",
    pixel_mean=(73.0,),
    pixel_std=(90.0,),
)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB, of which some checkpoints of these runs fit, but not all."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "none", str(mount)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs privileges")
    yield mount
    subprocess.run(["umount", "--lazy", str(mount)], check=True)


def test_checkpoints_that_do_not_fit_leave_the_earlier_ones(small_disk):
    config = dataclasses.replace(CONFIG, checkpoint_every=2, keep_checkpoints=200)
    with pytest.raises(
        UserError, match=r"could not be written \(no space left\); .* is intact$"
    ) as error:
        loop.train(config, str(small_disk))
    kept = int(str(error.value).split("step ")[1].split()[0])
    _, _, step = checkpoint.load_variables(str(small_disk))
    assert step == kept > 0
    assert not list(small_disk.glob("checkpoints/*tmp*"))
    # With one removed there is room, for the same command, to go on.
    shutil.rmtree(small_disk / "checkpoints" / "2")
    with pytest.raises(UserError, match="no space left"):
        loop.train(config, str(small_disk))
    assert checkpoint.load_variables(str(small_disk))[2] > kept


def test_metrics_that_do_not_fit(small_disk, monkeypatch):
    config = dataclasses.replace(CONFIG, checkpoint_every=0, log_every=1)
    whole = loop.input_pipeline.train_batches

    def filling(*args, **kwargs):
        for number, batch in enumerate(whole(*args, **kwargs)):
            if number == 5:
                fill(small_disk / "other")
            yield batch

    monkeypatch.setattr(loop.input_pipeline, "train_batches", filling)
    with pytest.raises(UserError, match="no space left"):
        loop.train(config, str(small_disk))


def fill(path: pathlib.Path) -> None:
    with pytest.raises(OSError, match="No space left"), path.open("wb", buffering=0) as file:
        while file.write(b"0" * 4096):
            pass
