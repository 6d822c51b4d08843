"""The loops of a network as C text."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ftbnn_jax.deploy.c import operations, schedule, tables
from ftbnn_jax.deploy.c.schedule import Loop, Network, Product, View
from ftbnn_jax.graph import ir

_FORMS = {"xnor": "FTBNN_XNOR", "and": "FTBNN_AND", "ternary": "FTBNN_TERNARY"}
_SUMS = ("window_sum", "reduce_sum")


class Arithmetic(Protocol):
    """How numbers are computed in C.

    Attributes:
      tables: the constants that the text reads, by name in C.
    """

    tables: dict[str, tables.Table]

    def literal(self, reader: ir.Node, name: str) -> str:
        """Returns the text of a constant that is one number."""

    def table(self, reader: ir.Node, name: str) -> str:
        """Returns the name in C of a constant array."""

    def loaded(self, kernel: ir.Node, text: str) -> tuple[str, str]:
        """Returns type and text of an element of a kernel's row."""

    def value(self, node: ir.Node, operands: Sequence[str]) -> tuple[str, str]:
        """Returns type and text of an elementwise operation."""

    def joined(self, node: ir.Node, name: str, text: str) -> str:
        """Returns the text of an element that a concatenation reads."""

    def fields(self, kernel: ir.Node) -> dict[str, str]:
        """Returns fields of a real convolution that are this arithmetic's."""

    def pixels(self, kernel: ir.Node) -> str:
        """Returns the name of the table of pixels that a convolution reads."""


def convs(network: Network, names: Mapping[str, str]) -> str:
    """Returns the definitions of the binary products."""
    groups, entries = [], []
    for i, product in enumerate(network.products):
        pairs = zip(product.group_inputs, product.group_outputs, strict=True)
        listed = tables.wrapped(", ".join(f"{{{a}, {b}}}" for a, b in pairs), 4)
        groups.append(f"static const ftbnn_group groups_{i}[] = {{\n{listed}}};\n")
        entries.append(
            f"    /* {_comment(_describe(product))} */\n    {{{_product(product, i, names)}}},\n"
        )
    return f"{''.join(groups)}\nconst ftbnn_conv ftbnn_convs[FTBNN_BLOCKS] = {{\n{''.join(entries)}}};\n"


def _describe(product: Product) -> str:
    height, width = product.plane_shape
    out_height, out_width = product.out_shape
    groups = "1 group" if len(product.group_inputs) == 1 else f"{len(product.group_inputs)} groups"
    kernel, strides = (
        "x".join(map(str, pair)) for pair in (product.geometry.kernel_size, product.geometry.strides)
    )
    return (
        f"{product.name}: {height}x{width}x{product.shape[-1]} -> {out_height}x{out_width}x"
        f"{product.features}, {groups}, kernel {kernel}, stride {strides}, {product.form}; "
        f"{product.multiply_adds:,} binary multiply-adds"
    )


def _product(product: Product, index: int, names: Mapping[str, str]) -> str:
    conv = product.geometry
    pairs = {
        ("height", "width"): product.plane_shape,
        ("out_height", "out_width"): product.out_shape,
        ("kernel_height", "kernel_width"): conv.kernel_size,
        ("stride_y", "stride_x"): conv.strides,
        ("dilation_y", "dilation_x"): conv.dilation,
        ("top", "left"): tuple(low for low, _ in conv.padding),
    }
    values: dict[str, object] = {
        name: value for pair in pairs.items() for name, value in zip(*pair, strict=True)
    }
    values |= {"features": product.features, "form": _FORMS[product.form]}
    values |= {"groups": len(product.group_inputs), "group": f"groups_{index}"}
    values["weights"] = names[product.node.inputs[1]]
    return tables.wrapped(_initialisers(values), 5).lstrip()


def _initialisers(values: Mapping[str, object]) -> str:
    return ", ".join(f".{name} = {value}" for name, value in values.items())


def _comment(text: str) -> str:
    """Returns text that cannot end a comment."""
    return re.sub(r"[^\w .,:;>+()-]", "/", text.replace("*/", "//"), flags=re.ASCII)


