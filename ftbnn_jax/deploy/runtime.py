"""Runs an artifact: every binary convolution on bits, the rest in float32. Needs numpy and jax alone."""

import functools
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from ftbnn_jax.deploy import artifact as artifact_lib
from ftbnn_jax.deploy import layout
from ftbnn_jax.errors import UserError
from ftbnn_jax.host import machine
from ftbnn_jax.nn.spec import BinaryConvPlan, ResNetSpec
from ftbnn_jax.ops import activations, batch_norm, binary, image, pooling, scaling
from ftbnn_jax.ops.conv import convolution, geometry
from ftbnn_jax.ops.packed import convolution as packed
from ftbnn_jax.ops.preprocessing import Preprocessing

Tensors = dict[str, Any]
# What a binary convolution reads, float32 `[N, H, W, I]`, and gives, int32 `[N, H', W', O]`.
Record = tuple[jax.Array, jax.Array]

# Images that run at once, and pixels of them: the activations of larger ones would take gigabytes.
_SLICE = 64
_SLICE_PIXELS = 64 * 224**2


class Runtime:
    """A packed network, ready to run on uint8 images of any sizes.

    Args:
      artifact: what to run; from `artifact.load`, or with the tensors that `layout` names.
    """

    @machine.in_32_bits
    def __init__(self, artifact: artifact_lib.Artifact):
        self.artifact = artifact
        self._tensors = _prepare(artifact)

    @classmethod
    def load(cls, path: str) -> "Runtime":
        """Reads an artifact; raises a UserError where it is missing, damaged or of another schema."""
        return cls(artifact_lib.load(path))

    def pixels(self, images: Any) -> np.ndarray:
        """Returns what enters the network: images of any sizes, preprocessed, on the host.

        Args:
          images: uint8 `[N, H, W, channels]`, or a list of `[H, W, channels]`.

        Returns:
          uint8 `[N, image_size, image_size, channels]`.

        Raises:
          UserError: they are something else.
        """
        return self.artifact.preprocessing.stack(self._checked(images))

    @machine.in_32_bits
    def logits(self, images: Any) -> jax.Array:
        """Returns float32 `[N, num_classes]`, all at once, for images that `pixels` takes."""
        pixels = self.pixels(images)
        return self.forward(pixels) if len(pixels) else jnp.zeros((0, self.artifact.num_classes))

    @machine.in_32_bits
    def forward(self, pixels: Any) -> jax.Array:
        """Returns the logits of what `pixels` gives; this alone is compiled, for each N once."""
        return _logits(*self._arguments(pixels))

    @machine.in_32_bits
    def trace(self, pixels: Any) -> tuple[jax.Array, list[Record]]:
        """Returns logits of what `pixels` gives, and input and integers of each binary convolution."""
        return _trace(*self._arguments(pixels))

    @machine.in_32_bits
    def predict(self, images: Any) -> np.ndarray:
        """Returns the most likely class of each image, int32 `[N]`, for any number that `pixels` takes.

        They run in slices of at most 64, fewer where images are large, the last one filled up to a power
        of two: few programs are compiled, and memory stays bounded.
        """
        images = self._checked(images)
        a = self.artifact
        most = max(1, min(_SLICE, _SLICE_PIXELS // a.image_size**2))
        classes = [np.zeros(0, np.int32)]
        for start in range(0, len(images), most):
            part = a.preprocessing.stack(images[start : start + most])
            missing = (1 << (len(part) - 1).bit_length()) - len(part)
            filled = np.concatenate([part, np.zeros((missing, *part.shape[1:]), part.dtype)])
            best = jnp.argmax(self.forward(filled), axis=-1)
            classes.append(np.asarray(best, np.int32)[: len(part)])
        return np.concatenate(classes)

    def _checked(self, images: Any) -> Any:
        """Returns images that the network can take: one array, or a list of arrays."""
        channels = self.artifact.channels
        several = isinstance(images, (list, tuple))
        found = list(map(np.asarray, images)) if several else np.asarray(images)
        for array in found if several else [found]:
            right = array.dtype == np.uint8 and array.ndim == (3 if several else 4)
            if not right or array.shape[-1] != channels or 0 in array.shape[-3:]:
                raise UserError(
                    f"images: uint8 [N, H, W, {channels}], or a list of [H, W, {channels}], expected, "
                    f"found {'a list with ' if several else ''}{array.dtype} {list(array.shape)}"
                )
        return found

    def _arguments(self, pixels: Any) -> tuple[Any, ...]:
        rule = self.artifact.preprocessing
        return self._tensors, pixels, self.artifact.spec, rule.mean, rule.std

    @machine.in_32_bits
    def to_stablehlo(self) -> bytes:
        """Returns the whole network with its weights as a serialised `jax.export` program.

        It maps uint8 pixels `[N, image_size, image_size, channels]`, for any N, to float32 logits, and
        needs JAX alone: `jax.export.deserialize(content).call(pixels)`. How an image of another size
        becomes such pixels, `ops.preprocessing` says and `pixels` does.
        """
        (batch,) = jax.export.symbolic_shape("batch")
        shape = (batch, *self.artifact.preprocessing.shape)
        program = jax.jit(self.forward)
        exported = jax.export.export(program)(jax.ShapeDtypeStruct(shape, np.uint8))
        return bytes(exported.serialize())

    @machine.in_32_bits
    def binary_conv(self, plan: BinaryConvPlan, x: jax.Array) -> jax.Array:
        """Runs one binary convolution alone.

        Args:
          plan: one of `artifact.spec.plan()`.
          x: real activations `[N, H, W, plan.conv_in_features]`.

        Returns:
          int32 `[N, H', W', plan.features]`.
        """
        return _binary_conv(self._tensors[plan.name]["conv"], self.artifact.spec, plan, x)


def _prepare(artifact: artifact_lib.Artifact) -> Tensors:
    """Nests the tensors by module and packs the kernels into the words that the convolution reads."""
    nested: Tensors = {}
    for name, tensor in artifact.tensors.items():
        *path, leaf = name.split("/")
        functools.reduce(lambda node, key: node.setdefault(key, {}), path, nested)[leaf] = tensor
    for plan, size in zip(artifact.spec.plan(), input_sizes(artifact), strict=True):
        kernels = layout.unpack_kernels(plan, artifact.tensors[f"{plan.name}/conv/bits"])
        nested[plan.name]["conv"] = packed_conv(artifact.spec, plan).prepare(kernels, size, size)
    nested["head"]["kernel"] = layout.classifier_kernel(artifact.tensors)
    return jax.tree.map(jnp.asarray, nested)


def packed_conv(spec: ResNetSpec, plan: BinaryConvPlan) -> packed.PackedConv:
    """Returns the binary convolution of `plan` in the form that what reaches its input allows.

    A ReLU before it leaves no negative input. A two-valued sign leaves no 0. Anything else can be
    exactly 0 now and then, behind an FPReLU as well.
    """
    form = "xnor" if spec.two_valued_sign(plan) else "and" if plan.after_relu else "ternary"
    return packed.PackedConv(
        binary.group_sizes(plan.conv_in_features, plan.groups),
        binary.group_sizes(plan.features, plan.groups),
        form,
        strides=(plan.stride, plan.stride),
    )


def check_same_network(
    path: str,
    artifact: artifact_lib.Artifact,
    spec: ResNetSpec,
    num_classes: int,
    preprocessing: Preprocessing | None = None,
) -> None:
    """Raises a UserError unless the artifact at `path` was packed from the network of a config.

    Args:
      path: of the artifact.
      artifact: what was read there.
      spec: of the config.
      num_classes: likewise.
      preprocessing: likewise; None where it does not matter.
    """
    if artifact.spec.architecture != spec.architecture or artifact.num_classes != num_classes:
        raise UserError(f"{path}: packed from another network than the config's; --mode=export anew")
    if preprocessing and artifact.preprocessing != preprocessing:
        raise UserError(
            f"{path}: packed for {artifact.preprocessing}, the config says {preprocessing}; "
            "--mode=export anew"
        )


def input_sizes(artifact: artifact_lib.Artifact) -> list[int]:
    """Returns height, which is also the width, of the input of each binary convolution."""
    spec = artifact.spec
    half = spec.stem_kernel // 2
    size = geometry.output_size(artifact.image_size, spec.stem_kernel, spec.stem_stride, (half, half))
    if spec.stem_pool:
        size = geometry.output_size(size, 3, 2, (1, 1))
    sizes = []
    for plan in spec.plan():
        sizes.append(size)
        size = geometry.output_size(size, 3, plan.stride, (1, 1))
    return sizes


def _forward(tensors, pixels, spec, mean, std):
    """Logits, and input and integers of every binary convolution."""
    x = image.standardize(pixels, mean, std)
    stem = tensors["stem"]
    x = convolution.conv2d(x, stem["conv"]["kernel"], spec.stem_stride, spec.stem_kernel // 2)
    x = _batch_norm(stem["bn"], x)
    x = _activation(stem, spec.stem_activation, x)
    if spec.stem_pool:
        x = pooling.max_pool(x)
    records = []
    for plan in spec.plan():
        x, record = _block(tensors[plan.name], spec, plan, x)
        records.append(record)
    logits = jnp.dot(pooling.head(x, spec.head), tensors["head"]["kernel"]) + tensors["head"]["bias"]
    return logits, records


_trace = jax.jit(_forward, static_argnums=(2, 3, 4))
_logits = jax.jit(lambda *arguments: _forward(*arguments)[0], static_argnums=(2, 3, 4))


def _block(
    tensors: Tensors, spec: ResNetSpec, plan: BinaryConvPlan, x: jax.Array
) -> tuple[jax.Array, Record]:
    shortcut = x if plan.shortcut == "identity" else None
    if plan.shortcut == "duplicate":
        pooled = pooling.avg_pool_3x3(x)
        shortcut = jnp.concatenate([pooled, pooled], axis=-1)
        x = jnp.concatenate([x, x], axis=-1)
    elif plan.shortcut == "conv":
        shortcut = convolution.conv2d(pooling.avg_pool_2x2(x), tensors["shortcut_conv"]["kernel"])
        shortcut = _batch_norm(tensors["shortcut_bn"], shortcut)
    sums = _binary_conv(tensors["conv"], spec, plan, x)
    y = sums
    if spec.scaling == "xnor_net":
        y = scaling.apply(y, scaling.input_magnitude(x, plan.groups, plan.features, plan.stride))
    elif spec.scaling == "real_to_bin":
        gate = tensors["gate"]
        y = scaling.apply(y, scaling.gate(x, gate["reduce_kernel"], gate["expand_kernel"]))
    y = _batch_norm(tensors["bn"], y)
    if shortcut is not None:
        y = y + shortcut
    return _activation(tensors, plan.activation, y), (x, sums)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _binary_conv(kernels, spec: ResNetSpec, plan: BinaryConvPlan, x: jax.Array) -> jax.Array:
    return packed_conv(spec, plan)(kernels, x)


def _batch_norm(tensors: Tensors, x: jax.Array) -> jax.Array:
    return batch_norm.apply_folded(x, tensors["multiplier"], tensors["offset"])


def _activation(tensors: Tensors, name: str, x: jax.Array) -> jax.Array:
    if name == "relu":
        return activations.relu(x)
    if name == "prelu":
        return activations.prelu(x, tensors["act"]["negative_slope"])
    if name == "fprelu":
        return activations.fprelu(x, tensors["act"]["negative_slope"], tensors["act"]["positive_slope"])
    return x
