"""Networks exported to C for the tests, and a compiler to build them with."""

import dataclasses
import functools
import pathlib

import networks
import pytest

from ftbnn_jax.deploy import runtime as runtime_lib
from ftbnn_jax.deploy.c import build, export, generate, reference
from ftbnn_jax.deploy.c.options import Options
from ftbnn_jax.errors import UserError
from ftbnn_jax.nn import architectures

_SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
STRICT = ("-O0", "-Werror")
SANITIZED = ("-O0", "-g", "-Werror", *_SANITIZERS)

# What, spec, image size: all shortcuts, activations and forms, uneven groups, sizes odd and even.
NETWORKS = {
    "derived": (networks.DERIVED, 37),
    "baseline": (networks.BASELINE, 33),
    "two-valued": (architectures.small((1, 2), 12, sign="two_valued", groups=5), 10),
    "prelu": (
        architectures.small((1, 2), 33, stem_activation="relu", activation="prelu", stem_stride=2),
        11,
    ),
    "none": (architectures.small((2, 1), 17, activation="none", stage_end_activation="none"), 7),
}


def need_compiler() -> None:
    """Skips the tests of a module where there is no C compiler."""
    try:
        build.compiler()
    except UserError as error:
        pytest.skip(str(error), allow_module_level=True)


@functools.cache
def runtime(name: str) -> runtime_lib.Runtime:
    spec, size = NETWORKS[name]
    return runtime_lib.Runtime(networks.build(spec, size)[2])


@functools.cache
def exported(name: str, fixed: bool):
    """Returns options, files and golden vectors of a network."""
    artifact = runtime(name).artifact
    images = networks.images(artifact.image_size)
    options = Options(fraction_bits=reference.calibrate(artifact, [images]) if fixed else None)
    golden = reference.Reference(artifact, options).golden(images)
    return options, generate.files(artifact, options), golden


def write(
    folder: pathlib.Path, name: str, fixed: bool = False, prefix: str = "ftbnn", **changed: str
) -> pathlib.Path:
    """Writes a network's program, `changed` text in the place of a file's (`model_c` for model.c)."""
    options, files, golden = exported(name, fixed)
    if prefix != "ftbnn":
        files = generate.files(runtime(name).artifact, dataclasses.replace(options, prefix=prefix))
    files = {**files, **{key.replace("_c", ".c"): text for key, text in changed.items()}}
    contents = {key: text.encode() for key, text in files.items()} | {"golden.bin": golden}
    export.write(folder, contents)
    return folder


def check(folder: pathlib.Path, golden: bytes, flags=STRICT):
    """Builds and runs a folder's `test_model`."""
    program = folder.parent / f"{folder.name}_test"
    build.build(folder, program, flags)
    return build.check(program, golden, folder.parent)