class Text:
    """Writes the loops.

    Args:
      network: what to write.
      arithmetic: how.
    """

    def __init__(self, network: Network, arithmetic: Arithmetic):
        self._network = network
        self._arithmetic = arithmetic
        self._index = {product.node.name: i for i, product in enumerate(network.products)}

    def functions(self) -> str:
        """Returns a function a loop, and the one that calls them all."""
        calls = [f"  run_{i}(m);\n" for i in range(len(self._network.loops))]
        found = [self._function(i, loop) for i, loop in enumerate(self._network.loops)]
        return "\n".join(found) + f"\nstatic void run(const memory *m) {{\n{''.join(calls)}}}\n"

    def _function(self, index: int, loop: Loop) -> str:
        body = _Body(self._network, self._arithmetic, loop, self._index)
        text = body.text()
        comment = _comment(f"{index}. {schedule.layers(loop)}")
        head = f"{body.constants(index)}/* {comment} */\n"
        return f"{head}static void run_{index}(const memory *m) {{\n{text}}}\n"


class _Body:
    """The function of one loop."""

    def __init__(self, network: Network, arithmetic: Arithmetic, loop: Loop, index: Mapping[str, int]):
        self._network = network
        self._arithmetic = arithmetic
        self._loop = loop
        self._index = index
        self._conv = None
        self._needs_places = False
        self._flat = self._is_flat()
        self._shape = (math.prod(loop.shape),) if self._flat else loop.shape

    # Sizes.

    def _is_flat(self) -> bool:
        """Whether all rows are one: nothing but elements in order."""
        loop = self._loop
        if loop.kernel is not None or loop.packs:
            return False
        for node in loop.nodes:
            for name in node.inputs:
                if self._local(name) and node.op != schedule.COPY:
                    continue
                view = self._network.read(node, name)
                if math.prod(view.shape) != 1 and not (view.in_order and view.shape == loop.shape):
                    return False
        return True

    def _local(self, name: str) -> bool:
        return any(node.name == name for node in self._loop.results())

    @property
    def _positions(self) -> int:
        return math.prod(self._shape[:-1])

    @property
    def _width(self) -> int:
        return self._shape[-1]

    # Text.

    def text(self) -> str:
        loop = self._loop
        kernel = loop.kernel
        if kernel is None:
            inner = self._after("")
            return self._loop_over_rows("", inner)
        if kernel.op in ir.BINARY:
            return self._binary(kernel)
        geometry = (
            schedule.real_conv(kernel, self._network.shapes, self._network.constants)
            if kernel.op
            in (
                "conv",
                "dot",
            )
            else None
        )
        if geometry is not None:
            if isinstance(self._network.kernels.get(kernel.name), schedule.Multiples):
                return self._multiples(kernel)
            return self._real(kernel, geometry)
        return self._rows(kernel)

    def constants(self, index: int) -> str:
        """Returns the definitions that `text` reads."""
        if self._conv is None:
            return ""
        fields = tables.wrapped(_initialisers(self._conv), 4)
        return f"static const ftbnn_real_conv conv_{index} = {{\n{fields}}};\n"

    def _loop_over_rows(self, before: str, inner: str) -> str:
        if self._positions == 1:
            return f"  const int at = 0;\n{self._places(2)}{_indent(before + inner, 2)}  (void)at;\n"
        return (
            f"  for (int at = 0; at < {self._positions}; at++) {{\n{self._places(4)}"
            f"{_indent(before + inner, 4)}  }}\n"
        )

    def _places(self, indent: int) -> str:
        """Returns the definitions of the axes' indices, if anything reads them."""
        if not self._needs_places:
            return ""
        lines, lead = [], self._shape[:-1]
        for axis, size in enumerate(lead):
            below = math.prod(lead[axis + 1 :])
            text = "at" if below == 1 else f"at / {below}"
            if axis and size > 1:
                text = f"{text} % {size}"
            lines.append(f"const int i{axis} = {text if size > 1 else 0};\n")
        used = "".join(f"(void)i{axis};\n" for axis in range(len(lead)))
        return _indent("".join(lines) + used, indent)

    def _binary(self, kernel: ir.Node) -> str:
        i = self._index[kernel.name]
        product = self._network.products[i]
        stride = f"({product.features} + FTBNN_SLACK)"
        row = f"const int32_t *restrict row = s->sums + p * {stride};\n"
        watch = f"if (s->observe) s->observe(s->context, {i}, at, row);\n"
        inner = self._after("row[c]")
        return (
            f"  const ftbnn_signs in = {self._signs(i)};\n"
            "  ftbnn_scratch *s = m->scratch;\n"
            f"  for (int first = 0; first < {product.positions}; first += FTBNN_BLOCK) {{\n"
            f"    const int count = ftbnn_smaller(FTBNN_BLOCK, {product.positions} - first);\n"
            f"    ftbnn_convolve(&ftbnn_convs[{i}], in, first, count, s->windows, s->sums);\n"
            "    for (int p = 0; p < count; p++) {\n"
            f"      const int at = first + p;\n{self._places(6)}{_indent(row + watch + inner, 6)}"
            "    }\n  }\n"
        )

    def _signs(self, i: int) -> str:
        product, at = self._network.products[i], self._network.signs[i]
        nonzero = f"m->signs + {at + product.plane}" if product.form == "ternary" else "0"
        return f"{{m->signs + {at}, {nonzero}}}"

    def _real(self, kernel: ir.Node, geometry: dict[str, int]) -> str:
        i = self._network.loops.index(self._loop)
        self._conv = {**geometry, **self._arithmetic.fields(kernel)}
        features, width = geometry["features"], geometry["out_width"]
        rows = self._positions // width
        if kernel.op == "conv" and kernel.inputs[0] in self._network.tables:
            source = f"0, m->pixels, {self._arithmetic.pixels(kernel)}"
        else:
            source = f"{self._pointer(kernel, kernel.inputs[0])}, 0, 0"
        inner = self._after("row[c]")
        return (
            f"  ftbnn_value *block = m->scratch->values, *copied = block + {self._scratch(features)};\n"
            f"  for (int y = 0; y < {rows}; y++) {{\n    size_t step;\n"
            f"    const ftbnn_value *rows =\n"
            f"        ftbnn_read_rows(&conv_{i}, {source}, y, copied, &step);\n"
            f"    for (int left = 0; left < {width}; left += FTBNN_BLOCK) {{\n"
            f"      const int count = ftbnn_smaller(FTBNN_BLOCK, {width} - left);\n"
            f"      ftbnn_convolve_real(&conv_{i}, rows, step, left, count, block, m->scratch);\n"
            "      for (int p = 0; p < count; p++) {\n"
            f"        const int at = y * {width} + left + p;\n{self._places(8)}"
            f"        const ftbnn_value *restrict row = block + p * {features};\n"
            f"{_indent(inner, 8)}        (void)at;\n      }}\n    }}\n  }}\n"
        )

    def _scratch(self, features: int) -> int:
        """Returns where scratch memory is free behind a block of rows."""
        return schedule.BLOCK * features + (self._width + schedule.SLACK) * len(self._signs_read())

    def _multiples(self, kernel: ir.Node) -> str:
        inputs = self._network.shapes[kernel.inputs[0]].shape[-1]
        x = self._pointer(kernel, kernel.inputs[0])
        fields = self._arithmetic.fields(kernel)
        arguments = ", ".join(fields.values())
        x = f"{x} + at * {inputs}"
        call = f"ftbnn_multiply({x}, {inputs}, {arguments}, {self._width}, row, saturated);\n"
        row = "ftbnn_value *row = m->scratch->values;\nuint32_t *saturated = &m->scratch->saturated;\n"
        return self._loop_over_rows(row + call, self._after("row[c]"))

    # What follows a row.

    def _signs_read(self) -> list[str]:
        return list(dict.fromkeys(product.node.inputs[0] for product in self._loop.packs))

    def _after(self, element: str) -> str:
        """Returns the loop over a row: elementwise operations, and what becomes of their results."""
        loop, network = self._loop, self._network
        variable: dict[str, str] = {}
        outer: list[str] = []
        lines: list[str] = []
        rows: dict[Any, str] = {}
        own = {network.places[name]: f"y{i}" for i, name in enumerate(loop.stores)}
        if loop.kernel is not None:
            kind, text = self._arithmetic.loaded(loop.kernel, element)
            variable[loop.kernel.name] = "v0"
            lines.append(f"const {kind} v0 = {text};")
        for node in loop.nodes:
            operands = []
            for name in node.inputs:
                if name in variable and node.op != schedule.COPY:
                    operands.append(variable[name])
                else:
                    operands.append(self._operand(node, name, rows, outer, own))
            kind, text = self._arithmetic.value(node, operands)
            variable[node.name] = f"v{len(variable)}"
            lines.append(f"const {kind} {variable[node.name]} = {text};")
        writes = []
        for i, name in enumerate(loop.stores):
            place = network.places[name]
            kind = "ftbnn_value" if place.pool != "integers" else "int32_t"
            restrict = "" if self._overwrites_input(name) else "restrict "
            outer.insert(0, f"{kind} *{restrict}y{i} = {self._at(place)} + at * {self._width};")
            writes.append(f"y{i}[c] = {variable[name]};")
        after = []
        for i, name in enumerate(self._signs_read()):
            base = self._packed_at(i)
            outer.append(f"ftbnn_value *restrict s{i} = m->scratch->values + {base};")
            writes.append(f"s{i}[c] = {variable[name]};")
            for product in loop.packs:
                if product.node.inputs[0] == name:
                    j = self._index[product.node.name]
                    after.append(
                        f"ftbnn_pack(&ftbnn_convs[{j}], s{i}, (ftbnn_signs){self._signs(j)}, at);"
                    )
        body = "".join(f"  {line}\n" for line in [*lines, *writes])
        return (
            "".join(f"{line}\n" for line in outer)
            + f"for (int c = 0; c < {self._width}; c++) {{\n{body}}}\n"
            + "".join(f"{line}\n" for line in after)
        )

    def _packed_at(self, i: int) -> int:
        """Returns where among the scratch values the signs of a row lie: behind the kernel's rows."""
        kernel = self._loop.kernel
        before = 0
        if kernel is not None and kernel.op not in ir.BINARY:
            before = self._width * (schedule.BLOCK if kernel.op in ("conv", "dot") else 1)
        return before + i * (self._width + schedule.SLACK)

    def _overwrites_input(self, name: str) -> bool:
        """Whether a result is stored where the loop's kernel still reads."""
        kernel, network = self._loop.kernel, self._network
        if kernel is None or kernel.op in ir.BINARY:
            return False
        views = [network.views.get((kernel.name, n)) for n in kernel.inputs]
        roots = [view.root for view in views if view is not None]
        return any(network.places.get(root) == network.places[name] for root in roots)

    def _operand(self, node, name, rows, outer, own) -> str:
        """Returns the text of an operand's element that comes from another loop, or is a constant."""
        network = self._network
        view = network.read(node, name)
        if view.root in network.constants and network.constants[view.root].size == 1:
            return self._arithmetic.literal(node, view.root)
        spread = view.spread(self._loop.shape) if not self._flat else view
        if self._flat:
            step = 0 if math.prod(view.shape) == 1 else 1
            start = str(view.offset)
        else:
            step, start = spread.strides[-1], self._start(spread)
        place = network.places.get(view.root)
        if place in own:
            # Overwritten where it is read: one pointer, so that the compiler knows.
            return f"{own[place]}[c]"
        key = (
            view.root,
            view.offset,
            spread.strides,
            node.name if view.root in network.constants else "",
        )
        if key not in rows:
            rows[key] = f"a{len(rows)}"
            kind = self._kind(node, view.root)
            base = self._base(node, view.root)
            start = f" + {start}" if start != "0" else ""
            outer.append(f"const {kind} *restrict {rows[key]} = {base}{start};")
        if step == 0:
            return f"{rows[key]}[0]"
        return f"{rows[key]}[c]" if step == 1 else f"{rows[key]}[c * {step}]"

    def _start(self, view: View) -> str:
        """Returns where a row begins in what is stored."""
        lead, strides = self._shape[:-1], view.strides[:-1]
        parts = [str(view.offset)] if view.offset else []
        pairs = [(axis, s) for axis, (n, s) in enumerate(zip(lead, strides, strict=True)) if n > 1]
        factors = {
            s // math.prod(lead[axis + 1 :]) if not s % math.prod(lead[axis + 1 :]) else None
            for axis, s in pairs
        }
        if len(factors) == 1 and None not in factors:
            (factor,) = factors
            parts += [f"at * {factor}"] if factor else []
        elif pairs:
            self._needs_places = True
            parts += [f"i{axis} * {s}" for axis, s in pairs if s]
        return " + ".join(parts) or "0"

    def _kind(self, node: ir.Node, root: str) -> str:
        network = self._network
        if root == network.graph.input:
            return "ftbnn_pixel"
        if root in network.constants:
            return self._arithmetic.tables[self._arithmetic.table(node, root)].kind
        return "int32_t" if network.places[root].pool == "integers" else "ftbnn_value"

    def _base(self, node: ir.Node, root: str) -> str:
        network = self._network
        if root == network.graph.input:
            return "m->pixels"
        if root in network.constants:
            return self._arithmetic.table(node, root)
        return self._at(network.places[root])

    def _at(self, place: schedule.Place) -> str:
        offset = f" + {place.offset}" if place.offset else ""
        return f"m->{place.pool}{offset}"

    def _pointer(self, node: ir.Node, name: str) -> str:
        return self._base(node, self._network.read(node, name).root)

    # Kernels that are loops themselves.

    def _rows(self, kernel: ir.Node) -> str:
        write: Callable[[ir.Node], str] = {
            "concatenate": self._concatenate,
            "pad": self._pad,
            "take": self._take,
            "argmax": self._argmax,
            "dot": self._dot,
        }.get(kernel.op, self._fold)
        before = write(kernel)
        return self._loop_over_rows(f"{self._row(kernel)}{before}", self._after("row[c]"))

    def _row(self, kernel: ir.Node) -> str:
        if self._network.shapes[kernel.name].dtype.name not in operations.REAL:
            return "int32_t *restrict row = m->scratch->sums;\n"
        if kernel.op in _SUMS:
            return "ftbnn_sum *restrict row = m->scratch->wide;\n"
        return "ftbnn_value *restrict row = m->scratch->values;\n"

    def _indices(self, last: str = "c") -> list[str]:
        self._needs_places = True
        return [*(f"i{axis}" for axis in range(len(self._shape) - 1)), last]

    def _source(self, kernel: ir.Node, i: int = 0) -> tuple[str, str, tuple[int, ...]]:
        """Returns type, pointer and shape of an operand, which lies in order."""
        name = kernel.inputs[i]
        root = self._network.read(kernel, name).root
        shape = tuple(self._network.shapes[name].shape)
        base = self._base(kernel, root)
        return self._kind(kernel, root), f"({base})" if " " in base else base, shape

    def _fold(self, kernel: ir.Node) -> str:
        kind, x, shape = self._source(kernel)
        a, is_max = kernel.attributes, kernel.op.endswith("max")
        indices = self._indices()
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
        strides = schedule.strides_of(shape)
        vector = at[-1] == "c" and strides[-1] == 1
        step = "row[c] = in[c] > row[c] ? in[c] : row[c];" if is_max else "row[c] += in[c];"
        terms = [f"{i} * {s}" for i, s in zip(at, strides, strict=True)]
        if vector:
            offset = " + ".join(terms[:-1]) or "0"
            each = f"for (int c = 0; c < {self._width}; c++) "
            inner = f"const {kind} *restrict in = {x} + {offset};\n{each}{step}\n"
            return f"{each}row[c] = {start};\n{_nested(loops, inner)}"
        inner = f"const {kind} *in = {x} + {' + '.join(terms)};\n{step.replace('in[c]', 'in[0]')}\n"
        body = f"row[c] = {start};\n" + _nested(loops, inner)
        return f"for (int c = 0; c < {self._width}; c++) {{\n{_indent(body, 2)}}}\n"

    def _arithmetic_start(self, kernel: ir.Node, is_max: bool) -> str:
        if not is_max:
            return "0"
        dtype = self._network.shapes[kernel.name].dtype
        if dtype.name in operations.REAL:
            return "FTBNN_LOWEST"
        return str(int(operations.lowest(np.dtype(dtype)))) if dtype.name != "int32" else "INT32_MIN"

    def _concatenate(self, kernel: ir.Node) -> str:
        axis = kernel.attributes["axis"]
        last = axis == len(self._shape) - 1
        lines, start = [], 0
        for i in range(len(kernel.inputs)):
            _, x, shape = self._source(kernel, i)
            if last:
                element = self._joined(kernel, i, f"{x}[at * {shape[-1]} + c]")
                lines.append(f"for (int c = 0; c < {shape[-1]}; c++) row[{start} + c] = {element};\n")
            else:
                indices = self._indices()[:-1]
                indices[axis] = f"(i{axis} - {start})"
                strides = schedule.strides_of(shape)[:-1]
                offset = _offset(indices, strides)
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
        _, x, shape = self._source(kernel)
        edges = kernel.attributes["edges"]
        indices = self._indices()
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
            at.append(f"({moved_at}) * {schedule.strides_of(shape)[axis]}")
        low, _, between = edges[-1]
        place, source = f"{low} + j * {between + 1}", " + ".join([*at, "j"])
        return (
            f"for (int c = 0; c < {self._width}; c++) row[c] = {value};\n"
            f"if ({' && '.join(checks) or '1'}) {{\n"
            f"  for (int j = 0; j < {shape[-1]}; j++) {{\n"
            f"    const int to = {place};\n"
            f"    if (to >= 0 && to < {self._width}) row[to] = {x}[{source}];\n  }}\n}}\n"
        )

    def _scalar(self, kernel: ir.Node, i: int) -> str:
        root = self._network.read(kernel, kernel.inputs[i]).root
        if root in self._network.constants:
            return self._arithmetic.literal(kernel, root)
        return f"({self._base(kernel, root)})[0]"

    def _take(self, kernel: ir.Node) -> str:
        _, x, shape = self._source(kernel)
        _, places, count = self._source(kernel, 1)
        axis = kernel.attributes["axis"]
        indices = self._indices()
        # The axis becomes those of the places.
        which = indices[axis : axis + len(count)]
        flat = (
            " + ".join(f"{i} * {s}" for i, s in zip(which, schedule.strides_of(count), strict=True))
            or "0"
        )
        at = [*indices[:axis], "from", *indices[axis + len(count) :]]
        offset = " + ".join(f"{i} * {s}" for i, s in zip(at, schedule.strides_of(shape), strict=True))
        return (
            f"for (int c = 0; c < {self._width}; c++) {{\n"
            f"  int from = {places}[{flat}];\n"
            f"  from = from < 0 ? 0 : from > {shape[axis] - 1} ? {shape[axis] - 1} : from;\n"
            f"  row[c] = {x}[{offset}];\n}}\n"
        )

    def _argmax(self, kernel: ir.Node) -> str:
        kind, x, shape = self._source(kernel)
        axis = kernel.attributes["axis"]
        at = self._indices()
        at.insert(axis, "k")
        strides = schedule.strides_of(shape)
        offset = " + ".join(f"{i} * {s}" for i, s in zip(at, strides, strict=True) if i != "k")
        return (
            f"for (int c = 0; c < {self._width}; c++) {{\n"
            f"  const {kind} *in = {x} + {offset or 0};\n  row[c] = 0;\n"
            f"  for (int k = 1; k < {shape[axis]}; k++) {{\n"
            f"    if (in[k * {strides[axis]}] > in[row[c] * {strides[axis]}]) row[c] = k;\n  }}\n}}\n"
        )

    def _dot(self, kernel: ir.Node) -> str:
        _, pointers, shapes = zip(*(self._source(kernel, i) for i in range(2)), strict=True)
        (of_x, of_y), (batch_x, batch_y) = (kernel.attributes[k] for k in ("contracting", "batch"))
        indices = iter(self._indices())
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
            offset = _offset([known[axis] for axis in range(len(shape))], schedule.strides_of(shape))
            terms.append(f"{pointer}[{offset}]")
        inner = f"sum += (ftbnn_sum)({terms[0]} * {terms[1]});\n"
        body = "ftbnn_sum sum = 0;\n" + _nested(loops, inner) + "row[c] = sum;\n"
        return f"for (int c = 0; c < {self._width}; c++) {{\n{_indent(body, 2)}}}\n"


def _offset(indices: Sequence[str], strides: Sequence[int]) -> str:
    """Returns the text of where an element lies."""
    return " + ".join(f"{i} * {s}" for i, s in zip(indices, strides, strict=True)) or "0"


def _nested(loops: Sequence[tuple[str, str, str, str]], inner: str) -> str:
    """Returns loops around text; each has a variable, a count, a definition and a check."""
    if not loops:
        return inner
    (variable, count, defined, check), *others = loops
    body = "".join(f"{line}\n" for line in (defined, check) if line) + _nested(others, inner)
    return f"for (int {variable} = 0; {variable} < {count}; {variable}++) {{\n{_indent(body, 2)}}}\n"


def _indent(text: str, by: int) -> str:
    return "".join(f"{' ' * by}{line}\n" for line in text.splitlines())
