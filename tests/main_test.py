"""The command line, as a shell runs it."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys

import pytest

from ftbnn_jax import command, deploy, main
from ftbnn_jax.errors import UserError

SMALL = (
    "--config.num_steps=4",
    "--config.batch_size=8",
    "--config.model.width=4",
    "--config.model.stem_features=4",
)


@pytest.fixture
def run(repository, tmp_path):
    """Runs the program on one device from a directory of its own; returns status, output, errors."""

    def run_command(config, *arguments):
        path = config if os.path.isabs(config) else str(repository / "configs" / config)
        result = subprocess.run(
            [sys.executable, "-m", "ftbnn_jax.main", f"--config={path}", *arguments],
            env={
                **os.environ,
                "JAX_NUM_CPU_DEVICES": "1",
                "CC": "cc",
                "PYTHONPATH": str(repository),
            },
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        return result.returncode, result.stdout, result.stderr

    return run_command


@pytest.mark.parametrize(
    ("config", "arguments", "words"),
    [
        ("quickstart.py", ["--config.lerning_rate=1"], ["config.lerning_rate", "config.learning_rate"]),
        ("quickstart.py", ["--config.model.widht=1"], ["config.model.widht", "config.model.width"]),
        ("quickstart.py", ["--config.batch_size=many"], ["config.batch_size", "many"]),
        ("quickstart.py", ["--config.schedule=cosin"], ["config.schedule='cosin'", "cosine"]),
        ("quickstart.py", ["--config.model.groups=49"], ["model.groups=49", "1 to 48"]),
        ("quickstart.py", ["--config.dataset=digitz"], ["config.dataset='digitz'", "'digits'"]),
        ("quickstart.py", ["--workdir=/dev/null/run"], ["--workdir=/dev/null/run", "cannot be written"]),
        ("quickstart.py", ["--mode=trian"], ["--mode=trian", "train"]),
        (
            "quickstart.py",
            ["--config.model.binary_weights=False", "--config.model.scaling=mean_abs"],
            ["model.scaling='mean_abs'", "model.binary_weights=False", "'none'"],
        ),
        (
            "baseline_kd.py",
            ["--config.stages.binary.lerning_rate=1"],
            ["config.stages.binary.lerning_rate", "config.stages.binary.learning_rate"],
        ),
        # The stage before those with a teacher must not begin.
        (
            "baseline_kd.py:cifar10",
            ["--config.dataset=fake"],
            ["config.teacher=runs/resnet18_fp_cifar10", "holds no checkpoints"],
        ),
        ("quickstart.py", ["--mode=export"], ["--workdir=run", "no checkpoints"]),
        ("quickstart.py", ["--mode=export", "--fixed_point"], ["--fixed_point", "--format=c"]),
        ("quickstart.py", ["--mode=export", "--prefix=a"], ["--prefix", "--format=c"]),
        ("quickstart.py", ["--mode=verify", "--profile"], ["--profile", "--runtime=c"]),
        ("quickstart.py", ["--verify"], ["--verify: goes with --mode=export"]),
        (
            "quickstart.py",
            ["--mode=export", "--format=c", "--prefix=1a"],
            ["--prefix='1a'", "C identifier"],
        ),
        (
            "quickstart.py",
            ["--mode=export", "--format=c", "--target=cortexm"],
            ["--target=cortexm", "host, cortex-m"],
        ),
        (
            "quickstart.py",
            ["--mode=export", "--format=c", "--flash=1M"],
            ["--flash", "--target=cortex-m"],
        ),
        ("quickstart.py", ["--mode=export", "--ram=1.5M"], ["--ram", "no size in bytes"]),
        ("quickstart.py", ["--mode=export", "--real_bits=8"], ["--real_bits", "--format=c"]),
        ("quickstart.py", ["train"], ["train", "--name=value"]),
        ("quickstrat.py", [], ["quickstrat.py", "quickstart.py"]),
        ("derived44_g5.py:90", [], ["derived44_g5.py:90", "44 layers at 135"]),
    ],
)
def test_mistake_is_one_line(repository, tmp_path, monkeypatch, capfd, config, arguments, words):
    monkeypatch.chdir(tmp_path)
    workdir = [] if any(a.startswith("--workdir") for a in arguments) else ["--workdir=run"]
    file = f"--config={repository / 'configs' / config}"
    assert command.run(main.main, [file, *workdir, *arguments]) == 2
    _is_one_line(tmp_path, *capfd.readouterr(), words)


@pytest.mark.parametrize("mode", ["train", "verify"])
def test_a_config_file_is_run_once(tmp_path, monkeypatch, capfd, mode):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(
        "from ftbnn_jax import config\n"
        "from ftbnn_jax.nn import architectures\n"
        "def get_config():\n"
        "    with open('starts', 'a') as stream:\n"
        "        stream.write('one ')\n"
        "    return config.make(architectures.small((1,), 8), dataset='none')\n"
    )
    arguments = ["--config=own.py", "--workdir=run", f"--mode={mode}", "--config.seed=1"]
    assert command.run(main.main, arguments) == 2
    assert "no " in capfd.readouterr().err
    assert (tmp_path / "starts").read_text() == "one "


@pytest.mark.parametrize(
    ("config", "arguments", "words"),
    [
        ("quickstart.py", ["--config.lerning_rate=1"], ["config.lerning_rate", "config.learning_rate"]),
        ("quickstart.py", ["--config.dataset=digitz"], ["config.dataset='digitz'", "'digits'"]),
        ("quickstart.py", ["--mode=export"], ["--workdir=run", "no checkpoints"]),
    ],
)
def test_a_shell_sees_one_line_as_well(run, tmp_path, config, arguments, words):
    status, output, errors = run(config, "--workdir=run", *arguments)
    assert status == 2
    _is_one_line(tmp_path, output, errors, words)


def _is_one_line(directory, output, errors, words):
    assert output == ""
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    for word in words:
        assert word in errors
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("mode", ["export", "verify"])
def test_a_package_that_is_not_installed_is_one_line(monkeypatch, mode):
    monkeypatch.setitem(sys.modules, "onnx", None)
    # Other tests may have imported what imports it: then it is an attribute of its package as well.
    for name in ("onnx", "onnx_verify"):
        monkeypatch.delitem(sys.modules, f"ftbnn_jax.deploy.{name}", raising=False)
        monkeypatch.delattr(deploy, name, raising=False)
    function, needs = main._MODES[mode, "onnx"]
    # Nothing is read before the package is there.
    with pytest.raises(UserError, match=r"^onnx: needs the extra: pip install"):
        function(None, None, "", *[None] * (1 if needs == main._CHECKPOINT else 2))


@pytest.mark.parametrize("exported", [0, 1])
@pytest.mark.parametrize("verified", [0, 1])
@pytest.mark.parametrize(("kind", "runtime"), [("safetensors", "jax"), ("c", "c"), ("onnx", "onnx")])
def test_verification_follows_an_export(monkeypatch, kind, runtime, exported, verified):
    calls = []

    def stub(name, status):
        return lambda *arguments: calls.append((name, *arguments)) or status

    _, needs = main._MODES["export", kind]
    monkeypatch.setitem(main._MODES, ("verify", runtime), (stub("verify", verified), main._IMAGES))
    run = main._and_verify(stub("export", exported), needs, main._RUNTIMES[kind])
    # What could not be written is not verified.
    assert run("options", "config", "run", "saved", "images") == (exported or verified)
    given = ("options", "config", "run", "saved", "images")
    assert calls[0] == ("export", *given[: 5 if kind == "c" else 4])
    assert calls[1:] == ([] if exported else [("verify", *given)])


def test_from_training_to_a_verified_packed_net(run, repository, tmp_path, monkeypatch, capfd):
    """Every mode, on the groups and reductions of the derived nets, from another directory."""
    arguments = (*SMALL, "--config.dataset=fake", "--config.image_size=32", "--workdir=run")
    arguments += ("--config.model.blocks=(1,2)", "--config.model.groups=3", "--config.num_classes=7")
    status, output, errors = run("derived44_g5.py", *arguments)
    assert (status, errors) == (0, "")
    assert "Trained" in output
    longer = [a.replace("num_steps=4", "num_steps=6") for a in arguments]
    status, output, errors = run("derived44_g5.py", *longer, "--config.model.batch_norm_momentum=0.5")
    assert status == 0
    assert "resuming from step 4" in output
    assert "config.model.batch_norm_momentum is now 0.5; the checkpoint was made with 0.9" in errors
    for flags, words in (
        (("--mode=evaluate",), ["test images", "64"]),
        (
            ("--mode=export", "--stablehlo"),
            ["times smaller", "model.safetensors", "model.stablehlo"],
        ),
        # How a net would be trained further makes no other network of it.
        (
            ("--mode=verify", "--config.model.ste_bound=0.5"),
            ["bridge", "block2_1", "64 of 64 images"],
        ),
        (("--mode=export", "--json"), ['"packed_kernel_bytes": ', '"form": "and"', '"not_packed": ']),
        (("--mode=export", "--format=onnx"), ["Exported to ONNX", "model.onnx"]),
        (("--json", "--mode=export", "--format=onnx"), ['"opset": ', "model.onnx"]),
        (("--mode=verify", "--runtime=onnx"), ["bridge", "block2_1", "64 of 64 images"]),
        (("--mode=export", "--format=c", "--json"), ['"fraction_bits": null', "run/c"]),
        (
            ("--mode=export", "--format=c", "--fixed_point", "--verify", "--num_images=4"),
            ["Exported as C", "fixed point", "0 of 28 logits", "4 of 4 images", " 0 of 12,288 pixel"],
        ),
    ):
        if "--verify" in flags and not shutil.which("cc"):
            continue
        if flags[-1].endswith("=onnx") and not importlib.util.find_spec("onnxruntime"):
            continue
        status, output, errors = run("derived44_g5.py", *arguments, *flags)
        assert (status, errors) == (0, "")
        for word in words:
            assert word in output
        if "--json" in flags:
            assert all(isinstance(json.loads(line), dict) for line in output.splitlines())
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert (tmp_path / "run" / "model.stablehlo").is_file()
    # The config of another network is refused in every mode.
    monkeypatch.chdir(tmp_path)
    other = [a.replace("groups=3", "groups=2") for a in arguments]
    config = f"--config={repository / 'configs' / 'derived44_g5.py'}"
    for mode in ("train", "evaluate", "verify"):
        assert command.run(main.main, [config, *other, f"--mode={mode}"]) == 2
        assert "config.model.groups=3, here it is 2" in capfd.readouterr().err
