"""The traversal of a traced program (a jaxpr): every operation in order, and what is known around it.

Calls of functions are followed into their bodies. What a caller adds up or builds is a fold over the
steps that `walk` yields: budgets, memory, the packed graph and its proof are such folds.
"""

import contextlib
import dataclasses
import functools
import math
import pathlib
import re
import sys
import sysconfig
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from ftbnn_jax.graph import values
from ftbnn_jax.graph.values import Value

# A scope that starts with this names the flax module that the operations inside belong to.
SCOPE = "@"
_SCOPE_PATTERN = re.compile(SCOPE + r"([^/()]*)")

# A constant that is spread over more elements than this stays an operation: a table would be stored.
_MOST_SPREAD = 4096
# Sums of more arrays than this are no straight-through estimator.
_MOST_TERMS = 4

Result = TypeVar("Result")


@dataclasses.dataclass(eq=False)
class Array:
    """An array of the program; two of them are the same array exactly if they are the same object.

    Attributes:
      value: what is known of it.
      shape: its dimensions, that of the batch may be a symbol.
      dtype: of its elements.
      numbers: the array itself where it is given or could be computed, or a tracer for it; else None.
      later: computes a constant that is one of few numbers, spread over many elements, which is not
        worth its memory as long as nothing else of that size meets it; None elsewhere.
      name: what an argument of the program is called, and whatever holds the same elements.
      terms: the arrays whose sum it is but for rounding, each with how often it is added; None for one
        that is no sum of known arrays.
    """

    value: Value
    shape: tuple[Any, ...]
    dtype: np.dtype
    numbers: Any = None
    later: Callable[[], Any] | None = None
    name: str = ""
    terms: dict["Array", int] | None = None


@dataclasses.dataclass(eq=False)
class Step:
    """One operation.

    Attributes:
      primitive: what is done, one of JAX's primitives.
      params: its parameters.
      operands: what it is done with.
      results: what comes out; empty for a call, whose operations follow.
      shapes: of the results, those of a call as well.
      layer: path of the flax module that it belongs to, or else the names of the scopes it stands in.
      times: how often it is done, or None where that cannot be known.
      outer: the calls of functions that it stands in, the outermost first.
      info: where it stands in the source.
      calls: whether it calls a function, whose steps follow.
      branches: of a choice, the steps of each.
      replaced: the array of signs that takes the place of the result: a straight-through estimator
        `x + stop_gradient(sign(x) - x)` is `sign(x)` but for rounding.
    """

    primitive: core.Primitive
    params: dict[str, Any]
    operands: list[Array]
    results: list[Array]
    shapes: list[tuple[Any, ...]]
    layer: str
    times: int | None
    outer: tuple["Step", ...]
    info: Any
    calls: bool = False
    branches: tuple[list["Step"], ...] = ()
    replaced: Array | None = None

    @property
    def name(self) -> str:
        """Name of the primitive."""
        return self.primitive.name

    @property
    def source(self) -> str:
        """File and line in the user's code."""
        traces = [step.info.traceback for step in (self, *self.outer[::-1])]
        frames = [frame for trace in traces if trace for frame in trace.frames]
        return user_line([(frame.file_name, frame.line_num) for frame in frames])

    @property
    def functions(self) -> list[str]:
        """Names of the called functions that it stands in, the outermost first."""
        return [str(step.params.get("name", step.name)) for step in self.outer]


Steps = Generator[Step, None, list[Array]]

_LIBRARIES = (sysconfig.get_path("purelib"), sysconfig.get_path("stdlib"), sys.prefix, "<")
_PACKAGE = str(pathlib.Path(__file__).parents[1])
# What calls networks, and what stands between their layers without being one.
_CALLER, _INTERCEPTOR = f"{_PACKAGE}/nn/network.py", f"{_PACKAGE}/nn/flax_networks.py"


