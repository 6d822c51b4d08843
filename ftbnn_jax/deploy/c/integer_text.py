"""A layer in integers as C text; see `integer_layers`."""

from collections.abc import Callable

from ftbnn_jax.deploy.c.frame import Frame, indent
from ftbnn_jax.deploy.c.integer_layers import IntegerLayer

TYPE = "ftbnn_integer_conv"


def fields(frame: Frame, layer: IntegerLayer) -> dict[str, object]:
    """Returns the fields of the layer's `ftbnn_integer_conv`."""
    name, kernel = layer.node.name, layer.node.inputs[1]
    add = frame.arithmetic.add
    found: dict[str, object] = {**layer.sizes, "outputs": layer.outputs}
    found["weights"] = add((name, "weights"), kernel, layer.blocked())
    if layer.has_bias:
        bias, rows, columns = layer.bias
        found["bias"] = add((name, "bias"), f"{kernel}/bias", layer.padded_bias())
        found["row_kinds"] = add((name, "rows"), f"{kernel}/rows", rows.astype("uint16"))
        found["column_kinds"] = add((name, "columns"), f"{kernel}/columns", columns.astype("uint16"))
        found["kinds"] = bias.shape[1]
    if layer.reads == "values":
        found["bits"] = frame.arithmetic.narrowing(layer)
        found["largest"] = layer.largest
    return found


def text(frame: Frame, layer: IntegerLayer, i: int, after: Callable[[str], str]) -> str:
    """Returns what the function of the layer's loop does.

    Args:
      frame: the loop.
      layer: its kernel.
      i: number of the loop.
      after: gives what follows, a row at a time.
    """
    width, kind, convolve = layer.sizes["out_width"], "int16_t", str(layer.real_bits)
    if layer.reads == "bytes":
        kind, convolve = "uint8_t", "bytes"
        read = f"ftbnn_read_bytes(&conv_{i}, m->pixels, y, rows);"
    elif layer.reads == "table":
        pixels = layer.node.inputs[0]
        table = frame.arithmetic.add((layer.node.name, "table"), f"{pixels}/table", layer.narrow_table())
        read = f"ftbnn_read_table(&conv_{i}, m->pixels, {table}, y, rows);"
    else:
        x = frame.pointer(layer.node, layer.node.inputs[0])
        read = f"ftbnn_read_values(&conv_{i}, {x}, y, rows, &s->saturated);"
    row = f"const int32_t *restrict row = s->sums + p * ({frame.width} + FTBNN_SLACK);\n"
    inner = after("row[c]")
    return (
        "  ftbnn_scratch *s = m->scratch;\n"
        f"  {kind} *rows = ({kind} *)s->narrow;\n"
        f"  for (int y = 0; y < {frame.positions // width}; y++) {{\n    {read}\n"
        f"    for (int left = 0; left < {width}; left += FTBNN_BLOCK) {{\n"
        f"      const int count = ftbnn_smaller(FTBNN_BLOCK, {width} - left);\n"
        f"      ftbnn_convolve_{convolve}(&conv_{i}, rows, y, left, count, s->sums);\n"
        "      for (int p = 0; p < count; p++) {\n"
        f"        const int at = y * {width} + left + p;\n{frame.places(8)}"
        f"{indent(row + inner, 8)}        (void)at;\n      }}\n    }}\n  }}\n"
    )
