"""FTBNN in JAX: train 1-bit networks, count their budgets, pack them into bits.

>>> import jax, jax.numpy as jnp, ftbnn_jax
>>> def network(variables, images):
...     signs = jnp.where(images >= 0, 1.0, -1.0)
...     return signs @ jnp.where(variables["w"] >= 0, 1.0, -1.0)
>>> variables = {"w": jax.random.normal(jax.random.key(0), (64, 10))}
>>> images = jax.random.normal(jax.random.key(1), (4, 64))
>>> artifact = ftbnn_jax.pack(network, variables, images)
>>> len(artifact.report.packed), artifact.report.packed[0].form
(1, 'xnor')
>>> ftbnn_jax.verify(network, variables, artifact, [images]).differing
0
>>> import os, tempfile
>>> path = os.path.join(tempfile.mkdtemp(), "network.safetensors")
>>> size = artifact.save(path)
>>> net = ftbnn_jax.load(path)
>>> bool((net(images) == network(variables, images)).all())
True
>>> ftbnn_jax.budget.count(network, variables, (64,)).bops
640
"""

import importlib
import sys
from typing import Any

from ftbnn_jax import command, moved

__version__ = "0.1.0"

# Where the public names are; their modules are imported when they are first asked for.
_PUBLIC = {
    "pack": ("ftbnn_jax.deploy.export", "pack"),
    "verify": ("ftbnn_jax.deploy.verify", "verify"),
    "load": ("ftbnn_jax.deploy.runtime", "load"),
    "budget": ("ftbnn_jax.budget", None),
    "estimate": ("ftbnn_jax.deploy.c.estimate", "estimate"),
}
__all__ = ["budget", "estimate", "load", "pack", "verify"]

# What Python says while it looks for the module of `python -m`: this process is one of the commands.
if sys.argv[0] == "-m":
    command.begin()
    moved.check()


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    found = importlib.import_module(module)
    return found if attribute is None else getattr(found, attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