def user_line(places: Iterable[tuple[str, int]]) -> str:
    """Returns where a user's own code stands in a stack, as "FILE:LINE", or else this package's.

    Args:
      places: file and line of each frame, the innermost first.
    """
    places = [(f, n) for f, n in places if not f.startswith(_LIBRARIES) or f.startswith(_PACKAGE)]
    # A network of the user's own is what stands inside the package's call of it.
    calls = [i for i, (file, _) in enumerate(places) if file == _CALLER]
    inside = [(f, n) for f, n in places[: calls[0] if calls else 0] if not f.startswith(_PACKAGE)]
    # Layers say more than the operations that they are made of.
    own = [(f, n) for f, n in places if not f.startswith(_PACKAGE)]
    layers = [(f, n) for f, n in places if f.startswith(f"{_PACKAGE}/nn/") and f != _INTERCEPTOR]
    file, line = next(iter([*inside, *layers[:1], *own, *places]), ("", 0))
    # The package's own files by their names in it, wherever it is installed.
    file = file.replace(f"{_PACKAGE}/", f"{pathlib.Path(_PACKAGE).name}/")
    return f"{file}:{line}" if file else "unknown"


def argument(value: Value, aval: Any, numbers: Any = None, name: str = "") -> Array:
    """Returns an argument of a program, of the shape and dtype of `aval`."""
    return Array(value, tuple(aval.shape), aval.dtype, numbers, name=name)


def walk(program: core.ClosedJaxpr, arguments: Sequence[Array], compute: bool = False) -> Steps:
    """Yields the steps of a program and returns its results.

    Without `compute`, the body of a loop is walked once, with what holds in every turn, and of a choice
    every branch. With it, what all operands are known of is computed, and so is whatever follows from
    tracers: then the walk runs the program. Loops of fixed length are unrolled, and loops and choices
    that depend on the input are steps like any other.

    Args:
      program: what to walk.
      arguments: one for each of its arguments.
      compute: see above.
    """
    runs = any(isinstance(x.numbers, jax.core.Tracer) for x in arguments)
    return _Walk(compute, runs).jaxpr(program, arguments, "", 1, ())


def finish(steps: Generator[Any, None, Result]) -> Result:
    """Walks to the end and returns the results."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def collect(steps: Generator[Step, None, Result]) -> tuple[list[Step], Result]:
    """Walks to the end and returns steps and results."""
    found = []
    while True:
        try:
            found.append(next(steps))
        except StopIteration as end:
            return found, end.value


def layer_of(info: Any, outer: str = "") -> str:
    """Returns the layer that an operation belongs to; `outer` if it names none.

    Args:
      info: the operation's `source_info`.
      outer: the layer of the call that it stands in.
    """
    stack = str(info.name_stack)
    found = _SCOPE_PATTERN.findall(stack)
    if found:
        return found[-1].replace(":", "/")
    named = [part for part in stack.split("/") if part and not set("()") & set(part)]
    return "/".join([outer] * bool(outer) + named)


def dimensions(shape: Iterable[Any]) -> bool:
    """Whether every dimension is a number, none the batch's symbol."""
    return all(isinstance(n, (int, np.integer)) for n in shape)


