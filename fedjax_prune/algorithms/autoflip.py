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
"""

from collections.abc import Callable, Sequence

import jax
import optax

from fedjax_prune.aggregate import Gathered
from fedjax_prune.algorithms import schedules
from fedjax_prune.algorithms.exploration import (
    Exploration,
    check_exploration,
    make_exploration,
    what_explorers_left,
)
from fedjax_prune.algorithms.fedavg import fedavg
from fedjax_prune.algorithms.fedprox import fedprox
from fedjax_prune.algorithms.masked import masked, with_masks
from fedjax_prune.algorithms.scaffold import scaffold
from fedjax_prune.contract import FederatedAlgorithm, Preparation
from fedjax_prune.hybrid import MaskRule, check_rule
from fedjax_prune.placement import Placement
from fedjax_prune.pruning import prunable
from fedjax_prune.rounds import with_preparation
from fedjax_prune.solver import LocalSolver
from fedjax_prune.types import (
    ClientState,
    RoundInputs,
    ServerState,
    Sums,
    Task,
    Tree,
)

MASKED_BASES: dict[str, Callable[..., FederatedAlgorithm]] = {
    "fedavg": lambda task, solver, server_tx, mu: fedavg(task, solver, server_tx),
    "fedprox": lambda task, solver, server_tx, mu: fedprox(
        task, solver, server_tx, mu=mu
    ),
    "scaffold": lambda task, solver, server_tx, mu: scaffold(task, solver, server_tx),
}
"""name -> the algorithm that trains under the masks."""

MASK_SCHEDULES = {"fixed": 1, "participants": 1, "agreement": 10}
"""name -> rounds between its masks where nothing else is said."""
START_FROM = ("init", "explored_mean")


def autoflip(
    task: Task,
    solver: LocalSolver,
    server_tx: optax.GradientTransformation,
    *,
    base: str = "fedavg",
    mu: float = 0.01,
    explorer_share: float = 1.0,
    explore_epochs: int = 150,
    explore_patience: int = 40,
    explore_monitor: str = "epoch",
    explore_base: str = "init",
    explorer_weighting: str = "uniform",
    start_from: str = "init",
    guidance_norm: str = "minmax",
    threshold: float = 0.3,
    threshold_scope: str = "global",
    prune_biases: bool = False,
    exempt_layers: Sequence[str] = (),
    min_keep: float = 0.01,
    structured_rule: str = "keep_ratio",
    structured_density: float = 0.1,
    structured_share: float = 0.0,
    structured_residual: bool = False,
    mask_schedule: str = "participants",
    mask_every: int = 0,
    agreement_rate: float = 0.1,
    agreement_power: float = 1.0,
    agreement_change: float = 0.05,
    agreement_source: str = "votes",
    threshold_start: float = 0.0,
    threshold_ramp: int = 0,
    server_store: str = "dense",
) -> FederatedAlgorithm:
    """Builds AutoFLIP. The defaults are the spec's preset `autoflip-v3`.

    Args:
      task: the model and its loss.
      solver: local training, in exploration (with other epochs) and in rounds.
      server_tx: applied to the weighted mean of the deltas; the authors' is `damped`.
      base: a name in MASKED_BASES, what trains under the masks.
      mu: of fedprox.
      explorer_share: p_X in (0, 1] of the clients explore [C].
      explore_epochs: of an explorer at most, at least 1 [C].
      explore_patience: epochs without a lower loss before it stops, at least 1 [C].
      explore_monitor: `epoch`, the epoch's mean loss [R], or `last_batch` [C].
      explore_base: deviations are from `init` [R], or `warm`, after one epoch [C].
      explorer_weighting: `uniform` [C] or `samples`.
      start_from: rounds begin at `init`, w^0 [R], or at the `explored_mean` [C].
      guidance_norm: `minmax`, `robust` [C], `rank`, `none` [R].
      threshold: T_p, share of the weights to prune, in [0, 1) [C].
      threshold_scope: `global` [C] or `per_tensor`; agreement ranks globally.
      prune_biases: prune biases and norms, too [C].
      exempt_layers: shell patterns of arrays, `conv1/*`, that are not pruned, but for
        weights that read removed channels; their own channels stay.
      min_keep: share of each array that stays before channels are removed, in
        [0, 1] [R].
      structured_rule: `keep_ratio`, `guidance_l1` or `off` [R].
      structured_density: theta_s of keep_ratio, at most 1; below 0 is off.
      structured_share: T_s of guidance_l1, in [0, 1).
      structured_residual: channels that are added may go where all branches agree.
      mask_schedule: `fixed`, `participants` [C] or `agreement` [P, formulas R].
      mask_every: rounds between masks; 0 is 1, for agreement 10.
      agreement_rate: rho, in (0, 1].
      agreement_power: gamma, at least 0.
      agreement_change: zeta, share of the entries that an update may change, in [0, 1].
      agreement_source: `votes` or `update_sign`.
      threshold_start: T_init of the ramp, in [0, 1).
      threshold_ramp: rounds until agreement's threshold is reached; 0 for no ramp.
      server_store: `dense` or `sparse`, what the server keeps of what is pruned; with
        scaffold `dense`.

    Returns:
      The algorithm. It explores in `prepare`.

    Raises:
      ValueError: if a number is out of range, a name unknown, or channels are to be
        removed of a model that does not say what they are.
    """
    for name, value, known in (
        ("base", base, MASKED_BASES),
        ("start_from", start_from, START_FROM),
        ("mask_schedule", mask_schedule, MASK_SCHEDULES),
        ("agreement_source", agreement_source, schedules.SOURCES),
    ):
        if value not in known:
            raise ValueError(
                f"{name} must be one of {', '.join(known)}, got {value!r}."
            )
    exploration = Exploration(
        share=explorer_share,
        epochs=explore_epochs,
        patience=explore_patience,
        monitor=explore_monitor,
        base=explore_base,
        weighting=explorer_weighting,
    )
    check_exploration(exploration)
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
    if mask_every < 0:
        raise ValueError(f"mask_every must be at least 0, got {mask_every}.")
    if (base, server_store) == ("scaffold", "sparse"):
        raise ValueError(
            "server_store must be dense with base scaffold, whose controls stay, got "
            "'sparse'."
        )
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
            schedules.check_agreement(settings, threshold_scope)
            schedule = schedules.agreement(rule, every, settings)
    below = MASKED_BASES[base](task, solver, server_tx, mu)
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
