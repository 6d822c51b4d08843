"""Where no extra is installed: packs, verifies, counts and saves a network, and draws images for it.

`net.safetensors` says of an image whether it is bright or dark; `pictures é/` holds one of each.
"""

import pathlib

import jax.numpy as jnp
import numpy as np
from PIL import Image

import ftbnn_jax
from ftbnn_jax.deploy.c import export as c_export
from ftbnn_jax.ops import image
from ftbnn_jax.ops.preprocessing import Preprocessing

rule = Preprocessing(size=8, channels=1, crop=0, antialias=True, mean=(128.0,), std=(64.0,))


def network(variables, pixels):
    """Signs of 64 pixels, times the signs of the weights."""
    x = image.standardize(pixels, rule.mean, rule.std).reshape(-1, 64)
    return jnp.where(x >= 0, 1.0, -1.0) @ jnp.where(variables["w"] >= 0, 1.0, -1.0)


weights = {"w": jnp.ones((64, 2)) * jnp.array([1.0, -1.0])}
images = np.stack([np.full((8, 8, 1), level, np.uint8) for level in (250, 5)])
artifact = ftbnn_jax.pack(network, weights, images, preprocessing=rule, class_names=("bright", "dark"))
assert [product.form for product in artifact.report.packed] == ["xnor"]
verified = ftbnn_jax.verify(network, weights, artifact, [images])
assert verified.differing == 0
artifact.save("net.safetensors")
assert ftbnn_jax.load("net.safetensors").predict(images).tolist() == [0, 1]
bops = ftbnn_jax.budget.count(network, weights, images).bops
assert bops == 64 * 2, bops
folder = pathlib.Path("pictures é")
folder.mkdir()
for name, pixels in zip(("bright.png", "dark.jpg"), images, strict=True):
    Image.fromarray(pixels[..., 0]).resize((30, 20)).save(folder / name)
print(f"packed, verified, counted: {bops} BOPs")
assert c_export.run("net.safetensors", "c", [{"image": images, "weight": np.ones(2)}]) == 0
