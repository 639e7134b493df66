"""The benchmark's workers: how they take turns, and what becomes of one that fails."""

import json
import os
import re
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import jax
import numpy as np
import pytest

from launch.benchmark import ours, turns, worker
from launch.benchmark.process import Process, WorkerError
from launch.benchmark.suites import SUITES, Worker

ROOT = Path(__file__).parents[2]
OPTIONS = turns.Options(2, 1, [], Path("peers"), compile=False)


class Said:
    """A process that says what it is given, then fails; and when it is ended."""

    def __init__(self, worker, *said, ended):
        self.worker, self._said, self._ended = worker, iter(said), ended

    def read(self):
        for said in self._said:
            return said
        raise WorkerError(f"{self.worker.name} has failed")

    run_round = read

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._ended.append(self.worker.name)


def test_a_worker_that_fails_is_ended_before_the_others_go_on(capsys):
    """It would compute beside them."""
    ready = {"version": "1"}
    reports = [{"seconds": 1.0, "images": 8, "checksum": x} for x in (0.0, 0.1, 0.2)]
    said = {
        "unready": [],
        "early": [ready, *reports[:1]],
        "whole": [ready, *reports],
        "limits": [{"products": {"float32": 1.0}, "copy": 1.0}] * 3,
    }
    ended, seen = [], []

    def start(worker):
        return Said(worker, *said[worker.name], ended=ended)

    limits = start(Worker("limits"))
    monitored = limits.run_round

    def run_round():
        seen.append(list(ended))
        return monitored()

    limits.run_round = run_round
    found = turns.Turns([], {}, {}, [])
    group = [Worker(name) for name in ("unready", "early", "whole")]
    turns._take_turns(group, start, limits, OPTIONS, found)
    assert seen == [["unready"], ["unready"], ["unready", "early"]]
    assert ended == ["unready", "early", "whole"]
    assert [worker.name for worker in found.workers] == ["whole"] == list(found.reports)
    assert found.failed == ["unready", "early"]
    assert capsys.readouterr().err.count("has failed") == 2


@pytest.mark.parametrize(
    ("checksums", "told"),
    [((0.5, float("nan"), 0.7), "is nan"), ((0.5, 0.6, 0.6), r"is 0\.6, \[0\.6\] the")],
)
def test_the_time_of_a_worker_that_does_not_train_does_not_count(
    checksums, told, capsys
):
    reports = [{"seconds": 1.0, "images": 8, "checksum": x} for x in checksums]
    limits = Said(
        Worker("limits"), *[{"products": {}, "copy": 1.0}] * 3, ended=(ended := [])
    )
    found = turns.Turns([], {}, {}, [])

    def start(worker):
        return Said(worker, {"version": "1"}, *reports, ended=ended)

    turns._take_turns([Worker("still")], start, limits, OPTIONS, found)
    assert (found.workers, found.reports, found.failed) == ([], {}, ["still"])
    assert re.search(f"still does not train: .* {told}", capsys.readouterr().err)


def test_a_tpu_is_refused_because_it_is_for_one_process(monkeypatch):
    ended = []

    def start(worker, *_):
        return Said(worker, {"platform": "tpu", "device": "TPU v5e"}, ended=ended)

    monkeypatch.setattr(turns, "Process", start)
    with pytest.raises(WorkerError, match=r"a CPU or GPU, .* a TPU, which is for one"):
        turns.run_suite(SUITES["w1"], OPTIONS)
    assert ended == ["limits"]


CHILD = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
PARENT = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]])"


def test_children_of_a_worker_that_has_ended_are_ended(monkeypatch, tmp_path):
    popen = subprocess.Popen

    def start(_, **options):
        return popen([sys.executable, "-c", PARENT, CHILD], **options)

    monkeypatch.setattr(subprocess, "Popen", start)
    with Process(Worker("any"), [], tmp_path, {}, tmp_path / "log") as process:
        child = process.read()
        os.kill(child, 0)
    # Whoever has taken the orphan reaps it soon.
    for _ in range(100):
        if _is_gone(child):
            return
        time.sleep(0.05)
    pytest.fail("the child is still there")


