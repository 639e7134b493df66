"""The suites: what is run, on which synthetic data, and by which workers."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from fedjax_prune.runs.machine import MOST_LANES

from . import generated

PEERS = {
    "torch_loop": "torch",
    "pfl_sim": "pfl",
    "flower_sim": "flower",
    "fedjax_sim": "fedjax",
}
"""Peer -> the environment it runs in."""
_FEDJAX = "fedjax_sim"


class Worker(NamedTuple):
    """A process that trains.

    Attributes:
      name: in the table.
      module: in launch/benchmark.
      options: its own, besides those that all workers have.
      reference: name of the worker that its time is divided by.
      precision: of its matrix products.
    """

    name: str
    module: str = "ours"
    options: tuple[str, ...] = ()
    reference: str = "ours"
    precision: str = "float32"


class Suite(NamedTuple):
    """A comparison.

    Attributes:
      words: what is run.
      work: one of worker.WORKS.
      image_shape: (height, width, channels).
      num_classes: classes.
      make_data: (generator, rounds) -> the arrays of the data file, except those
        that follow from the fields above.
      groups: (threads, platform) -> our workers; those of one group take turns, one
        group comes after another.
      with_peers: whether peers take turns with the first group.
      on_cpu: whether it is run on CPUs even where there is a GPU.
    """

    words: str
    work: str
    image_shape: tuple[int, int, int]
    num_classes: int
    make_data: Callable[[np.random.Generator, int], dict[str, Any]]
    groups: Callable[[int, str], list[list[Worker]]]
    with_peers: bool = True
    on_cpu: bool = False


def make_arrays(suite: Suite, rounds: int) -> dict[str, Any]:
    """Makes the arrays of the data file, the same ones every time.

    Args:
      suite: one of SUITES.
      rounds: rounds with a cohort of their own.
    """
    rng = np.random.default_rng(0)
    arrays = suite.make_data(rng, rounds)
    num_images = arrays.pop("num_images")
    images = rng.integers(0, 256, (num_images, *suite.image_shape), np.uint8)
    labels = rng.integers(0, suite.num_classes, num_images, np.int32)
    return {
        "images": images,
        "labels": labels,
        "num_classes": suite.num_classes,
        "epochs": 1,
        "client_lr": 0.1,
        "server_lr": 1.0,
        **arrays,
    }


def peers_on(platform: str, names: Iterable[str]) -> list[Worker]:
    """Peers as workers; on a GPU their libraries multiply in TF32 where they may.

    FedJAX is installed with a JAX for CPUs, so it is left out on a GPU.
    """
    if platform == "cpu":
        return [Worker(name, name) for name in names]
    return [Worker(name, name, precision="tf32") for name in names if name != _FEDJAX]


def _compared(threads: int, platform: str) -> list[list[Worker]]:
    del threads
    group = [Worker("ours")]
    if platform != "cpu":
        group += [
            Worker(f"ours, {name}", options=(f"--precision={name}",), precision=name)
            for name in ("tf32", "bfloat16")
        ]
    return [group]


def _variants(threads: int, platform: str) -> list[list[Worker]]:
    del threads, platform
    scaffold = "--algorithm=scaffold"
    return [
        [
            Worker("fedavg", reference="fedavg"),
            Worker("scaffold", options=(scaffold,), reference="fedavg"),
            Worker("fedavg, gated", options=("--gated",), reference="fedavg"),
            Worker("feddp", options=(scaffold, "--gated"), reference="scaffold"),
        ]
    ]


def _devices(threads: int, platform: str) -> list[list[Worker]]:
    del platform
    counts = [2**i for i in range(threads.bit_length()) if 2**i < threads]

    def worker(devices: int, lanes: int, reduction: str) -> Worker:
        return Worker(
            f"{devices} x {lanes}, {reduction}",
            options=(
                f"--devices={devices}",
                f"--lanes={lanes}",
                f"--reduction={reduction}",
            ),
            reference="1 x 1, all_reduce",
        )

    return [
        [
            *(worker(devices, lanes, "all_reduce") for lanes in (1, 2, 4)),
            worker(devices, 1, "fixed_order"),
        ]
        for devices in [*counts, threads]
    ]


def _lanes(threads: int, platform: str) -> list[list[Worker]]:
    """One worker at a time, because each needs the memory of its lanes."""
    del threads
    precisions = ("float32",) if platform == "cpu" else ("float32", "bfloat16")
    counts = [2**i for i in range(MOST_LANES.bit_length())]
    return [
        [
            Worker(
                f"{lanes}, {precision}",
                options=("--devices=1", f"--lanes={lanes}", f"--precision={precision}"),
                reference=f"1, {precision}",
                precision=precision,
            )
        ]
        for precision in precisions
        for lanes in counts
    ]


def _compacted(threads: int, platform: str) -> list[list[Worker]]:
    del threads, platform

    def worker(percent: int, *, compact: bool) -> Worker:
        return Worker(
            f"{percent}% {'removed' if compact else 'masked'}",
            options=(
                "--algorithm=eflprune",
                f"--removed={percent / 100}",
                *(["--compact"] if compact else []),
            ),
            reference="fedavg",
        )

    return [
        [
            Worker("fedavg", reference="fedavg"),
            worker(50, compact=False),
            worker(50, compact=True),
            worker(75, compact=True),
        ]
    ]


_TEN = (
    "ten clients of 1 to 7 batches (Dirichlet 0.1), about 3,000 images of 32x32x3 in "
    "all, every client in every round; batches of 64, one epoch, SGD 0.1; VGG-11 "
    "without norm, dropout 0.5, 9,750,922 parameters, no augmentation"
)
_REMOVED = (
    "; FedAvg, and EFLPrune that prunes at least this share of the multiplications, "
    "channels rounded up to multiples of 8, masked or on the smaller model"
)
_CNN = (
    "batches of 10, one epoch, SGD 0.1, FedAvg; CNN with dropout, 1,626,442 parameters"
)
_W1 = f"1,000 clients with 50 images of 32x32x3 each, 50 clients a round; {_CNN}"

SUITES = {
    "w1": Suite(
        _W1,
        work="w1",
        image_shape=(32, 32, 3),
        num_classes=10,
        make_data=generated.w1,
        groups=_compared,
    ),
    "w2_one": Suite(
        "one client with 640 images of 32x32x3, ten steps of 64, SGD 0.1, FedAvg; "
        "VGG-11 without norm, dropout 0.5, 9,750,922 parameters, no augmentation",
        work="w2",
        image_shape=(32, 32, 3),
        num_classes=10,
        make_data=generated.w2_one,
        groups=_compared,
    ),
    "w2_ten": Suite(
        f"{_TEN}; FedAvg",
        work="w2",
        image_shape=(32, 32, 3),
        num_classes=10,
        make_data=generated.w2_ten,
        groups=_compared,
    ),
    "w2_variants": Suite(
        f"{_TEN}; FedAvg and SCAFFOLD, each without gates and with half of the "
        "multiplications pruned (SCAFFOLD with gates is FedDP)",
        work="w2",
        image_shape=(32, 32, 3),
        num_classes=10,
        make_data=generated.w2_ten,
        groups=_variants,
        with_peers=False,
    ),
    "w3": Suite(
        "3,400 clients with about 200 images of 28x28x1 each (log-normal, 10 to 400), "
        "62 classes, 10 clients a round; batches of 20, one epoch, SGD 0.1, FedAvg; "
        "CNN with dropout, 1,206,590 parameters",
        work="w3",
        image_shape=(28, 28, 1),
        num_classes=62,
        make_data=generated.w3,
        groups=_compared,
    ),
    "compact_two_cnn": Suite(
        "four clients with 500 images of 24x24x3 each, batches of 50, five epochs, SGD "
        f"0.1; TwoCNN, 1,664,970 parameters, no augmentation{_REMOVED}",
        work="two_cnn",
        image_shape=(24, 24, 3),
        num_classes=10,
        make_data=generated.two_cnn,
        groups=_compacted,
        with_peers=False,
    ),
    "compact_vgg11": Suite(
        "four clients with 320 images of 32x32x3 each, batches of 64, one epoch, SGD "
        "0.1; VGG-11 without norm, dropout 0.5, 9,750,922 parameters, no augmentation"
        f"{_REMOVED}",
        work="w2",
        image_shape=(32, 32, 3),
        num_classes=10,
        make_data=generated.w2_four,
        groups=_compacted,
        with_peers=False,
    ),
    "lanes": Suite(
        f"1,000 clients with 50 images of 32x32x3 each, {2 * MOST_LANES} clients a "
        f"round on one device, 1 to {MOST_LANES} of them side by side; {_CNN}",
        work="w1",
        image_shape=(32, 32, 3),
        num_classes=10,
        make_data=partial(generated.w1, cohort_size=2 * MOST_LANES),
        groups=_lanes,
        with_peers=False,
    ),
    "devices": Suite(
        f"{_W1}; on CPUs, devices x lanes of each, messages added by either reduction",
        work="w1",
        image_shape=(32, 32, 3),
        num_classes=10,
        make_data=generated.w1,
        groups=_devices,
        with_peers=False,
        on_cpu=True,
    ),
}
