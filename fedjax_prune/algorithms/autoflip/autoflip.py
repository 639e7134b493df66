"""AutoFLIP: masks from how far weights move when clients explore the loss alone.

    exploration   delta_i = (w_i^exp - w^0)^2 on every explorer, once        [P]
    guidance      G, the mean deviation, normalised array by array           [C]
    masks         prune weights below a quantile of G, then sparse channels  [C], [R]
    rounds        a FedAvg, FedProx or SCAFFOLD under M^t                    [C]

Masks are made once from all explorers (`fixed`), each round from the explorers among
its clients (`participants`), or from guidance and the smoothed agreement of clients
(`agreement`).

Tags name the source of a rule: [P] the paper, [C] its authors' code, [R] a
reconstruction, where both say nothing, contradict each other or fail. The rule for
channels and the formulas of agreement are [R].

References:
  Internò, Raponi, van Stein, Bäck, Olhofer, Jin, Hammer, Federated Hybrid Model Pruning
  through Loss Landscape Exploration, 2025, https://arxiv.org/abs/2405.10271v3, and,
  with client agreement, https://arxiv.org/abs/2405.10271v5. Code:
  https://github.com/ChristianInterno/AutoFLIP.

Choices:
  Only the abstracts of the paper and the authors' code could be read; its equations and
  tables could not. Masks change from round to round (`participants`), as version 3 says
  and the code intends. The threshold is a quantile of the guidance, and weights below
  it are pruned. Guidance is scaled array by array (`minmax`); that prunes mostly the
  largest dense layer, which `rank` and `robust` do not. Kernels and embeddings are
  pruned; the code prunes biases and norms, too (`prune_biases`). Rounds begin at w^0;
  the code goes on from the parameters that explorers have trained (`start_from`). The
  rule for channels is ours: the paper names structured pruning, the code has none. A
  hundredth of each array stays. The mask is enforced after every local step, and the
  server keeps the values of pruned weights (`server_store`), so that a weight that
  comes back goes on from its last value. The delivered model is under the mask of all
  explorers, and with `agreement` under the last mask.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple

import optax

from fedjax_prune.algorithms.autoflip import schedules
from fedjax_prune.algorithms.autoflip.exploration import (
    EXPLORE_BASES,
    WEIGHTINGS,
    Exploration,
)
from fedjax_prune.algorithms.autoflip.preparation import START_FROM, make_preparation
from fedjax_prune.algorithms.fedavg import fedavg
from fedjax_prune.algorithms.fedprox import fedprox
from fedjax_prune.algorithms.scaffold import scaffold
from fedjax_prune.engine.contract import (
    FederatedAlgorithm,
)
from fedjax_prune.engine.rounds import with_preparation
from fedjax_prune.engine.solver import LocalSolver
from fedjax_prune.engine.stopping import Monitor, Patience
from fedjax_prune.engine.transforms import Mu
from fedjax_prune.fields import (
    ABOVE_ZERO,
    BELOW_ONE,
    FRACTION,
    Relation,
    at_least,
    checked,
    one_of,
    related,
)
from fedjax_prune.pruning.guidance import NORMALIZATIONS
from fedjax_prune.pruning.mask_rule import (
    DEFAULT_RULE,
    STRUCTURED,
    MinKeep,
    StructuredDensity,
    StructuredResidual,
    Threshold,
    ThresholdScope,
    make_rule,
)
from fedjax_prune.pruning.masked_round import ServerStore, masked
from fedjax_prune.types import (
    Task,
)


class MaskedBase(NamedTuple):
    """An algorithm that can train under AutoFLIP's masks.

    Attributes:
      build: (task, solver, server_tx, mu) -> the algorithm.
      needs_dense: whether `server_store` must be dense with it.
    """

    build: Callable[..., FederatedAlgorithm]
    needs_dense: bool = False


MASKED_BASES = {
    "fedavg": MaskedBase(
        lambda task, solver, server_tx, mu: fedavg(task, solver, server_tx)
    ),
    "fedprox": MaskedBase(
        lambda task, solver, server_tx, mu: fedprox(task, solver, server_tx, mu=mu)
    ),
    # A sparse server would forget controls that its clients keep.
    "scaffold": MaskedBase(
        lambda task, solver, server_tx, mu: scaffold(task, solver, server_tx),
        needs_dense=True,
    ),
}
"""For each name, the algorithm that trains under the masks."""

_EXPLORATION, _AGREEMENT = Exploration(), schedules.Agreement()


@checked
@related(
    Relation(
        ("server_store", "base"),
        lambda store, base: store == "dense" or not MASKED_BASES[base].needs_dense,
        "{server_store} must be dense with {base} {1}, got {0!r}",
    ),
    Relation(
        ("threshold_scope", "mask_schedule"),
        lambda scope, schedule: scope == "global" or schedule != "agreement",
        "{threshold_scope} must be global with {mask_schedule} {1}, got {0!r}",
    ),
    Relation(
        ("structured_share", "structured_rule"),
        lambda share, rule: share > 0 or rule != "guidance_l1",
        "{structured_share} must be above 0 with {structured_rule} {1}, got {0}",
    ),
    Relation(
        ("threshold_ramp", "mask_schedule"),
        lambda ramp, schedule: ramp == 0 or schedule == "agreement",
        "{threshold_ramp} must be 0 with {mask_schedule} {1}, got {0}",
    ),
    Relation(
        ("threshold_start", "threshold_ramp"),
        lambda first, ramp: not first or ramp > 0,
        "{threshold_start} must be 0 with {threshold_ramp} {1}, got {0}",
    ),
)
def autoflip(
    task: Task,
    solver: LocalSolver,
    server_tx: optax.GradientTransformation,
    *,
    base: Annotated[
        str, one_of(MASKED_BASES), "Algorithm that trains under the masks."
    ] = "fedavg",
    mu: Mu = 0.01,
    explorer_share: Annotated[
        float, ABOVE_ZERO, "Share of the clients that explore, p_X [C]."
    ] = _EXPLORATION.share,
    explore_epochs: Annotated[
        int, at_least(1), "Epochs of an explorer at most [C]."
    ] = _EXPLORATION.epochs,
    explore_patience: Patience = _EXPLORATION.patience,
    explore_monitor: Monitor = _EXPLORATION.monitor,
    explore_base: Annotated[
        str,
        one_of(EXPLORE_BASES),
        "Where deviations are measured from, w^0 [R] or, warm, where the explorer is "
        "after one epoch [C].",
    ] = _EXPLORATION.base,
    explorer_weighting: Annotated[
        str,
        one_of(WEIGHTINGS),
        "Weight of an explorer, the same for all [C] or by its examples.",
    ] = _EXPLORATION.weighting,
    start_from: Annotated[
        str,
        one_of(START_FROM),
        "Where the rounds begin, at w^0 [R] or at the mean of the explorers [R].",
    ] = "init",
    guidance_norm: Annotated[
        str,
        one_of(NORMALIZATIONS),
        "How each array's deviations become guidance; robust [C], rank and none [R].",
    ] = DEFAULT_RULE.normalization,
    threshold: Threshold = DEFAULT_RULE.threshold,
    threshold_scope: ThresholdScope = DEFAULT_RULE.scope,
    prune_biases: Annotated[
        bool, "Whether biases and norms are pruned, too [C]."
    ] = False,
    exempt_layers: Annotated[
        Sequence[str],
        "Shell patterns of arrays, conv1/*, that are not pruned, except for what "
        "belongs to removed channels; channels that exempt kernels write stay.",
    ] = (),
    min_keep: MinKeep = DEFAULT_RULE.min_keep,
    structured_rule: Annotated[
        str, one_of(STRUCTURED), "Which channels are removed, too [R]."
    ] = DEFAULT_RULE.structured,
    structured_density: StructuredDensity = DEFAULT_RULE.density,
    structured_share: Annotated[
        float,
        BELOW_ONE,
        "T_s of guidance_l1, share of each layer's channels that go [R].",
    ] = DEFAULT_RULE.share,
    structured_residual: StructuredResidual = DEFAULT_RULE.residual,
    mask_schedule: Annotated[
        str,
        one_of(schedules.MASK_SCHEDULES),
        "When masks are made, once, from each round's clients [C], or from guidance "
        "and the agreement of clients [P, formulas R].",
    ] = "participants",
    mask_every: Annotated[
        int, at_least(0), "Rounds between masks; 0 is 1, for agreement 10."
    ] = 0,
    agreement_rate: Annotated[
        float, ABOVE_ZERO, "Rate of the smoothing of agreement, rho [R]."
    ] = _AGREEMENT.rate,
    agreement_power: Annotated[
        float, at_least(0), "Power of the agreement in the score, gamma [R]."
    ] = _AGREEMENT.power,
    agreement_change: Annotated[
        float,
        FRACTION,
        "Share of the entries that an update by agreement may change, zeta [R].",
    ] = _AGREEMENT.max_change,
    agreement_source: Annotated[
        str,
        one_of(schedules.SOURCES),
        "What agreement is taken of, votes of the exploration or signs of live updates "
        "[R].",
    ] = _AGREEMENT.source,
    threshold_start: Annotated[
        float, BELOW_ONE, "T_init, where the ramp of agreement's threshold begins [R]."
    ] = _AGREEMENT.threshold_start,
    threshold_ramp: Annotated[
        int,
        at_least(0),
        "Rounds until agreement's threshold is reached; 0 for no ramp.",
    ] = _AGREEMENT.ramp,
    server_store: ServerStore = "dense",
) -> FederatedAlgorithm:
    """Builds AutoFLIP. The defaults follow version 3 of the paper.

    Args:
      task: the model and its loss.
      solver: local training, in exploration (with other epochs) and in rounds.
      server_tx: applied to the weighted mean of the deltas; the authors use `damped`.

    The other fields are described where they are declared, in the signature.

    Returns:
      The algorithm. It explores in `prepare`. `ServerState.server` is a MaskedServer,
      whose masks are bool and like the parameters.

    Raises:
      ValueError: if a number is out of range, a name unknown, `server_store` not
        possible with the base, `threshold_scope` not `global` with agreement,
        `structured_share` 0 with `guidance_l1`, a ramp without agreement,
        `threshold_start` without a ramp, or if a pattern fits no array, none that can
        be pruned is left, or channels are to be removed and the model does not say what
        they are or has none.

    References:
      Internò et al., https://arxiv.org/abs/2405.10271v3 and v5.

    Examples:
      >>> import fedjax_prune as fp
      >>> task = fp.make_task(fp.CNN(num_classes=3, width=0.1), (8, 8, 1))
      >>> solver, tx = fp.make_solver(), fp.make_server_tx("damped")
      >>> algorithm = fp.autoflip(task, solver, tx, explorer_share=0.3)
      >>> algorithm.prepare.num_clients(10), algorithm.prepare.solver.epochs
      (3, 150)
    """
    exploration = Exploration(
        share=explorer_share,
        epochs=explore_epochs,
        patience=explore_patience,
        monitor=explore_monitor,
        base=explore_base,
        weighting=explorer_weighting,
    )
    rule = make_rule(
        task,
        biases=prune_biases,
        exempt=exempt_layers,
        normalization=guidance_norm,
        threshold=threshold,
        scope=threshold_scope,
        min_keep=min_keep,
        structured=structured_rule,
        density=structured_density,
        share=structured_share,
        residual=structured_residual,
    )
    agreement = schedules.Agreement(
        rate=agreement_rate,
        power=agreement_power,
        max_change=agreement_change,
        source=agreement_source,
        threshold_start=threshold_start,
        ramp=threshold_ramp,
    )
    schedule = schedules.make_schedule(
        mask_schedule, rule, mask_every, explorer_weighting, agreement
    )
    below = MASKED_BASES[base].build(task, solver, server_tx, mu)
    masking = schedule.masking._replace(prunable=lambda tree: rule.prunable)
    algorithm = masked(task, below, masking, server_store=server_store)
    assert algorithm.masked is not None
    preparation = make_preparation(
        task=task,
        solver=solver,
        exploration=exploration,
        schedule=schedule,
        rounds=algorithm.masked,
        start_from=start_from,
    )
    return with_preparation(algorithm, preparation)
