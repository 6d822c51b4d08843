"""From encoded images to logits: evaluation, the packed runtime and C see the same pixels."""

import dataclasses
import io
import json
import pathlib
import re
import subprocess

import c_programs
import networks
import numpy as np
import pytest
from PIL import Image

from ftbnn_jax import predict
from ftbnn_jax.data import batches as batches_lib
from ftbnn_jax.data import sets
from ftbnn_jax.deploy import export, verify
from ftbnn_jax.deploy import runtime as runtime_lib
from ftbnn_jax.deploy.c import build, generate
from ftbnn_jax.deploy.c import export as c_export
from ftbnn_jax.deploy.c import verify as c_verify
from ftbnn_jax.deploy.pixels import Pixels
from ftbnn_jax.nn import architectures

c_programs.need_compiler()

# Twenty sizes from 30x50 to 700x500, of every ratio between.
_SIZES = [(30, 50), (700, 500), *((40 + 37 * i, 50 + 29 * ((7 * i) % 18)) for i in range(18))]


def _encoded(mode):
    """40 images: a JPEG, or a PNG, and the other of each size."""
    rng = np.random.default_rng(0)
    encoded = []
    for number, (height, width) in enumerate(_SIZES * 2):
        coarse = rng.integers(0, 256, (height // 6 + 2, width // 6 + 2, 3), np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG" if (number + number // 20) % 2 else "PNG")
        encoded.append(buffer.getvalue())
    return encoded


def _batches(augment, split, config):
    """What evaluation sees, beside the images as they are stored."""
    if augment == "resized_crop":
        return batches_lib.with_decoded(split, batches_lib.eval_batches(split, config))
    # Sets of images of one size are held in memory.
    whole = [
        sets.ArraySplit(batch["decoded"][0][None], np.zeros(1, np.int32), ("only",))
        for batch in _batches("resized_crop", split, dataclasses.replace(config, batch_size=1))
    ]
    return (
        batch
        for one in whole
        for batch in batches_lib.with_decoded(one, batches_lib.eval_batches(one, config))
    )


@pytest.mark.parametrize("channels", [1, 3], ids=["gray", "colour"])
@pytest.mark.parametrize("augment", ["resized_crop", "none"])
def test_evaluation_runtime_and_c_see_the_same(tmp_path, write_split, augment, channels):
    """And subtract the same, of colours a mean image."""
    spec = architectures.small((1, 1), 8)
    config, variables, artifact = networks.build(spec, 24, channels=channels, augment=augment)
    if channels == 3:
        mean = np.random.default_rng(5).uniform(90, 150, (24, 24, 3)).astype(np.float32)
        np.save(tmp_path / "mean.npy", mean)
        config = dataclasses.replace(config, mean_image=str(tmp_path / "mean.npy"))
        experiment = {"channels": 3, "class_names": artifact.class_names}
        artifact = export.to_artifact(config, variables, experiment, step=7)
    config = dataclasses.replace(config, batch_size=20 if augment == "resized_crop" else 1)
    split = write_split(tmp_path, _encoded("L" if channels == 1 else "RGB"))
    split = dataclasses.replace(split, channels=channels)
    batches = list(_batches(augment, split, config))
    assert len({x.shape for batch in batches for x in batch["decoded"]}) == 20
    values = 40 * 24 * 24 * channels
    net = runtime_lib.Runtime(artifact)

    pixels = Pixels(net.pixels)
    in_jax = verify.verify(export.network(config), variables, net, pixels.checked(batches))
    assert (pixels.compared, pixels.differing, in_jax.differing) == (values, 0, 0)
    assert in_jax.images == in_jax.agreeing == 40
    # Nothing but the files of an export.
    files = {name: text.encode() for name, text in generate.files(artifact).items()}
    c_export.write(tmp_path / "c", files)
    in_c = c_verify.compare(tmp_path / "c", net, batches, build.FLAGS[:0])
    assert (in_c.pixels, in_c.pixels_differing, in_c.logits_differing) == (values, 0, 0)
    assert in_c.images == in_c.agreeing == 40
    decoded = [x for batch in batches for x in batch["decoded"]]
    evaluated = np.concatenate([batch["image"] for batch in batches])
    expected = np.asarray(net.forward(evaluated)).argmax(-1)
    np.testing.assert_array_equal(net.predict(decoded), expected)


def test_python_and_c_give_the_same_probabilities(tmp_path, capfd):
    """Of the same 40 files: the command, the packed runtime on decoded images, and `classify`."""
    _, _, artifact = networks.build(architectures.small((1,), 8), 16, augment="resized_crop")
    encoded = _encoded("RGB")
    decoded = [np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) for content in encoded]
    # Random weights give one class all of the probability, of every image.
    tensors, logits = artifact.graph.tensors, np.asarray(runtime_lib.Runtime(artifact).logits(decoded))
    scale, bias = tensors["head/kernel/scale"], tensors["head/bias"]
    share = np.float32(1 / logits.std(0).mean())
    changed = {"head/kernel/scale": scale * share, "head/bias": (bias - logits.mean(0)) * share}
    graph = dataclasses.replace(artifact.graph, tensors={**tensors, **changed})
    artifact = dataclasses.replace(artifact, graph=graph)
    artifact.save(tmp_path / "model.safetensors")
    for folder in ("encoded", "pnm"):
        (tmp_path / folder).mkdir()
    for number, (content, pixels) in enumerate(zip(encoded, decoded, strict=True)):
        (tmp_path / "encoded" / f"{number:02}.png").write_bytes(content)
        Image.fromarray(pixels).save(tmp_path / "pnm" / f"{number:02}.ppm")
    assert predict.main([str(tmp_path), str(tmp_path / "encoded"), "--json"]) == 0
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [pathlib.Path(line["file"]).stem for line in lines] == [f"{n:02}" for n in range(40)]
    by_command = [{c["index"]: c["probability"] for c in line["classes"]} for line in lines]

    net = runtime_lib.Runtime(artifact)
    found = net.probabilities(decoded)
    logits = np.asarray(net.logits(sorted((tmp_path / "encoded").iterdir())), np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    assert 0.3 < expected.max(-1).mean() < 0.9 and len(set(expected.argmax(-1))) > 1

    c_export.write(tmp_path / "c", {k: v.encode() for k, v in generate.files(artifact).items()})
    build.build(tmp_path / "c", tmp_path / "classify", c_programs.STRICT, "classify")
    command = [tmp_path / "classify", *sorted((tmp_path / "pnm").iterdir())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    classes = re.findall(r"\(class (\d), probability (\S+)\)", done.stdout)
    for number in range(40):
        by_c = {int(c): float(p) for c, p in classes[5 * number : 5 * number + 5]}
        for c in range(5):
            for probability in (by_command[number][c], found[number, c], by_c[c]):
                assert abs(probability - expected[number, c]) < 1e-5