class _Walk:
    """One traversal; the same operation on the same arrays gives the same arrays again."""

    def __init__(self, compute: bool, runs: bool):
        self._compute, self._runs = compute, runs
        # The objects that a key names by their `id` stay alive beside what was found.
        self._done: dict[Any, tuple[list[Array], Any]] = {}

    def jaxpr(
        self,
        jaxpr: core.ClosedJaxpr | core.Jaxpr,
        arguments: Sequence[Array],
        layer: str,
        times: int | None,
        outer: tuple[Step, ...],
    ) -> Steps:
        known: dict[core.Var, Array] = {}
        if isinstance(jaxpr, core.ClosedJaxpr):
            known.update(zip(jaxpr.jaxpr.constvars, map(self._constant, jaxpr.consts), strict=True))
            jaxpr = jaxpr.jaxpr
        known.update(zip(jaxpr.invars, arguments, strict=True))

        def read(atom):
            return self._constant(atom.val) if isinstance(atom, core.Literal) else known[atom]

        for eqn in jaxpr.eqns:
            operands = [read(atom) for atom in eqn.invars]
            path = layer_of(eqn.source_info, layer)
            results = yield from self._eqn(eqn, operands, path, times, outer)
            known.update(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _constant(self, numbers: Any) -> Array:
        scalar = np.ndim(numbers) == 0 and not isinstance(numbers, jax.core.Tracer)
        key = (str(getattr(numbers, "dtype", type(numbers))), repr(numbers)) if scalar else id(numbers)
        if key not in self._done:
            # JAX's own kinds of numbers (random keys) are nothing that numpy could look at.
            aval = jax.typeof(numbers)
            given = numbers if self._compute else None
            known = Array(values.constant(numbers), tuple(aval.shape), aval.dtype, given)
            self._done[key] = [known], numbers
        return self._done[key][0][0]

    def _eqn(
        self,
        eqn: core.JaxprEqn,
        operands: list[Array],
        layer: str,
        times: int | None,
        outer: tuple[Step, ...],
    ) -> Steps:
        name = eqn.primitive.name
        shapes = [tuple(getattr(var.aval, "shape", ())) for var in eqn.outvars]
        step = Step(
            *(eqn.primitive, eqn.params, operands, [], shapes),
            *(layer, times, outer, eqn.source_info),
        )
        if name == "scan" and self._compute:
            # A scan over the images themselves has no length that is known.
            body = _unrolled(eqn) if dimensions([eqn.params["length"]]) else None
        elif name == "scan":
            return (yield from self._scan(eqn, step))
        elif name == "while" and not self._compute:
            return (yield from self._while(eqn, step))
        elif name == "cond" and not self._compute:
            return (yield from self._cond(eqn, step))
        elif name == "cond" and operands[0].numbers is not None and not operands[0].value.from_input:
            chosen = int(np.clip(operands[0].numbers, 0, len(eqn.params["branches"]) - 1))
            body, operands = eqn.params["branches"][chosen], operands[1:]
        else:
            body = _body(eqn)
        if body is not None:
            step.calls = True
            yield step
            return (yield from self.jaxpr(body, operands, layer, times, (*outer, step)))
        key = _key(eqn, operands)
        if key not in self._done:
            self._done[key] = self._results(eqn, operands), operands
        step.results = self._done[key][0]
        step.replaced = _replaced(step.results[0]) if len(step.results) == 1 else None
        yield step
        return step.results if step.replaced is None else [step.replaced]

    def _results(self, eqn: core.JaxprEqn, operands: list[Array]) -> list[Array]:
        if eqn.primitive.name in values.ONE_TO_ONE or _does_nothing(eqn, operands):
            return operands[: len(eqn.outvars)]
        found = values.apply_rule(
            eqn.primitive.name, eqn.params, [x.value for x in operands], len(eqn.outvars)
        )
        results = []
        for var, value in zip(eqn.outvars, found, strict=True):
            shape, dtype = getattr(var.aval, "shape", ()), getattr(var.aval, "dtype", None)
            if value.numbers is None and dtype == np.bool_:
                value = dataclasses.replace(value, numbers=frozenset({0.0, 1.0}))
            results.append(Array(value, tuple(shape), dtype))
        if self._compute:
            self._compute_now(eqn, operands, results)
        if eqn.primitive.name in _VIEWS and math.prod(operands[0].shape) == math.prod(results[0].shape):
            results[0].name = operands[0].name
        if eqn.primitive.name in _SUMS and all(x.shape == results[0].shape for x in operands):
            results[0].terms = _sum(eqn.primitive.name, operands)
        return results

    def _compute_now(self, eqn: core.JaxprEqn, operands: list[Array], results: list[Array]) -> None:
        """Computes results whose operands are all there, or sees to it that they can be computed."""
        if not all(x.numbers is not None or x.later for x in operands):
            return
        if eqn.primitive.name == "dim_as_value":  # The size of a batch that may be any.
            return

        def compute():
            given = [x.later() if x.numbers is None else x.numbers for x in operands]
            # What does not depend on the input is computed once, also where this runs under a trace.
            with contextlib.nullcontext() if from_input else jax.ensure_compile_time_eval():
                found = eqn.primitive.bind(*given, **eqn.params)
            return found if eqn.primitive.multiple_results else [found]

        from_input = any(x.value.from_input for x in operands)
        if not from_input and not all(dimensions(x.shape) for x in results):
            return
        size = max(math.prod(x.shape) for x in results)
        largest = max((math.prod(x.shape) for x in operands if x.numbers is not None), default=0)
        if not from_input and not self._runs and size > max(_MOST_SPREAD, largest):
            once = functools.cache(compute)
            for i, x in enumerate(results):
                x.later = functools.partial(lambda i: once()[i], i)
            return
        for x, numbers in zip(results, compute(), strict=True):
            x.numbers = numbers

    def _scan(self, eqn: core.JaxprEqn, step: Step) -> Steps:
        body = eqn.params["jaxpr"]
        constants, carries = _scan_parts(eqn)
        operands = [x.value for x in step.operands]
        carry = self._settle(body, operands, constants, carries, step)
        arguments = _arguments(body, [*operands[:constants], *carry, *operands[constants + carries :]])
        times = None if step.times is None else step.times * eqn.params["length"]
        results = yield from self.jaxpr(body, arguments, step.layer, times, step.outer)
        found = [*carry, *(x.value for x in results[carries:])]
        step.results = [argument(v, var.aval) for v, var in zip(found, eqn.outvars, strict=True)]
        yield step
        return step.results

    def _settle(
        self, body: core.ClosedJaxpr, operands: list[Value], constants: int, carries: int, step: Step
    ) -> list[Value]:
        """Returns what holds for a loop's state in every turn."""
        carry = operands[constants : constants + carries]
        while True:
            known = [*operands[:constants], *carry, *operands[constants + carries :]]
            results = finish(self.jaxpr(body, _arguments(body, known), step.layer, None, ()))
            pairs = zip(carry, [x.value for x in results[:carries]], strict=True)
            joined = [values.join(pair) for pair in pairs]
            if joined == carry:
                return carry
            carry = joined

    def _while(self, eqn: core.JaxprEqn, step: Step) -> Steps:
        skip, constants = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        body, operands = eqn.params["body_jaxpr"], [x.value for x in step.operands[skip:]]
        carry = self._settle(body, operands, constants, len(operands) - constants, step)
        arguments = _arguments(body, [*operands[:constants], *carry])
        yield from self.jaxpr(body, arguments, step.layer, None, step.outer)
        step.results = [argument(v, var.aval) for v, var in zip(carry, eqn.outvars, strict=True)]
        yield step
        return step.results

    def _cond(self, eqn: core.JaxprEqn, step: Step) -> Steps:
        branches, results = [], []
        for branch in eqn.params["branches"]:
            inside = self.jaxpr(branch, step.operands[1:], step.layer, step.times, step.outer)
            steps, found = collect(inside)
            branches.append(steps)
            results.append([x.value for x in found])
        joined = [values.join(alternatives) for alternatives in zip(*results, strict=True)]
        step.branches = tuple(branches)
        step.results = [argument(v, var.aval) for v, var in zip(joined, eqn.outvars, strict=True)]
        yield step
        return step.results


# Operations whose result holds the elements of the first operand, if there are as many.
_VIEWS = values.words("reshape squeeze expand_dims broadcast_in_dim")
_SUMS = frozenset(["add", "add_any", "sub"])


def _arguments(body: core.ClosedJaxpr, known: Sequence[Value]) -> list[Array]:
    return [argument(v, var.aval) for v, var in zip(known, body.jaxpr.invars, strict=True)]


def _key(eqn: core.JaxprEqn, operands: list[Array]) -> Any:
    """What tells an operation from others: another object each time a parameter cannot be compared."""
    key = (eqn.primitive, tuple(sorted(eqn.params.items())), *map(id, operands))
    try:
        hash(key)
    except TypeError:
        return object()
    return key


def _does_nothing(eqn: core.JaxprEqn, operands: list[Array]) -> bool:
    """Whether an operation's result is its first operand."""
    if not eqn.outvars:
        return False
    name, params, (var, *_) = eqn.primitive.name, eqn.params, eqn.outvars
    same = getattr(var.aval, "shape", None) == operands[0].shape if operands else False
    if name == "pad":
        return all(tuple(edges) == (0, 0, 0) for edges in params["padding_config"])
    if name == "convert_element_type":
        return var.aval.dtype == operands[0].dtype
    if name == "transpose":
        return tuple(params["permutation"]) == tuple(range(len(operands[0].shape)))
    # A reshape can permute the dimensions before.
    return same and name in ("reshape", "broadcast_in_dim", "squeeze") and not params.get("dimensions")


def _sum(name: str, operands: list[Array]) -> dict[Array, int] | None:
    total: dict[Array, int] = {}
    for x, sign in zip(operands, (1, -1 if name == "sub" else 1), strict=True):
        for term, count in ({x: 1} if x.terms is None else x.terms).items():
            total[term] = total.get(term, 0) + sign * count
    total = {term: count for term, count in total.items() if count}
    return total if len(total) <= _MOST_TERMS else None


def _replaced(x: Array) -> Array | None:
    """Returns the signs that a sum comes down to, where all else in it cancels out."""
    if x.terms is None or len(x.terms) != 1:
        return None
    ((term, count),) = x.terms.items()
    return term if count == 1 and term.value.is_sign else None


def _scan_parts(eqn: core.JaxprEqn) -> tuple[int, int]:
    """Returns how many operands of a scan are constants, and how many its state."""
    if "num_consts" in eqn.params:
        return eqn.params["num_consts"], eqn.params["num_carry"]
    # From JAX 0.11 on, a tree of the operands says it.
    constants, carry, _ = eqn.params["ft_in"].update(eqn.invars).unpack()
    return len(list(constants)), len(list(carry))


def _unrolled(eqn: core.JaxprEqn) -> core.ClosedJaxpr:
    """Returns the program of a scan without the loop."""
    body, length = core.jaxpr_as_fun(eqn.params["jaxpr"]), eqn.params["length"]
    constants, carries = _scan_parts(eqn)
    turns = range(length)[::-1] if eqn.params["reverse"] else range(length)

    def run(*operands):
        fixed, carry = operands[:constants], operands[constants : constants + carries]
        rows: dict[int, list[Any]] = {}
        for i in turns:
            row = [jax.lax.index_in_dim(x, i, keepdims=False) for x in operands[constants + carries :]]
            results = body(*fixed, *carry, *row)
            carry, rows[i] = results[:carries], results[carries:]
        columns = [[rows[i][k] for i in range(length)] for k in range(len(eqn.outvars) - carries)]
        return [*carry, *map(jnp.stack, columns)]

    return jax.make_jaxpr(run)(*(var.aval for var in eqn.invars))


def _body(eqn: core.JaxprEqn) -> Any:
    """Returns the program that a call of a function runs, or None if the operation is no such call."""
    for key in ("jaxpr", "call_jaxpr"):
        body = eqn.params.get(key)
        inner = getattr(body, "jaxpr", body)
        # Reductions and scatters hold programs too, but of one element; kernels, programs on memory.
        if (
            hasattr(inner, "eqns")
            and not eqn.primitive.name.startswith(("reduce", "scatter"))
            and len(inner.invars) == len(eqn.invars)
        ):
            return body
    return None
