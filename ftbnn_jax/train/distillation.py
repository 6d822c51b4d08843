"""Learning from a trained net: its outputs as soft labels, and where in the image it is active.

Appendix C of the paper follows Martinez et al. (2020): a trained net's outputs are the soft labels of
the cross-entropy, and attention maps are matched. It gives no numbers; the forms of both losses and
their default weights are those of larq-zoo's Real-to-Binary training.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ftbnn_jax import networks
from ftbnn_jax.config import TrainConfig
from ftbnn_jax.data import sets
from ftbnn_jax.errors import UserError
from ftbnn_jax.nn.network import Network
from ftbnn_jax.ops import image
from ftbnn_jax.train import checkpoint, identity


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A trained net, evaluated in inference mode and without a gradient.

    Attributes:
      config: of its run.
      variables: of its network, float32.
      network: the network.
    """

    config: TrainConfig
    variables: dict[str, Any]
    network: Network

    def outputs(
        self, variables: dict[str, Any], images: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns its logits and the outputs of its blocks.

        Args:
          variables: its own, as arguments of the program that this is part of.
          images: uint8 `[N, H, W, C]`, standardised here as the teacher was trained.
        """
        config = self.config
        x = image.standardize(images, config.mean, config.pixel_std)
        found = self.network.run(variables, x)
        return jax.lax.stop_gradient((found.logits, found.blocks))


def attention_points(student: Sequence[int], teacher: Sequence[int]) -> tuple[tuple[str, str], ...]:
    """Returns the blocks after which attention is compared: names in the student and in the teacher.

    They cut each stage of both nets into equal parts, as many as both allow: four binary blocks beside
    two real ones, which have two convolutions each, are compared after every second and every one.

    Args:
      student: how many blocks each of its stages has.
      teacher: likewise.

    Raises:
      UserError: the nets differ in the number of their stages, or one has no blocks with names.
    """
    for whose, stages in (("its net", teacher), ("the net that learns", student)):
        if not stages:
            raise UserError(
                f"{whose} is of a get_network, whose blocks have no names by which attention maps could "
                "be compared; config.attention_weight=0 would do"
            )
    if len(student) != len(teacher):
        raise UserError(
            f"its net has {len(teacher)} stages, config.model.blocks={student} has {len(student)}; the "
            "same number, or config.attention_weight=0, would do"
        )
    points = []
    for stage, counts in enumerate(zip(student, teacher, strict=True), 1):
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

    For `T = 1` it is the cross-entropy with the teacher's outputs as soft labels, less their own
    entropy, which has no gradient.

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
    stages: Sequence[int],
) -> jax.Array:
    """Returns the weighted sum of both losses.

    Args:
      config: of the student's run.
      teacher: the teacher.
      teacher_variables: its variables.
      images: uint8 `[N, H, W, C]`.
      logits: the student's.
      blocks: outputs of the student's blocks by name.
      stages: how many blocks each of the student's stages has.
    """
    teacher_logits, teacher_blocks = teacher.outputs(teacher_variables, images)
    total = config.teacher_weight * output_loss(logits, teacher_logits, config.teacher_temperature)
    if config.attention_weight:
        points = attention_points(stages, teacher.network.stages)
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
    theirs = TrainConfig.from_dict(experiment["config"])
    identity.check_program(where, experiment, theirs)
    try:
        teacher = Teacher(theirs, variables, networks.make(theirs))
        _check(config, split.channels, teacher)
    except UserError as error:
        raise error.within(f"{where}: ") from error
    return teacher


def _check(config: TrainConfig, channels: int, teacher: Teacher) -> None:
    size = config.image_size
    images = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    expected = networks.shapes(teacher.config, channels)
    checkpoint.check_same_shapes(expected, teacher.variables)
    if not config.attention_weight:
        return
    student = networks.make(config)
    points = attention_points(student.stages, teacher.network.stages)
    ours = _block_shapes(student, networks.shapes(config, channels), images)
    theirs = _block_shapes(teacher.network, expected, images)
    for s, t in points:
        if ours[s] != theirs[t]:
            raise UserError(
                f"its {t} gives {theirs[t][0]}x{theirs[t][1]} positions and {s} here {ours[s][0]}x"
                f"{ours[s][1]}; the same stem and strides, or config.attention_weight=0, would do"
            )


def _block_shapes(network, variables, images) -> dict[str, tuple[int, int]]:
    """Height and width of each block's output."""
    found = jax.eval_shape(lambda v, x: network.run(v, x).blocks, variables, images)
    return {name: output.shape[1:3] for name, output in found.items()}
