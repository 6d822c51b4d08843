"""Networks of a user's own: trained, resumed, counted, packed, and told from others."""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import signal

import jax
import numpy as np
import pytest

from ftbnn_jax import config as config_lib
from ftbnn_jax import networks
from ftbnn_jax.budget import report as budget_report
from ftbnn_jax.data import batches as batches_lib
from ftbnn_jax.deploy import audit, export
from ftbnn_jax.deploy import verify as verify_lib
from ftbnn_jax.errors import UserError
from ftbnn_jax.host import interrupt
from ftbnn_jax.nn import architectures
from ftbnn_jax.train import checkpoint, evaluation, loop, stages

pytestmark = pytest.mark.usefixtures("few_test_images")

_IMPORTS = """
import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx
from ftbnn_jax import config
from ftbnn_jax.nn.blocks import BatchNorm, BinaryConv, Conv
from ftbnn_jax.ops.quantizers import ThreeValuedSign, TwoValuedSign
"""

_GET_CONFIG = """
def get_config():
    return config.make(
        {"width": 6, "rate": 0.25},
        dataset="digits",
        image_size=8,
        num_classes=10,
        batch_size=16,
        num_steps=4,
        eval_every=4,
        checkpoint_every=2,
        log_every=2,
        augment="none",
        flip=False,
        pixel_mean=(73.0,),
        pixel_std=(90.0,),
    )
"""

_LINEN = """
class Net(nn.Module):
    width: int
    rate: float
    num_classes: int

    @nn.compact
    def __call__(self, x, train):
        x = Conv(self.width, 3, 1, 1, name="stem")(x)
        x = BatchNorm(name="norm")(x, train)
        x = BinaryConv(self.width, name="conv")(x)
        steps = self.variable("counts", "steps", lambda: jnp.zeros((), jnp.int32))
        if train:
            steps.value += 1
        x = nn.BatchNorm(use_running_average=not train, name="last")(x)
        x = nn.Dropout(self.rate, deterministic=not train)(nn.relu(x).mean((1, 2)))
        return nn.Dense(self.num_classes, name="head")(x)

def get_network(config):
    return Net(config.model.width, config.model.rate, config.num_classes)
"""

_NNX = """
class Net(nnx.Module):
    def __init__(self, width, rate, num_classes, rngs):
        self.stem = nnx.Conv(1, width, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (3, 3, width, width)))
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.head = nnx.Linear(width, num_classes, rngs=rngs)

    def __call__(self, x):
        x = ThreeValuedSign()(self.norm(self.stem(x)))
        x = jax.lax.conv_general_dilated(
            x, TwoValuedSign()(self.kernel[...]), (1, 1), "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return self.head(self.dropout(x.mean((1, 2)) / 8))

def get_network(config):
    rngs = nnx.Rngs(config.seed)
    return Net(config.model.width, config.model.rate, config.num_classes, rngs)
"""

_PAIR = """
def get_network(config):
    shapes = {
        "stem": (3, 3, 1, config.model.width),
        "conv": (3, 3, config.model.width, config.model.width),
        "head": (config.model.width, config.num_classes),
    }

    def init(key):
        keys = jax.random.split(key, len(shapes))
        pairs = zip(shapes.items(), keys)
        return {"kernels": {name: jax.random.normal(k, shape) / 8 for (name, shape), k in pairs}}

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def apply(params, images, key, progress):
        kernels = params["kernels"]
        x = ThreeValuedSign()(convolve(images, kernels["stem"]))
        x = convolve(x, TwoValuedSign()(kernels["conv"])).mean((1, 2)) / 8
        if key is not None:
            x = x * jax.random.bernoulli(key, 0.75, x.shape) * (1 + progress)
        return x @ kernels["head"]

    return init, apply
"""

_KINDS = {"linen": _LINEN, "nnx": _NNX, "pair": _PAIR}


def _write(folder, network, get_config=_GET_CONFIG):
    path = folder / "own net.py"
    path.write_text(_IMPORTS + network + get_config)
    return str(path)


