"""Exported programs in WebAssembly under node, beside those of compilers in `c_matrix.py`."""

import json
import pathlib
import subprocess
import tempfile
from typing import Any

from ftbnn_jax.deploy import artifact as artifact_lib
from ftbnn_jax.deploy.c import export
from ftbnn_jax.deploy.web import build
from ftbnn_jax.deploy.web import export as web_export

_RUNNER = pathlib.Path(__file__).with_name("wasm_check.js")


def check(artifact: artifact_lib.Artifact, program: export.Program) -> dict[str, dict[str, Any]]:
    """Runs a program's golden vectors in node.

    Returns:
      Of each module, with SIMD and without, what `test_model` prints.
    """
    modules = build.modules(program.files, build.compiler())
    with tempfile.TemporaryDirectory() as directory:
        folder = pathlib.Path(directory)
        (folder / "about.json").write_text(json.dumps(web_export.describe(artifact, program)))
        (folder / "golden.bin").write_bytes(program.files["golden.bin"])
        for name, module in modules.items():
            (folder / name).write_bytes(module)
        return {name: _run(folder, name) for name in modules}


def _run(folder: pathlib.Path, module: str) -> dict[str, Any]:
    arguments = [folder / module, folder / "about.json", folder / "golden.bin"]
    done = subprocess.run(["node", _RUNNER, *arguments], capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"node {_RUNNER.name} {module}: {done.stderr.strip()}")
    return {**json.loads(done.stdout), "passed": done.returncode == 0}
