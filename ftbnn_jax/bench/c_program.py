"""Time of a network's C program, beside onnxruntime's on the same network, one thread each.

    python -m ftbnn_jax.bench.c_program baseline derived34_g5 [--real_bits=8] [--fixed_point] [--json]

takes packed files, or configs, whose networks then have the weights that training begins with. The sides
take turns in one run; of each the processor time of its quickest prediction counts. With extra `onnx`,
onnxruntime runs the network in float32, with its products in int8 (`deploy.onnx`), and the bare chain of
all products in 8 bits (`quantized_chain`), which is no network but what one would take at the least.
"""

import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftbnn_jax import command, networks, report
from ftbnn_jax import config as config_lib
from ftbnn_jax.bench import packed_layer
from ftbnn_jax.deploy import artifact as artifact_lib
from ftbnn_jax.deploy import export as network_export
from ftbnn_jax.deploy.c import build, export, options

_ROUNDS = 3
# Seconds that onnxruntime is timed in a round: as long as the C program times itself.
_TURN_S = 1.0
_CHANNELS = 3


def packed(name: str) -> artifact_lib.Artifact:
    """Returns a packed file's network, or that of a config as training begins with it.

    Raises:
      UserError: there is neither, or it cannot be packed.
    """
    if name.endswith(".safetensors"):
        return artifact_lib.load(name)
    config = config_lib.load(name)
    images = jnp.zeros((1, *config.preprocessing(_CHANNELS).shape), jnp.float32)
    variables = networks.make(config).init(jax.random.key(config.seed), images)
    classes = [f"class {i}" for i in range(config.num_classes)]
    experiment = {"channels": _CHANNELS, "class_names": classes}
    return network_export.to_artifact(config, variables, experiment, step=0)


def times(
    artifact: artifact_lib.Artifact,
    program_options: options.Options = options.DEFAULT,
    with_fixed_point: bool = False,
    flags: Sequence[str] = build.FLAGS,
) -> dict[str, Any]:
    """Times a network on one random image.

    Args:
      artifact: the packed network.
      program_options: what shapes the program.
      with_fixed_point: integers instead of single precision between its products.
      flags: for the compiler.

    Returns:
      Milliseconds of the quickest prediction of each side, and what the program counts bits with.

    Raises:
      UserError: there is no compiler, or the network cannot be written in C.
    """
    graph = artifact.graph
    shape = (1, *graph.shape[1:])
    images = np.random.default_rng(0).integers(0, 256, shape).astype(graph.dtype)
    batch = {"image": images, "weight": np.ones(1)}
    made = export.program(artifact, [batch], with_fixed_point, program_options)
    found: dict[str, Any] = {}
    with build.scratch() as scratch:
        folder, program = scratch / "c", scratch / "test_model"
        export.write(folder, made.files)
        build.build(folder, program, flags)
        others = _others(graph)
        for _ in range(_ROUNDS):
            report_of = build.timed(program, folder / "golden.bin")
            found["kernels"] = report_of["kernels"]
            _keep_least(found, "c_ms", report_of["ns"] / 1e6)
            for side, call in others.items():
                _keep_least(found, f"onnxruntime_{side}_ms", _quickest(call, images))
    return found


def _keep_least(found: dict[str, Any], name: str, value: float) -> None:
    found[name] = min(value, found.get(name, value))


def _others(graph: Any) -> dict[str, Callable[[np.ndarray], Any]]:
    """Returns onnxruntime's sides by name; none where it is not installed."""
    onnx_network = packed_layer.onnx_network
    if onnx_network is None:
        return {}
    # Imported late, since it needs the extra.
    from ftbnn_jax.bench import quantized_chain

    models = {form: onnx_network.network(graph, form) for form in onnx_network.FORMS}
    models["chain"] = quantized_chain.model(graph)
    return {name: onnx_network.load(model, 1) for name, model in models.items()}


def _quickest(call: Callable[[np.ndarray], Any], images: np.ndarray) -> float:
    """Returns the least processor time of a call, in ms."""
    least, end = float("inf"), time.perf_counter() + _TURN_S
    while least == float("inf") or time.perf_counter() < end:
        start = time.process_time()
        call(images)
        least = min(least, time.process_time() - start)
    return 1e3 * least


def main(arguments: Sequence[str]) -> int:
    """Times the networks that the arguments name, and prints a table or JSON."""
    parser = command.ArgumentParser(
        prog="python -m ftbnn_jax.bench.c_program",
        description="Time the C program of a network, beside onnxruntime, on one thread.",
    )
    parser.add_argument(
        "networks", nargs="+", metavar="NETWORK", help="a packed file, model.safetensors, or a config"
    )
    parser.add_argument("--real_bits", type=int, default=32, help="as in --mode=export --format=c")
    parser.add_argument("--fixed_point", action="store_true", help="likewise")
    parser.add_argument(
        "--flags", default=" ".join(build.FLAGS), help="for the C compiler (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    asked = parser.parse_args(arguments)
    shaped = options.Options(real_bits=asked.real_bits)
    rows = []
    for name in asked.networks:
        found = times(packed(name), shaped, asked.fixed_point, asked.flags.split())
        rows.append({"network": pathlib.Path(name).name, **found})
    if asked.json:
        report.print_json(rows)
        return 0
    for row in rows:
        c_ms = row["c_ms"]
        lines = [("counts bits by", row["kernels"]), ("C", f"{c_ms:.2f} ms")]
        for name, ms in row.items():
            if name.startswith("onnxruntime"):
                side = name.removesuffix("_ms").replace("_", " ")
                lines.append((side, f"{ms:.2f} ms, C {ms / c_ms:.2f} times as fast"))
        report.print_table(row["network"], lines)
    if packed_layer.onnx_network is None:
        print(packed_layer.NO_ONNX)
    return 0


if __name__ == "__main__":
    sys.exit(command.run(main))
