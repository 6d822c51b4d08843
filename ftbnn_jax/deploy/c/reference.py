"""What an exported program is compared with, and what fixed point loses of it."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from ftbnn_jax import report
from ftbnn_jax.deploy import artifact as artifact_lib
from ftbnn_jax.deploy.c import (
    arithmetic,
    fixed_point,
    golden,
    integer_layers,
    lowering,
    operations,
    quantized,
    schedule,
)
from ftbnn_jax.deploy.c.emulator import Emulator, Note, Trace
from ftbnn_jax.deploy.c.options import DEFAULT, Options
from ftbnn_jax.errors import UserError
from ftbnn_jax.graph import ir

# As many names as a line holds.
_NAMES = 4
_WARNED_SHARE = 1e-3


@dataclasses.dataclass
class Losses:
    """What fixed point has lost on some images, each by name; empty in single precision.

    Attributes:
      images: how many there were.
      saturated: on how many of them a value left the range, by the names of `emulator.Trace`.
      lost_signs: signs that became 0, since a value is less than half a unit, by binary convolution,
        and under `logits`.
      signs: all signs, likewise.
      zeroed_parameters: factors and slopes that became 0, by tensor.
      too_large: values that may leave their range on some image, and how large they may become; none if
        that is proven of no image.
      cut: real layers in integers that may cut off what they read on some image, and how large that may
        be; none likewise.
      integers: of all binary convolutions.
      turned: integers that are others than in single precision, since a sign turned.
      agreeing: images with the same class as there.
    """

    images: int = 0
    saturated: dict[str, int] = dataclasses.field(default_factory=dict)
    lost_signs: dict[str, int] = dataclasses.field(default_factory=dict)
    signs: dict[str, int] = dataclasses.field(default_factory=dict)
    zeroed_parameters: dict[str, int] = dataclasses.field(default_factory=dict)
    too_large: dict[str, float] = dataclasses.field(default_factory=dict)
    cut: dict[str, float] = dataclasses.field(default_factory=dict)
    integers: int = 0
    turned: int = 0
    agreeing: int = 0

    def add(self, single: Trace, program: Trace, fraction_bits: int | None) -> None:
        """Counts the losses of a batch but for signs, given its traces and fixed point's bits."""
        self.images += len(program.logits)
        _add(self.saturated, images_outside(program))
        pairs = zip(single.records, program.records, strict=True)
        self.turned += sum(int(np.sum(x != y)) for (_, x), (_, y) in pairs)
        self.integers += sum(sums.size for _, sums in program.records)
        self.agreeing += int(np.sum(single.logits.argmax(-1) == program.logits.argmax(-1)))
        if fraction_bits is None:
            return
        logits = single.logits
        lost = (np.abs(logits) >= np.finfo(np.float32).tiny) & (
            np.rint(logits * 2.0**fraction_bits) == 0
        )
        _add(self.lost_signs, {"logits": int(lost.sum())})
        _add(self.signs, {"logits": logits.size})

    def lines(self, least_share: float = 0.0) -> Iterator[tuple[str, str]]:
        """Yields what there is to say, the kind of a loss, and where it is how large.

        Args:
          least_share: of a convolution's signs, below which those that became 0 are left out.
        """
        if self.too_large:
            found = {name: f"up to {size:.2g}" for name, size in self.too_large.items()}
            yield "may overflow on some image", _listed(found)
        # Such a range is chosen, with room to spare, and no more than that by itself.
        if self.cut and not least_share:
            found = {name: f"up to {size:.2g}" for name, size in self.cut.items()}
            yield "inputs of real layers that may be cut on some image", _listed(found)
        if self.saturated:
            of = {name: f"on {n:,} of {self.images:,} images" for name, n in self.saturated.items()}
            yield "saturated", _listed(of)
        lost = {n: c for n, c in self.lost_signs.items() if c >= least_share * self.signs[n]}
        if lost:
            yield (
                "signs that became 0",
                _listed({n: f"{c:,} of {self.signs[n]:,}" for n, c in lost.items()}),
            )
        if self.zeroed_parameters:
            yield "parameters that became 0", _listed(self.zeroed_parameters)

    def differences(self) -> Iterator[tuple[str, str]]:
        """Yields what differs from the network in single precision, likewise."""
        if self.images:
            yield (
                "integers that differ from single precision's",
                f"{self.turned:,} of {self.integers:,}, and the class on "
                f"{self.images - self.agreeing:,} of {self.images:,} images",
            )

    def to_json(self) -> dict[str, object]:
        """Returns all of it, and whether it is proven that no image can overflow."""
        return {"proven": not self.too_large and not self.cut, "losses": dataclasses.asdict(self)}

    def warn(self, folder: object) -> None:
        """Prints on standard error what may cost accuracy.

        A value within half a unit of 0 now and then is no more than rounding.
        """
        for kind, where in self.lines(_WARNED_SHARE):
            arithmetic_of = "fixed point" if self.signs else "real layers in integers"
            report.warn(f"{folder}: {arithmetic_of}: {kind}: {where}")


