"""`recomputed`: the gradients of the function itself, from its arguments alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftbnn_jax.ops.recompute import narrowed, recomputed


def _function(batch, weights, offsets):
    x, shortcut = batch
    return jnp.tanh(x @ weights[0]) + shortcut + offsets


def _arguments(integers=False):
    rng = np.random.default_rng(0)
    x = rng.integers(-20, 21, (4, 3, 5)) if integers else rng.standard_normal((4, 3, 5))
    arrays = (x, rng.standard_normal((4, 3, 6)), 0.1 * rng.standard_normal((5, 6)), np.arange(6.0))
    x, shortcut, weights, offsets = (jnp.asarray(a, jnp.float32) for a in arrays)
    return (x, shortcut), (weights,), offsets


def _recomputed(largest_integer):
    def call(batch, *others):
        return recomputed(_function)(batch, narrowed(batch[0], largest_integer), *others)

    return call


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("largest_integer", [None, 20, 2**15])
def test_value_and_gradients_are_the_functions(monkeypatch, largest_integer, devices):
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    arguments = _arguments(integers=largest_integer is not None)
    expected, plain = jax.vjp(_function, *arguments)
    actual, pullback = jax.vjp(jax.jit(_recomputed(largest_integer)), *arguments)
    np.testing.assert_array_equal(actual, expected)
    g = jnp.asarray(np.random.default_rng(1).standard_normal(expected.shape), jnp.float32)
    for a, e in zip(jax.tree.leaves(pullback(g)), jax.tree.leaves(plain(g)), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("largest_integer", "bytes_of_x"), [(None, 4), (20, 2), (2**15 - 1, 2), (2**15, 4)]
)
def test_the_arguments_are_kept_and_nothing_else(largest_integer, bytes_of_x):
    arguments = _arguments(integers=True)
    residuals = jax.eval_shape(
        lambda *a: jax.tree.leaves(jax.vjp(_recomputed(largest_integer), *a)[1]), *arguments
    )
    kept = sum(leaf.size * leaf.dtype.itemsize for leaf in residuals)
    assert kept == 4 * 3 * 5 * bytes_of_x + 4 * (4 * 3 * 6 + 5 * 6 + 6)


def test_the_compiler_does_not_keep_the_forward_passs_results():
    """A chain of functions with wide insides: the compiled program is smaller with all of them lean."""

    def wide(batch, weights):
        return (jnp.sin(jnp.cos(jnp.tile(batch[0], (1, 64)) * weights)).reshape(-1, 64, 128).mean(1),)

    sizes = []
    for function in (wide, lambda batch, weights: recomputed(wide)(batch, None, weights)):

        def loss(weights, x, function=function):
            for _ in range(16):
                x = function((x,), weights)[0]
            return x.sum()

        compiled = jax.jit(jax.grad(loss)).lower(jnp.ones(64 * 128), jnp.ones((64, 128))).compile()
        sizes.append(compiled.memory_analysis().temp_size_in_bytes)
    assert sizes[1] < 0.5 * sizes[0]
