"""Flower's own processes on this machine, which talk over loopback."""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from fedjax_prune.engine.dealing import draw_clients
from fedjax_prune.runs.learning import make_learning
from fedjax_prune.runs.metrics_log import read_metrics
from fedjax_prune.runs.start import restore_state
from fedjax_prune.runs.workdir import has_config, read_usable_config
from tests.flower_grid import largest_gap, simulate

ROOT = Path(__file__).parents[2]
PATIENCE = 400

pytestmark = pytest.mark.long


class Flower:
    """Processes of Flower, whose output is in files; they end with the block."""

    def __init__(self, folder, *superlink):
        self.folder, self._started = folder, []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "FLWR_HOME": str(folder / "home"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        (folder / "home").mkdir()
        (folder / "home" / "config.toml").write_text(
            f'[superlink]\ndefault = "here"\n[superlink.here]\n'
            f'address = "127.0.0.1:{self._port}"\ninsecure = true\n'
        )
        self._superlink = superlink

    def __enter__(self):
        where = ["--host", "127.0.0.1", "--port", str(self._port)]
        command = ["flower-superlink", "--insecure", *where, *self._superlink]
        self.start("superlink", command)
        self.wait_for("superlink", "running on http")
        return self

    def __exit__(self, *_):
        for process in self._started:
            end(process, signal.SIGKILL)

    def start(self, name, command):
        with (self.folder / name).open("w") as output:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def said(self, name):
        return (self.folder / name).read_text()

    def wait_for(self, name, text):
        wait(lambda: text in self.said(name), lambda: self.said(name))

    def start_node(self, name, client):
        """Starts a SuperNode and waits until it is connected."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        config = f'partition-id={client} rows-dir="{self.folder / "rows"}"'
        command = ["flower-supernode", "--insecure", "--port", port]
        superlink = ["--superlink", f"127.0.0.1:{self._port}"]
        node = self.start(name, [*command, *superlink, "--node-config", config])
        self.wait_for(name, "SuperNode ID")
        return node

    def run(self, given, *options):
        """Starts `flwr run`, which prints until the run is done."""
        command = ["flwr", "run", "launch/flower", "--stream", "-c", given, *options]
        return self.start("run", command)


def end(process, number):
    """Sends a signal to a process that was started here and to its children."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return
    if number == signal.SIGKILL:
        process.wait(30)


def wait(is_so, told):
    began = time.monotonic()
    while not is_so():
        assert time.monotonic() - began < PATIENCE, told()
        time.sleep(0.1)


def rounds_of(workdir):
    """The rounds that a run has finished."""
    return (
        [row["round"] for row in read_metrics(workdir)] if has_config(workdir) else []
    )


FIELDS = "model.width=0.25 client.epochs=1 data.num_train=90 eval.num_examples=60 "


def seed_with(*draws):
    """A seed with which these clients of two take part, one in each round."""
    return next(
        seed
        for seed in range(100)
        if all(
            draw_clients(2, 1, seed=seed, round=number) == client
            for number, client in enumerate(draws)
        )
    )


def test_two_nodes_in_every_round_equal_the_simulation(tmp_path):
    """FedDP; both send in each of three rounds, and the server adds them up."""
    workdir = tmp_path / "out"
    with Flower(tmp_path) as flower:
        for client in range(2):
            flower.start_node(f"node{client}", client)
        run = flower.run(f'overrides="{FIELDS}" cohort_size=2 workdir="{workdir}"')
        assert run.wait(PATIENCE) == 0
        assert "Round 3: 2 of 2 clients" in flower.said("run")
    assert [row["clients/arrived"] for row in read_metrics(workdir)] == [2, 2, 2]
    learning = make_learning(read_usable_config(workdir))
    expected, _ = simulate(learning)
    assert largest_gap(restore_state(learning, workdir), expected) < 1e-5


def test_one_node_a_round_equals_the_simulation_though_one_is_killed(tmp_path):
    """FedDP; the killed node has trained in round 1 and does again in round 3."""
    workdir, seed = tmp_path / "out", seed_with(0, 1, 0)
    with Flower(tmp_path) as flower:
        first = flower.start_node("node0", 0)
        second = flower.start_node("node1", 1)
        run = flower.run(
            f'overrides="{FIELDS} seed={seed}" cohort_size=1 workdir="{workdir}"'
        )
        wait(lambda: 1 in rounds_of(workdir), lambda: flower.said("run"))
        # The second round waits until the first node is there again.
        end(second, signal.SIGSTOP)
        end(first, signal.SIGKILL)
        assert rounds_of(workdir) == [1]
        flower.start_node("node0-again", 0)
        end(second, signal.SIGCONT)
        assert run.wait(PATIENCE) == 0
        assert "Round 3: 1 of 1 clients" in flower.said("run")
    learning = make_learning(read_usable_config(workdir))
    expected, rows = simulate(learning)
    assert largest_gap(restore_state(learning, workdir), expected) < 1e-5
    (file,) = (tmp_path / "rows").glob("*client-0.npz")
    with np.load(file) as saved:
        kept = [x for name, x in saved.items() if name.startswith("3 ")]
    taken = jax.tree.leaves(rows.take(np.array([0])))
    assert largest_gap(kept, [x[0] for x in taken]) < 1e-5


@pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="Flower simulates on Ray, which comes with the extra flower.",
)
def test_flwr_run_simulates_on_two_cores(tmp_path):
    workdir = tmp_path / "out"
    with Flower(tmp_path, "--simulation") as flower:
        run = flower.run(
            f'overrides="{FIELDS}" data.num_clients=3 cohort_size=3 '
            f'workdir="{workdir}"',
            "--federation-config",
            "num-supernodes=3 client-resources-num-cpus=1 init-args-num-cpus=2",
        )
        assert run.wait(PATIENCE) == 0
        assert "Round 3: 3 of 3 clients" in flower.said("run")
    learning = make_learning(read_usable_config(workdir))
    expected, _ = simulate(learning)
    assert largest_gap(restore_state(learning, workdir), expected) < 1e-5
