"""What the walk knows of an array: every number that it can hold, or that none is negative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftbnn_jax.graph import walk
from ftbnn_jax.graph.values import Value
from ftbnn_jax.ops import activations, pooling
from ftbnn_jax.ops.quantizers import PiecewiseQuadratic, ThreeValuedSign, TwoValuedSign

_TERNARY = {-1, 0, 1}


def _known(function, shape=(1, 6, 6, 4)):
    program = jax.make_jaxpr(function)(jax.ShapeDtypeStruct(shape, jnp.float32))
    x = walk.argument(Value(from_input=True), program.jaxpr.invars[0].aval)
    (result,) = walk.finish(walk.walk(program, [x]))
    return result.value


@pytest.mark.parametrize(
    ("function", "numbers"),
    [
        (ThreeValuedSign(), _TERNARY),
        (TwoValuedSign(), {-1, 1}),
        (ThreeValuedSign(PiecewiseQuadratic()), _TERNARY),
        (jnp.sign, _TERNARY),
        (lambda x: jnp.where(x >= 0, 1, -1), {-1, 1}),
        (lambda x: (x > 0) * 2.0 - 1, {-1, 1}),
        (lambda x: jnp.clip(jnp.sign(x), 0, 1), {0, 1}),
        (lambda x: ThreeValuedSign()(activations.relu(x)), {0, 1}),
        (lambda x: TwoValuedSign()(activations.relu(x)), {-1, 1}),
        (lambda x: jnp.sign(jnp.abs(x)), {0, 1}),
        (lambda x: jnp.sign(x * x), _TERNARY),
        (lambda x: jnp.sign(jnp.square(x) + 1), {0, 1}),
        (lambda x: jnp.sign(pooling.max_pool(activations.relu(x))), {0, 1}),
        (lambda x: jnp.sign(pooling.avg_pool_3x3(activations.relu(x))), {0, 1}),
        (lambda x: jnp.sign(activations.relu(x) + x), _TERNARY),
        (lambda x: jnp.sign(activations.relu(x) - 1), _TERNARY),
        (lambda x: -jnp.sign(activations.relu(x)), {-1, 0}),
        (lambda x: TwoValuedSign()(x).astype(jnp.bfloat16)[:, ::2].reshape(-1), {-1, 1}),
        (lambda x: jnp.pad(TwoValuedSign()(x), 1), _TERNARY),
        (lambda x: jnp.concatenate([TwoValuedSign()(x), x]), None),
        (lambda x: jnp.concatenate([TwoValuedSign()(x), jnp.zeros_like(x)]), _TERNARY),
        (lambda x: jax.checkpoint(TwoValuedSign())(x), {-1, 1}),
        (lambda x: jax.vmap(TwoValuedSign())(x), {-1, 1}),
        (lambda x: TwoValuedSign()(x) * 3, {-3, 3}),
        (lambda x: TwoValuedSign()(x) * jnp.mean(jnp.abs(x)), None),
        (lambda x: jnp.sign(activations.relu(x.astype(jnp.bfloat16))), {0, 1}),
        (lambda x: x, None),
        (lambda x: jax.lax.fori_loop(0, 3, lambda i, s: -s, TwoValuedSign()(x)), {-1, 1}),
        (lambda x: jax.lax.fori_loop(0, 3, lambda i, s: s * x, TwoValuedSign()(x)), None),
    ],
)
def test_numbers_that_an_array_can_hold(function, numbers):
    value = _known(function)
    assert value.from_input
    assert value.numbers == (None if numbers is None else frozenset(numbers))
    if numbers is not None:
        x = np.random.default_rng(0).normal(size=(1, 6, 6, 4)).astype(np.float32)
        x[0, 0] = 0.0
        assert set(np.unique(np.asarray(function(jnp.asarray(x)), np.float32))) <= numbers


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (activations.relu, True),
        (lambda x: activations.relu(x) * 0.5 + 1, True),
        (lambda x: activations.relu(x) * -0.5, False),
        (lambda x: jnp.tanh(activations.relu(x)), True),
        (lambda x: jnp.clip(x, 0, 1), True),
        (lambda x: jnp.clip(x, -1, 1), False),
        (lambda x: jnp.clip(activations.relu(x), -1, 1), True),
        (lambda x: x**2, True),
        (lambda x: x**3, False),
        (lambda x: jnp.where(x > 0, x, 0.0), False),
        (lambda x: jnp.where(x > 0, jnp.abs(x), 0.0), True),
        (lambda x: jax.lax.cond(x.sum() > 0, jnp.abs, activations.relu, x), True),
        (lambda x: jax.lax.cond(x.sum() > 0, jnp.abs, jnp.sin, x), False),
        (lambda x: jnp.sort(activations.relu(x)), False),
    ],
)
def test_arrays_that_cannot_be_negative(function, expected):
    assert _known(function).non_negative == expected
