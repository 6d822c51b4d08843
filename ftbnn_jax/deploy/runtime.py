"""Runs an artifact: binary products on bits, the rest as its graph says. Needs numpy and jax alone."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from ftbnn_jax import command
from ftbnn_jax.deploy import artifact as artifact_lib
from ftbnn_jax.errors import UserError
from ftbnn_jax.graph import ir
from ftbnn_jax.host import machine
from ftbnn_jax.nn.spec import ResNetSpec
from ftbnn_jax.ops.preprocessing import Preprocessing

# Images that run at once, and pixels of them: the activations of larger ones would take gigabytes.
_SLICE = 64
_SLICE_PIXELS = 64 * 224**2


class Runtime:
    """A packed network, ready to run.

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

    def pixels(self, images: Any) -> np.ndarray:
        """Returns what enters the network: images of any sizes, preprocessed, on the host.

        Args:
          images: uint8 `[N, H, W, channels]`, or a list of `[H, W, channels]`.

        Returns:
          uint8 `[N, image_size, image_size, channels]`.

        Raises:
          UserError: they are something else, or the network came without preprocessing.
        """
        return self._rule().stack(self._checked(images))

    @machine.in_32_bits
    def logits(self, images: Any) -> jax.Array:
        """Returns float32 `[N, num_classes]`, all at once, for images that `pixels` takes."""
        return self(self.pixels(images))

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

    @machine.in_32_bits
    def predict(self, images: Any) -> np.ndarray:
        """Returns the most likely class of each image, int32 `[N]`, for any number that `pixels` takes.

        They run in slices of at most 64, fewer where images are large, the last one filled up to a power
        of two: few programs are compiled, and memory stays bounded.
        """
        rule, images = self._rule(), self._checked(images)
        most = max(1, min(_SLICE, _SLICE_PIXELS // self.artifact.image_size**2))
        classes = [np.zeros(0, np.int32)]
        for start in range(0, len(images), most):
            part = rule.stack(images[start : start + most])
            missing = (1 << (len(part) - 1).bit_length()) - len(part)
            filled = np.concatenate([part, np.zeros((missing, *part.shape[1:]), part.dtype)])
            best = jnp.argmax(self.forward(filled), axis=-1)
            classes.append(np.asarray(best, np.int32)[: len(part)])
        return np.concatenate(classes)

    def _rule(self) -> Preprocessing:
        if self.artifact.preprocessing is None:
            raise UserError(
                "this network was packed without preprocessing: call it with what its function takes"
            )
        return self.artifact.preprocessing

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
    if artifact.spec != spec.architecture or artifact.num_classes != num_classes:
        raise UserError(
            f"{path}: packed from another network than the config's; {command.mode('export')} anew"
        )
    if preprocessing and artifact.preprocessing != preprocessing:
        raise UserError(
            f"{path}: packed for {artifact.preprocessing}, the config says {preprocessing}; "
            f"{command.mode('export')} anew"
        )
