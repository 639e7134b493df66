"""AutoFLIP: masks from how far weights move when clients explore the loss alone.

    exploration   delta_i = (w_i^exp - w^0)^2 on every explorer, once        [P]
    guidance      G, the mean deviation, normalised array by array           [C]
    masks         weights below a quantile of G, then near-empty channels    [C], [R]
    rounds        a FedAvg, FedProx or SCAFFOLD under M^t                    [C]

Masks come once from all explorers (`fixed`), anew from those among each round's clients
(`participants`), or from guidance and the smoothed agreement of clients (`agreement`).

Tags: [P] stated by the paper, [C] taken from its authors' code, [R] reconstructed where
both are silent, contradict each other or fail. The rule for channels and the formulas
of agreement are [R].

References:
  Internò, Raponi, van Stein, Bäck, Olhofer, Jin, Hammer, Federated Hybrid Model Pruning
  through Loss Landscape Exploration, 2025, https://arxiv.org/abs/2405.10271v3, and,
  with client agreement, https://arxiv.org/abs/2405.10271v5. Code:
  https://github.com/ChristianInterno/AutoFLIP.

Choices:
  Only the abstracts of the paper and the authors' code could be read; its equations and
  tables could not. Masks change from round to round (`participants`), as version 3 says
  and the code means to. The threshold is a quantile of the guidance, and the low end is
  pruned. Guidance is scaled array by array (`minmax`); that prunes mostly the largest
  dense layer, which `rank` and `robust` do not. Kernels and embeddings are pruned; the
  code takes biases and norms, too (`prune_biases`). Rounds begin at w^0; the code goes
  on from what explorers have trained (`start_from`). How channels are removed is ours:
  the paper names structured pruning, the code has none. A hundredth of each array
  stays. The mask is enforced after every local step, and the server keeps what is
  pruned (`server_store`), so that a weight that comes back goes on from its last value.
  Delivered is the model under the mask of all explorers, with agreement under the last.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple

import jax
import optax

from fedjax_prune.algorithms.autoflip import schedules
from fedjax_prune.algorithms.autoflip.exploration import (
    EXPLORE_BASES,
    WEIGHTINGS,
    Exploration,
    make_exploration,
    what_explorers_left,
)
from fedjax_prune.algorithms.fedavg import fedavg
from fedjax_prune.algorithms.fedprox import fedprox
from fedjax_prune.algorithms.scaffold import scaffold
from fedjax_prune.engine.aggregate import Gathered
from fedjax_prune.engine.contract import FederatedAlgorithm, Preparation
from fedjax_prune.engine.devices import Placement
from fedjax_prune.engine.rounds import with_preparation
from fedjax_prune.engine.solver import LocalSolver
from fedjax_prune.engine.stopping import Monitor, Patience
from fedjax_prune.engine.transforms import Mu
from fedjax_prune.fields import DECAY, FRACTION, SHARE, at_least, checked, one_of
from fedjax_prune.pruning.mask_rule import (
    STRUCTURED,
    MaskRule,
    MinKeep,
    StructuredDensity,
    StructuredResidual,
    Threshold,
    ThresholdScope,
    check_rule,
)
from fedjax_prune.pruning.masked_round import (
    SERVER_STORES,
    ServerStore,
    masked,
    with_masks,
)
from fedjax_prune.pruning.masks import NORMALIZATIONS, prunable
from fedjax_prune.types import (
    ClientState,
    RoundInputs,
    ServerState,
    Sums,
    Task,
    Tree,
)


class MaskedBase(NamedTuple):
    """An algorithm that can train under AutoFLIP's masks.

    Attributes:
      build: (task, solver, server_tx, mu) -> it.
      stores: what `server_store` may be with it.
    """

    build: Callable[..., FederatedAlgorithm]
    stores: tuple[str, ...] = SERVER_STORES


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
        ("dense",),
    ),
}
"""name -> the algorithm that trains under the masks."""

MASK_SCHEDULES = {"fixed": 1, "participants": 1, "agreement": 10}
"""name -> rounds between its masks where nothing else is said."""
START_FROM = ("init", "explored_mean")


@checked
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
        float, SHARE, "Share of the clients that explore, p_X [C]."
    ] = 1.0,
    explore_epochs: Annotated[
        int, at_least(1), "Epochs of an explorer at most [C]."
    ] = 150,
    explore_patience: Patience = 40,
    explore_monitor: Monitor = "epoch",
    explore_base: Annotated[
        str,
        one_of(EXPLORE_BASES),
        "Where deviations are measured from, w^0 [R] or, warm, where the explorer is "
        "after one epoch [C].",
    ] = "init",
    explorer_weighting: Annotated[
        str,
        one_of(WEIGHTINGS),
        "Weight of an explorer, the same for all [C] or by its examples.",
    ] = "uniform",
    start_from: Annotated[
        str,
        one_of(START_FROM),
        "Where the rounds begin, at w^0 [R] or at the mean of the explorers [C].",
    ] = "init",
    guidance_norm: Annotated[
        str,
        one_of(NORMALIZATIONS),
        "How each array's deviations become guidance; minmax, robust [C], rank, none "
        "[R].",
    ] = "minmax",
    threshold: Threshold = 0.3,
    threshold_scope: ThresholdScope = "global",
    prune_biases: Annotated[
        bool, "Whether biases and norms are pruned, too [C]."
    ] = False,
    exempt_layers: Annotated[
        Sequence[str],
        "Shell patterns of arrays, conv1/*, that are not pruned, except for weights "
        "that read removed channels; their own channels stay.",
    ] = (),
    min_keep: MinKeep = 0.01,
    structured_rule: Annotated[
        str, one_of(STRUCTURED), "Which channels are removed, too [R]."
    ] = "keep_ratio",
    structured_density: StructuredDensity = 0.1,
    structured_share: Annotated[
        float, DECAY, "T_s of guidance_l1, share of each layer's channels that go [R]."
    ] = 0.0,
    structured_residual: StructuredResidual = False,
    mask_schedule: Annotated[
        str,
        one_of(MASK_SCHEDULES),
        "When masks are made, once, from each round's clients [C], or from guidance "
        "and the agreement of clients [P, formulas R].",
    ] = "participants",
    mask_every: Annotated[
        int, at_least(0), "Rounds between masks; 0 is 1, for agreement 10."
    ] = 0,
    agreement_rate: Annotated[
        float, SHARE, "Rate of the smoothing of agreement, rho [R]."
    ] = 0.1,
    agreement_power: Annotated[
        float, at_least(0), "Power of the agreement in the score, gamma [R]."
    ] = 1.0,
    agreement_change: Annotated[
        float,
        FRACTION,
        "Share of the entries that an update by agreement may change, zeta [R].",
    ] = 0.05,
    agreement_source: Annotated[
        str,
        one_of(schedules.SOURCES),
        "What agreement is taken of, votes of the exploration or signs of live updates "
        "[R].",
    ] = "votes",
    threshold_start: Annotated[
        float, DECAY, "T_init, where the ramp of agreement's threshold begins [R]."
    ] = 0.0,
    threshold_ramp: Annotated[
        int,
        at_least(0),
        "Rounds until agreement's threshold is reached; 0 for no ramp.",
    ] = 0,
    server_store: ServerStore = "dense",
) -> FederatedAlgorithm:
    """Builds AutoFLIP. The defaults are the spec's preset `autoflip-v3`.

    Args:
      task: the model and its loss.
      solver: local training, in exploration (with other epochs) and in rounds.
      server_tx: applied to the weighted mean of the deltas; the authors' is `damped`.

    The other fields are described where they are declared, in the signature.

    Returns:
      The algorithm. It explores in `prepare`.

    Raises:
      ValueError: if a number is out of range, a name unknown, a base does not allow the
        server's store, agreement ranks array by array, a pattern fits no array, or
        channels are to be removed of a model that does not say what they are.
    """
    if server_store not in MASKED_BASES[base].stores:
        allowed = " or ".join(MASKED_BASES[base].stores)
        raise ValueError(
            f"server_store must be {allowed} with base {base}, got {server_store!r}."
        )
    if mask_schedule == "agreement" and threshold_scope != "global":
        raise ValueError(
            f"threshold_scope must be global with agreement, got {threshold_scope!r}."
        )
    exploration = Exploration(
        share=explorer_share,
        epochs=explore_epochs,
        patience=explore_patience,
        monitor=explore_monitor,
        base=explore_base,
        weighting=explorer_weighting,
    )
    rule = MaskRule(
        prunable(
            jax.eval_shape(lambda: task.init(jax.random.key(0))).params,
            biases=prune_biases,
            exempt=exempt_layers,
        ),
        task.groups,
        normalization=guidance_norm,
        threshold=threshold,
        scope=threshold_scope,
        min_keep=min_keep,
        structured=structured_rule,
        density=structured_density,
        share=structured_share,
        residual=structured_residual,
    )
    check_rule(rule)
    every = mask_every or MASK_SCHEDULES[mask_schedule]
    match mask_schedule:
        case "fixed":
            schedule = schedules.fixed(rule)
        case "participants":
            schedule = schedules.participants(rule, every, explorer_weighting)
        case _:
            settings = schedules.Agreement(
                rate=agreement_rate,
                power=agreement_power,
                max_change=agreement_change,
                source=agreement_source,
                threshold_start=threshold_start,
                ramp=threshold_ramp,
            )
            schedule = schedules.agreement(rule, every, settings)
    below = MASKED_BASES[base].build(task, solver, server_tx, mu)
    masking = schedule.masking._replace(may=lambda tree: rule.prunable)
    algorithm = masked(task, below, masking, server_store=server_store)
    rounds = algorithm.masked
    assert rounds is not None
    explorer, start, explore = make_exploration(
        task, solver, exploration, schedule.keep, schedule.pool
    )

    def gather(
        gathered: Gathered, inputs: RoundInputs, placement: Placement
    ) -> tuple[Gathered, ClientState, Sums]:
        kept = inputs.rows.client
        own = inputs.rows._replace(client=kept.own)
        gathered, rows, sums = explore(gathered, inputs._replace(rows=own), placement)
        return gathered, rows._replace(client=kept._replace(own=rows.client)), sums

    def finish(
        state: ServerState, gathered: Gathered, key: jax.Array
    ) -> tuple[ServerState, Sums]:
        del key
        explored = what_explorers_left(gathered)
        if start_from == "explored_mean":
            params = jax.tree.map(lambda w, d: w - d, state.params, explored.delta)
            state = state._replace(params=params)
        state = with_masks(state, *schedule.begin(explored))
        return state, rounds.facts(state)

    def explore_messages(state: ServerState) -> tuple[Tree, Tree]:
        sent = (state.params,) * (1 + (start_from == "explored_mean"))
        return state.params, sent

    return with_preparation(
        algorithm,
        Preparation(
            solver=explorer,
            num_clients=exploration.num_clients,
            start=start,
            gather=gather,
            finish=finish,
            messages=explore_messages,
        ),
    )
