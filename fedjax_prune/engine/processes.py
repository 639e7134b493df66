"""The processes of a run: which one is the first, and how all of them agree.

Every process runs the same calls in the same order. What looks at a clock or at a disk
is done by the first process, which tells the others, and what fails in one process
fails in all. In a run of one process all functions return at once.
"""

import itertools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src import distributed
from jax.experimental import multihost_utils

Result = TypeVar("Result")

_CALLS = itertools.count()
"""Numbers the calls of `exchange`, which are the same in all processes."""
_PATIENCE = 7 * 86_400_000
"""Milliseconds that `exchange` waits. JAX ends the processes if one is lost before."""


class ProcessError(RuntimeError):
    """Another process of the run has failed; the message names it and its error."""


def count() -> int:
    """The number of processes; a run of one process starts no backend here."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def number() -> int:
    """The number of this process, from 0."""
    return 0 if count() == 1 else jax.process_index()


def is_first() -> bool:
    """Whether this is the process that writes and prints."""
    return number() == 0


def gather(value: Any) -> list[Any]:
    """Gives every process the values of all.

    Args:
      value: of this process, as JSON can hold it.

    Returns:
      The values by the numbers of their processes.
    """
    if count() == 1:
        return [value]
    own = np.frombuffer(json.dumps(value).encode(), np.uint8)
    with jax.transfer_guard("allow"):
        lengths = multihost_utils.process_allgather(np.array([own.size], np.int32))
        # A power of two, so that few programs are compiled.
        padded = np.zeros(1 << int(lengths.max() - 1).bit_length(), np.uint8)
        padded[: own.size] = own
        texts = multihost_utils.process_allgather(padded)
    return [
        json.loads(text[:length].tobytes())
        for text, length in zip(texts, lengths.reshape(-1), strict=True)
    ]


def agree(value: Any) -> Any:
    """Gives every process the value of the first one, as JSON holds it."""
    return gather(value)[0]


def barrier() -> None:
    """Waits until every process is here."""
    gather(0)


@contextmanager
def without_output() -> Iterator[None]:
    """Drops what native code prints meanwhile, such as gloo when it is connected."""
    kept, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(null)


def together(function: Callable[[], Result]) -> Result:
    """Calls a function in every process; if it fails in one, it fails in all.

    The function must not exchange anything with other processes.

    Raises:
      ProcessError: if it failed in another process only; otherwise what it raised here.
    """
    if count() == 1:
        return function()
    result, failure = _attempt(function)
    _require_success(failure, gather(_words(failure)))
    return result  # pyright: ignore[reportReturnType]


def exchange(function: Callable[[], Any]) -> list[Any]:
    """Calls a function as `together`, and gives every process the results of all.

    The other functions here wait until the devices are free. This one sends a few bytes
    through JAX's coordination service, while a round runs.

    Args:
      function: returns what JSON can hold; it must not exchange anything with other
        processes.

    Returns:
      The results by the numbers of their processes.

    Raises:
      ProcessError: if it failed in another process only; otherwise what it raised here.
    """
    if count() == 1:
        return [function()]
    result, failure = _attempt(function)
    # JAX has no public name for its client.
    service: Any = distributed.global_state.client
    call = next(_CALLS)
    service.key_value_set(_key(call, number()), json.dumps([_words(failure), result]))
    told = [
        json.loads(service.blocking_key_value_get(_key(call, process), _PATIENCE))
        for process in range(count())
    ]
    if call:
        # All processes have begun this call, so all have read what the last one told.
        service.key_value_delete(_key(call - 1, number()))
    _require_success(failure, [words for words, _ in told])
    return [found for _, found in told]


def on_first(function: Callable[[], Result]) -> Result:
    """Calls a function in the first process and gives its result to all.

    Args:
      function: returns what JSON can hold; it must not exchange anything with other
        processes.

    Raises:
      ProcessError: in the other processes, if it fails in the first one.
    """
    if count() == 1:
        return function()
    return agree(together(lambda: function() if is_first() else None))


class Aside:
    """What the first process does alone while the others go on.

    With `on_first` all processes would wait for each other at each call. Here they do
    so in `check` alone, which tells all of them what has failed before.
    """

    def __init__(self, on_failure: Callable[[], None]):
        """Nothing has failed yet.

        Args:
          on_failure: is called where something fails, unless there is a single process;
            it lets all processes come to a `check` soon.
        """
        self._on_failure = on_failure
        self._failure: Exception | None = None

    def do(self, function: Callable[[], None]) -> None:
        """Calls a function in the first process, unless an earlier one has failed.

        Raises:
          Exception: in a run of one process, what the function raises.
        """
        if count() == 1:
            function()
        elif is_first() and self._failure is None:
            try:
                function()
            except Exception as error:  # whatever it is, the others must hear of it
                self._failure = error
                self._on_failure()

    def check(self) -> None:
        """Raises in all processes what has failed in the first one.

        Raises:
          ProcessError: in the other processes; in the first one the error itself.
        """
        together(self._fail)

    def _fail(self) -> None:
        if self._failure is not None:
            raise self._failure


def _key(call: int, process: int) -> str:
    return f"fedjax_prune/{call}/{process}"


def _attempt(
    function: Callable[[], Result],
) -> tuple[Result | None, Exception | None]:
    """The result of a function, or what it has raised."""
    try:
        return function(), None
    except Exception as error:  # whatever it is, the others must not wait
        return None, error


def _words(failure: Exception | None) -> str:
    return "" if failure is None else str(failure) or repr(failure)


def _require_success(failure: Exception | None, words: list[str]) -> None:
    """Raises what failed in this process, or tells what failed in another one."""
    if failure is not None:
        raise failure
    for process, said in enumerate(words):
        if said:
            raise ProcessError(f"process {process} of {count()} has failed: {said}")
