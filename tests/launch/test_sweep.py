"""Sweeps as a user meets them: a grid, failures, a stop, and the same command again."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedjax_prune.runs import checkpoint
from fedjax_prune.runs.metrics_log import read_metrics

ROOT = Path(__file__).parents[2]

TINY = """
from . import base

def get_config(text="fedavg"):
    config = base.get_config(text)
    config.update_from_flattened_dict({
        "rounds": 2, "cohort_size": 2, "lanes": 1, "devices": 1,
        "data.name": "digits", "data.num_clients": 2, "data.num_train": 60,
        "data.augment": "none", "data.normalize": "none", "data.partitioner": "iid",
        "data.local_val": "holdout",
        "model.name": "cnn", "model.norm": "none", "model.width": 0.25,
        "model.gated": False, "save_every": 5000, "eval.every": 5000,
        "client.epochs": 1, "client.batch_size": 30, "eval.num_examples": 20,
    })
    return config
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tiny.py").write_text(TINY)
    return tmp_path


def start(folder, *flags, **environment):
    command = ("launch.sweep", f"--config={folder}/tiny.py", f"--workdir={folder}/all")
    return subprocess.Popen(
        [sys.executable, "-m", *command, *flags],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def sweep(folder, *flags, code=0, **environment):
    process = start(folder, *flags, **environment)
    out, err = process.communicate()
    assert process.returncode == code, (out, err)
    return out, err


@pytest.mark.long
def test_a_grid_with_a_failure_in_shards_and_together(folder):
    # The digits have 1,442 training examples.
    axes = ("--axis=seed=0,1", "--axis=data.num_train=60,5000")
    for seed in (0, 1):
        name = f"data.num_train=5000/seed={seed}"
        shard = f"--shard={seed + 1}/2"
        out, err = sweep(folder, *axes, shard, "--jobs=2", code=1)
        assert f"| data.num_train=60 | 2 | {seed + 1} |" in out
        assert err.startswith(f"error: {name} ended with code 1: error: num_train")
        assert err.endswith(f"see {folder}/all/{name}.log\n")
        assert "in [0, 1442]" in (folder / f"all/{name}.log").read_text()
    assert not (folder / "all/table.md").exists()
    # The first setting, to which others are compared, is now the one that fails.
    axes = ("--axis=seed=0,1", "--axis=data.num_train=5000,60,70")
    out, err = sweep(folder, *axes, code=1)
    assert out.startswith("2 of 6 runs are finished\n")
    assert "Not finished: data.num_train=5000 (2 of 2 seeds). error: num_train" in out
    assert out.endswith("Differences are those to data.num_train=60.\n")
    accuracies = [
        read_metrics(folder / f"all/data.num_train=60/seed={seed}")[-1]["eval/headline"]
        for seed in (0, 1)
    ]
    mean, apart = sum(accuracies) / 2, abs(accuracies[0] - accuracies[1])
    # Student's t with one degree of freedom is tan(0.475 pi) = 12.7062; s / sqrt(2) is
    # half of the distance.
    cells = f"| {mean:.1%} ± {12.7062 * apart / 2:.1%} |"
    assert f"| data.num_train=60 | 2 | 2 {cells}" in out


@pytest.mark.long
def test_other_fields_in_an_old_workdir_are_refused_before_anything(folder):
    sweep(folder, "--axis=client.lr=0.1")
    flags = ("--axis=client.lr=0.1,0.2", "--shard=2/2")
    for changed, message in (
        ("client.momentum=0.5", "client.momentum is 0.5, but the run in"),
        ("rounds=1", "rounds must be at least 2, which the run in"),
    ):
        _, err = sweep(folder, *flags, f"--config.{changed}", code=1)
        assert f"error: {message} {folder}/all/client.lr=0.1 " in err
    assert not (folder / "all/client.lr=0.2").exists()


@pytest.mark.long
def test_a_stopped_sweep_goes_on(folder):
    flags = ("--axis=seed=0,1", "--jobs=2")
    process = start(folder, *flags, "--config.rounds=5000")
    logs = [folder / f"all/seed={seed}.log" for seed in (0, 1)]
    # Numbers are padded to the width of the last one.
    begun = re.compile(r"^round +3/5000 ", re.MULTILINE)
    while not all(log.exists() and begun.search(log.read_text()) for log in logs):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "seed=0: stopped after" in out and "seed=1: stopped after" in out
    assert err == "error: stopped: 2 runs are not finished; the same command goes on\n"
    runs = [folder / f"all/seed={seed}" for seed in (0, 1)]
    saved = [checkpoint.latest(run / "checkpoints") for run in runs]
    assert all(3 <= round < 5000 for round in saved)
    last = max(saved) + 2
    out, err = sweep(folder, *flags, f"--config.rounds={last}")
    assert err == ""
    assert re.search(rf"^\| \S+ \| {last} \| 2 \|", out, re.MULTILINE)
    assert out.endswith((folder / "all/table.md").read_text())
    for run in runs:
        assert [row["round"] for row in read_metrics(run)] == list(range(1, last + 1))


def test_a_dry_run_prints_the_grid_and_holds_no_device(folder):
    """By hand: 60 digits of which a fifth is held out, so 24 examples a client.

    conv1 is 9 * 1 * 4 * 64, conv2 is 9 * 4 * 8 * 16, fc1 is 32 * 16, fc2 is 16 * 10
    multiply-accumulates; parameters add 4 + 8 + 16 + 10 biases.
    """
    macs = 9 * 4 * 64 + 9 * 4 * 8 * 16 + 32 * 16 + 16 * 10
    params = 9 * 4 + 9 * 4 * 8 + 32 * 16 + 16 * 10 + 4 + 8 + 16 + 10
    flags = ("--axis=seed=0,1", "--axis=rounds=2,3000", "--dry_run")
    out, err = sweep(folder, *flags, JAX_PLATFORMS="cuda")
    assert err == ""
    head, _, *lines = out.splitlines()
    assert head == "| run | rounds left | MB before masks | dense MACs to train |"

    def cells(rounds):
        sent, done = rounds * 2 * 2 * 4 * params, rounds * 3 * macs * 2 * 24
        return f"{rounds:,} | {sent / 1e6:,.1f} | {done:.2e} |"

    assert lines == [
        f"| rounds=2/seed=0 | {cells(2)}",
        f"| rounds=2/seed=1 | {cells(2)}",
        f"| rounds=3000/seed=0 | {cells(3000)}",
        f"| rounds=3000/seed=1 | {cells(3000)}",
        f"| 4 runs | {cells(6004)}",
    ]
    assert not (folder / "all").exists()


def test_networks_that_do_not_fit_are_told_before_the_first_run(folder, tmp_path):
    """The rule needs channels that can be removed, and an LSTM has none."""
    command = [
        *(sys.executable, "-m", "launch.sweep", "--config=autoflip"),
        "--settings=shakespeare,fedavg,cpu shakespeare,autoflip_hard,cpu",
        f"--workdir={tmp_path / 'runs'}",
        f"--config.data.dir={tmp_path}",
    ]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "structured_rule must be" in line
    assert line.endswith("(with shakespeare,autoflip_hard,cpu)")
    assert not (tmp_path / "runs").exists()


def test_flags_that_lack_something_are_told_together(folder):
    command = [sys.executable, "-m", "launch.sweep", f"--config={folder}/tiny.py"]
    done = subprocess.run(
        [*command, "--shard=3/2", "--axes=seed=0,1", "--config.rounds=0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: --workdir must name a folder, got ''",
        "error: --settings or --axis must be given",
        "error: --shard must be i/n with i in [1, n], got '3/2'",
        "error: --axes is not an argument; did you mean --axis?",
        "error: rounds must be at least 1, got 0",
    ]
