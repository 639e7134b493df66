"""The training loop: rounds, evaluations, checkpoints, one row of metrics a round."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from fedjax_prune import checkpoint, console, evaluate, report, store
from fedjax_prune.data.cohort import sample_cohort
from fedjax_prune.experiment import Experiment, build, start
from fedjax_prune.types import (
    ClientState,
    Cohort,
    Config,
    Dataset,
    Population,
    ServerState,
    Sums,
    Variables,
)
from fedjax_prune.workdir import (
    agree_config,
    open_metrics,
    open_workdir,
    read_config,
    read_metrics,
)

INTERRUPTED = 130
"""Exit code of a run that was stopped by a signal, as shells count it."""


class TrainingError(RuntimeError):
    """A run that cannot go on; the message names the round and the clients."""


class Programs(NamedTuple):
    """What a run compiles, once each.

    Attributes:
      train: (state, rows, train, test, cohort, key, measured) -> the same after one
        round, with sums; the first `measured` clients of the cohort are probed before
        aggregation. State and rows are donated.
      measure: (state, rows, client_ids, test, train, validation) -> accuracies.
    """

    train: Callable[..., tuple[ServerState, ClientState, Sums]]
    measure: Callable[..., dict[str, jax.Array]]


def run(config: Config, workdir: str | Path) -> int:
    """Trains until `config.rounds` rounds are done, or a signal asks to stop.

    Started again with the same configuration it goes on from the newest checkpoint
    and, on the CPU, ends with the same bits as an unbroken run.

    Args:
      config: checked, with the fields of configs/base.py.
      workdir: folder of the run, made if missing.

    Returns:
      The exit code: 0 if the run is finished, INTERRUPTED if it was stopped.

    Raises:
      DataError, WorkdirError, CheckpointError, SettingsError: before the first
        round, if the run cannot be started.
      TrainingError: if a client's loss becomes non-finite. The last checkpoint and
        the rows of the rounds before stay.
    """
    with open_workdir(workdir) as folder, jax.default_matmul_precision("highest"):
        experiment = build(config)
        agree_config(folder, config)
        state, rows, finished = _restore_or_start(config, experiment, folder)
        save = partial(checkpoint.save, folder / "checkpoints", keep=config.keep)
        console.print_preflight(report.preflight(config, experiment, finished))
        programs = compile_programs(experiment)
        with (
            open_metrics(folder, finished) as log,
            console.progress(config.rounds, finished) as bar,
            _stop_requested() as stop,
        ):
            train, test = jax.device_put((experiment.train, experiment.test))
            key = jax.random.key(config.seed)
            while finished < config.rounds and not stop.is_set():
                cohort = _cohort(config, experiment.population, finished)
                finished += 1
                evaluating = _is_due(finished, config.eval.every, config.rounds)
                measured = evaluating * _num_evaluated(config, config.cohort_size)
                began = time.monotonic()
                state, rows, sums = programs.train(
                    state, rows, train, test, cohort, key, jnp.int32(measured)
                )
                sums = _read(sums)
                seconds = time.monotonic() - began
                _require_finite(sums, cohort, finished)
                row = report.round_row(config, experiment, finished, seconds, sums)
                bar.advance(
                    finished,
                    row["train/loss"],
                    row["train/accuracy"],
                    sums["count"].sum() / seconds,
                )
                if evaluating:
                    ids = _evaluated_clients(config, cohort, finished)
                    row |= measure_clients(
                        config, experiment, programs, state, rows, ids, test, train
                    )
                    after = sums["after_local"][:measured] / len(test.labels)
                    row |= _flat("after_local", evaluate.summarise(after))
                log.write(row)
                if finished % config.save_every == 0:
                    save(finished, (state, rows))
            if finished:
                save(finished, (state, rows))
        console.print_summary(
            report.summary(config, experiment, read_metrics(folder), folder)
        )
        return 0 if finished >= config.rounds else INTERRUPTED


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
    with jax.default_matmul_precision("highest"):
        folder = Path(workdir) / "checkpoints"
        experiment = build(config)
        state, rows = checkpoint.restore(
            folder, jax.eval_shape(lambda: start(config, experiment))
        )
        programs = compile_programs(experiment)
        train, test = jax.device_put((experiment.train, experiment.test))
        ids = np.arange(_num_evaluated(config, config.data.num_clients), dtype=np.int32)
        return {"round": int(state.round)} | measure_clients(
            config, experiment, programs, state, rows, ids, test, train
        )


def compile_programs(experiment: Experiment) -> Programs:
    """Makes the two compiled functions of a run."""
    algorithm, task, dense_task = (
        experiment.algorithm,
        experiment.task,
        experiment.dense_task,
    )

    @partial(jax.jit, donate_argnums=(0, 1))
    def train_round(state, rows, train, test, cohort, key, measured):
        state, cohort_rows, sums = algorithm.round(
            state,
            store.take(rows, cohort.client_ids),
            train,
            cohort,
            jax.random.fold_in(key, state.round),
            evaluate.after_local_probe(task, test, measured),
        )
        return state, store.put(rows, cohort.client_ids, cohort_rows), sums

    @partial(jax.jit, static_argnames="held_out")
    def measure(state, rows, ids, examples, test, validation, held_out):
        shared = Variables(state.params, {}, state.model_state)
        own = shared._replace(personal=store.take(rows, ids).personal)
        validation = jax.tree.map(lambda x: jnp.asarray(x)[ids], validation)
        correct = evaluate.correct_by_client(task, own, test)
        local = (
            evaluate.holdout_accuracy(task, own, examples, validation)
            if held_out
            else evaluate.local_accuracy(correct, validation)
        )
        return {
            "global_dense": evaluate.correct_examples(dense_task, shared, test).mean(),
            "client_gated": jnp.broadcast_to(correct.mean(axis=1), ids.shape),
            "client_local": local,
        }

    return Programs(train_round, measure)


def measure_clients(
    config: Config,
    experiment: Experiment,
    programs: Programs,
    state: ServerState,
    rows: ClientState,
    client_ids: np.ndarray,
    test: Dataset,
    train: Dataset,
) -> dict[str, float]:
    """The accuracies of the shared parameters, as fields of a metrics row."""
    accuracies = _read(
        programs.measure(
            state,
            rows,
            jnp.asarray(client_ids),
            train,
            test,
            jax.device_put(experiment.validation),
            config.data.local_val == "holdout",
        )
    )
    row = {"eval/global_dense/accuracy": float(accuracies["global_dense"])}
    for name in ("client_gated", "client_local"):
        row |= _flat(name, evaluate.summarise(accuracies[name]))
    return row | {
        "eval/clients": len(client_ids),
        "eval/examples": len(experiment.test.labels),
    }


def _flat(name: str, statistics: dict[str, float]) -> dict[str, float]:
    return {f"eval/{name}/{key}": value for key, value in statistics.items()}


def _restore_or_start(
    config: Config, experiment: Experiment, folder: Path
) -> tuple[ServerState, ClientState, int]:
    finished = checkpoint.latest(folder / "checkpoints")
    if finished is None:
        return *jax.jit(lambda: start(config, experiment))(), 0
    template = jax.eval_shape(lambda: start(config, experiment))
    return *checkpoint.restore(folder / "checkpoints", template), finished


def _cohort(config: Config, population: Population, finished: int) -> Cohort:
    """The clients of the next round, on the device."""
    return jax.device_put(
        sample_cohort(
            population,
            config.cohort_size,
            config.lanes,
            seed=config.seed,
            round=finished,
            epochs=config.client.epochs,
            batch_size=config.client.batch_size,
        )
    )


def _is_due(finished: int, every: int, rounds: int) -> bool:
    return finished % every == 0 or finished == rounds


def _num_evaluated(config: Config, available: int) -> int:
    return min(config.eval.num_clients or available, available)


def _evaluated_clients(config: Config, cohort: Cohort, finished: int) -> np.ndarray:
    """The first clients of the cohort; after the last round, of the population."""
    if finished < config.rounds:
        return _read(cohort.client_ids)[: _num_evaluated(config, config.cohort_size)]
    num_clients = _num_evaluated(config, config.data.num_clients)
    return np.arange(num_clients, dtype=np.int32)


def _read(values: Any) -> Any:
    """The one place where a round's numbers come from the device."""
    return jax.device_get(values)


def _require_finite(sums: Sums, cohort: Cohort, finished: int) -> None:
    bad = np.asarray(sums["nonfinite"]) > 0
    if bad.any():
        ids = ", ".join(str(i) for i in _read(cohort.client_ids)[bad])
        raise TrainingError(
            f"The loss of client {ids} became non-finite in round {finished}. A "
            "smaller client.lr, or model.norm bn or gn, usually helps; the rounds "
            "before are kept."
        )


@contextmanager
def _stop_requested() -> Iterator[threading.Event]:
    """Turns the first SIGINT or SIGTERM into a wish to stop at the round's end.

    The second one acts as without us, for those who cannot wait.
    """
    event = threading.Event()
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}

    def ask(number: int, frame: Any) -> None:
        del frame
        event.set()
        signal.signal(number, before[signal.Signals(number)])

    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    for number in signals:
        signal.signal(number, ask)
    try:
        yield event
    finally:
        for number in signals:
            signal.signal(number, before[number])
