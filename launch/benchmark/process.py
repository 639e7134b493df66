"""A worker's process, as the orchestrator sees it."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from .suites import PEERS, Worker

ROOT = Path(__file__).parent.parent.parent
PATIENCE = 1200
"""Seconds of silence after which a worker is given up."""


class WorkerError(RuntimeError):
    """A worker ended or went silent; the message has its name and last output."""


class Process:
    """A started worker. At the exit of its context, it and its children are ended."""

    def __init__(
        self,
        worker: Worker,
        arguments: list[str],
        peers_dir: Path,
        environment: Mapping[str, str],
        log: Path,
    ):
        """Starts a worker.

        Args:
          worker: which one.
          arguments: those that all workers have.
          peers_dir: folder of the peers' environments.
          environment: variables added to ours.
          log: file for what it prints besides the protocol.

        Raises:
          WorkerError: if its interpreter does not start.
        """
        self.worker = worker
        self._log = log
        program = (
            _python(worker, peers_dir),
            "-m",
            f"launch.benchmark.{worker.module}",
        )
        # Several workers share one accelerator.
        defaults = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        with log.open("w") as stderr:
            try:
                self._process = subprocess.Popen(
                    [*program, *arguments, *worker.options],
                    cwd=ROOT,
                    env={**defaults, **os.environ, **environment},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    text=True,
                    # Ctrl-C is for the orchestrator, which ends the workers.
                    start_new_session=True,
                )
            except OSError as error:
                raise WorkerError(f"{worker.name} cannot start: {error}") from error

    def read(self) -> dict[str, Any]:
        """Waits for the next line of the worker.

        Raises:
          WorkerError: if there is none.
        """
        stdout = self._process.stdout
        assert stdout is not None
        if not select.select([stdout], [], [], PATIENCE)[0]:
            raise WorkerError(f"{self.worker.name} said nothing for {PATIENCE} seconds")
        line = stdout.readline()
        if not line:
            raise WorkerError(f"{self.worker.name} has failed:\n{self._last_words()}")
        return json.loads(line)

    def run_round(self) -> dict[str, Any]:
        """Lets the worker run a round and returns what it says of it.

        Raises:
          WorkerError: if it says nothing.
        """
        # If the worker has ended, `read` raises a better error.
        with contextlib.suppress(BrokenPipeError):
            self._tell("round")
        return self.read()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *rest: object) -> None:
        if error is None:
            with contextlib.suppress(BrokenPipeError, subprocess.TimeoutExpired):
                self._tell("quit")
                self._process.wait(30)
        for number in (signal.SIGTERM, signal.SIGKILL):
            # Its children may live longer than the worker.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()

    def _tell(self, command: str) -> None:
        assert self._process.stdin is not None
        print(command, file=self._process.stdin, flush=True)

    def _last_words(self) -> str:
        text = self._log.read_text(errors="replace")
        return "\n".join(text.strip().splitlines()[-3:])


def _python(worker: Worker, peers_dir: Path) -> str:
    if worker.module not in PEERS:
        return sys.executable
    return str(python_of(worker.module, peers_dir))


def python_of(peer: str, peers_dir: Path) -> Path:
    """The interpreter of a peer's environment, installed or not."""
    return peers_dir / PEERS[peer] / "bin" / "python"


def is_installed(peer: str, peers_dir: Path) -> bool:
    """Whether a peer's environment is complete, and its interpreter still there."""
    complete = (peers_dir / PEERS[peer] / "installed").exists()
    return complete and python_of(peer, peers_dir).exists()


def install(peers: Sequence[str], peers_dir: Path) -> bool:
    """Makes the environments of peers, unless they are complete.

    Returns:
      Whether they are; if not, the reason was printed.
    """
    script = str(Path(__file__).parent / "environments.sh")
    names = [PEERS[name] for name in peers]
    done = subprocess.run(["bash", script, str(peers_dir), *names], check=False)
    return done.returncode == 0
