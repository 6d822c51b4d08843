"""`--mode=benchmark`: a trained network's float32 training graph against its packed runtime."""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.table

from ftbnn_jax.bench import packed_layer
from ftbnn_jax.config import TrainConfig
from ftbnn_jax.deploy import export
from ftbnn_jax.deploy import runtime as runtime_lib
from ftbnn_jax.graph import ir
from ftbnn_jax.host import machine
from ftbnn_jax.ops.conv import convolution
from ftbnn_jax.report import console, print_json


def rows(
    config: TrainConfig, variables: dict[str, Any], runtime: runtime_lib.Runtime
) -> list[packed_layer.Row]:
    """Times every kind of layer that the network has, then the whole network, batch after batch.

    Args:
      config: of the run.
      variables: of its network.
      runtime: the packed network.
    """
    network = export.network(config)
    graph = runtime.artifact.graph
    shapes, nodes = graph.shapes(), graph.binary_products()
    convs = [(ir.packed_conv(node.attributes), shapes[node.inputs[0]].shape[1]) for node in nodes]
    # Layers of one geometry take the same time; the first one's name stands for all.
    kinds: dict[Any, list[str]] = {}
    for kind, node in zip(convs, nodes, strict=True):
        kinds.setdefault(kind, []).append(node.layer)

    @jax.jit
    def real(variables, images):
        with convolution.signs_as_numbers():
            return network(variables, images)

    variables = jax.tree.map(jnp.asarray, variables)
    found = []
    for batch in packed_layer.BATCHES:
        for (conv, size), names in kinds.items():
            name = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} like it"
            found.append(packed_layer.layer(name, conv, size, batch))
        shape = (batch, config.image_size, config.image_size, runtime.artifact.channels)
        images = jnp.asarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
        others = packed_layer.onnx_calls(
            lambda form: packed_layer.onnx_network.network(graph, form), np.asarray(images)
        )
        calls = [lambda: real(variables, images), lambda: runtime.forward(images), *others]  # noqa: B023
        times = packed_layer.medians(calls)
        total = sum(packed_layer.operations(conv, size) for conv, size in convs) * batch
        found.append(packed_layer.Row("whole network", "", batch, *times[:2], total, *times[2:]))
    return found


def run(path: str, config: TrainConfig, variables: dict[str, Any], as_json: bool = False) -> int:
    """Times the artifact at `path`, prints a table or one JSON object, and returns the exit status.

    Raises:
      UserError: the artifact is missing, damaged, or of another network.
    """
    runtime = runtime_lib.Runtime.load(path)
    export.described(config, runtime.artifact.channels).check(path, runtime.artifact)
    found = rows(config, variables, runtime)
    packed_bytes = os.path.getsize(path)
    float_bytes = sum(4 * leaf.size for leaf in jax.tree.leaves(variables))
    threads = machine.num_cores()
    if as_json:
        sizes = {"packed_bytes": packed_bytes, "float32_bytes": float_bytes, "processors": threads}
        print_json({"rows": [row.to_dict() for row in found], **sizes})
        return 0
    table = rich.table.Table(title=f"Timed on {threads} processors", title_justify="left")
    headers = ["batch", "what", "form", "float32 ms", "packed ms", "times as fast", "Gop/s"]
    if packed_layer.onnx_network is not None:
        headers += ["onnxruntime float32 ms", "onnxruntime int8 ms"]
    for header in headers:
        table.add_column(header, justify="left" if header in ("what", "form") else "right")
    for row in found:
        others = [ms for ms in (row.onnx_float32_ms, row.onnx_int8_ms) if ms is not None]
        table.add_row(
            str(row.batch),
            row.name,
            row.form,
            f"{row.float_ms:.3f}",
            f"{row.packed_ms:.3f}",
            f"{row.ratio:.1f}",
            f"{row.gops:.1f}",
            *(f"{ms:.3f}" for ms in others),
        )
    console.print(table)
    console.print(
        f"medians, all sides alternating, freed memory kept by the C library. File: {packed_bytes:,} "
        f"bytes, the float32 variables: {float_bytes:,}, {float_bytes / packed_bytes:.1f} times as many"
    )
    if packed_layer.onnx_network is None:
        console.print(packed_layer.NO_ONNX, markup=False)
    return 0
