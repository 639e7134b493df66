"""Several processes equal one, and tell which of them was lost.

The tests marked `long` take about half an hour of one core.
"""

import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from fedjax_prune.engine import row_log
from fedjax_prune.runs import checkpoint, environment, train
from fedjax_prune.runs.metrics_log import read_metrics
from fedjax_prune.runs.saving import CHECKPOINTS
from fedjax_prune.runs.verify import Difference, environment_differences
from tests.processes import ROOT, Together, one_process, run_together
from tests.small_runs import final_state

COMPACT = ("--config.compact_training=true",)
ON_DISK = ("--config.client_rows=disk",)
GOES_ON = "The same command, given to all processes, goes on from the last checkpoint."


def measured(workdir):
    """The rows of metrics without times."""
    return [
        {name: x for name, x in row.items() if not name.startswith("seconds")}
        for row in read_metrics(workdir)
    ]


def assert_equal_runs(config, first, second):
    chex.assert_trees_all_equal(final_state(config, first), final_state(config, second))
    assert measured(first) == measured(second)


@pytest.fixture(scope="session")
def alone(tmp_path_factory):
    """(name, **changes) -> workdir of a run of one process; each is run once."""
    made = {}

    def get(name, **changes):
        key = name, *changes.items()
        if key not in made:
            made[key] = tmp_path_factory.mktemp(f"{name}-alone")
            assert train.run(one_process(name, **changes), made[key]) == 0
        return made[key]

    return get


STARTER = """
import sys, time
from pathlib import Path
from tests.processes import Together

together = Together(2, "fedavg", Path(sys.argv[1]))
print(*(process.pid for process in together.processes), flush=True)
time.sleep(600)
"""


