"""The records by which a model describes its layers and its channels."""

from typing import NamedTuple


class Slot(NamedTuple):
    """Where the channels of a group lie in one array.

    Attributes:
      path: of the array in the model's tree, such as ("conv1", "kernel").
      axis: the axis that runs over the channels, counted from the last, which is -1.
      start: place of the group's first channel among those of the axis.
      repeats: how often the axis runs over its channels, the channel fastest: the
        pixels of a map that was flattened, 1 elsewhere.
    """

    path: tuple[str, ...]
    axis: int
    start: int = 0
    repeats: int = 1


class ChannelGroup(NamedTuple):
    """Channels that are kept or removed together.

    A slot may name an array that the model does not have, such as its missing norm.

    Attributes:
      name: by which a model is told how many channels of the group are left.
      size: number of channels.
      producers: kernels that write the channels; several where branches are added.
      entries: what else a channel has: bias, norm, statistics, gate.
      consumers: kernels and gates that read the channels.
    """

    name: str
    size: int
    producers: tuple[Slot, ...]
    entries: tuple[Slot, ...]
    consumers: tuple[Slot, ...]

    @property
    def slots(self) -> tuple[Slot, ...]:
        return (*self.producers, *self.entries, *self.consumers)


class Layer(NamedTuple):
    """What one layer costs.

    A dense layer on a flattened map counts as a convolution by a kernel as large
    as the map.

    Attributes:
      name: path of its array, or of the module that has its kernels, joined by "/".
      in_channels: channels it reads.
      out_channels: channels it writes.
      kept_in: channels it reads for one sample, at most `in_channels`.
      kept_out: channels it writes for one sample, at most `out_channels`.
      taps: height times width of the kernel.
      positions: height times width of the output. A fraction where a program reads
        only a part of the weights, or several arrays multiplied with each other.
      gated: whether it has a gate, from `in_channels` to `out_channels`.
    """

    name: str
    in_channels: int
    out_channels: int
    kept_in: int
    kept_out: int
    taps: int
    positions: float
    gated: bool
