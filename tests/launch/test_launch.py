"""The launchers as a user meets them: from any folder, on any platform, in a pipe."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import fedjax_prune
from fedjax_prune.__main__ import VERBS
from fedjax_prune.runs import checkpoint
from tests.made_up_runs import config_of, write_run

ROOT = Path(__file__).parents[2]

TINY = """
from . import base

def get_config(text="1"):
    config = base.get_config("fedavg")
    config.update_from_flattened_dict({
        "rounds": int(text), "cohort_size": 2, "lanes": 1, "devices": 1,
        "data.name": "digits", "data.num_clients": 2, "data.num_train": 60,
        "data.augment": "none", "data.normalize": "none", "data.partitioner": "iid",
        "data.local_val": "holdout",
        "model.name": "cnn", "model.norm": "none", "model.width": 0.25,
        "model.gated": False,
        "client.epochs": 1, "client.batch_size": 30, "eval.num_examples": 20,
        "report.every": 0,
    })
    return config
"""


@pytest.fixture
def elsewhere(tmp_path):
    """A folder of a user with packages of our names, and a configuration."""
    for name in ("configs", "launch"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('not ours')")
    (tmp_path / "tiny.py").write_text(TINY)
    return tmp_path


def start(folder, *command, **environment):
    inherited = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=inherited | {"PYTHONPATH": path} | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(folder, *command, code=0, **environment):
    process = start(folder, *command, **environment)
    out, err = process.communicate()
    assert process.returncode == code, err
    return out, err


def test_the_version_and_unknown_verbs(elsewhere):
    out, _ = run(elsewhere, "fedjax_prune", "--version")
    assert out == f"{fedjax_prune.__version__}\n"
    out, err = run(elsewhere, "fedjax_prune", "tran", code=1)
    known = ", ".join(VERBS)
    assert (out, err) == (
        "",
        f"error: the verb must be one of {known}, got 'tran'\n",
    )


def test_an_interrupt_while_the_library_is_imported_ends_the_process(elsewhere):
    flags = ("train", "--config=tiny.py", "--workdir=run")
    with start(elsewhere, "fedjax_prune", *flags, PYTHONVERBOSE="1") as process:
        assert process.stdout and process.stderr
        # So far Python has imported JAX, and of the library its first lines.
        assert any(line.startswith("import 'jax'") for line in process.stderr)
        process.send_signal(signal.SIGINT)
        assert "Traceback" not in process.stderr.read()
        assert process.stdout.read() == ""
        # Python itself ends like this, too, but after a traceback.
        assert process.wait() == -signal.SIGINT


# From Python 3.13 on `os` itself asks for the affinity where there is one.
WITHOUT_AFFINITY = """
import os
del os.sched_getaffinity, os.sched_setaffinity
os.process_cpu_count = os.cpu_count
"""


def test_all_launchers_from_another_folder_where_cores_have_no_affinity(elsewhere):
    """As on macOS; the home directory is the folder itself."""
    (elsewhere / "sitecustomize.py").write_text(WITHOUT_AFFINITY)
    known = {"PYTHONPATH": f"{ROOT}{os.pathsep}{elsewhere}", "HOME": str(elsewhere)}

    def launch(verb, *flags):
        return run(elsewhere, "fedjax_prune", verb, *flags, **known)

    flags = ("--config=tiny.py", "--workdir=~/runs[1]", "--settings=2", "--jobs=2")
    out, err = launch("sweep", *flags)
    assert err == ""
    assert re.search(r"^\| 2 \| 2 \|", out, re.MULTILINE)
    workdir = elsewhere / "runs[1]" / "2"
    assert json.loads((workdir / "config.json").read_text())["rounds"] == 2
    out, _ = launch("report", "--workdirs=~/runs[1]")
    assert out == f"{elsewhere / 'report' / 'index.html'}\n"
    assert (elsewhere / "report" / "accuracy.png").is_file()
    out, _ = launch("report", f"--workdirs={workdir}", "--live")
    assert out.splitlines()[-1].startswith("round 2/2  loss ")
    out, _ = launch("evaluate", f"--workdir={workdir}")
    assert re.search(r"test accuracy +[\d.]+% of the shared model, after round 2 ", out)
    out, _ = launch("verify", f"--workdir={workdir}")
    assert re.search(r"result +equal", out)
    out, _ = launch("export", "--workdir=~/runs[1]/2", "--output=model")
    assert re.search(r"what +dense: the shared parameters at full size", out)
    assert (elsewhere / "model" / "model.safetensors").is_file()


def test_a_report_of_a_sweep_leaves_out_runs_in_their_first_round(elsewhere):
    for name in ("seed=0", "seed=1"):
        write_run(elsewhere / "all" / name, config_of(rounds=1), records=False)
    (elsewhere / "all" / "seed=1" / "metrics.jsonl").write_text("")
    _, err = run(elsewhere, "fedjax_prune", "report", "--workdirs=all")
    begun = elsewhere / "all" / "seed=1"
    assert err == f"warning: {begun} is left out: it has no finished round\n"
    assert (elsewhere / "report" / "index.html").exists()
    # One that is named is not left out.
    flags = ("report", "--workdirs=all/seed=1")
    _, err = run(elsewhere, "fedjax_prune", *flags, code=1)
    assert err == f"error: {begun} has no finished round.\n"


def test_mistakes_in_the_flags_of_a_report_are_told_together(elsewhere):
    flags = ("--workdirs=a,b", "--live", "--out=", "--workdir=c")
    out, err = run(elsewhere, "fedjax_prune", "report", *flags, code=1)
    assert (out, err.splitlines()) == (
        "",
        [
            "error: --workdir is not an argument; did you mean --workdirs?",
            "error: --out must name a folder, got ''",
            "error: --live follows one run, got 2 workdirs",
        ],
    )


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "compile"])
def test_object_storage_is_refused_before_anything_else(elsewhere, verb):
    flags = {
        "train": ["--config=tiny.py"],
        "export": ["--output=model"],
        "sweep": ["--config=tiny.py", "--settings=1"],
    }.get(verb, [])
    before = sorted(elsewhere.iterdir())
    workdir = "--workdirs" if verb == "report" else "--workdir"
    command = ("fedjax_prune", verb, f"{workdir}=gs://bucket/run", *flags)
    out, err = run(elsewhere, *command, code=1, PYTHONDONTWRITEBYTECODE="1")
    assert (out, err) == (
        "",
        "error: gs://bucket/run is not a folder of this machine. Only rows of clients "
        "can be in object storage, see rows_dir: name a local folder.\n",
    )
    assert sorted(elsewhere.iterdir()) == before


def test_a_run_piped_to_head_saves_its_checkpoint(elsewhere):
    command = ("fedjax_prune", "train", "--config=tiny.py:5000", "--workdir=run")
    with start(elsewhere, *command) as process:
        assert process.stdout and process.stderr
        assert any(line.startswith("round ") for line in process.stdout)
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 130
    newest = checkpoint.latest(elsewhere / "run" / "checkpoints")
    rows = (elsewhere / "run" / "metrics.jsonl").read_text().splitlines()
    assert newest == len(rows) < 5000


@pytest.mark.parametrize("verb", [[], ["train"]])
def test_help_that_nobody_reads_ends_quietly(elsewhere, verb):
    with start(elsewhere, "fedjax_prune", *verb, "--help") as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 1


@pytest.mark.parametrize(
    "command", ["evaluate --help", "train --workdir=run --config=tiny.py"]
)
def test_an_output_that_is_closed_from_the_start_is_no_error(elsewhere, command):
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -m fedjax_prune {command} >&-', sys.executable],
        cwd=elsewhere,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_an_error_of_the_system_is_one_line(elsewhere):
    """A folder cannot be made below a file."""
    command = ("sweep", "--workdir=tiny.py/runs", "--config=tiny.py", "--settings=1")
    out, err = run(elsewhere, "fedjax_prune", *command, code=1)
    assert (out, err) == ("", f"error: {elsewhere}/tiny.py/runs: Not a directory\n")


CLOSED = """
import os, sys
os.close(1)
from launch.errors import exit_code

def command():
    with open(sys.argv[1], "w") as file:
        print("for nobody", flush=True)
        return file.fileno()

sys.exit(exit_code(command))
"""


def test_a_closed_output_is_not_given_to_a_file(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CLOSED, str(tmp_path / "file")],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode > 2 and done.stderr == ""
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("client.rate=0.1", "client.rate is not a field"),
        ("cohort_size=3", "cohort_size must be at most data.num_clients = 2, got 3"),
        ("devices=3", "devices must be a multiple of the 2 processes, got 3"),
    ],
)
def test_a_process_tells_its_mistakes_before_it_waits_for_others(elsewhere, flag, said):
    """There is no other one."""
    train = ("fedjax_prune", "train", "--config=tiny.py", "--workdir=run")
    place = ("localhost:1", 2, 1)
    names = ("coordinator_address", "num_processes", "process_id")
    seat = [f"--{name}={value}" for name, value in zip(names, place, strict=True)]
    out, err = run(elsewhere, *train, *seat, f"--config.{flag}", code=1)
    assert out == "" and err.startswith(f"error: {said}") and err.count("\n") == 1
    assert not (elsewhere / "run").exists()
