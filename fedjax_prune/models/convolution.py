"""The convolution of every model, which never becomes a grouped convolution.

Clients that train side by side each have their own kernels. If
`lax.conv_general_dilated` is mapped over them, it becomes a grouped convolution, which
is slow on every backend. A matrix product becomes a batched matrix product, which is
fast. On a CPU the clients of a device can also be computed one after another without
loss, so `lax` is used there for the shapes for which it is the fastest.
"""

import math

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap

from fedjax_prune.models.platforms import ANY, traced_platform
from fedjax_prune.models.precision import matmul, wide
from fedjax_prune.models.winograd import Pads, winograd

FEW = 8
"""A layer with fewer input channels is treated as one that reads images."""
WHOLE = 4
"""XLA is slow on CPUs if the number of input channels is not a multiple of this."""
LAYOUTS = ("NHWC", "HWIO", "NHWC")
"""Axes of the images, the kernel and the result, as `lax` names them."""
BLOCK = 2**16
"""Numbers of a cotangent that are read at once for the gradient of a kernel. On a CPU
this gradient took 1.5 to 3.6 times as long with all 50 images of a batch at once."""


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: int = 1,
    padding: str | int = "SAME",
) -> jax.Array:
    """Convolves images with a kernel, in the form that `form_of` chooses.

    The function can be mapped over a leading client axis of `x` and `kernel`. In a
    round or an evaluation the placement says for which platform the form is chosen;
    elsewhere it is the platform of the default device.

    Args:
      x: [batch_size, height, width, in_channels] float.
      kernel: [kernel_height, kernel_width, in_channels, out_channels] float32
        (float64 with a float64 `x`).
      strides: step of both axes, at least 1.
      padding: `SAME` or `VALID` as in `jax.lax`, or the number of zeros added on each
        of the four sides, at least 0.

    Returns:
      [batch_size, new_height, new_width, out_channels], dtype of x.

    Raises:
      ValueError: if the channels differ, or if strides or padding is out of range.

    Examples:
      >>> convolve(jnp.ones((1, 4, 4, 3)), jnp.ones((3, 3, 3, 8)), strides=2).shape
      (1, 2, 2, 8)
    """
    if x.shape[-1] != kernel.shape[2]:
        raise ValueError(
            f"kernel must read the {x.shape[-1]} channels of x, got {kernel.shape[2]}."
        )
    if strides < 1:
        raise ValueError(f"strides must be at least 1, got {strides}.")
    pads = _pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    match form_of(x, kernel, strides, pads, traced_platform()):
        case "direct":
            return direct(x, kernel, pads)
        case "winograd":
            return winograd(x, kernel, pads)
        case "plain":
            return plain(x, kernel, strides, pads)
        case _:
            return by_patches(x, kernel, strides, pads)


def by_patches(x: jax.Array, kernel: jax.Array, strides: int, pads: Pads) -> jax.Array:
    """Convolves by one matrix product, with as many multiplications as the definition.

    Autodiff makes the gradient. It adds the slices of the patches back, which is faster
    on a CPU than a second convolution with the flipped kernel.

    Args:
      x: as in `convolve`.
      kernel: as in `convolve`.
      strides: step of both axes.
      pads: zeros added (above, below), (left, right).

    Returns:
      The result of `convolve`.
    """
    height, width, _, out_channels = kernel.shape
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    stop_y, stop_x = x.shape[1] - height + 1, x.shape[2] - width + 1
    columns = [slice(dx, dx + stop_x, strides) for dx in range(width)]
    rows = [slice(dy, dy + stop_y, strides) for dy in range(height)]
    if x.shape[-1] < FEW:
        # A slice holds only a few channels, and joining height * width such short
        # slices is slow. So the columns are joined first, and the rows then join
        # longer slices. With more channels this order makes the gradient of x slower.
        x = jnp.concatenate([x[:, :, column] for column in columns], -1)
        patches = [x[:, row] for row in rows]
    else:
        patches = [x[:, row, column] for row in rows for column in columns]
    return matmul(jnp.concatenate(patches, -1), kernel.reshape(-1, out_channels))


def plain(x: jax.Array, kernel: jax.Array, strides: int, pads: Pads) -> jax.Array:
    """Convolves by one operation of `lax`; it is not made to be mapped or trained.

    Args:
      x: as in `convolve`; its batch size may be a symbol.
      kernel: as in `convolve`.
      strides: step of both axes.
      pads: zeros added (above, below), (left, right).

    Returns:
      The result of `convolve`.
    """
    y = jax.lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        (strides, strides),
        pads,
        dimension_numbers=LAYOUTS,
        preferred_element_type=wide(x.dtype),
    )
    return y.astype(x.dtype)