def is_running(pid):
    """A process that nobody has waited for is still there when it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_launchers_of_these_tests_end_with_the_tests(tmp_path):
    command = [sys.executable, "-c", STARTER, str(tmp_path / "run")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdout=pipe, text=True) as starter:
        pids = [int(pid) for pid in starter.stdout.readline().split()]
        assert len(pids) == 2 and all(map(is_running, pids))
        starter.kill()
    began = time.monotonic()
    while any(map(is_running, pids)):
        assert time.monotonic() - began < 10
        time.sleep(0.1)


MANY = {"rounds": 40, "save_every": 5, "eval.every": 40}


@pytest.mark.long
def test_a_process_is_lost_and_the_same_command_goes_on(alone, tmp_path):
    """The first process is killed; the others notice it at once."""
    workdir = tmp_path / "run"
    flags = [f"--config.{name}={value}" for name, value in MANY.items()]
    # So many rounds that none ends before it is killed.
    together = Together(2, "scaffold", workdir, *flags, "--config.rounds=100000")
    together.wait_for("round     10/100000")
    together.processes[0].kill()
    began = time.monotonic()
    assert together.end() == [-signal.SIGKILL, 75]
    assert time.monotonic() - began < 10
    # On a busy machine XLA may log before it that a barrier is gone, too.
    *_, line = together.said("err", 1).splitlines()
    assert line.startswith("error: process 0 of 2 was lost: its connection has ended,")
    assert line.endswith(f" s after the start. {GOES_ON}")
    assert 0 < checkpoint.latest(workdir / CHECKPOINTS) < MANY["rounds"]
    out = run_together(2, "scaffold", workdir, *flags)
    assert "lanes          1, on each of 4 cpu devices of 2 processes" in out
    config = one_process("scaffold", **MANY)
    unbroken = alone("scaffold", **MANY)
    assert_equal_runs(config, unbroken, workdir)
    differing = environment_differences(*map(environment.read, (unbroken, workdir)))
    assert Difference("environment.json", "processes", "1", "2") in differing


@pytest.mark.long
@pytest.mark.parametrize(
    ("num_processes", "name", "flags"),
    [
        (2, "fedavg", ()),
        (4, "fedavg", ()),
        (2, "feddp", ("--config.client_rows=host",)),
        (4, "feddp", ()),
        (2, "feddp", ON_DISK),
        (2, "scaffold", ON_DISK),
        (2, "autoflip", ()),
        (4, "autoflip", COMPACT),
        (2, "autoflip", (*COMPACT, *ON_DISK)),
        (2, "many", ()),
    ],
)
def test_several_processes_equal_one(alone, tmp_path, num_processes, name, flags):
    changes = {"hash_every": 1}
    if set(COMPACT) <= set(flags):
        changes["compact_training"] = True
    flags = (*flags, "--config.hash_every=1")
    run_together(num_processes, name, tmp_path / "run", *flags)
    config = one_process(name, **changes)
    assert_equal_runs(config, alone(name, **changes), tmp_path / "run")


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        (
            "hostile",
            {f"clients/{kind}" for kind in ("absent", "slow", "clipped", "hostile")},
        ),
        ("private", {"clients/absent", "privacy/epsilon"}),
    ],
)
def test_policies_of_several_processes_equal_those_of_one(
    alone, tmp_path, name, fields
):
    workdir = tmp_path / "run"
    run_together(2, name, workdir, "--config.hash_every=1")
    unbroken = alone(name, hash_every=1)
    assert_equal_runs(one_process(name, hash_every=1), unbroken, workdir)
    assert fields <= set().union(*measured(workdir))


@pytest.mark.long
def test_sums_over_processes_differ_by_rounding(alone, tmp_path):
    """One round, because SGD amplifies rounding."""
    changes = {"rounds": 1, "reduction": "all_reduce"}
    flags = [f"--config.{name}={value}" for name, value in changes.items()]
    run_together(2, "fedavg", tmp_path / "run", *flags)
    config = one_process("fedavg", **changes)
    found = final_state(config, tmp_path / "run")
    wanted = final_state(config, alone("fedavg", **changes))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, wanted
    )


@pytest.mark.long
@pytest.mark.parametrize(
    "kinds", [("device", "device", "device"), ("disk",) * 3, ("host", "disk", "disk")]
)
def test_a_run_goes_on_with_another_number_of_processes(alone, tmp_path, kinds):
    """With four, with one and with two; also with rows that move to the disk."""
    workdir = tmp_path / "run"
    first, _, third = (f"--config.client_rows={kind}" for kind in kinds)
    run_together(4, "feddp", workdir, first, "--config.rounds=1")
    config = one_process("feddp", rounds=2, client_rows=kinds[1])
    assert train.run(config, workdir) == 0
    run_together(2, "feddp", workdir, third, "--config.rounds=4")
    config, unbroken = one_process("feddp"), alone("feddp")
    found, wanted = final_state(config, workdir), final_state(config, unbroken)
    chex.assert_trees_all_equal(found, wanted)
    # Each last round was evaluated, so other fields differ.
    losses = [[row["train/loss"] for row in measured(w)] for w in (workdir, unbroken)]
    assert losses[0] == losses[1] and len(losses[0]) == 4


@pytest.mark.long
@pytest.mark.parametrize("killed", [0, 1])
def test_rows_on_disk_survive_a_killed_process(alone, tmp_path, killed):
    workdir = tmp_path / "run"
    flags = [*ON_DISK, *(f"--config.{name}={value}" for name, value in MANY.items())]
    together = Together(2, "scaffold", workdir, *flags, "--config.rounds=100000")
    together.wait_for("round     13/100000")
    together.processes[killed].kill()
    codes = [75, 75]
    codes[killed] = -signal.SIGKILL
    assert together.end() == codes
    run_together(2, "scaffold", workdir, *flags)
    config = one_process("scaffold", **MANY)
    assert_equal_runs(config, alone("scaffold", **MANY), workdir)
    # By now all clients were trained again, so nothing of the first attempt is left.
    names = row_log.load(workdir / CHECKPOINTS / "40" / "rows").index.names
    files = {file.name for file in (workdir / "rows").iterdir()}
    assert names <= files and {name[:2] for name in files} == {"2-"}


@pytest.mark.long
def test_a_lost_process_is_named_by_its_silence(tmp_path):
    together = Together(4, "fedavg", tmp_path / "run", "--config.rounds=100000")
    together.wait_for("round      2/100000")
    together.processes[2].kill()
    began = time.monotonic()
    assert together.end() == [75, 75, -signal.SIGKILL, 75]
    assert time.monotonic() - began < 60
    for number in (0, 1, 3):
        (line,) = together.said("err", number).splitlines()
        assert line.startswith(
            "error: process 2 of 4 was lost: no sign of life for 40 s,"
        )
        assert line.endswith(GOES_ON)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_one_process_stops_all(tmp_path, number):
    workdir = tmp_path / "run"
    flags = [f"--config.{name}={value}" for name, value in MANY.items()]
    together = Together(2, "scaffold", workdir, *flags, "--config.rounds=100000")
    together.wait_for("round      2/100000")
    together.processes[1].send_signal(number)
    assert together.end() == [130, 130]
    assert [together.said("err", n) for n in (0, 1)] == ["", ""]
    stopped = checkpoint.latest(workdir / CHECKPOINTS)
    assert [row["round"] for row in read_metrics(workdir)] == [*range(1, stopped + 1)]


@pytest.mark.long
def test_a_stopped_preparation_goes_on_in_one_process(alone, tmp_path):
    workdir = tmp_path / "run"
    together = Together(2, "autoflip", workdir)
    together.wait_for("preparing with")
    together.processes[0].send_signal(signal.SIGTERM)
    assert together.end() == [130, 130]
    assert train.run(one_process("autoflip"), workdir) == 0
    assert_equal_runs(one_process("autoflip"), alone("autoflip"), workdir)


LATE = """
import time
import jax

