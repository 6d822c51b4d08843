"""Exported C programs under every compiler and processor that CI has: the same integers everywhere.

    python .ci/c_matrix.py [ARTIFACT]

runs the digits of scikit-learn through the artifact's program (by default the quickstart's), and a few
images through small nets with random weights that have every kind of layer, the paper's and others. In
WebAssembly, under node, and on a Cortex-M4 it does so through every network of the graph's contract.
Microcontrollers are machines among the others, each by the Makefile of a `--target=cortex-m` folder.
"""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from concurrent import futures
from typing import Any

import jax.numpy as jnp
import numpy as np
from sklearn import datasets

_ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_ROOT / "tests" / part) for part in ("deploy", "graph")]

import c_programs  # noqa: E402
import contract_networks  # noqa: E402
import wasm  # noqa: E402

import ftbnn_jax  # noqa: E402
from ftbnn_jax.deploy import runtime as runtime_lib  # noqa: E402
from ftbnn_jax.deploy.c import build, cortex_m, export, generate, memory_map, reference  # noqa: E402
from ftbnn_jax.deploy.c.options import Options  # noqa: E402
from ftbnn_jax.errors import UserError  # noqa: E402

_M32 = "-m32 -msse2 -mfpmath=sse"
_AARCH64 = ("aarch64-linux-gnu-gcc -static", "qemu-aarch64")
# Dot products of bytes, of signed ones alone and of both kinds.
_SDOT = ("aarch64-linux-gnu-gcc -static -march=armv8.2-a+dotprod", "qemu-aarch64")
_USDOT = ("aarch64-linux-gnu-gcc -static -march=armv8.6-a", "qemu-aarch64")
_ARMV7 = ("arm-linux-gnueabihf-gcc -static -march=armv7-a+fp", "qemu-arm")
_ARMV7_NEON = ("arm-linux-gnueabihf-gcc -static -march=armv7-a+simd", "qemu-arm")
# The highest byte comes first, and floats are computed in double.
_S390X = ("s390x-linux-gnu-gcc -static", "qemu-s390x")
# Microcontrollers, by the name of a core; on the first, accesses that are not aligned are caught.
_CORTEX_M0 = ("cortex-m0", "qemu-system-arm")
_CORTEX_M4 = ("cortex-m4", "qemu-system-arm")
_CORTEX_M7 = ("cortex-m7", "qemu-system-arm")
_CORES = {core.name for core in cortex_m.CORES}
_CORE_FLAGS = "-Wconversion -Wvla -Wcast-align=strict -Werror"
# Compiler, emulator, and flags of each build; the ones marked run on every network.
_BUILDS = [
    *(("gcc", "", flags) for flags in ("-O0", "-O1", "-O2", "-O3", "-O3 -mavx2 -mpopcnt")),
    *(("clang", "", flags) for flags in ("-O0", "-O1", "-O2", "-O3", "-O3 -mavx2 -mpopcnt")),
    *((f"{compiler} {_M32}", "", flags) for compiler in ("gcc", "clang") for flags in ("-O0", "-O3")),
    *(
        (*machine, flags)
        for machine in (_AARCH64, _ARMV7, _ARMV7_NEON, _S390X, _CORTEX_M0, _CORTEX_M4, _CORTEX_M7)
        for flags in ("-O0", "-O3")
    ),
    ("gcc", "", "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all"),
]
_EVERYWHERE = [
    ("gcc", "", "-O3 -mavx2 -mpopcnt"),
    ("clang", "", "-O3"),
    (f"gcc {_M32}", "", "-O2"),
    (*_AARCH64, "-O3"),
    (*_ARMV7_NEON, "-O3"),
    (*_S390X, "-O3"),
    (*_CORTEX_M0, "-O2"),
    (*_CORTEX_M4, "-O2"),
]
_SMALLEST = [(*_CORTEX_M4, "-O2")]

# Real layers in integers have kernels of their own.
_INTEGERS = [
    *_EVERYWHERE,
    ("gcc", "", "-O0"),
    ("gcc", "", "-O3 -march=native"),
    ("clang", "", "-O3 -march=native"),
    ("gcc", "", "-O3 -DFTBNN_PORTABLE"),
    (*_SDOT, "-O3"),
    (*_USDOT, "-O3"),
    ("gcc", "", "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all"),
]

_FEW = [("gcc", "", "-O3 -march=native"), *_INTEGERS[-1:]]

# Networks of the graph's contract with gates, a softmax, numbers of 16 bits, and kernels of all kinds.
_OTHERS = (
    *("scaling real_to_bin", "attention between signs", "float16", "one-dimensional"),
    *("depthwise and pointwise, thresholds", "VGG of flax layers"),
)


def _digits(count: int = 100) -> np.ndarray:
    return np.round(datasets.load_digits().images[:count, ..., None] * (255 / 16)).astype(np.uint8)


