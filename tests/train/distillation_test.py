"""Distillation: both losses against NumPy, what is compared with what, and teachers that are refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftbnn_jax import config as config_lib
from ftbnn_jax import networks
from ftbnn_jax.data import sets
from ftbnn_jax.errors import UserError
from ftbnn_jax.nn import architectures
from ftbnn_jax.train import checkpoint, distillation, loop

_STUDENT = config_lib.TrainConfig(
    architectures.small((2, 2), 6),
    dataset="digits",
    image_size=8,
    num_classes=10,
    batch_size=16,
    num_steps=2,
    log_every=2,
    augment="none",
    pixel_mean=(73.0,),
    pixel_std=(90.0,),
)
_TEACHER = dataclasses.replace(
    _STUDENT,
    model=dataclasses.replace(
        architectures.resnet18(),
        blocks=(1, 1),
        width=4,
        stem_features=4,
        stem_kernel=3,
        stem_stride=1,
        stem_pool=False,
    ),
    num_steps=1,
    # A teacher sees the images as it did in its own training.
    pixel_std=(60.0,),
)
_NAMES = tuple("0123456789")


def _split(names=_NAMES, channels=1):
    return sets.ArraySplit(np.zeros((1, 8, 8, channels), np.uint8), np.zeros(1, np.int32), names)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A teacher's run."""
    directory = str(tmp_path_factory.mktemp("teacher"))
    loop.train(_TEACHER, directory)
    return directory


def _normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_output_loss_is_a_divergence(temperature):
    student, teacher = _normal(0, 5, 7), 3 * _normal(1, 5, 7)
    p, q = _softmax(teacher.astype(float) / temperature), _softmax(student.astype(float) / temperature)
    expected = temperature**2 * (p * np.log(p / q)).sum(-1).mean()
    found = distillation.output_loss(jnp.asarray(student), jnp.asarray(teacher), temperature)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(distillation.output_loss(student, student, temperature), 0, atol=1e-6)


def test_the_attention_loss_compares_where_and_not_how_much():
    """Nets of other widths have maps of the same size, and can be compared."""
    shapes = [((2, 3, 4, 5), (2, 3, 4, 7)), ((2, 2, 2, 6), (2, 2, 2, 6))]
    pairs = [(_normal(i, *s), _normal(9 + i, *t)) for i, (s, t) in enumerate(shapes)]

    def attention(x):
        q = (x.astype(float) ** 2).mean(-1).reshape(len(x), -1)
        return q / q.max(-1, keepdims=True)

    expected = np.mean([((attention(s) - attention(t)) ** 2).mean() for s, t in pairs])
    students, teachers = zip(*pairs, strict=True)
    np.testing.assert_allclose(distillation.attention_loss(students, teachers), expected, rtol=1e-5)
    scaled = [3 * s for s in students]
    np.testing.assert_allclose(distillation.attention_loss(scaled, students), 0, atol=1e-10)


def test_a_block_that_is_silent_has_a_finite_gradient():
    gradient = jax.grad(lambda x: distillation.attention_loss([x], [jnp.ones((1, 2, 2, 3))]))
    assert np.isfinite(gradient(jnp.zeros((1, 2, 2, 3)))).all()


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        ((4,), (2,), [("block1_2", "block1_1"), ("block1_4", "block1_2")]),
        ((2, 2), (1, 1), [("block1_2", "block1_1"), ("block2_2", "block2_1")]),
        ((3, 1), (2, 1), [("block1_3", "block1_2"), ("block2_1", "block2_1")]),
    ],
)
def test_attention_is_compared_at_equal_parts_of_each_stage(student, teacher, expected):
    assert distillation.attention_points(student, teacher) == tuple(expected)


def test_the_teacher_gets_no_gradient_and_the_student_does(workdir):
    teacher = distillation.load(dataclasses.replace(_STUDENT, teacher=workdir), _split())
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    blocks = {f"block{s}_2": _normal(s, 3, 8 // s, 8 // s, 6 * s) for s in (1, 2)}

    def loss(teacher_variables, logits, blocks):
        return distillation.loss(_STUDENT, teacher, teacher_variables, images, logits, blocks, (2, 2))

    ours = jnp.asarray(_normal(3, 3, 10)), jax.tree.map(jnp.asarray, blocks)
    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(teacher.variables, *ours)
    assert not any(np.asarray(g).any() for g in jax.tree.leaves(gradients[0]))
    assert all(np.asarray(g).any() for g in jax.tree.leaves(gradients[1:]))

    # The sum of both losses, of the outputs that the teacher has in inference mode.
    x = (images.astype(np.float32) - 73) / 60
    logits, _, seen = jax.jit(networks.make(_TEACHER).run)(teacher.variables, x)
    pairs = [(blocks[f"block{s}_2"], seen[f"block{s}_1"]) for s in (1, 2)]
    expected = 3 * distillation.output_loss(ours[0], logits, 1.0)
    expected += 30 * distillation.attention_loss(*zip(*pairs, strict=True))
    np.testing.assert_allclose(loss(teacher.variables, *ours), expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("fields", "names", "words"),
    [
        ({"num_classes": 12}, _NAMES, "config.num_classes=10, here it is 12"),
        ({"image_size": 16}, _NAMES, "config.image_size=8, here it is 16"),
        (
            {},
            ("zero", *_NAMES[1:]),
            "other classes, or in another order: number 0 is '0' there, 'zero' here",
        ),
        (
            {"model": architectures.small((2,), 6)},
            _NAMES,
            "has 2 stages, config.model.blocks=(2,) has 1",
        ),
        (
            {"model": architectures.small((2, 2), 6, stem_stride=2)},
            _NAMES,
            "block1_1 gives 8x8 positions and block1_2",
        ),
        ({"teacher": "nowhere"}, _NAMES, "holds no checkpoints; train there first"),
    ],
)
def test_a_wrong_teacher_is_refused(workdir, fields, names, words):
    config = dataclasses.replace(_STUDENT, **{"teacher": workdir, **fields})
    with pytest.raises(UserError) as error:
        distillation.load(config, _split(names))
    message = str(error.value)
    assert message.startswith(f"config.teacher={config.teacher}: ")
    assert words in message
    assert "\n" not in message


def test_a_teacher_of_other_channels_is_refused(workdir):
    with pytest.raises(UserError, match="channels of the images=1, here it is 3"):
        distillation.load(dataclasses.replace(_STUDENT, teacher=workdir), _split(channels=3))


def test_without_attention_any_structure_can_teach(workdir):
    config = dataclasses.replace(
        _STUDENT, model=architectures.small((2,), 6), teacher=workdir, attention_weight=0.0
    )
    assert distillation.load(config, _split()).config.model == _TEACHER.model


def test_a_checkpoint_must_hold_the_net_that_it_names(workdir, monkeypatch):
    whole = checkpoint.load_variables(workdir)
    whole[0]["params"]["head"]["bias"] = np.zeros(9, np.float32)
    monkeypatch.setattr(checkpoint, "load_variables", lambda workdir, given: whole)
    with pytest.raises(UserError, match=r"params/head/bias: \[9\] in the checkpoint, .* \[10\]"):
        distillation.load(dataclasses.replace(_STUDENT, teacher=workdir), _split())