def _is_gone(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and stat.read_text().split()[2] == "Z"


def test_the_fastest_lanes_are_those_that_were_compiled(monkeypatch):
    """Rounds take less time with up to four lanes, and sixteen do not fit."""
    clock, made = [0.0], []
    seconds = {1: 8.0, 2: 4.0, 4: 3.0, 8: 2.99, 16: 1.0}

    def make(work, data, settings, lanes):
        made.append(lanes)
        if lanes == most + 1:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

        def run_round(_):
            clock[0] += seconds[lanes]

        return ours.Runner(run_round, float, dict, {"lanes": lanes})

    data = Namespace(cohorts=np.zeros((1, 16)), cohort=lambda _: None)
    monkeypatch.setattr(ours, "make", make)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    most = 99
    assert ours._fastest("w1", data, ours.Settings()).facts == {"lanes": 1}
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    made.clear()
    assert ours._fastest("w1", data, ours.Settings()).facts == {"lanes": 4}
    assert made == [1, 2, 4, 8]
    most = 3
    assert ours._fastest("w1", data, ours.Settings()).facts == {"lanes": 2}


@pytest.mark.parametrize(("precision", "word"), [("float32", "highest"), ("tf32", "t")])
def test_rounds_are_traced_in_the_precision_of_their_worker(
    monkeypatch, precision, word
):
    """A round that compacts the model is compiled when it is first called."""
    own = ours.Settings(precision=precision)._asdict() | {"lanes": 2}
    given = worker.Options("w1", "", 1, Namespace(**own))
    monkeypatch.setattr(worker, "start", lambda parser: (given, None, None))
    monkeypatch.setattr(ours.runtime, "configure", lambda: None)
    monkeypatch.setattr(ours, "make", lambda *_: ours.Runner(print, float, dict, {}))
    found = []
    monkeypatch.setattr(
        worker,
        "serve",
        lambda *_, **__: found.append(jax.config.jax_default_matmul_precision),
    )
    ours.main()
    assert len(found) == 1 and str(found[0]).startswith(word)


def benchmark(*flags, code="pass", **variables):
    start = f"import os, runpy; {code}; "
    start += "runpy.run_module('launch.benchmark', run_name='__main__')"
    return subprocess.run(
        [sys.executable, "-c", start, *flags],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def test_threads_need_a_system_that_binds_processes_to_cores():
    code = "os.__dict__.pop('sched_setaffinity', None); os.cpu_count = lambda: 4; "
    code += "os.__dict__.pop('sched_getaffinity', None)"
    done = benchmark("--suite=w1", "--peers=", "--threads=2", code=code)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: --threads must be 4, all cores, on a system")


def test_a_peer_that_cannot_be_installed_ends_the_benchmark(tmp_path):
    peers = "--peers=torch_loop,pfl_sim"
    done = benchmark(
        "--suite=w1", peers, f"--peers_dir={tmp_path}", PYTHON=str(tmp_path / "none")
    )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("Python 3.11 or 3.12 is needed") == 2
    last = done.stderr.splitlines()[-1]
    assert last == "error: these peers could not be installed: torch_loop, pfl_sim"


def test_a_suite_that_fails_does_not_lose_the_others(tmp_path):
    file = tmp_path / "found.json"
    code = (
        "from launch.benchmark import turns, inference; "
        "turns.run_suite = lambda suite, _: {'failed': []}; "
        "fails = (_ for _ in ()).throw; "
        "inference.run_inference = lambda *_: fails(turns.WorkerError('x'))"
    )
    done = benchmark("--suite=inference,w1", "--peers=", f"--output={file}", code=code)
    assert (done.returncode, done.stderr) == (1, "error: x\n")
    assert json.loads(file.read_text())["suites"] == {"w1": {"failed": []}}
