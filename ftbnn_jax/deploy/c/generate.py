"""From an artifact to the text of a C program. The same artifact gives the same bytes.

No text of an artifact becomes C as it stands: numbers are checked to be numbers, words are looked up,
and class names are escaped.
"""

import dataclasses
import importlib.resources
import textwrap
from collections.abc import Container, Mapping

import ftbnn_jax
from ftbnn_jax.deploy import artifact as artifact_lib
from ftbnn_jax.deploy.c import described as described_lib
from ftbnn_jax.deploy.c import fixed_point, prefixes, schedule, tables
from ftbnn_jax.errors import UserError
from ftbnn_jax.nn import spec as spec_lib

_FORMS = {"xnor": "FTBNN_XNOR", "and": "FTBNN_AND", "ternary": "FTBNN_TERNARY"}
_SHORTCUTS = {
    "none": "FTBNN_NO_SHORTCUT",
    "identity": "FTBNN_IDENTITY",
    "conv": "FTBNN_POOLED_CONV",
    "duplicate": "FTBNN_DUPLICATE",
}
_ACTIVATIONS = {kind: f"FTBNN_{kind.upper()}" for kind in spec_lib.ACTIVATIONS}
_COMMON = (
    "CMakeLists.txt",
    "Makefile",
    "classify.c",
    "ftbnn_binary.c",
    "ftbnn_binary.h",
    "ftbnn_image.c",
    "ftbnn_image.h",
    "ftbnn_layers.c",
    "ftbnn_layers.h",
    "ftbnn_vector.h",
    "test_model.c",
)


def files(
    artifact: artifact_lib.Artifact, fraction_bits: int | None = None, prefix: str = prefixes.DEFAULT
) -> dict[str, str]:
    """Returns every file of the program by name, but for the golden vectors.

    Args:
      artifact: the network.
      fraction_bits: of the real numbers in fixed point; None for single precision.
      prefix: of all names that other files of a program see, in capitals for macros.

    Raises:
      UserError: a tensor is not finite, or too large for fixed point; metadata is no number where one is
        needed; a class name is no C string; the prefix is no identifier, or makes two names one.
    """
    prefixes.check(prefix)
    network = schedule.lower(artifact)
    _check_numbers(network.described)
    fixed = None if fraction_bits is None else fixed_point.quantize(network, fraction_bits)
    arithmetic = "float" if fixed is None else "fixed"
    constants = tables.binary_weights(network)
    constants += tables.float_tables(network) if fixed is None else fixed.tables()
    found = {name: _kernel_file(name) for name in _COMMON}
    found["ftbnn_arithmetic.h"] = _kernel_file(f"ftbnn_{arithmetic}.h")
    found["model.h"] = _header(network, fraction_bits)
    found["model.c"] = _program(network, fixed)
    found["weights.h"] = _guarded(
        "WEIGHTS", "#include <stdint.h>\n\n" + "".join(f"extern {t.declaration};\n" for t in constants)
    )
    found["weights.c"] = '#include "weights.h"\n\n' + "\n".join(t.definition() for t in constants)
    found = prefixes.apply(found, prefix)
    found["model.h"] = found["model.h"].replace("@WHAT@", _what(network, fraction_bits))
    long_names, names = tables.class_names(network.described)
    found["model.c"] = (
        found["model.c"].replace("@LONG_NAMES@", long_names).replace("@CLASS_NAMES@", names)
    )
    return dict(sorted(found.items()))


def _check_numbers(described: described_lib.Described) -> None:
    """Raises a UserError unless all metadata that is printed as a number is a whole one."""
    rule = described.preprocessing
    found = {"step": described.step}
    found |= {f"preprocessing.{name}": getattr(rule, name) for name in ("size", "channels", "crop")}
    found |= {
        f"spec.{field.name}": getattr(described.spec, field.name)
        for field in dataclasses.fields(described.spec)
        if field.type is int
    }
    for name, value in found.items():
        # A bool is an int in Python.
        if not isinstance(value, int) or isinstance(value, bool):
            raise UserError(f"{name}={value!r}: must be a whole number")


def _kernel_file(name: str) -> str:
    return importlib.resources.files(__package__).joinpath("kernels", name).read_text()


def _guarded(name: str, text: str) -> str:
    return f"#ifndef FTBNN_{name}_H\n#define FTBNN_{name}_H\n\n{text}\n#endif\n"


