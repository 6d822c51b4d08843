"""From an artifact to the text of a C program. The same artifact gives the same bytes.

No text of an artifact becomes C as it stands: numbers are checked to be numbers, words are looked up,
and names are escaped.
"""

import importlib.resources
import re
import textwrap
from collections.abc import Mapping

from ftbnn_jax.deploy import artifact as artifact_lib
from ftbnn_jax.deploy.c import (
    arithmetic,
    cortex_m,
    emit,
    fixed_point,
    golden,
    header,
    prefixes,
    profile,
    quantized,
    schedule,
    tables,
)
from ftbnn_jax.deploy.c.options import DEFAULT, Options
from ftbnn_jax.errors import UserError

PROGRAMS = {"test_model": (), "classify": ("ftbnn_image",)}
_PARTS = ("ftbnn_binary", "ftbnn_layers")
# Where there are layers in integers.
_INTEGER_PARTS = ("ftbnn_integer",)
_INTEGER_HEADERS = ("ftbnn_pairs.h",)
_HEADERS = ("ftbnn_functions.h", "ftbnn_vector.h", "ftbnn_words.h", "test_benchmark.h")


def files(artifact: artifact_lib.Artifact, options: Options = DEFAULT) -> dict[str, str]:
    """Returns every file of the program by name, but for the golden vectors.

    Args:
      artifact: the network.
      options: what shapes the program.

    Raises:
      UserError: there is no such operation in C; a tensor is not finite, or too large for fixed point;
        metadata is no number where one is needed; a class name is no C string; the prefix makes two
        names one.
    """
    _check_numbers(artifact)
    network = quantized.lower(artifact, options)
    programs = [name for name in PROGRAMS if name == "test_model" or artifact.preprocessing]
    parts = [
        *_PARTS,
        *(_INTEGER_PARTS if network.layers else ()),
        *dict.fromkeys(part for name in programs for part in PROGRAMS[name]),
    ]
    sources = sorted([*parts, "model", "weights"])
    found = {f"{name}.{end}": _kernel_file(f"{name}.{end}") for name in parts for end in "ch"}
    headers = [*_HEADERS, *(_INTEGER_HEADERS if network.layers else ())]
    found |= {name: _kernel_file(name) for name in headers}
    found |= {f"{name}.c": _kernel_file(f"{name}.c") for name in programs}
    kind = "float" if options.fraction_bits is None else "fixed"
    found["ftbnn_arithmetic.h"] = _kernel_file(f"ftbnn_{kind}.h")
    names = arithmetic.Names(_words(found))
    numbers = _numbers(network, options, names)
    found["model.h"] = header.write(_kernel_file("model.h.in"), network, options, numbers)
    words = _binary_weights(network, names)
    found["model.c"] = _program(
        network,
        numbers,
        {p.node.inputs[1]: t.name for p, t in zip(network.products, words, strict=True)},
    )
    constants = [*words, *(table for _, table in sorted(numbers.tables.items()))]
    found["weights.h"] = _guarded(
        "WEIGHTS", "#include <stdint.h>\n\n" + "".join(f"extern {t.declaration};\n" for t in constants)
    )
    found["weights.c"] = '#include "weights.h"\n\n' + "\n".join(t.definition() for t in constants)
    on_device = options.target == "cortex-m"
    found |= _builds(
        programs,
        sources,
        sorted(name for name in found if name.endswith(".h")),
        cortex_m.SOURCE if on_device else ".",
    )
    if on_device:
        found |= cortex_m.templates()
    found = prefixes.apply(found, options.prefix)
    what = header.what(network, options)
    comment = "\n * ".join(textwrap.wrap(f"{what}; do not edit.", 96))
    found["model.h"] = found["model.h"].replace("@WHAT@", comment)
    long_names, class_names = tables.class_names(artifact.class_names, network.results)
    blocks = ",\n".join(f"    {tables.string(product.name)}" for product in network.products)
    found["model.c"] = (
        found["model.c"]
        .replace("@BLOCK_NAMES@", blocks)
        .replace("@PROFILE@", profile.table(network))
        .replace("@LONG_NAMES@", long_names)
        .replace("@CLASS_NAMES@", class_names)
    )
    if on_device:
        found = cortex_m.arrange(found, sources, options.prefix, what)
    return dict(sorted(found.items()))


