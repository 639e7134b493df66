"""The sub-network of one client: the channels that its data selects, as a plain model.

Gates choose channels for every image. The images of one client are alike, so some
channels are chosen for hardly any of them. Without these channels and without the gates
a client has a smaller network that runs at the speed of its size.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_prune.data.augment import to_float
from fedjax_prune.fields import ABOVE_ZERO, at_least, checked
from fedjax_prune.layers import ChannelGroup, Slot
from fedjax_prune.models import costs
from fedjax_prune.models.channels import find_leaf
from fedjax_prune.models.modules import gates_of, without_gates
from fedjax_prune.models.task import ToInput, make_gate_sums
from fedjax_prune.pruning.smaller import Compacted, shrink, smaller_model
from fedjax_prune.types import Tree, Variables


class Selection(NamedTuple):
    """What a client's gates have done to its images.

    Attributes:
      selected: layer with a gate -> [channels], the images that keep each channel.
      multiplier: the same layers -> [channels], the sum over these images of what the
        channel is multiplied by.
      count: number of images, at least 1.
    """

    selected: Mapping[str, np.ndarray]
    multiplier: Mapping[str, np.ndarray]
    count: int


Select = Callable[[Variables, Any], Selection]
"""(variables of one client, its images [num_images, ...]) -> Selection."""


@checked
def make_client_selection(
    model: Any,
    *,
    batch_size: Annotated[int, at_least(1), "Images of a forward pass."] = 100,
    to_input: ToInput = to_float,
    normalize: str = "none",
) -> Select:
    """Makes a function that counts the channels which a client's images select.

    It is compiled once for all clients whose images have the same shape.

    Args:
      model: one of MODELS, gated.
      batch_size: images of a forward pass.
      to_input: as in `make_task`.
      normalize: as in `make_task`.

    Returns:
      The function. It raises a ValueError if there is no image.

    Raises:
      ValueError: if the model has no gates or `batch_size` is out of range.

    Examples:
      >>> import fedjax_prune as fp
      >>> model = fp.CNN(10, gates=fp.GateSettings(keep_ratio=0.5))
      >>> client = fp.make_task(model, (8, 8, 1)).init(jax.random.key(0))
      >>> select = make_client_selection(model)
      >>> selection = select(client, np.zeros((4, 8, 8, 1), np.uint8))
      >>> int(selection.selected["conv1"].sum())  # of 4 images, each keeps 8
      32
    """
    _check_gated(model)
    gate_sums = jax.jit(make_gate_sums(model, to_input=to_input, normalize=normalize))

    def select(variables: Variables, images: Any) -> Selection:
        count = len(images)
        if count == 0:
            raise ValueError("images must be at least one, got 0.")
        total: Any = None
        for start in range(0, count, batch_size):
            places = np.arange(start, start + batch_size)
            batch = images[np.minimum(places, count - 1)]
            sums = jax.device_get(gate_sums(variables, batch, places < count))
            total = sums if total is None else jax.tree.map(np.add, total, sums)
        return Selection(total["selected"], total["multiplier"], count)

    return select


class BudgetError(ValueError):
    """A budget that is below what the network has with one block in each group.

    Attributes:
      least: smallest budget that is not, as a share.
    """

    def __init__(self, least: float, budget: float):
        # The number that is told must fit, so it is rounded up.
        told = math.ceil(least * 1e4) / 1e4
        super().__init__(
            f"macs must be at least {told:.4f} for this model, got {budget}."
        )
        self.least = least


def client_network(
    model: Any,
    variables: Variables,
    selection: Selection,
    image_shape: tuple[int, int, int],
    *,
    macs: float | None = None,
    multiple: int = 1,
) -> Compacted:
    """Makes one client's plain network of the channels that its data selects.

    A group of channels that several convolutions write, as in a residual network, is
    kept or removed as one. A channel's share is the mean over these convolutions of the
    share of the images that keep it, 1 for a convolution without a gate. Channels that
    no image keeps are removed. With a budget, as many as fit into it stay, in the order
    of their shares; of equal ones those stay first that have, in relation to the size
    of their groups, more such channels behind them. Each group keeps at least one, and
    groups that no gate looks at keep all.

    The network has no gates: it computes for every image all channels that stay, each
    multiplied by the mean of what a gate multiplied it by for the images that kept it,
    and by 0 in a convolution that kept it for none. So if all images select the same
    channels, and in the mode `scale` by the same multipliers, its logits without a
    budget are those of the gated model. For other images they differ by what the
    channels add that an image drops. In a residual network gated `literal` they also
    differ by what its convolutions read of channels that the block before has dropped.

    Args:
      model: one of MODELS, gated.
      variables: of the client: shared parameters and its gates, masked if masks are in
        force.
      selection: of `make_client_selection` for the client's images.
      image_shape: (height, width, channels).
      macs: budget, the most multiply-accumulates as a share of those of the whole
        network without gates, in (0, 1]; None for all channels that any image keeps.
      multiple: channels of a group stay in blocks of so many, at least 1, ranked by
        their mean; some processors are slow with other numbers of channels.

    Returns:
      The plain network, its Variables and the channels that stay.

    Raises:
      ValueError: if the model has no gates, if the selection is not of its layers, if
        `macs` or `multiple` is out of range. If `macs` is below what the network has
        with one block in each group, it is a BudgetError.

    Examples:
      >>> import fedjax_prune as fp
      >>> model = fp.CNN(10, gates=fp.GateSettings(keep_ratio=0.5))
      >>> client = fp.make_task(model, (8, 8, 1)).init(jax.random.key(0))
      >>> select = fp.make_client_selection(model)
      >>> selection = select(client, np.zeros((4, 8, 8, 1), np.uint8))
      >>> found = client_network(model, client, selection, (8, 8, 1))
      >>> [layer.out_channels for layer in found.model.layers((8, 8, 1))]
      [8, 16, 64, 10]
    """
    _check_gated(model)
    if macs is not None and not ABOVE_ZERO.holds(macs):
        raise ValueError(f"macs must be {ABOVE_ZERO.text} or None, got {macs}.")
    if multiple < 1:
        raise ValueError(f"multiple must be at least 1, got {multiple}.")
    gated = {layer.name for layer in model.layers(image_shape) if layer.gated}
    for what in ("selected", "multiplier"):
        of_layers = getattr(selection, what)
        if gated != set(of_layers):
            raise ValueError(
                f"selection.{what} must be of the layers {', '.join(sorted(gated))}, "
                f"got {', '.join(sorted(of_layers)) or 'none'}: gates sow it, see Gate."
            )
    plain = without_gates(model)
    groups = plain.channel_groups(image_shape)
    shares = {
        group.name: _shares(group, selection)
        for group in groups
        if any(_layer(slot) in selection.selected for slot in group.producers)
    }
    kept = {group.name: np.arange(group.size) for group in groups}
    ranking = _ranking(shares, multiple)
    number = len(ranking)
    if macs is not None:
        number = _fitting(macs, plain, image_shape, kept, ranking)
    kept |= _first(ranking, number)
    network = smaller_model(plain, {name: len(i) for name, i in kept.items()})

    @jax.jit
    def shrunk(params: Tree, model_state: Tree) -> Variables:
        params = _multiplied(params, _factors(selection))
        return shrink(Variables(params, {}, model_state), groups, kept)

    found = shrunk(variables.params, variables.model_state)
    return Compacted(network, found, kept)


def _check_gated(model: Any) -> None:
    if gates_of(model) is None:
        raise ValueError("model must have gates, got one without.")


def _layer(slot: Slot) -> str:
    """The layer whose kernel a slot names."""
    return "/".join(slot.path[:-1])


def _shares(group: ChannelGroup, selection: Selection) -> np.ndarray:
    """The mean over a group's convolutions of the share of images, [size] float64."""
    shares = []
    for slot in group.producers:
        share = np.ones(group.size)
        if _layer(slot) in selection.selected:
            counts = np.asarray(selection.selected[_layer(slot)], float)
            share = (counts / selection.count)[slot.start : slot.start + group.size]
        if len(share) != group.size:
            raise ValueError(
                f"selection must have {group.size} channels of {group.name}, got "
                f"{len(share)}."
            )
        shares.append(share)
    return np.mean(shares, 0)


