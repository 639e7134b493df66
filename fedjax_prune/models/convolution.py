"""The convolution of every model, never a grouped one.

Clients that train side by side each have their own kernels. Mapped over them,
`lax.conv_general_dilated` becomes a grouped convolution, which is slow on every
backend; a matrix product becomes a batched matrix product, which is fast. On a CPU the
clients of a device may as well take turns, so `lax` convolves there where it is best.
"""

import math

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap

from fedjax_prune.models.platforms import traced_platform
from fedjax_prune.models.precision import matmul
from fedjax_prune.models.winograd import Pads, winograd

FEW = 8
"""With fewer input channels a layer is taken for one that reads images."""
WHOLE = 4
"""XLA is slow on CPUs where the number of input channels is no multiple of it."""
BLOCK = 2**16
"""Numbers of a cotangent at once: all 50 images of a batch in one made the gradient of
a kernel take 1.5 to 3.6 times as long on a CPU."""


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: int = 1,
    padding: str | int = "SAME",
) -> jax.Array:
    """Convolves images with a kernel, in the form that `form_of` gives.

    Meant to be mapped over a leading client axis of `x` and `kernel`. In a round or an
    evaluation the form is that of the placement's platform; outside of them, of the
    default device's.

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
    match form_of(x, kernel, strides, pads, traced_platform()):
        case "direct":
            return direct(x, kernel, pads)
        case "winograd":
            return winograd(x, kernel, pads)
        case _:
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
    columns = [slice(dx, dx + stop_x, strides) for dx in range(width)]
    rows = [slice(dy, dy + stop_y, strides) for dy in range(height)]
    if x.shape[-1] < FEW:
        # Of a few numbers each, so many pieces would be slow to join; in this order
        # the second time they are longer. The gradient for x would lose by it.
        x = jnp.concatenate([x[:, :, column] for column in columns], -1)
        patches = [x[:, row] for row in rows]
    else:
        patches = [x[:, row, column] for row in rows for column in columns]
    return matmul(jnp.concatenate(patches, -1), kernel.reshape(-1, out_channels))


def direct(x: jax.Array, kernel: jax.Array, pads: Pads) -> jax.Array:
    """Convolves by `lax` with stride 1; mapped over clients, one after the other.

    Args:
      x: as in `convolve`, float32.
      kernel: as in `convolve`.
      pads: zeros added (above, below), (left, right), fewer than the kernel is long.

    Returns:
      As `convolve`.
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
        # Images take the place of channels.
        by_channel, bar = x.transpose(3, 1, 2, 0), cotangent.transpose(1, 2, 0, 3)
        group = max(WHOLE, BLOCK // math.prod(cotangent.shape[1:]) // WHOLE * WHOLE)
        # A last group of a few would take nearly as long as a whole one.
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
    """The same convolution with a kernel of height 1 and as many times the channels."""
    height, width, _, out_channels = kernel.shape
    x = jnp.pad(x, ((0, 0), pads[0], (0, 0), (0, 0)))
    stop = x.shape[1] - height + 1
    x = jnp.concatenate([x[:, dy : dy + stop] for dy in range(height)], -1)
    kernel = kernel.swapaxes(0, 1).reshape(1, width, -1, out_channels)
    return x, kernel, ((0, 0), pads[1])


def _in_turn(x: jax.Array, kernel: jax.Array, pads: Pads) -> jax.Array:
    # Gradients that autodiff makes have other layouts; in loops XLA leaves them, and
    # runs them on CPUs twenty times as slow.
    layouts = ("NHWC", "HWIO", "NHWC")
    missing = -x.shape[-1] % WHOLE
    x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, missing)))
    kernel = jnp.pad(kernel, ((0, 0), (0, 0), (0, missing), (0, 0)))

    @sequential_vmap
    def convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), pads, dimension_numbers=layouts
        )

    return convolution(x, kernel)


def form_of(
    x: jax.Array, kernel: jax.Array, strides: int, pads: Pads, platform: str
) -> str:
    """Chooses the form by shape, dtype and platform; a table made by measuring.

    On one CPU core, in a loop of training steps of one layer, `direct` took 0.2 to 0.5
    of the time of `patches` with 5x5 kernels and many channels, 0.4 to 1.1 with 1 or 3;
    with 3x3 kernels 0.3 to 0.8 with 16 and 32 channels, 0.7 to 1.7 with 1 or 3; and
    many times as long where the kernel is larger than the image. `winograd` does 4/9 of
    the multiplications for more memory traffic. Alone on a core `direct` is the faster
    one up to 64 channels, but in rounds of `launch.benchmark` with 32 to 127
    channels (`w1`, `w2_one`) Winograd took 0.83 and 0.84 of its time; not where there
    are fewer pixels than twice the channels, because every kernel is transformed. On
    other platforms and with other dtypes patches stay.

    Args:
      x: as in `convolve`.
      kernel: as in `convolve`.
      strides: of both axes.
      pads: zeros added (above, below), (left, right).
      platform: that the program is for, as `jax.Device.platform` names it.

    Returns:
      `direct`, `winograd` or `patches`.
    """
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
