"""What works where no extra is installed, and what is said of the rest."""

import ast
import importlib
import json
import pathlib
import subprocess
import sys

import pytest

import ftbnn_jax
from ftbnn_jax import extras
from ftbnn_jax.errors import UserError

# A process in which nothing can be imported that an extra brings.
_LEAN = """
import doctest, importlib, json, pathlib, sys
import ftbnn_jax
import ftbnn_jax
from ftbnn_jax import extras
for modules in extras._MODULES.values():
    sys.modules.update(dict.fromkeys(modules))
failed, tried = doctest.testmod(ftbnn_jax)
found = {}
root = pathlib.Path(ftbnn_jax.__file__).parents[1]
for path in sorted(root.glob("ftbnn_jax/**/*.py")):
    name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
    try:
        importlib.import_module(name)
    except ImportError as error:
        found[name] = [type(error).__name__, str(error)]
print(json.dumps([failed, tried, found]), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def lean():
    """Failed and tried examples of `ftbnn_jax`'s docstring; errors of modules that are not imported."""
    result = subprocess.run([sys.executable, "-c", _LEAN], capture_output=True, text=True, check=True)
    assert result.stdout == ""
    return json.loads(result.stderr.splitlines()[-1])


def test_packing_verifying_running_and_counting_need_no_extra(lean):
    failed, tried, _ = lean
    assert failed == 0
    assert tried > 8


@pytest.mark.parametrize(
    "module",
    ["budget.count", "config", "deploy.c.export", "deploy.c.verify", "deploy.runtime", "graph.trace"],
)
def test_a_module_that_needs_no_extra(lean, module):
    assert f"ftbnn_jax.{module}" not in lean[2]


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("train.loop", "train"),
        ("nn.resnet", "train"),
        ("data.tfrecords", "train"),
        ("deploy.onnx", "onnx"),
    ],
)
def test_a_module_that_needs_one(lean, module, extra):
    assert f"pip install 'ftbnn-jax[{extra}]'" in lean[2][f"ftbnn_jax.{module}"][1]


def test_every_module_that_needs_one_says_which(lean):
    others = {name: error for name, error in lean[2].items() if error[0] != "MissingExtraError"}
    # A template imports flax as its user does; whoever loads it is told by `config.load`.
    assert list(others) == ["ftbnn_jax.configs.own_network"]


def test_the_error_is_an_import_error_and_a_message_to_the_user():
    with pytest.raises(ImportError) as error, extras.named():
        raise ModuleNotFoundError(name="onnx.helper")
    assert str(error.value) == "onnx: needs the extra: pip install 'ftbnn-jax[onnx]'"
    assert isinstance(error.value, UserError)
    # With more in front of it, as in a config file, it is a message still.
    assert str(error.value.within("x.py: ")).startswith("x.py: onnx: needs")


@pytest.mark.parametrize(
    ("version", "found"), [((3, 13), "needs the extra"), ((3, 14), "has no release")]
)
def test_where_there_is_no_tensorflow_no_extra_brings_it(monkeypatch, version, found):
    monkeypatch.setattr(sys, "version_info", version)
    assert found in str(extras.missing("tensorflow.data"))


def test_what_no_extra_brings_is_no_business_of_ours():
    with pytest.raises(ModuleNotFoundError, match="no_such_module"), extras.named():
        importlib.import_module("no_such_module")


def test_what_is_required_is_not_imported(monkeypatch):
    extras.require("onnx", "flax")
    monkeypatch.setitem(sys.modules, "flax", None)
    with pytest.raises(ImportError, match=r"^flax: needs the extra: pip install 'ftbnn-jax\[train\]'$"):
        extras.require("onnx", "flax")


def test_what_is_imported_is_required_or_in_an_extra():
    root = pathlib.Path(ftbnn_jax.__file__).parent
    imported = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.partition(".")[0])
    known = {module for modules in extras._MODULES.values() for module in modules}
    required = {"filelock", "jax", "numpy", "PIL", "rich", "safetensors"}
    # JAX brings the last two.
    assert imported - sys.stdlib_module_names - {"ftbnn_jax"} - known <= required | {"jaxlib", "scipy"}