def _describe(block: schedule.Block) -> str:
    p = block.plan
    groups = "1 group" if p.groups == 1 else f"{p.groups} groups"
    return (
        f"{p.name}: {block.size}x{block.size}x{p.in_features} -> {block.out_size}x{block.out_size}x"
        f"{p.features}, {groups}, stride {p.stride}, {block.form}, shortcut {p.shortcut}, "
        f"{p.activation}; {block.multiply_adds:,} binary multiply-adds"
    )


def _what(network: schedule.Network, fraction_bits: int | None) -> str:
    """Returns the comment that begins the header."""
    d, rule = network.described, network.described.preprocessing
    multiply_adds = sum(block.multiply_adds for block in network.blocks)
    bits = sum(32 * d.tensors[f"{b.plan.name}/conv/bits"].size for b in network.blocks)
    arithmetic = "single precision" if fraction_bits is None else "integers (fixed point)"
    what = (
        f"A 1-bit network: {rule.size}x{rule.size}x{rule.channels} pixels to {d.num_classes} "
        f"classes, {len(network.blocks)} binary convolutions ({multiply_adds:,} binary multiply-adds, "
        f"{bits // 8:,} bytes of bits), {arithmetic} between them. Written by ftbnn_jax "
        f"{ftbnn_jax.__version__} from training step {d.step}; do not edit."
    )
    return "\n * ".join(textwrap.wrap(what, 96))


def _header(network: schedule.Network, fraction_bits: int | None) -> str:
    d = network.described
    rule = d.preprocessing
    definitions = {
        "VERSION": f'"{ftbnn_jax.__version__}"',
        "IMAGE_SIZE": rule.size,
        "CHANNELS": rule.channels,
        "PIXEL_BYTES": rule.size**2 * rule.channels,
        "CROP": rule.crop,
        "ANTIALIAS": int(bool(rule.antialias)),
        "CLASSES": d.num_classes,
        "BLOCKS": len(network.blocks),
        "ARENA_BYTES": f"{network.arena_bytes}u",
    }
    if fraction_bits is not None:
        definitions["FRACTION_BITS"] = fraction_bits
    return (
        _kernel_file("model.h.in")
        .replace("@DEFINITIONS@", "\n".join(f"#define FTBNN_{k} {v}" for k, v in definitions.items()))
        .replace("@VALUE_TYPE@", "float" if fraction_bits is None else "int32_t")
        .replace("@VALUES@", str(network.values))
        .replace("@SIGNS@", str(network.signs))
        .replace("@SCRATCH@", str(network.scratch))
        .replace("@WINDOWS@", str(network.windows))
        .replace("@SUMS@", str(network.sums))
    )


def _fields(values: dict[str, object], indent: int) -> str:
    """Returns designated initialisers, one a line."""
    return ",\n".join(f"{' ' * indent}.{name} = {value}" for name, value in values.items())


class _Fields:
    """Designated initialisers that point to a network's constants."""

    def __init__(self, tensors: Container[str], shifts: Mapping[str, int]):
        self._tensors = tensors
        self._shifts = shifts

    def shift(self, name: str) -> dict[str, object]:
        return {"shift": self._shifts[name]} if name in self._shifts else {}

    def norm(self, name: str, parts: tuple[str, str] = ("multiplier", "offset")) -> str:
        multiplier, offset = (tables.name_of(f"{name}/{part}") for part in parts)
        return _braced({"multiplier": multiplier, "offset": offset, **self.shift(name)})

    def activation(self, name: str, kind: str) -> str:
        pointers = {
            part: tables.name_of(f"{name}/act/{part}_slope")
            for part in ("negative", "positive")
            if f"{name}/act/{part}_slope" in self._tensors
        }
        return _braced({"kind": _ACTIVATIONS[kind], **pointers, **self.shift(f"{name}/act")})


def _braced(values: dict[str, object]) -> str:
    text = "{" + ", ".join(f".{name} = {value}" for name, value in values.items()) + "}"
    return textwrap.fill(text, 90, subsequent_indent=" " * 9, break_long_words=False)


