"""Winograd's 3x3 convolution, with 16 products in place of 36 for a 2x2 output tile.

The image is cut into tiles of 4x4 pixels that overlap by two. Tiles and kernel are
transformed by additions, multiplied entry by entry as 16 matrix products over the
channels, and transformed back (F(2x2, 3x3) of the paper):

    Y = A^T [ (G g G^T) * (B^T d B) ] A

References:
  Lavin, Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016,
  section 4.1, https://arxiv.org/abs/1509.09308.
"""

from functools import partial

import jax
import jax.numpy as jnp

Pads = tuple[tuple[int, int], tuple[int, int]]
"""Numbers of zeros added (above, below), (left, right)."""
Grid = list[list[jax.Array]]
"""A small matrix of arrays. Entry (a, b) holds entry (a, b) of every tile."""

INPUT = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))  # B^T
KERNEL = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))  # G
OUTPUT = ((1, 1, 1, 0), (0, 1, -1, -1))  # A^T


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def winograd(x: jax.Array, kernel: jax.Array, pads: Pads) -> jax.Array:
    """Convolves with a 3x3 kernel and stride 1.

    Args:
      x: [batch_size, height, width, in_channels] float.
      kernel: [3, 3, in_channels, out_channels], dtype of x.
      pads: zeros added (above, below), (left, right). Height and width of the
        result, two less than those of the padded image, must be even.

    Returns:
      [batch_size, new_height, new_width, out_channels], dtype of x.
    """
    return _forward(x, kernel, pads)[0]


def _forward(
    x: jax.Array, kernel: jax.Array, pads: Pads
) -> tuple[jax.Array, tuple[Grid, Grid]]:
    tiles = _sandwich(INPUT, _cut_tiles(jnp.pad(x, ((0, 0), *pads, (0, 0)))))
    kernels = _sandwich(KERNEL, [list(row) for row in kernel])
    products = _entrywise(jnp.dot, tiles, kernels)
    return _join_pixels(_sandwich(OUTPUT, products)), (tiles, kernels)


def _backward(
    pads: Pads, residuals: tuple[Grid, Grid], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    # The transforms are linear, so the transposed matrices give their gradients.
    tiles, kernels = residuals
    (above, below), (left, right) = pads
    products = _sandwich(_transpose(OUTPUT), _split_pixels(cotangent))
    tiles_bar = _entrywise(lambda y, g: jnp.dot(y, g.T), products, kernels)
    x_bar = _overlap_add(_sandwich(_transpose(INPUT), tiles_bar))
    height, width = x_bar.shape[1:3]
    kernels_bar = _entrywise(lambda d, y: _rows(d).T @ _rows(y), tiles, products)
    kernel_bar = _sandwich(_transpose(KERNEL), kernels_bar)
    return (
        x_bar[:, above : height - below, left : width - right],
        jnp.stack([jnp.stack(row) for row in kernel_bar]),
    )


winograd.defvjp(_forward, _backward)


def _sandwich(matrix: tuple[tuple[float, ...], ...], grid: Grid) -> Grid:
    """Computes matrix @ grid @ matrix^T."""
    rows = [
        [_combine(weights, column) for column in zip(*grid, strict=True)]
        for weights in matrix
    ]
    return [[_combine(weights, row) for weights in matrix] for row in rows]


def _combine(weights: tuple[float, ...], parts: tuple | list) -> jax.Array:
    total = None
    for weight, part in zip(weights, parts, strict=True):
        if weight:
            term = part if weight == 1 else weight * part
            total = term if total is None else total + term
    assert total is not None  # because no row of a transform is zero
    return total


def _entrywise(product, first: Grid, second: Grid) -> Grid:
    """Computes one product per entry, which is faster than one batched product."""
    return [
        [product(a, b) for a, b in zip(*rows, strict=True)]
        for rows in zip(first, second, strict=True)
    ]


def _transpose(matrix: tuple[tuple[float, ...], ...]) -> tuple[tuple[float, ...], ...]:
    return tuple(zip(*matrix, strict=True))


def _rows(x: jax.Array) -> jax.Array:
    return x.reshape(-1, x.shape[-1])


def _cut_tiles(x: jax.Array) -> Grid:
    """Cuts images into tiles: entry (a, b) holds pixel (a, b) of every tile."""
    return [_cut(row, axis=2) for row in _cut(x, axis=1)]


def _cut(x: jax.Array, axis: int) -> list[jax.Array]:
    num_tiles = x.shape[axis] // 2 - 1
    pairs = x.reshape(*x.shape[:axis], num_tiles + 1, 2, *x.shape[axis + 1 :])
    even, odd = (jax.lax.index_in_dim(pairs, i, axis + 1, False) for i in (0, 1))
    return [
        jax.lax.slice_in_dim(part, start, start + num_tiles, axis=axis)
        for start in (0, 1)
        for part in (even, odd)
    ]


def _overlap_add(grid: Grid) -> jax.Array:
    """Adds every tile's pixels where they came from: the transpose of cutting."""
    return _overlap([_overlap(row, axis=2) for row in grid], axis=1)


def _overlap(parts: list[jax.Array], axis: int) -> jax.Array:
    first, second = [(0, 0)] * parts[0].ndim, [(0, 0)] * parts[0].ndim
    first[axis], second[axis] = (0, 1), (1, 0)
    even = jnp.pad(parts[0], first) + jnp.pad(parts[2], second)
    odd = jnp.pad(parts[1], first) + jnp.pad(parts[3], second)
    return _interleave([even, odd], axis)


def _join_pixels(grid: Grid) -> jax.Array:
    return _interleave([_interleave(row, axis=2) for row in grid], axis=1)


def _split_pixels(y: jax.Array) -> Grid:
    batch_size, height, width, channels = y.shape
    y = y.reshape(batch_size, height // 2, 2, width // 2, 2, channels)
    return [[y[:, :, a, :, b] for b in (0, 1)] for a in (0, 1)]


def _interleave(parts: list[jax.Array], axis: int) -> jax.Array:
    stacked = jnp.stack(parts, axis + 1)
    return stacked.reshape(*stacked.shape[:axis], -1, *stacked.shape[axis + 2 :])
