"""Runs of several processes on this machine, which talk over loopback."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from configs import base, synthetic
from tests.small_runs import plain_config, pruned_config, tiny_config

ROOT = Path(__file__).parents[1]
PATIENCE = 240
LAUNCHER = """
import os, runpy, signal, threading

def end_with_the_tests():
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGKILL)

threading.Thread(target=end_with_the_tests, daemon=True).start()
runpy.run_module("launch.train", run_name="__main__", alter_sys=True)
"""
"""`python -m launch.train` that ends when its standard input is closed."""


def scaffold_config(**changes):
    config = plain_config(**changes)
    config.algorithm = base.algorithm("scaffold")
    return config


def many_config(**changes):
    """More clients than an evaluation takes at once, all of them evaluated."""
    config = synthetic.get_config()
    changes = {
        "rounds": 2,
        "data.num_clients": 600,
        "eval.num_clients": 0,
        "eval.num_examples": 60,
    } | changes
    config.update_from_flattened_dict(changes)
    return config


def hostile_config(**changes):
    """A median of hostile, absent, slow and clipped clients."""
    changes = {
        "aggregator": "median",
        "on_bad_client": "clip",
        "clip_norm": 0.05,
        "client_dropout": 0.3,
        "stragglers": 0.7,
        "hostile.fraction": 0.4,
        "data.partitioner": "iid",
    } | changes
    return plain_config(**changes)


def private_config(**changes):
    """Noise on a sum from which some clients are absent."""
    changes = {
        "on_bad_client": "drop",
        "client_dropout": 0.3,
        "privacy.clip_norm": 0.5,
        "privacy.noise_multiplier": 8.0,
    } | changes
    return plain_config(**changes)


CONFIGS = {
    "fedavg": plain_config,
    "hostile": hostile_config,
    "private": private_config,
    "feddp": tiny_config,
    "autoflip": pruned_config,
    "scaffold": scaffold_config,
    "many": many_config,
}


def get_config(text):
    """This file is a configuration, too; the string is a name in CONFIGS.

    Four devices with one lane, in all processes together.
    """
    shared = {"devices": 4, "lanes": 1, "reduction": "fixed_order"}
    config = CONFIGS[text](**shared)
    config.update_from_flattened_dict({"cohort_size": 4})
    return config


def one_process(name, **changes):
    """The same configuration, to be run in this process."""
    config = get_config(name)
    config.update_from_flattened_dict(changes)
    return config


class Together:
    """Launchers of one run: `num_processes` with equally many of four devices."""

    def __init__(self, num_processes, name, workdir, *flags, paths=None, lr=None):
        """Starts them.

        Args:
          num_processes: one, two or four.
          name: in CONFIGS.
          workdir: of the run.
          *flags: further ones.
          paths: process -> folders of further modules.
          lr: process -> step size of its own.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        self._folder = workdir.with_name(f"{workdir.name}-output")
        self._folder.mkdir(exist_ok=True)
        self.processes = [
            self._start(
                number,
                4 // num_processes,
                [ROOT, *(paths or {}).get(number, [])],
                [
                    f"--config={__file__}:{name}",
                    f"--workdir={workdir}",
                    f"--coordinator_address={address}",
                    f"--num_processes={num_processes}",
                    f"--process_id={number}",
                    *flags,
                    *(
                        [f"--config.client.lr={lr[number]}"]
                        if number in (lr or {})
                        else []
                    ),
                ],
            )
            for number in range(num_processes)
        ]

    def _start(self, number, num_devices, paths, flags):
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "JAX_NUM_CPU_DEVICES": str(num_devices),
        }
        out, err = (
            (self._folder / f"{kind}{number}").open("w") for kind in ("out", "err")
        )
        with out, err:
            return subprocess.Popen(
                [sys.executable, "-c", LAUNCHER, *flags],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def said(self, kind, number):
        return (self._folder / f"{kind}{number}").read_text()

    def wait_for(self, text):
        """Waits until the first process has printed something."""
        began = time.monotonic()
        while text not in self.said("out", 0):
            time.sleep(0.1)
            ended = [p.poll() for p in self.processes]
            assert ended == [None] * len(ended), self.said("err", 0)
            assert time.monotonic() - began < PATIENCE

    def end(self):
        """Waits for all; returns their exit codes."""
        try:
            return [process.wait(PATIENCE) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
                process.wait()
                process.stdin.close()


def run_together(num_processes, name, workdir, *flags, **options):
    """Runs to the end, without any error."""
    together = Together(num_processes, name, workdir, *flags, **options)
    codes = together.end()
    errors = [together.said("err", number) for number in range(num_processes)]
    assert (codes, errors) == ([0] * num_processes, [""] * num_processes)
    for number in range(1, num_processes):
        assert together.said("out", number) == ""
    return together.said("out", 0)
