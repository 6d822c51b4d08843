"""The elementwise operations that follow in a loop, as C text, and what becomes of their results."""

import math
from typing import Any

from ftbnn_jax.deploy.c import operations, schedule
from ftbnn_jax.deploy.c.frame import Frame
from ftbnn_jax.deploy.c.geometry import BLOCK, SLACK
from ftbnn_jax.deploy.c.schedule import Loop, Network
from ftbnn_jax.deploy.c.views import View
from ftbnn_jax.graph import ir

# As in kernels/ftbnn_float.h: how many values beyond a row may be read is one less.
PACKED_AT_ONCE = 8


def packed_from(network: Network, loop: Loop) -> dict[str, str]:
    """Returns what a loop's products read, each with the array from which its signs are packed.

    That is what was compared with 0, where a product reads nothing but signs.
    """
    results = {node.name: node for node in loop.results()}
    found = {}
    for product in loop.packs:
        name = product.node.inputs[0]
        source = operations.signed(network.nodes, network.constants, name)
        # A sum may be wider than what is packed.
        usable = source in results and results[source].op not in operations.SUMS
        found[name] = source if usable else name
    return found


def computed(network: Network, loop: Loop) -> set[str]:
    """Returns the results of a loop that it stores, packs, or computes others from."""
    found = {*loop.stores, *packed_from(network, loop).values()}
    for node in reversed(loop.nodes):
        if node.name in found and node.op != schedule.COPY:
            found.update(node.inputs)
    return found


class Elementwise:
    """Writes what is done with each row.

    Args:
      frame: the loop.
    """

    def __init__(self, frame: Frame):
        self._frame = frame
        self._network = frame.network
        self._arithmetic = frame.arithmetic
        self._loop = frame.loop

    def text(self, element: str) -> str:
        """Returns the loop over a row: elementwise operations, and what becomes of their results."""
        loop, network = self._loop, self._network
        packed, needed = packed_from(network, loop), computed(network, loop)
        variable: dict[str, str] = {}
        outer: list[str] = []
        lines: list[str] = []
        rows: dict[Any, str] = {}
        own = {network.places[name]: f"y{i}" for i, name in enumerate(loop.stores)}
        if loop.kernel is not None and loop.kernel.name in needed:
            kind, text = self._arithmetic.loaded(loop.kernel, element)
            variable[loop.kernel.name] = "v0"
            lines.append(f"const {kind} v0 = {text};")
        for node in loop.nodes:
            if node.name not in needed:
                continue
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
            outer.insert(
                0, f"{kind} *{restrict}y{i} = {self._frame.at(place)} + at * {self._frame.width};"
            )
            writes.append(f"y{i}[c] = {variable[name]};")
        after = []
        for i, (name, source) in enumerate(packed.items()):
            row = self._stored(source)
            if not row:
                row = f"s{i}"
                outer.append(f"ftbnn_value *restrict {row} = m->scratch->values + {self._packed_at(i)};")
                writes.append(f"{row}[c] = (ftbnn_value){variable[source]};")
            for product in loop.packs:
                if product.node.inputs[0] == name:
                    j = self._frame.index[product.node.name]
                    after.append(
                        f"ftbnn_pack(&ftbnn_convs[{j}], {row}, (ftbnn_signs){self._frame.signs(j)}, at);"
                    )
        body = "".join(f"  {line}\n" for line in [*lines, *writes])
        return (
            "".join(f"{line}\n" for line in outer)
            + f"for (int c = 0; c < {self._frame.width}; c++) {{\n{body}}}\n"
            + "".join(f"{line}\n" for line in after)
        )

    def _stored(self, name: str) -> str:
        """Returns the text of a stored row that can be packed as it lies; "" if there is none."""
        loop = self._loop
        whole = self._frame.width % PACKED_AT_ONCE == 0
        if not whole or name not in loop.stores or self._network.places[name].pool == "integers":
            return ""
        return f"y{loop.stores.index(name)}"

    def _packed_at(self, i: int) -> int:
        """Returns where among the scratch values the signs of a row lie: behind the kernel's rows."""
        kernel = self._loop.kernel
        before = 0
        if kernel is not None and kernel.op not in ir.BINARY and not self._network.is_integer(kernel):
            before = self._frame.width * (BLOCK if kernel.op in ("conv", "dot") else 1)
        return before + i * (self._frame.width + SLACK)

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
        spread = view.spread(self._loop.shape) if not self._frame.flat else view
        if self._frame.flat:
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
            kind = self._frame.kind(node, view.root)
            base = self._frame.base(node, view.root)
            start = f" + {start}" if start != "0" else ""
            outer.append(f"const {kind} *restrict {rows[key]} = {base}{start};")
        if step == 0:
            return f"{rows[key]}[0]"
        return f"{rows[key]}[c]" if step == 1 else f"{rows[key]}[c * {step}]"

    def _start(self, view: View) -> str:
        """Returns where a row begins in what is stored."""
        lead, strides = self._frame.shape[:-1], view.strides[:-1]
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
            self._frame.needs_places = True
            parts += [f"i{axis} * {s}" for axis, s in pairs if s]
        return " + ".join(parts) or "0"
