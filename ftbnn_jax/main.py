"""Command line: `python -m ftbnn_jax.main --config=configs/X.py --workdir=DIR [--mode=...]`."""

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ftbnn_jax import command
from ftbnn_jax import config as config_lib
from ftbnn_jax.deploy.c import options as c_options
from ftbnn_jax.errors import UserError
from ftbnn_jax.host import machine, paths

_DEFAULTS = {
    "checkpoint": "latest",
    "num_images": 1000,
    "stablehlo": False,
    "verify": False,
    "distributed": "auto",
    "format": "safetensors",
    "fixed_point": False,
    "real_bits": c_options.DEFAULT.real_bits,
    "target": c_options.DEFAULT.target,
    "prefix": c_options.DEFAULT.prefix,
    "profile": False,
    "runtime": "jax",
    "json": False,
}
# The modes that an option goes with which would ask for something else in any other. The rest may be
# given in all modes: a script can run one after the other with the same options.
_GOES_WITH = {
    "against": ("audit",),
    "format": ("export",),
    "fixed_point": ("export --format=c", "export --format=web"),
    "real_bits": ("export --format=c", "export --format=web"),
    "target": ("export --format=c",),
    "prefix": ("export --format=c",),
    "flash": ("export --format=c --target=cortex-m",),
    "ram": ("export --format=c --target=cortex-m",),
    "verify": ("export",),
    "profile": ("verify --runtime=c",),
    "runtime": ("verify",),
}


def _parser() -> command.ArgumentParser:
    parser = command.ArgumentParser(
        prog="python -m ftbnn_jax.main",
        description="Train a network, and evaluate, pack, verify, time and look at it.",
        epilog="--config.KEY=VALUE or --config.KEY VALUE overrides a field of the experiment.",
    )
    parser.add_argument(
        "--config",
        required=True,
        type=paths.local_argument,
        metavar="FILE",
        help="file of the experiment, FILE.py or FILE.py:ARG, or the name of one that comes with the "
        "package: derived44_g5, derived44_g5:90",
    )
    parser.add_argument(
        "--workdir", required=True, type=paths.argument, metavar="DIR", help="directory of the run"
    )
    parser.add_argument(
        "--mode",
        default="train",
        choices=tuple(dict.fromkeys(mode for mode, _ in _MODES)),
        help="train: until the end, from the newest checkpoint. evaluate: accuracy of a checkpoint. "
        "export: pack a checkpoint into WORKDIR/model.safetensors. verify: compare the packed integers "
        "with training's. benchmark: time both. audit: look at weights, slopes and activations.",
    )
    parser.add_argument("--checkpoint", help="for all modes but train: latest, best, or a step")
    parser.add_argument(
        "--num_images",
        type=command.whole(0),
        metavar="N",
        help="for verify, audit and export --format=c or web: test images to run; 0 for all",
    )
    parser.add_argument(
        "--against",
        metavar="CHECKPOINT",
        help="for audit: best or a step, a checkpoint to count flipped weight signs against",
    )
    _add_switch(
        parser,
        "stablehlo",
        "for export: also write the runtime as a jax.export program, model.stablehlo",
    )
    parser.add_argument(
        "--distributed",
        metavar="HOW",
        help="for train and evaluate: how this process joins those of a run on several hosts: tpu, "
        "slurm, process 0's HOST:PORT, off, or auto (slurm in a step of several tasks, else off)",
    )
    for name, text in (
        ("num_processes", "how many processes there are"),
        ("process_id", "which of them this is, from 0"),
    ):
        parser.add_argument(
            f"--{name}",
            type=command.whole(0),
            metavar="N",
            help=f"with --distributed=HOST:PORT: {text}",
        )
    parser.add_argument(
        "--format",
        choices=_kinds("export"),
        help="for export: c also writes the network as a program in portable C99, WORKDIR/c; onnx as "
        "WORKDIR/model.onnx; web as a page for browsers, WORKDIR/web",
    )
    _add_switch(
        parser,
        "fixed_point",
        "for export --format=c or web: integers between the convolutions, no floating point",
    )
    parser.add_argument(
        "--real_bits",
        type=int,
        choices=c_options.REAL_BITS,
        help="for export --format=c or web: of the weights of real convolutions and matrix products; 32 "
        "for single precision",
    )
    parser.add_argument(
        "--target",
        choices=c_options.TARGETS,
        help="for export --format=c: what the program is for: any computer, or microcontrollers, as an "
        "Arduino library, a Zephyr module and a test for QEMU in one folder",
    )
    for name in ("flash", "ram"):
        parser.add_argument(
            f"--{name}",
            type=command.size,
            metavar="SIZE",
            help=f"for export --format=c --target=cortex-m: bytes of {name} there are, 64K or 1M, say; "
            "nothing is written where the program takes more",
        )
    parser.add_argument(
        "--prefix",
        metavar="NAME",
        help="for export --format=c: what all names in C begin with, so that two networks fit into one "
        "program",
    )
    _add_switch(
        parser,
        "verify",
        "for export: then verify what was written, as --mode=verify does with the runtime that fits "
        "--format; its exit status",
    )
    parser.add_argument(
        "--runtime",
        choices=_kinds("verify"),
        help="for verify: jax compares the packed runtime with training; c builds WORKDIR/c with $CC "
        "and compares that with the packed runtime; onnx runs WORKDIR/model.onnx and does likewise",
    )
    _add_switch(
        parser, "profile", "for verify --runtime=c: also say how long every layer of the program takes"
    )
    _add_switch(parser, "json", "for export, verify, benchmark and audit: print JSON, no tables")
    return parser


