"""The limits of the machine, measured between the rounds of the other workers.

python -m launch.benchmark.limits --work=w1 --data=FILE.npz --threads=2

The worker times a large matrix product and copying, on one device with all threads.
"""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_prune.models import costs
from fedjax_prune.models.precision import PRECISIONS, product_precision

from . import worker

SIZE = 2048
"""Rows and columns of the matrices that are multiplied."""
REPEATS = 3
"""Repeats of a measurement; the fastest one counts."""


def train_flops(model: costs.PrunableModel, image_shape: tuple[int, int, int]) -> int:
    """Counts the operations of one training image.

    It counts the multiplications and additions in the definition of convolutions and
    dense layers: forward, gradient of the input and gradient of the weights, but no
    gradient of the images. Gates, activations, pooling and the optimiser are left out,
    and masked channels count in full. Winograd's convolutions do fewer multiplications,
    so they can exceed the limit that is derived from this count.

    Args:
      model: its gates are ignored.
      image_shape: (height, width, channels).
    """
    macs = costs.macs(model, image_shape)
    first = next(iter(macs.layers.values()))
    return 2 * (3 * macs.dense - first.dense)


def product_rate(precision: str, in_a_row: int) -> float:
    """Measures matrix products.

    Args:
      precision: one of PRECISIONS.
      in_a_row: products that are started at once.

    Returns:
      Floating point operations a second.
    """
    with product_precision(precision):

        @jax.jit
        def multiply(x: jax.Array, y: jax.Array) -> jax.Array:
            for _ in range(in_a_row):
                x = x @ y
            return x

        shape, dtype = (SIZE, SIZE), PRECISIONS[precision].dtype
        # The norm is about one, so that a long chain of products stays finite.
        y = jax.random.normal(jax.random.key(0), shape, dtype) / dtype.type(SIZE**0.5)
        return in_a_row * 2 * SIZE**3 / _least_seconds(lambda: multiply(y, y))


def copy_rate(num_bytes: int) -> float:
    """Measures a pass over an array: bytes read and written a second."""
    x = jnp.zeros(num_bytes // 4, jnp.float32)
    negate = jax.jit(jnp.negative)
    return 2 * x.nbytes / _least_seconds(lambda: negate(x))


def _least_seconds(run: Callable[[], jax.Array]) -> float:
    jax.block_until_ready(run())
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def main() -> None:
    """Serves the orchestrator."""
    _, channel, _ = worker.start()
    platform, device = jax.default_backend(), jax.devices()[0].device_kind
    precisions = ("float32",) if platform == "cpu" else tuple(PRECISIONS)
    # A fast device would spend more time waiting for a call than multiplying.
    in_a_row, num_bytes = (1, 2**28) if platform == "cpu" else (50, 2**30)
    channel.ready("limits", "jax", {"platform": platform, "device": device})
    while channel.wait():
        rates = {name: product_rate(name, in_a_row) for name in precisions}
        channel.reply({"products": rates, "copy": copy_rate(num_bytes)})


if __name__ == "__main__":
    main()
