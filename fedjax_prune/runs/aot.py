"""A run's programs compiled ahead of time, for a slice that need not be there."""

import copy
from collections.abc import Iterator

import jax
import numpy as np

from fedjax_prune.engine.devices import SPLIT, WHOLE, Placement, make_placement
from fedjax_prune.engine.keys import seed_key
from fedjax_prune.engine.placing import input_specs, shapes_on
from fedjax_prune.engine.preparation import draw_groups, gather_program
from fedjax_prune.models import costs
from fedjax_prune.models.precision import product_precision
from fedjax_prune.runs import console
from fedjax_prune.runs.aot_report import Program, compile_program, describe, problems
from fedjax_prune.runs.capacity import resident_bytes
from fedjax_prune.runs.dispatch import draw_cohort
from fedjax_prune.runs.evaluated import last_clients
from fedjax_prune.runs.experiment import Experiment, load_data
from fedjax_prune.runs.learning import make_learning, start_shapes
from fedjax_prune.runs.policy import policy_of
from fedjax_prune.runs.programs import (
    WholeRounds,
    groups_of,
    own_program,
    shared_program,
)
from fedjax_prune.runs.settings import SettingsError
from fedjax_prune.runs.topology import Slice
from fedjax_prune.types import (
    ClientState,
    Cohort,
    Config,
    RoundInputs,
    ServerState,
    Tree,
)


def compile_run(config: Config, target: Slice) -> bool:
    """Compiles round, preparation and evaluation, and prints what they take.

    The round is that of the whole model, also with `compact_training`; the preparation
    is that of a group of clients. Short programs, which rank, hash or move rows, are
    left out.

    Args:
      config: checked. `devices` 0 takes all chips, at most one for each client of a
        cohort.
      target: the slice to compile for.

    Returns:
      Whether all programs fit the memory of a chip, and no collective is in the loops
      of local training.

    Raises:
      DataError: if the data set cannot be read.
      SettingsError: if the run cannot be built, `lanes` is not a number, or the slice
        has fewer chips than `devices`.
    """
    config = _with_numbers(config, len(target.devices))
    good = True
    with product_precision(config.precision):
        learning = make_learning(config)
        config = learning.config
        with console.working(f"loading {config.data.name}"):
            experiment = Experiment(learning, load_data(config))
        placement = make_placement(
            config.devices,
            config.reduction,
            policy=policy_of(config),
            devices=target.devices,
        )
        # The rows of all clients are arguments of no program.
        resident = resident_bytes(experiment, placement)
        for program in programs(experiment, placement):
            with console.working(f"compiling the {program.name}"):
                finding = compile_program(program)
            title = f"The {program.name} on {config.devices} chips of {target.name}"
            console.print_table(title, describe(finding, target, config, resident))
            wrong = problems(finding, target, resident)
            if wrong:
                console.print_error(wrong)
            good = good and not wrong
    return good


