"""The experiments that come with the package, each a module with a function `get_config`.

Commands take them by name from any directory, `--config=derived44_g5:90`, and a config of one's own can
begin with one: `from ftbnn_jax.configs import baseline`.
"""
