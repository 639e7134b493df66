"""Schedules of AutoFLIP's masks: when they are made, and from whose deviations.

  fixed         once, from all explorers
  participants  every few rounds, from the explorers among the round's clients
  agreement     every few rounds, from guidance and the smoothed agreement of clients

References:
  AutoFLIP, https://arxiv.org/abs/2405.10271. In version 3 masks are "updated each FL
  round" [P]; its code takes the guidance of the round's participants [C]; versions 4
  and 5 name client agreement [P].

Choices:
  The formulas of agreement are reconstructions [R]: a score is the rank of the guidance
  times a power of the smoothed share of clients that vote for a weight. If none of a
  round's clients explored, masks stay with `participants`, and with `agreement` the
  agreement does. `participants` evaluates and delivers the model under the mask of all
  explorers, `agreement` under its last mask. The guard and the channels of `agreement`
  go by its score as well, in its first rounds by the guidance. Agreement from the signs
  of live updates starts at 1, and that of pruned weights stays.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_prune.algorithms.autoflip import agreement as agreeing
from fedjax_prune.algorithms.autoflip.exploration import Explored
from fedjax_prune.engine.clipping import SIGNS
from fedjax_prune.engine.contract import Received
from fedjax_prune.engine.floats import float_dtype
from fedjax_prune.pruning.guidance import guidance_matrix
from fedjax_prune.pruning.mask_rule import GuardedMasks, MaskRule
from fedjax_prune.pruning.masked_round import Masking, keep_masks
from fedjax_prune.pruning.masks import unstructured_masks
from fedjax_prune.types import (
    ClientState,
    Cohort,
    LocalResult,
    Mean,
    Message,
    ServerState,
    Tree,
)

MASK_SCHEDULES = {"fixed": 1, "participants": 1, "agreement": 10}
"""For each name, the rounds between its masks if nothing else is said."""
SOURCES = ("votes", "update_sign")


class Own(NamedTuple):
    """The part of a row that a schedule keeps.

    Attributes:
      explored: [] bool, whether the client was an explorer.
      tree: its deviation, float, or its votes, bool; zeros if it did not explore.
    """

    explored: jax.Array
    tree: Tree


class Schedule(NamedTuple):
    """A mask schedule.

    Attributes:
      masking: of the rounds.
      keep: deviation of an explorer -> what its row keeps.
      begin: Explored -> (GuardedMasks, guide) after the exploration.
      pool: (what its row keeps, its deviation) -> floats with the dtypes of the
        deviation, which are averaged to `Explored.pooled`.
    """

    masking: Masking
    keep: Callable[[Tree], Tree]
    begin: Callable[[Explored], tuple[GuardedMasks, Tree]]
    pool: Callable[[Tree, Tree], Tree] = lambda own, deviation: {}


class Agreement(NamedTuple):
    """The settings of `agreement`: fields of `autoflip`, and checked there.

    Their defaults are declared here, and `autoflip` reads them.

    Attributes:
      rate: rho, of the smoothing.
      power: gamma, of the agreement in the score.
      max_change: zeta, share of the entries that an update may change.
      source: `votes`, stored at the exploration, or `update_sign`, of live training.
      threshold_start: T_init of the ramp.
      ramp: rounds until the threshold is reached; 0 for no ramp.
    """

    rate: float = 0.1
    power: float = 1.0
    max_change: float = 0.05
    source: str = "votes"
    threshold_start: float = 0.0
    ramp: int = 0


class _Guide(NamedTuple):
    """The guide of `agreement`: each part is like the parameters."""

    rank: Tree  # with their dtypes, q
    agreement: Tree  # with their dtypes, A
    kept: Tree  # bool, before guard and channels


def make_schedule(
    name: str, rule: MaskRule, every: int, weighting: str, settings: Agreement
) -> Schedule:
    """Makes a schedule of masks by its name.

    Args:
      name: one of MASK_SCHEDULES.
      rule: makes masks.
      every: rounds between masks; 0 is the number in MASK_SCHEDULES. `fixed` does not
        read it.
      weighting: of explorers; only `participants` reads it.
      settings: only `agreement` reads them.
    """
    every = every or MASK_SCHEDULES[name]
    match name:
        case "fixed":
            return fixed(rule)
        case "participants":
            return participants(rule, every, weighting)
        case _:
            return agreement(rule, every, settings)


def fixed(rule: MaskRule) -> Schedule:
    """Makes the schedule with one mask for all rounds."""
    return Schedule(
        Masking(keep_masks),
        lambda deviation: {},
        lambda explored: (rule.masks(explored.deviation), {}),
    )


def participants(rule: MaskRule, every: int, weighting: str) -> Schedule:
    """Makes the schedule with masks from the deviations of each round's clients.

    If none of them explored, the masks stay. The delivered model is under the mask of
    all explorers, which the guide keeps.

    Args:
      rule: makes masks.
      every: rounds between masks, at least 1.
      weighting: of explorers, `uniform` or `samples`.
    """

    def refresh(
        state: ServerState, rows: ClientState, cohort: Cohort
    ) -> tuple[GuardedMasks, Tree]:
        own, server = rows.client.own, state.server
        weights = _weights(state, own, cohort, by_size=weighting == "samples")
        made = jax.lax.cond(
            (weights.sum() > 0) & (state.round % every == 0),
            lambda: rule.masks(_mean(own.tree, state.params, weights, cohort)),
            lambda: server.current,
        )
        return made, server.guide

    def own(params: Tree) -> Own:
        return Own(jnp.bool(False), jax.tree.map(jnp.zeros_like, params))

    def begin(explored: Explored) -> tuple[GuardedMasks, Tree]:
        made = rule.masks(explored.deviation)
        return made, made.masks

    def start(params: Tree) -> Tree:
        return optax.tree.ones_like(params, bool)

    return Schedule(
        Masking(refresh, start, own, delivered=lambda server: server.guide),
        lambda deviation: Own(jnp.bool(True), deviation),
        begin,
    )


def agreement(rule: MaskRule, every: int, settings: Agreement) -> Schedule:
    """Makes the schedule with masks from guidance and the agreement of clients.

    Args:
      rule: makes masks.
      every: rounds between masks, at least 1.
      settings: in their ranges.
    """
    by_votes = settings.source == "votes"

    def refresh(
        state: ServerState, rows: ClientState, cohort: Cohort
    ) -> tuple[GuardedMasks, Tree]:
        server = state.server
        guide, number = server.guide, state.round + 1
        if by_votes:
            own = rows.client.own
            weights = _weights(state, own, cohort, by_size=True)
            agreed = _mean(own.tree, state.params, weights, cohort)
            any_explored = weights.sum() > 0
            smoothed = agreeing.smooth(guide.agreement, agreed, settings.rate)
            now = optax.tree.where(any_explored, smoothed, guide.agreement)
            guide = guide._replace(agreement=now)

        made, kept = jax.lax.cond(
            number % every == 0,
            lambda: _renewed(rule, settings, guide, number),
            lambda: (server.current, guide.kept),
        )
        return made, guide._replace(kept=kept)

    def vote(deviation: Tree) -> Tree:
        return agreeing.votes(
            deviation, rule.prunable, rule.threshold, rule.normalization
        )

    def message(result: LocalResult) -> Message:
        signs = jax.tree.map(jnp.sign, result.delta)
        return {SIGNS: Mean(signs, result.num_examples)}

    def absorb(state: ServerState, received: Received) -> Tree:
        guide = state.server.guide
        agreed = jax.tree.map(jnp.abs, received[SIGNS])
        smoothed = agreeing.smooth(guide.agreement, agreed, settings.rate)
        now = jax.tree.map(jnp.where, state.server.masks, smoothed, guide.agreement)
        return guide._replace(agreement=now)

    def pool(own: Own, deviation: Tree) -> Tree:
        return jax.tree.map(lambda v, d: v.astype(d.dtype), own.tree, deviation)

    def begin(explored: Explored) -> tuple[GuardedMasks, Tree]:
        guidance = guidance_matrix(explored.deviation, normalization=rule.normalization)
        first = settings.threshold_start if settings.ramp else rule.threshold
        kept = unstructured_masks(guidance, rule.prunable, first, scope=rule.scope)
        agreed = explored.pooled
        if not by_votes:
            agreed = jax.tree.map(jnp.ones_like, guidance)
        rank = agreeing.ranks(guidance, rule.prunable)
        return rule.complete(kept, guidance), _Guide(rank, agreed, kept)

    if by_votes:
        masking = Masking(refresh, _first_guide, _no_votes)
        return Schedule(masking, lambda d: Own(jnp.bool(True), vote(d)), begin, pool)
    masking = Masking(refresh, _first_guide, message=message, absorb=absorb)
    return Schedule(masking, lambda deviation: {}, begin)


def _first_guide(params: Tree) -> _Guide:
    ones = jax.tree.map(jnp.ones_like, params)
    kept = optax.tree.ones_like(params, bool)
    return _Guide(jax.tree.map(jnp.zeros_like, params), ones, kept)


def _no_votes(params: Tree) -> Own:
    nothing = optax.tree.zeros_like(params, bool)
    return Own(jnp.bool(False), nothing)


def _renewed(
    rule: MaskRule, settings: Agreement, guide: _Guide, number: jax.Array
) -> tuple[GuardedMasks, Tree]:
    """Makes the masks of a round from guidance and agreement, and its `kept`."""
    score = jax.tree.map(
        lambda q, a: q * a**settings.power, guide.rank, guide.agreement
    )
    threshold = agreeing.ramped(
        rule.threshold, settings.threshold_start, settings.ramp, number
    )
    kept = agreeing.rescore(
        guide.kept, score, rule.prunable, threshold, settings.max_change
    )
    return rule.complete(kept, score), kept


def _weights(
    state: ServerState, own: Own, cohort: Cohort, *, by_size: bool
) -> jax.Array:
    """Gives each explorer of the cohort its weight, and all others 0.

    Returns:
      [num_places], with the dtype of the parameters.
    """
    sizes = jnp.asarray(cohort.sizes)
    weights = sizes if by_size else jnp.minimum(sizes, 1)
    weights = jnp.where(own.explored & (sizes > 0), weights, 0)
    return weights.astype(float_dtype(state.params))


def _mean(tree: Tree, params: Tree, weights: jax.Array, cohort: Cohort) -> Tree:
    """Averages rows, added by client id, so that places do not change bits.

    It divides once, as the mean over all explorers does. With everybody in the cohort
    they differ at most by the order of the sum.

    Returns:
      Arrays with the shapes and dtypes of the parameters.
    """
    order = jnp.argsort(jnp.asarray(cohort.client_ids))
    total_weight = jnp.maximum(weights.sum(), 1)

    def sum_leaf(rows: jax.Array, param: jax.Array) -> jax.Array:
        def add(i: jax.Array, total: jax.Array) -> jax.Array:
            row = rows[order[i]].astype(param.dtype)
            weight = weights[order[i]].astype(param.dtype)
            return total + jnp.where(weight > 0, weight * row, 0)

        added = jax.lax.fori_loop(0, rows.shape[0], add, jnp.zeros_like(param))
        return added / total_weight.astype(param.dtype)

    return jax.tree.map(sum_leaf, tree, params)
