"""Placements: on which devices rounds run, and how messages become one.

Each device trains its own block of the cohort in its own lanes and exchanges nothing
with the others meanwhile. What the clients send crosses devices once, at the end of the
round.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjax_prune.engine import processes
from fedjax_prune.engine.policy import PLAIN, Policy
from fedjax_prune.fields import Count, checked
from fedjax_prune.models.platforms import check_platform, default_platform, tracing_for
from fedjax_prune.types import Cohort, RoundInputs, Tree

AXIS = "devices"
SPLIT, WHOLE = PartitionSpec(AXIS), PartitionSpec()
REDUCTIONS = ("all_reduce", "fixed_order")
GROUP, ALONE = 16, 4
"""Clients in a group: GROUP for each of several lanes, ALONE for a single lane."""


class Placement(NamedTuple):
    """The devices on which a round runs, the order of its sums and its policy.

    Attributes:
      mesh: the devices, on one axis; None is the default device alone.
      num_devices: how many of them train. These are the first ones; the others are
        idle.
      reduction: one of REDUCTIONS. `all_reduce` adds messages as clients finish,
        then over devices. `fixed_order` keeps them all and adds them by client id,
        the same on any number of devices.
      target: the platform that programs are lowered for ahead of time; None is that of
        the devices.
      policy: what becomes of messages beside that; preparations do without one.

    Examples:
      >>> import fedjax_prune as fp
      >>> fp.Placement() == fp.make_placement()
      True
    """

    mesh: Mesh | None = None
    num_devices: int = 1
    reduction: str = "all_reduce"
    target: str | None = None
    policy: Policy = PLAIN

    @property
    def plain(self) -> "Placement":
        """The same devices and order, without a policy."""
        return self._replace(policy=PLAIN)

    @property
    def platform(self) -> str:
        """The platform that programs are traced and lowered for."""
        if self.target is not None:
            return self.target
        if self.mesh is None:
            return default_platform()
        return self.mesh.devices.flat[0].platform

    @property
    def num_blocks(self) -> int:
        """The number of parts of split arrays, one for each device of the mesh."""
        return 1 if self.mesh is None else self.mesh.size

    def block_size(self, cohort_size: int) -> int:
        """Says how many clients of a cohort each device has places for.

        A device has places for a quarter more than its share: where the longest clients
        meet on one device, the others take more of the short ones. On the Dirichlet
        splits of FedDP no lane then waits longer than without a bound. With the fixed
        order a device has places for all clients, so that the program is the same on
        any number of devices.
        """
        if self.reduction == "fixed_order":
            return cohort_size
        return min(cohort_size, math.ceil(1.25 * cohort_size / self.num_devices))

    def group_size(self, num_lanes: int) -> int:
        """Says how many clients are in a group where clients come in groups.

        Groups are so large that lanes wait little for the last clients of a group; a
        single lane never waits. With the fixed order the groups, too, are the same on
        any number of devices.

        Args:
          num_lanes: on each device.
        """
        if self.reduction == "fixed_order":
            return GROUP * num_lanes
        all_lanes = num_lanes * self.num_devices
        return ALONE if all_lanes == 1 else GROUP * all_lanes


ONE_DEVICE = Placement()
"""JAX's default device; its programs have the forms of that device's platform.

