"""Weights taken over from another run: classifiers that begin anew, and what is frozen."""

import contextlib
import dataclasses
import os
import signal

import jax
import numpy as np
import pytest

from ftbnn_jax import config as config_lib
from ftbnn_jax import networks
from ftbnn_jax.data import batches as batches_lib
from ftbnn_jax.data import sets
from ftbnn_jax.errors import UserError
from ftbnn_jax.host import interrupt
from ftbnn_jax.nn import architectures, flax_networks
from ftbnn_jax.nn import variables as nn_variables
from ftbnn_jax.train import checkpoint, loop, optimizer

pytestmark = pytest.mark.usefixtures("few_test_images")

_CONFIG = config_lib.TrainConfig(
    architectures.small((1, 1), 6),
    dataset="digits",
    image_size=8,
    num_classes=10,
    batch_size=16,
    num_steps=4,
    eval_every=4,
    checkpoint_every=2,
    log_every=2,
    augment="none",
    flip=False,
    pixel_mean=(73.0,),
    pixel_std=(90.0,),
    learning_rate=0.1,
    weight_decay=0.1,
)


@pytest.fixture(scope="module")
def first(tmp_path_factory, few_test_images):
    """Work directory of the run that gives its weights, on ten digits."""
    workdir = str(tmp_path_factory.mktemp("first"))
    loop.train(dataclasses.replace(_CONFIG, num_steps=1), workdir)
    return workdir


@pytest.fixture
def four_classes(monkeypatch):
    """The images of the first four digits, under names of their own."""
    whole = sets.open_split

    def few(config, *, train, workdir=""):
        split = whole(dataclasses.replace(config, num_classes=10), train=train)
        there = split.labels < 4
        names = ("zero", "one", "two", "three")
        return dataclasses.replace(
            split, images=split.images[there], labels=split.labels[there], class_names=names
        )

    monkeypatch.setattr(sets, "open_split", few)


def _by_name(workdir):
    return nn_variables.by_name(checkpoint.load_variables(workdir)[0])


# Everything but the last block and the classifier.
_FROZEN = r"^(stem|block1)"


@pytest.fixture
def config(first, four_classes):
    return dataclasses.replace(_CONFIG, num_classes=4, start_from=first, freeze=_FROZEN)


def test_another_number_of_classes_gets_another_classifier_and_what_is_frozen_stays(
    config, first, tmp_path, capsys
):
    loop.train(config, str(tmp_path))
    text = capsys.readouterr().out
    line = f"starting from the weights of step 1 in {first}; classifier of 10 classes replaced by a new"
    assert f"{line} one of 4; 12 of 14 parameters taken over\n" in text
    # Kernel, scale and bias of the stem and of the block.
    assert f"6 of 14 parameters do not change (config.freeze={_FROZEN!r})\n" in text
    before, after = _by_name(first), _by_name(str(tmp_path))
    assert after["params/head/kernel"].shape == (12, 4)
    same = {n for n in before if before[n].shape == after[n].shape and (before[n] == after[n]).all()}
    frozen = {n for n in before if n.split("/")[1] in ("stem", "block1_1")}
    assert len(frozen) == 6 + 4
    assert same == frozen


def test_a_run_with_frozen_parameters_resumes_to_the_same_bits(config, tmp_path, monkeypatch):
    one, other = str(tmp_path / "one"), str(tmp_path / "other")
    loop.train(config, one)
    batches = batches_lib.train_batches

    def stopping(*args, **kwargs):
        for number, batch in enumerate(batches(*args, **kwargs)):
            if number == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with monkeypatch.context() as patch, contextlib.suppress(interrupt.Interrupted):
        patch.setattr(batches_lib, "train_batches", stopping)
        loop.train(config, other)
    assert checkpoint.load_variables(other)[2] < 4
    with pytest.raises(UserError, match=r"was trained with config\.freeze='\^\(stem\|block1\)', here"):
        loop.train(dataclasses.replace(config, freeze=""), other)
    loop.train(config, other)
    expected = _by_name(one)
    for name, array in _by_name(other).items():
        np.testing.assert_array_equal(array, expected[name], name)


