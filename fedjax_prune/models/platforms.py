"""The platform that a program is traced for.

Convolutions and gates have one form for CPUs and another for accelerators. The
placement of a round says which of them is traced, and not the machine that traces it,
so a program can be lowered for a platform that this machine does not have.
"""

from contextlib import AbstractContextManager

import jax

PLATFORMS = ("cpu", "gpu", "cuda", "rocm", "tpu")
"""Platforms that programs are lowered for; `gpu` stands for both makes of GPU."""

# JAX keeps what it has traced, by this value too: a function that was traced for one
# platform is traced again for another.
_platform = jax.make_user_context()


def tracing_for(platform: str) -> AbstractContextManager[None]:
    """The context in which a program for a platform is traced.

    Rounds and evaluations enter it for the platform of their placement.

    Args:
      platform: as `jax.Device.platform` and `jax.export.export` name it.

    Examples:
      >>> with tracing_for("tpu"):
      ...     traced_platform()
      'tpu'
    """
    return _platform(platform)


def traced_platform() -> str:
    """Names the platform that is traced for: outside of any context the default one."""
    return _platform.value or default_platform()


def default_platform() -> str:
    """Names the platform of the device that JAX runs on unless told otherwise."""
    device = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    if device is None:
        return jax.default_backend()
    return device if isinstance(device, str) else device.platform


def check_platform(platform: str) -> None:
    """Refuses a platform that no program can be lowered for.

    Raises:
      ValueError: if the name is unknown.
    """
    if platform not in PLATFORMS:
        known = ", ".join(PLATFORMS)
        raise ValueError(f"platform must be one of {known}, got {platform!r}.")
