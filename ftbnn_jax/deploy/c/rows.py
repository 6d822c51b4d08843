"""Kernels that are loops themselves, as C text: windows, reductions, copies, products of two results."""

from collections.abc import Callable

import numpy as np

from ftbnn_jax.deploy.c import operations
from ftbnn_jax.deploy.c.frame import Frame, indent, nested, offset_of
from ftbnn_jax.deploy.c.views import strides_of
from ftbnn_jax.graph import ir

_SUMS = ("window_sum", "reduce_sum")


class Rows:
    """Writes what gives one row after another.

    Args:
      frame: the loop.
    """

    def __init__(self, frame: Frame):
        self._frame = frame
        self._network = frame.network
        self._arithmetic = frame.arithmetic

    def text(self, kernel: ir.Node) -> str:
        """Returns what computes `row`."""
        write: Callable[[ir.Node], str] = {
            "concatenate": self._concatenate,
            "pad": self._pad,
            "take": self._take,
            "argmax": self._argmax,
            "dot": self._dot,
        }.get(kernel.op, self._fold)
        return f"{self._row(kernel)}{write(kernel)}"

    def _row(self, kernel: ir.Node) -> str:
        if self._network.shapes[kernel.name].dtype.name not in operations.REAL:
            return "int32_t *restrict row = m->scratch->sums;\n"
        kind = self._arithmetic.row_type(kernel)
        pool = "values" if kind == self._arithmetic.value_type else "wide"
        return f"{kind} *restrict row = m->scratch->{pool};\n"

    def _fold(self, kernel: ir.Node) -> str:
        kind, x, shape = self._frame.source(kernel)
        a, is_max = kernel.attributes, kernel.op.endswith("max")
        indices = self._frame.indices()
        # Variable, count, definition and check of each.
        loops: list[tuple[str, str, str, str]] = []
        at: list[str] = []
        if kernel.op.startswith("reduce"):
            left = iter(indices)
            for axis, n in enumerate(shape):
                if axis in a["axes"]:
                    loops.append((f"k{axis}", str(n), "", ""))
                    at.append(f"k{axis}")
                else:
                    at.append(next(left))
        else:
            for axis, (n, window, stride, (low, high)) in enumerate(
                zip(shape, a["window"], a["strides"], a["padding"], strict=True)
            ):
                if window == 1 and stride == 1 and not low and not high:
                    at.append(indices[axis])
                    continue
                position = f"{indices[axis]} * {stride} - {low} + k{axis}"
                check = f"if (j{axis} < 0 || j{axis} >= {n}) continue;"
                loops.append((f"k{axis}", str(window), f"const int j{axis} = {position};", check))
                at.append(f"j{axis}")
        start = self._arithmetic_start(kernel, is_max)
        strides = strides_of(shape)
        vector = at[-1] == "c" and strides[-1] == 1
        step = "row[c] = in[c] > row[c] ? in[c] : row[c];" if is_max else "row[c] += in[c];"
        terms = [f"{i} * {s}" for i, s in zip(at, strides, strict=True)]
        if vector:
            offset = " + ".join(terms[:-1]) or "0"
            each = f"for (int c = 0; c < {self._frame.width}; c++) "
            inner = f"const {kind} *restrict in = {x} + {offset};\n{each}{step}\n"
            return f"{each}row[c] = {start};\n{nested(loops, inner)}"
        inner = f"const {kind} *in = {x} + {' + '.join(terms)};\n{step.replace('in[c]', 'in[0]')}\n"
        body = f"row[c] = {start};\n" + nested(loops, inner)
        return f"for (int c = 0; c < {self._frame.width}; c++) {{\n{indent(body, 2)}}}\n"

    def _arithmetic_start(self, kernel: ir.Node, is_max: bool) -> str:
        if not is_max:
            return "0"
        dtype = self._network.shapes[kernel.name].dtype
        if dtype.name in operations.REAL:
            return "FTBNN_LOWEST"
        return str(int(operations.lowest(np.dtype(dtype)))) if dtype.name != "int32" else "INT32_MIN"

    def _concatenate(self, kernel: ir.Node) -> str:
        axis = kernel.attributes["axis"]
        last = axis == len(self._frame.shape) - 1
        lines, start = [], 0
        for i in range(len(kernel.inputs)):
            _, x, shape = self._frame.source(kernel, i)
            if last:
                element = self._joined(kernel, i, f"{x}[at * {shape[-1]} + c]")
                lines.append(f"for (int c = 0; c < {shape[-1]}; c++) row[{start} + c] = {element};\n")
            else:
                indices = self._frame.indices()[:-1]
                indices[axis] = f"(i{axis} - {start})"
                strides = strides_of(shape)[:-1]
                offset = offset_of(indices, strides)
                element = self._joined(kernel, i, f"{x}[{offset} + c]")
                lines.append(
                    f"if (i{axis} >= {start} && i{axis} < {start + shape[axis]}) {{\n"
                    f"  for (int c = 0; c < {shape[-1]}; c++) row[c] = {element};\n}}\n"
                )
            start += shape[axis]
        return "".join(lines)

    def _joined(self, kernel: ir.Node, i: int, text: str) -> str:
        return self._arithmetic.joined(kernel, kernel.inputs[i], text)

    def _pad(self, kernel: ir.Node) -> str:
        _, x, shape = self._frame.source(kernel)
        edges = kernel.attributes["edges"]
        indices = self._frame.indices()
        value = self._scalar(kernel, 1)
        checks, at = [], []
        for axis, (n, (low, _, between)) in enumerate(zip(shape, edges, strict=True)):
            if axis == len(shape) - 1:
                break
            moved = f"({indices[axis]} - {low})" if low else indices[axis]
            if between:
                checks.append(f"{moved} % {between + 1} == 0")
                moved_at = f"{moved} / {between + 1}"
            else:
                moved_at = moved
            checks.append(f"{moved} >= 0 && {moved_at} < {n}")
            at.append(f"({moved_at}) * {strides_of(shape)[axis]}")
        low, _, between = edges[-1]
        place, source = f"{low} + j * {between + 1}", " + ".join([*at, "j"])
        return (
            f"for (int c = 0; c < {self._frame.width}; c++) row[c] = {value};\n"
            f"if ({' && '.join(checks) or '1'}) {{\n"
            f"  for (int j = 0; j < {shape[-1]}; j++) {{\n"
            f"    const int to = {place};\n"
            f"    if (to >= 0 && to < {self._frame.width}) row[to] = {x}[{source}];\n  }}\n}}\n"
        )

    def _scalar(self, kernel: ir.Node, i: int) -> str:
        root = self._network.read(kernel, kernel.inputs[i]).root
        if root in self._network.constants:
            return self._arithmetic.literal(kernel, root)
        return f"({self._frame.base(kernel, root)})[0]"

    def _take(self, kernel: ir.Node) -> str:
        _, x, shape = self._frame.source(kernel)
        _, places, count = self._frame.source(kernel, 1)
        axis = kernel.attributes["axis"]
        indices = self._frame.indices()
        # The axis becomes those of the places.
        which = indices[axis : axis + len(count)]
        flat = " + ".join(f"{i} * {s}" for i, s in zip(which, strides_of(count), strict=True)) or "0"
        at = [*indices[:axis], "from", *indices[axis + len(count) :]]
        offset = " + ".join(f"{i} * {s}" for i, s in zip(at, strides_of(shape), strict=True))
        return (
            f"for (int c = 0; c < {self._frame.width}; c++) {{\n"
            f"  int from = {places}[{flat}];\n"
            f"  from = from < 0 ? 0 : from > {shape[axis] - 1} ? {shape[axis] - 1} : from;\n"
            f"  row[c] = {x}[{offset}];\n}}\n"
        )

    def _argmax(self, kernel: ir.Node) -> str:
        kind, x, shape = self._frame.source(kernel)
        axis = kernel.attributes["axis"]
        at = self._frame.indices()
        at.insert(axis, "k")
        strides = strides_of(shape)
        offset = " + ".join(f"{i} * {s}" for i, s in zip(at, strides, strict=True) if i != "k")
        return (
            f"for (int c = 0; c < {self._frame.width}; c++) {{\n"
            f"  const {kind} *in = {x} + {offset or 0};\n  row[c] = 0;\n"
            f"  for (int k = 1; k < {shape[axis]}; k++) {{\n"
            f"    if (in[k * {strides[axis]}] > in[row[c] * {strides[axis]}]) row[c] = k;\n  }}\n}}\n"
        )

    def _dot(self, kernel: ir.Node) -> str:
        _, pointers, shapes = zip(*(self._frame.source(kernel, i) for i in range(2)), strict=True)
        (of_x, of_y), (batch_x, batch_y) = (kernel.attributes[k] for k in ("contracting", "batch"))
        indices = iter(self._frame.indices())
        at: list[dict[int, str]] = [{}, {}]
        for a, b in zip(batch_x, batch_y, strict=True):
            at[0][a] = at[1][b] = next(indices)
        loops = []
        for i, (a, b) in enumerate(zip(of_x, of_y, strict=True)):
            at[0][a] = at[1][b] = f"k{i}"
            loops.append((f"k{i}", str(shapes[0][a]), "", ""))
        for known, shape in zip(at, shapes, strict=True):
            for axis in range(len(shape)):
                if axis not in known:
                    known[axis] = next(indices)
        terms = []
        for known, shape, pointer in zip(at, shapes, pointers, strict=True):
            offset = offset_of([known[axis] for axis in range(len(shape))], strides_of(shape))
            terms.append(f"{pointer}[{offset}]")
        inner = f"sum += {self._arithmetic.multiplied(*terms)};\n"
        body = "ftbnn_sum sum = 0;\n" + nested(loops, inner) + "row[c] = sum;\n"
        return f"for (int c = 0; c < {self._frame.width}; c++) {{\n{indent(body, 2)}}}\n"
