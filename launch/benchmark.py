"""Times rounds of this library and of others, taking turns on the same machine.

python -m launch.benchmark --suite=w1[,w3] [--rounds=5] [--peers=torch_loop,pfl_sim]
    [--peers_dir=DIR] [--threads=N] [--compile] [--output=FILE.json]

Every worker is a process of its own: it compiles, warms up and then waits. In each
repetition all of them run one round, one after another, so that what else the machine
does meets all alike. The table has medians without each worker's first round; `time` is
the time an image takes, as a multiple of another worker's; `executed` are the steps the
device made over those that had examples; `MB` is what a round takes on each device.

Without --peers those peers run that are installed; --peers=NAMES installs them first,
--peers= leaves them all out.
"""

import json
import os
import platform
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags

from fedjax_prune import console, settings
from launch.errors import exit_code
from launch.flags import parse
from launch.peers import limits, ours
from launch.peers.process import ROOT, Process, WorkerError, python_of
from launch.peers.suites import PEERS, SUITES, Suite, Worker, make_arrays, peer
from launch.peers.table import make_rows, print_table

_SUITE = flags.DEFINE_list("suite", [], f"what is run: {', '.join(SUITES)}")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "rounds that count", 1)
_PEERS = flags.DEFINE_list("peers", None, f"whom to compare with: {', '.join(PEERS)}")
_PEERS_DIR = flags.DEFINE_string("peers_dir", None, "folder of their environments")
_THREADS = flags.DEFINE_integer("threads", None, "CPU threads, all unless given")
_COMPILE = flags.DEFINE_bool(
    "compile", False, "compile twice: from nothing, and from the cache"
)
_OUTPUT = flags.DEFINE_string("output", None, "file for the numbers, as JSON")

LIMITS = Worker("limits", "limits")


class Options(NamedTuple):
    """How suites are run.

    Attributes:
      rounds: rounds that count.
      threads: CPU threads of every worker.
      peers: that take part, all installed.
      peers_dir: folder of their environments.
      compile: compile from an empty cache, then from a full one.
    """

    rounds: int
    threads: int
    peers: Sequence[str]
    peers_dir: Path
    compile: bool


class Turns(NamedTuple):
    """What the workers of a suite have said.

    Attributes:
      workers: those that ran to the end.
      ready: name -> what it said when it was ready.
      reports: name -> what it said of every round.
      failed: names of those that did not run to the end.
    """

    workers: list[Worker]
    ready: dict[str, dict[str, Any]]
    reports: dict[str, list[dict[str, Any]]]
    failed: list[str]


def main(argv: list[str]) -> int:
    """Returns the exit code: 0 if every worker ran to the end."""
    # Both signals end the workers on the way out.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return exit_code(lambda: _run(argv))
    except WorkerError as error:
        console.print_error(str(error))
        return 1
    except KeyboardInterrupt:
        console.print_error("stopped; nothing is written")
        return 130


def _run(argv: list[str]) -> int:
    peers_dir = Path(_PEERS_DIR.value or default_peers_dir()).absolute()
    if found := _mistakes(argv):
        raise settings.SettingsError(found)
    options = Options(
        rounds=_ROUNDS.value,
        threads=_THREADS.value or len(os.sched_getaffinity(0)),
        peers=_available_peers(_PEERS.value, peers_dir),
        peers_dir=peers_dir,
        compile=_COMPILE.value,
    )
    suites = {name: run_suite(SUITES[name], options) for name in _SUITE.value}
    if _OUTPUT.value:
        results = {
            "machine": platform.machine(),
            "threads": options.threads,
            "rounds": options.rounds,
            "suites": suites,
        }
        Path(_OUTPUT.value).write_text(json.dumps(results, indent=2) + "\n")
    return int(any(result["failed"] for result in suites.values()))


