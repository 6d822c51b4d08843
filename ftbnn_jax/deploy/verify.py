"""Proof that a packed artifact computes what the network's own program computes.

Product by product, teacher-forced: a packed product runs on the very activations that reached the
program's, and every integer is compared. Then end to end: results, no further off than the 16 bits of
the packed classifier's weights and float32 rounding explain, and top-1. For a config's network, from the
pixels on: the runtime's preprocessing of stored images gives the pixels that evaluation saw.
"""

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.table

from ftbnn_jax.config import TrainConfig
from ftbnn_jax.deploy import export
from ftbnn_jax.deploy import pixels as pixel_values
from ftbnn_jax.deploy import runtime as runtime_lib
from ftbnn_jax.errors import UserError
from ftbnn_jax.graph import lower, passes, trace, walk
from ftbnn_jax.report import console, print_json

# What float32 rounds differently where the same sums are taken in another order, relative to the largest
# number of an image's result.
ROUNDING = 1e-5

# How far from an integer the sum of a product of signs may be, where it is computed otherwise than by
# adding up.
_CLOSE = 0.1


@dataclasses.dataclass
class LayerResult:
    """Comparison of one binary product, over all images.

    Attributes:
      name: of the layer.
      form: of the packed product, one of `ops.packed.convolution.FORMS`.
      compared: integers compared.
      differing: integers that differ.
      inputs: activations that entered the product.
      zeros: how many of them were exactly 0.
    """

    name: str
    form: str
    compared: int = 0
    differing: int = 0
    inputs: int = 0
    zeros: int = 0


