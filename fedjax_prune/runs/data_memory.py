"""Whether the examples of a run fit the memory, before they are made or decoded."""

import bisect
import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import jax

from fedjax_prune.data.datasets import data_folder
from fedjax_prune.data.load import resized_bytes
from fedjax_prune.runs.learning import data_info, image_shape_of
from fedjax_prune.runs.settings import SettingsError
from fedjax_prune.types import Config


def check_generated(config: Config, count: int) -> None:
    """Refuses generated examples that do not fit the machine's memory.

    Args:
      config: of the run.
      count: training and test examples, also those that are not kept.

    Raises:
      SettingsError: if they do not fit.
    """
    data, info = config.data, data_info(config)
    each = math.prod(info.image_shape) * (4 if info.kind == "vector" else 1)
    needed, available = count * each * (1 + _copies()), machine_bytes()
    if needed > available:
        raise SettingsError(
            [
                f"data.client_size must be smaller: {count:,} examples of "
                f"{data.num_clients:,} clients take {needed / 1e9:,.1f} GB, and this "
                f"machine has {available / 1e9:,.1f} GB, got {data.client_size}"
            ]
        )


def check_size(config: Config, count: int) -> None:
    """Refuses a `data.size` whose images do not fit the machine's memory.

    Args:
      config: of the run.
      count: training and test examples.

    Raises:
      SettingsError: if they do not fit; it says which size does.
    """
    shape, size = data_info(config).image_shape, config.data.size
    copies = _copies()

    def needed(size: int) -> int:
        each = math.prod(shape) + copies * size * size * shape[-1]
        return count * each + resized_bytes(count, shape, size)

    available = machine_bytes()
    if needed(size) > available:
        fitting = bisect.bisect_right(range(1, size), available, key=needed)
        raise SettingsError(
            [
                f"data.size must be at most {fitting} for {count:,} images in the "
                f"{available / 1e9:,.1f} GB of this machine, got {size}, which takes "
                f"{needed(size) / 1e9:,.1f} GB: take a smaller data.size "
                "or fewer images"
            ]
        )


def check_pictures(config: Config, count: int) -> None:
    """Refuses pictures that do not fit the machine's memory, before any is decoded.

    Args:
      config: of the run.
      count: training and test examples in the folder; all of them are decoded.

    Raises:
      SettingsError: if they do not fit; it says which `data.size` does.
    """
    *sides, channels = image_shape_of(config)
    # They are copied once, into random order or to a device that is a CPU.
    each, available = 2 * count * channels, machine_bytes()
    needed = each * math.prod(sides)
    if needed > available:
        raise SettingsError(
            [
                f"data.size must be in [1, {math.isqrt(available // each)}] for the "
                f"{count:,} pictures of {data_folder(config.data.dir)} in the "
                f"{available / 1e9:,.1f} GB of this machine, got {config.data.size}: "
                f"{sides[0]}x{sides[1]} pixels take {needed / 1e9:,.1f} GB"
            ]
        )


def machine_bytes(root: Path = Path("/")) -> int:
    """Memory of this machine, or less if a container or a batch job is given less.

    Args:
      root: of the file system in which Linux shows control groups.
    """
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in _limits(root):
        # A group without a limit says `max`, or has no such file.
        with suppress(OSError, ValueError):
            found = min(found, int(file.read_text()))
    return found


def _limits(root: Path) -> Iterator[Path]:
    """The files with the limits of this process's control group and those above it."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, own = line.split(":", 2)
        if controllers in ("", "memory"):
            # Version 2 has one tree and no name for it.
            name = "memory.limit_in_bytes" if controllers else "memory.max"
            above = (Path(own.lstrip("/")), *Path(own.lstrip("/")).parents)
            tree = root / "sys/fs/cgroup" / controllers
            yield from (tree / folder / name for folder in above)


def _copies() -> int:
    """1 if the first device is a CPU, which keeps its copy in the same memory."""
    return int(jax.local_devices()[0].platform == "cpu")
