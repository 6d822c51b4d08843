"""The packed file: what it holds, and that nothing damaged is ever read."""

import dataclasses
import json
import os
import subprocess
import sys
import tracemalloc

import jax
import networks
import numpy as np
import pytest
import safetensors

from ftbnn_jax.deploy import artifact as artifact_lib
from ftbnn_jax.deploy import container, export, layout
from ftbnn_jax.errors import UserError
from ftbnn_jax.nn import architectures
from ftbnn_jax.ops.packed import bits as bitpack

_MUTATIONS = 10_000 if os.environ.get("HYPOTHESIS_PROFILE") == "nightly" else 300
_METADATA_MUTATIONS = 5_000 if os.environ.get("HYPOTHESIS_PROFILE") == "nightly" else 500


@pytest.fixture(scope="module")
def built():
    spec = architectures.small((1, 1), 11, groups=3, downsample="conv", stage_end_activation="prelu")
    return networks.build(spec, 8)


@pytest.fixture
def path(built, tmp_path):
    path = str(tmp_path / "model.safetensors")
    artifact_lib.save(path, built[2])
    return path


def test_a_round_trip_changes_nothing(built, path):
    _, _, artifact = built
    loaded = artifact_lib.load(path)
    for field in dataclasses.fields(artifact):
        if field.name != "tensors":
            assert getattr(loaded, field.name) == getattr(artifact, field.name), field.name
    assert loaded.tensors.keys() == artifact.tensors.keys()
    for name, tensor in artifact.tensors.items():
        assert loaded.tensors[name].dtype == tensor.dtype
        np.testing.assert_array_equal(loaded.tensors[name], tensor)


def test_other_software_can_read_the_file(built, path):
    with safetensors.safe_open(path, framework="numpy") as file:
        assert set(file.keys()) == built[2].tensors.keys()
        assert json.loads(file.metadata()["ftbnn_jax"])["num_classes"] == 5


def test_the_bits_are_the_signs_and_nothing_else_of_a_binary_kernel(built, path):
    config, variables, _ = built
    tensors = artifact_lib.load(path).tensors
    tiny = np.finfo(np.float32).tiny
    for plan in config.model.plan():
        conv = variables["params"][plan.name]["conv"]
        latent = np.concatenate([conv[f"kernel_{g}"].reshape(-1) for g in range(plan.groups)])
        bits = bitpack.unpack_stream(tensors[f"{plan.name}/conv/bits"], latent.size)
        # A zero of either sign and a subnormal number are -1.
        np.testing.assert_array_equal(bits, latent >= tiny)
        assert [n for n in tensors if n.startswith(f"{plan.name}/conv/")] == [f"{plan.name}/conv/bits"]
    floats = {n for n, t in tensors.items() if t.dtype == np.float32 and "kernel" in n}
    assert floats == {"stem/conv/kernel", "block2_1/shortcut_conv/kernel"}


def test_the_classifier_in_16_bits_is_the_nearest_multiple_of_each_class_scale(built):
    _, variables, artifact = built
    kernel = np.asarray(variables["params"]["head"]["kernel"], np.float64)
    stored = layout.classifier_kernel(artifact.tensors)
    assert stored.dtype == np.float32 and artifact.tensors["head/kernel"].dtype == np.int16
    # Half a step of the largest weight's 32767, and what float32 rounds scale and product by.
    step = np.abs(kernel).max(axis=0) / 32767
    assert (np.abs(stored - kernel) <= step * 0.5 + np.abs(kernel) * 2**-22).all()
    assert (np.abs(artifact.tensors["head/kernel"]).max(axis=0) == 32767).all()


@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-41, 1e-38, 1e38])
def test_classes_of_any_size_fit_into_16_bits(size):
    kernel = np.float32(size) * np.array([[1, 0], [-0.6, 0], [0.3, 0]], np.float32)
    stored = layout.classifier_kernel(layout.quantize_classifier(kernel))
    # A scale that is subnormal is a multiple of 1e-45 itself.
    np.testing.assert_allclose(stored, kernel, rtol=0, atol=size / 32767 / 2 * 1.01 + 32767 * 1.5e-45)


