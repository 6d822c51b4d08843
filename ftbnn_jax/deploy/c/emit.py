"""The loops of a network as C text."""

import re
from collections.abc import Mapping

from ftbnn_jax.deploy.c import geometry, integer_text, schedule, tables
from ftbnn_jax.deploy.c.elementwise import Elementwise
from ftbnn_jax.deploy.c.frame import Arithmetic, Frame, indent
from ftbnn_jax.deploy.c.geometry import Product
from ftbnn_jax.deploy.c.rows import Rows
from ftbnn_jax.deploy.c.schedule import Loop, Network
from ftbnn_jax.graph import ir

_FORMS = {"xnor": "FTBNN_XNOR", "and": "FTBNN_AND", "ternary": "FTBNN_TERNARY"}


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
        calls = [f"  TIMED({i}, run_{i}(m));\n" for i in range(len(self._network.loops))]
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
        # Type and fields of the real convolution.
        self._conv: tuple[str, Mapping[str, object]] | None = None
        self._frame = Frame(network, arithmetic, loop, index)
        self._after = Elementwise(self._frame).text

    def text(self) -> str:
        """Returns what the function does."""
        kernel = self._loop.kernel
        if kernel is None:
            return self._frame.loop_over_rows("", self._after(""))
        if kernel.op in ir.BINARY:
            return self._binary(kernel)
        sizes = None
        if kernel.op in ("conv", "dot"):
            sizes = geometry.real_conv(kernel, self._network.shapes, self._network.constants)
        layer = self._arithmetic.layers.get(kernel.name)
        if layer is not None:
            i = self._network.loops.index(self._loop)
            self._conv = integer_text.TYPE, integer_text.fields(self._frame, layer)
            return integer_text.text(self._frame, layer, i, self._after)
        if sizes is not None:
            if isinstance(self._network.kernels.get(kernel.name), geometry.Multiples):
                return self._multiples(kernel)
            return self._real(kernel, sizes)
        return self._frame.loop_over_rows(Rows(self._frame).text(kernel), self._after("row[c]"))

    def constants(self, index: int) -> str:
        """Returns the definitions that `text` reads."""
        if self._conv is None:
            return ""
        kind, values = self._conv
        fields = tables.wrapped(_initialisers(values), 4)
        return f"static const {kind} conv_{index} = {{\n{fields}}};\n"

    def _binary(self, kernel: ir.Node) -> str:
        i = self._index[kernel.name]
        product = self._network.products[i]
        stride = f"({product.features} + FTBNN_SLACK)"
        row = f"const int32_t *restrict row = s->sums + p * {stride};\n"
        watch = f"if (s->observe) s->observe(s->context, {i}, at, row);\n"
        inner = self._after("row[c]")
        return (
            f"  const ftbnn_signs in = {self._frame.signs(i)};\n"
            "  ftbnn_scratch *s = m->scratch;\n"
            f"  for (int first = 0; first < {product.positions}; first += FTBNN_BLOCK) {{\n"
            f"    const int count = ftbnn_smaller(FTBNN_BLOCK, {product.positions} - first);\n"
            f"    ftbnn_convolve(&ftbnn_convs[{i}], in, first, count, s->windows, s->sums);\n"
            "    for (int p = 0; p < count; p++) {\n"
            f"      const int at = first + p;\n{self._frame.places(6)}{indent(row + watch + inner, 6)}"
            "    }\n  }\n"
        )

    def _real(self, kernel: ir.Node, sizes: dict[str, int]) -> str:
        i = self._network.loops.index(self._loop)
        self._conv = "ftbnn_real_conv", {**sizes, **self._arithmetic.fields(kernel)}
        features, width = sizes["features"], sizes["out_width"]
        rows = self._frame.positions // width
        if kernel.op == "conv" and kernel.inputs[0] in self._network.tables:
            source = f"0, m->pixels, {self._arithmetic.pixels(kernel)}"
        else:
            source = f"{self._frame.pointer(kernel, kernel.inputs[0])}, 0, 0"
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
            f"        const int at = y * {width} + left + p;\n{self._frame.places(8)}"
            f"        const ftbnn_value *restrict row = block + p * {features};\n"
            f"{indent(inner, 8)}        (void)at;\n      }}\n    }}\n  }}\n"
        )

    def _scratch(self, features: int) -> int:
        """Returns where scratch memory is free behind a block of rows."""
        packing = (self._frame.width + geometry.SLACK) * len(self._frame.signs_read())
        return geometry.BLOCK * features + packing

    def _multiples(self, kernel: ir.Node) -> str:
        inputs = self._network.shapes[kernel.inputs[0]].shape[-1]
        x = self._frame.pointer(kernel, kernel.inputs[0])
        fields = self._arithmetic.fields(kernel)
        arguments = ", ".join(fields.values())
        x = f"{x} + at * {inputs}"
        call = f"ftbnn_multiply({x}, {inputs}, {arguments}, {self._frame.width}, row, saturated);\n"
        row = "ftbnn_value *row = m->scratch->values;\nuint32_t *saturated = &m->scratch->saturated;\n"
        return self._frame.loop_over_rows(row + call, self._after("row[c]"))
