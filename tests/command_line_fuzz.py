"""Random command lines and environments, run one after the other; `command_line_fuzz_test` calls it.

    python tests/command_line_fuzz.py --seed=0 --count=300 [--only=N]

Each runs in a fork of this process, which has imported the libraries but started no device; those with
variables that JAX reads when it is imported come first, before it is. What breaks the rules is printed.
"""

import argparse
import importlib
import os
import pathlib
import random
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from typing import NamedTuple

from PIL import Image

from ftbnn_jax import command
from ftbnn_jax import config as config_lib

_TIMEOUT_S = 120
_STATUSES = (0, 2, 75, 130)
# Imported before the forks: what takes the time.
_LIBRARIES = (
    *("flax.linen", "jax", "matplotlib.figure", "optax", "orbax.checkpoint", "rich.progress"),
    *("sklearn.datasets", "sklearn.model_selection", "sklearn.discriminant_analysis", "tensorboardX"),
    *(
        "ftbnn_jax.train.checkpoint",
        "ftbnn_jax.train.optimizer",
        "ftbnn_jax.deploy.verify",
        "ftbnn_jax.deploy.c.verify",
    ),
)
_TINY = """
from ftbnn_jax import config
from ftbnn_jax.nn import architectures

def get_config():
    return config.make(
        architectures.small((1,), 4), dataset="digits", image_size=8, num_classes=10, batch_size=8,
        num_steps=1, augment="pad_crop", crop_padding=1, pixel_mean=(73.0,), pixel_std=(90.0,),
    )
"""
# Config files that are none.
_CONFIGS = {
    "exits.py": b"raise SystemExit(3)",
    "raises.py": b"raise ValueError",
    "base.py": b"class E(BaseException): pass\nraise E('two\\nlines')",
    "none.py": b"def get_config(): return None",
    "list.py": b"def get_config(): return [1]",
    "dict.py": b"def get_config(): return {'seed': 1}",
    "fields.py": b"def get_config(): return {'model': {'widht': 3}, 'no': 1}",
    "number.py": b"get_config = 3",
    "empty.py": b"",
    "latin.py": "x = 'é'".encode("latin-1"),
    "syntax.py": b"def (",
    "needs.py": b"def get_config(a): return a",
    "binary.py": bytes(range(256)),
}
_VALUES = (
    *("0", "1", "2", "-1", "1.5", "1e-50", "1e39", "nan", "inf", "-inf", str(2**31), str(2**32)),
    *(
        str(2**63),
        "9" * 400,
        "9" * 5000,
        "True",
        "false",
        "None",
        "",
        "x",
        "(1,)",
        "(0.5,)",
        "()",
        "[1]",
    ),
    *(
        "(1,2",
        "(1, 1)",
        "'a'",
        "{}",
        "é",
        "[/red]",
        ":smile:",
        "a\nb",
        "~nobody123/x",
        "foo://x",
        "((" * 99,
    ),
)
_PATHS = (
    *("run", "~/run", "~nobody123/run", "foo://x/run", "gs:/x", "gs://", "file://host/x", "", "."),
    *(
        "/dev/null/x",
        "a[1]",
        "[/red]",
        ":smile:",
        "two\nlines",
        "x" * 300,
        "file:///dev/null/x",
        "é",
        "\udcff",
    ),
)
_ENVIRONMENTS = (
    *({"JAX_PLATFORMS": v} for v in ("nonsense", "cuda", "tpu", "cpu,foo", ",", "[/red]")),
    *({"JAX_ENABLE_X64": v} for v in ("1", "maybe")),
    *({"JAX_DISABLE_JIT": "1"}, {"JAX_NUM_CPU_DEVICES": "x"}, {"JAX_NUMPY_RANK_PROMOTION": "raise"}),
    *({"JAX_COMPILATION_CACHE_DIR": v} for v in ("/dev/null/x", "~nobody123", "foo://x", "a[1]")),
    *({"XLA_FLAGS": v} for v in ("--xla_no=1", "no", "--xla_force_host_platform_device_count=x")),
    *({"XLA_FLAGS": f"--xla_force_host_platform_device_count={n}"} for n in (0, 3)),
    *({"SLURM_STEP_NUM_TASKS": v} for v in ("two", "-1", "3", "9" * 50)),
    *({"TFDS_DATA_DIR": v} for v in ("/dev/null", "~nobody123", "none", "foo://x")),
    *({"CC": v} for v in ("'", "none", "true", "/etc/passwd", " ")),
    *({"GCE_METADATA_HOST": v} for v in ("a b", "localhost:1", "[")),
    *({"HOME": v} for v in ("/dev/null", "", "~")),
    *({"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}, {"COLUMNS": "x"}),
    *({"TERM": "dumb"}, {"FORCE_COLOR": "1"}, {"XDG_CACHE_HOME": "/dev/null"}, {"OMP_NUM_THREADS": "x"}),
)


class Case(NamedTuple):
    """A command line, `python -m ftbnn_jax.MODULE ARGUMENT...`, and what differs in its environment."""

    module: str
    arguments: tuple[str, ...]
    environment: dict[str, str]
    interrupt_after_s: float | None = None

    @property
    def before_jax(self) -> bool:
        return any(name.startswith("JAX_") for name in self.environment)


def draw(rng: random.Random, deep: float) -> Case:
    """Draws a case; a share `deep` of them has nothing wrong that the arguments' parser could tell."""
    environment = dict(rng.choice(_ENVIRONMENTS)) if rng.random() < 0.25 else {}
    if rng.random() < deep:
        return Case("main", _deep(rng), environment)
    if rng.random() < 0.7:
        return Case("main", _main(rng), environment)
    module = rng.choice(list(_OTHERS))
    arguments = [a for a in _OTHERS[module](rng) if rng.random() < 0.95]
    if rng.random() < 0.3:
        arguments.insert(rng.randrange(len(arguments) + 1), rng.choice(_JUNK))
    return Case(module, tuple(arguments), environment)


def _main(rng: random.Random) -> tuple[str, ...]:
    config = "tiny.py" if rng.random() < 0.9 else rng.choice([*_CONFIGS, "tiny.py:x", ".", "no.py", "~"])
    arguments = [f"--config={config}"]
    modes = ("train", "evaluate", "export", "verify", "benchmark", "audit", "nothing")
    mode = rng.choices(modes, (6, 2, 2, 2, 1, 1, 1))[0]
    workdir = rng.choice(_PATHS) if rng.random() < 0.3 else "run" if mode == "train" else "trained"
    arguments.append(f"--workdir={workdir}")
    if mode != "train" or rng.random() < 0.2:
        arguments.append(f"--mode={mode}")
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        arguments.append(f"--config.{rng.choice(_KEYS)}={rng.choice(_VALUES)}")
    for _ in range(rng.choice((0, 0, 1, 2))):
        arguments.append(rng.choice(_OPTIONS))
    if rng.random() < 0.15:
        arguments.append(rng.choice(_JUNK))
    if rng.random() < 0.1:
        arguments.append(rng.choice(arguments))
    if rng.random() < 0.1:
        arguments.pop(rng.randrange(len(arguments)))
    if rng.random() < 0.1:
        # A space in the place of an equals sign.
        place = rng.randrange(len(arguments)) if arguments else 0
        arguments[place : place + 1] = arguments[place].split("=", 1) if arguments else []
    return tuple(arguments)


def _deep(rng: random.Random) -> tuple[str, ...]:
    config = "--config=tiny.py"
    if rng.random() < 0.4:
        return (config, "--workdir=trained", *rng.choice(_LATER))
    values = [f"--config.{key}={rng.choice(values)}" for key, values in rng.sample(_POSSIBLE, 2)]
    return (config, f"--workdir={rng.choice(('run', 'trained', *_PATHS))}", *values)


def _keys() -> list[str]:
    config = config_lib.load(str(pathlib.Path(__file__).parents[1] / "configs" / "quickstart.py"))
    model = [f"model.{name}" for name in config.to_dict()["model"]]
    return [
        *(name for name in config.to_dict() if name != "model"),
        *model,
        "model",
        "no",
        "model.no",
        "",
    ]


_KEYS = _keys()
_OPTIONS = (
    *("--checkpoint=latest", "--checkpoint=best", "--checkpoint=1", "--checkpoint=x", "--checkpoint=-1"),
    *("--num_images=0", "--num_images=5", "--num_images=x", "--num_images=-3", "--num_images", "--json"),
    *("--json=maybe", "--json=false", "--against=1", "--against=", "--against=[/red]", "--stablehlo"),
    *("--format=c", "--format=d", "--fixed_point", "--runtime=c", "--runtime=jax", "--distributed=off"),
    *("--distributed=x", "--distributed=slurm", "--distributed=localhost:1", "--num_processes=2"),
    *("--process_id=0", "--process_id=x"),
)


# What can be done with a trained run.
_LATER = (
    *(("--mode=evaluate", f"--checkpoint={c}") for c in ("latest", "best", "1", "7")),
    *(("--mode=export", *more) for more in ((), ("--stablehlo",), ("--format=c",), ("--json",))),
    ("--mode=export", "--format=c", "--fixed_point", "--num_images=0"),
    *(("--mode=verify", f"--runtime={r}", f"--num_images={n}") for r in ("jax", "c") for n in (1, 9)),
    *(("--mode=audit", "--num_images=9", *more) for more in ((), ("--json",), ("--against=1",))),
    *(("--mode=evaluate", f"--config.{kv}") for kv in ("num_classes=11", "image_size=9", "flip=false")),
    *(("--mode=evaluate", f"--config.{kv}") for kv in ("dataset=fake", "pixel_mean=(1,2,3)")),
)
_POSSIBLE = [
    ("seed", (2**31, 2**32 - 1)),
    (
        "dataset",
        ("fake", "digits", "mnist", "no", "cifar10", "imagenet2012", "[/red]", "a/b", "a:1", "/"),
    ),
    ("data_dir", ("", "none", "~", ".", "/dev/null")),
    ("train_split", ("train", "test", "train[:5%]", "[", "no")),
    ("eval_split", ("", "test", "train", "no")),
    ("image_size", (1, 2, 7, 9)),
    ("num_classes", (1, 2, 9, 11)),
    ("batch_size", (1, 7, 500, 5000)),
    ("num_epochs", (1, 2**31 - 1)),
    ("num_steps", (1, 2, 2**31)),
    ("eval_every", (1, 2**31 - 1)),
    ("checkpoint_every", (0, 1)),
    ("keep_checkpoints", (1, 2**31 - 1)),
    ("log_every", (1, 1000)),
    ("learning_rate", ("0", "1e30", "3e38")),
    ("schedule", ("multistep", "constant")),
    ("schedule_boundaries", ("(0.1,0.11)", "(0.5,0.5)", "(0.9,0.1)")),
    ("warmup_steps", (1, 2**31 - 1)),
    ("weight_decay", ("1e-9", "1e30")),
    ("label_smoothing", (0.5, 0.99999999999)),
    ("start_from", ("trained", "run", "~", "none", "[/red]", "foo://x")),
    ("teacher", ("trained", "none", "~/trained", "~nobody123", "foo://x")),
    ("compute_dtype", ("auto", "bfloat16", "float16")),
    ("batch_norm", ("per_device",)),
    ("accumulation_steps", (2, 8, 16)),
    ("remat", ("outputs", "stages")),
    ("augment", ("none", "resized_crop", "resize_crop")),
    ("crop_padding", (0, 100)),
    ("pixel_std", ("(1e-38,)", "(1,)", "(1,2,3)")),
    ("model.blocks", ("(2,)", "(1,1,1,1,1,1)")),
    ("model.groups", (2, 4, 5)),
    ("model.bridge", ("True",)),
    ("model.stem_kernel", (1, 9, 31)),
    ("model.stem_stride", (3, 99)),
    ("model.stem_pool", ("true",)),
    ("model.head", ("flatten",)),
    ("model.block", ("real", "bottleneck")),
    ("model.downsample", ("duplicate",)),
    ("model.scaling", ("real_to_bin", "xnor_net", "xnor_net++")),
    ("model.activation_gradient", ("evolving",)),
    ("model.binary_weights", ("False",)),
    ("model.binary_activations", ("False",)),
    ("model.ste_bound", ("1e-30", "1e30")),
    ("model.batch_norm_epsilon", ("1e-30", "1e30")),
]
_JUNK = (
    *(
        "--help",
        "-h",
        "--",
        "-",
        "train",
        "--no",
        "--noconfig",
        "-config",
        "--flagfile=x",
        "--undefok=no",
    ),
    *("--wrkdir=x", "--config.seed", "--work", "--=", "=", "", "[/red]", "\udcff", "a\nb", "--no=a\nb"),
)


def _sweep(rng: random.Random) -> list[str]:
    own = [f"--workdir={rng.choice(_PATHS)}", f"--seeds={rng.choice(('0', '0,1', 'x', '', '-1'))}"]
    own += [f"--jobs={rng.choice(('1', '0', 'x'))}", f"--shard={rng.choice(('1/1', '2/1', '0/0', 'x'))}"]
    own += [
        "--report",
        *rng.choice(((), ("--", "--config.no=1"), ("--", "x"), ("--", "--config.seed=1"))),
    ]
    return own


# Commands that would take long where nothing is wrong are given something that is.
_OTHERS = {
    "budget": lambda rng: [
        rng.choice(("tiny.py", "no.py", "--table4", *_CONFIGS)),
        "--json",
        "--layers",
    ],
    "bench.train_step": lambda rng: [f"--config={rng.choice(list(_CONFIGS))}", "--rounds=1"],
    "bench.input": lambda rng: [
        f"--config={rng.choice(('tiny.py', *_CONFIGS))}",
        f"--data_dir={rng.choice(_PATHS)}",
        f"--seconds={rng.choice(('0.1', 'nan', 'inf', '0', 'x'))}",
    ],
    "data.prepare": lambda rng: [rng.choice(_PATHS), f"--data_dir={rng.choice(_PATHS)}", "--dry_run"],
    "bench.packed_layer": lambda rng: [rng.choice(("0:1:1", "1:1", "x", "8:4:5", "-1:1:1")), "--json"],
    "bench.tune_convolution": lambda rng: [f"--batch={rng.choice(('0', 'x', '9' * 30))}", "--rounds=1"],
    "bench.exactness": lambda rng: [
        f"--config={rng.choice(('tiny.py', *_CONFIGS))}",
        f"--compute_dtype={rng.choice(('auto', 'float32', 'x', ''))}",
    ],
    "predict": lambda rng: [
        rng.choice(("trained", "trained/model.safetensors", rng.choice(_PATHS))),
        rng.choice(("image.png", "tiny.py", rng.choice(("-", *_PATHS)))),
        rng.choice(("--json", "--csv", "--top=3", "--top=x", "--top=0")),
    ],
    "experiments.figures": lambda rng: [
        rng.choice(("curves", "slopes", "budget", "x")),
        rng.choice(("trained", "run", *_PATHS)),
        f"--output={rng.choice(('figure', *_PATHS))}",
    ],
    "experiments.sweep": lambda rng: [rng.choice(("tiny.py", *_CONFIGS)), *_sweep(rng)],
    "experiments.table3": _sweep,
    "experiments.table2": lambda rng: [rng.choice(("trained", "run", *_PATHS))],
    "experiments.fprelu": lambda rng: [f"--steps={rng.choice(('1', '0', 'x', ''))}", *_sweep(rng)],
    "experiments.distillation": lambda rng: [f"--epochs={rng.choice(('4', '3', 'x'))}", *_sweep(rng)],
    "experiments.figure2_nets": lambda rng: [f"--widths={rng.choice(('2', '0', 'x'))}", *_sweep(rng)],
    "experiments.figure2": lambda rng: [f"--models={rng.choice(('relu', 'x', ''))}", *_sweep(rng)],
}
# Without an argument of theirs these would run for minutes.
_NEED_ONE = {"bench.train_step", "bench.packed_layer", "bench.tune_convolution", "bench.exactness"}


def broken_rule(module: str, status: int, output: str, errors: str) -> str | None:
    """Says what is wrong with how a command ended; None where nothing is."""
    if "Traceback" in output + errors:
        return "a traceback"
    # What predict passes over is no mistake of the command line.
    if status not in _STATUSES and (module, status) != ("predict", 1):
        return f"status {status}"
    lines = [line for line in errors.splitlines() if not line.startswith("warning: ")]
    if len(lines) != (status != 0):
        return f"{len(lines)} lines of errors with status {status}"
    if status == 2 and not lines[0].startswith("error: "):
        return "a line that is no error"
    return None


class Folder:
    """A directory with the config files and a trained run, for each case to have a copy of."""

    def __init__(self, root: pathlib.Path):
        self.root = root
        self._template = root / "template"
        self._template.mkdir()
        (self._template / "tiny.py").write_text(_TINY)
        for name, content in _CONFIGS.items():
            (self._template / name).write_bytes(content)
        Image.new("L", (8, 8)).save(self._template / "image.png")
        self._base = {
            **{n: v for n, v in os.environ.items() if not n.startswith(("JAX_", "XLA_", "SLURM_"))},
            **{"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(root / "cache")},
            **{"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "COLUMNS": "80"},
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        for name in ("TFDS_DATA_DIR", "CC"):
            self._base.pop(name, None)

    def train(self) -> None:
        for arguments in (("--mode=train",), ("--mode=export", "--format=c")):
            case = Case("main", ("--config=tiny.py", "--workdir=trained", *arguments), {})
            result = self._finish(case, self._template, subprocess.Popen)
            assert result[0] == 0, result

    def run(self, case: Case) -> tuple[int, str, str]:
        """Runs a case in a fork, or as a process of its own where it is to be interrupted."""
        with tempfile.TemporaryDirectory(dir=self.root) as folder:
            shutil.copytree(self._template, folder, dirs_exist_ok=True)
            start = _Fork if case.interrupt_after_s is None else subprocess.Popen
            return self._finish(case, pathlib.Path(folder), start)

    def _finish(self, case, folder, start) -> tuple[int, str, str]:
        environment = {**self._base, "HOME": str(folder), "PYTHONPATH": os.pathsep.join(sys.path)}
        files = [folder / ".output", folder / ".errors"]
        with files[0].open("wb") as output, files[1].open("wb") as errors:
            process = start(
                [sys.executable, "-m", f"ftbnn_jax.{case.module}", *case.arguments],
                env={**environment, **case.environment},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
            )
        if case.interrupt_after_s is not None:
            time.sleep(case.interrupt_after_s)
            process.send_signal(signal.SIGINT)
        try:
            status = process.wait(_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        return status, *(file.read_text(errors="replace") for file in files)


class _Fork:
    """Stands in for `subprocess.Popen`, without starting another interpreter."""

    def __init__(self, arguments, *, env, cwd, stdin, stdout, stderr):
        self._pid = os.fork()
        if self._pid:
            return
        status = 1
        try:
            os.environ.clear()
            os.environ.update(env)
            os.chdir(cwd)
            encoding = env.get("PYTHONIOENCODING", "utf-8")
            for number, stream in ((1, stdout), (2, stderr)):
                os.dup2(stream.fileno(), number)
            sys.stdout = open(1, "w", encoding=encoding, closefd=False)  # noqa: SIM115
            sys.stderr = open(2, "w", encoding=encoding, errors="backslashreplace", closefd=False)  # noqa: SIM115
            command.begin()
            sys.argv = arguments[2:]
            # Another library of the parent's may have imported it, which runpy would warn of.
            sys.modules.pop(arguments[2], None)
            runpy.run_module(arguments[2], run_name="__main__", alter_sys=True)
            status = 0
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException as error:
            sys.excepthook(type(error), error, error.__traceback__)
            traceback.print_exc()
        finally:
            try:
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(status)

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = 0.001
        while deadline is None or time.monotonic() < deadline:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(pause)
            pause = min(2 * pause, 0.02)
        raise subprocess.TimeoutExpired("fork", timeout)

    def kill(self) -> None:
        os.kill(self._pid, signal.SIGKILL)


def cases(seed: int, count: int, interrupted: int, deep: float) -> list[Case]:
    """Returns the cases of a seed, the last `interrupted` of them with Ctrl-C at some moment."""
    rng = random.Random(seed)
    drawn = []
    while len(drawn) < count - interrupted:
        case = draw(rng, deep)
        if case.module not in _NEED_ONE or any(
            a.startswith(("--config=", "--batch=")) or a[:1].isdecimal() for a in case.arguments
        ):
            drawn.append(case)
    endless = ("--config=tiny.py", "--workdir=run", "--config.num_steps=10000000")
    for number in range(interrupted):
        # Most moments are in the training; others, in the imports and before, in shorter commands.
        after_s = rng.uniform(0.1, 6) if number % 2 else rng.uniform(0.1, 2)
        one = ("main", endless) if number % 2 else ("budget", ("--table4",))
        drawn.append(Case(*one, {}, after_s))
    return drawn


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--interrupted", type=int, default=3)
    parser.add_argument("--deep", type=float, default=0.05, help="share that gets past the parser")
    parser.add_argument("--only", type=int, help="the number of the one case to run")
    options = parser.parse_args()
    numbered = list(enumerate(cases(options.seed, options.count, options.interrupted, options.deep)))
    failures, statuses = 0, dict.fromkeys(_STATUSES, 0)
    with tempfile.TemporaryDirectory() as root:
        folder = Folder(pathlib.Path(root))
        # What the libraries read when they are imported, here.
        os.environ.clear()
        os.environ.update(folder._base)
        folder.train()
        for number, case in sorted(numbered, key=lambda pair: not pair[1].before_jax):
            if options.only not in (None, number):
                continue
            if not case.before_jax and "jax" not in sys.modules:
                for name in _LIBRARIES:
                    importlib.import_module(name)
            started = time.monotonic()
            status, output, errors = folder.run(case)
            statuses[status] = statuses.get(status, 0) + 1
            if broken := broken_rule(case.module, status, output, errors):
                failures += 1
                print(f"seed {options.seed}, case {number}: {broken}: {case}")
                print(output[-500:], errors[-3000:], sep="\n")
            if options.only is not None or time.monotonic() - started > 10:
                print(number, case, status, f"{time.monotonic() - started:.1f} s", output, errors)
    print(
        f"{sum(statuses.values())} cases of seed {options.seed}, {failures} broken; by status {statuses}"
    )
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
