"""What is looked at in a step."""

import jax.numpy as jnp
import numpy as np
import optax

from ftbnn_jax.train import monitor


def test_flips_are_counted_by_layer_and_in_all():
    """A weight of 0 is a -1; real kernels do not count."""
    before = {
        "one": {"kernel_0": jnp.array([[1.0, -1.0], [0.5, 0.0]]), "kernel_1": jnp.array([[2.0, -3.0]])},
        "two": {"kernel_0": jnp.array([1.0, 1.0])},
        "head": {"kernel": jnp.array([1.0])},
    }
    after = {
        "one": {
            "kernel_0": jnp.array([[-1.0, 1.0], [0.25, -1.0]]),
            "kernel_1": jnp.array([[0.0, -9.0]]),
        },
        "two": {"kernel_0": jnp.array([0.5, 0.5])},
        "head": {"kernel": jnp.array([-1.0])},
    }
    names = frozenset({"one/kernel_0", "one/kernel_1", "two/kernel_0"})
    looked = monitor.Monitor(optax.linear_schedule(1.0, 0.0, 10), names)
    assert looked.after(looked.before(before), after, 3) == {
        "learning_rate": 0.8,
        "flip_rate": 3 / 8,
        "flip_rate/one": 3 / 6,
        "flip_rate/two": 0.0,
    }


def test_a_network_without_binary_kernels_has_no_flips():
    looked = monitor.Monitor(optax.constant_schedule(0.003), frozenset())
    params = {"head": {"kernel": jnp.ones(3)}}
    assert looked.after(looked.before(params), params, 1) == {"learning_rate": 0.003}


def test_slopes_are_found_by_their_names():
    params = {"a": {"act": {"negative_slope": jnp.array([0.25, 0.5])}, "bn": {"scale": jnp.ones(2)}}}
    (found,) = monitor.slopes(params).items()
    assert found[0] == "a/act/negative_slope"
    np.testing.assert_array_equal(found[1], [0.25, 0.5])
