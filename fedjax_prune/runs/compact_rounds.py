"""Rounds on the smaller model that masks leave.

Masks are made on the whole model. The round then runs on a model without the removed
channels, and its result is put back. A compiled round depends only on how many channels
stay. These numbers are rounded up, so few rounds are compiled.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_prune.engine.contract import MaskedRound
from fedjax_prune.engine.devices import Placement
from fedjax_prune.engine.placing import gather_whole, put_whole
from fedjax_prune.layers import ChannelGroup
from fedjax_prune.models import costs
from fedjax_prune.models.channels import array_name, trained_channels
from fedjax_prune.pruning.enforce import gate_flags
from fedjax_prune.pruning.smaller import (
    KeptIndices,
    choose_channels,
    expand,
    round_up,
    shrink,
    smaller_model,
)
from fedjax_prune.runs.experiment import Experiment
from fedjax_prune.runs.learning import Learning, make_learning
from fedjax_prune.runs.programs import Rounds, WholeRounds
from fedjax_prune.types import (
    ClientState,
    Cohort,
    Dataset,
    RoundInputs,
    ServerState,
    Sums,
    Tree,
)

MULTIPLE = 8
"""Numbers of channels are rounded up to multiples of this."""
SPARE = 1.1
"""A compiled round is reused if it costs at most this many times the MACs."""

Widths = Mapping[str, int]


def make_rounds(experiment: Experiment, placement: Placement) -> Rounds:
    """The rounds that a configuration asks for, on the whole or on smaller models."""
    learning, config = experiment.learning, experiment.config
    if config.compact_training:
        return CompactRounds(
            learning, placement, lambda model: make_learning(config, model)
        )
    return WholeRounds(learning.task, learning.algorithm.round, placement)


class CompactRounds:
    """Rounds of a run, as `programs.Rounds`.

    Attributes:
      seconds: spent compiling the round in the last call. Compiling the short programs
        that rank, cut and put back counts as time of the round.
      compiled: as in `Rounds`.
    """

    def __init__(
        self,
        learning: Learning,
        placement: Placement,
        rebuild: Callable[[Any], Learning],
    ):
        """Makes rounds that compile when they are called.

        Args:
          learning: with an algorithm that masks.
          placement: where the rounds run.
          rebuild: smaller model -> the `Learning` with it.
        """
        masked = _masked(learning)
        self.seconds = self.compiled = 0.0
        self._learning, self._rebuild = learning, rebuild
        self._placement = placement
        self._shape = learning.image_shape
        self._groups = groups = learning.model.channel_groups(self._shape)
        self._rounds: dict[tuple[tuple[str, int], ...], WholeRounds] = {}

        @partial(jax.jit, donate_argnums=0)
        def remask(
            state: ServerState, rows: ClientState, cohort: Cohort
        ) -> tuple[ServerState, Sums, dict[str, jax.Array], Tree]:
            state = masked.remask(state, rows, cohort)
            masks = state.server.masks
            needed = {group.name: trained_channels(masks, group) for group in groups}
            flags = gate_flags(learning.task, masks)
            return state, masked.facts(state), needed, flags

        self._remask = remask
        self._shrink = jax.jit(lambda tree, kept: shrink(tree, groups, kept))
        self._expand = jax.jit(
            lambda small, kept, full: expand(small, groups, kept, full),
            donate_argnums=2,
        )
        self._expand_counts = jax.jit(
            lambda sums, kept, flags: _expand_counts(sums, groups, kept, flags)
        )

    def __call__(
        self, inputs: RoundInputs, test: Dataset, wanted: jax.Array
    ) -> tuple[ServerState, ClientState, Sums]:
        """See `programs.Rounds`."""
        state, facts, needed, flags = self._remask(
            inputs.state, inputs.rows, inputs.cohort
        )
        needed = jax.device_get(gather_whole(self._placement, needed))
        widths = self._widths(needed)
        kept = put_whole(self._placement, choose_channels(needed, widths))
        whole = state, inputs.rows
        small_state, small_rows = self._shrink(whole, kept)
        rounds = self._rounds_of(widths)
        *after, sums = rounds(
            inputs._replace(state=small_state, rows=small_rows), test, wanted
        )
        self.seconds, self.compiled = rounds.seconds, rounds.compiled
        state, rows = self._expand(tuple(after), kept, whole)
        return state, rows, sums | facts | self._expand_counts(sums, kept, flags)

    def _widths(self, needed: Mapping[str, np.ndarray]) -> Widths:
        """How many channels stay; those of a compiled round if it is close enough."""
        least = {name: int(flags.sum()) for name, flags in needed.items()}
        wanted = {
            name: round_up(least[name], len(flags), MULTIPLE)
            for name, flags in needed.items()
        }
        wide_enough = [
            dict(key)
            for key in self._rounds
            if all(width >= least[name] for name, width in key)
        ]
        best = min(wide_enough, key=self._macs, default=wanted)
        return best if self._macs(best) <= SPARE * self._macs(wanted) else wanted

    def _macs(self, widths: Widths) -> float:
        model = smaller_model(self._learning.model, widths)
        found = costs.macs(model, self._shape)
        # Training computes all channels, those that gates drop, too.
        return found.dense + found.gates

    def _rounds_of(self, widths: Widths) -> WholeRounds:
        key = tuple(sorted(widths.items()))
        if key not in self._rounds:
            small = self._rebuild(smaller_model(self._learning.model, widths))
            train = _masked(small).train
            self._rounds[key] = WholeRounds(small.task, train, self._placement)
        return self._rounds[key]


def _expand_counts(
    sums: Sums, groups: Sequence[ChannelGroup], kept: KeptIndices, flags: Tree
) -> Sums:
    """Puts the counts of the channels that gates select at their places in the model.

    Args:
      sums: of the round, leaves [cohort_size, ...].
      groups: of the whole model.
      kept: which of their channels stayed.
      flags: of the whole model, as `gate_flags` makes them.
    """

    def name(path: tuple[Any, ...]) -> str:
        return f"selected/{array_name(path[:-1]).removesuffix('/gate')}"

    def small(path: tuple[Any, ...], flag: jax.Array) -> Tree:
        del flag
        return sums.get(name(path), ())

    def full(path: tuple[Any, ...], flag: jax.Array) -> Tree:
        # Other personal layers with a bias have flags, too, but no counts.
        if (counts := sums.get(name(path))) is None:
            return ()
        return jnp.zeros((*counts.shape[:-1], flag.size), counts.dtype)

    map_with_path = jax.tree_util.tree_map_with_path
    found = expand(
        map_with_path(small, flags), groups, kept, map_with_path(full, flags)
    )
    return {name(path): x for path, x in jax.tree_util.tree_leaves_with_path(found)}


def _masked(learning: Learning) -> MaskedRound:
    masked = learning.algorithm.masked
    assert masked is not None, "settings refuse compact_training without masks"
    return masked