@pytest.mark.parametrize("name", ["baseline", "derived"])
def test_a_file_is_as_small_as_its_bits(name, tmp_path):
    spec = architectures.baseline() if name == "baseline" else architectures.derived(44, 5)
    tensors = {
        n: np.zeros(shape, dtype) for n, (dtype, shape) in layout.tensors(spec, 3, 1000, 224).items()
    }
    metadata = {
        **dataclasses.asdict(spec),
        "class_names": [f"n{i:08}" for i in range(1000)],
        "sha256": dict.fromkeys(tensors, "0" * 64),
    }
    size = len(container.to_bytes(tensors, metadata))
    bits = sum(layout.kernel_bits(plan) for plan in spec.plan())
    real = sum(t.size for n, t in tensors.items() if not n.endswith(("/bits", "head/scale")))
    assert size <= 1.02 * (bits / 8 + 4 * real) + 64 * 2**10
    if name == "derived":
        assert size * 20 <= 4 * bits


def _mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """Damages a file in one of the ways in which files get damaged, or are damaged on purpose."""
    data = bytearray(content)
    length = int.from_bytes(content[:8], "little")
    kind = rng.integers(9)
    where = int(rng.integers(len(data)))
    if kind == 0:
        data[where] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        data[int(rng.integers(8 + length))] ^= 1 << int(rng.integers(8))
    elif kind == 2:
        del data[where:]
    elif kind == 3:
        data += rng.bytes(int(rng.integers(1, 64)))
    elif kind == 4:
        data[:8] = int(rng.integers(2**62)).to_bytes(8, "little")
    elif kind == 5:
        del data[where : where + int(rng.integers(1, 64))]
    elif kind == 6:
        other = int(rng.integers(len(data) - 32))
        where = min(where, len(data) - 32)
        data[where : where + 32], data[other : other + 32] = (
            data[other : other + 32],
            data[where : where + 32],
        )
    elif kind == 7:
        pairs = [(b'"F32"', b'"U32"'), (b'"F32"', b'"F64"'), (b'"U32"', b'"I32"'), (b"[11]", b"[10]")]
        pairs += [(b'"I16"', b'"U16"'), (b'"I16"', b'"F32"'), (b'"F32"', b'"I16"')]
        pairs += [(b"[11]", b"[-1]"), (b"bn/offset", b"bn/offsat"), (b'"shape":[', b'"shape":{')]
        old, new = pairs[int(rng.integers(len(pairs)))]
        at = data.find(old, int(rng.integers(8 + length)))
        at = data.find(old) if at < 0 else at
        data[at : at + len(old)] = new
    else:
        data[where : where + 16] = rng.bytes(16)
    return bytes(data)


def test_every_mutation_is_refused_in_one_line_and_without_much_memory(path, tmp_path):
    with open(path, "rb") as file:
        content = file.read()
    rng = np.random.default_rng(0)
    target = str(tmp_path / "mutated.safetensors")
    tracemalloc.start()
    tried = 0
    while tried < _MUTATIONS:
        mutated = _mutate(content, rng)
        if mutated == content:
            continue
        tried += 1
        with open(target, "wb") as file:
            file.write(mutated)
        with pytest.raises(UserError) as caught:
            artifact_lib.load(target)
        message = str(caught.value)
        assert message.startswith(target) and "\n" not in message, (tried, message)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50 * len(content)


# What stands in a place of the metadata now and then, by mistake or on purpose.
_FOREIGN = [
    *(None, True, False, 0, 1, -1, 2, 7, 2**31, 10**9, 10**400, 0.5, -0.0, 1e308),
    *(
        float("nan"),
        float("inf"),
        "",
        "5",
        "7 */ int x;",
        "a\nb",
        "\ud800",
        "x" * 10_000,
        [],
        [1],
        ["a"],
    ),
    *([0] * 1000, [[1]], [-1.0], [float("nan")], {}, {"a": 1}, {"x": {"y": []}}),
]


def _mutate_metadata(metadata: dict, rng: np.random.Generator) -> None:
    """Puts something else in a random place, however deep, or takes it away, or adds to it."""
    node, key = metadata, list(metadata)[rng.integers(len(metadata))]
    while isinstance(node[key], (dict, list)) and node[key] and rng.random() < 0.8:
        node = node[key]
        key = list(node)[rng.integers(len(node))] if isinstance(node, dict) else rng.integers(len(node))
    kind = rng.integers(5)
    if kind == 0:
        del node[key]
    elif kind == 1 and isinstance(node, dict):
        node[f"{key}x"] = node[key]
    elif kind == 2 and type(node[key]) in (int, float):
        node[key] += int(rng.integers(-3, 4))
    else:
        node[key] = _FOREIGN[rng.integers(len(_FOREIGN))]


