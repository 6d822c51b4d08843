"""Learning from a trained net: its outputs as soft labels, and where in the image it is active.

Appendix C of the paper follows Martinez et al. (2020) and gives no numbers; the forms of both losses and
their default weights are those of larq-zoo's Real-to-Binary training.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ftbnn_jax.config import TrainConfig
from ftbnn_jax.data import sets
from ftbnn_jax.errors import UserError
from ftbnn_jax.nn import recording
from ftbnn_jax.nn.resnet import ResNet
from ftbnn_jax.nn.spec import ResNetSpec
from ftbnn_jax.ops import image
from ftbnn_jax.train import checkpoint, identity, state


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A trained net, evaluated in inference mode and without a gradient.

    Attributes:
      config: of its run.
      variables: `params` and `batch_stats`, float32.
    """

    config: TrainConfig
    variables: dict[str, Any]

    def outputs(
        self, variables: dict[str, Any], images: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns its logits and the outputs of its blocks.

        Args:
          variables: its own, as arguments of the program that this is part of.
          images: uint8 `[N, H, W, C]`, standardised here as the teacher was trained.
        """
        config = self.config
        x = image.standardize(images, config.pixel_mean, config.pixel_std)
        logits, blocks, _ = recording.block_outputs(state.make_model(config), variables, x)
        return jax.lax.stop_gradient((logits, blocks))


def attention_points(student: ResNetSpec, teacher: ResNetSpec) -> tuple[tuple[str, str], ...]:
    """Returns the blocks after which attention is compared: names in the student and in the teacher.

    They cut each stage of both nets into equal parts, as many as both allow: four binary blocks beside
    two real ones, which have two convolutions each, are compared after every second and every one.

    Raises:
      UserError: the nets differ in the number of their stages.
    """
    if len(student.blocks) != len(teacher.blocks):
        raise UserError(
            f"its net has {len(teacher.blocks)} stages, config.model.blocks={student.blocks} has "
            f"{len(student.blocks)}; the same number, or config.attention_weight=0, would do"
        )
    points = []
    for stage, counts in enumerate(zip(student.blocks, teacher.blocks, strict=True), 1):
        parts = math.gcd(*counts)
        for part in range(1, parts + 1):
            points.append(tuple(f"block{stage}_{part * count // parts}" for count in counts))
    return tuple(points)


def attention_map(x: jax.Array) -> jax.Array:
    """Returns the mean square over the channels of `[N, H, W, C]`, the largest made 1: `[N, H * W]`."""
    attention = jnp.mean(jnp.square(x.astype(jnp.float32)), axis=-1).reshape(len(x), -1)
    # A map that is 0 everywhere stays 0, and its gradient, in which this is squared, is finite.
    return attention / jnp.maximum(jnp.max(attention, -1, keepdims=True), 1e-12)


def attention_loss(student: Sequence[jax.Array], teacher: Sequence[jax.Array]) -> jax.Array:
    """Returns the mean squared difference of attention maps, over positions, images and pairs."""
    pairs = zip(student, teacher, strict=True)
    return jnp.stack(
        [jnp.mean(jnp.square(attention_map(s) - attention_map(t))) for s, t in pairs]
    ).mean()


def output_loss(student: jax.Array, teacher: jax.Array, temperature: float) -> jax.Array:
    """Hinton et al. (2015): `T^2 * KL(softmax(teacher / T) || softmax(student / T))`, mean over images.

    Args:
      student: logits `[N, K]`.
      teacher: logits `[N, K]`.
      temperature: `T`.
    """
    p, q = (jax.nn.log_softmax(logits / temperature) for logits in (teacher, student))
    return temperature**2 * jnp.mean(jnp.sum(jnp.exp(p) * (p - q), axis=-1))


def loss(
    config: TrainConfig,
    teacher: Teacher,
    teacher_variables: dict[str, Any],
    images: jax.Array,
    logits: jax.Array,
    blocks: dict[str, jax.Array],
) -> jax.Array:
    """Returns the weighted sum of both losses.

    Args:
      config: of the student's run.
      teacher: the teacher.
      teacher_variables: its variables.
      images: uint8 `[N, H, W, C]`.
      logits: the student's.
      blocks: outputs of the student's blocks by name.
    """
    teacher_logits, teacher_blocks = teacher.outputs(teacher_variables, images)
    total = config.teacher_weight * output_loss(logits, teacher_logits, config.teacher_temperature)
    if config.attention_weight:
        points = attention_points(config.model, teacher.config.model)
        ours, theirs = [blocks[s] for s, _ in points], [teacher_blocks[t] for _, t in points]
        total += config.attention_weight * attention_loss(ours, theirs)
    return total


def load(config: TrainConfig, split: sets.Split) -> Teacher | None:
    """Reads the teacher of a config; None where it has none.

    Args:
      config: of the student's run.
      split: the student's training images.

    Raises:
      UserError: there is no such checkpoint, or the net in it cannot teach this one.
    """
    if not config.teacher:
        return None
    where = f"config.teacher={config.teacher}"
    variables, experiment, _ = checkpoint.load_variables(config.teacher, given=where)
    identity.check(where, experiment, config, split, "teacher")
    teacher = Teacher(TrainConfig.from_dict(experiment["config"]), variables)
    try:
        _check(config, split.channels, teacher)
    except UserError as error:
        raise error.within(f"{where}: ") from error
    return teacher


def _check(config: TrainConfig, channels: int, teacher: Teacher) -> None:
    size = config.image_size
    images = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    expected = _shapes(state.make_model(teacher.config), images)
    checkpoint.check_same_shapes(expected, teacher.variables)
    if not config.attention_weight:
        return
    student = state.make_model(config)
    ours = _block_shapes(student, _shapes(student, images), images)
    theirs = _block_shapes(state.make_model(teacher.config), expected, images)
    for s, t in attention_points(config.model, teacher.config.model):
        if ours[s] != theirs[t]:
            raise UserError(
                f"its {t} gives {theirs[t][0]}x{theirs[t][1]} positions and {s} here {ours[s][0]}x"
                f"{ours[s][1]}; the same stem and strides, or config.attention_weight=0, would do"
            )


def _shapes(model: ResNet, images: jax.ShapeDtypeStruct) -> dict[str, Any]:
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x), images)


def _block_shapes(model, variables, images) -> dict[str, tuple[int, int]]:
    """Height and width of each block's output."""
    _, found, _ = jax.eval_shape(lambda v, x: recording.block_outputs(model, v, x), variables, images)
    return {name: output.shape[1:3] for name, output in found.items()}