def _add_switch(parser: argparse.ArgumentParser, name: str, text: str) -> None:
    parser.add_argument(
        f"--{name}", nargs="?", const=True, type=command.truth, metavar="true|false", help=text
    )


def _parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, config_lib.TrainConfig]:
    """Returns the options, defaults filled in, and the experiment.

    Raises:
      UserError: an option is wrong or does not go with the others, or the config cannot be used.
    """
    overrides, others = config_lib.split_overrides(arguments)
    options = _parser().parse_args(others)
    kind = f"{options.mode} --format={options.format}"
    mode = {options.mode, kind, f"{kind} --target={options.target}"}
    mode.add(f"{options.mode} --runtime={options.runtime}")
    for name, modes in _GOES_WITH.items():
        if getattr(options, name) is not None and not mode.intersection(modes):
            raise UserError(f"--{name}: goes with {' or '.join(map(command.mode, modes))}")
    for name, value in _DEFAULTS.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    # Checks them before anything is read.
    _c_options(options)
    return options, config_lib.load(options.config, overrides)


def main(arguments: Sequence[str]) -> int:
    """Runs the mode that the arguments ask for; returns the exit status."""
    options, config = _parse(arguments)
    kind = {"export": options.format, "verify": options.runtime}.get(options.mode)
    run, needs = _MODES[options.mode, kind]
    if options.verify:
        run, needs = _and_verify(run, needs, _RUNTIMES[kind]), _IMAGES

    # Imported late: a mistake in the command line is told without waiting for these.
    from ftbnn_jax.host import distributed
    from ftbnn_jax.train import stages

    # What multi-step training ends with is its last stage.
    workdir = options.workdir
    last = stages.resolve(config, workdir)[-1]
    if options.mode != "train":
        config, workdir = last.config, last.workdir
    machine.configure_jax(keep_programs=True)
    if needs == _PROCESSES:
        distributed.initialize(options.distributed, options.num_processes, options.process_id)
        machine.check_devices()
        with distributed.together():
            return run(options, config, workdir)
    machine.check_devices()
    config, *inputs = _inputs(options, config, workdir, needs)
    return run(options, config, workdir, *inputs)


