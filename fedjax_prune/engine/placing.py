"""Arrays on the devices of a placement: whole on each, or an equal part on each.

Arrays over the devices of several processes are made of the parts that each process
sends to its own devices.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from fedjax_prune.engine import processes
from fedjax_prune.engine.devices import SPLIT, WHOLE, Placement
from fedjax_prune.types import Cohort, RoundInputs, Tree


def put_whole(placement: Placement, tree: Tree) -> Tree:
    """Copies a tree to every device."""
    return _put(placement, tree, jax.tree.map(lambda _: WHOLE, tree))


def put_split(placement: Placement, tree: Tree) -> Tree:
    """Sends each device its part of the leading axis."""
    return _put(placement, tree, jax.tree.map(lambda _: SPLIT, tree))


def put_cohort(placement: Placement, cohort: Cohort) -> Cohort:
    """Sends each device its block of a cohort."""
    return _put(placement, cohort, _COHORT_SPECS)


def owners(placement: Placement, num_places: int) -> np.ndarray:
    """Says which process has each place of split arrays on its devices.

    Args:
      placement: of the arrays.
      num_places: of their leading axis. If the devices cannot have equal parts of it,
        the last ones have less.

    Returns:
      [num_places] numbers of processes.
    """
    if placement.mesh is None or not placement.mesh.is_multi_process:
        return np.zeros(num_places, np.int64)
    numbers = [device.process_index for device in placement.mesh.devices.flat]
    return np.repeat(numbers, -(-num_places // len(numbers)))[:num_places]


def own_places(placement: Placement, num_places: int) -> np.ndarray:
    """Lists the places of split arrays that the devices of this process have."""
    return np.flatnonzero(owners(placement, num_places) == processes.number())


def send_own(placement: Placement, tree: Tree, num_places: int) -> Tree:
    """Makes split arrays, of which each process sends the places of its own devices.

    Args:
      placement: of the arrays.
      tree: leaves numpy [number of `own_places`, ...].
      num_places: of the arrays, an equal part on each device.

    Returns:
      Leaves [num_places, ...].
    """
    mesh = placement.mesh
    if mesh is None or not mesh.is_multi_process:
        return put_split(placement, tree)
    own, sharding = own_places(placement, num_places), NamedSharding(mesh, SPLIT)
    each = num_places // placement.num_blocks

    def send(x: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...]) -> np.ndarray:
            first = np.searchsorted(own, index[0].start or 0)
            return x[first : first + each]

        return from_parts((num_places, *x.shape[1:]), sharding, part)

    return jax.tree.map(send, tree)


def fetch_own(placement: Placement, tree: Tree) -> Tree:
    """Copies the places of split arrays that this process has to the host.

    It waits for the devices of this process, and for no other process.

    Args:
      placement: of the arrays.
      tree: leaves [num_places, ...], as the devices have them, or numpy.

    Returns:
      Leaves numpy [number of `own_places`, ...].
    """
    if placement.mesh is None or not placement.mesh.is_multi_process:
        return jax.device_get(tree)

    def fetch(x: Any) -> np.ndarray:
        own = own_places(placement, len(x))
        if not isinstance(x, jax.Array):
            return np.asarray(x)[own]
        shards = sorted(x.addressable_shards, key=lambda part: part.index[0].start or 0)
        parts = np.concatenate([jax.device_get(part.data) for part in shards])
        assert len(parts) == len(own), "the array is not split over the devices"
        return parts

    return jax.tree.map(fetch, tree)


def connect(placement: Placement) -> None:
    """Lets the devices of several processes exchange something for the first time.

    gloo, which JAX uses on CPUs, gives up when a device comes 30 s late to the first
    collective of these devices, and waits for ever in later ones. So this comes before
    programs are compiled, which takes longer in one process than in another.
    """
    if placement.mesh is None or not placement.mesh.is_multi_process:
        return
    processes.barrier()
    ones = put_split(placement, np.ones(placement.num_blocks, np.int32))
    with processes.without_output():
        jax.block_until_ready(gather_whole(placement, ones))


def gather_whole(placement: Placement, tree: Tree) -> Tree:
    """Copies arrays to every device if they are those of several processes.

    A process can read only what its own devices hold. It is called in all processes,
    and waits for nothing. Arrays of numpy stay as they are.
    """
    if placement.mesh is None or not placement.mesh.is_multi_process:
        return tree
    leaves, structure = jax.tree.flatten(tree)
    on_devices = [x for x in leaves if isinstance(x, jax.Array)]
    # One program: many small ones that run at once have made gloo wait for ever.
    copies = iter(_copier(NamedSharding(placement.mesh, WHOLE))(on_devices))
    return jax.tree.unflatten(
        structure, [next(copies) if isinstance(x, jax.Array) else x for x in leaves]
    )


def _put(placement: Placement, tree: Tree, specs: Tree) -> Tree:
    mesh = placement.mesh
    if mesh is None:
        return jax.device_put(tree)
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    if mesh.is_multi_process:
        return jax.tree.map(_of_parts, tree, shardings)
    return jax.device_put(tree, shardings)


def _of_parts(x: Any, sharding: NamedSharding) -> jax.Array:
    """Makes an array of several processes, each of which sends its own parts.

    `jax.device_put` would first compare the whole array in all processes, which took
    12 s for 64 MB.
    """
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return _copier(sharding)(x)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = _of_parts(jax.random.key_data(x), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    whole = np.asarray(jax.device_get(x))
    whole = whole.astype(jax.dtypes.canonicalize_dtype(whole.dtype), copy=False)
    return from_parts(whole.shape, sharding, lambda index: whole[index])


def from_parts(
    shape: tuple[int, ...],
    sharding: NamedSharding,
    part: Callable[[tuple[slice, ...]], np.ndarray],
) -> jax.Array:
    """Makes an array of several processes; each sends the parts of its devices.

    Args:
      shape: of the whole array.
      sharding: over the devices of all processes.
      part: index of a part -> its values.
    """

    def part_at(index: Any) -> np.ndarray:
        return part(index)

    # JAX does not take this for the explicit transfer that it is.
    with jax.transfer_guard_host_to_device("allow"):
        return jax.make_array_from_callback(shape, sharding, part_at)


@functools.cache
def _copier(sharding: NamedSharding) -> Callable[[Tree], Tree]:
    return jax.jit(lambda tree: tree, out_shardings=sharding)


def shapes_on(placement: Placement, specs: Tree, tree: Tree) -> Tree:
    """Gives the shapes of a tree and how it lies on the devices, to compile for them.

    Args:
      placement: with a mesh.
      specs: PartitionSpecs, a prefix of the tree.
      tree: arrays or `jax.ShapeDtypeStruct`s.

    Returns:
      `jax.ShapeDtypeStruct`s with a sharding and the dtypes that arrays have on a
      device: float64 only with `jax_enable_x64`.
    """
    mesh = placement.mesh
    assert mesh is not None, "the default device alone has no mesh"

    def lay(spec: PartitionSpec, part: Tree) -> Tree:
        sharding = NamedSharding(mesh, spec)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                x.shape, _dtype_on_device(x.dtype), sharding=sharding
            ),
            part,
        )

    return jax.tree.map(
        lay, specs, tree, is_leaf=lambda x: isinstance(x, PartitionSpec)
    )


def input_specs(inputs: RoundInputs) -> Tree:
    """Says how a round's inputs lie on the devices, for `jax.shard_map`."""
    probe = inputs.probe
    if probe is not None:
        probe = dataclasses.replace(probe, examples=WHOLE, wanted=SPLIT)
    specs: dict[str, Any] = {
        "state": WHOLE,
        "rows": SPLIT,
        "dataset": WHOLE,
        "cohort": _COHORT_SPECS,
        "key": WHOLE,
        "probe": probe,
    }
    return RoundInputs(**specs)


_COHORT_SPECS = Cohort(
    client_ids=SPLIT,
    sizes=SPLIT,
    indices=SPLIT,
    queues=SPLIT,
    cohort_size=WHOLE,
    num_clients=WHOLE,
    num_examples=WHOLE,
)


def _dtype_on_device(dtype: jnp.dtype) -> jnp.dtype:
    is_key = jnp.issubdtype(dtype, jax.dtypes.extended)
    return dtype if is_key else jax.dtypes.canonicalize_dtype(dtype)
