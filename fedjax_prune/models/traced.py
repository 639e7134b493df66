"""The layers of a model that does not describe them, found in its program.

A layer is an array of weights and the products, of matrices or convolutions, of it and
an activation. The array may be transformed before, as kernels of a recurrent cell are
joined and others are normalised. Products of two activations, as in attention, belong
to no layer, and neither do those in loops of unknown length (`while`). Products of
weights alone are not made for each image and are not counted.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import jax
from jax.extend import core

from fedjax_prune.layers import Layer
from fedjax_prune.models.channels import array_name
from fedjax_prune.models.platforms import ANY, tracing_for
from fedjax_prune.types import Tree

PRODUCTS = ("dot_general", "conv_general_dilated")

Weights = tuple[int, ...]
"""Places of arrays among the leaves of the parameters."""


def traced_layers(
    function: Callable[..., Any], params: Tree, *inputs: Any
) -> tuple[Layer, ...]:
    """Finds the layers of a program.

    Args:
      function: (params, *inputs) -> anything.
      params: arrays or `jax.ShapeDtypeStruct`s.
      inputs: the same. The last one is a batch of one image; the others do not depend
        on it, as norm statistics do not.

    Returns:
      A layer for each array that a product reads, in the order of their first products.
      A kernel's layer has the name of its module, any other array's its own path. If a
      product reads several arrays joined, each has a share by its number of entries.

    Examples:
      >>> layers = traced_layers(
      ...     lambda params, x: x @ params["fc"]["kernel"],
      ...     {"fc": {"kernel": jnp.ones((4, 3))}},
      ...     jnp.ones((1, 4)),
      ... )
      >>> [(layer.name, layer.in_channels, layer.out_channels) for layer in layers]
      [('fc', 4, 3)]
    """
    # The forms that `convolve` has for one platform have other numbers of products.
    with tracing_for(ANY):
        closed = jax.make_jaxpr(function)(params, *inputs)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    sizes = [math.prod(leaf.shape) for _, leaf in leaves]
    held: dict[Any, Weights] = dict.fromkeys(closed.jaxpr.invars[:-1], ())
    held |= {closed.jaxpr.invars[place]: (place,) for place in range(len(leaves))}
    macs: dict[int, Fraction] = {}
    for weights, count in _products(closed.jaxpr, held, sizes, 1):
        total = sum(sizes[place] for place in weights)
        for place in weights:
            share = Fraction(count * sizes[place], total)
            macs[place] = macs.get(place, Fraction()) + share
    found = [(*leaves[place], count) for place, count in macs.items()]
    return tuple(_layer(path, leaf, count) for path, leaf, count in found)


def _layer(path: Any, leaf: Any, macs: Fraction) -> Layer:
    positions = macs / math.prod(leaf.shape)
    *taps, inputs, outputs = (1, 1, *leaf.shape)
    return Layer(
        array_name(path).removesuffix("/kernel"),
        in_channels=inputs,
        out_channels=outputs,
        kept_in=inputs,
        kept_out=outputs,
        taps=math.prod(taps),
        positions=(int if positions.denominator == 1 else float)(positions),
        gated=False,
    )


def _products(
    jaxpr: core.Jaxpr, held: dict[Any, Weights], sizes: Sequence[int], times: int
) -> Iterator[tuple[Weights, int]]:
    """Yields the products of weights and activations in a program.

    Args:
      jaxpr: the program.
      held: variable -> the weights that it holds, () if it is a constant. A variable
        that depends on the image is missing. It gets more variables.
      sizes: number of entries of each array of weights.
      times: how often the program runs.

    Yields:
      (weights, multiply-accumulates).
    """
    held.update(dict.fromkeys(jaxpr.constvars, ()))
    for equation in jaxpr.eqns:
        read = [
            () if isinstance(v, core.Literal) else held.get(v) for v in equation.invars
        ]
        name = equation.primitive.name
        if None not in read:
            for out in equation.outvars:
                held[out] = _passed_on(read, out, sizes)
        elif name in PRODUCTS and (weights := read[0] or read[1]):
            yield weights, times * _macs(equation)
        for inner in _programs_in(equation):
            # What comes before, such as the number of a branch, is not an argument.
            own = read[len(read) - len(inner.invars) :]
            if name == "scan" and None in read:
                # What is carried holds other entries from the second step on.
                carried = _carried(equation, inner)
                own[carried] = [None] * len(own[carried])
            known = {
                v: weights
                for v, weights in zip(inner.invars, own, strict=True)
                if weights is not None
            }
            length = equation.params.get("length", 1) if name == "scan" else 1
            yield from _products(inner, known, sizes, times * length)
            for out, result in zip(equation.outvars, inner.outvars, strict=False):
                found = None if isinstance(result, core.Literal) else known.get(result)
                # A constant of one branch depends on the image by the choice of it.
                if found or (found is not None and None not in read):
                    held[out] = found


def _passed_on(read: Sequence[Any], out: Any, sizes: Sequence[int]) -> Weights:
    """The weights that the result of an operation on weights alone holds.

    They are those of the first operand that has an entry for each of the result: of a
    kernel times its scale the kernel. If there is none, as where arrays are joined or
    cut, they are those of all operands.
    """
    for weights in read:
        if sum(sizes[place] for place in weights) == math.prod(out.aval.shape):
            return weights
    return tuple(dict.fromkeys(place for weights in read for place in weights))


def _programs_in(equation: Any) -> list[core.Jaxpr]:
    """The programs that an operation calls: of a choice the first, of a loop none.

    What a scatter or a reduction combines two numbers by is no such program.
    """
    if equation.primitive.name.startswith(("while", "scatter", "reduce", "select_and")):
        return []
    for value in equation.params.values():
        value = value[0] if isinstance(value, tuple) and value else value
        if isinstance(value, core.ClosedJaxpr):
            return [value.jaxpr]
        if isinstance(value, core.Jaxpr):
            return [value]
    return []


def _carried(equation: Any, inner: core.Jaxpr) -> slice:
    """Which arguments of a scan's program are carried from step to step.

    They come after the constants and before the slices of what is scanned. Arrays that
    are scanned, or stacked from all steps, have an axis more outside of the program;
    the parameters that hold the counts have other names in other versions of JAX.
    """
    last = _same_rank(equation.invars, inner.invars)
    return slice(last - _same_rank(equation.outvars, inner.outvars), last)


def _same_rank(outside: Sequence[Any], inside: Sequence[Any]) -> int:
    pairs = zip(outside, inside, strict=True)
    return sum(out.aval.ndim == own.aval.ndim for out, own in pairs)


def _macs(equation: Any) -> int:
    left, right = (operand.aval.shape for operand in equation.invars[:2])
    size = math.prod(equation.outvars[0].aval.shape)
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return size * math.prod(left[axis] for axis in contracted)
    outputs = right[equation.params["dimension_numbers"].rhs_spec[0]]
    # A transposed convolution puts zeros between the pixels that it reads.
    zeros = math.prod(equation.params["lhs_dilation"])
    return size * math.prod(right) // outputs // zeros
