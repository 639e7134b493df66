"""The convolution of every model: patches and one matrix product.

Clients that train side by side each have their own kernels. Mapped over them,
`lax.conv_general_dilated` becomes a grouped convolution, which is slow on every
backend; a matrix product becomes a batched matrix product, which is fast.
"""

import jax
import jax.numpy as jnp

Pads = tuple[tuple[int, int], tuple[int, int]]


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: int = 1,
    padding: str | int = "SAME",
) -> jax.Array:
    """Convolves images with a kernel.

    Meant to be mapped over a leading client axis of `x` and `kernel`. The gradient
    is left to autodiff: of a patch it is a slice added back, which was measured to
    be faster on the CPU than a second convolution with the flipped kernel.

    Args:
      x: [batch_size, height, width, in_channels] float.
      kernel: [kernel_height, kernel_width, in_channels, out_channels], dtype of x.
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
    height, width, _, out_channels = kernel.shape
    pads = _pads(x.shape[1:3], (height, width), strides, padding)
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    patches = _patches(x, height, width, strides)
    # Flat on both sides: one product, which a client axis turns into a batch of them.
    rows = patches.reshape(-1, patches.shape[-1])
    product = rows @ kernel.reshape(-1, out_channels)
    return product.reshape(*patches.shape[:-1], out_channels)


def _patches(x: jax.Array, height: int, width: int, strides: int) -> jax.Array:
    """Lays the pixels under the kernel side by side, channels last."""
    stop_y, stop_x = x.shape[1] - height + 1, x.shape[2] - width + 1
    slices = [
        x[:, dy : dy + stop_y : strides, dx : dx + stop_x : strides]
        for dy in range(height)
        for dx in range(width)
    ]
    return jnp.concatenate(slices, -1)


def _pads(
    sizes: tuple[int, ...], kernel: tuple[int, int], strides: int, padding: str | int
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
