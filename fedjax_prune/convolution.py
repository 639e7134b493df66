"""The convolution of every model, by matrix products.

Clients that train side by side each have their own kernels. Mapped over them,
`lax.conv_general_dilated` becomes a grouped convolution, which is slow on every
backend; a matrix product becomes a batched matrix product, which is fast.
"""

import jax
import jax.numpy as jnp

from fedjax_prune.precision import matmul
from fedjax_prune.winograd import Pads, winograd


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: int = 1,
    padding: str | int = "SAME",
) -> jax.Array:
    """Convolves images with a kernel, in the form that `form_of` gives.

    Meant to be mapped over a leading client axis of `x` and `kernel`.

    Args:
      x: [batch_size, height, width, in_channels] float.
      kernel: [kernel_height, kernel_width, in_channels, out_channels] float32
        (float64 with a float64 `x`).
      strides: of both axes, at least 1.
      padding: `SAME` and `VALID` as in `jax.lax`, or the zeros added on each of
        the four sides, at least 0.

    Returns:
      [batch_size, new_height, new_width, out_channels], dtype of x.

    Raises:
      ValueError: if the channels differ, or strides or padding is out of range.
    """
    if x.shape[-1] != kernel.shape[2]:
        raise ValueError(
            f"kernel must read the {x.shape[-1]} channels of x, got {kernel.shape[2]}."
        )
    if strides < 1:
        raise ValueError(f"strides must be at least 1, got {strides}.")
    pads = _pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    if form_of(x, kernel, strides, pads, jax.default_backend()) == "winograd":
        return winograd(x, kernel, pads)
    return by_patches(x, kernel, strides, pads)


def by_patches(x: jax.Array, kernel: jax.Array, strides: int, pads: Pads) -> jax.Array:
    """Convolves by one product with as many multiplications as the definition.

    The gradient is left to autodiff: of a patch it is a slice added back, on the CPU
    faster than a second convolution with the flipped kernel.

    Args:
      x: as in `convolve`.
      kernel: as in `convolve`.
      strides: of both axes.
      pads: zeros added (above, below), (left, right).

    Returns:
      As `convolve`.
    """
    height, width, _, out_channels = kernel.shape
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    stop_y, stop_x = x.shape[1] - height + 1, x.shape[2] - width + 1
    pixels = [
        x[:, dy : dy + stop_y : strides, dx : dx + stop_x : strides]
        for dy in range(height)
        for dx in range(width)
    ]
    return matmul(jnp.concatenate(pixels, -1), kernel.reshape(-1, out_channels))


def form_of(
    x: jax.Array, kernel: jax.Array, strides: int, pads: Pads, backend: str
) -> str:
    """Chooses the form by shape, dtype and backend; a table made by measuring.

    `winograd` does 4/9 of the multiplications for more memory traffic. On one CPU
    core a training step of a 3x3 layer at 16x16 to 4x4 pixels took 0.5 to 0.7 of the
    time of `patches` from 32 input channels on, the same at 16, several times as much
    at 3. Where products are cheap against memory, or rounded to fewer bits than
    float32, patches stay.

    Args:
      x: as in `convolve`.
      kernel: as in `convolve`.
      strides: of both axes.
      pads: zeros added (above, below), (left, right).
      backend: as `jax.default_backend` names it.

    Returns:
      `winograd` or `patches`.
    """
    fits = kernel.shape[:2] == (3, 3) and strides == 1
    even = all((n + sum(p)) % 2 == 0 for n, p in zip(x.shape[1:3], pads, strict=True))
    wide = kernel.shape[2] >= 32 and x.dtype in (jnp.float32, jnp.float64)
    return "winograd" if backend == "cpu" and fits and even and wide else "patches"


def _pads(
    sizes: tuple[int, ...], kernel: tuple[int, ...], strides: int, padding: str | int
) -> Pads:
    if isinstance(padding, int):
        if padding < 0:
            raise ValueError(f"padding must be at least 0, got {padding}.")
        return ((padding, padding), (padding, padding))
    if padding not in ("SAME", "VALID"):
        raise ValueError(f"padding must be 'SAME', 'VALID' or an int, got {padding!r}.")
    (top, bottom), (left, right) = jax.lax.padtype_to_pads(
        sizes, kernel, (strides, strides), padding
    )
    return ((top, bottom), (left, right))
