"""flax's modules in a program: how they are made ready to run, and what their operations are named."""

import contextlib
import inspect
from collections.abc import Callable
from typing import Any

import jax

from ftbnn_jax import extras
from ftbnn_jax.graph import walk
from ftbnn_jax.ops import marks

with extras.named():
    from flax import linen as nn
    from flax.core import DenyList

_NORMS = (nn.BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm, nn.RMSNorm)


def is_module(function: Any) -> bool:
    """Whether something is a flax module."""
    return isinstance(function, nn.Module)


def ready(
    module: nn.Module, inputs: list[Any], arguments: dict[str, Any]
) -> tuple[Any, dict[str, Any], Callable[..., Any]]:
    """Traces the initialisation of an unbound module.

    Args:
      module: the module. A `train` that it takes is True unless given.
      inputs: shapes of its positional inputs.
      arguments: its keyword arguments.

    Returns:
      Its variables and the keys of its random numbers, as shapes; and the function of variables, keys
      and inputs that applies it.
    """
    if "train" in inspect.signature(type(module).__call__).parameters:
        arguments = {"train": True, **arguments}
    key = jax.eval_shape(lambda: jax.random.key(0))
    rngs = dict.fromkeys(("params", "dropout"), key)
    variables = jax.eval_shape(lambda rngs, *x: module.init(rngs, *x, **arguments), rngs, *inputs)
    state = {**arguments, "mutable": DenyList("params")}
    return variables, rngs, lambda v, rngs, x: module.apply(v, *x, rngs=rngs, **state)[0]


def named() -> contextlib.AbstractContextManager[Any]:
    """Has the operations of modules named after their layers."""
    return nn.intercept_methods(_name_scopes)


def _name_scopes(next_function, args, kwargs, context):
    """Puts a module's operations into a scope of its path, and marks what flax's own modules do."""
    # The separator of scopes must not stand in one.
    with jax.named_scope(walk.SCOPE + ":".join(context.module.path)):
        y = next_function(*args, **kwargs)
        if context.method_name == "__call__":
            if isinstance(context.module, _NORMS):
                return marks.mark(y, marks.BATCH_NORM)
            if isinstance(context.module, nn.PReLU):
                return marks.mark(y, marks.ACTIVATION)
    return y
