"""A worker for this library; it times all that a user waits for in a round.

python -m launch.benchmark.ours --work=w1 --data=FILE.npz --threads=2

A round is the program that launch.train compiles. Its time includes dealing the clients
to lanes, sending them to the devices, training and reading the sums back.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_prune.algorithms import ALGORITHMS
from fedjax_prune.engine import store
from fedjax_prune.engine.dealing import make_cohort
from fedjax_prune.engine.devices import REDUCTIONS, Placement, make_placement
from fedjax_prune.engine.keys import seed_key
from fedjax_prune.engine.placing import put_cohort, put_split, put_whole
from fedjax_prune.engine.server import make_server_tx
from fedjax_prune.engine.solver import make_solver
from fedjax_prune.models import VGG11, DropoutCNN, TwoCNN, costs
from fedjax_prune.models.gates import GateSettings
from fedjax_prune.models.precision import PRECISIONS, product_precision
from fedjax_prune.models.task import make_task
from fedjax_prune.pruning.masks import num_left
from fedjax_prune.pruning.smaller import round_up, smaller_model
from fedjax_prune.runs.compact_rounds import MULTIPLE, CompactRounds
from fedjax_prune.runs.learning import Learning
from fedjax_prune.runs.machine import LEAST_GAIN, MOST_LANES
from fedjax_prune.runs.programs import WholeRounds
from fedjax_prune.runs.sections import algorithm_fields
from fedjax_prune.types import Cohort, Dataset, Population, RoundInputs, Tree

from .. import runtime
from . import worker

FLOPS_TARGET = 0.5
"""Share of the multiplications that a gated model keeps."""
MODELS = {"w1": DropoutCNN, "w2": VGG11, "w3": DropoutCNN, "two_cnn": TwoCNN}
"""Work -> its model."""


class Settings(NamedTuple):
    """How the library is run.

    Attributes:
      algorithm: `fedavg`, `scaffold` or `eflprune`.
      gated: with dynamic pruning.
      devices: 0 stands for all, but no more than clients in a cohort.
      reduction: one of REDUCTIONS.
      precision: one of PRECISIONS.
      removed: least share of the MACs that `eflprune` removes, in [0, 1), after numbers
        of channels have been rounded up.
      compact: rounds run on the smaller model.
    """

    algorithm: str = "fedavg"
    gated: bool = False
    devices: int = 0
    reduction: str = "all_reduce"
    precision: str = "float32"
    removed: float = 0.0
    compact: bool = False


class Runner(NamedTuple):
    """A compiled round and what is known of it.

    Attributes:
      run_round: trains on a cohort, [cohort_size] int32, and waits for the result.
      checksum: the mean of the parameters.
      counted: `steps` and `steps_executed` of the last round.
      facts: lanes, devices, share of the MACs left, seconds to compile and, for rounds
        on the whole model, bytes on each device.
    """

    run_round: Callable[[np.ndarray], None]
    checksum: Callable[[], float]
    counted: Callable[[], Mapping[str, float]]
    facts: Mapping[str, Any]


def make_model(
    work: str,
    image_shape: tuple[int, int, int],
    num_classes: int,
    width: float = 1.0,
    settings: Settings | None = None,
) -> Any:
    """Returns the model of a work, without gates or with half of its multiplications.

    Args:
      work: one of worker.WORKS.
      image_shape: (height, width, channels).
      num_classes: classes.
      width: factor on the channels.
      settings: how the library is run.
    """
    settings = settings or Settings()
    model = MODELS[work](
        num_classes=num_classes,
        width=width,
        dropout=0.0 if work == "two_cnn" else 0.5,
        dtype=PRECISIONS[settings.precision].dtype,
    )
    if not settings.gated:
        return model
    keep_ratio = costs.keep_ratio_for(model, image_shape, FLOPS_TARGET)
    return model.clone(gates=GateSettings(keep_ratio))


def make(work: str, data: worker.Data, settings: Settings, lanes: int) -> Runner:
    """Compiles a round.

    Args:
      work: one of worker.WORKS.
      data: of the orchestrator.
      settings: how the library is run.
      lanes: on each device, at least 1.
    """
    image_shape = data.images.shape[1:]
    model = make_model(work, image_shape, data.num_classes, data.width, settings)
    fields, kept = {}, 1.0
    if "channel_share" in algorithm_fields(settings.algorithm):
        fields["channel_share"], kept = _removal(model, image_shape, settings.removed)

    def rebuild(model: Any) -> Learning:
        return _learning(model, data, settings, fields)

    learning = rebuild(model)
    placement = _placement(data, settings)
    key = seed_key(0)
    algorithm = learning.algorithm
    state, row = jax.jit(lambda: (algorithm.init(key), algorithm.row(key)))()
    num_params = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    worker.check_num_params(work, data, num_params)
    state, key = put_whole(placement, (state, key))
    rows = store.DeviceStore(row, len(data.sizes), placement)
    # No client is evaluated here, but a run's round contains evaluation.
    train = Dataset(data.images, data.labels)
    test = Dataset(data.images[:100], data.labels[:100])
    train, test = put_whole(placement, (train, test))
    deal = partial(
        make_cohort,
        Population(data.indices, data.offsets),
        num_lanes=lanes,
        epochs=data.epochs,
        batch_size=data.batch_size,
        placement=placement,
    )
    first = deal(data.cohort(0))
    nobody = put_split(placement, np.zeros(len(first.client_ids), bool))
    facts = {"lanes": lanes, "devices": placement.num_devices, "kept": kept}

    def inputs_of(dealt: Cohort) -> RoundInputs:
        taken = rows.take(dealt.client_ids)
        return RoundInputs(state, taken, train, put_cohort(placement, dealt), key)

    if settings.compact:
        rounds = CompactRounds(learning, placement, rebuild)
    else:
        rounds = WholeRounds(learning.task, algorithm.round, placement)
        facts["bytes"] = _bytes(rounds.compile(inputs_of(first), test, nobody))
    facts["compile_seconds"] = rounds.seconds
    sums: Mapping[str, Any] = {}

    def run_round(ids: np.ndarray) -> None:
        nonlocal state, sums
        dealt = deal(ids)
        state, taken, sums = rounds(inputs_of(dealt), test, nobody)
        rows.put(dealt.client_ids, taken)
        facts["compile_seconds"] += rounds.seconds
        sums = jax.device_get(sums)
        jax.block_until_ready((state, taken))
        count, wanted = int(sums["count"].sum()), data.num_images(ids)
        assert count == wanted, f"trained on {count} images, not {wanted}"

    return Runner(run_round, lambda: _mean(state.params), lambda: _steps(sums), facts)


def _mean(params: Tree) -> float:
    leaves = jax.tree.leaves(jax.device_get(params))
    total = sum(leaf.sum(dtype=np.float64) for leaf in leaves)
    return float(total / sum(leaf.size for leaf in leaves))


def _steps(sums: Mapping[str, Any]) -> dict[str, float]:
    return {
        "steps": int(sums["steps"].sum()),
        "steps_executed": int(sums["steps_executed"]),
    }


def _removal(
    model: Any, image_shape: tuple[int, int, int], removed: float
) -> tuple[float, float]:
    """The least share of channels to remove for a share of the MACs, and the MACs left.

    Numbers of channels are rounded up as in `CompactRounds`.

    Raises:
      ValueError: if no share of channels is enough.
    """
    groups, dense = model.channel_groups(image_shape), costs.macs(model, image_shape)
    for share in (number / 200 for number in range(200)):
        widths = {
            group.name: round_up(num_left(group, share), group.size, MULTIPLE)
            for group in groups
        }
        left = costs.macs(smaller_model(model, widths), image_shape).dense / dense.dense
        if left <= 1 - removed:
            return share, left
    raise ValueError(f"removed must be below {1 - left:.3f} for this model")


def _learning(
    model: Any, data: worker.Data, settings: Settings, fields: Mapping[str, Any]
) -> Learning:
    image_shape = data.images.shape[1:]
    task = make_task(model, image_shape)
    solver = make_solver(
        epochs=data.epochs,
        batch_size=data.batch_size,
        lr=data.client_lr,
        lr_schedule="constant",
    )
    server_tx = make_server_tx(lr=data.server_lr)
    return Learning(
        config=None,
        image_shape=image_shape,
        model=model,
        task=task,
        dense_task=task,
        algorithm=ALGORITHMS[settings.algorithm](task, solver, server_tx, **fields),
    )


def _placement(data: worker.Data, settings: Settings) -> Placement:
    wanted = settings.devices or jax.local_device_count()
    return make_placement(min(wanted, data.cohorts.shape[1]), settings.reduction)


def _bytes(program: jax.stages.Compiled) -> int:
    """What the round takes on each device, its arguments and results included."""
    memory: Any = program.memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )


def _fastest(work: str, data: worker.Data, settings: Settings) -> Runner:
    """Doubles the lanes as long as whole rounds gain from it and fit; 1 on a CPU."""
    best = make(work, data, settings, 1)
    if jax.default_backend() == "cpu":
        return best
    least, most = _seconds(best, data), min(MOST_LANES, data.cohorts.shape[1])
    while (lanes := 2 * best.facts["lanes"]) <= most:
        try:
            runner = make(work, data, settings, lanes)
            seconds = _seconds(runner, data)
        except jax.errors.JaxRuntimeError as error:
            if not str(error).startswith("RESOURCE_EXHAUSTED"):
                raise
            break
        if seconds * LEAST_GAIN > least:
            break
        best, least = runner, seconds
    return best


def _seconds(runner: Runner, data: worker.Data) -> float:
    """The time of a round that is not the first one."""
    runner.run_round(data.cohort(0))
    began = time.perf_counter()
    runner.run_round(data.cohort(0))
    return time.perf_counter() - began


def main() -> None:
    """Serves the orchestrator."""
    parser = argparse.ArgumentParser()
    algorithms = ("fedavg", "scaffold", "eflprune")
    parser.add_argument("--algorithm", choices=algorithms, default="fedavg")
    parser.add_argument("--gated", action="store_true")
    parser.add_argument("--lanes", type=int, default=0, help="0 = the fastest")
    parser.add_argument("--devices", type=int, default=0, help="0 = all")
    parser.add_argument("--reduction", choices=REDUCTIONS, default="all_reduce")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--removed", type=float, default=0.0, help="share of MACs")
    parser.add_argument("--compact", action="store_true")
    options, channel, data = worker.start(parser)
    own = options.own
    settings = Settings(**{name: getattr(own, name) for name in Settings._fields})
    runtime.configure()
    # Compacted rounds compile for each new width, so the rounds are traced in it, too.
    with product_precision(settings.precision):
        if own.lanes:
            runner = make(options.work, data, settings, own.lanes)
        else:
            runner = _fastest(options.work, data, settings)
        worker.serve(
            channel,
            data,
            peer="ours",
            package="jax",
            run_round=runner.run_round,
            checksum=runner.checksum,
            facts=runner.facts,
            counted=runner.counted,
        )


if __name__ == "__main__":
    main()
