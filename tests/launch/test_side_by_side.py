"""Jobs in processes of their own: all run, failures are told, signals are passed on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedjax_prune.runs.interrupt import INTERRUPTED
from launch import runtime, side_by_side
from launch.side_by_side import Job, last_words, run_all
from launch.train_grid import ending

ROOT = Path(__file__).parents[2]


def job(folder, name, code):
    return Job(name, (sys.executable, "-c", code), folder / f"{name}.log")


def test_a_failure_does_not_keep_others_from_running(tmp_path):
    (tmp_path / "taken").write_text("a file")
    told = "import sys; sys.exit('no room\\n\\n')"
    jobs = [
        job(tmp_path, "bad", f"print('one', flush=True); {told}"),
        job(tmp_path / "taken", "unwritable", "pass"),
        job(tmp_path, "good", "print('two')"),
        job(tmp_path, "killed", "import os; os.kill(os.getpid(), 9)"),
    ]
    said = []
    outcomes, _ = run_all(jobs, 2, said.append)
    assert [o.job for o in outcomes] == jobs
    assert [(o.code, o.stopped) for o in outcomes] == [
        (1, False),
        (1, False),
        (0, False),
        (-9, False),
    ]
    assert outcomes[0].last_words == "no room"
    assert "taken" in outcomes[1].last_words
    assert (tmp_path / "good.log").read_text() == "two\n"
    assert outcomes[3].last_words == ""
    assert last_words(tmp_path / "killed.log") == "error: ended with code -9:"
    assert last_words(tmp_path / "bad.log") == "error: ended with code 1: no room"
    assert any(line.startswith("good: finished after ") for line in said)
    assert "unwritable: not started" in said


def test_the_errors_at_the_end_of_a_log_are_its_last_words(tmp_path):
    log = tmp_path / "run.log"
    for text, words in (
        ("", ""),
        ("error: old\n rounds 3\nround 1\n\n", "round 1"),
        ("round 1\nerror: first\n       goes on\nerror: second\n", "error: first goes"),
        ("error: old\n rounds   3\nerror: new\n", "error: new"),
    ):
        log.write_text(text)
        assert last_words(log).startswith(words) and bool(last_words(log)) == bool(
            words
        )
    log.write_text("error: first\n       goes on\nerror: second\n")
    assert last_words(log) == "error: first goes on error: second"


@pytest.mark.parametrize(
    ("at_a_time", "own", "told"),
    [(1, None, "None None"), (8, None, "0.450 None"), (8, "0.3", "None 0.3")],
)
def test_jobs_share_the_memory_of_a_gpu(tmp_path, monkeypatch, at_a_time, own, told):
    """Each would take 75% of it otherwise; the user's own share stays."""
    names = "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"
    for name in names:
        monkeypatch.delenv(name, raising=False)
    if own is not None:
        monkeypatch.setenv(names[1], own)
    code = f"import os; print(*map(os.environ.get, {names}))"
    jobs = [job(tmp_path, name, code) for name in ("one", "two")]
    run_all(jobs, at_a_time, lambda text: None)
    assert (tmp_path / "one.log").read_text() == f"{told}\n"


def test_jobs_stop_when_their_time_is_over(tmp_path):
    """The first job ends by itself, the second is stopped, the third never starts."""
    jobs = [
        job(tmp_path, "short", "pass"),
        job(tmp_path, "long", "import time; time.sleep(60)"),
        job(tmp_path, "late", "pass"),
    ]
    said = []
    outcomes, _ = run_all(jobs, 1, said.append, seconds=2)
    assert [(o.code, o.stopped) for o in outcomes] == [
        (0, False),
        (-signal.SIGTERM, True),
        (None, True),
    ]
    assert "runs to stop: 1" in said and not (tmp_path / "late.log").exists()