@dataclasses.dataclass
class Result:
    """Outcome of a verification.

    Attributes:
      layers: one entry a binary product.
      images: images compared.
      pixels: pixel values that the runtime made of stored images and that were compared.
      pixels_differing: how many of them are not evaluation's.
      not_finite: images with a number in the result that is not finite, in either.
      agreeing: images with the same top-1 class in both.
      logit_error: largest difference of a result, relative to the largest of the image.
      logit_share: largest difference of a result, relative to what the classifier's 16 bits and
        `ROUNDING` explain.
      deviation: largest difference between a straight-through estimator, a sum, and the sign that it
        stands for.
    """

    layers: list[LayerResult]
    images: int = 0
    pixels: int = 0
    pixels_differing: int = 0
    not_finite: int = 0
    agreeing: int = 0
    logit_error: float = 0.0
    logit_share: float = 0.0
    deviation: float = 0.0

    @property
    def packed(self) -> int:
        """Binary products."""
        return len(self.layers)

    @property
    def compared(self) -> int:
        """Integers compared, over all products."""
        return sum(layer.compared for layer in self.layers)

    @property
    def differing(self) -> int:
        """Integers that differ, over all products."""
        return sum(layer.differing for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as values that JSON can hold."""
        return {**dataclasses.asdict(self), "differing": self.differing}


class _Program:
    """The network's own program, and how its products meet the packed ones."""

    def __init__(self, function: Callable[..., Any], variables: Any, runtime: runtime_lib.Runtime):
        self._function, self._variables = function, variables
        artifact = runtime.artifact
        graph = artifact.graph
        self._example = jax.ShapeDtypeStruct((1, *graph.shape[1:]), graph.dtype)
        lowered = lower.lower(trace.trace(function, variables, self._example))
        wanted = [_geometry(node) for node in graph.binary_products()]
        for scaled in (False, True):
            self.packed = passes.pack(lowered, scaled_kernels=scaled)
            found = [_geometry(node) for node in self.packed.graph.binary_products()]
            if found == wanted:
                break
        else:
            raise UserError("packed from another network: its binary products are not this network's")
        # The artifact's own kernels, in the place of those of the network.
        own = zip(self.packed.graph.binary_products(), graph.binary_products(), strict=True)
        bits = {mine.inputs[1]: graph.tensors[theirs.inputs[1]] for mine, theirs in own}
        tensors = {**self.packed.graph.tensors, **bits}
        self._graph = dataclasses.replace(self.packed.graph, tensors=tensors)
        self._tensors = runtime_lib.prepare(self._graph)
        self._sixteen = any(tensor.dtype == np.int16 for tensor in graph.tensors.values())

    @functools.cache  # noqa: B019
    def compiled(self, batch: int) -> Callable[..., Any]:
        """Returns what runs and compares one batch of that many images."""
        traced = trace.trace(self._function, self._variables, self._example, batch)
        return jax.jit(functools.partial(self._run, traced, batch))

    def _run(self, traced: trace.Traced, batch: int, images: jax.Array) -> dict[str, Any]:
        seen: dict[int, tuple[Any, Any, Any]] = {}
        deviation = jnp.float32(0)
        steps, (result,) = walk.collect(traced.run(images))
        logits, number = result.numbers, 0
        for step in steps:
            if lower.is_product(step):
                seen[number] = (*(x.numbers for x in step.operands), step.results[0].numbers)
                number += 1
            if step.replaced is not None:
                gap = jnp.abs(step.results[0].numbers - step.replaced.numbers)
                deviation = jnp.maximum(deviation, gap.max().astype(jnp.float32))
        layers = [self._compare(check, seen, batch) for check in self.packed.checks]
        return {
            "logits": logits,
            "layers": layers,
            "explained": self._explained(seen, logits),
            "deviation": deviation,
        }

    def _compare(self, check: passes.Check, seen: dict[int, Any], batch: int) -> tuple[Any, ...]:
        """Returns how many integers differ, of how many, and activations at 0, of how many."""
        inputs, results = [], []
        for product in check.products:
            x, y, result = seen[product.number]
            inputs.append(product.operands(x, y)[0])
            results.append(product.result(result))
        x, own = jnp.concatenate(inputs, -1), jnp.concatenate(results, -1).astype(jnp.float32)
        part = self._graph.between(check.source, check.result)
        packed = part.run(x.astype(jnp.float32), self._tensors, batch=batch).astype(jnp.float32)
        sums = own if check.scale is None else own / check.scale
        # A GPU's convolutions of real numbers may transform what they sum, and a scale rounds: the sums
        # stand for integers that they are close to.
        whole = jnp.rint(sums)
        differing = (packed != whole) | (jnp.abs(sums - whole) > _CLOSE)
        return jnp.sum(differing), own.size, jnp.sum(x == 0), x.size

    def _explained(self, seen: dict[int, Any], logits: jax.Array) -> jax.Array:
        """How far each result can be off because of the classifier's 16 bits."""
        product = self.packed.classifier
        if product is None or not self._sixteen:
            return jnp.zeros(logits.shape)
        x, y, _ = seen[product.number]
        x, _ = product.operands(x, y)
        (axis,) = product.node.attributes["contracting"][1]
        multiples, scale = passes.quantize(product.fixed, axis)
        rounding = np.abs(multiples * scale.astype(np.float64) - product.fixed)
        contracting = product.node.attributes["contracting"]
        return jax.lax.dot_general(
            jnp.abs(x).astype(jnp.float32), jnp.asarray(rounding, jnp.float32), (contracting, ((), ()))
        ).reshape(logits.shape)


def _geometry(node: Any) -> dict[str, Any]:
    return {"op": node.op, **{k: v for k, v in node.attributes.items() if k != "dtype"}}


def verify(
    function: Callable[[Any, Any], Any], variables: Any, artifact: Any, batches: Iterable[Any]
) -> Result:
    """Compares a network with what it was packed to.

    Args:
      function: of `(variables, images)`, as it was given to `pack`.
      variables: likewise.
      artifact: from `pack` or `artifact.load`.
      batches: of images, as the function takes them; few sizes of batches are compiled few times.

    Raises:
      UserError: the artifact is of another network.
    """
    runtime = artifact if isinstance(artifact, runtime_lib.Runtime) else runtime_lib.Runtime(artifact)
    program = _Program(function, variables, runtime)
    packed = program.packed
    nodes = {node.name: node for node in packed.graph.nodes}
    result = Result(
        [
            LayerResult(nodes[c.node].layer or c.node, nodes[c.node].attributes["form"])
            for c in packed.checks
        ]
    )
    for images in batches:
        images = np.asarray(images)
        if images.shape[:1] != (0,):
            _add(result, program, runtime, images)
    return result


def _add(result: Result, program: _Program, runtime: runtime_lib.Runtime, images: np.ndarray) -> None:
    with _whole_products():
        # The runtime looks first whether the network can take such images at all.
        packed = np.asarray(runtime(images), np.float64)
        found = jax.device_get(program.compiled(len(images))(images))
    for layer, counts in zip(result.layers, found["layers"], strict=True):
        differing, compared, zeros, inputs = map(int, counts)
        layer.differing += differing
        layer.compared += compared
        layer.zeros += zeros
        layer.inputs += inputs
    own = np.asarray(found["logits"], np.float64)
    result.images += len(images)
    result.deviation = max(result.deviation, float(found["deviation"]))
    rows, count = own.reshape(len(own), -1), len(own)
    packed, explained = packed.reshape(count, -1), found["explained"].reshape(count, -1)
    finite = np.isfinite(rows).all(-1) & np.isfinite(packed).all(-1)
    result.not_finite += int((~finite).sum())
    rows, packed, explained = rows[finite], packed[finite], explained[finite]
    result.agreeing += int((rows.argmax(-1) == packed.argmax(-1)).sum())
    gap, largest = np.abs(rows - packed), np.abs(rows).max(-1, keepdims=True, initial=0)
    tiny = np.finfo(np.float32).tiny
    _keep_largest(result, "logit_error", gap / np.maximum(largest, tiny))
    _keep_largest(result, "logit_share", gap / np.maximum(explained + ROUNDING * largest, tiny))


def _keep_largest(result: Result, name: str, values: np.ndarray) -> None:
    setattr(result, name, max(getattr(result, name), float(values.max(initial=0.0))))


def _whole_products() -> contextlib.AbstractContextManager[None]:
    """Accelerators round the factors of float32 products unless they are told not to; a CPU does not."""
    on_cpu = jax.default_backend() == "cpu"
    return contextlib.nullcontext() if on_cpu else jax.default_matmul_precision("highest")


def run(
    path: str,
    config: TrainConfig,
    variables: dict[str, Any],
    batches: Iterable[dict[str, np.ndarray]],
    as_json: bool = False,
) -> int:
    """Verifies the artifact at `path`, prints a report, and returns 1 if it fails, else 0.

    It fails where a pixel or an integer differs, a logit is not finite, or it is further from the
    network's than its 16 bits and rounding explain. A network that computes in less than float32 rounds
    its logits itself: there the bound does not count.

    Args:
      path: of the artifact.
      config: of the run.
      variables: of the training graph.
      batches: uint8 `image`, the pixels that evaluation sees, and `weight`; images of weight 0 are left
        out. Where there is `decoded`, the images as they are stored, uint8 `[H, W, C]` each, the
        runtime's own pixels are compared with `image`.
      as_json: prints one JSON object instead of the table.

    Raises:
      UserError: the artifact is missing, damaged, or of another network.
    """
    runtime = runtime_lib.Runtime.load(path)
    export.described(config, runtime.artifact.channels).check(path, runtime.artifact)
    function = export.network(config, config.compute_dtype)
    pixels = pixel_values.Pixels(runtime.pixels)
    try:
        result = verify(function, variables, runtime, pixels.checked(batches))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    result.pixels, result.pixels_differing = pixels.compared, pixels.differing
    if as_json:
        print_json(result.to_dict())
    else:
        _print(result)
    failures = list(_failures(result, config.compute_dtype == "float32"))
    for failure in failures:
        print(f"error: {path}: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _failures(result: Result, bounded: bool) -> Iterator[str]:
    """Says what is wrong, a line each; `bounded`: whether logits must lie within their bound."""
    yield from pixel_values.failures(result.pixels, result.pixels_differing)
    for layer in result.layers:
        if layer.differing:
            yield (
                f"{layer.name}: {layer.differing:,} of {layer.compared:,} integers differ from the "
                "training graph's"
            )
    if result.not_finite:
        yield f"logits are not finite on {result.not_finite:,} of {result.images:,} images"
    if bounded and result.logit_share > 1:
        yield (
            f"logits differ from the training graph's by {result.logit_share:.2g} times what the "
            f"classifier's 16 bits explain; top-1 agrees on {result.agreeing:,} of {result.images:,} "
            "images"
        )


def _print(result: Result) -> None:
    table = rich.table.Table(title=f"Verified on {result.images:,} test images", title_justify="left")
    for header in ("binary convolution", "form", "inputs that are 0", "integers compared", "differing"):
        left = header in ("binary convolution", "form")
        table.add_column(header, justify="left" if left else "right")
    for layer in result.layers:
        table.add_row(
            layer.name,
            layer.form,
            f"{layer.zeros / max(1, layer.inputs):.2%}",
            f"{layer.compared:,}",
            f"{layer.differing:,}",
        )
    compared = sum(layer.compared for layer in result.layers)
    table.add_section()
    table.add_row("all", "", "", f"{compared:,}", f"{result.differing:,}")
    console.print(table)
    console.print(
        f"end to end: top-1 agrees on {result.agreeing:,} of {result.images:,} images, largest relative "
        f"logit difference {result.logit_error:.1e}, {result.logit_share:.0%} of what the classifier's "
        "16 bits explain"
    )
    pixel_values.show(result.pixels, result.pixels_differing)
