"""Reads every module's imports and keeps the arrows of the package pointing one way."""

import ast
import functools
import graphlib
import pathlib
import sys

import pytest

import ftbnn_jax

_PACKAGE = "ftbnn_jax"
_ROOT = pathlib.Path(ftbnn_jax.__file__).parent

# Lowest first; a module may import from its own layer and from lower ones. A name stands for a module
# or for a package with all that is in it. `nn.spec` and the plan it returns are below `nn`, since the
# packed runtime needs them.
_LAYERS = (
    ("", "command", "errors", "extras", "fields", "moved", "nearest", "plots", "report"),
    ("host",),
    ("ops",),
    ("nn.plan", "nn.strategies"),
    ("nn.spec",),
    ("nn.architectures",),
    ("nn",),
    ("published",),
    ("config",),
    ("graph",),
    ("networks",),
    ("budget",),
    ("data",),
    ("train", "deploy"),
    ("experiments", "bench"),
    ("main", "predict", "__main__", "budget.__main__"),
    # What only users name: nothing in the package depends on an experiment of theirs.
    ("configs",),
)
# Neighbours in a layer that must not know each other.
_APART = (
    ("train", "deploy"),
    ("deploy", "train"),
    ("experiments", "bench"),
    ("bench", "experiments"),
    ("graph", "config"),
)

_FRAMEWORKS = {"flax", "optax", "orbax", "tensorflow", "tensorflow_datasets", "ml_collections"}
# Module, and the third-party packages that neither it nor anything it imports here may need.
_WITHOUT = {
    # What every command imports, those included that have a mistake to tell.
    "errors": _FRAMEWORKS | {"jax"},
    "command": _FRAMEWORKS | {"jax"},
    "fields": _FRAMEWORKS | {"jax"},
    "moved": _FRAMEWORKS | {"jax"},
    "nearest": _FRAMEWORKS | {"jax"},
    "extras": _FRAMEWORKS | {"jax"},
    "__main__": _FRAMEWORKS | {"jax"},
    "ops": _FRAMEWORKS,
    "nn.plan": _FRAMEWORKS | {"jax"},
    "nn.strategies": _FRAMEWORKS | {"jax"},
    "nn.spec": _FRAMEWORKS | {"jax"},
    "nn.architectures": _FRAMEWORKS | {"jax"},
    "nn": _FRAMEWORKS - {"flax"},
    # Reading metrics and writing events takes no TensorFlow.
    "train.metrics": _FRAMEWORKS | {"jax"},
    # What a device or a server loads an artifact with.
    "deploy.runtime": _FRAMEWORKS | {"rich"},
    "deploy.onnx": _FRAMEWORKS,
}
# Module, and the only third-party packages that it and what it imports here may need: those of an
# install without extras.
_NEEDS_AT_MOST = {
    # absl tells how a command ends, etils opens buckets: both are imported late.
    "predict": {"PIL", "absl", "etils", "jax", "numpy", "rich", "safetensors"},
}
_MAY_MENTION_CONFIG_DICT = {"main", "config", "config.experiment", "train.loop"}


def _is_in(module: str, name: str) -> bool:
    return module == name or module.startswith(f"{name}.")


def _layer(module: str) -> int:
    """The layer of the longest name that `module` is or is in; -1 if there is none."""
    matches = [(len(n), i) for i, names in enumerate(_LAYERS) for n in names if _is_in(module, n)]
    return max(matches)[1] if matches else -1


def _read_modules() -> dict[str, str]:
    """Sources by name within the package; the package's own `__init__` is ""."""
    sources = {}
    for path in sorted(_ROOT.rglob("*.py")):
        parts = path.relative_to(_ROOT).with_suffix("").parts
        sources[".".join(p for p in parts if p != "__init__")] = path.read_text()
    return sources


@functools.cache
def _imported_names(source: str) -> tuple[str, ...]:
    """Dotted names that `source` imports, anywhere in it."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"a relative import of {node.module} in line {node.lineno}"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return tuple(names)


def _imports(source: str, modules) -> tuple[set[str], set[str]]:
    """Modules of the package that `source` imports, and other top-level packages."""
    own, foreign = set(), set()
    for name in _imported_names(source):
        top, _, rest = name.partition(".")
        if top != _PACKAGE:
            foreign.add(top)
        elif rest in modules:
            own.add(rest)
        else:  # `from ftbnn_jax.errors import UserError`: the name's last part is no module.
            own.add(rest.rpartition(".")[0])
    return own, foreign


def _violations(sources: dict[str, str]) -> list[str]:
    """One line for each broken rule."""
    imports = {m: _imports(source, sources) for m, source in sources.items()}
    found = []
    for module, (own, foreign) in imports.items():
        for other in sorted(own):
            upwards = _layer(other) > _layer(module)
            apart = any(_is_in(module, a) and _is_in(other, b) for a, b in _APART)
            if other and (upwards or apart):
                found.append(f"{module} must not import {other}")
        if "configs" in foreign:
            found.append(f"{module} must not import configs")
        if module and _layer(module) < 0:
            found.append(f"{module} stands in no layer")
        if module not in _MAY_MENTION_CONFIG_DICT and _mentions_config_dict(sources[module]):
            found.append(f"{module} must not mention ConfigDict")
    if circle := _circle({module: own for module, (own, _) in imports.items()}):
        found.append(f"{', '.join(circle)} import each other in a circle")
    for name, forbidden in _WITHOUT.items():
        for module in (m for m in imports if _is_in(m, name)):
            needed = _needed(module, imports)
            found += [f"{module} must not need {package}" for package in sorted(needed & forbidden)]
    for module in imports.keys() & _NEEDS_AT_MOST:
        more = _needed(module, imports) - _NEEDS_AT_MOST[module] - sys.stdlib_module_names
        found += [f"{module} must not need {package}" for package in sorted(more)]
    return found


def _circle(imports: dict[str, set[str]]) -> list[str]:
    """Modules of one circle of imports, late ones included; none where there is no circle."""
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        return sorted(set(error.args[1]))
    return []


def _needed(module, imports):
    """Third-party packages that importing `module` imports, through the package's modules as well."""
    todo, seen, needed = [module], set(), set()
    while todo:
        current = todo.pop()
        if current in seen or current not in imports:
            continue
        seen.add(current)
        own, foreign = imports[current]
        needed |= foreign
        # Importing a.b runs the `__init__` of a first.
        todo += [*own, current.rpartition(".")[0]]
    return needed


