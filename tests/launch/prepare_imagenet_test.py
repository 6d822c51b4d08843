"""launch/prepare_imagenet.sh: which directories it takes, and its mistakes."""

import pytest


@pytest.mark.parametrize(
    ("arguments", "environment", "manual_dir", "data_dir"),
    [
        ((), {}, "home/tensorflow_datasets/downloads/manual", "home/tensorflow_datasets"),
        ((), {"TFDS_DATA_DIR": "/t d"}, "/t d/downloads/manual", "/t d"),
        ((), {"TFDS_DATA_DIR": "/t", "FTBNN_IMAGENET_MANUAL_DIR": "/m"}, "/m", "/t"),
        (("--data_dir", "/x y"), {"TFDS_DATA_DIR": "/t"}, "/x y/downloads/manual", "/x y"),
        (("--manual_dir=/a b", "--data_dir=/x"), {"FTBNN_IMAGENET_MANUAL_DIR": "/m"}, "/a b", "/x"),
    ],
)
def test_directories(shell, tmp_path, arguments, environment, manual_dir, data_dir):
    for name in ("TFDS_DATA_DIR", "FTBNN_IMAGENET_MANUAL_DIR"):
        shell.environment.pop(name, None)
    # So that python is the stub.
    (shell.root / "launch" / "environment.sh").write_text("")
    for dry_run in ((), ("--dry_run",)):
        assert shell.run("prepare_imagenet.sh", *arguments, *dry_run, **environment) == (0, "", "")
        expected = [f"--manual_dir={tmp_path / manual_dir}", f"--data_dir={tmp_path / data_dir}"]
        module = ["python", "-m", "ftbnn_jax.data.prepare", "imagenet2012"]
        assert shell.recorded() == [[*module, *dry_run, *expected]]


def test_prepares_from_any_directory(shell, tmp_path):
    status, output, errors = shell.run("prepare_imagenet.sh", "--manual_dir", "no archives")
    assert status == 2
    assert output == ""
    path = shell.root / "no archives" / "ILSVRC2012_img_train.tar"
    assert errors == f"error: {path}: not found; image-net.org gives it to registered users\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--manual_dri=x",), "--manual_dri: no such option; there are --manual_dir --data_dir"),
        (("--manual_dir",), "--manual_dir: needs a value"),
        (("--dry_run=1",), "--dry_run takes no value"),
        (("here",), "here: unexpected"),
        (("--", "here"), "here: unexpected"),
        (("--data_dir=gs://bucket",), "gs://bucket"),
    ],
)
def test_mistake_is_one_line(shell, arguments, words):
    status, output, errors = shell.run("prepare_imagenet.sh", *arguments)
    assert (status, output) == (2, "")
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert words in errors


@pytest.mark.parametrize("script", ["prepare_imagenet.sh", "tpu.sh", "slurm.sh"])
def test_help_is_the_comment_at_the_head(shell, script):
    status, output, errors = shell.run(script, "--help")
    assert (status, errors) == (0, "")
    assert f"launch/{script} " in output
    assert "--dry_run" in output
    assert "set -euo" not in output
    assert "#" not in output