A program that `jax.export` lowers for another platform needs a placement from
`make_placement(platform=...)`.
"""


@checked
def make_placement(
    num_devices: Count = 1,
    reduction: str = "all_reduce",
    *,
    platform: str | None = None,
    policy: Policy = PLAIN,
) -> Placement:
    """Places rounds on the first devices; of several processes, on those of each.

    XLA compiles a program of one partition by other passes than one of several, so it
    fuses, and rounds, otherwise. For the same bits on any number of devices, the mesh
    of a fixed order has a second device even where one does the work.

    Args:
      num_devices: of all processes together, each of which has as many as the others;
        at least 1, at most the number of devices.
      reduction: one of REDUCTIONS.
      platform: one of PLATFORMS, to lower programs ahead of time for as many devices
        of another platform than the local one; None is the local one.
      policy: of the rounds; `make_policy` makes one.

    Raises:
      ValueError: if there are fewer devices, they cannot be shared out over the
        processes, or the reduction or the platform is unknown.

    Examples:
      >>> make_placement().num_blocks
      1
      >>> make_placement(1, "sorted")
      Traceback (most recent call last):
      ValueError: reduction must be one of all_reduce, fixed_order, got 'sorted'.
    """
    if platform is not None:
        check_platform(platform)
    available = jax.device_count()
    if num_devices > available:
        raise ValueError(f"num_devices must be in [1, {available}], got {num_devices}.")
    if num_devices % jax.process_count():
        raise ValueError(
            f"num_devices must be a multiple of the {jax.process_count()} processes, "
            f"got {num_devices}."
        )
    if reduction not in REDUCTIONS:
        known = ", ".join(REDUCTIONS)
        raise ValueError(f"reduction must be one of {known}, got {reduction!r}.")
    if num_devices == 1 and reduction == "all_reduce":
        return ONE_DEVICE._replace(target=platform, policy=policy)
    in_mesh = max(num_devices, 2 if reduction == "fixed_order" else 1)
    mesh = Mesh(np.array(_first_devices(in_mesh)), (AXIS,))
    return Placement(mesh, num_devices, reduction, platform, policy)


def _first_devices(count: int) -> list[Any]:
    """The same number of devices of each process, those of a process together."""
    each = count // jax.process_count()
    return [
        device
        for process in range(jax.process_count())
        for device in jax.local_devices(process)[:each]
    ]


def put_whole(placement: Placement, tree: Tree) -> Tree:
    """Copies a tree to every device."""
    return _put(placement, tree, jax.tree.map(lambda _: WHOLE, tree))


def put_split(placement: Placement, tree: Tree) -> Tree:
    """Sends each device its part of the leading axis."""
    return _put(placement, tree, jax.tree.map(lambda _: SPLIT, tree))


def put_cohort(placement: Placement, cohort: Cohort) -> Cohort:
    """Sends each device its block of a cohort."""
    return _put(placement, cohort, _COHORT_SPECS)


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
    and waits for nothing.
    """
    if placement.mesh is None or not placement.mesh.is_multi_process:
        return tree
    return _copier(NamedSharding(placement.mesh, WHOLE))(tree)


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


def share_work(
    placement: Placement,
    function: Callable[[Tree, Tree], jax.Array],
    whole: Tree,
    parts: Tree,
    *,
    out_axis: int = 0,
) -> jax.Array:
    """Runs a function on every device's part of some arrays.

    Args:
      placement: the devices.
      function: (whole, part of parts) -> array; what it computes for one index of
        the leading axis of `parts` must not depend on the others.
      whole: given to every device.
      parts: leaves [size, ...], cut along the leading axis.
      out_axis: the place of that axis in the result.

    Returns:
      What `function(whole, parts)` would return.
    """
    with tracing_for(placement.platform):
        if placement.mesh is None:
            return function(whole, parts)
        size = jax.tree.leaves(parts)[0].shape[0]
        missing = -size % placement.num_blocks
        padded = jax.tree.map(
            lambda x: jnp.pad(x, ((0, missing),) + ((0, 0),) * (x.ndim - 1)), parts
        )
        mapped = jax.shard_map(
            function,
            mesh=placement.mesh,
            in_specs=(WHOLE, SPLIT),
            out_specs=PartitionSpec(*[None] * out_axis, AXIS),
            check_vma=False,
        )
        return jax.lax.slice_in_dim(mapped(whole, padded), 0, size, axis=out_axis)


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
    cohort_examples=WHOLE,
    num_clients=WHOLE,
    num_examples=WHOLE,
)
