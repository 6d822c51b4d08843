"""Pure functions on arrays; depends on jax alone."""
