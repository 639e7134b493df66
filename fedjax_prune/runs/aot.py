"""A run's programs compiled ahead of time, for a slice that need not be there."""

import copy
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_prune.data.padded import pad_clients, width_of
from fedjax_prune.data.population import sizes_of
from fedjax_prune.engine.devices import (
    SPLIT,
    WHOLE,
    Placement,
    input_specs,
    make_placement,
    shapes_on,
)
from fedjax_prune.engine.preparation import draw_groups, gather_program
from fedjax_prune.models import costs
from fedjax_prune.models.precision import product_precision
from fedjax_prune.runs import console
from fedjax_prune.runs.compiled_text import Operation, collectives, operations
from fedjax_prune.runs.experiment import Experiment, load_data
from fedjax_prune.runs.learning import make_learning, start
from fedjax_prune.runs.loop import draw_cohort, numbers_evaluated
from fedjax_prune.runs.programs import WholeRounds, evaluation_program
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

TRAINED, MEASURED = 3, 1
"""Forward passes that an image counts for: a training step costs as much as three."""


class Program(NamedTuple):
    """A program of a run.

    Attributes:
      name: of what it does.
      trains: whether its loops are local training.
      flops: of one run, by the definition of the model.
      compile: () -> the compiled program.
    """

    name: str
    trains: bool
    flops: float
    compile: Callable[[], jax.stages.Compiled]


class Finding(NamedTuple):
    """What is known of a program that has been compiled, or refused.

    Attributes:
      program: that was compiled.
      seconds: spent compiling.
      num_bytes: on each chip: `arguments`, `temporaries`, `results` that do not take
        the place of arguments, `program`.
      flops: of one run by XLA's count, in which each loop runs once, on each chip.
      operations: of the compiled program.
      refusal: why XLA has refused it, if memory was short; else empty.
    """

    program: Program
    seconds: float
    num_bytes: dict[str, int]
    flops: float
    operations: list[Operation]
    refusal: str


