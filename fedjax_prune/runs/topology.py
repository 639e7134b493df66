"""TPU slices that need not be there: their devices for the compiler, their chips.

JAX describes a slice to XLA through libtpu, which is installed with the extra `tpu` and
needs no TPU. For GPUs there is no such thing: without a GPU, JAX 0.10 neither describes
one nor lowers for it (https://github.com/jax-ml/jax/issues/23971 and 28376).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from fedjax_prune.runs.settings import SettingsError


class Chip(NamedTuple):
    """What is known of a chip.

    Attributes:
      memory: bytes of HBM.
      flops: at most, a second, of bfloat16 products with float32 sums.
      options: of `get_topology_desc`, with which a chip is one device.
    """

    memory: int
    flops: float
    options: Mapping[str, Any]


CHIPS = {
    # Its two cores are one device, as JAX has it on the machine itself.
    "v4": Chip(32 * 2**30, 275e12, {"chip_config_name": "megacore"}),
    "v5e": Chip(16 * 2**30, 197e12, {}),
    "v5p": Chip(95 * 2**30, 459e12, {}),
    "v6e": Chip(32 * 2**30, 918e12, {}),
}
"""Kinds of TPU. Source: https://cloud.google.com/tpu/docs/v4 and the pages v5e, v5p and
v6e beside it, tables "System architecture"."""

_NAME = re.compile(r"(\w+):(\d+(?:x\d+){1,2})")


class Slice(NamedTuple):
    """A TPU slice.

    Attributes:
      name: as it was asked for.
      chip: each of its chips.
      devices: one for each chip; programs can be compiled for them, but not run.
    """

    name: str
    chip: Chip
    devices: Sequence[Any]


def find_slice(name: str) -> Slice:
    """Finds a slice by its name.

    Args:
      name: KIND:SHAPE, a key of CHIPS and the numbers of chips, such as `v5e:4x4`.

    Raises:
      SettingsError: if the name is of no slice, or libtpu is not installed.
    """
    match = _NAME.fullmatch(name)
    if match is None or match[1] not in CHIPS:
        raise SettingsError(
            [
                "--topology must be KIND:SHAPE of a TPU slice, such as v5e:4x4, KIND "
                f"one of {', '.join(CHIPS)}, as JAX cannot compile for a GPU that is "
                f"not there, got {name!r}"
            ]
        )
    chip, shape = CHIPS[match[1]], match[2]
    options = dict(chip.options)
    if set(shape.split("x")) == {"1"}:
        # A host otherwise has four chips or eight.
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        described = topologies.get_topology_desc(name, "tpu", **options)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).partition(": ")[2] or str(error)
        raise SettingsError(
            [f"--topology={name} is not a slice that libtpu knows: {reason}"]
        ) from error
    except RuntimeError as error:
        raise SettingsError(
            [
                "compiling for a TPU needs libtpu, which is not installed: pip install "
                "'fedjax_prune[tpu]'"
            ]
        ) from error
    return Slice(name, chip, list(described.devices))