@pytest.fixture(scope="module", params=_KINDS)
def trained(request, tmp_path_factory, few_test_images):
    """Kind, file, config and work directory of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp(request.param)
    path = _write(folder, _KINDS[request.param])
    config = config_lib.load(path)
    loop.train(config, str(folder / "run"))
    return request.param, path, config, str(folder / "run")


def test_a_run_stopped_in_between_ends_with_the_same_bits(trained, tmp_path, monkeypatch):
    _, _, config, workdir = trained
    batches = batches_lib.train_batches

    def stopping(*args, **kwargs):
        # Batches are taken two steps ahead of their use.
        for number, batch in enumerate(batches(*args, **kwargs)):
            if number == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with monkeypatch.context() as patch, contextlib.suppress(interrupt.Interrupted):
        patch.setattr(batches_lib, "train_batches", stopping)
        loop.train(config, str(tmp_path))
    assert checkpoint.load_variables(str(tmp_path))[2] < 4
    loop.train(config, str(tmp_path))
    (found, _, step), (expected, _, _) = map(checkpoint.load_variables, (str(tmp_path), workdir))
    assert step == 4
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    texts = [pathlib.Path(d, "metrics.jsonl").read_text() for d in (tmp_path, workdir)]
    assert texts[0] == texts[1]


def test_its_variables_move_and_are_carried(trained):
    kind, _, config, workdir = trained
    variables, experiment, _ = checkpoint.load_variables(workdir)
    first = networks.make(config).init(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), first, variables)
    assert all(jax.tree.leaves(moved["params"]))
    assert experiment["config"]["model"] == {"width": 6, "rate": 0.25}
    if kind == "linen":
        # Once in each step.
        assert variables["counts"]["steps"] == 4
    if kind != "pair":
        assert all(jax.tree.leaves(moved["batch_stats"]))
    collections = {"linen": {"batch_stats", "counts"}, "nnx": {"batch_stats"}, "pair": set()}
    assert variables.keys() == {"params", *collections[kind]}


def test_weights_are_found_in_the_program_and_counted(trained):
    kind, path, config, _ = trained
    names = {
        "linen": (("conv/kernel_0",), {"stem/kernel", "head/kernel"}),
        "nnx": (("kernel",), {"stem/kernel", "head/kernel"}),
        "pair": (("kernels/conv",), {"kernels/stem", "kernels/head"}),
    }[kind]
    found = networks.weights(config, 1)
    assert (found.binary, set(found.real)) == names
    (record,) = budget_report.count_configs([(path, config)])
    # 8x8 positions, a kernel of 3x3, 6 channels from 1 and from 6; the classifier.
    assert record.budget.binary_macs == 64 * 9 * 6 * 6
    assert record.budget.macs == 64 * 9 * 6 + 6 * 10
    assert record.budget.binary_params == 9 * 6 * 6


def test_it_is_packed_verified_and_looked_at(trained, tmp_path, capsys):
    _, _, config, workdir = trained
    variables, experiment, step = checkpoint.load_variables(workdir)
    path = str(tmp_path / "model.safetensors")
    assert export.run(path, config, variables, experiment, step) == 0
    rng = np.random.default_rng(0)
    batch = {"image": rng.integers(0, 256, (5, 8, 8, 1), np.uint8), "weight": np.ones(5)}
    assert verify_lib.run(path, config, variables, [batch], as_json=True) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (report["differing"], report["layers"][0]["compared"]) == (0, 5 * 64 * 6)
    (layer,) = audit.layers(config, variables, 1, [batch])
    assert layer["weights"] == 9 * 6 * 6
    assert 0 <= layer["zero_activations"] < 1
    other = dataclasses.replace(config, model={"width": 7, "rate": 0.25})
    with pytest.raises(UserError, match="packed from another network"):
        verify_lib.run(path, other, variables, [batch])


def test_an_edited_network_is_told_from_the_trained_one(trained, tmp_path):
    kind, path, _, workdir = trained
    edited = {
        "linen": ("nn.relu(x)", "nn.tanh(x)"),
        "nnx": (" / 8)", " / 9)"),
        "pair": (" / 8\n", " / 9\n"),
    }
    other = tmp_path / "own net.py"
    text = pathlib.Path(path).read_text()
    other.write_text(text.replace(*edited[kind]))
    moved = config_lib.load(str(other))
    message = r"was trained with another network than get_network in .*own net\.py makes now; undo"
    with pytest.raises(UserError, match=message):
        evaluation.evaluate(moved, workdir)
    with pytest.raises(UserError, match=message):
        loop.train(moved, workdir)
    # The same text in another place is the same network, and so is one with more remarks in it.
    other.write_text("# A remark.\n" + text)
    evaluation.evaluate(config_lib.load(str(other)), workdir)
    with pytest.raises(UserError, match=r"config\.model\.width=6, here it is 8"):
        evaluation.evaluate(config_lib.load(str(other), ["model.width=8"]), workdir)


def _made(text):
    return f"def get_network(config):\n    return {text}\n"


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (_made("None"), "returns nothing; a flax module, a callable"),
        (_made("3"), "returns int; a flax module"),
        (_made("lambda x: x"), "a function, which has no parameters"),
        (_made("nn.Dense"), "the class Dense; one object"),
        ("def get_network():\n    return nn.Dense(10)\n", "must take one argument, the config"),
        ("get_network = 3\n", "has no function get_network"),
        (_made("1 / 0"), r"line \d+: ZeroDivisionError"),
        (_made("config.model.widht"), "no field 'widht'; the nearest is width"),
        (_LINEN.replace("x, train)", "x, train, depth)", 1), "needs an argument 'depth'; it is called"),
        (_LINEN.replace("config.num_classes)", "7)"), r"returns float32 \[1, 7\] .* here \[1, 10\]"),
        (_LINEN.replace('"counts"', '"sums"'), "its network has a collection 'sums'; checkpoints"),
        (_LINEN.replace("value += 1", "value = jnp.zeros(2)"), "others after a training step"),
        (_PAIR.replace('{"kernels"', '[{"kernels"').replace("pairs}}", "pairs}}]"), "nested"),
        (_PAIR.replace("/ 8 for", "> 0 for"), r"kernels/\w+ is bool; a floating point number"),
        (_made("(lambda key: {}), lambda params, images: images"), "no parameters; there is nothing to"),
    ],
)
def test_what_is_no_network_is_one_line(tmp_path, network, words):
    config = config_lib.load(_write(tmp_path, network))
    with pytest.raises(UserError, match=words) as error:
        loop.train(config, str(tmp_path / "run"))
    assert "own net.py: " in str(error.value)
    assert "\n" not in str(error.value)


_SPEC = """
from ftbnn_jax.nn import architectures
def get_config():
    return config.make(architectures.small((1,), 6), dataset="digits")