def direct(x: jax.Array, kernel: jax.Array, pads: Pads) -> jax.Array:
    """Convolves by `lax` with stride 1; mapped clients are computed one after another.

    Args:
      x: as in `convolve`, float32.
      kernel: as in `convolve`.
      pads: zeros added (above, below), (left, right), fewer than the kernel's sides.

    Returns:
      The result of `convolve`.
    """

    @jax.custom_vjp
    def convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
        if x.shape[-1] < FEW:
            return _in_turn(*_join_rows(x, kernel, pads))
        return _in_turn(x, kernel, pads)

    def backward(
        residuals: tuple[jax.Array, jax.Array], cotangent: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        x, kernel = residuals
        (top, bottom), (left, right) = pads
        height, width = kernel.shape[0] - 1, kernel.shape[1] - 1
        rest = ((height - top, height - bottom), (width - left, width - right))
        flipped = kernel[::-1, ::-1].swapaxes(2, 3)
        # For the gradient of the kernel, images take the place of channels.
        by_channel, bar = x.transpose(3, 1, 2, 0), cotangent.transpose(1, 2, 0, 3)
        group = max(WHOLE, BLOCK // math.prod(cotangent.shape[1:]) // WHOLE * WHOLE)
        # A last group of a few images would take nearly as long as a full group.
        starts = range(0, max(1, x.shape[0] - group // 2), group)
        parts = [
            _in_turn(by_channel[..., start:stop], bar[:, :, start:stop], pads)
            for start, stop in zip(starts, [*starts[1:], x.shape[0]], strict=True)
        ]
        kernel_bar = sum(parts[1:], parts[0]).transpose(1, 2, 0, 3)
        return _in_turn(cotangent, flipped, rest), kernel_bar

    convolution.defvjp(
        lambda x, kernel: (convolution(x, kernel), (x, kernel)), backward
    )
    return convolution(x, kernel)


def _join_rows(
    x: jax.Array, kernel: jax.Array, pads: Pads
) -> tuple[jax.Array, jax.Array, Pads]:
    """Makes an equal convolution whose kernel has height 1 and more channels."""
    height, width, _, out_channels = kernel.shape
    x = jnp.pad(x, ((0, 0), pads[0], (0, 0), (0, 0)))
    stop = x.shape[1] - height + 1
    x = jnp.concatenate([x[:, dy : dy + stop] for dy in range(height)], -1)
    kernel = kernel.swapaxes(0, 1).reshape(1, width, -1, out_channels)
    return x, kernel, ((0, 0), pads[1])


def _in_turn(x: jax.Array, kernel: jax.Array, pads: Pads) -> jax.Array:
    """Convolves by `lax` with stride 1, client after client."""
    missing = -x.shape[-1] % WHOLE
    x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, missing)))
    kernel = jnp.pad(kernel, ((0, 0), (0, 0), (0, missing), (0, 0)))

    @sequential_vmap
    def convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
        # The gradients that autodiff makes have other layouts. In loops XLA keeps these
        # layouts and runs them twenty times slower on CPUs.
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), pads, dimension_numbers=LAYOUTS
        )

    return convolution(x, kernel)


def form_of(
    x: jax.Array, kernel: jax.Array, strides: int, pads: Pads, platform: str
) -> str:
    """Chooses the form of a convolution by measured rules on shape, dtype and platform.

    The rules were measured on one CPU core, in a loop of training steps of one layer.
    With 5x5 kernels `direct` took 0.2 to 0.5 of the time of `patches` for many
    channels, and 0.4 to 1.1 for 1 or 3. With 3x3 kernels it took 0.3 to 0.8 for 16 and
    32 channels, and 0.7 to 1.7 for 1 or 3. It took many times as long if the kernel was
    larger than the image.

    `winograd` has 4/9 of the multiplications and moves more memory. Alone on a core
    `direct` is faster up to 64 channels. But in rounds of `launch.benchmark` with 32 to
    127 channels (`w1`, `w2_one`) `winograd` took 0.83 and 0.84 of its time. It is
    slower if there are fewer pixels than twice the channels, because every kernel must
    be transformed. Other platforms and other dtypes use `patches`, and a program for
    ANY platform uses `plain`.

    Args:
      x: as in `convolve`.
      kernel: as in `convolve`.
      strides: step of both axes.
      pads: zeros added (above, below), (left, right).
      platform: platform of the program, as `jax.Device.platform` names it, or ANY.

    Returns:
      `direct`, `winograd`, `patches` or `plain`.
    """
    if platform == ANY:
        return "plain"
    batch_size, *size, channels = x.shape
    window = kernel.shape[:2]
    if platform != "cpu" or x.dtype != jnp.float32:
        return "patches"
    if strides > 1 or window == (1, 1) or (channels < FEW and math.prod(window) < 25):
        return "patches"
    even = all((n + sum(p)) % 2 == 0 for n, p in zip(size, pads, strict=True))
    if window == (3, 3) and even and channels >= 32:
        many = batch_size * math.prod(size) >= 2 * channels
        return "winograd" if many else "patches"
    fits = all(max(p) < k <= n for n, k, p in zip(size, window, pads, strict=True))
    return "direct" if fits else "patches"


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
