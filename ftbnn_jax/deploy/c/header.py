"""`model.h`: what a C program shows to those who call it, every macro with what it means."""

import textwrap

import ftbnn_jax
from ftbnn_jax.deploy.c import golden, operations
from ftbnn_jax.deploy.c.options import Options
from ftbnn_jax.deploy.c.schedule import Network

_PIXELS = {"uint8": "uint8_t", "int8": "int8_t", "int16": "int16_t", "int32": "int32_t"}
_WIDTH = 98
_MACROS = {
    "INPUT_BITS": "Fraction bits of what layers in integers read, one layer after another.",
    "VERSION": "Version of ftbnn_jax that wrote this; ftbnn_version() returns it.",
    "REAL_BITS": "Bits of the weights of real convolutions and matrix products; 32: they are not "
    "quantised.",
    "TARGET": "What this was exported for.",
    "IMAGE_SIZE": "Height and width of the image that enters the network, in pixels.",
    "CHANNELS": "Numbers of each of its pixels: 1 for grey; 3 for red, green and blue.",
    "CROP": "What ftbnn_preprocess cuts out of the centre of an image, in 256ths of the shorter side; "
    "0: it takes the whole image.",
    "ANTIALIAS": "1 if a pixel is a mean of all that it covers where an image shrinks, else 0.",
    "PIXEL_BYTES": "Bytes of one input, `pixel_bytes` of ftbnn_predict.",
    "CLASSES": "Numbers that the network gives for one input, `classes` of ftbnn_predict.",
    "BLOCKS": "Binary products, whose integers ftbnn_observe shows.",
    "ARENA_BYTES": "Bytes of memory that are enough for ftbnn_init, whatever the compiler.",
    "MOST_FRACTION_BITS": "Fraction bits that numbers between the layers have at most.",
    "FRACTION_BITS": "Fraction bits of a logit: as a real number it is logit / 2^FTBNN_FRACTION_BITS. "
    "Defined in fixed point alone.",
    "PROVEN": "1 if it is proven that no input whatsoever makes a number leave its range, so that "
    "FTBNN_SATURATED never comes; 0 if ranges are those of some images, with room to spare.",
}
_IMAGES = """An image of
 * any size becomes `pixels` by ftbnn_preprocess, in ftbnn_image.h, with
 *
 *     ftbnn_preprocessing how = {FTBNN_IMAGE_SIZE, FTBNN_CHANNELS, FTBNN_CROP, FTBNN_ANTIALIAS};"""
_NUMBERS = """What
 * `pixels` are is what the function took that the network was packed from."""


def write(template: str, network: Network, options: Options, numbers) -> str:
    """Returns the header but for its first comment.

    Args:
      template: `kernels/model.h.in`.
      network: the loops.
      options: what shapes the program.
      numbers: its arithmetic.
    """
    graph, rule = network.graph, network.artifact.preprocessing
    found: dict[str, object] = {"VERSION": f'"{ftbnn_jax.__version__}"'}
    if rule is not None:
        found |= {
            "IMAGE_SIZE": rule.size,
            "CHANNELS": rule.channels,
            "CROP": rule.crop,
            "ANTIALIAS": int(bool(rule.antialias)),
        }
    found |= {
        "PIXEL_BYTES": golden.pixel_bytes(network),
        "CLASSES": network.results,
        "BLOCKS": len(network.products),
        "ARENA_BYTES": f"{network.arena_bytes}u",
        **options.definitions(),
        **numbers.definitions(),
    }
    sizes = {name: max(1, count) for name, count in network.sizes.items()}
    fields = {
        "DEFINITIONS": "\n".join(_definition(name, value) for name, value in found.items()),
        "INPUT": _IMAGES if rule else _NUMBERS,
        "PIXELS": "".join(f"[{n}]" for n in graph.shape[1:]),
        "PIXEL_TYPE": _PIXELS.get(graph.dtype, "float" if graph.dtype in operations.REAL else ""),
        "LOOP_COUNT": str(len(network.loops)),
        "VALUE_TYPE": numbers.value_type,
        "SUM_TYPE": numbers.sum_type,
        **{name.upper(): str(count) for name, count in sizes.items()},
    }
    for name, value in fields.items():
        template = template.replace(f"@{name}@", value)
    return template


def _definition(name: str, value: object) -> str:
    comment = textwrap.fill(f"/* {_MACROS[name]} */", _WIDTH, subsequent_indent=" * ")
    return f"{comment}\n#define FTBNN_{name} {value}"


def what(network: Network, options: Options) -> str:
    """Returns what a program is, in a sentence or two."""
    multiply_adds = sum(product.multiply_adds for product in network.products)
    words = sum(network.graph.tensors[p.node.inputs[1]].size for p in network.products)
    kind = "single precision" if options.fraction_bits is None else "integers (fixed point)"
    size = "x".join(str(n) for n in network.graph.shape[1:])
    pixels = "pixels" if network.graph.dtype == "uint8" else f"numbers ({network.graph.dtype})"
    return (
        f"A 1-bit network: {size} {pixels} to {network.results} classes, {len(network.products)} binary "
        f"products ({multiply_adds:,} binary multiply-adds, {4 * words:,} bytes of bits), {kind} "
        f"between them. Written by ftbnn_jax {ftbnn_jax.__version__} from training step "
        f"{network.artifact.step}"
    )
