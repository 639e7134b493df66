"""The training loop: rounds, evaluations, checkpoints, one row of metrics a round."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from fedjax_prune.runs import capacity
from fedjax_prune.runs import console
from fedjax_prune.runs import ledger
from fedjax_prune.engine import preparation
from fedjax_prune.runs import report
from fedjax_prune.runs.compact_rounds import CompactRounds
from fedjax_prune.engine.dealing import sample_cohort
from fedjax_prune.runs.interrupt import stop_requested
from fedjax_prune.runs.metrics import require_alive
from fedjax_prune.runs.experiment import Experiment, build, with_model
from fedjax_prune.engine.outcome import (
    by_id,
    first_by_id,
    of_clients,
    require_finite,
)
from fedjax_prune.engine.devices import (
    ONE_DEVICE,
    Placement,
    make_placement,
    put_cohort,
    put_split,
    put_whole,
)
from fedjax_prune.models.precision import product_precision
from fedjax_prune.runs.programs import compile_programs
from fedjax_prune.runs.start import restore, restore_or_start, save
from fedjax_prune.engine.store import Store
from fedjax_prune.types import (
    Cohort,
    Config,
    Population,
    ServerState,
    Sums,
)
from fedjax_prune.runs.workdir import (
    agree_config,
    open_metrics,
    open_workdir,
    read_config,
    read_metrics,
)

INTERRUPTED = 130
"""Exit code of a run that was stopped by a signal, as shells count it."""


class _Round(NamedTuple):
    """A round that the device may still be running."""

    number: int
    cohort: Cohort  # numpy
    measured: int
    sums: Sums
    accuracies: dict[str, jax.Array]


def run(config: Config, workdir: str | Path) -> int:
    """Trains until `config.rounds` rounds are done, or a signal asks to stop.

    Started again with the same configuration it goes on from the newest checkpoint
    and, on the CPU, ends with the same bits as an unbroken run; with `compact_training`
    but for rounding, because it prefers widths that this process has compiled.

    Args:
      config: checked, with the fields of configs/base.py. `lanes` and `devices` are
        replaced by what was chosen for this machine.
      workdir: folder of the run, made if missing.

    Returns:
      The exit code: 0 if the run is finished, INTERRUPTED if it was stopped.

    Raises:
      DataError, WorkdirError, CheckpointError, SettingsError: before the first
        round, if the run cannot be started.
      TrainingError: if a client's loss becomes non-finite. The last checkpoint and
        the rows of the rounds before stay.
    """
    with open_workdir(workdir) as folder, product_precision(config.precision):
        experiment = build(config)
        config, choice = capacity.settle(config, experiment, folder)
        agree_config(folder, config)
        placement = make_placement(config.devices, config.reduction)
        state, rows, finished = restore_or_start(config, experiment, folder, placement)
        facts = report.preflight(config, experiment, finished or 0)
        console.print_preflight(facts | choice)
        if finished is None:
            finished = 0
            if experiment.algorithm.prepare is not None:
                with stop_requested() as stop:
                    state = _prepare(config, experiment, folder, placement, state, rows)
                if stop.is_set():
                    return INTERRUPTED
        if finished < config.rounds:
            finished = _train(
                config, experiment, folder, placement, state, rows, finished
            )
        console.print_summary(
            report.summary(config, experiment, read_metrics(folder), folder)
        )
        return 0 if finished >= config.rounds else INTERRUPTED


def _prepare(
    config: Config,
    experiment: Experiment,
    folder: Path,
    placement: Placement,
    state: ServerState,
    rows: Store,
) -> ServerState:
    """Does what comes before the first round, and saves it as round 0."""
    prepare = experiment.algorithm.prepare
    assert prepare is not None
    num_clients = prepare.num_clients(config.data.num_clients)
    with (
        # A row that was written before the run was killed is written again.
        open_metrics(folder, -1) as log,
        console.working(f"preparing with {num_clients} clients"),
    ):
        done = preparation.prepare(
            experiment.algorithm,
            state,
            rows,
            experiment.train,
            experiment.population,
            seed=config.seed,
            num_lanes=config.lanes,
            placement=placement,
        )
        require_alive(config, done.sums)
        row = report.round_row(0, done.seconds, done.sums)
        messages = prepare.messages(jax.eval_shape(lambda: state))
        row |= ledger.preparation_costs(experiment, messages, done.sums)
        log.write(row | {"seconds/compile": done.compile_seconds})
    save(config, folder, 0, done.state, rows)
    return done.state


def _train(
    config: Config,
    experiment: Experiment,
    folder: Path,
    placement: Placement,
    state: ServerState,
    rows: Store,
    finished: int,
) -> int:
    """Runs the rounds that are left and returns how many are done.

    A round is dispatched before the numbers of the one before are read, so the
    devices never wait for the host, except where a checkpoint is due, where the rows
    are on the host, and where compacted rounds ask which channels are left.
    """
    programs = compile_programs(experiment, placement)
    key = put_whole(placement, jax.random.key(config.seed))
    data = put_whole(placement, (experiment.train, experiment.test))
    validation = put_whole(placement, experiment.validation)
    num_evaluated = _num_evaluated(config, config.cohort_size)
    shapes = jax.eval_shape(lambda: state)
    messages = experiment.algorithm.messages(shapes)

    def draw(round: int) -> Cohort:
        return _cohort(
            config, experiment.population, placement, round, config.cohort_size
        )

    def dispatch(number: int) -> tuple[ServerState, _Round]:
        cohort = draw(number - 1)
        measured = num_evaluated if _is_due(number, config) else 0
        after, taken, sums = train_round(
            state,
            rows.take(cohort.client_ids),
            *data,
            put_cohort(placement, cohort),
            key,
            put_split(placement, first_by_id(cohort, measured)),
        )
        rows.put(cohort.client_ids, taken)
        return after, _Round(number, cohort, measured, sums, {})

    def evaluate(done: _Round) -> dict[str, jax.Array]:
        if not done.measured:
            return {}
        ids = _evaluated_clients(config, done.cohort, done.number)
        return measure[len(ids)](
            *(state, rows.personal(ids), put_whole(placement, ids)),
            *data,
            validation,
        )

    with (
        open_metrics(folder, finished) as log,
        console.progress(config.rounds, finished) as bar,
        stop_requested() as stop,
        jax.transfer_guard("disallow"),
    ):
        began = time.monotonic()
        cohort = draw(finished)
        taken = rows.take(cohort.client_ids)
        if config.compact_training:
            train_round = CompactRounds(
                experiment,
                placement,
                lambda model: with_model(config, experiment, model),
            )
        else:
            train_round = programs.train.lower(
                state,
                taken,
                *data,
                put_cohort(placement, cohort),
                key,
                put_split(placement, first_by_id(cohort, 0)),
            ).compile()
        # Changes nothing but that this, too, is compiled before the first round.
        rows.put(cohort.client_ids, taken)
        numbers = {num_evaluated, _num_evaluated(config, config.data.num_clients)}
        measure = {}
        for count in numbers:
            ids = np.zeros(count, np.int32)
            measure[count] = programs.measure.lower(
                *(state, rows.personal(ids), put_whole(placement, ids)),
                *data,
                validation,
            ).compile()
        compiling = time.monotonic() - began
        running: _Round | None = None
        clock = time.monotonic()

        def settle(done: _Round) -> None:
            """Reads a round's numbers and writes its row."""
            nonlocal clock, compiling
            sums, accuracies = _read((done.sums, done.accuracies))
            seconds, clock = time.monotonic() - clock, time.monotonic()
            sums = of_clients(sums, done.cohort)
            require_finite(sums, done.number, done.cohort)
            require_alive(config, sums)
            row = report.round_row(done.number, seconds, sums)
            row |= ledger.cost_row(experiment, messages, sums)
            images = float(sums["count"].sum())
            bar.advance(
                done.number, row["train/loss"], row["train/accuracy"], images / seconds
            )
            if done.measured:
                row |= report.accuracy_row(accuracies, experiment)
                after = sums["after_local"][: done.measured]
                after = after / len(experiment.test.labels)
                row |= report.statistics("after_local", after)
            log.write(row | ({"seconds/compile": compiling} if compiling else {}))
            compiling = 0.0

        while finished < config.rounds and not stop.is_set():
            finished += 1
            state, dispatched = dispatch(finished)
            if isinstance(train_round, CompactRounds):
                compiling += train_round.seconds
                clock += train_round.seconds
            if running is not None:
                settle(running)
            # Only now: rows on the host are waited for.
            running = dispatched._replace(accuracies=evaluate(dispatched))
            if finished % config.save_every == 0:
                settle(running)
                running = None
                save(config, folder, finished, state, rows)
        if running is not None:
            settle(running)
            save(config, folder, finished, state, rows)
    return finished


