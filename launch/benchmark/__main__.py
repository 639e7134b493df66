"""Times rounds of this library and of others, taking turns on the same machine.

python -m launch.benchmark --suite=w1[,w3] [--rounds=5] [--peers=torch_loop,pfl_sim]
    [--peers_dir=DIR] [--threads=N] [--compile] [--output=FILE.json]

Every worker is a process of its own: it compiles, warms up and then waits. In each
repetition all of them run one round, one after another, so that other load on the
machine affects all alike; `devices` takes turns within each number of devices, and
`lanes` times one worker after another. The table has medians without each worker's
first round; `time` is the time for an image, as a multiple of another worker's;
`executed` is the ratio of steps run to steps with examples; `MB` is what a round takes
on each device.

The suite `inference` times networks that are trained, for a few images: one process
calls all their forms in turn. Its table has the median and the 95th percentile of the
latency, the MACs of a form as a share of the dense network's, and its speed as a
multiple of the dense network's.

Without --peers all installed peers run; --peers=NAMES installs those peers first;
--peers= leaves all peers out. For example:

    python -m launch.benchmark --suite=w1,w3 --peers=torch_loop,pfl_sim
    python -m launch.benchmark --suite=w2_one --peers= --rounds=9 --output=w2.json
    python -m launch.benchmark --suite=w1 --peers= --threads=1 --compile
"""

import json
import os
import platform
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from fedjax_prune.runs import console, settings
from fedjax_prune.runs.workdir import local_folder

from .. import runtime
from ..errors import exit_code
from ..flags import not_arguments, parse
from .inference import NAME as INFERENCE
from .inference import run_inference
from .process import WorkerError, install, is_installed
from .suites import PEERS, SUITES
from .turns import Options, run_suite

_NAMES = [*SUITES, INFERENCE]
_SUITE = flags.DEFINE_list("suite", [], f"what is run: {', '.join(_NAMES)}")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "rounds that count", 1)
_PEERS = flags.DEFINE_list("peers", None, f"libraries to compare: {', '.join(PEERS)}")
_PEERS_DIR = flags.DEFINE_string("peers_dir", None, "folder of their environments")
_THREADS = flags.DEFINE_integer("threads", None, "CPU threads, all unless given")
_COMPILE = flags.DEFINE_bool(
    "compile", False, "compile twice: from nothing, and from the cache"
)
_OUTPUT = flags.DEFINE_string("output", None, "file for the numbers, as JSON")


def main(argv: list[str]) -> int:
    """Returns the exit code: 0 if every worker ran to the end."""
    # Both signals end the workers on the way out.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return exit_code(lambda: _run(argv))
    except WorkerError as error:
        console.print_error(str(error))
        return 1


def _run(argv: list[str]) -> int:
    peers_dir = local_folder(_PEERS_DIR.value or runtime.cache_folder() / "peers")
    if found := _mistakes(argv):
        raise settings.SettingsError(found)
    compares = any(_has_peers(name) for name in _SUITE.value)
    options = Options(
        rounds=_ROUNDS.value,
        threads=_THREADS.value or len(runtime.cores()),
        peers=_available_peers(_PEERS.value, peers_dir) if compares else [],
        peers_dir=peers_dir,
        compile=_COMPILE.value,
    )
    suites = {}
    for name in _SUITE.value:
        try:
            suites[name] = _run_one(name, options)
        except WorkerError as error:
            console.print_error(str(error))
        else:
            _write(suites, options)
    complete = len(suites) == len(set(_SUITE.value))
    return int(not complete or any(found["failed"] for found in suites.values()))


def _write(suites: Mapping[str, Any], options: Options) -> None:
    """Writes what was measured so far into the file of `--output`."""
    if not _OUTPUT.value:
        return
    results = {
        "machine": platform.machine(),
        "threads": options.threads,
        "rounds": options.rounds,
        "suites": suites,
    }
    local_folder(_OUTPUT.value).write_text(json.dumps(results, indent=2) + "\n")


def _run_one(name: str, options: Options) -> dict[str, Any]:
    if name == INFERENCE:
        return run_inference(options.threads, options.rounds)
    return run_suite(SUITES[name], options)


def _mistakes(argv: list[str]) -> list[str]:
    """One line for each mistake in the command line."""
    found = not_arguments(argv[1:])
    for flag, names, known in (
        ("suite", _SUITE.value or [""], _NAMES),
        ("peers", _PEERS.value or [], PEERS),
    ):
        found += [
            f"--{flag} must be among {', '.join(known)}, got {name!r}"
            for name in names
            if name not in known
        ]
    asked = _SUITE.value or [""]
    if _PEERS.value and set(asked) <= {*_NAMES} and not any(map(_has_peers, asked)):
        found.append(f"--peers must be empty for {','.join(asked)}")
    cores = len(runtime.cores())
    if _THREADS.value is not None and not 1 <= _THREADS.value <= cores:
        found.append(f"--threads must be in [1, {cores}], got {_THREADS.value}")
    elif _THREADS.value not in (None, cores) and not hasattr(os, "sched_setaffinity"):
        found.append(
            f"--threads must be {cores}, all cores, on a system that does not let a "
            f"process choose its cores, got {_THREADS.value}"
        )
    output = local_folder(_OUTPUT.value or "result.json")
    if output.is_dir() or not output.parent.is_dir():
        found.append(f"--output must be a file in a folder, got {str(output)!r}")
    return found


def _has_peers(suite: str) -> bool:
    return suite in SUITES and SUITES[suite].with_peers


def _available_peers(wanted: Sequence[str] | None, peers_dir: Path) -> list[str]:
    """Installs the peers asked for; without --peers, finds the installed ones.

    Raises:
      WorkerError: if one of them cannot be installed.
    """

    def missing(names: Sequence[str]) -> list[str]:
        return [name for name in names if not is_installed(name, peers_dir)]

    if wanted and not install(wanted, peers_dir):
        names = ", ".join(missing(wanted)) or ", ".join(wanted)
        raise WorkerError(f"these peers could not be installed: {names}")
    asked = list(PEERS) if wanted is None else list(wanted)
    absent = missing(asked)
    if absent:
        names = ",".join(absent)
        print(f"Left out, not in {peers_dir}: {names}; --peers={names} installs them.")
    return [name for name in asked if name not in absent]


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
