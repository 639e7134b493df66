"""The platform for which a program is traced.

Convolutions and gates have one form for CPUs and another for accelerators. The
placement of a round decides which form is traced. The machine that traces the round
does not, so a program can be lowered for a platform that this machine does not have.
"""

from contextlib import AbstractContextManager

import jax

PLATFORMS = ("cpu", "gpu", "cuda", "rocm", "tpu")
"""Platforms for which programs are lowered; `gpu` means cuda or rocm."""
ANY = "any"
"""What `tracing_for` is told for a program that is exported: its platform is not known.
Convolutions and gates are then one operation of `jax.lax` each. Every platform and
every converter knows these, and they can have a batch size that is not known either."""

# This value is a part of JAX's key for what it has traced, so a function that was
# traced for one platform is traced again for another.
_platform = jax.make_user_context()


def tracing_for(platform: str) -> AbstractContextManager[None]:
    """Makes the context in which a program for a platform is traced.

    Rounds and evaluations enter it for the platform of their placement.

    Args:
      platform: a name as in `jax.Device.platform` and `jax.export.export`, or ANY.

    Examples:
      >>> with tracing_for("tpu"):
      ...     traced_platform()
      'tpu'
    """
    return _platform(platform)


def traced_platform() -> str:
    """Names the platform of the context; without a context, the default platform."""
    return _platform.value or default_platform()


def default_platform() -> str:
    """Names the platform of JAX's default device."""
    device = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    if device is None:
        return jax.default_backend()
    return device if isinstance(device, str) else device.platform


def check_platform(platform: str) -> None:
    """Refuses a platform for which no program can be lowered.

    Raises:
      ValueError: if the name is unknown.
    """
    if platform not in PLATFORMS:
        known = ", ".join(PLATFORMS)
        raise ValueError(f"platform must be one of {known}, got {platform!r}.")