@functools.cache
def _mentions_config_dict(source: str) -> bool:
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.alias):
            names.add(node.name)
    return bool(names & {"ConfigDict", "FrozenConfigDict", "config_dict"})


def test_the_package_keeps_its_arrows():
    sources = _read_modules()
    assert {"ops.binary", "nn.spec", "nn.resnet", "config", "errors"} <= set(sources)
    assert _violations(sources) == []


def test_the_docs_show_the_layers_that_hold():
    lines = [", ".join(filter(None, layer)) for layer in _LAYERS]
    page = (_ROOT.parent / "docs/design.md").read_text()
    assert "```text\n" + "\n".join(lines) + "\n```\n" in page


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("ops.new", "from ftbnn_jax.nn import spec", "ops.new must not import nn.spec"),
        ("ops.new", "import ftbnn_jax.nn.blocks", "ops.new must not import nn.blocks"),
        ("ops.new", "def f():\n  from flax import linen", "ops.new must not need flax"),
        ("ops.new", "import tensorflow as tf", "ops.new must not need tensorflow"),
        ("nn.spec", "from flax import struct", "nn.spec must not need flax"),
        ("nn.spec", "from ftbnn_jax.nn import blocks", "nn.spec must not import nn.blocks"),
        ("nn.new", "from ftbnn_jax import config", "nn.new must not import config"),
        ("nn.new", "import optax", "nn.new must not need optax"),
        ("errors", "from ftbnn_jax.ops import binary", "errors must not import ops.binary"),
        ("config", "from ftbnn_jax import budget", "config must not import budget"),
        ("budget", "from ftbnn_jax.train import loop", "budget must not import train.loop"),
        ("train.new", "from ftbnn_jax.deploy import export", "train.new must not import deploy.export"),
        ("deploy.new", "from ftbnn_jax.train.loop import f", "deploy.new must not import train.loop"),
        ("deploy.new", "from ftbnn_jax import main", "deploy.new must not import main"),
        ("deploy.runtime", "from ftbnn_jax.nn import resnet", "deploy.runtime must not need flax"),
        (
            "deploy.runtime",
            "from ftbnn_jax import config",
            "deploy.runtime must not need ml_collections",
        ),
        ("train.new", "from configs import baseline", "train.new must not import configs"),
        (
            "main",
            "from ftbnn_jax.configs import baseline",
            "main must not import configs.baseline",
        ),
        (
            "train.new",
            "import ml_collections as m\nm.ConfigDict()",
            "train.new must not mention ConfigDict",
        ),
        ("predict", "import cv2", "predict must not need cv2"),
        ("predict", "def f():\n  from ftbnn_jax.data import sets", "predict must not need sklearn"),
        ("helpers", "import jax", "helpers stands in no layer"),
        (
            "train.optimizer",
            "from ftbnn_jax.train.identity import check",
            "train.identity, train.optimizer import each other in a circle",
        ),
        (
            "data.lazy",
            "def f():\n  from ftbnn_jax.data import crops",
            "data.crops, data.lazy import each other in a circle",
        ),
    ],
)
def test_a_module_that_breaks_a_rule_is_found(module, source, expected):
    stubs = dict.fromkeys(("budget", "main", "train.loop", "deploy.export"), "")
    sources = {**stubs, **_read_modules(), module: source}
    assert expected in _violations(sources)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("budget", "from ftbnn_jax.nn.resnet import ResNet\nfrom ftbnn_jax import config"),
        ("train.loop", "import ml_collections\nfrom ftbnn_jax import budget\nml_collections.ConfigDict"),
        ("deploy.runtime", "import jax\nfrom ftbnn_jax.nn.spec import ResNetSpec\nimport safetensors"),
        (
            "deploy.export",
            "from ftbnn_jax.deploy import runtime\nfrom ftbnn_jax.errors import UserError",
        ),
        ("main", "from ftbnn_jax.train import loop\nfrom ftbnn_jax.deploy import export"),
        ("nn.new", '"""Not a ConfigDict."""\nimport flax'),
    ],
)
def test_a_module_that_keeps_the_rules_is_not_accused(module, source):
    stubs = dict.fromkeys(("budget", "main", "train.loop", "deploy.export", "deploy.runtime"), "")
    found = _violations({**_read_modules(), **stubs, module: source})
    assert [line for line in found if line.startswith(f"{module} ")] == []