def _inputs(
    options: argparse.Namespace, config: config_lib.TrainConfig, workdir: str, needs: str
) -> Iterator[Any]:
    """Yields the config, with what the run has found in the data, and the checkpoint.

    The latter as `load_variables` gives it; and for modes that need them, a function that gives the test
    images: batches, on request with the images as they are stored.

    Raises:
      UserError: there are none, or they are not those of the config.
    """
    from ftbnn_jax.data import automatic, batches, sets
    from ftbnn_jax.train import checkpoint, identity

    where = f"--workdir={workdir}"
    if paths.is_remote(workdir):
        raise UserError(f"{command.mode(options.mode)} needs a copy on this machine", where)
    saved = checkpoint.load_variables(workdir, options.checkpoint)
    config = automatic.from_saved(config, saved[1]["config"])
    identity.check(where, saved[1], config)
    yield config
    yield saved
    if needs != _IMAGES:
        return
    split = sets.open_split(config, train=False, workdir=workdir)
    identity.check(where, saved[1], config, split)
    # The activations of every layer are kept for comparison: as many images at a time as fit anywhere.
    small = dataclasses.replace(config, batch_size=max(1, 128 * 32**2 // config.image_size**2))

    def images(stored: bool = False) -> Iterator[dict[str, Any]]:
        found = batches.eval_batches(split, small, num_examples=options.num_images)
        return batches.with_decoded(split, found) if stored else found

    yield images


def _train(options, config, workdir) -> int:
    from ftbnn_jax.host import disk, interrupt
    from ftbnn_jax.train import stages

    disk.hide_orphaned_writes()
    try:
        stages.train(config, workdir)
    except interrupt.Interrupted as message:
        print(f"{message}; the same command goes on from there", file=sys.stderr)
        return command.UNFINISHED
    return 0


def _evaluate(options, config, workdir) -> int:
    from ftbnn_jax.train import evaluation

    evaluation.evaluate(config, workdir, options.checkpoint)
    return 0


def _export(options, config, workdir, saved) -> int:
    from ftbnn_jax.deploy import export

    return export.run(_artifact(workdir), config, *saved, options.stablehlo, options.json)


def _export_c(options, config, workdir, saved, images) -> int:
    from ftbnn_jax.deploy.c import export, memory_map

    if status := _export(options, config, workdir, saved):
        return status
    files = _artifact(workdir), _c_folder(workdir)
    limits = memory_map.Limits(options.flash, options.ram)
    how = options.fixed_point, _c_options(options), limits
    return export.run(*files, images(), *how, options.json)


def _c_options(options: argparse.Namespace) -> c_options.Options:
    return c_options.Options(real_bits=options.real_bits, prefix=options.prefix, target=options.target)


def _export_onnx(options, config, workdir, saved) -> int:
    from ftbnn_jax.deploy import onnx

    if status := _export(options, config, workdir, saved):
        return status
    return onnx.run(_onnx_file(workdir), _artifact(workdir), options.json)


def _export_web(options, config, workdir, saved, images) -> int:
    from ftbnn_jax.deploy.web import build, export

    # Told before anything is packed.
    build.compiler()
    if status := _export(options, config, workdir, saved):
        return status
    files = _artifact(workdir), _web_folder(workdir)
    title = os.path.basename(options.config).replace(".py", "", 1)
    shaped = options.fixed_point, _c_options(options)
    return export.run(*files, title, images(), *shaped, options.json)


def _verify(options, config, workdir, saved, images) -> int:
    from ftbnn_jax.deploy import verify

    return verify.run(_artifact(workdir), config, saved[0], images(stored=True), options.json)


def _verify_c(options, config, workdir, saved, images) -> int:
    from ftbnn_jax.deploy import export
    from ftbnn_jax.deploy.c import verify

    files, network = (
        (_artifact(workdir), _c_folder(workdir)),
        export.described(config, saved[1]["channels"]),
    )
    return verify.run(*files, network, images(stored=True), options.json, options.profile)


def _verify_onnx(options, config, workdir, saved, images) -> int:
    from ftbnn_jax.deploy import export, onnx_verify

    files, network = (
        (_onnx_file(workdir), _artifact(workdir)),
        export.described(config, saved[1]["channels"]),
    )
    return onnx_verify.run(*files, network, images(stored=True), options.json)


def _and_verify(run: Callable[..., int], needs: str, runtime: str) -> Callable[..., int]:
    """Returns the mode that exports with `run`, then verifies; its status is the verification's."""
    verify, _ = _MODES["verify", runtime]

    def export_and_verify(options, config, workdir, saved, images):
        given = (saved, images) if needs == _IMAGES else (saved,)
        status = run(options, config, workdir, *given)
        return status or verify(options, config, workdir, saved, images)

    return export_and_verify


def _benchmark(options, config, workdir, saved) -> int:
    from ftbnn_jax.bench import packed_network

    return packed_network.run(_artifact(workdir), config, saved[0], options.json)


def _audit(options, config, workdir, saved, images) -> int:
    from ftbnn_jax.deploy import audit
    from ftbnn_jax.train import checkpoint

    variables, experiment, _ = saved
    other = None
    if options.against is not None:
        other, _, _ = checkpoint.load_variables(workdir, options.against)
    return audit.run(config, variables, experiment["channels"], images(), other, options.json)


def _artifact(workdir: str) -> str:
    return os.path.join(workdir, "model.safetensors")


def _onnx_file(workdir: str) -> str:
    return os.path.join(workdir, "model.onnx")


def _c_folder(workdir: str) -> str:
    return os.path.join(workdir, "c")


def _web_folder(workdir: str) -> str:
    return os.path.join(workdir, "web")


# What a mode needs: all processes of the run, a checkpoint, or a checkpoint and the test images. The
# latter two are given to its function behind the options, the config and the work directory.
_PROCESSES, _CHECKPOINT, _IMAGES = "processes", "checkpoint", "images"

# The function of each mode, and what it needs; of export by --format, of verify by --runtime.
_MODES: dict[tuple[str, str | None], tuple[Callable[..., int], str]] = {
    ("train", None): (_train, _PROCESSES),
    ("evaluate", None): (_evaluate, _PROCESSES),
    ("export", "safetensors"): (_export, _CHECKPOINT),
    ("export", "c"): (_export_c, _IMAGES),
    ("export", "onnx"): (_export_onnx, _CHECKPOINT),
    ("export", "web"): (_export_web, _IMAGES),
    ("verify", "jax"): (_verify, _IMAGES),
    ("verify", "c"): (_verify_c, _IMAGES),
    ("verify", "onnx"): (_verify_onnx, _IMAGES),
    ("benchmark", None): (_benchmark, _CHECKPOINT),
    ("audit", None): (_audit, _IMAGES),
}


# What verifies each format.
_RUNTIMES = {"safetensors": "jax", "c": "c", "onnx": "onnx", "web": "jax"}


def _kinds(mode: str) -> list[str | None]:
    return [kind for name, kind in _MODES if name == mode]


if __name__ == "__main__":
    machine.keep_memory()
    sys.exit(command.run(main))