"""


@pytest.mark.parametrize(
    ("network", "get_config", "overrides", "words"),
    [
        (_LINEN, _SPEC, [], r"own net.py: config\.model: is a ResNetSpec, and .* has get_network"),
        ("", _GET_CONFIG, [], "no such field; .* fields of its own needs get_network"),
        (
            _LINEN,
            _GET_CONFIG,
            ["model.width=wide"],
            r"config\.model\.width=wide: must be of the kind of 6",
        ),
        (
            _LINEN,
            _GET_CONFIG,
            ["model.width=True"],
            r"config\.model\.width=True: must be of the kind of 6",
        ),
        (_LINEN, _GET_CONFIG, ["model.widht=7"], "model.width"),
        (
            _LINEN,
            _GET_CONFIG.replace("0.25", "print"),
            [],
            r"config\.model\.rate=.*must be a finite number",
        ),
        (_LINEN, _GET_CONFIG.replace('"rate"', '"to_dict"'), [], r"config\.model\.to_dict: stands for"),
        (_LINEN, _GET_CONFIG.replace('"rate"', '"a b"'), [], r"config\.model\.a b: must be a word"),
    ],
)
def test_what_the_model_cannot_be_is_one_line(tmp_path, network, get_config, overrides, words):
    with pytest.raises(UserError, match=words) as error:
        config_lib.load(_write(tmp_path, network, get_config), overrides)
    assert "\n" not in str(error.value)


def test_fields_come_from_the_command_line_and_from_json(tmp_path):
    config = config_lib.load(_write(tmp_path, _LINEN), ["model.width=8", "model.rate=0"])
    assert (config.model.width, config.model.rate) == (8, 0)
    assert config_lib.TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert hash(config.model) != hash(dataclasses.replace(config, model={"width": 8, "rate": 1}).model)


def test_it_teaches_and_learns(tmp_path, capsys):
    """Outputs are compared; attention maps would need names for its blocks."""
    path = _write(tmp_path, _LINEN)
    config = dataclasses.replace(config_lib.load(path), num_steps=1, eval_every=1)
    teacher = str(tmp_path / "teacher")
    loop.train(config, teacher)
    losses = []
    for weight in (0.0, 5.0):
        learning = dataclasses.replace(
            config, teacher=teacher, attention_weight=0.0, teacher_weight=weight, seed=1
        )
        loop.train(learning, str(tmp_path / str(weight)))
        losses.append(float(re.search(r"training loss.*?([\d.]+)", capsys.readouterr().out).group(1)))
    assert losses[1] > losses[0]
    for model in (config.model, architectures.small((1,), 6)):
        network = config.network if model is config.model else ""
        attentive = dataclasses.replace(config, teacher=teacher, model=model, network=network)
        with pytest.raises(
            UserError, match=r"config\.teacher=.*whose blocks have no names.*weight=0 would"
        ):
            loop.train(attentive, str(tmp_path / "attentive"))
    pathlib.Path(path).write_text(pathlib.Path(path).read_text().replace("nn.relu", "nn.tanh"))
    with pytest.raises(UserError, match=r"config\.teacher=.*: was trained with another network"):
        loop.train(learning, str(tmp_path / "edited"))
    pathlib.Path(path).unlink()
    with pytest.raises(UserError, match=r"own net\.py: no such file"):
        loop.train(learning, str(tmp_path / "gone"))


def test_layers_inside_of_a_transformation_are_evaluated(tmp_path):
    text = _LINEN.replace("BinaryConv(self.width", "nn.remat(BinaryConv)(self.width")
    config = dataclasses.replace(config_lib.load(_write(tmp_path, text)), num_steps=1, eval_every=1)
    loop.train(config, str(tmp_path / "run"))


def test_stages_take_fields_of_its_own(tmp_path):
    given = {"wide": {"model": {"width": 8}}, "last": {"start_from": "wide", "num_steps": 2}}
    config = dataclasses.replace(config_lib.load(_write(tmp_path, _LINEN)), stages=given)
    wide, last = stages.resolve(config, "run")
    assert (wide.config.model.width, wide.config.model.rate, last.config.model.width) == (8, 0.25, 6)
    wrong = dataclasses.replace(config, stages={"wide": {"model": {"widht": 8}}})
    with pytest.raises(UserError, match=r"config\.stages\.wide\.model\.widht: no such key"):
        stages.resolve(wrong, "run")


def test_an_equinox_module_trains_as_a_callable(tmp_path):
    pytest.importorskip("equinox")
    network = """
import equinox as eqx

class Net(eqx.Module):
    layers: list
    def __call__(self, images):
        x = images.reshape(images.shape[0], -1)
        return jax.vmap(self.layers[1])(jax.nn.relu(jax.vmap(self.layers[0])(x)))

def get_network(config):
    keys = jax.random.split(jax.random.key(config.seed), 2)
    sizes = [(64, config.model.width), (config.model.width, config.num_classes)]
    return Net([eqx.nn.Linear(*size, key=k) for size, k in zip(sizes, keys)])
"""
    config = dataclasses.replace(config_lib.load(_write(tmp_path, network)), num_steps=1, eval_every=1)
    loop.train(config, str(tmp_path / "run"))
    variables, _, _ = checkpoint.load_variables(str(tmp_path / "run"))
    assert variables["params"]["layers"]["0"]["weight"].shape == (6, 64)
    with pytest.raises(UserError, match=r"nothing to pack; .*: a product of real numbers"):
        export.to_artifact(config, variables, {"channels": 1, "class_names": ()}, 1)
