"""Proof that an ONNX model computes what the artifact computes that it was exported from.

The model runs as it is, but gives what every binary product reads and returns as well. The packed
runtime has to give every integer again from the very signs that the model's product read. Then the
runtime computes the network around the model's integers: results may differ by float32 rounding, and a
sign where what it is taken of lies within rounding of 0.
"""

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.table

from ftbnn_jax import command, extras
from ftbnn_jax.deploy import onnx as export
from ftbnn_jax.deploy import pixels as pixel_values
from ftbnn_jax.deploy import runtime as runtime_lib
from ftbnn_jax.deploy import verify
from ftbnn_jax.errors import UserError
from ftbnn_jax.host import machine
from ftbnn_jax.report import console, print_json

with extras.named():
    import google.protobuf.message
    import onnx

# Share of a product's signs that may lie so near to where they turn that rounding turns them.
_TURNED = 1e-4


@dataclasses.dataclass
class LayerResult:
    """Comparison of one binary product, over all images.

    Attributes:
      name: of the layer.
      compared: integers compared.
      differing: integers that are not what the packed product gives for the same signs.
      inputs: signs that it reads.
      turned: how many of them the packed runtime has otherwise.
    """

    name: str
    compared: int = 0
    differing: int = 0
    inputs: int = 0
    turned: int = 0


@dataclasses.dataclass
class Result:
    """Outcome of a verification.

    Attributes:
      layers: one entry a binary product.
      images: images compared.
      pixels: pixel values that preprocessing made of stored images and that were compared.
      pixels_differing: how many of them are not evaluation's.
      not_finite: images with a number in the result that is not finite, in either.
      agreeing: images with the same top-1 class in the model and in the packed runtime.
      logit_error: largest difference of a result, around the same integers, relative to the largest of
        the image.
    """

    layers: list[LayerResult]
    images: int = 0
    pixels: int = 0
    pixels_differing: int = 0
    not_finite: int = 0
    agreeing: int = 0
    logit_error: float = 0.0

    def failures(self) -> Iterator[str]:
        """Yields what is wrong, a line each."""
        yield from pixel_values.failures(self.pixels, self.pixels_differing)
        for layer in self.layers:
            if layer.differing:
                yield (
                    f"{layer.name}: {layer.differing:,} of {layer.compared:,} integers differ from the "
                    "packed runtime's"
                )
            if layer.turned > _TURNED * layer.inputs:
                yield (
                    f"{layer.name}: {layer.turned:,} of {layer.inputs:,} signs differ from the packed "
                    "runtime's, more than rounding explains"
                )
        if self.not_finite:
            yield f"results are not finite on {self.not_finite:,} of {self.images:,} images"
        if self.logit_error > verify.ROUNDING:
            yield (
                f"results differ from the packed runtime's by {self.logit_error:.1e} of the largest, "
                f"around the same integers; float32 rounding explains {verify.ROUNDING:.0e}"
            )


def compare(
    model: onnx.ModelProto, runtime: runtime_lib.Runtime, batches: Iterable[np.ndarray]
) -> Result:
    """Compares a model with the packed network that it was exported from.

    Args:
      model: from `onnx.export` or `onnx.network`.
      runtime: the packed network.
      batches: of images, as the network takes them.
    """
    graph = runtime.artifact.graph
    nodes = graph.binary_products()
    names = list(dict.fromkeys(name for node in nodes for name in (node.inputs[0], node.name)))
    outputs = [graph.output, *map(_shown, names)]
    session = export.session(_showing(model, names), machine.num_cores())
    around = jax.jit(functools.partial(_around, graph))
    tensors = runtime_lib.prepare(graph)
    result = Result([LayerResult(node.layer or node.name) for node in nodes])
    for images in batches:
        if not len(images):
            continue
        logits, *arrays = session.run(outputs, {graph.input: images})
        found = dict(zip(names, arrays, strict=True))
        expected, counts = jax.device_get(around(images, tensors, found))
        for layer, (differing, compared, turned, inputs) in zip(result.layers, counts, strict=True):
            layer.differing += int(differing)
            layer.compared += int(compared)
            layer.turned += int(turned)
            layer.inputs += int(inputs)
        _add(result, logits, expected, np.asarray(runtime.forward(images)))
    return result


