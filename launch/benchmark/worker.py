"""What all workers share: the data file and the lines exchanged with the orchestrator.

A worker prints one JSON line when it is ready, and one for every line `round` it reads.
It ends at `quit` or at the end of its input. Needs numpy only: each peer runs in an
environment of its own.
"""

import argparse
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

WORKS = ("w1", "w2", "w3", "two_cnn")

# (work, image shape, classes, width) to the number of parameters every peer must have.
NUM_PARAMS = {
    ("w1", (32, 32, 3), 10, 1.0): 1_626_442,
    ("w2", (32, 32, 3), 10, 1.0): 9_750_922,
    ("w3", (28, 28, 1), 62, 1.0): 1_206_590,
    ("two_cnn", (24, 24, 3), 10, 1.0): 1_664_970,
}

# VGG-11: the channels of a 3x3 convolution, or 0 for a 2x2 max-pool.
VGG_LAYERS = (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0)
VGG_DENSE = 512


class Data(NamedTuple):
    """A federated data set, the cohorts to train on and the settings.

    Attributes:
      images: [num_images, height, width, channels] uint8.
      labels: [num_images] int32.
      indices: [total] int32, one client after another.
      offsets: [num_clients + 1] int64, where each client's indices begin.
      cohorts: [num_rounds, cohort_size] int32 client ids.
      batch_size: examples a local step.
      epochs: local epochs.
      client_lr: step size of the clients.
      server_lr: step size of the server.
      num_classes: classes.
      width: factor on the channels of w2, 1.0 unless the file has one.
    """

    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    offsets: np.ndarray
    cohorts: np.ndarray
    batch_size: int
    epochs: int
    client_lr: float
    server_lr: float
    num_classes: int
    width: float

    @property
    def sizes(self) -> np.ndarray:
        """The number of images of each client, [num_clients] int64."""
        return np.diff(self.offsets)

    def examples(self, client: int) -> np.ndarray:
        """Returns the indices of a client's images, [size] int32."""
        return self.indices[self.offsets[client] : self.offsets[client + 1]]

    def cohort(self, round: int) -> np.ndarray:
        """Returns the clients of a round, [cohort_size] int32."""
        return self.cohorts[round % len(self.cohorts)]

    def num_images(self, cohort: np.ndarray) -> int:
        """Returns how many images the cohort trains on in a round."""
        return int(self.epochs * self.sizes[cohort].sum())


def load(path: str) -> Data:
    """Reads the file of the orchestrator."""
    with np.load(path) as file:
        return Data(
            images=file["images"],
            labels=file["labels"],
            indices=file["indices"],
            offsets=file["offsets"],
            cohorts=file["cohorts"],
            batch_size=int(file["batch_size"]),
            epochs=int(file["epochs"]),
            client_lr=float(file["client_lr"]),
            server_lr=float(file["server_lr"]),
            num_classes=int(file["num_classes"]),
            width=float(file["width"]) if "width" in file else 1.0,
        )


def check_num_params(work: str, data: Data, num_params: int) -> None:
    """Raises AssertionError if the model of a known work has another size."""
    key = (work, data.images.shape[1:], data.num_classes, data.width)
    wanted = NUM_PARAMS.get(key, num_params)
    assert num_params == wanted, f"{key}: {num_params} parameters, not {wanted}"


class Options(NamedTuple):
    """The command line.

    Attributes:
      work: one of WORKS.
      data: path of the data.
      threads: CPU threads.
      own: the options that only this worker has.
    """

    work: str
    data: str
    threads: int
    own: argparse.Namespace


class Channel:
    """The pipe to the orchestrator. Whatever a library prints goes to stderr."""

    def __init__(self):
        self._replies = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def reply(self, values: Mapping[str, Any]) -> None:
        """Writes one line."""
        print(json.dumps(values), file=self._replies, flush=True)

    def ready(self, peer: str, package: str, facts: Mapping[str, Any]) -> None:
        """Reports that set-up and warm-up are done, with facts about the worker."""
        version = importlib.metadata.version(package)
        self.reply({"ready": True, "peer": peer, "version": version, **facts})

    def wait(self) -> bool:
        """Waits for the next command: True for a round, False to end.

        Raises:
          ValueError: if the line is neither `round` nor `quit`.
        """
        command = sys.stdin.readline().strip()
        if command not in ("round", "quit", ""):
            raise ValueError(f"commands are 'round' and 'quit', got {command!r}")
        return command == "round"

    def report(
        self, seconds: float, images: int, checksum: float, **more: float
    ) -> None:
        """Reports time, images and checksum of the last round."""
        values = {"seconds": seconds, "images": images, "checksum": checksum}
        self.reply({**values, **more})


def start(
    parser: argparse.ArgumentParser | None = None,
) -> tuple[Options, Channel, Data]:
    """Reads the command line and the data, and keeps stdout for the replies.

    Args:
      parser: of the options that only this worker has.
    """
    channel = Channel()
    parser = parser or argparse.ArgumentParser()
    parser.add_argument("--work", choices=WORKS, required=True)
    parser.add_argument("--data", required=True, help="npz file of the orchestrator")
    parser.add_argument("--threads", type=int, required=True, help="CPU threads")
    args = parser.parse_args()
    # Some libraries have no option for threads, but all respect the CPU affinity.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    options = Options(args.work, os.path.abspath(args.data), args.threads, args)
    return options, channel, load(options.data)


def serve(
    channel: Channel,
    data: Data,
    peer: str,
    package: str,
    run_round: Callable[[np.ndarray], None],
    checksum: Callable[[], float],
    facts: Mapping[str, Any] | None = None,
    counted: Callable[[], Mapping[str, float]] = dict,
) -> None:
    """Warms up with the first cohort, then runs one round for each command.

    Args:
      channel: the pipe to the orchestrator.
      data: the data of the run.
      peer: name of the peer.
      package: name of its package, whose version is reported.
      run_round: trains on a cohort, [cohort_size] int32, and returns when the new
        global parameters are computed.
      checksum: returns the mean of the global parameters.
      facts: further facts to report when the worker is ready.
      counted: returns further facts about the last round.
    """
    run_round(data.cohort(0))
    channel.ready(peer, package, facts or {})
    round = 0
    while channel.wait():
        cohort = data.cohort(round)
        start = time.perf_counter()
        run_round(cohort)
        seconds = time.perf_counter() - start
        channel.report(seconds, data.num_images(cohort), checksum(), **counted())
        round += 1
