"""An algorithm, out of what its clients and its server do."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_prune.engine.aggregate import REDUCTIONS, Gathered, receive
from fedjax_prune.engine.cohort_loop import train_cohort
from fedjax_prune.engine.contract import (
    ClientProgram,
    FederatedAlgorithm,
    Preparation,
    Received,
    Round,
    Rules,
)
from fedjax_prune.engine.devices import (
    AXIS,
    ONE_DEVICE,
    SPLIT,
    WHOLE,
    Placement,
    input_specs,
)
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
    """Makes `FederatedAlgorithm.round`; the arguments are as in Rules."""
    train = make_training(task, solver, program)

    def round(
        inputs: RoundInputs, placement: Placement = ONE_DEVICE
    ) -> tuple[ServerState, ClientState, Sums]:
        """Runs one round.

        Args:
          inputs: what the round takes.
          placement: where it runs; its platform chooses the forms of convolutions.

        Returns:
          The state and the rows after the round and the sums, [num_places, ...], with
          `steps`, `nonfinite`, `arrived` and the scalar `steps_executed`. If no
          message has arrived, the state is as before and the round is counted.
        """
        state = inputs.state
        gathered, rows, sums = train(inputs, placement)
        # A computation of its own: its roundings do not depend on what comes after it.
        after = jax.lax.cond(
            gathered.num_clients > 0,
            lambda: update(state, receive(gathered)),
            lambda: state,
        )
        return after._replace(round=state.round + 1), rows, sums

    return round


def make_training(
    task: Task,
    solver: LocalSolver,
    program: Callable[[ServerState, Cohort], ClientProgram],
) -> Callable[[RoundInputs, Placement], tuple[Gathered, ClientState, Sums]]:
    """Makes a round without the server's step; the arguments are as in Rules.

    Returns:
      (inputs, placement) -> what the clients have sent, the rows and the sums.
    """

    def train(
        inputs: RoundInputs, placement: Placement
    ) -> tuple[Gathered, ClientState, Sums]:
        inputs = inputs._replace(
            dataset=jax.tree.map(jnp.asarray, inputs.dataset),
            cohort=jax.tree.map(jnp.asarray, inputs.cohort),
        )
        reduction, many = REDUCTIONS[placement.reduction], placement.mesh is not None

        def on_one_device(
            inputs: RoundInputs,
        ) -> tuple[Gathered, ClientState, Sums, jax.Array]:
            cohort = inputs.cohort
            own = program(inputs.state, cohort)
            result = train_cohort(task, solver, own, inputs, reduction)
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


def with_preparation(
    algorithm: FederatedAlgorithm, preparation: Preparation
) -> FederatedAlgorithm:
    """The algorithm with a preparation, without which its rounds refuse to run."""

    def init(key: jax.Array) -> ServerState:
        return algorithm.init(key)._replace(pending=Unprepared())

    def refuse_unprepared(function: Callable[..., Any]) -> Callable[..., Any]:
        def checked(inputs: RoundInputs, placement: Placement = ONE_DEVICE) -> Any:
            require_prepared(inputs.state)
            return function(inputs, placement)

        return checked

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
        round=refuse_unprepared(algorithm.round),
        prepare=preparation._replace(finish=finish),
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