def _add(counts: dict[str, int], found: dict[str, int]) -> None:
    for name, count in found.items():
        if count:
            counts[name] = counts.get(name, 0) + count


def _listed(found: Mapping[str, object]) -> str:
    shown = [f"{name} {what}" for name, what in itertools.islice(found.items(), _NAMES)]
    others = [f"and {len(found) - _NAMES} more"] if len(found) > _NAMES else []
    return ", ".join(shown + others)


def images_outside(trace: Trace) -> dict[str, int]:
    """Returns on how many images a value left its range, by name; without those that never did."""
    counts = {name: int(outside.sum()) for name, outside in trace.outside.items()}
    return {name: count for name, count in counts.items() if count}


class Reference:
    """Both arithmetics of a network, and the one of its program.

    Args:
      artifact: the packed network.
      options: what shapes the program.

    Attributes:
      network: its layers.
      losses: of fixed point, on all images so far.
      fraction_bits: of the results; None in single precision.

    Raises:
      UserError: the C program has no such layer, or a parameter does not fit into fixed point.
    """

    def __init__(self, artifact: artifact_lib.Artifact, options: Options = DEFAULT):
        self.network = quantized.lower(artifact, options)
        self.losses = Losses()
        names = arithmetic.Names(set())
        real = lowering.lower(artifact)
        self._single = self._program = Emulator(real, arithmetic.SinglePrecision(real, names))
        if self.network.layers:
            numbers = arithmetic.SinglePrecision(self.network, names)
            self._program = Emulator(self.network, numbers)
        self._quantized: fixed_point.FixedPoint | None = None
        self.fraction_bits: int | None = None
        self._compared = _comparisons(self.network)
        if options.fraction_bits is not None:
            self._quantized = fixed_point.quantize(self.network, options.fraction_bits, names)
            self.fraction_bits = self._quantized.bits_of(self.network.graph.output)
            self._program = Emulator(self.network, self._quantized)
            self.losses.zeroed_parameters = self._quantized.zeroed
            self.losses.too_large = self._quantized.too_large
            self.losses.cut = self._quantized.cut

    def traces(
        self, images: np.ndarray, note: Note = lambda node, operands, result: None
    ) -> tuple[Trace, Trace]:
        """Runs a batch, of the graph's dtype, and notes what it loses.

        Args:
          images: `[N, ...]`.
          note: is shown every node in single precision.

        Returns:
          The trace in single precision, and the program's, which may be the same.
        """

        def counted(node, operands, result):
            note(node, operands, result)
            if self._quantized is not None and node.name in self._compared:
                self._count_signs(node, operands, result)

        single = self._single.trace(images, counted)
        if self._program is self._single:
            return single, single
        program = self._program.trace(images)
        self.losses.add(single, program, self.fraction_bits)
        return single, program

    def _count_signs(self, node, operands, result):
        """Counts what a comparison says otherwise of a number that is rounded to a fraction."""
        rounded = [
            np.float32(np.rint(x / unit) * unit) if x.ndim > 1 else x
            for x, unit in zip(operands, map(self._unit, node.inputs), strict=True)
        ]
        turned = operations.elementwise(node, rounded, result.dtype) != result
        for product in self._compared[node.name]:
            _add(self.losses.lost_signs, {product: int(turned.sum())})
            _add(self.losses.signs, {product: turned.size})

    def _unit(self, name):
        return 2.0 ** -self._quantized.bits_of(name) if name in self._quantized.ranges else 1.0

    def program_logits(self, images: np.ndarray) -> np.ndarray:
        """Returns what the program gives for a batch, `[N, results]`."""
        return self._program.trace(images).logits

    def golden(self, images: np.ndarray) -> bytes:
        """Returns the golden vectors of a batch.

        Raises:
          UserError: a value is not finite, or a sum may not fit into 16 bits.
        """
        single, program = self.traces(images)
        _check_finite(single)
        return golden.pack(self.network, images, program.records, program.logits)


