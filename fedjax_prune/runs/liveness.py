"""Estimates the memory of a computation before it is compiled.

The estimate walks through the jaxpr in order: a result is held from the equation that
makes it to the last one that reads it. Results that XLA is expected to fuse into their
readers, to compute in place or to make without a copy take no memory.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Jaxpr, Literal

_VIEWS = {
    "reshape",
    "broadcast_in_dim",
    "squeeze",
    "iota",
    "slice",
    "transpose",
    "convert_element_type",
    "stop_gradient",
    "copy",
    "rev",
}
_ELEMENTWISE = {
    "add",
    "sub",
    "mul",
    "div",
    "max",
    "min",
    "neg",
    "exp",
    "log",
    "logistic",
    "select_n",
    "gt",
    "lt",
    "ge",
    "le",
    "eq",
    "ne",
    "and",
    "or",
    "not",
    "xor",
    "integer_pow",
    "sqrt",
    "rsqrt",
    "sign",
    "abs",
    "square",
    "add_any",
    "is_finite",
    "shift_right_logical",
    "shift_left",
    "bitcast_convert_type",
    "pow",
    "clamp",
}


def peak_bytes(function: Callable, *arguments: Any) -> int:
    """The peak of the bytes that a function holds besides its arguments.

    Args:
      function: traceable.
      arguments: pytrees of arrays or `jax.ShapeDtypeStruct`.

    Returns:
      Bytes, results included.
    """
    return _peak(jax.make_jaxpr(function)(*arguments).jaxpr)


def _peak(jaxpr: Jaxpr) -> int:
    readers: dict[Any, list[int]] = {}
    for index, equation in enumerate(jaxpr.eqns):
        for variable in equation.invars:
            if not isinstance(variable, Literal):
                readers.setdefault(variable, []).append(index)
    names = [equation.primitive.name for equation in jaxpr.eqns]
    results = {v for v in jaxpr.outvars if not isinstance(v, Literal)}
    held: dict[Any, int] = {}
    most = 0
    for index, equation in enumerate(jaxpr.eqns):
        for made in equation.outvars:
            by = [names[reader] for reader in readers.get(made, [])]
            held[made] = (
                0 if _is_free(names[index], by, made in results) else _size(made)
            )
        # What a nested computation holds includes its results.
        inner = max((_peak(j) for j in _inner_jaxprs(equation.params)), default=0)
        made_here = sum(held[made] for made in equation.outvars)
        most = max(most, sum(held.values()) + max(inner - made_here, 0))
        held = {
            v: size
            for v, size in held.items()
            if v in results or readers.get(v, [-1])[-1] > index
        }
    return most


def _is_free(name: str, readers: list[str], is_result: bool) -> bool:
    if name in _VIEWS:
        return True
    fused = _VIEWS | _ELEMENTWISE
    return (
        name in _ELEMENTWISE
        and not is_result
        and all(r in fused or r.startswith("reduce") for r in readers)
    )


def _inner_jaxprs(params: dict[str, Any]) -> list[Jaxpr]:
    values = [
        value
        for param in params.values()
        for value in (param if isinstance(param, tuple | list) else (param,))
    ]
    closed = [getattr(value, "jaxpr", value) for value in values]
    return [jaxpr for jaxpr in closed if hasattr(jaxpr, "eqns")]


def _size(variable: Any) -> int:
    aval = variable.aval
    # Random keys are two words, whatever their shape says.
    itemsize = getattr(aval.dtype, "itemsize", 8)
    return math.prod(aval.shape) * itemsize
