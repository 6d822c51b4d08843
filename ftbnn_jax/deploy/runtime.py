"""Runs an artifact: binary products on bits, the rest as its graph says.

Needs numpy, jax and Pillow alone.
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from PIL import Image

from ftbnn_jax import command
from ftbnn_jax.deploy import artifact as artifact_lib
from ftbnn_jax.errors import CorruptRecordError, UserError
from ftbnn_jax.graph import ir
from ftbnn_jax.host import machine, paths
from ftbnn_jax.nn.spec import Architecture
from ftbnn_jax.ops import decoding
from ftbnn_jax.ops.preprocessing import Preprocessing

# Images that run at once, and pixels of them: the activations of larger ones would take gigabytes.
_SLICE = 64
_SLICE_PIXELS = 64 * 224**2


class Runtime:
    """A packed network, ready to run.

    `predict`, `probabilities`, `logits` and `pixels` take images of any sizes in any of these forms:

    - the path of a file, decoded as evaluation decodes it (`ops.decoding`), or a Pillow image, of any
      mode: both are brought to the network's channels;
    - an array, uint8 `[H, W, channels]`;
    - several images: a list of the above, in which forms may be mixed, or uint8 `[N, H, W, channels]`.

    What several images give has N as its first axis; what a single one gives lacks it. A UserError names
    what is none of these, a file that cannot be read, and a network that came without preprocessing.

    Args:
      artifact: what to run; from `artifact.load` or `ftbnn_jax.pack`.
    """

    @machine.in_32_bits
    def __init__(self, artifact: artifact_lib.Artifact):
        self.artifact = artifact
        self._tensors = prepare(artifact.graph)
        self._run = jax.jit(artifact.graph.run)
        self._arrays = jax.jit(self._keep, static_argnums=2)

    @classmethod
    def load(cls, path: str) -> "Runtime":
        """Reads an artifact; raises a UserError where it is missing, damaged or of another schema."""
        return cls(artifact_lib.load(path))

    @machine.in_32_bits
    def __call__(self, images: Any) -> jax.Array:
        """Returns what the packed function gave for such images.

        Args:
          images: of the dtype and shape of the example that it was packed with, any number of them.

        Raises:
          UserError: they are something else.
        """
        graph, images = self.artifact.graph, np.asarray(images)
        if images.dtype != graph.dtype or images.shape[1:] != graph.shape[1:] or not images.ndim:
            wanted = ", ".join(map(str, ("N", *graph.shape[1:])))
            raise UserError(
                f"images: {graph.dtype} [{wanted}] expected, found {images.dtype} {list(images.shape)}"
            )
        if not len(images):
            found = graph.shapes()[graph.output]
            return jnp.zeros((0, *found.shape[1:]), found.dtype)
        return self.forward(images)

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name a number of the result: the training data's, "class 7" where there is none."""
        known = self.artifact.class_names
        return (*known, *(f"class {i}" for i in range(len(known), self.artifact.num_classes)))

    @property
    def batch_size(self) -> int:
        """Images that run at once: at most 64, fewer where they are large, a power of two."""
        most = max(1, min(_SLICE, _SLICE_PIXELS // self.artifact.image_size**2))
        return 1 << (most.bit_length() - 1)

    def pixels(self, images: Any) -> np.ndarray:
        """Returns what enters the network, preprocessed on the host.

        Returns:
          uint8 `[N, image_size, image_size, channels]`.
        """
        rule, (images, single) = self._rule(), self._checked(images)
        pixels = rule.stack(map(self._decoded, images))
        return pixels[0] if single else pixels

    @machine.in_32_bits
    def logits(self, images: Any) -> jax.Array:
        """Returns the network's numbers, float32 `[N, num_classes]`; all images run at once."""
        pixels = self.pixels(images)
        return self(pixels[None])[0] if pixels.ndim == 3 else self(pixels)

    def predict(self, images: Any) -> np.ndarray | np.int32:
        """Returns the most likely class of each image, int32 `[N]`, an index into `class_names`.

        Memory stays bounded for any number of images: they are decoded and run `batch_size` at a time.
        """
        return self._by_batches(images, lambda logits: logits.argmax(-1).astype(np.int32))

    def probabilities(self, images: Any) -> np.ndarray:
        """Returns the softmax of `logits`, float32 `[N, num_classes]`; runs as `predict` does."""
        return self._by_batches(images, softmax)

    def _by_batches(self, images, function):
        """Returns `function` of the logits, an array, for all images."""
        rule, (images, single) = self._rule(), self._checked(images)
        found = [function(np.asarray(self(rule.stack([]))))]
        for start in range(0, len(images), self.batch_size):
            pixels = rule.stack(map(self._decoded, images[start : start + self.batch_size]))
            found.append(function(self.forward_padded(pixels)))
        return found[1][0] if single else np.concatenate(found)

    @machine.in_32_bits
    def forward_padded(self, pixels: np.ndarray) -> np.ndarray:
        """Returns the logits of what `pixels` gives, any number: few programs are compiled.

        They are filled up to a power of two, and what that adds is dropped.
        """
        missing = (1 << (len(pixels) - 1).bit_length()) - len(pixels)
        filled = np.concatenate([pixels, np.zeros((missing, *pixels.shape[1:]), pixels.dtype)])
        return np.asarray(self.forward(filled))[: len(pixels)]

    @machine.in_32_bits
    def forward(self, pixels: Any) -> jax.Array:
        """Returns the logits of what `pixels` gives; this alone is compiled, for each N once."""
        return self._run(pixels, self._tensors)

    @machine.in_32_bits
    def arrays(self, pixels: Any, names: Sequence[str]) -> tuple[jax.Array, list[jax.Array]]:
        """Returns logits of what `pixels` gives, and the graph's arrays of these names."""
        logits, found = self._arrays(pixels, self._tensors, tuple(names))
        return logits, [found[name] for name in names]

    def _keep(self, pixels, tensors, names):
        found = {}

        def note(name, x):
            if name in names:
                found[name] = x
            return x

        return self.artifact.graph.run(pixels, tensors, note), found

    def _rule(self) -> Preprocessing:
        if self.artifact.preprocessing is None:
            raise UserError(
                "this network was packed without preprocessing: call it with what its function takes"
            )
        return self.artifact.preprocessing

    def _checked(self, images: Any) -> tuple[Any, bool]:
        """Returns one image after the other, none decoded yet, and whether a single one was given."""
        if isinstance(images, (list, tuple)):
            return [x if _is_encoded(x) else self._array(x, "a list with ", 3) for x in images], False
        if _is_encoded(images):
            return [images], True
        found = self._array(images, "", 3, 4)
        return (found[None], True) if found.ndim == 3 else (found, False)

    def _array(self, image: Any, where: str, *axes: int) -> np.ndarray:
        channels, array = self.artifact.channels, np.asarray(image)
        right = array.dtype == np.uint8 and array.ndim in axes
        if not right or array.shape[-1] != channels or 0 in array.shape[-3:]:
            raise UserError(
                f"images: a path, a Pillow image, uint8 [H, W, {channels}], a list of these, or uint8 "
                f"[N, H, W, {channels}] expected, found {where}{array.dtype} {list(array.shape)}"
            )
        return array

    def _decoded(self, image: Any) -> np.ndarray:
        """Returns uint8 `[H, W, channels]`."""
        if not _is_encoded(image):
            return image
        channels = self.artifact.channels
        if channels not in (1, 3):
            raise UserError(f"images: arrays of {channels} channels expected, files have 1 or 3")
        if isinstance(image, Image.Image):
            where, decode = f"a Pillow image of mode {image.mode}", decoding.from_image
        else:
            image = where = paths.expand(os.fsdecode(image))
            decode = decoding.from_file
        try:
            return decode(image, channels)
        except CorruptRecordError as error:
            raise UserError(str(error), where) from error

    @machine.in_32_bits
    def to_stablehlo(self) -> bytes:
        """Returns the whole network with its weights as a serialised `jax.export` program.

        It maps what the network takes, for any N, to its result (uint8 pixels to logits where a config
        described it), and needs JAX alone: `jax.export.deserialize(content).call(pixels)`. How an image
        of another size becomes such pixels, `ops.preprocessing` says and `pixels` does.
        """
        graph = self.artifact.graph
        (batch,) = jax.export.symbolic_shape("batch")
        image = jax.ShapeDtypeStruct((batch, *graph.shape[1:]), graph.dtype)
        return bytes(jax.export.export(jax.jit(self.forward))(image).serialize())


def _is_encoded(image: Any) -> bool:
    return isinstance(image, (str, os.PathLike, Image.Image))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Returns probabilities, float32, which add up to 1 along the last axis, for logits of any size."""
    logits = np.asarray(logits, np.float32)
    # A difference beyond float32 is -inf, whose power is 0.
    with np.errstate(over="ignore", invalid="ignore"):
        powers = np.exp(logits - logits.max(-1, keepdims=True))
        return powers / powers.sum(-1, keepdims=True)


def load(path: str) -> Runtime:
    """Reads an artifact, ready to be called with images; see `Runtime`.

    Raises:
      UserError: the file is missing, damaged or of another schema.
    """
    return Runtime.load(path)


@machine.in_32_bits
def prepare(graph: ir.Graph) -> dict[str, Any]:
    """Returns a graph's tensors as `Graph.run` reads them fastest.

    Kernels of binary products are in the words that windows meet, and what needs no image is computed.
    """
    shapes = graph.shapes()
    words = {node.inputs[1]: node for node in graph.binary_products()}
    plain = {name: jnp.asarray(t) for name, t in graph.tensors.items() if name not in words}
    ready = graph.constants(plain)
    for name, node in words.items():
        weights = ir.prepare(node, graph.tensors[name], shapes[node.inputs[0]].shape)
        ready[name] = jax.tree.map(jnp.asarray, weights)
    return ready


@dataclasses.dataclass(frozen=True)
class Description:
    """What an artifact must say to be of a network.

    Attributes:
      spec: of the network; None where no specification describes it.
      num_classes: numbers that it gives for an image.
      versions: of the network's program, `program`, and of the software that its text depends on; none
        where the specification says it all.
      preprocessing: how an image becomes its input.
    """

    spec: Architecture | None
    num_classes: int
    versions: dict[str, str]
    preprocessing: Preprocessing

    def check(self, path: str, artifact: artifact_lib.Artifact) -> None:
        """Raises a UserError unless the artifact, which was read from `path`, says so.

        Programs are compared where both were written by the same versions of the software.
        """
        said = {name: artifact.versions.get(name) for name in self.versions}
        comparable = {**said, "program": ""} == {**self.versions, "program": ""}
        network = (artifact.spec, artifact.num_classes, said if comparable else self.versions)
        if network != (self.spec, self.num_classes, self.versions):
            raise UserError(
                f"{path}: packed from another network than the config's; {command.mode('export')} anew"
            )
        if artifact.preprocessing != self.preprocessing:
            raise UserError(
                f"{path}: packed for {artifact.preprocessing}, the config says {self.preprocessing}; "
                f"{command.mode('export')} anew"
            )