@pytest.mark.parametrize("by_its_author", [False, True])
def test_mutated_metadata_is_refused_in_one_line_or_what_it_says_is_what_is_loaded(
    path, tmp_path, by_its_author
):
    """All checksums of the container are right; of a foreign author, that of the network is as well."""
    rng = np.random.default_rng(1)
    target = str(tmp_path / "mutated.safetensors")
    original = artifact_lib.load(path)
    refused = 0
    tracemalloc.start()
    for tried in range(_METADATA_MUTATIONS):
        tensors, metadata, _ = container.read(path)
        _mutate_metadata(metadata, rng)
        if by_its_author:
            fields = {k: v for k, v in metadata.items() if k not in ("schema_version", "sha256")}
            fields.pop("network_sha256", None)
            metadata["network_sha256"] = artifact_lib.network_digest(fields, metadata.get("sha256"))
        with open(target, "wb") as file:
            file.write(container.to_bytes(tensors, metadata))
        try:
            loaded = artifact_lib.load(target)
        except UserError as error:
            refused += 1
            assert str(error).startswith(target) and str(error).isprintable(), (tried, str(error))
            assert len(str(error)) < 400
            continue
        for field in dataclasses.fields(loaded):
            value = getattr(loaded, field.name)
            if field.name == "tensors":
                continue
            if not by_its_author:
                assert value == getattr(original, field.name), (tried, field.name)
            plain = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value
            assert json.loads(json.dumps(plain)) == metadata[field.name]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert refused > 0.7 * _METADATA_MUTATIONS
    assert peak < 20 * 2**20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.pop("num_classes"), "metadata 'num_classes': is missing"),
        (lambda f: f.update(num_classes="5"), "metadata num_classes: int expected, found '5'"),
        (lambda f: f.update(num_classes=True), "metadata num_classes: int expected, found True"),
        (lambda f: f.update(step="7 */ int x;"), "metadata step: int expected, found '7 "),
        (lambda f: f["versions"].update(jax="1 */"), "metadata versions: names and versions expected"),
        (lambda f: f["class_names"].append("sixth"), "metadata class_names: 6 names for 5 classes"),
        (lambda f: f["class_names"].append(3), "metadata class_names: str expected, found 3"),
        (lambda f: f["preprocessing"].update(size=10**6), "preprocessing.size: 1 to 4096 expected"),
        (lambda f: f["preprocessing"].update(antialias=1), "preprocessing.antialias: bool expected"),
        (lambda f: f["preprocessing"].update(mean=[1.0, 2.0]), "2 numbers for 3 channels"),
        (lambda f: f["preprocessing"].update(std=[0.0]), "preprocessing.std: positive numbers expected"),
        (lambda f: f["preprocessing"].update(std=[float("nan")]), "preprocessing.std: a finite number"),
        (lambda f: f["preprocessing"].update(crop=100), "its metadata is not what was exported"),
        (lambda f: f["spec"].update(width=12), "model.stem_features=11"),
        (lambda f: f["spec"].update(groups=2), "expected uint32 .18., found uint32"),
        (
            lambda f: f["spec"].update(blocks=[10**9]),
            r"model\.blocks=\(1000000000,\): must be a tuple .* at most 1000",
        ),
        (lambda f: f["spec"].update(blocks=[1000]), "spec.blocks: more blocks than the 17 tensors"),
        (lambda f: f["spec"].update(colour=1), "metadata 'spec.colour': no such field is known"),
        (
            lambda f: f.update(schema_version=2),
            "version 2; .* reads 3; --mode=export writes the file anew",
        ),
        (lambda f: f.update(schema_version=99), "schema version 99; this version of ftbnn_jax reads 3"),
        (lambda f: f["sha256"].popitem(), "tensors are not those"),
        (lambda f: f["sha256"].update({"head/bias": "0" * 64}), "'head/bias'"),
    ],
)
def test_metadata_that_is_wrong_under_a_right_checksum_is_refused(path, change, message):
    tensors, metadata, intact = container.read(path)
    assert intact
    change(metadata)
    with open(path, "wb") as file:
        file.write(container.to_bytes(tensors, metadata))
    with pytest.raises(UserError, match=message):
        artifact_lib.load(path)


