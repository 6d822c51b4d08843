"""Command line: `python -m ftbnn_jax.main --config=configs/X.py --workdir=DIR [--mode=...]`."""

import dataclasses
import os
import signal
import sys
from collections.abc import Sequence

from absl import app, flags, logging
from ml_collections import config_flags

from ftbnn_jax import config as config_lib
from ftbnn_jax import machine
from ftbnn_jax.deploy.c import prefixes
from ftbnn_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="File of the experiment; --config.KEY=VALUE overrides a field of it."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.")
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "evaluate", "export", "verify", "benchmark", "audit"],
    "train: until the end, from the newest checkpoint. evaluate: accuracy of a checkpoint. export: pack "
    "a checkpoint into WORKDIR/model.safetensors. verify: compare the packed integers with training's. "
    "benchmark: time both. audit: look at weights, slopes and activations.",
)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "latest", "For all modes but train: latest, best, or a step."
)
_NUM_IMAGES = flags.DEFINE_integer(
    "num_images", 1000, "For verify and audit: test images to run; 0 for all.", lower_bound=0
)
_AGAINST = flags.DEFINE_string(
    "against", "", "For audit: best or a step, a checkpoint to count flipped weight signs against."
)
_STABLEHLO = flags.DEFINE_bool(
    "stablehlo", False, "For export: also write the runtime as a jax.export program, model.stablehlo."
)
_DISTRIBUTED = flags.DEFINE_string(
    "distributed",
    "auto",
    "For train and evaluate: how this process joins those of a run on several hosts: tpu, slurm, "
    "process 0's HOST:PORT, off, or auto (slurm in a step of several tasks, else off).",
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "With --distributed=HOST:PORT: how many processes there are."
)
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "With --distributed=HOST:PORT: which of them this is, from 0."
)
_FORMAT = flags.DEFINE_enum(
    "format",
    "safetensors",
    ["safetensors", "c"],
    "For export: c also writes the network as a program in portable C99, WORKDIR/c.",
)
_FIXED_POINT = flags.DEFINE_bool(
    "fixed_point", False, "For export --format=c: integers between the convolutions, no floating point."
)
_PREFIX = flags.DEFINE_string(
    "prefix",
    prefixes.DEFAULT,
    "For export --format=c: what all names in C begin with, so that two networks fit into one program.",
)
_RUNTIME = flags.DEFINE_enum(
    "runtime",
    "jax",
    ["jax", "c"],
    "For verify: jax compares the packed runtime with training; c builds WORKDIR/c with $CC and "
    "compares that with the packed runtime.",
)
_JSON = flags.DEFINE_bool("json", False, "For verify, benchmark and audit: print JSON, no tables.")

# Of compiled programs; a network's training step takes some 10 MB.
_CACHE_BYTES = 2 * 2**30