compile = jax.stages.Lowered.compile

def late(lowered, *args, **kwargs):
    jax.stages.Lowered.compile = compile
    time.sleep(45)
    return compile(lowered, *args, **kwargs)

jax.stages.Lowered.compile = late
"""


@pytest.mark.long
def test_a_process_that_compiles_much_longer_does_no_harm(alone, tmp_path):
    (tmp_path / "late").mkdir()
    (tmp_path / "late" / "sitecustomize.py").write_text(LATE)
    began = time.monotonic()
    paths = {1: [tmp_path / "late"]}
    run_together(2, "fedavg", tmp_path / "run", paths=paths)
    assert time.monotonic() - began > 45
    assert_equal_runs(one_process("fedavg"), alone("fedavg"), tmp_path / "run")


def assert_both_say(together, reason):
    """The first of two processes has failed, and both end with its reason."""
    assert together.end() == [1, 1]
    (line,) = together.said("err", 0).splitlines()
    assert line.startswith(f"error: {reason}")
    (line,) = together.said("err", 1).splitlines()
    assert line.startswith(f"error: process 0 of 2 has failed: {reason}")


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (CHECKPOINTS, "The checkpoint {}/2 cannot be saved:"),
        ("tensorboard", "{} cannot be written: File exists."),
    ],
)
def test_a_failure_of_one_process_ends_all(tmp_path, name, reason):
    """A folder that the first process writes to is a file."""
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / name).write_text("")
    together = Together(2, "fedavg", workdir)
    assert_both_say(together, reason.format(workdir / name))


@pytest.mark.long
def test_a_row_that_one_process_cannot_write_ends_all(tmp_path):
    """Long before the next checkpoint, and no checkpoint is without its rows."""
    workdir = tmp_path / "run"
    flags = ("--config.rounds=100000", "--config.save_every=100000")
    together = Together(2, "scaffold", workdir, *flags)
    together.wait_for("round      2/100000")
    (workdir / "lock").unlink()
    assert_both_say(together, f"This run has lost its workdir {workdir}: the file")
    assert not checkpoint.rounds(workdir / CHECKPOINTS)


@pytest.mark.long
def test_processes_with_other_fields_are_refused(tmp_path):
    together = Together(2, "fedavg", tmp_path / "run", lr={1: 0.2})
    assert together.end() == [1, 1]
    for number in range(2):
        said = together.said("err", number)
        assert (
            "client.lr must be the same in all processes, got 0.1 in process 0" in said
        )