def default_peers_dir() -> Path:
    """The folder of the peers' environments in the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "fedjax_prune" / "peers"


def _mistakes(argv: list[str]) -> list[str]:
    """One line for each mistake in the command line."""
    found = [
        f"{argument.partition('=')[0]} is not an argument" for argument in argv[1:]
    ]
    for flag, names, known in (
        ("suite", _SUITE.value or [""], SUITES),
        ("peers", _PEERS.value or [], PEERS),
    ):
        found += [
            f"--{flag} must be among {', '.join(known)}, got {name!r}"
            for name in names
            if name not in known
        ]
    cores = len(os.sched_getaffinity(0))
    if _THREADS.value is not None and not 1 <= _THREADS.value <= cores:
        found.append(f"--threads must be in [1, {cores}], got {_THREADS.value}")
    output = Path(_OUTPUT.value or "result.json")
    if output.is_dir() or not output.parent.is_dir():
        found.append(f"--output must be a file in a folder, got {str(output)!r}")
    return found


def _available_peers(wanted: Sequence[str] | None, peers_dir: Path) -> list[str]:
    """Installs the peers that are asked for; without a wish, finds those there are."""

    def missing(names: Sequence[str]) -> list[str]:
        return [name for name in names if not python_of(name, peers_dir).exists()]

    if wanted:
        environments = [PEERS[name] for name in missing(wanted)]
        if environments:
            script = str(ROOT / "launch" / "peers" / "environments.sh")
            subprocess.run(["bash", script, str(peers_dir), *environments], check=False)
    asked = list(PEERS) if wanted is None else list(wanted)
    absent = missing(asked)
    if absent:
        names = ",".join(absent)
        print(f"Left out, not in {peers_dir}: {names}; --peers={names} installs them.")
    return [name for name in asked if name not in absent]


def run_suite(suite: Suite, options: Options) -> dict[str, Any]:
    """Runs a suite and prints its table.

    Args:
      suite: one of SUITES.
      options: how it is run.

    Returns:
      Everything that was measured, for JSON.

    Raises:
      WorkerError: if the machine's limits cannot be measured.
    """
    print(f"{suite.words}.", flush=True)
    environment = {"JAX_PLATFORMS": "cpu"} if suite.on_cpu else {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        path = Path(folder) / "data.npz"
        np.savez(path, **make_arrays(suite, options.rounds + 1))
        if options.compile:
            environment["JAX_COMPILATION_CACHE_DIR"] = str(Path(folder) / "compiled")
        arguments = [
            f"--work={suite.work}",
            f"--data={path}",
            f"--threads={options.threads}",
        ]

        def start(worker: Worker) -> Process:
            log = Path(folder) / f"{worker.name}.log"
            return Process(worker, arguments, options.peers_dir, environment, log)

        limits_process = stack.enter_context(start(LIMITS))
        machine = limits_process.read()
        groups = suite.groups(options.threads, machine["platform"])
        if suite.with_peers:
            groups[0] += [peer(name, machine["platform"]) for name in options.peers]
        turns, rates = Turns([], {}, {}, []), []
        for group in groups:
            rates += _take_turns(group, start, limits_process, options, turns)
    model = ours.make_model(suite.work, suite.image_shape, suite.num_classes)
    flops = limits.train_flops(model, suite.image_shape)
    products = _median_rates([rate["products"] for rate in rates])
    most = {name: rate / flops for name, rate in products.items()}
    copy = float(np.median([rate["copy"] for rate in rates]))
    rows = make_rows(turns.workers, turns.ready, turns.reports, most)
    print_table(rows)
    for name, rate in products.items():
        print(
            f"limit: {rate / 1e9:,.0f} GFLOP/s in {name} products on "
            f"{machine['device']}, {flops / 1e6:,.1f} MFLOP an image: "
            f"{most[name]:,.0f} images/s"
        )
    print(f"copying: {copy / 1e9:,.1f} GB/s\n", flush=True)
    return {
        "words": suite.words,
        "device": machine["device"],
        "flops_per_image": flops,
        "flops_per_second": products,
        "bytes_copied_per_second": copy,
        "limit": most,
        "rows": [row._asdict() for row in rows],
        "ready": turns.ready,
        "seconds": {
            name: [report["seconds"] for report in reports]
            for name, reports in turns.reports.items()
        },
        "failed": turns.failed,
    }


def _take_turns(
    group: Sequence[Worker],
    start: Callable[[Worker], Process],
    limits_process: Process,
    options: Options,
    turns: Turns,
) -> list[dict[str, Any]]:
    """Runs the workers of a group; returns the limits measured in between."""
    rates = []
    with ExitStack() as stack:
        running: list[Process] = []
        for worker in group:
            try:
                compiled = []
                if options.compile and worker.module == "ours":
                    with start(worker) as process:
                        compiled.append(process.read()["compile_seconds"])
                process = stack.enter_context(start(worker))
                ready = process.read()
            except WorkerError as error:
                _give_up(worker, error, turns)
                continue
            if compiled:
                ready["first_compile_seconds"] = compiled[0]
            turns.ready[worker.name] = ready
            turns.reports[worker.name] = []
            running.append(process)
            print(_ready_line(worker, ready), flush=True)
        for _ in range(options.rounds + 1):
            rates.append(limits_process.run_round())
            for process in list(running):
                try:
                    report = process.run_round()
                except WorkerError as error:
                    running.remove(process)
                    del turns.ready[process.worker.name]
                    del turns.reports[process.worker.name]
                    _give_up(process.worker, error, turns)
                else:
                    turns.reports[process.worker.name].append(report)
        turns.workers.extend(process.worker for process in running)
    return rates


def _give_up(worker: Worker, error: WorkerError, turns: Turns) -> None:
    console.print_error(str(error))
    turns.failed.append(worker.name)


def _ready_line(worker: Worker, ready: Mapping[str, Any]) -> str:
    if "devices" not in ready:
        return f"  {worker.name} {ready['version']}"
    line = f"  {worker.name}: JAX {ready['version']}, devices x lanes of each: "
    line += f"{ready['devices']} x {ready['lanes']}"
    if ready["kept"] < 1:
        line += f", {ready['kept']:.1%} of the MACs left"
    if "first_compile_seconds" in ready:
        line += (
            f", compiled in {ready['first_compile_seconds']:.1f} s, "
            f"from the cache in {ready['compile_seconds']:.1f} s"
        )
    return line


def _median_rates(rates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.median([rate[name] for rate in rates])) for name in rates[0]}


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