def _build_and_check(
    folder: pathlib.Path, golden: bytes, compiler: str, emulator: str, flags: str
) -> dict[str, Any]:
    if compiler in _CORES:
        return _make_and_check(folder.parent / "device" / "bare_metal", compiler, flags)
    with tempfile.TemporaryDirectory() as directory:
        scratch = pathlib.Path(directory)
        program = scratch / "test_model"
        build.build(folder, program, ["-Werror", *flags.split()], command=compiler.split())
        return build.check(program, golden, scratch, emulator.split())


def _make_and_check(folder: pathlib.Path, core: str, flags: str) -> dict[str, Any]:
    """Builds and runs a folder for a microcontroller, with the golden vectors in flash."""
    variables = [f"CORE={core}", f"FOLDER=build/{core}{flags}", f"CFLAGS={flags} {_CORE_FLAGS}"]
    command = ["make", "--silent", f"--directory={folder}", "FORM=json", *variables]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if not result.stdout.startswith("{"):
        sys.exit(f"error: {' '.join(command)}: {result.stdout}{result.stderr}")
    return {**json.loads(result.stdout), "passed": result.returncode == 0}


def _try(
    name: str,
    runtime: runtime_lib.Runtime,
    images: np.ndarray,
    builds: list,
    fixed: bool,
    real_bits: int = 32,
) -> None:
    """Exits with a message unless every build, and node, passes and all have one checksum."""
    wanted = Options(real_bits=real_bits)
    options = reference.calibrated(runtime.artifact, wanted, fixed, [images])
    expected = reference.Reference(runtime.artifact, options)
    golden = expected.golden(images)
    texts = generate.files(runtime.artifact, options)
    files = {key: text.encode() for key, text in texts.items()} | {"golden.bin": golden}
    with tempfile.TemporaryDirectory() as directory:
        folder = pathlib.Path(directory) / "c"
        export.write(folder, files)
        on_device = dataclasses.replace(options, target="cortex-m")
        texts = generate.files(runtime.artifact, on_device)
        contents = {key: text.encode() for key, text in texts.items()}
        export.write(folder.parent / "device", {**contents, "golden.bin": golden})
        with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            found = list(pool.map(lambda b: _build_and_check(folder, golden, *b), builds))
    in_node = wasm.check(runtime.artifact, export.Program(files, options, expected))
    builds = [*builds, *((module, "node", "") for module in in_node)]
    found += in_node.values()
    for (compiler, _, flags), result in zip(builds, found, strict=True):
        compared = sum(block["compared"] for block in result["blocks"])
        differing = sum(block["differing"] for block in result["blocks"])
        kind = f"{'fixed' if fixed else 'float'}, {real_bits} bits"
        print(
            f"{name} {kind}: {compiler} {flags}: {result['kernels']}: {differing} of {compared:,} "
            f"integers differ, checksum {result['checksum']}",
            flush=True,
        )
        if not result["passed"]:
            sys.exit(f"error: {name}: {compiler} {flags}: integers differ")
    checksums = {result["checksum"] for result in found}
    if len(checksums) != 1:
        sys.exit(f"error: {name}: not one checksum but {len(checksums)}")


def _of_pixels(network: contract_networks.Network) -> tuple[runtime_lib.Runtime, np.ndarray]:
    """Returns a network that takes pixels, as fixed point asks for, and images of them."""
    function, variables = network.build()
    images = network.images()
    if images.dtype != np.uint8:
        images = np.random.default_rng(0).integers(0, 256, images.shape, np.uint8)
    takes = jnp.uint8 if network.images_dtype == "uint8" else jnp.float32

    def of_pixels(variables, x):
        return function(variables, x if takes == jnp.uint8 else (x.astype(takes) - 128) / 32)

    return runtime_lib.Runtime(ftbnn_jax.pack(of_pixels, variables, images, **network.options)), images


def main(path: str) -> None:
    """Builds and runs everything."""
    for compiler, emulator, _ in (*_BUILDS, ("clang", "node", "")):
        own = memory_map.COMPILER if compiler in _CORES else compiler.split()[0]
        for program in (own, *emulator.split()):
            if shutil.which(program) is None:
                sys.exit(f"error: {program}: not installed")
    digits = runtime_lib.Runtime.load(path)
    for fixed in (False, True):
        _try("digits", digits, _digits(), _BUILDS, fixed)
        for name in ("derived", "baseline", "prelu"):
            net = c_programs.runtime(name)
            images = c_programs.networks.images(net.artifact.image_size)
            _try(name, net, images, _EVERYWHERE, fixed)
            for real_bits in (8, 16):
                _try(name, net, images, _INTEGERS, fixed, real_bits)
    for network in contract_networks.NETWORKS:
        images = network.images()
        net = runtime_lib.Runtime(ftbnn_jax.pack(*network.build(), images, **network.options))
        builds = _EVERYWHERE if network.name in _OTHERS else _SMALLEST
        _try(network.name, net, images, builds, False)
        for real_bits in (8, 16):
            _try(network.name, net, images, _FEW, False, real_bits)
        try:
            _try(network.name, *_of_pixels(network), _SMALLEST, True)
        except UserError as error:
            print(f"{network.name} fixed: refused: {error}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else str(_ROOT / "runs" / "quickstart" / "model.safetensors"))