def _showing(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """Returns a copy of a model that gives arrays of signs and of their sums as well, in float32."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    dtype = onnx.TensorProto.FLOAT
    for name in names:
        copy.graph.node.append(onnx.helper.make_node("Cast", [name], [_shown(name)], to=dtype))
        copy.graph.output.append(onnx.helper.make_tensor_value_info(_shown(name), dtype, None))
    return copy


def _shown(name: str) -> str:
    return f"{name}:shown"


def _around(graph, images, tensors, found):
    """Computes a network around a model's integers, and counts what differs product by product."""
    nodes, batch = graph.binary_products(), len(images)
    known = graph.shapes(batch)
    found = {
        name: jnp.broadcast_to(x, known[name].shape).astype(known[name].dtype)
        for name, x in found.items()
    }
    given = {node.name: found[node.name] for node in nodes}
    own = dict(given)

    def note(name, x):
        own[name] = x
        return x

    logits = graph.run(images, {**tensors, **given}, note)
    counts = []
    for node in nodes:
        source = node.inputs[0]
        signs, integers = found[source], found[node.name]
        again = graph.between(source, node.name).run(signs, tensors, batch=batch)
        differing, turned = jnp.sum(again != integers), jnp.sum(signs != own[source])
        counts.append((differing, integers.size, turned, signs.size))
    return logits, counts


def _add(result: Result, logits: np.ndarray, expected: np.ndarray, packed: np.ndarray) -> None:
    rows = [x.reshape(len(x), -1).astype(np.float64) for x in (logits, expected, packed)]
    finite = np.isfinite(rows).all((0, 2))
    found, expected, packed = (x[finite] for x in rows)
    result.images += len(finite)
    result.not_finite += int((~finite).sum())
    result.agreeing += int((found.argmax(-1) == packed.argmax(-1)).sum())
    largest = np.maximum(np.abs(expected).max(-1, keepdims=True, initial=0), np.finfo(np.float32).tiny)
    error = (np.abs(found - expected) / largest).max(initial=0.0)
    result.logit_error = max(result.logit_error, float(error))


def run(
    path: str,
    artifact_path: str,
    network: runtime_lib.Description,
    batches: Iterable[dict[str, Any]],
    as_json: bool = False,
) -> int:
    """Verifies the model at `path`, prints a report, and returns 1 if something is wrong, else 0.

    Args:
      path: of the model.
      artifact_path: of the artifact that it was exported from.
      network: what the artifact must say.
      batches: as for `verify.run`.
      as_json: prints one JSON object instead of the table.

    Raises:
      UserError: one of the files is missing or damaged, or of another network.
    """
    runtime = runtime_lib.Runtime.load(artifact_path)
    network.check(artifact_path, runtime.artifact)
    model = _read(path)
    if model != export.export(runtime.artifact):
        raise UserError(
            f"not what the artifact gives; {command.mode('export --format=onnx')} writes it anew", path
        )
    pixels = pixel_values.Pixels(runtime.pixels)
    result = compare(model, runtime, pixels.checked(batches))
    result.pixels, result.pixels_differing = pixels.compared, pixels.differing
    failures = list(result.failures())
    if as_json:
        print_json({**dataclasses.asdict(result), "passed": not failures})
    else:
        _print(result)
    for failure in failures:
        print(f"error: {path}: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _read(path: str) -> onnx.ModelProto:
    try:
        return onnx.load_model_from_string(pathlib.Path(path).read_bytes())
    except FileNotFoundError as error:
        raise UserError(
            f"no such file; {command.mode('export --format=onnx')} writes it", path
        ) from error
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", path) from error
    except google.protobuf.message.DecodeError as error:
        raise UserError("damaged: no ONNX model", path) from error


def _print(result: Result) -> None:
    table = rich.table.Table(
        title=f"Verified in onnxruntime on {result.images:,} test images", title_justify="left"
    )
    table.add_column("binary product")
    for header in ("integers compared", "differing", "signs", "rounded otherwise"):
        table.add_column(header, justify="right")
    counts = ("compared", "differing", "inputs", "turned")
    for layer in result.layers:
        table.add_row(layer.name, *(f"{getattr(layer, count):,}" for count in counts))
    table.add_section()
    totals = (sum(getattr(layer, count) for layer in result.layers) for count in counts)
    table.add_row("all", *(f"{total:,}" for total in totals))
    console.print(table)
    console.print(
        f"around the same integers, results differ by {result.logit_error:.1e} of the largest; end to "
        f"end, top-1 agrees with the packed runtime's on {result.agreeing:,} of {result.images:,} images"
    )
    pixel_values.show(result.pixels, result.pixels_differing)
