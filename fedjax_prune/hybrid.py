"""Masks of single weights and whole channels by one rule: AutoFLIP, steps 8 to 17."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_prune.channels import find_leaf
from fedjax_prune.pruning import (
    NORMALIZATIONS,
    SCOPES,
    guard,
    guidance_matrix,
    lowest_channels,
    structured_masks,
    unstructured_masks,
)
from fedjax_prune.types import ChannelGroup, Tree

STRUCTURED = ("keep_ratio", "guidance_l1", "off")


class Hybrid(NamedTuple):
    """Masks of single weights and of whole channels.

    Attributes:
      masks: bool, like the parameters.
      guarded: [] int32, entries that only the guard has kept, before channels went.
    """

    masks: Tree
    guarded: jax.Array


class MaskRule(NamedTuple):
    """All that makes masks of deviations, AutoFLIP's steps 8 to 17.

    Attributes:
      prunable: a bool for each array.
      groups: of the model.
      normalization: of `guidance_matrix`.
      threshold: T_p of `unstructured_masks`, like the next two.
      scope: of the threshold.
      min_keep: of the guard.
      structured: one of STRUCTURED: `keep_ratio`, by `structured_masks`;
        `guidance_l1`, by `lowest_channels`; `off`.
      density: theta_s of `keep_ratio`.
      share: T_s of `guidance_l1`.
      residual: whether channels that are added may go.
    """

    prunable: Tree
    groups: Sequence[ChannelGroup] | None
    normalization: str = "minmax"
    threshold: float = 0.3
    scope: str = "global"
    min_keep: float = 0.01
    structured: str = "keep_ratio"
    density: float = 0.1
    share: float = 0.0
    residual: bool = False

    def masks(self, deviations: Tree) -> Hybrid:
        """The masks that deviations call for."""
        guidance = guidance_matrix(deviations, normalization=self.normalization)
        masks = unstructured_masks(
            guidance, self.prunable, self.threshold, scope=self.scope
        )
        return self.complete(masks, guidance)

    def complete(self, masks: Tree, scores: Tree) -> Hybrid:
        """Guards masks of single weights, then removes channels."""
        kept = guard(masks, scores, self.prunable, self.min_keep)
        guarded = sum(
            (k & ~m).sum(dtype=jnp.int32)
            for k, m in zip(jax.tree.leaves(kept), jax.tree.leaves(masks), strict=True)
        )
        # A channel of an exempt array stays.
        groups = [
            group
            for group in self.groups or ()
            if all(find_leaf(self.prunable, slot.path) for slot in group.producers)
        ]
        match self.structured:
            case "keep_ratio":
                kept = structured_masks(
                    kept,
                    groups,
                    max_density=self.density,
                    residual=self.residual,
                )
            case "guidance_l1":
                kept = lowest_channels(
                    kept, scores, groups, share=self.share, residual=self.residual
                )
        return Hybrid(kept, jnp.asarray(guarded, jnp.int32))


def check_rule(rule: MaskRule) -> None:
    """Refuses a rule that makes no masks.

    Raises:
      ValueError: if a number is out of range, a name unknown, or channels are to be
        removed of a model that does not say what they are.
    """
    for name, value, known in (
        ("guidance_norm", rule.normalization, NORMALIZATIONS),
        ("threshold_scope", rule.scope, SCOPES),
        ("structured_rule", rule.structured, STRUCTURED),
    ):
        if value not in known:
            raise ValueError(
                f"{name} must be one of {', '.join(known)}, got {value!r}."
            )
    for name, value, holds, allowed in (
        ("threshold", rule.threshold, 0 <= rule.threshold < 1, "in [0, 1)"),
        ("min_keep", rule.min_keep, 0 <= rule.min_keep <= 1, "in [0, 1]"),
        ("structured_density", rule.density, rule.density <= 1, "at most 1"),
        ("structured_share", rule.share, 0 <= rule.share < 1, "in [0, 1)"),
    ):
        if not holds:
            raise ValueError(f"{name} must be {allowed}, got {value}.")
    if rule.groups is None and rule.structured != "off":
        raise ValueError(
            f"structured_rule must be off for a model without channel_groups, "
            f"got {rule.structured!r}."
        )
