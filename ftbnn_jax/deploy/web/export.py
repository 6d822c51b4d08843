"""`--mode=export --format=web`: an artifact as a folder with a page that runs it in a browser."""

import base64
import html
import importlib.resources
import json
import math
import pathlib
import shlex
from collections.abc import Iterable
from typing import Any

import numpy as np

import ftbnn_jax
from ftbnn_jax.deploy import artifact as artifact_lib
from ftbnn_jax.deploy.c import export as c_export
from ftbnn_jax.deploy.c import folder as folder_lib
from ftbnn_jax.deploy.c import golden
from ftbnn_jax.deploy.c import options as options_lib
from ftbnn_jax.deploy.c.options import Options
from ftbnn_jax.deploy.web import build
from ftbnn_jax.graph import ir
from ftbnn_jax.report import print_json, print_table

# Only a folder that holds it is replaced.
_MARK = "ftbnn.wasm"
PAGE = (
    *("index.html", "page.css", "page.js", "camera.js", "draw.js", "files.js", "images.js", "net.js"),
    "signs.js",
)
# What is read when the page runs: as it is, and as text for pages that are opened from a disk.
_READ = (*build.MODULES, "golden.bin")


def run(
    path: str,
    folder: str,
    title: str,
    batches: Iterable[dict[str, np.ndarray]],
    with_fixed_point: bool = False,
    options: Options = options_lib.DEFAULT,
    as_json: bool = False,
) -> int:
    """Writes a page that runs the artifact at `path`, prints its sizes, returns the exit status.

    Args:
      path: of the artifact.
      folder: replaced at once where it holds an earlier export.
      title: of the page.
      batches: uint8 `image` and `weight`, for golden vectors and the range of fixed point.
      with_fixed_point: integers instead of single precision between the convolutions.
      options: what else shapes the program.
      as_json: prints a line of JSON instead of a table; what fixed point loses is a warning in both.

    Raises:
      UserError: as `build.compiler`, `c.export.program` and `write` raise it.
    """
    command = build.compiler()
    artifact = artifact_lib.load(path)
    program = c_export.program(artifact, batches, with_fixed_point, options)
    packed_bytes = pathlib.Path(path).stat().st_size
    found = files(artifact, program, build.modules(program.files, command), title, packed_bytes)
    write(pathlib.Path(folder), found)
    sizes = {name: len(found[name]) for name in _READ}
    quoted = shlex.quote(folder)
    if as_json:
        print_json({"folder": folder, "fraction_bits": program.reference.fraction_bits, "bytes": sizes})
    else:
        print_table(
            "Exported as a page",
            [
                ("folder", folder),
                *program.arithmetic(),
                ("program and weights", f"{sizes[_MARK]:,} bytes"),
                ("golden vectors, on demand", f"{sizes['golden.bin']:,} bytes"),
                ("to open it", pathlib.Path(folder, "index.html").resolve().as_uri()),
                ("to serve it", f"python -m http.server -d {quoted}, then http://localhost:8000"),
            ],
        )
    program.reference.losses.warn(folder)
    return 0


def write(folder: pathlib.Path, files: dict[str, bytes]) -> None:
    """Writes the folder, as a whole or not at all: see `c.folder.write`."""
    folder_lib.write(folder, files, (_MARK,), ())


def files(
    artifact: artifact_lib.Artifact,
    program: c_export.Program,
    modules: dict[str, bytes],
    title: str,
    packed_bytes: int,
) -> dict[str, bytes]:
    """Returns every file of the folder, by name.

    Args:
      artifact: the packed network.
      program: of the artifact.
      modules: the program in WebAssembly, from `build.modules`.
      title: of the page.
      packed_bytes: size of the artifact's file.
    """
    page = importlib.resources.files(__package__).joinpath("page")
    found = {name: page.joinpath(name).read_bytes() for name in PAGE}
    about = {**describe(artifact, program), "packed_bytes": packed_bytes}
    # "<" could end the page's script, were this ever put into one.
    text = json.dumps(about, indent=1, sort_keys=True).replace("<", "\\u003c")
    found["about.js"] = f'"use strict";\n\nconst FTBNN_ABOUT = {text};\n'.encode()
    fields = {
        "TITLE": title,
        "WHAT": _what(about),
        "VERSION": ftbnn_jax.__version__,
        "STEP": f"{artifact.step:,}",
    }
    for name, value in fields.items():
        shown = html.escape(value).encode(errors="replace")
        found["index.html"] = found["index.html"].replace(f"@{name}@".encode(), shown)
    read = {**modules, "golden.bin": program.files["golden.bin"]}
    for name, content in read.items():
        found[name] = content
        text = base64.b64encode(content).decode()
        found[f"{name}.js"] = f'ftbnnTexts["{name}"] = "{text}";\n'.encode()
    return dict(sorted(found.items()))


def describe(artifact: artifact_lib.Artifact, program: c_export.Program) -> dict[str, Any]:
    """Returns what the page must know of its network, as values that JSON can hold."""
    network, graph, rule = program.reference.network, artifact.graph, artifact.preprocessing
    names = artifact.class_names[: network.results]
    bits = {p.node.inputs[1]: ir.kernel_bits(p.node.attributes) for p in network.products}
    layers = [
        {
            "name": product.name,
            "height": product.plane_shape[0],
            "width": product.plane_shape[1],
            "groups": list(product.group_inputs),
            # Each group begins with a new word.
            "words": sum(math.ceil(count / 32) for count in product.group_inputs),
            "form": product.form,
            "signs": offset,
        }
        for product, offset in zip(network.products, network.signs, strict=True)
    ]
    return {
        "arithmetic": program.options.arithmetic,
        "binary_bytes": sum(graph.tensors[name].nbytes for name in bits),
        "binary_float_bytes": 4 * sum(bits.values()),
        "classes": [*names, *(f"class {i}" for i in range(len(names), network.results))],
        "fill": fill(golden.images(network, program.files["golden.bin"])) if rule else None,
        "float_bytes": 4 * sum(bits.get(name, x.size) for name, x in graph.tensors.items()),
        "fraction_bits": program.reference.fraction_bits,
        "layers": layers,
        "multiply_adds": sum(product.multiply_adds for product in network.products),
        "record_bytes": golden.image_bytes(network),
        "results": network.results,
        "rule": None
        if rule is None
        else {"size": rule.size, "channels": rule.channels, "mean": rule.mean},
        "shape": list(graph.shape[1:]),
    }


def fill(images: np.ndarray) -> float | None:
    """Returns which share of an image's side its figure takes, if images are a figure on a gray ground.

    Drawings of any size and place are fitted likewise: a network that never saw another knows none.

    Args:
      images: uint8 `[N, H, W, C]`.
    """
    if images.shape[-1] != 1:
        return None
    edges = (images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1])
    ground = np.median(np.concatenate([edge.ravel() for edge in edges]))
    figures = np.abs(images[..., 0] - ground) > 64
    if not figures.any((1, 2)).all() or figures.mean() > 0.5:
        return None
    longest = [max(np.ptp(places) + 1 for places in np.nonzero(figure)) for figure in figures]
    return float(np.median(longest)) / images.shape[1]


def _what(about: dict[str, Any]) -> str:
    size = "\N{MULTIPLICATION SIGN}".join(
        map(str, about["shape"][:2] if about["rule"] else about["shape"])
    )
    numbers = "pixels" if about["rule"] else "numbers"
    layers = len(about["layers"])
    return (
        f"A 1-bit network: {size} {numbers} to {about['results']:,} classes through "
        f"{layers} binary layer{'s' if layers > 1 else ''}."
    )
