"""The rule that makes masks of single weights and whole channels from deviations.

These are steps 8 to 17 of AutoFLIP.
"""

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_prune.fields import BELOW_ONE, FRACTION, at_most, one_of
from fedjax_prune.layers import ChannelGroup
from fedjax_prune.models.channels import find_leaf
from fedjax_prune.pruning.guidance import guidance_matrix
from fedjax_prune.pruning.masks import (
    SCOPES,
    guard,
    lowest_channels,
    prunable,
    removable,
    structured_masks,
    unstructured_masks,
)
from fedjax_prune.types import Task, Tree

STRUCTURED = ("keep_ratio", "guidance_l1", "off")

Threshold = Annotated[float, BELOW_ONE, "Share of the weights to prune, T_p."]
ThresholdScope = Annotated[
    str,
    one_of(SCOPES),
    "Whether weights are ranked in the whole network [C] or in each array [R].",
]
MinKeep = Annotated[
    float,
    FRACTION,
    "Share of each array that stays before channels are removed, whatever its scores; "
    "with 0 an array may lose all its entries, which ends a run [R].",
]
StructuredDensity = Annotated[
    float,
    at_most(1),
    "theta_s of keep_ratio: channels of which at most that share is kept go; below 0 "
    "none go [R].",
]
StructuredResidual = Annotated[
    bool, "Whether channels that are added may go where all branches agree."
]


class GuardedMasks(NamedTuple):
    """Masks, and how many entries the guard has kept.

    Attributes:
      masks: bool, like the parameters, False = pruned.
      guarded: [] int32, entries that only the guard has kept, counted before channels
        were removed.
    """

    masks: Tree
    guarded: jax.Array


class MaskRule(NamedTuple):
    """The settings by which deviations become masks, AutoFLIP's steps 8 to 17.

    They are fields of the algorithms that have a rule, and are checked there; the
    defaults of these fields are declared here.

    Attributes:
      prunable: a bool for each array.
      groups: of the model.
      normalization: of `guidance_matrix`.
      threshold: T_p of `unstructured_masks`.
      scope: of `unstructured_masks`.
      min_keep: of `guard`.
      structured: how channels are removed: `keep_ratio` by `structured_masks`,
        `guidance_l1` by `lowest_channels`, `off` not at all.
      density: theta_s of `keep_ratio`.
      share: T_s of `guidance_l1`.
      residual: of `keep_ratio` and `guidance_l1`.
    """

    prunable: Tree
    groups: Sequence[ChannelGroup] | None
    normalization: str = "minmax"
    threshold: Threshold = 0.3
    scope: ThresholdScope = "global"
    min_keep: MinKeep = 0.01
    structured: str = "keep_ratio"
    density: StructuredDensity = 0.1
    share: float = 0.0
    residual: StructuredResidual = False

    def masks(self, deviations: Tree) -> GuardedMasks:
        """Makes masks from deviations, which are like the parameters."""
        guidance = guidance_matrix(deviations, normalization=self.normalization)
        masks = unstructured_masks(
            guidance, self.prunable, self.threshold, scope=self.scope
        )
        return self.complete(masks, guidance)

    def removed_groups(self) -> list[ChannelGroup]:
        """The groups whose channels may be removed: none has an exempt producer."""
        return [
            group
            for group in self.groups or ()
            if all(find_leaf(self.prunable, slot.path) for slot in group.producers)
        ]

    def complete(self, masks: Tree, scores: Tree) -> GuardedMasks:
        """Guards masks of single weights, then removes channels.

        Args:
          masks: bool, of single weights.
          scores: like `masks`; the guard keeps the entries of largest score.
        """
        kept = guard(masks, scores, self.prunable, self.min_keep)
        guarded = sum(
            (k & ~m).sum(dtype=jnp.int32)
            for k, m in zip(jax.tree.leaves(kept), jax.tree.leaves(masks), strict=True)
        )
        groups = self.removed_groups()
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
        return GuardedMasks(kept, jnp.asarray(guarded, jnp.int32))


DEFAULT_RULE = MaskRule(prunable={}, groups=())
"""A rule with all defaults, from which the algorithms' fields take theirs."""


def make_rule(
    task: Task, *, biases: bool = False, exempt: Sequence[str] = (), **settings: Any
) -> MaskRule:
    """Makes the rule of a model.

    Args:
      task: of the model.
      biases: whether biases and norms may be pruned, too.
      exempt: shell patterns of arrays that may not be pruned.
      settings: of MaskRule, in their ranges.

    Raises:
      ValueError: if `prunable` refuses the patterns or the model, if the rule removes
        channels and the model does not say what its channels are, or if it removes a
        share of them and none can be removed.
    """
    may = prunable(task.shapes.params, biases=biases, exempt=exempt)
    rule = MaskRule(may, task.groups, **settings)
    _require_channels(rule)
    return rule


def _require_channels(rule: MaskRule) -> None:
    if rule.groups is None and rule.structured != "off":
        raise ValueError(
            f"structured_rule must be off for a model without channel_groups, "
            f"got {rule.structured!r}."
        )
    groups = removable(rule.removed_groups(), residual=rule.residual)
    if not groups and rule.structured == "guidance_l1":
        raise ValueError(
            "structured_rule must be keep_ratio or off for a model without channels "
            "that can be removed, or whose kernels exempt_layers keeps, got "
            f"{rule.structured!r}."
        )
