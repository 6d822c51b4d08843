"""Network specifications and the flax.linen modules that build them."""