def example(network: schedule.Network, content: bytes, options: Options) -> dict[str, str]:
    """Returns the header, by name, with the first image of golden vectors and its result.

    Args:
      network: the program's.
      content: the golden vectors.
      options: of the program.
    """
    pixels, logits = golden.first(network, content)
    text = _kernel_file("golden.h.in")
    for field, values in (("PIXELS", pixels), ("LOGITS", logits)):
        listed = tables.wrapped(", ".join(map(tables.literal, values)), 4)
        text = text.replace(f"@{field}@", listed)
    name = cortex_m.GOLDEN.replace("@PREFIX@", options.prefix)
    return prefixes.apply({name: text}, options.prefix)


def constants(network: schedule.Network, options: Options = DEFAULT) -> list[tables.Table]:
    """Returns the arrays that a program consists of, whatever their names.

    Args:
      network: the loops.
      options: what shapes the program.

    Raises:
      UserError: as `files` does of tensors.
    """
    names = arithmetic.Names(set())
    numbers = _numbers(network, options, names)
    # The text reads them, which is how they are found.
    emit.Text(network, numbers).functions()
    return [*_binary_weights(network, names), *numbers.tables.values()]


def _binary_weights(network: schedule.Network, names: arithmetic.Names) -> list[tables.Table]:
    return [
        tables.binary_weights(names.of(p.node.inputs[1], p.node.inputs[1]), p.kernels)
        for p in network.products
    ]


def _numbers(
    network: schedule.Network, options: Options, names: arithmetic.Names
) -> arithmetic.SinglePrecision:
    if options.fraction_bits is None:
        return arithmetic.SinglePrecision(network, names)
    return fixed_point.quantize(network, options.fraction_bits, names)


def _words(files: Mapping[str, str]) -> set[str]:
    """Returns every word of the program's own."""
    return {word for text in files.values() for word in re.findall(r"\w+", text)}


def _builds(programs, sources, headers, folder: str) -> dict[str, str]:
    """Returns what builds the programs; `folder`: of the network's own files."""
    own = "" if folder == "." else f"{folder}/"
    fields = {
        "FOLDER": folder,
        "PROGRAMS": " ".join(programs),
        "OBJECTS": " ".join(f"{own}{name}.o" for name in sources),
        "SOURCES": " ".join(f"{own}{name}.c" for name in sources),
        "HEADERS": " ".join(name if name.startswith("test_") else f"{own}{name}" for name in headers),
    }
    found = {}
    for name in ("CMakeLists.txt", "Makefile"):
        found[name] = _kernel_file(name)
        for field, value in fields.items():
            found[name] = found[name].replace(f"@{field}@", value)
    return found


def _check_numbers(artifact: artifact_lib.Artifact) -> None:
    """Raises a UserError unless all metadata that is printed as a number is a whole one."""
    rule = artifact.preprocessing
    found = {"step": artifact.step}
    if rule is not None:
        found |= {f"preprocessing.{name}": getattr(rule, name) for name in ("size", "channels", "crop")}
    for name, value in found.items():
        # A bool is an int in Python.
        if not isinstance(value, int) or isinstance(value, bool):
            raise UserError(f"{name}={value!r}: must be a whole number")


def _kernel_file(name: str) -> str:
    return importlib.resources.files(__package__).joinpath("kernels", name).read_text()


def _guarded(name: str, text: str) -> str:
    return f"#ifndef FTBNN_{name}_H\n#define FTBNN_{name}_H\n\n{text}\n#endif\n"


def _program(network: schedule.Network, numbers, weights: Mapping[str, str]) -> str:
    layers, kernels = "ftbnn_layers.h", "FTBNN_KERNELS"
    if network.layers:
        layers, kernels = "ftbnn_integer.h", f'{kernels} ", real layers by " FTBNN_PAIR_KERNELS'
    return (
        _kernel_file("model.c.in")
        .replace("@LAYERS@", layers)
        .replace("@KERNELS@", kernels)
        .replace("@CONVS@", emit.convs(network, weights))
        .replace("@LOOPS@", emit.Text(network, numbers).functions())
    )
