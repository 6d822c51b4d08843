"""Budgets of networks, counted from the traced program: `python -m ftbnn_jax.budget --help`.

from ftbnn_jax import budget

found = budget.count(MyNet(), (224, 224, 3))
print(found.total / 1e6, found.bops / 1e6, found.bytes_packed)
"""

from ftbnn_jax.budget.count import Budget, Layer, count

__all__ = ["Budget", "Layer", "count"]