def _with_numbers(config: Config, num_chips: int) -> Config:
    """The configuration with `devices` and `lanes` as numbers that can be had."""
    config, found = copy.deepcopy(config), []
    if config.lanes == "auto":
        found.append(
            "lanes must be a number, because a slice that is not there cannot time "
            "them, got 'auto'"
        )
    if config.devices > num_chips:
        found.append(
            f"devices must be in [0, {num_chips}] on this slice, got {config.devices}"
        )
    if found:
        raise SettingsError(found)
    config.devices = config.devices or min(num_chips, config.cohort_size)
    config.lanes = min(config.lanes, -(-config.cohort_size // config.devices))
    return config


def programs(experiment: Experiment, placement: Placement) -> Iterator[Program]:
    """Makes the programs of a run.

    Args:
      experiment: with `devices` and `lanes` as numbers.
      placement: with a mesh.
    """
    learning, config = experiment.learning, experiment.config
    state, row = start_shapes(learning)
    steps = learning.algorithm.prepare
    if steps is not None:
        gathered = jax.eval_shape(steps.start, state)
        yield _preparation(experiment, placement, state, row, gathered)
        key = seed_key(0)
        state, _ = jax.eval_shape(steps.finish, state, gathered, key)
    yield _round(experiment, placement, state, row)
    yield _shared(experiment, placement, state)
    ids = groups_of(last_clients(config))[0]
    yield _own(experiment, placement, state, row, ids)


def _preparation(
    experiment: Experiment,
    placement: Placement,
    state: ServerState,
    row: ClientState,
    gathered: Tree,
) -> Program:
    learning, config = experiment.learning, experiment.config
    steps = learning.algorithm.prepare
    assert steps is not None
    _, groups = draw_groups(
        learning.algorithm.rules.solver,
        steps,
        experiment.data.population,
        seed=config.seed,
        num_lanes=config.lanes,
        placement=placement,
    )
    inputs = _inputs(experiment, placement, state, row, groups[0])
    rows, inputs = inputs.rows, inputs._replace(rows=ClientState((), ()))
    gather = gather_program(steps, placement)
    whole = shapes_on(placement, WHOLE, gathered)
    examples = sum(int(group.sizes.sum()) for group in groups) / len(groups)
    flops = _flops(experiment, costs.FORWARDS * steps.solver.epochs * examples)

    def compile() -> jax.stages.Compiled:
        return gather.lower(whole, rows, inputs).compile()

    return Program("preparation of a group", True, flops, compile)


def _round(
    experiment: Experiment, placement: Placement, state: ServerState, row: ClientState
) -> Program:
    learning = experiment.learning
    cohort = draw_cohort(experiment, placement, 0)
    inputs = _inputs(experiment, placement, state, row, cohort)
    test = shapes_on(placement, WHOLE, experiment.data.test)
    wanted = shapes_on(placement, SPLIT, np.zeros(len(cohort.client_ids), bool))
    rounds = WholeRounds(learning.task, learning.algorithm.round, placement)
    images = experiment.config.client.epochs * float(cohort.sizes.sum(dtype=np.int64))
    flops = _flops(experiment, costs.FORWARDS * images)
    return Program("round", True, flops, lambda: rounds.compile(inputs, test, wanted))


def _shared(
    experiment: Experiment, placement: Placement, state: ServerState
) -> Program:
    test = experiment.data.test
    arguments = shapes_on(placement, WHOLE, (state, test))
    share = shared_program(experiment.learning, placement)
    flops = _flops(experiment, len(test.labels))
    name = "evaluation of the model without gates"
    return Program(name, False, flops, lambda: share.lower(*arguments).compile())


def _own(
    experiment: Experiment,
    placement: Placement,
    state: ServerState,
    row: ClientState,
    group: np.ndarray,
) -> Program:
    learning, data = experiment.learning, experiment.data
    share = shared_program(learning, placement)
    _, correct = jax.eval_shape(share, state, data.test)
    table = data.validation(group)
    personal = _stacked(row.personal, len(group))
    arguments = shapes_on(
        placement, WHOLE, (state, personal, correct, data.train, data.test, table)
    )
    measure = own_program(learning, data.held_out, placement)
    images = len(group) * len(data.test.labels) if correct is None else 0
    if data.held_out:
        images += int(table.sizes.sum())
    flops = _flops(experiment, images)
    name = f"evaluation of {len(group)} clients"
    return Program(name, False, flops, lambda: measure.lower(*arguments).compile())


def _inputs(
    experiment: Experiment,
    placement: Placement,
    state: ServerState,
    row: ClientState,
    cohort: Cohort,
) -> RoundInputs:
    """The shapes of what a round or a group takes."""
    key = jax.eval_shape(lambda: seed_key(0))
    rows = _stacked(row, len(cohort.client_ids))
    inputs = RoundInputs(state, rows, experiment.data.train, cohort, key)
    return shapes_on(placement, input_specs(inputs), inputs)


def _stacked(tree: Tree, count: int) -> Tree:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype), tree
    )


def _flops(experiment: Experiment, forward_passes: float) -> float:
    """FLOPs of images by the definition of the model, as in metrics.jsonl."""
    learning = experiment.learning
    return 2 * learning.macs.dense * forward_passes
