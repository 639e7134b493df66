"""Rounds and algorithms, made from rules for clients and server."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from fedjax_prune.data.pairs import check_pairs
from fedjax_prune.engine.aggregate import Gathered
from fedjax_prune.engine.cohort_loop import train_cohort
from fedjax_prune.engine.contract import (
    ClientProgram,
    FederatedAlgorithm,
    Preparation,
    Received,
    Round,
    Rules,
)
from fedjax_prune.engine.devices import AXIS, ONE_DEVICE, SPLIT, WHOLE, Placement
from fedjax_prune.engine.keys import reproducible
from fedjax_prune.engine.placing import input_specs
from fedjax_prune.engine.robust import reduction_for
from fedjax_prune.engine.server import conclude_round
from fedjax_prune.engine.solver import LocalSolver
from fedjax_prune.models.platforms import tracing_for
from fedjax_prune.types import (
    ClientState,
    Cohort,
    RoundInputs,
    ServerState,
    Sums,
    Task,
    Tree,
    Unprepared,
    Variables,
)


def make_algorithm(
    task: Task, rules: Rules, messages: Callable[[ServerState], tuple[Tree, Tree]]
) -> FederatedAlgorithm:
    """Makes an algorithm out of its rules.

    Args:
      task: the model and its loss.
      rules: of clients and server.
      messages: as in FederatedAlgorithm.

    Returns:
      The algorithm, without preparation and masks. It delivers the state's `params` and
      `model_state`.

    Examples:
      FedAvg whose server never moves.

      >>> import fedjax_prune as fp
      >>> task = fp.make_task(fp.CNN(num_classes=3, width=0.1), (8, 8, 1))
      >>> base = fp.fedavg(task, fp.make_solver(), fp.make_server_tx())
      >>> rules = base.rules._replace(update=lambda state, received: state)
      >>> still = fp.make_algorithm(task, rules, base.messages)
      >>> still.rules.update("state before", received={})
      'state before'
    """
    return FederatedAlgorithm(
        init=rules.init,
        row=rules.row,
        round=make_round(task, rules.solver, rules.program, rules.update),
        messages=messages,
        deliver=lambda state: Variables(state.params, {}, state.model_state),
        rules=rules,
    )


def make_round(
    task: Task,
    solver: LocalSolver,
    program: Callable[[ServerState, Cohort], ClientProgram],
    update: Callable[[ServerState, Received], ServerState],
) -> Round:
    """Makes `FederatedAlgorithm.round`.

    Args:
      task: the model and its loss.
      solver: as in Rules.
      program: as in Rules.
      update: as in Rules.

    Returns:
      (inputs, placement=ONE_DEVICE) -> (state, rows, sums), the round.

    Raises:
      ValueError: by the round, if the inputs' rows, probe, data set and cohort do not
        belong together, or the cohort is not made for the placement.

    Examples:
      FedAvg by hand. The loss of a client with target y is (w - y)^2 / 2. From w = 0,
      one step of size 0.5 leads to 1 and to 3; their mean is 2.

      >>> import fedjax_prune as fp
      >>> def loss(variables, batch, key):
      ...     return (variables.params["w"] - batch.labels[0]) ** 2 / 2, ({}, {})
      >>> first = fp.Variables(params={"w": jnp.zeros(())}, personal={}, model_state={})
      >>> task = fp.Task(init=lambda key: first, loss=loss, predict=None)
      >>> solver = fp.make_solver(epochs=1, batch_size=1, lr=0.5)
      >>> algorithm = fp.fedavg(task, solver, fp.make_server_tx("sgd", lr=1.0))
      >>> rules, key = algorithm.rules, jax.random.key(0)
      >>> run = fp.make_round(task, solver, rules.program, rules.update)
      >>> dataset = fp.Dataset(jnp.zeros((2, 1, 1, 1), jnp.uint8), jnp.array([2, 6]))
      >>> population = fp.to_population([[0], [1]], num_examples=2)
      >>> cohort = fp.make_cohort(
      ...     population, [0, 1], num_lanes=2, epochs=1, batch_size=1
      ... )
      >>> rows = fp.ClientState(personal={}, client={})
      >>> inputs = fp.RoundInputs(algorithm.init(key), rows, dataset, cohort, key)
      >>> state, rows, sums = jax.jit(run)(inputs)
      >>> state.params["w"].item(), sums["steps"].tolist()
      (2.0, [1.0, 1.0])
    """
    train = make_training(task, solver, program)

    def round(
        inputs: RoundInputs, placement: Placement = ONE_DEVICE
    ) -> tuple[ServerState, ClientState, Sums]:
        """Runs one round.

        Args:
          inputs: what the round takes.
          placement: where it runs; its platform chooses the forms of convolutions.

        Returns:
          The state and the rows after the round, and the sums: of the task and the
          probe, `steps`, `nonfinite`, `arrived` and, by policy, `clipped`, `absent`,
          `slow` and `hostile`, [num_places, ...] float32, and the scalars
          `steps_executed` and `server_nonfinite`, the number of the state's arrays that
          are not finite after the server's step. If no message has arrived, the state
          stays, except that the round is counted; a private round takes the server's
          step with noise. An algorithm under masks makes the masks of a round before
          this, and they stay, too.

        Raises:
          ValueError, AssertionError: as `check_inputs`; with a private policy, also if
            clients keep something between rounds or send integers.
        """
        if placement.policy.privacy is not None:
            require_nothing_kept(inputs.rows)
        gathered, rows, sums = train(inputs, placement)
        cohort_size = jnp.asarray(inputs.cohort.cohort_size)
        after, facts = conclude_round(
            update,
            inputs.state,
            gathered,
            cohort_size=cohort_size,
            key=inputs.key,
            policy=placement.policy,
        )
        return after, rows, sums | facts

    return round


def require_nothing_kept(rows: Tree) -> None:
    """Refuses private rounds of clients that keep something.

    Args:
      rows: what they keep, or a part of it.

    Raises:
      ValueError: if there is an array.
    """
    if jax.tree.leaves(rows):
        raise ValueError(
            "a private round must have clients that keep nothing between rounds: no "
            "gates, no control variates and nothing of a pruning method."
        )


def make_training(
    task: Task,
    solver: LocalSolver,
    program: Callable[[ServerState, Cohort], ClientProgram],
) -> Callable[[RoundInputs, Placement], tuple[Gathered, ClientState, Sums]]:
    """Makes a round without the server's step.

    Args:
      task: the model and its loss.
      solver: as in Rules.
      program: as in Rules.

    Returns:
      (inputs, placement) -> what the clients have sent, the rows and the sums.
    """

    def train(
        inputs: RoundInputs, placement: Placement
    ) -> tuple[Gathered, ClientState, Sums]:
        check_inputs(inputs, placement)
        inputs = inputs._replace(
            dataset=jax.tree.map(jnp.asarray, inputs.dataset),
            cohort=jax.tree.map(jnp.asarray, inputs.cohort),
        )
        many = placement.mesh is not None
        reduction = reduction_for(placement)

        def on_one_device(
            inputs: RoundInputs,
        ) -> tuple[Gathered, ClientState, Sums, jax.Array]:
            cohort = inputs.cohort
            result = train_cohort(
                task=task,
                solver=solver,
                program=program(inputs.state, cohort),
                inputs=inputs,
                reduction=reduction,
                policy=placement.policy,
            )
            gathered = reduction.total(result.messages, cohort, many)
            # Every lane waits for the slowest device.
            trips = jax.lax.pmax(result.trips, AXIS) if many else result.trips
            executed = trips * (cohort.queues.shape[0] * placement.num_devices)
            return gathered, result.rows, result.sums, executed

        run = on_one_device
        if many:
            run = jax.shard_map(
                on_one_device,
                mesh=placement.mesh,
                in_specs=(input_specs(inputs),),
                out_specs=(WHOLE, SPLIT, SPLIT, WHOLE),
                # The loops of different devices have different lengths.
                check_vma=False,
            )
        with tracing_for(placement.platform):
            gathered, rows, sums, executed = run(inputs)
        return gathered, rows, sums | {"steps_executed": executed}

    return train


def check_inputs(inputs: RoundInputs, placement: Placement) -> None:
    """Refuses inputs that do not belong together; only shapes are looked at.

    Args:
      inputs: of a round, which may be traced.
      placement: of the round.

    Raises:
      ValueError: if images and labels differ in number, the cohort is not made for the
        placement, rows or probe are not of the cohort, or the key is not
        `reproducible`.
      AssertionError: if an array of the cohort has another rank or length (chex).
    """
    cohort, num_blocks = inputs.cohort, placement.num_blocks
    check_pairs(inputs.dataset)
    reproducible(inputs.key)
    chex.assert_rank([cohort.client_ids, cohort.sizes], 1)
    chex.assert_rank([cohort.indices, cohort.queues], 2)
    chex.assert_equal_shape_prefix([cohort.client_ids, cohort.sizes, cohort.indices], 1)
    num_places = len(cohort.client_ids)
    num_queues, block_size = cohort.queues.shape
    if block_size * num_blocks != num_places or num_queues % num_blocks:
        raise ValueError(
            f"cohort must have a block of places for each of the placement's "
            f"{num_blocks} devices, got {num_places} places in blocks of "
            f"{block_size}: pass the round's placement to make_cohort."
        )
    for leaf in jax.tree.leaves(inputs.rows):
        if leaf.shape[:1] != (num_places,):
            raise ValueError(
                f"rows must have the cohort's {num_places} places as leading axis, got "
                f"{list(leaf.shape)}: take them by this cohort's client_ids."
            )
    if inputs.probe is not None and inputs.probe.wanted.shape != (num_places,):
        raise ValueError(
            f"probe.wanted must be a flag for each of the cohort's {num_places} "
            f"places, got {list(inputs.probe.wanted.shape)}."
        )


def with_preparation(
    algorithm: FederatedAlgorithm, preparation: Preparation
) -> FederatedAlgorithm:
    """Adds a preparation to an algorithm; its rounds refuse to run before it.

    The preparation refuses a state that is prepared, which rounds may have trained.
    """

    def init(key: jax.Array) -> ServerState:
        return algorithm.init(key)._replace(pending=Unprepared())

    def refuse_unprepared(function: Callable[..., Any]) -> Callable[..., Any]:
        def checked(inputs: RoundInputs, placement: Placement = ONE_DEVICE) -> Any:
            require_prepared(inputs.state)
            return function(inputs, placement)

        return checked

    def start(state: ServerState) -> Tree:
        if not isinstance(state.pending, Unprepared):
            raise ValueError(
                "this state is prepared already: pass it on to the next round."
            )
        return preparation.start(state)

    def finish(
        state: ServerState, gathered: Tree, key: jax.Array
    ) -> tuple[ServerState, Sums]:
        state, facts = preparation.finish(state, gathered, key)
        return state._replace(pending=()), facts

    masked = algorithm.masked
    if masked is not None:
        masked = masked._replace(train=refuse_unprepared(masked.train))
    return algorithm._replace(
        init=init,
        rules=algorithm.rules._replace(init=init),
        round=refuse_unprepared(algorithm.round),
        prepare=preparation._replace(start=start, finish=finish),
        masked=masked,
    )


def require_prepared(state: ServerState) -> None:
    """Refuses a state whose algorithm has a preparation that has not been made.

    Raises:
      ValueError: saying what to call.
    """
    if isinstance(state.pending, Unprepared):
        raise ValueError(
            "this algorithm has a preparation that comes before its first round: call "
            "fedjax_prune.prepare(...) once, or state, rows, sums = "
            "algorithm.prepare.run(inputs), and pass on the state that it returns."
        )