def test_frozen_parameters_have_no_optimizer_state():
    kernels = networks.weights(_CONFIG, 1)
    params = networks.shapes(_CONFIG, 1)["params"]
    sizes = []
    for freeze in ("", _FROZEN):
        tx = optimizer.make(dataclasses.replace(_CONFIG, freeze=freeze), 4, kernels)
        state = jax.eval_shape(tx.init, params)
        sizes.append(sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.size > 1))
    # Two moments of: a stem of 3x3 to 6 channels, a block of 3x3 from 6 to 6, two batch norms.
    assert sizes[0] - sizes[1] == 2 * (9 * 6 + 9 * 6 * 6 + 4 * 6)


@pytest.mark.parametrize("remat", ["none", "outputs"])
def test_frozen_batch_norms_use_the_statistics_that_they_keep(remat):
    """In training, where all of a network is frozen, it gives what it gives in inference."""
    config = dataclasses.replace(_CONFIG, remat=remat, freeze=".")
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype(np.float32)
    for freeze, same in ((".", True), ("kernel", False)):
        network = networks.make(dataclasses.replace(config, freeze=freeze))
        variables = jax.jit(network.init)(jax.random.key(0), images)
        train = jax.jit(lambda v, x, n=network: n.run(v, x, True).logits)(variables, images)
        assert np.allclose(train, jax.jit(network)(variables, images), atol=1e-5) == same


@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_frozen_batch_norms_of_flax_do_as_well(library):
    from flax import linen, nnx

    class Linen(linen.Module):
        @linen.compact
        def __call__(self, x, train):
            x = linen.BatchNorm(use_running_average=not train, name="a")(x)
            return linen.BatchNorm(name="b")(x, use_running_average=not train)

    class Nnx(nnx.Module):
        def __init__(self):
            self.a, self.b = (nnx.BatchNorm(3, rngs=nnx.Rngs(0)) for _ in range(2))

        def __call__(self, x):
            return self.b(self.a(x))

    made = {"linen": Linen, "nnx": Nnx}[library]()
    # Their batches have other means and variances than the ones that they begin with, 0 and 1.
    x = np.random.default_rng(0).normal(2, 3, (64, 3)).astype(np.float32)
    for frozen in ("a", "b", "ab", ""):
        network = flax_networks.of(made, lambda path, f=frozen: path.split("/")[0] in f)
        variables = network.init(jax.random.key(0), x)
        found = network.run(variables, x, True)
        before, after = (nn_variables.by_name(v) for v in (variables, found.collections))
        moved = {name.split("/")[1] for name in after if (before[name] != after[name]).any()}
        assert moved == {"a", "b"} - set(frozen)
        # With statistics of 0 and 1 a batch norm changes next to nothing; else one gives 0 and 1.
        assert np.allclose(found.logits, x, rtol=1e-4) == (frozen == "ab")
        assert np.allclose(found.logits.std(0), 1, rtol=1e-3) == (frozen != "ab")


@pytest.mark.parametrize(
    ("freeze", "words"),
    [
        ("stem|(", r"config\.freeze='stem\|\(': no regular expression: "),
        ("nowhere", r"config\.freeze='nowhere': found in the name of no parameter; there are block"),
        (".", r"config\.freeze='\.': freezes all 14 parameters; nothing would be trained"),
    ],
)
def test_what_cannot_be_frozen_is_one_line(freeze, words, tmp_path):
    with pytest.raises(UserError, match=words):
        loop.train(dataclasses.replace(_CONFIG, freeze=freeze), str(tmp_path))


def test_other_shapes_are_still_refused_by_name(config, tmp_path):
    wider = dataclasses.replace(config, model=architectures.small((1, 1), 7), freeze="")
    with pytest.raises(UserError, match=r"config\.start_from=.*: batch_stats/block1_1/bn/mean: \[6\]"):
        loop.train(wider, str(tmp_path))


def test_a_classifier_is_what_depends_on_the_number_of_classes():
    assert networks.classifier(_CONFIG, 1) == {"params/head/kernel", "params/head/bias"}
