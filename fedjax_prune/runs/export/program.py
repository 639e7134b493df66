"""An exported network as a StableHLO program, which JAX runs without this library."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax

from fedjax_prune.models.platforms import ANY, tracing_for
from fedjax_prune.models.precision import product_precision
from fedjax_prune.runs.export.arrays import by_name, to_variables
from fedjax_prune.runs.files import WorkdirError
from fedjax_prune.types import Task, Variables

PROGRAM = "model.stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")


def make_serve(
    task: Task, variables: Variables, precision: str
) -> Callable[[dict[str, jax.Array], jax.Array], jax.Array]:
    """Makes what a program computes: stored examples -> logits, on any platform.

    Args:
      task: of the network.
      variables: of the network, or their shapes.
      precision: of the run.

    Returns:
      (arrays by name, examples [batch_size, height, width, channels]) -> logits
      [batch_size, num_classes] float32. It scales and normalises as in training.
    """

    def serve(arrays: dict[str, jax.Array], examples: jax.Array) -> jax.Array:
        with product_precision(precision), tracing_for(ANY):
            return task.predict(to_variables(arrays, variables), examples)

    return serve


def input_spec(shape: tuple[int, ...], dtype: str) -> jax.ShapeDtypeStruct:
    """Makes the shape of a program's input; a batch size of 0 becomes a symbol."""
    batch_size: Any = shape[0] or jax.export.symbolic_shape("batch")[0]
    return jax.ShapeDtypeStruct((batch_size, *shape[1:]), dtype)


def serialise(
    serve: Callable[[dict[str, jax.Array], jax.Array], jax.Array],
    variables: Variables,
    spec: jax.ShapeDtypeStruct,
    *,
    has_arrays: bool,
) -> bytes:
    """Lowers a program for PLATFORMS and writes it.

    Args:
      serve: as `make_serve` returns it.
      variables: of the network.
      spec: shape and dtype of the input.
      has_arrays: whether the program holds the arrays. Otherwise it takes them, by
        name, before the input.

    Raises:
      WorkdirError: if the network cannot be traced for a batch size that is not known.
    """
    arrays = by_name(variables)
    function: Callable[..., jax.Array] = serve
    given: tuple[Any, ...] = (jax.eval_shape(lambda: arrays), spec)
    if has_arrays:
        function, given = lambda examples: serve(arrays, examples), (spec,)
    try:
        with _without_paths():
            program = jax.export.export(jax.jit(function), platforms=PLATFORMS)(*given)
    except Exception as error:
        if isinstance(spec.shape[0], int):
            raise
        reason = str(error).strip().partition("\n")[0]
        raise WorkdirError(
            "The network cannot be exported for a batch size that is left open: "
            f"{type(error).__name__}: {reason} Give it one, as with --batch_size=1."
        ) from error
    return bytes(program.serialize())


@contextmanager
def _without_paths() -> Iterator[None]:
    """Lets programs not name the files in which their operations were written."""
    name = "jax_traceback_in_locations_limit"
    before = jax.config.values[name]
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)
