"""Runs the workers of a suite in turn on one machine and collects their reports."""

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_prune.runs import console

from . import limits, ours
from .process import Process, WorkerError
from .suites import Suite, Worker, make_arrays, peers_on
from .table import make_rows, print_table

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
    """The reports of a suite's workers.

    Attributes:
      workers: those that ran to the end.
      ready: name -> the facts that the worker sent when it was ready.
      reports: name -> the worker's report of every round.
      failed: names of those that did not run to the end.
    """

    workers: list[Worker]
    ready: dict[str, dict[str, Any]]
    reports: dict[str, list[dict[str, Any]]]
    failed: list[str]


def run_suite(suite: Suite, options: Options) -> dict[str, Any]:
    """Runs a suite and prints its table.

    Args:
      suite: one of SUITES.
      options: how it is run.

    Returns:
      Everything that was measured, for JSON.

    Raises:
      WorkerError: if the machine's limits cannot be measured, or it has a TPU.
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
        if machine["platform"] == "tpu":
            raise WorkerError(
                "the benchmark needs a CPU or GPU, which processes can share; here JAX "
                "has a TPU, which is for one (JAX_PLATFORMS=cpu leaves it out)"
            )
        if machine["platform"] == "cpu":
            # PyTorch would take a GPU that ours leaves out.
            environment["CUDA_VISIBLE_DEVICES"] = ""
        turns, rates = Turns([], {}, {}, []), []
        for group in _groups(suite, options, machine["platform"]):
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


def _groups(suite: Suite, options: Options, platform: str) -> list[list[Worker]]:
    groups = suite.groups(options.threads, platform)
    if suite.with_peers:
        peers = peers_on(platform, options.peers)
        groups[0] += peers
        if len(peers) < len(options.peers):
            print("  FedJAX is left out: its environment has JAX for CPUs.")
    return groups


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
        running: list[tuple[Process, ExitStack]] = []
        for worker in group:
            own = stack.enter_context(ExitStack())
            try:
                compiled = []
                if options.compile and worker.module == "ours":
                    with start(worker) as process:
                        compiled.append(process.read()["compile_seconds"])
                process = own.enter_context(start(worker))
                ready = process.read()
            except WorkerError as error:
                _give_up(worker, own, error, turns)
                continue
            if compiled:
                ready["first_compile_seconds"] = compiled[0]
            turns.ready[worker.name] = ready
            turns.reports[worker.name] = []
            running.append((process, own))
            print(_ready_line(worker, ready), flush=True)
        for _ in range(options.rounds + 1):
            rates.append(limits_process.run_round())
            for process, own in list(running):
                try:
                    report = process.run_round()
                    _require_change(process.worker, turns.reports, report)
                except WorkerError as error:
                    running.remove((process, own))
                    del turns.ready[process.worker.name]
                    del turns.reports[process.worker.name]
                    _give_up(process.worker, own, error, turns)
                else:
                    turns.reports[process.worker.name].append(report)
        turns.workers.extend(process.worker for process, _ in running)
    return rates


def _require_change(
    worker: Worker,
    reports: Mapping[str, Sequence[Mapping[str, Any]]],
    report: Mapping[str, Any],
) -> None:
    """Refuses a round that has not trained: its time would say nothing."""
    before = [each["checksum"] for each in reports[worker.name][-1:]]
    if not math.isfinite(report["checksum"]) or report["checksum"] in before:
        raise WorkerError(
            f"{worker.name} does not train: the mean of its parameters is "
            f"{report['checksum']}, {before or 'nothing'} the round before"
        )


def _give_up(
    worker: Worker, process: ExitStack, error: WorkerError, turns: Turns
) -> None:
    """Ends a worker, which would compute beside the others, and remembers its name."""
    process.close()
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