def compile_run(config: Config, target: Slice) -> bool:
    """Compiles round, preparation and evaluation, and prints what they take.

    The round is that of the whole model, also with `compact_training`.

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
        with console.working(f"loading {config.data.name}"):
            experiment = Experiment(learning, load_data(config))
        placement = make_placement(
            config.devices, config.reduction, devices=target.devices
        )
        resident = _resident_bytes(experiment, placement)
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


def _resident_bytes(experiment: Experiment, placement: Placement) -> int:
    """Bytes of all clients' rows on each chip; they are arguments of no program."""
    config = experiment.config
    if config.client_rows != "device":
        return 0
    _, row = jax.eval_shape(lambda: start(experiment.learning))
    share = -(-config.data.num_clients // placement.num_blocks)
    return share * costs.tree_bytes(row)


def programs(experiment: Experiment, placement: Placement) -> Iterator[Program]:
    """Makes the programs of a run.

    Args:
      experiment: with `devices` and `lanes` as numbers.
      placement: with a mesh.
    """
    learning, config = experiment.learning, experiment.config
    state, row = jax.eval_shape(lambda: start(learning))
    steps = learning.algorithm.prepare
    if steps is not None:
        gathered = jax.eval_shape(steps.start, state)
        yield _preparation(experiment, placement, state, row, gathered)
        key = jax.random.key(0)
        state, _ = jax.eval_shape(steps.finish, state, gathered, key)
    yield _round(experiment, placement, state, row)
    count = max(numbers_evaluated(config))
    yield _evaluation(experiment, placement, state, row, count)


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
    groups = draw_groups(
        learning.algorithm.rules.solver,
        steps,
        experiment.data.population,
        num_examples=len(experiment.data.train.labels),
        seed=config.seed,
        num_lanes=config.lanes,
        placement=placement,
    )
    inputs = _inputs(experiment, placement, state, row, groups[0])
    rows, inputs = inputs.rows, inputs._replace(rows=ClientState((), ()))
    gather = gather_program(steps, placement)
    whole = shapes_on(placement, WHOLE, gathered)
    examples = sum(int(group.sizes.sum()) for group in groups) / len(groups)
    flops = _flops(experiment, TRAINED * steps.solver.epochs * examples)

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
    images = experiment.config.client.epochs * float(cohort.cohort_examples)
    flops = _flops(experiment, TRAINED * images)
    return Program("round", True, flops, lambda: rounds.compile(inputs, test, wanted))


def _evaluation(
    experiment: Experiment,
    placement: Placement,
    state: ServerState,
    row: ClientState,
    count: int,
) -> Program:
    learning, data = experiment.learning, experiment.data
    ids = np.arange(count, dtype=np.int32)
    width = width_of(data.validation, ids)
    arguments = shapes_on(
        placement,
        WHOLE,
        (
            state,
            _stacked(row.personal, count),
            data.train,
            data.test,
            pad_clients(data.validation, ids, width),
        ),
    )
    measure = evaluation_program(learning, data.held_out, placement)
    own_models = count if jax.tree.leaves(row.personal) else 1
    images = own_models * len(data.test.labels)
    if learning.model.gates is not None:
        images += len(data.test.labels)
    if data.held_out:
        images += int(sizes_of(data.validation, ids).sum())
    flops = _flops(experiment, MEASURED * images)
    name = f"evaluation of {count} clients"
    return Program(name, False, flops, lambda: measure.lower(*arguments).compile())


def _inputs(
    experiment: Experiment,
    placement: Placement,
    state: ServerState,
    row: ClientState,
    cohort: Cohort,
) -> RoundInputs:
    """The shapes of what a round or a group takes."""
    key = jax.eval_shape(lambda: jax.random.key(0))
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
    return 2 * costs.macs(learning.model, learning.image_shape).dense * forward_passes


def compile_program(program: Program) -> Finding:
    """Compiles a program and reads what the compiler says of it.

    Raises:
      jax.errors.JaxRuntimeError: if XLA fails for another reason than memory.
    """
    began = time.monotonic()
    try:
        compiled = program.compile()
    except jax.errors.JaxRuntimeError as error:
        if not str(error).startswith("RESOURCE_EXHAUSTED"):
            raise
        seconds = time.monotonic() - began
        refusal = str(error).splitlines()[0].partition(": ")[2]
        return Finding(program, seconds, {}, 0.0, [], refusal)
    seconds = time.monotonic() - began
    memory: Any = compiled.memory_analysis()
    cost: Any = compiled.cost_analysis()
    num_bytes = {
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "results": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "program": memory.generated_code_size_in_bytes,
    }
    text = compiled.as_text()
    assert text is not None, "compilers of CPUs and TPUs print their programs"
    found = operations(text)
    return Finding(program, seconds, num_bytes, cost["flops"], found, "")


def problems(finding: Finding, target: Slice, resident: int) -> list[str]:
    """Says what is wrong with a program; nothing if it can be run as it is.

    Args:
      finding: of the program.
      target: the slice that it was compiled for.
      resident: bytes on each chip beside the program's own.
    """
    name = finding.program.name
    if finding.refusal:
        return [f"the {name} does not fit the memory of a chip: {finding.refusal}"]
    found = []
    needed = resident + sum(finding.num_bytes.values())
    if needed > target.chip.memory:
        found.append(
            f"the {name} needs {_amount(needed)} on each chip, which has "
            f"{_amount(target.chip.memory)}: take fewer lanes or a smaller "
            "client.batch_size, or keep client_rows on the host"
        )
    inside = [op for op in collectives(finding.operations) if op.in_loop]
    if inside and finding.program.trains:
        found.append(f"the {name} exchanges data in local training: {_counted(inside)}")
    return found


def describe(
    finding: Finding, target: Slice, config: Config, resident: int
) -> dict[str, str]:
    """The facts about a program, for a table.

    Args:
      finding: of the program.
      target: the slice that it was compiled for.
      config: with `devices` as a number.
      resident: bytes on each chip beside the program's own.
    """
    by_definition = finding.program.flops
    least = by_definition / config.devices / target.chip.flops
    known = {
        "FLOPs": f"{by_definition:.3g} by the definition of the model",
        "at least": f"{least:.3g} s, with these FLOPs at the peak of bfloat16",
        "compiled in": f"{finding.seconds:.0f} s",
    }
    if finding.refusal:
        return known
    inside = [op for op in finding.operations if op.in_loop]
    outside = [op for op in finding.operations if not op.in_loop]
    needed = resident + sum(finding.num_bytes.values())
    parts = {**finding.num_bytes, "rows of all clients": resident}
    words = [f"{_amount(size)} {part}" for part, size in parts.items() if size]
    known["FLOPs"] += f", {finding.flops:.3g} a chip by XLA if each loop ran once"
    return {
        "memory": f"{_amount(needed)} of {_amount(target.chip.memory)} a chip: "
        + ", ".join(words),
        "collectives": f"{_counted(collectives(outside))} outside of loops, "
        f"{_counted(collectives(inside))} in loops",
        "in loops": ", ".join(_slow(inside)) or "only arithmetic",
        **known,
    }


def _slow(inside: Iterable[Operation]) -> Iterator[str]:
    """Counts operations that take a chip long, or only move data."""
    for name in ("sort", "gather", "scatter", "copy", "custom-call"):
        if alike := [op for op in inside if op.name == name]:
            yield _counted(alike)


def _counted(found: Iterable[Operation]) -> str:
    counts = Counter(op.name for op in found)
    size = sum(op.num_bytes for op in found)
    words = [f"{count} {name}" for name, count in sorted(counts.items())]
    return ", ".join(words) + f" ({_amount(size)})" if words else "none"


def _amount(size: int) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e8 else f"{size / 1e6:.3g} MB"