def main(argv: Sequence[str]) -> int:
    """Runs the mode that the flags ask for; returns the exit status."""
    if len(argv) > 1:
        raise UserError(f"{argv[1]}: unexpected; options are written --name=value")
    for flag in (_FIXED_POINT, _PREFIX):
        if flag.value != flag.default and not (_MODE.value == "export" and _FORMAT.value == "c"):
            raise UserError(f"--{flag.name}: goes with --mode=export --format=c")
    prefixes.check(_PREFIX.value)
    for flag in (_CONFIG, _WORKDIR):
        if not flag.value:
            raise UserError(f"--{flag.name}: must be given; --help lists the options")
    config = config_lib.TrainConfig.from_dict(_CONFIG.value)
    workdir = _WORKDIR.value
    # Libraries log at length what they raise as well.
    logging.set_verbosity(logging.FATAL)

    # Imported late: a mistake in the command line is told without waiting for these.
    from ftbnn_jax.train import checkpoint, distributed, paths, stages

    # What multi-step training ends with is its last stage.
    last = stages.resolve(config, workdir)[-1]
    if _MODE.value != "train":
        config, workdir = last.config, last.workdir
    _keep_compiled_programs()

    if _MODE.value in ("train", "evaluate"):
        distributed.initialize(_DISTRIBUTED.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
        with distributed.together():
            return _train_or_evaluate(config, workdir)

    if paths.is_remote(workdir):
        raise UserError(f"--workdir={workdir}: --mode={_MODE.value} needs a copy on this machine")
    variables, experiment, step = checkpoint.load_variables(workdir, _CHECKPOINT.value)
    checkpoint.check_same_model(workdir, config, experiment)

    from ftbnn_jax.deploy import audit, benchmark_network, export, verify
    from ftbnn_jax.deploy.c import export as c_export
    from ftbnn_jax.deploy.c import verify as c_verify
    from ftbnn_jax.train import datasets, input_pipeline

    path = os.path.join(workdir, "model.safetensors")
    c_folder = os.path.join(workdir, "c")
    if _MODE.value == "export":
        status = export.run(path, config, variables, experiment, step, _STABLEHLO.value)
        if status or _FORMAT.value != "c":
            return status
    if _MODE.value == "benchmark":
        return benchmark_network.run(path, config, variables, _JSON.value)
    split = datasets.open_split(config, train=False)
    # The activations of every layer are kept for comparison: as many images at a time as fit anywhere.
    small = dataclasses.replace(config, batch_size=max(1, 128 * 32**2 // config.image_size**2))
    batches = input_pipeline.eval_batches(split, small, num_examples=_NUM_IMAGES.value)
    if _MODE.value == "export":
        return c_export.run(path, c_folder, batches, _FIXED_POINT.value, _PREFIX.value)
    if _MODE.value == "audit":
        other = checkpoint.load_variables(workdir, _AGAINST.value)[0] if _AGAINST.value else None
        return audit.run(config, variables, experiment["channels"], batches, other, _JSON.value)
    batches = input_pipeline.with_decoded(split, batches)
    if _RUNTIME.value == "c":
        network = config.model, config.num_classes
        return c_verify.run(path, c_folder, *network, batches, _JSON.value)
    return verify.run(path, config, variables, batches, _JSON.value)


def _keep_compiled_programs() -> None:
    """Lets JAX keep what it compiles in the user's cache, for the next start.

    JAX_COMPILATION_CACHE_DIR names another place, JAX_ENABLE_COMPILATION_CACHE=false turns it off.
    """
    import jax

    if jax.config.jax_compilation_cache_dir is None:
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        jax.config.update("jax_compilation_cache_dir", os.path.join(cache, "ftbnn_jax"))
        jax.config.update("jax_compilation_cache_max_size", _CACHE_BYTES)


def _train_or_evaluate(config: config_lib.TrainConfig, workdir: str) -> int:
    from ftbnn_jax.train import checkpoint, evaluation, interrupt, stages

    if _MODE.value == "evaluate":
        variables, experiment, step = checkpoint.load_variables(workdir, _CHECKPOINT.value)
        checkpoint.check_same_model(workdir, config, experiment)
        evaluation.evaluate(config, variables, step)
        return 0
    checkpoint.hide_orphaned_writes()
    try:
        stages.train(config, workdir)
    except interrupt.Interrupted as message:
        print(f"{message}; the same command goes on from there", file=sys.stderr)
        return interrupt.EXIT_STATUS
    return 0


def _parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses flags like absl does, but turns every mistake into one line."""
    _check_config(argv[1:])
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        raise UserError(str(error).splitlines()[0]) from error


def _check_config(arguments: Sequence[str]) -> None:
    """Loads the config file and looks every override up, since absl's own errors name neither well."""
    paths = [a.partition("=")[2] for a in arguments if a.startswith(("--config=", "-config="))]
    if not paths:
        return
    config = config_lib.load(paths[-1]).to_dict()
    for argument in arguments:
        name, equals, _ = argument.lstrip("-").partition("=")
        if argument.startswith("-") and equals and name.startswith("config."):
            config_lib.check_key(config, name.removeprefix("config."))


def run() -> None:
    """Entry point: prints a user's mistake as one line and exits with status 2."""
    machine.keep_memory()
    try:
        app.run(main, flags_parser=_parse_flags)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        # Outside the training loop, which answers Ctrl-C itself, there is nothing to save.
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    run()