def test_the_same_checkpoint_gives_the_same_bytes(built, path):
    """Whatever the order of its fields; a hash map's order would differ now and then."""
    artifact = built[2]
    with open(path, "rb") as file:
        content = file.read()
    backwards = dataclasses.replace(
        artifact,
        tensors=dict(reversed(artifact.tensors.items())),
        versions=dict(reversed(artifact.versions.items())),
    )
    for again in [backwards] * 8:
        artifact_lib.save(path, again)
        with open(path, "rb") as file:
            assert file.read() == content


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    "name",
    [
        "params/stem/conv/kernel",
        "params/block1_1/conv/kernel_1",
        "params/head/bias",
        "batch_stats/stem/bn/mean",
        "batch_stats/stem/bn/var",
    ],
)
def test_what_is_not_finite_is_not_exported(built, name, value):
    config, variables, _ = built
    experiment = {"channels": 3, "class_names": []}

    def planted(path, leaf):
        here = jax.tree_util.keystr(path, simple=True, separator="/") == name
        return np.where(np.arange(leaf.size).reshape(leaf.shape) == 1, value, leaf) if here else leaf

    damaged = jax.tree_util.tree_map_with_path(planted, variables)
    with pytest.raises(UserError, match=f"step 9: {name} holds a number that is not finite"):
        export.to_artifact(config, damaged, experiment, step=9)


def _resized(tensors):
    tensors["stem/bn/offset"] = np.zeros(12, np.float32)


def _not_a_number(tensors):
    tensors["block1_1/bn/offset"] = np.full(11, np.nan, np.float32)


def _other_dtype(tensors):
    tensors["stem/bn/offset"] = tensors["stem/bn/offset"].view(np.uint32)


def _wide_classifier(tensors):
    tensors["head/kernel"] = layout.classifier_kernel(tensors)


def _padding_bit(tensors):
    words = tensors["block1_1/conv/bits"].copy()
    words[-1] |= np.uint32(1 << 31)
    tensors["block1_1/conv/bits"] = words


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_resized, "tensor 'stem/bn/offset': expected float32 .11., found float32 .12."),
        (_other_dtype, "tensor 'stem/bn/offset': expected float32 .11., found uint32 .11."),
        (_wide_classifier, "tensor 'head/kernel': expected int16 .22, 5., found float32 .22, 5."),
        (lambda t: t.pop("head/bias"), "tensor 'head/bias': expected float32 .5., found none"),
        (lambda t: t.update(spare=t["head/bias"]), "tensor 'spare': the network has no such tensor"),
        (_padding_bit, "padding bits"),
        (_not_a_number, "tensor 'block1_1/bn/offset': holds a number that is not finite"),
    ],
)
def test_tensors_that_are_not_the_networks_are_refused(built, path, change, message):
    tensors = dict(built[2].tensors)
    change(tensors)
    artifact_lib.save(path, dataclasses.replace(built[2], tensors=tensors))
    with pytest.raises(UserError, match=message):
        artifact_lib.load(path)


def test_the_home_directory_is_that_of_a_path(built, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    artifact_lib.save("~/model.safetensors", built[2])
    assert (tmp_path / "model.safetensors").is_file()
    assert artifact_lib.load("~/model.safetensors").spec == built[2].spec
    with pytest.raises(UserError, match=r"^~nobody123/x: there is no home directory"):
        artifact_lib.load("~nobody123/x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preprocessing": {"size": 5000}}, "metadata preprocessing.size: 1 to 4096 expected"),
        ({"class_names": ("\udcff",)}, "metadata class_names: holds half of a surrogate pair"),
    ],
)
def test_what_could_not_be_read_is_not_written(built, tmp_path, change, message):
    (field, value), artifact = *change.items(), built[2]
    if isinstance(value, dict):
        value = dataclasses.replace(getattr(artifact, field), **value)
    path = tmp_path / "model.safetensors"
    with pytest.raises(UserError, match=rf"not written, it could not be read again: {message}"):
        artifact_lib.save(str(path), dataclasses.replace(artifact, **{field: value}))
    assert not path.exists()


def test_a_missing_file_and_a_path_that_cannot_be_written(built, tmp_path):
    with pytest.raises(UserError, match="no such file; --mode=export writes it"):
        artifact_lib.load(str(tmp_path / "none.safetensors"))
    with pytest.raises(UserError, match="cannot be written"):
        artifact_lib.save(str(tmp_path / "no" / "such" / "directory"), built[2])


def test_running_an_artifact_needs_no_training_software(path):
    """In a fresh interpreter in which importing anything of the training half fails."""
    program = f"""
import sys
for name in ("flax", "optax", "orbax", "tensorflow", "tensorflow_datasets", "ml_collections", "rich",
             "absl", "sklearn", "safetensors.torch"):
    sys.modules[name] = None
import numpy as np
from ftbnn_jax.deploy import runtime
loaded = runtime.Runtime.load({path!r})
print(loaded.predict(np.zeros((2, 8, 8, 3), np.uint8)).shape)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(2,)"
