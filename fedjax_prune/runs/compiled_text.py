"""What the text of a compiled program says: its operations, and which are in loops.

XLA prints a program as a list of computations. A `while` names the computations of its
condition and its body, and these name others in turn, so an operation may be in a loop
although nothing near it says so.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)
"""Operations by which devices exchange data."""

_COMPUTATION = re.compile(r"(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
# A type has no lower-case word before a parenthesis, so the first one is the operation.
_OPERATION = re.compile(r"\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][\w\-]*)\(")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|select|scatter|comparator|\w*computations?)"
    r"=(?:\{([^}]*)\}|(%?[\w.\-]+))"
)
_ARRAY = re.compile(r"\b([a-z]+)(\d*)(?:e\d+m\d+\w*)?\[([\d,]*)\]")


class Operation(NamedTuple):
    """One operation of a compiled program.

    Attributes:
      name: of the kind of operation, such as `all-reduce`; one that is started and
        awaited apart counts once, without `-start`.
      num_bytes: of its result, without the padding of its layout.
      in_loop: whether a loop runs it.
    """

    name: str
    num_bytes: int
    in_loop: bool


def operations(text: str) -> list[Operation]:
    """Lists the operations of a program.

    Args:
      text: as `jax.stages.Compiled.as_text` gives it.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> def function(x):
      ...     return jax.lax.fori_loop(0, 9, lambda _, x: jnp.cumsum(jnp.sort(x)), x)
      >>> text = jax.jit(function).lower(jnp.ones(5)).compile().as_text()
      >>> [op for op in operations(text) if op.name == "sort"]
      [Operation(name='sort', num_bytes=20, in_loop=True)]
    """
    found: list[tuple[str, Operation]] = []
    calls: dict[str, set[str]] = defaultdict(set)
    of_loops: set[str] = set()
    computation = ""
    for line in text.splitlines():
        if heading := _COMPUTATION.match(line):
            computation = heading[1]
        elif match := _OPERATION.match(line):
            kind, name = match[1], match[2]
            called = _called(line[match.end() :])
            calls[computation] |= called
            if name == "while":
                of_loops |= called
            if name.endswith("-done"):
                continue
            name = name.removesuffix("-start")
            operation = Operation(name, _num_bytes(kind), in_loop=False)
            found.append((computation, operation))
    looped = _reached(of_loops, calls)
    return [op._replace(in_loop=place in looped) for place, op in found]


def collectives(found: Iterable[Operation]) -> list[Operation]:
    """Takes the operations by which devices exchange data."""
    return [op for op in found if op.name in COLLECTIVES]


def _called(attributes: str) -> set[str]:
    """The computations that an operation names."""
    lists = [several or one for several, one in _CALLED.findall(attributes)]
    return {name.lstrip("%") for names in lists for name in names.split(", ")}


def _reached(first: set[str], calls: dict[str, set[str]]) -> set[str]:
    """All computations that some computations run, themselves included."""
    reached, waiting = set(first), list(first)
    while waiting:
        new = calls[waiting.pop()] - reached
        reached |= new
        waiting += new
    return reached


def _num_bytes(kind: str) -> int:
    """Bytes of the arrays of a type, such as `(f32[2,3]{1,0}, pred[])`."""
    total = 0
    for _, bits, shape in _ARRAY.findall(kind):
        entries = math.prod(int(size) for size in shape.split(",") if size)
        # A type without a number of bits is `pred`, of one byte, or `token`.
        total += entries * -(-int(bits or 8) // 8)
    return total
