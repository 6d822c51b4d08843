"""Multi-step training: what the stages are, what each starts from, and stopping in the middle of one."""

import dataclasses
import os
import signal

import jax
import numpy as np
import pytest

from ftbnn_jax import config as config_lib
from ftbnn_jax import networks
from ftbnn_jax.data import batches as batches_lib
from ftbnn_jax.errors import UserError
from ftbnn_jax.host import interrupt
from ftbnn_jax.nn import architectures
from ftbnn_jax.train import checkpoint, loop, stages

_REAL = {"binary_activations": True, "binary_weights": False}
_BINARY = {"binary_activations": True, "binary_weights": True}

_CONFIG = config_lib.TrainConfig(
    architectures.small((1, 1), 6),
    dataset="digits",
    image_size=8,
    num_classes=10,
    batch_size=16,
    num_steps=6,
    eval_every=6,
    checkpoint_every=2,
    log_every=2,
    augment="pad_crop",
    crop_padding=1,
    pixel_mean=(73.0,),
    pixel_std=(90.0,),
    # Not in the order in which they run: what they start from decides.
    stages={
        "binary": {"start_from": "sign", "model": _BINARY, "learning_rate": 0.002, "weight_decay": 0.0},
        "sign": {"start_from": "", "model": _REAL},
    },
)


pytestmark = pytest.mark.usefixtures("few_test_images")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, few_test_images):
    """Work directory of a teacher, one real block beside two binary ones."""
    directory = str(tmp_path_factory.mktemp("teacher"))
    net = architectures.small((1, 1), 4, block="real", activation="relu")
    loop.train(dataclasses.replace(_CONFIG, model=net, stages={}, num_steps=1), directory)
    return directory


@pytest.fixture(scope="module")
def config(teacher):
    return dataclasses.replace(_CONFIG, teacher=teacher)


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """A run that nothing stopped."""
    workdir = tmp_path_factory.mktemp("whole")
    stages.train(config, str(workdir))
    return workdir


def test_stages_are_the_config_with_what_differs():
    sign, binary = stages.resolve(_CONFIG, "run")
    assert [stage.name for stage in (sign, binary)] == ["sign", "binary"]
    assert [stage.workdir for stage in (sign, binary)] == ["run/sign", "run/binary"]
    assert (sign.config.start_from, binary.config.start_from) == ("", "run/sign")
    assert (sign.config.model.binary_weights, binary.config.model.binary_weights) == (False, True)
    assert (sign.config.learning_rate, binary.config.learning_rate) == (0.01, 0.002)
    assert sign.config.model.width == binary.config.model.width == 6
    assert sign.config.stages == binary.config.stages == {}


def test_a_config_without_stages_is_one_run():
    config = dataclasses.replace(_CONFIG, stages={})
    assert stages.resolve(config, "run") == (stages.Stage("", config, "run"),)


def test_stages_survive_a_config_dict_and_can_be_overridden():
    fields = config_lib.make(**{f.name: getattr(_CONFIG, f.name) for f in dataclasses.fields(_CONFIG)})
    config_lib.check_key(fields.to_dict(), "stages.binary.learning_rate")
    fields.stages.binary.learning_rate = 0.5
    config = config_lib.TrainConfig.from_dict(fields)
    assert stages.resolve(config, "run")[1].config.learning_rate == 0.5
    assert stages.resolve(config, "run")[0] == stages.resolve(_CONFIG, "run")[0]


@pytest.mark.parametrize(
    ("given", "found", "words"),
    [
        ({"a": {"lerning_rate": 1.0}}, "config.stages.a.lerning_rate", "learning_rate"),
        ({"a": {"model": {"widht": 1}}}, "config.stages.a.model.widht", "width"),
        ({"a": {"learning_rate": -1.0}}, "config.stages.a.learning_rate=-1.0", "at least 0"),
        ({"a": {"start_from": "b"}}, "config.stages.a.start_from='b'", "there are a"),
        ({"a": {}, "b": {}}, "config.stages.b.start_from=''", "'a' does as well"),
        ({"a": {"start_from": "b"}, "b": {"start_from": "a"}}, "config.stages", "in a ring"),
        ({"../a": {}}, "config.stages: '../a'", "letters, digits and _"),
    ],
)
def test_mistakes_in_stages_are_one_line(given, found, words):
    with pytest.raises(UserError) as error:
        stages.resolve(dataclasses.replace(_CONFIG, stages=given), "run")
    message = str(error.value)
    assert message.startswith(found)
    assert words in message
    assert "\n" not in message


def _first_variables(monkeypatch, config, workdir):
    """What a run starts with."""
    seen = []

    def record(init, *_):
        seen.append(restore(init, *_))
        raise KeyboardInterrupt

    restore = loop._restore_or_init
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_restore_or_init", record)
        with pytest.raises(KeyboardInterrupt):
            loop.train(config, workdir)
    return seen[0].variables


