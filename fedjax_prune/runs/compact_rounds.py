"""Rounds on the smaller model that masks leave.

Masks are made on the whole model, then the round runs on one without the channels that
they have removed, and its result is put back. The compiled round depends on how many
channels stay, not on which, and their numbers are rounded up, so few are compiled.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from fedjax_prune.models import costs
from fedjax_prune.models.channels import alive_channels
from fedjax_prune.pruning.smaller import (
    choose_channels,
    expand,
    round_up,
    shrink,
    smaller_model,
)
from fedjax_prune.runs.experiment import Experiment
from fedjax_prune.engine.devices import Placement, put_whole
from fedjax_prune.runs.programs import compile_programs
from fedjax_prune.types import ClientState, Cohort, ServerState, Sums

MULTIPLE = 8
"""Numbers of channels are rounded up to multiples of it."""
SPARE = 1.1
"""A round compiled before is taken if it costs at most so many times the MACs."""

Widths = Mapping[str, int]


class CompactRounds:
    """Called like the compiled `Programs.train`.

    Attributes:
      seconds: spent compiling the round in the last call; the short programs that rank,
        cut and put back are compiled in its own time.
    """

    def __init__(
        self,
        experiment: Experiment,
        placement: Placement,
        rebuild: Callable[[Any], Experiment],
    ):
        """Makes rounds that compile when they are called.

        Args:
          experiment: with an algorithm that masks.
          placement: where the rounds run.
          rebuild: smaller model -> the same experiment with it.
        """
        masked = experiment.algorithm.masked
        assert masked is not None
        self.seconds = 0.0
        self._experiment, self._rebuild = experiment, rebuild
        self._placement = placement
        self._shape = experiment.train.images.shape[1:]
        self._groups = groups = experiment.model.channel_groups(self._shape)
        self._compiled: dict[tuple[tuple[str, int], ...], Any] = {}

        @jax.jit
        def remask(
            state: ServerState, rows: ClientState, cohort: Cohort
        ) -> tuple[ServerState, Sums, dict[str, jax.Array]]:
            state = masked.remask(state, rows, cohort)
            masks = state.server.masks
            alive = {group.name: alive_channels(masks, group) for group in groups}
            return state, masked.facts(state), alive

        self._remask = remask
        self._shrink = jax.jit(lambda tree, kept: shrink(tree, groups, kept))
        self._expand = jax.jit(
            lambda small, kept, full: expand(small, groups, kept, full),
            donate_argnums=2,
        )

    def __call__(
        self, state: ServerState, rows: ClientState, *arguments: Any
    ) -> tuple[ServerState, ClientState, Sums]:
        """Runs one round; the arguments are those of `Programs.train`."""
        cohort = arguments[2]
        state, facts, alive = self._remask(state, rows, cohort)
        alive = jax.device_get(alive)
        widths = self._widths(alive)
        kept = put_whole(self._placement, choose_channels(alive, widths))
        small = self._shrink((state, rows), kept)
        run = self._round(widths, small, arguments)
        *after, sums = run(*small, *arguments)
        state, rows = self._expand(tuple(after), kept, (state, rows))
        return state, rows, sums | facts

    def _widths(self, alive: Mapping[str, np.ndarray]) -> Widths:
        """How many channels stay, as in a compiled round if one is near."""
        least = {name: int(flags.sum()) for name, flags in alive.items()}
        wanted = {
            name: round_up(least[name], len(flags), MULTIPLE)
            for name, flags in alive.items()
        }
        wide_enough = [
            dict(key)
            for key in self._compiled
            if all(width >= least[name] for name, width in key)
        ]
        best = min(wide_enough, key=self._macs, default=wanted)
        return best if self._macs(best) <= SPARE * self._macs(wanted) else wanted

    def _macs(self, widths: Widths) -> float:
        model = smaller_model(self._experiment.model, widths)
        return costs.macs(model, self._shape).kept

    def _round(self, widths: Widths, small: tuple, arguments: tuple) -> Any:
        key, self.seconds = tuple(sorted(widths.items())), 0.0
        if key not in self._compiled:
            began = time.monotonic()
            experiment = self._rebuild(smaller_model(self._experiment.model, widths))
            masked = experiment.algorithm.masked
            assert masked is not None
            under_masks = experiment.algorithm._replace(round=masked.train)
            programs = compile_programs(
                experiment._replace(algorithm=under_masks), self._placement
            )
            self._compiled[key] = programs.train.lower(*small, *arguments).compile()
            self.seconds = time.monotonic() - began
        return self._compiled[key]