def _comparisons(network: schedule.Network) -> dict[str, list[str]]:
    """Returns the nodes that decide signs, with the names of the binary products that read these."""
    found: dict[str, list[str]] = {}
    for product in network.products:
        waiting = [product.node.inputs[0]]
        while waiting:
            node = network.nodes.get(waiting.pop())
            if node is not None and node.op in ("compare", "sign"):
                found.setdefault(node.name, []).append(product.name)
            elif node is not None and node.op not in ir.BINARY:
                waiting += node.inputs
    return found


def calibrated(
    artifact: artifact_lib.Artifact,
    options: Options,
    with_fixed_point: bool,
    batches: Iterable[np.ndarray],
) -> Options:
    """Returns options with the bits that suit a network: of fractions, and of what real layers read.

    Fractions have those with which no image can overflow it. Where that cannot be proven, they have
    those that leave room to what is seen on some images: see `fixed_point.choose_fraction_bits`. For
    what real layers read see `integer_layers`.

    Args:
      artifact: the packed network.
      options: what shapes its program.
      with_fixed_point: whether its real numbers are integers.
      batches: of the graph's dtype, `[N, ...]` each; read only where something is seen on them.

    Raises:
      UserError: a value is not finite.
    """
    network = lowering.lower(artifact, options.real_bits)
    layers = {node.name for node in integer_layers.nodes(network)}
    proven = with_fixed_point and fixed_point.is_proven(lowering.lower(artifact))
    if proven:
        options = dataclasses.replace(options, fraction_bits=fixed_point.PROVEN_BITS)
    if not layers and (proven or not with_fixed_point):
        return options
    reference = Reference(artifact)
    inputs: dict[str, float] = {}
    largest: dict[str, float] = {}

    def note(node, operands, result):
        del result
        if node.name in layers:
            inputs[node.name] = max(inputs.get(node.name, 0.0), float(np.abs(operands[0]).max()))

    for images in batches:
        trace, _ = reference.traces(images, note)
        _check_finite(trace)
        for name, values in trace.largest.items():
            largest[name] = max(largest.get(name, 0.0), float(values.max()))
    if with_fixed_point and not proven:
        fraction_bits = fixed_point.choose_fraction_bits(reference.network, largest)
        options = dataclasses.replace(options, fraction_bits=fraction_bits)
    bits = integer_layers.input_bits(network, inputs, with_fixed_point)
    return dataclasses.replace(options, input_bits=bits)


def calibrate(artifact: artifact_lib.Artifact, batches: Iterable[np.ndarray]) -> int:
    """Returns the fraction bits of a network; see `calibrated`."""
    return calibrated(artifact, DEFAULT, True, batches).fraction_bits


def _check_finite(single: Trace) -> None:
    for name, count in images_outside(single).items():
        raise UserError(
            f"{name}: not finite on {count:,} of {len(single.logits):,} images; the network's numbers "
            "are too large"
        )
