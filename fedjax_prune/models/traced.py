"""The layers of a model that does not describe them, found in its program.

A layer is an array of weights and the matrix products and convolutions that read it.
Products of two activations, as in attention, belong to no layer.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core

from fedjax_prune.layers import Layer
from fedjax_prune.types import Tree

SAME_ENTRIES = (
    "broadcast_in_dim",
    "convert_element_type",
    "copy",
    "expand_dims",
    "reshape",
    "squeeze",
    "stop_gradient",
    "transpose",
)
"""Operations whose result has the entries of their operand."""


def traced_layers(
    function: Callable[..., Any], params: Tree, *inputs: Any
) -> tuple[Layer, ...]:
    """Finds the layers of a program.

    Args:
      function: (params, *inputs) -> anything; the inputs are those of one image.
      params: arrays or `jax.ShapeDtypeStruct`s.
      inputs: the same.

    Returns:
      A layer for each array that a product reads, in the order of their first products.
      A kernel's layer has the name of its module, any other array's its own path.

    Examples:
      >>> layers = traced_layers(
      ...     lambda params, x: x @ params["fc"]["kernel"],
      ...     {"fc": {"kernel": jnp.ones((4, 3))}},
      ...     jnp.ones((1, 4)),
      ... )
      >>> [(layer.name, layer.in_channels, layer.out_channels) for layer in layers]
      [('fc', 4, 3)]
    """
    closed = jax.make_jaxpr(function)(params, *inputs)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    held = dict(zip(closed.jaxpr.invars, range(len(leaves)), strict=False))
    macs: dict[int, int] = {}
    for place, count in _products(closed.jaxpr, held, 1):
        macs[place] = macs.get(place, 0) + count
    found = [(*leaves[place], count) for place, count in macs.items()]
    return tuple(_layer(path, leaf, count) for path, leaf, count in found)


def _layer(path: Any, leaf: Any, macs: int) -> Layer:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    *taps, inputs, outputs = (1, 1, *leaf.shape)
    return Layer(
        name.removesuffix("/kernel"),
        in_channels=inputs,
        out_channels=outputs,
        kept_in=inputs,
        kept_out=outputs,
        taps=math.prod(taps),
        positions=macs // math.prod(leaf.shape),
        gated=False,
    )


def _products(
    jaxpr: core.Jaxpr, held: dict[Any, int], times: int
) -> Iterator[tuple[int, int]]:
    """Yields the products of a program that read a weight.

    Args:
      jaxpr: the program.
      held: variable -> place of the weights that it holds; gets more variables.
      times: how often the program runs.

    Yields:
      (place of the weights, multiply-accumulates).
    """
    for equation in jaxpr.eqns:
        places = [
            None if isinstance(v, core.Literal) else held.get(v)
            for v in equation.invars
        ]
        name = equation.primitive.name
        if name in ("dot_general", "conv_general_dilated"):
            found = [place for place in places[:2] if place is not None]
            if found:
                yield found[-1], times * _macs(equation)
        elif name in SAME_ENTRIES and places[0] is not None:
            held[equation.outvars[0]] = places[0]
        for inner in _programs_in(equation):
            # What comes before, such as the number of a branch, is not an argument.
            own = places[len(places) - len(inner.invars) :]
            known = {
                v: place
                for v, place in zip(inner.invars, own, strict=True)
                if place is not None
            }
            length = equation.params.get("length", 1) if name == "scan" else 1
            yield from _products(inner, known, times * length)
            for out, result in zip(equation.outvars, inner.outvars, strict=False):
                if not isinstance(result, core.Literal) and result in known:
                    held[out] = known[result]


def _programs_in(equation: Any) -> list[core.Jaxpr]:
    """The programs that an operation calls: of a choice the first, of a loop none."""
    if equation.primitive.name == "while":
        return []
    for value in equation.params.values():
        value = value[0] if isinstance(value, tuple) and value else value
        if isinstance(value, core.ClosedJaxpr):
            return [value.jaxpr]
        if isinstance(value, core.Jaxpr):
            return [value]
    return []


def _macs(equation: Any) -> int:
    left, right = (operand.aval.shape for operand in equation.invars[:2])
    size = math.prod(equation.outvars[0].aval.shape)
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return size * math.prod(left[axis] for axis in contracted)
    outputs = right[equation.params["dimension_numbers"].rhs_spec[0]]
    return size * math.prod(right) // outputs
