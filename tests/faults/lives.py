"""Runs in processes of their own, which end at a place in the code.

A process server has imported the library, so a process takes seconds.
"""

import functools
import importlib
import multiprocessing
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    ["fedjax_prune.runs.train", "orbax.checkpoint", "sklearn.datasets"]
)
_MOST_SECONDS = 300


class Blow(NamedTuple):
    """A signal that a process sends to itself.

    Attributes:
      place: `module:name` of a function, or `module:Class.name` of a method.
      call: which call of it in this process, from 1.
      after: whether the call has ended.
      number: the signal.
    """

    place: str
    call: int = 1
    after: bool = False
    number: int = signal.SIGKILL


def live(config: ConfigDict, workdir: Path, blow: Blow | None = None) -> int:
    """Trains in another process until it ends.

    Args:
      config: of the run.
      workdir: of the run; what it prints is added to `workdir.with_suffix(".txt")`.
      blow: what happens to it.

    Returns:
      The exit code, or the negative number of the signal that has ended it.
    """
    process = begin(config, workdir, blow)
    process.join(_MOST_SECONDS)
    assert process.exitcode is not None, f"{workdir} takes too long"
    return process.exitcode


def begin(config: ConfigDict, workdir: Path, blow: Blow | None = None) -> Any:
    """Starts what `live` waits for; returns the process."""
    flags = dict(os.environ), list(sys.path)
    process = _SERVER.Process(target=_train, args=(config, workdir, blow, flags))
    process.start()
    return process


def _train(config: ConfigDict, workdir: Path, blow: Blow | None, flags: Any) -> None:
    os.environ.update(flags[0])
    import jax

    from fedjax_prune.runs import train

    jax.config.update("jax_num_cpu_devices", 4)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
    output = os.open(
        workdir.with_suffix(".txt"), os.O_WRONLY | os.O_APPEND | os.O_CREAT
    )
    os.dup2(output, 1)
    os.dup2(output, 2)
    warnings.simplefilter("error")
    if blow is not None:
        _strike(blow)
    sys.exit(train.run(config, workdir))


def _strike(blow: Blow) -> None:
    module, _, path = blow.place.partition(":")
    *owners, name = path.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    function, calls = getattr(owner, name), 0

    @functools.wraps(function)
    def struck(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == blow.call and not blow.after:
            os.kill(os.getpid(), blow.number)
        result = function(*args, **kwargs)
        if calls == blow.call and blow.after:
            os.kill(os.getpid(), blow.number)
        return result

    setattr(owner, name, struck)