def test_runs_that_share_their_time_have_equal_parts_of_what_is_left(tmp_path):
    """Of 3 s the first has 1 and takes all of it, the second and third take nothing."""
    jobs = [job(tmp_path, "long", "import time; time.sleep(60)")]
    jobs += [job(tmp_path, name, "pass") for name in ("short", "last")]
    began = time.monotonic()
    outcomes, _ = run_all(jobs, 1, lambda _: None, 3, share_time=True)
    assert [o.code for o in outcomes] == [-signal.SIGTERM, 0, 0]
    assert 1 <= time.monotonic() - began < 30


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity")
def test_jobs_share_the_cores_and_this_process_keeps_its_own(tmp_path):
    code = "import os, time; print(sorted(os.sched_getaffinity(0))); time.sleep(0.5)"
    before = runtime.cores()
    jobs = [job(tmp_path, str(n), code) for n in range(2)]
    run_all(jobs, 2, lambda _: None)
    shares = [eval(j.log.read_text()) for j in jobs]
    each = max(1, len(before) // 2)
    assert shares == [before[:each], before[each : 2 * each] or before]
    assert runtime.cores() == before
    # The last one left has its share, too: on more cores it would round otherwise.
    run_all([job(tmp_path, "last", code)], 2, lambda _: None)
    assert eval((tmp_path / "last.log").read_text()) == before[:each]


def test_all_jobs_have_equally_many_cores(monkeypatch):
    for cores, jobs, shares in (
        ([0, 1, 2], 2, [[0], [1]]),
        ([0, 1], 3, [[0], [1], [0]]),
        ([1, 3, 5, 7, 9], 2, [[1, 3], [5, 7]]),
        ([0, 1], 1, [[0, 1]]),
    ):
        monkeypatch.setattr(runtime, "cores", lambda cores=cores: cores)
        assert side_by_side._shares_of_cores(jobs) == shares


MANY = """
import sys
from pathlib import Path
from launch.side_by_side import Job, run_all

SAVES = '''
import signal, sys, time
def save(*_):
    time.sleep(0.3); print("saved", flush=True); sys.exit(130)
signal.signal(signal.SIGTERM, save)
signal.signal(signal.SIGINT, lambda *_: print("interrupted", flush=True))
print("ready", flush=True)
while True: time.sleep(0.05)
'''
folder = Path(sys.argv[1])
command = (sys.executable, "-c", SAVES)
jobs = [Job(str(n), command, folder / f"{n}.log") for n in range(3)]
for outcome in run_all(jobs, 2, lambda _: None).outcomes:
    print(outcome.code, outcome.stopped)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_all_jobs_which_save(tmp_path, number):
    process = subprocess.Popen(
        [sys.executable, "-c", MANY, str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    logs = [tmp_path / f"{n}.log" for n in range(3)]
    while not all(log.exists() and "ready" in log.read_text() for log in logs[:2]):
        assert process.poll() is None, process.stderr
        time.sleep(0.05)
    # As a terminal does: to the whole foreground group, of which jobs are no part.
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert (out, err) == ("130 True\n130 True\nNone True\n", "")
    assert [log.read_text() for log in logs[:2]] == ["ready\nsaved\n"] * 2
    assert not logs[2].exists()


IMPATIENT = """
import sys
from pathlib import Path
from launch.side_by_side import Job, run_all

WAITS = '''
import signal, sys, time
from fedjax_prune.runs.interrupt import stop_requested
with stop_requested():
    try:
        print("ready", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        time.sleep(0.5)
        print("left", flush=True)
'''
folder = Path(sys.argv[1])
command = (sys.executable, "-c", WAITS)
try:
    run_all([Job("one", command, folder / "one.log")], 1, print)
except KeyboardInterrupt:
    print((folder / "one.log").read_text(), flush=True)
"""


def test_a_second_signal_soon_after_the_first_does_not_leave_jobs_behind(tmp_path):
    """It is passed on once a job no longer takes it for the first one."""
    process = subprocess.Popen(
        [sys.executable, "-c", IMPATIENT, str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    log = tmp_path / "one.log"
    while not (log.exists() and "ready" in log.read_text()):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert out.endswith("ready\nleft\n\n")


@pytest.mark.parametrize(("code", "ends"), [("pass", 0), ("exit(1)", 1)])
def test_a_signal_during_the_last_moments_of_the_last_job_is_not_lost(
    tmp_path, capsys, code, ends
):
    """The job ends by itself, but what was to come after it must not start."""

    def say(text):
        if not text.endswith("starts, 1 of 1"):
            signal.raise_signal(signal.SIGINT)

    ended = run_all([job(tmp_path, "one", code)], 1, say)
    assert [(o.code, o.stopped) for o in ended.outcomes] == [(ends, False)]
    assert ended.asked and ending(ended) == INTERRUPTED
    *_, told = capsys.readouterr().err.splitlines()
    assert told == "error: stopped: no run is left; the same command goes on"
    again = run_all([job(tmp_path, "one", code)], 1, lambda _: None)
    assert not again.asked and ending(again) == ends


SLOW = """
import signal, sys, time
def save(*_):
    time.sleep(0.5); print("saved", flush=True); sys.exit(130)
signal.signal(signal.SIGTERM, save)
time.sleep(60)
"""


def test_a_reader_that_is_gone_does_not_leave_jobs_behind(tmp_path):
    """As `tee` after Ctrl-C: the jobs are told first, and then waited for."""

    def say(text):
        if text.startswith("runs to stop"):
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        run_all([job(tmp_path, "one", SLOW)], 1, say, seconds=2)
    assert (tmp_path / "one.log").read_text() == "saved\n"
