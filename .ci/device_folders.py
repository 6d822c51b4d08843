"""An exported folder for microcontrollers as an Arduino library and as a Zephyr module, under QEMU.

    python .ci/device_folders.py [ARTIFACT]

Neither Arduino nor Zephyr is here. Small stand-ins (stubs/) have what the sketch and the sample use, and
say on the debugger's screen what they would on a serial port. Compiled is as Arduino does: by its own
flags, to which a library cannot add any.
"""

import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence

import numpy as np
from sklearn import datasets

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_STUBS = _ROOT / ".ci" / "stubs"

from ftbnn_jax.deploy.c import cortex_m, export  # noqa: E402
from ftbnn_jax.deploy.c.options import Options  # noqa: E402

_PREFIX = "digits"
_ARDUINO = ("-Os", "-g", "-Wall", "-Wextra", "-ffunction-sections", "-fdata-sections")
_QEMU = (
    *("qemu-system-arm", "-display", "none", "-monitor", "none", "-serial", "none"),
    *("-chardev", "stdio,id=screen", "-semihosting-config", "enable=on,target=native,chardev=screen"),
    *("-icount", "shift=3"),
)


def _run(*command: object) -> str:
    """Runs a command and returns what it prints; exits with a message if it fails."""
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"error: {' '.join(map(str, command))}:\n{result.stdout}{result.stderr}")
    return result.stdout


def _check(what: str, core: cortex_m.Core, program: pathlib.Path) -> None:
    printed = _run(*_QEMU, "-M", core.board, "-kernel", program).strip()
    print(f"{what} on {core.name}: {printed}", flush=True)
    # Minutes would be those of a clock that went back.
    if not re.fullmatch(r"0, \d{1,8} us, as expected", printed):
        sys.exit(f"error: {what}: not what was expected")


def _bare_metal(folder: pathlib.Path, flags: Sequence[str], output: pathlib.Path) -> None:
    own = (*flags, "-std=c99", "-fno-tree-loop-distribute-patterns")
    _run("arm-none-eabi-gcc", *own, "-c", folder / "bare_metal" / "bare_metal.c", "-o", output)


def _arduino(folder: pathlib.Path, core: cortex_m.Core, scratch: pathlib.Path) -> None:
    """Builds the sketch as Arduino's tools do: sources of `src` in C11, the sketch in C++11."""
    flags = [*core.flags.split(), *_ARDUINO]
    objects = [scratch / "bare_metal.o", scratch / "sketch.o"]
    _bare_metal(folder, flags, objects[0])
    for source in sorted((folder / "src").glob("*.c")):
        objects.append(scratch / f"{source.stem}.o")
        _run("arm-none-eabi-gcc", *flags, "-std=gnu11", "-c", source, "-o", objects[-1])
    sketch = folder / "examples" / "Classify" / "Classify.ino"
    includes = [f"-I{folder / 'src'}", f"-I{folder / 'bare_metal'}", f"-I{_STUBS / 'arduino'}"]
    dialect = ["-std=gnu++11", "-fno-exceptions", "-fno-rtti", "-fno-threadsafe-statics", "-x", "c++"]
    command = ["arm-none-eabi-g++", *flags, *includes, *dialect, "-include", "Arduino.h"]
    _run(*command, "-c", sketch, "-o", objects[1])
    script = folder / "bare_metal" / "bare_metal.ld"
    linked = ["-nostdlib", "-Wl,--gc-sections", "-T", script, "-o", scratch / "sketch.elf"]
    # memcmp is a C library's.
    _run("arm-none-eabi-gcc", *flags, *linked, *objects, "-lc", "-lgcc")
    _check("the Arduino sketch", core, scratch / "sketch.elf")


def _zephyr(folder: pathlib.Path, core: cortex_m.Core, scratch: pathlib.Path) -> None:
    """Builds the sample with CMake."""
    build = scratch / "build"
    definitions = {
        "CMAKE_SYSTEM_NAME": "Generic",
        "CMAKE_TRY_COMPILE_TARGET_TYPE": "STATIC_LIBRARY",
        "CMAKE_C_COMPILER": "arm-none-eabi-gcc",
        "CMAKE_C_FLAGS": core.flags,
        "Zephyr_DIR": _STUBS / "zephyr" / "cmake",
        "BARE_METAL": folder / "bare_metal",
    }
    given = [f"-D{name}={value}" for name, value in definitions.items()]
    cmake = [sys.executable, "-m", "cmake"]
    _run(*cmake, "-S", folder / "samples" / "classify", "-B", build, *given)
    _run(*cmake, "--build", build)
    _check("the Zephyr sample", core, build / "zephyr_program.elf")


def main(path: str) -> None:
    """Exports, builds and runs."""
    images = np.round(datasets.load_digits().images[:4, ..., None] * (255 / 16)).astype(np.uint8)
    batch = {"image": images, "weight": np.ones(len(images))}
    with tempfile.TemporaryDirectory() as directory:
        scratch = pathlib.Path(directory)
        for fixed in (False, True):
            folder = scratch / f"c{fixed}"
            options = Options(target="cortex-m", prefix=_PREFIX)
            export.run(path, str(folder), [batch], fixed, options, as_json=True)
            for core in cortex_m.CORES:
                for build in (_arduino, _zephyr):
                    with tempfile.TemporaryDirectory() as place:
                        build(folder, core, pathlib.Path(place))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else str(_ROOT / "runs" / "quickstart" / "model.safetensors"))