def _program(network: schedule.Network, fixed: "fixed_point.Quantized | None") -> str:
    d = network.described
    spec, rule = d.spec, d.preprocessing
    fields = _Fields(d.tensors, fixed.shifts if fixed else {})

    stem: dict[str, object] = {
        "size": rule.size,
        "channels": rule.channels,
        "kernel": spec.stem_kernel,
        "stride": spec.stem_stride,
        "features": spec.stem_features,
        "pixels": "ftbnn_stem_pixels",
        "weights": "ftbnn_stem_conv_kernel",
        **fields.shift("stem/conv/kernel"),
        "norm": fields.norm("stem/bn"),
        "activation": fields.activation("stem", spec.stem_activation),
    }
    blocks = []
    for block in network.blocks:
        p = block.plan
        conv = {
            "height": block.size,
            "width": block.size,
            "in_features": p.conv_in_features,
            "features": p.features,
            "groups": p.groups,
            "stride": p.stride,
            "form": _FORMS[block.form],
            "weights": tables.name_of(f"{p.name}/conv/bits"),
        }
        values: dict[str, object] = {
            "conv": _braced(conv),
            "norm": fields.norm(f"{p.name}/bn"),
            "activation": fields.activation(p.name, p.activation),
            "shortcut": _SHORTCUTS[p.shortcut],
            "in_features": p.in_features,
        }
        if p.shortcut == "conv":
            weights = {"weights": tables.name_of(f"{p.name}/shortcut_conv/kernel")}
            norm = {"norm": fields.norm(f"{p.name}/shortcut_bn")}
            values["shortcut_conv"] = _braced(
                weights | fields.shift(f"{p.name}/shortcut_conv/kernel") | norm
            )
        comment = textwrap.fill(
            f"/* {_describe(block)} */", 100, initial_indent="    ", subsequent_indent=" " * 7
        )
        blocks.append(f"{comment}\n    {{{_fields(values, 5).lstrip()}}},\n")
    head = {
        "positions": network.last_size**2,
        "features": spec.features,
        "classes": d.num_classes,
        "weights": "ftbnn_head_kernel",
        **fields.shift("head/kernel"),
        "norm": fields.norm("head", ("scale", "bias")),
    }
    names = ",\n".join(f'    "{block.plan.name}"' for block in network.blocks)
    return (
        _kernel_file("model.c.in")
        .replace("@STEM@", _fields(stem, 4))
        .replace("@BLOCKS@", "".join(blocks))
        .replace("@HEAD@", _fields(head, 4))
        .replace("@BLOCK_NAMES@", names)
        .replace("@CALLS@", _calls(network))
    )


def _calls(network: schedule.Network) -> str:
    """Returns the body of the function that runs every layer."""
    d = network.described
    spec, rule = d.spec, d.preprocessing
    stem, first = spec.stem_features, network.blocks[0]
    start = f"values + {first.x}" if first.x else "values"

    def signs(block: schedule.Block) -> str:
        nonzero = f"signs + {block.signs + block.plane}" if block.form == "ternary" else "0"
        return f"(ftbnn_signs){{signs + {block.signs}, {nonzero}}}"

    lines = [
        f"/* stem: {rule.size}x{rule.size}x{rule.channels} -> {network.stem_size}x"
        f"{network.stem_size}x{stem}, {spec.stem_kernel}x{spec.stem_kernel}, stride {spec.stem_stride}, "
        f"{spec.stem_activation} */",
        f"ftbnn_run_stem(&stem, pixels, {start}, scratch);",
    ]
    if spec.stem_pool:
        lines += [
            f"/* 3x3 maximum -> {first.size}x{first.size}x{stem} */",
            f"ftbnn_max_pool({network.stem_size}, {stem}, {start}, {start}, scratch);",
        ]
    lines.append(f"ftbnn_pack(&ftbnn_blocks[0], {start}, {signs(first)}, scratch);")
    for i, block in enumerate(network.blocks):
        following = network.blocks[i + 1] if i + 1 < len(network.blocks) else None
        then = f"&ftbnn_blocks[{i + 1}], {signs(following)}" if following else "0, (ftbnn_signs){0, 0}"
        lines += [
            f"/* {block.plan.name} -> {block.out_size}x{block.out_size}x{block.plan.features} */",
            f"ftbnn_run_block(&ftbnn_blocks[{i}], {i}, values + {block.x}, {signs(block)},",
            f"                values + {block.y}, {then}, scratch);",
        ]
    lines += [
        f"/* mean over {network.last_size}x{network.last_size} positions, classifier */",
        f"ftbnn_run_head(&head, values + {network.blocks[-1].y}, logits, scratch);",
    ]
    return "\n".join(f"  {line}" for line in lines)