def test_a_stage_starts_with_the_weights_of_the_one_before(config, whole, tmp_path, monkeypatch):
    binary = stages.resolve(config, str(whole))[1]
    first = _first_variables(monkeypatch, binary.config, str(tmp_path))
    before, _, step = checkpoint.load_variables(str(whole / "sign"))
    after, _, _ = checkpoint.load_variables(str(whole / "binary"))
    assert step == 6
    jax.tree.map(np.testing.assert_array_equal, first, before)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max() > 0, before["params"], after["params"])
    assert all(jax.tree.leaves(moved))


def test_weights_are_real_in_the_first_stage_and_signs_in_the_second(config, whole):
    """Three times the latent weights give three times a real convolution, and the same binary one."""
    for stage, binary in zip(stages.resolve(config, str(whole)), (False, True), strict=True):
        variables, experiment, _ = checkpoint.load_variables(stage.workdir)
        assert experiment["config"]["model"]["binary_weights"] == binary
        model = networks.make(stage.config).module
        x = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)
        kernels = variables["params"]["block1_1"]["conv"]
        kernels["kernel_0"] = 3 * kernels["kernel_0"]
        results = [
            model.apply(v, x, capture_intermediates=True)[1]["intermediates"]["block1_1"]["conv"][
                "__call__"
            ][0]
            for v in (checkpoint.load_variables(stage.workdir)[0], variables)
        ]
        np.testing.assert_allclose(results[1], (1 if binary else 3) * results[0], rtol=1e-4, atol=1e-4)
        assert binary == np.array_equal(results[0], np.round(results[0]))


def _assert_same(one, other):
    for name in ("sign", "binary"):
        (variables, _, step), (expected, _, last) = (
            checkpoint.load_variables(str(workdir / name)) for workdir in (one, other)
        )
        assert step == last == 6
        jax.tree.map(np.testing.assert_array_equal, variables, expected)
        texts = [(workdir / name / "metrics.jsonl").read_text() for workdir in (one, other)]
        assert texts[0] == texts[1]


class Crash(Exception):
    pass


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("crash", [False, True])
def test_a_run_stopped_in_any_stage_goes_on_to_the_same_bits(
    config, whole, tmp_path, monkeypatch, stage, crash
):
    """A signal stops it, or an error before step 4 of a stage, whose newest checkpoint is of step 2.

    Batches are taken 2 steps ahead of their use.
    """
    batches = batches_lib.train_batches
    calls = []

    def stopping(*args, **kwargs):
        calls.append(None)
        for number, batch in enumerate(batches(*args, **kwargs)):
            if len(calls) == stage + 1 and number == 3 + 2:
                if crash:
                    raise Crash
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(batches_lib, "train_batches", stopping)
        with pytest.raises(Crash if crash else interrupt.Interrupted):
            stages.train(config, str(tmp_path))
    assert checkpoint.exists(str(tmp_path / "binary")) == (stage == 1)
    stages.train(config, str(tmp_path))
    _assert_same(tmp_path, whole)


def test_finished_stages_are_passed_over(config, whole, capsys):
    stages.train(config, str(whole))
    output = capsys.readouterr().out
    assert "stage binary" in output
    assert "stage sign" not in output


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"teacher": "nowhere"}, "holds no checkpoints"),
        ({"num_classes": 11}, "num_classes=10, here it is 11"),
    ],
)
def test_a_wrong_teacher_of_the_last_stage_is_refused_before_the_first_begins(
    config, tmp_path, fields, words
):
    without = {**config.stages["sign"], "teacher": ""}
    wrong = dataclasses.replace(config, **fields, stages={**config.stages, "sign": without})
    with pytest.raises(UserError, match=words):
        stages.train(wrong, str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_another_nets_weights_are_no_start(config, teacher, tmp_path):
    other = dataclasses.replace(config, stages={}, teacher="", start_from=teacher)
    with pytest.raises(
        UserError, match=r"config\.start_from=.*: batch_stats/block1_1.* in the checkpoint"
    ):
        loop.train(other, str(tmp_path))


def test_a_decoupled_stage_begins_with_the_outputs_that_the_coupled_one_ended_with(
    tmp_path, monkeypatch, capsys
):
    net = architectures.small((1, 1), 4, activation="none", stage_end_activation="none")
    fields = {
        "coupled": {"start_from": "", "model": {"ternary": "coupled"}},
        "decoupled": {"start_from": "coupled", "model": {"ternary": "decoupled"}},
    }
    config = dataclasses.replace(_CONFIG, model=net, stages=fields, num_steps=1)
    coupled, decoupled = stages.resolve(config, str(tmp_path))
    loop.train(coupled.config, coupled.workdir)
    before, _, _ = checkpoint.load_variables(coupled.workdir)
    after = _first_variables(monkeypatch, decoupled.config, decoupled.workdir)
    assert "its ternary activations come apart" in " ".join(capsys.readouterr().out.split())
    kernels = [v["params"]["block1_1"]["conv"]["kernel_0"].shape for v in (before, after)]
    assert kernels == [(3, 3, 4, 4), (3, 3, 8, 4)]
    images = jax.random.normal(jax.random.key(0), (3, 8, 8, 1))
    logits = [networks.make(s.config)(v, images) for s, v in ((coupled, before), (decoupled, after))]
    np.testing.assert_array_equal(*logits)