def evaluate_workdir(workdir: str | Path) -> dict[str, Any]:
    """Evaluates the newest checkpoint of a run on all of its clients.

    Args:
      workdir: folder of the run.

    Returns:
      `round` and the accuracies under the names of metrics.jsonl.

    Raises:
      WorkdirError, CheckpointError, DataError: if there is nothing to evaluate.
    """
    config: Config = ConfigDict(read_config(workdir))
    with product_precision(config.precision):
        experiment = build(config)
        state, rows = restore(config, experiment, Path(workdir))
        ids = np.arange(_num_evaluated(config, config.data.num_clients), dtype=np.int32)
        data = jax.device_put((experiment.train, experiment.test))
        accuracies = compile_programs(experiment, ONE_DEVICE).measure(
            *(state, rows.personal(ids), ids),
            *data,
            jax.device_put(experiment.validation),
        )
        return {"round": int(state.round)} | report.accuracy_row(
            _read(accuracies), experiment
        )


def _cohort(
    config: Config,
    population: Population,
    placement: Placement,
    round: int,
    cohort_size: int,
) -> Cohort:
    """The clients of a round, as numpy arrays."""
    return sample_cohort(
        population,
        cohort_size,
        config.lanes,
        seed=config.seed,
        round=round,
        epochs=config.client.epochs,
        batch_size=config.client.batch_size,
        placement=placement,
    )


def _is_due(finished: int, config: Config) -> bool:
    return finished % config.eval.every == 0 or finished == config.rounds


def _num_evaluated(config: Config, available: int) -> int:
    return min(config.eval.num_clients or available, available)


def _evaluated_clients(config: Config, cohort: Cohort, finished: int) -> np.ndarray:
    """The first clients of the cohort; after the last round, of the population."""
    if finished < config.rounds:
        count = _num_evaluated(config, config.cohort_size)
        return cohort.client_ids[by_id(cohort)[:count]]
    num_clients = _num_evaluated(config, config.data.num_clients)
    return np.arange(num_clients, dtype=np.int32)


def _read(values: Any) -> Any:
    """The one place where a round's numbers come from the device."""
    return jax.device_get(values)