def _ranking(
    shares: Mapping[str, np.ndarray], multiple: int
) -> list[tuple[str, np.ndarray]]:
    """The channels that any image keeps: some of each group, then by their shares.

    They are ranked in blocks of `multiple` channels of a group, by the mean of their
    shares. A block is completed by channels that no image keeps.
    """
    keys = []
    for number, (name, share) in enumerate(shares.items()):
        order = np.argsort(-share, kind="stable")
        for place in range(0, len(share), multiple):
            block = order[place : place + multiple]
            if place == 0 or share[block].any():
                key = (place > 0, -share[block].mean(), place / len(share), number)
                keys.append((*key, name, block))
    return [(name, block) for *_, name, block in sorted(keys, key=lambda k: k[:4])]


def _first(
    ranking: Sequence[tuple[str, np.ndarray]], number: int
) -> dict[str, np.ndarray]:
    """Name of a group -> its channels in the first blocks of a ranking, ascending."""
    found: dict[str, list[np.ndarray]] = {}
    for name, block in ranking[:number]:
        found.setdefault(name, []).append(block)
    return {name: np.sort(np.concatenate(blocks)) for name, blocks in found.items()}


def _fitting(
    budget: float,
    plain: Any,
    image_shape: tuple[int, int, int],
    kept: Mapping[str, np.ndarray],
    ranking: Sequence[tuple[str, np.ndarray]],
) -> int:
    """Says how many blocks of a ranking fit into a budget."""
    whole = costs.macs(plain, image_shape).dense

    def share_of(number: int) -> float:
        chosen = {**kept, **_first(ranking, number)}
        left = {name: len(indices) for name, indices in chosen.items()}
        return costs.macs(smaller_model(plain, left), image_shape).dense / whole

    low, high = len({name for name, _ in ranking}), len(ranking)
    if share_of(low) > budget:
        raise BudgetError(share_of(low), budget)
    while low < high:
        middle = (low + high + 1) // 2
        if share_of(middle) <= budget:
            low = middle
        else:
            high = middle - 1
    return low


def _factors(selection: Selection) -> dict[str, np.ndarray]:
    """Layer -> [channels], the mean multiplier of the images that keep a channel.

    It is 0 if none does: such a channel may stay for another layer that adds to it.
    """
    return {
        layer: total / np.maximum(selection.selected[layer], 1)
        for layer, total in selection.multiplier.items()
    }


def _multiplied(params: Tree, factors: Mapping[str, np.ndarray]) -> Tree:
    """Multiplies what layers write, through their norm or their kernel and bias.

    No factor is negative, so ReLU and max-pool, which come after, pass them on.
    """

    def multiply(path: Sequence[Any], leaf: jax.Array) -> jax.Array:
        names = [entry.key for entry in path]
        in_norm = names[-2:-1] == ["norm"]
        layer = names[:-2] if in_norm else names[:-1]
        by_norm = find_leaf(params, (*layer, "norm")) is not None
        factor = factors.get("/".join(layer))
        if factor is None or by_norm != in_norm:
            return leaf
        factor = jnp.asarray(factor, leaf.dtype)
        return leaf * factor.reshape((1,) * (leaf.ndim - 1) + (-1,))

    return jax.tree_util.tree_map_with_path(multiply, params)
