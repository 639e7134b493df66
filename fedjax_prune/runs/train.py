"""Trains a run in its workdir, and evaluates a workdir."""

from pathlib import Path
from typing import Any

from fedjax_prune.data.datasets import DataError
from fedjax_prune.engine import processes
from fedjax_prune.engine.devices import ONE_DEVICE
from fedjax_prune.engine.placing import connect
from fedjax_prune.models.precision import product_precision
from fedjax_prune.runs import (
    console,
    environment,
    machine,
    metrics,
    record,
    report,
    track,
)
from fedjax_prune.runs.completed import completed
from fedjax_prune.runs.estimates import require_rounds, rounds_done
from fedjax_prune.runs.evaluated import last_clients
from fedjax_prune.runs.experiment import Experiment, RunData, load_data
from fedjax_prune.runs.files import WorkdirError, shown
from fedjax_prune.runs.interrupt import INTERRUPTED, stop_requested
from fedjax_prune.runs.learning import Learning, make_learning
from fedjax_prune.runs.loop import read_devices, run_rounds
from fedjax_prune.runs.metrics_log import read_metrics, restore_metrics
from fedjax_prune.runs.origin import origin_of, require_moved
from fedjax_prune.runs.page.panel import PIP, is_installed
from fedjax_prune.runs.page.write import write_report
from fedjax_prune.runs.policy import placement_of
from fedjax_prune.runs.prepare import forget, has_prepared, prepare
from fedjax_prune.runs.programs import Evaluation
from fedjax_prune.runs.settings import SettingsError
from fedjax_prune.runs.start import of_newest, restore, restore_or_start
from fedjax_prune.runs.workdir import (
    agree_config,
    has_config,
    open_shared_workdir,
    plain_fields,
    read_config,
    read_usable_config,
    write_config,
)
from fedjax_prune.types import Config


def run(config: Config, workdir: str | Path) -> int:
    """Trains until `config.rounds` rounds are done, or a signal asks to stop.

    If it is started again with the same configuration, except for the fields in
    `workdir.CHANGEABLE`, it continues from the newest checkpoint. On the CPU it then
    ends with the same bits as an unbroken run. With `compact_training` rounding may
    differ, because compiled widths are reused, and so may what dropout and private
    rounds draw, which depends on the widths. With other lanes or devices rounding may
    differ, too, unless the reduction is `fixed_order` and a device has as many lanes as
    before. Of several processes, all of which call this, the first one writes and
    prints.

    Args:
      config: checked, with the fields of configs/base.py. `lanes` and `devices` are
        replaced by what was chosen for this machine.
      workdir: folder of the run, made if missing.

    Returns:
      The exit code: 0 if the run is finished, INTERRUPTED if it was stopped. In both
      cases the finished rounds, if there are any, become a page in `report/`, unless
      `report.every` is 0 or the extra `report` is not installed. A preparation that is
      asked to stop keeps the groups of clients that are done.

    Raises:
      DataError, WorkdirError, CheckpointError, SettingsError: before the first
        round, if the run cannot be started.
      ProcessError: if another process has raised one of these.
      TrainingError: if a client diverges. The last checkpoint and the rows of the
        rounds before stay.
      KeyboardInterrupt: if a signal before the first round, or a second one after it,
        stops it at once; it says from where the run goes on.
    """
    # The first process is the one that logs.
    processes.on_first(lambda: track.require_installed(config.logger))
    with open_shared_workdir(workdir) as folder, product_precision(config.precision):
        # A process that does not see the user's files must not leave the others alone.
        learning = make_learning(processes.together(lambda: completed(config)))
        try:
            finished = train(learning, folder, config.rounds)
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt(_stopped_at_once(folder)) from error

        def show() -> None:
            measured = read_metrics(folder)
            # The run is done, so a signal, also that of a closed output, is too late.
            with stop_requested():
                page = _draw_page(config, folder, measured)
                facts = report.summary(learning, measured, folder) | page
                console.print_table("Result", facts)

        processes.on_first(show)
        return 0 if finished >= config.rounds else INTERRUPTED


def _stopped_at_once(folder: Path) -> str:
    """From where a run goes on that did not end in order."""
    if done := rounds_done(folder):
        where = f"goes on from round {done}"
    elif has_prepared(folder):
        where = "goes on with what was prepared"
    else:
        where = "starts again"
    return f"stopped at once; the same command {where}"


def _draw_page(
    config: Config, folder: Path, rows: list[dict[str, Any]]
) -> dict[str, str]:
    """Writes the page of a run; returns where it is, or how to get it, to print."""
    if not config.report.every or not any(row["round"] > 0 for row in rows):
        return {}
    if not is_installed():
        return {"page": f"not drawn; for pictures: {PIP}"}
    try:
        with console.working("drawing the page"):
            page = write_report([folder], folder / record.REPORT, pictures=False)
    except WorkdirError as error:
        return {"page": f"not drawn: {error}"}
    return {"page": shown(page)}


def train(learning: Learning, folder: Path, last: int) -> int:
    """Trains in a folder as `run`, but may end before the last round of the run.

    Args:
      learning: of the run; the precision of its products is set.
      folder: of the run, which no other process uses.
      last: the round after which it ends and saves, at most `rounds`.

    Returns:
      How many rounds are done: `last` or, after a signal, fewer.

    Raises:
      DataError, WorkdirError, CheckpointError, SettingsError, TrainingError: as `run`.
    """
    config = learning.config
    _require_same_everywhere(config)

    def agree() -> None:
        agree_config(folder, config)
        require_rounds(config, folder)

    processes.on_first(agree)
    # What is missing on one machine must not leave the others alone.
    console.print_table("This run", processes.together(lambda: report.plan(learning)))
    with console.working(f"loading {config.data.name}"):
        experiment = Experiment(learning, _load_everywhere(config))
    processes.on_first(lambda: require_moved(folder, config, experiment.data.hashes))
    with console.working("choosing devices and lanes"):
        chosen = machine.choose(experiment, folder)
    experiment = chosen.experiment
    config, learning = experiment.config, experiment.learning
    placement = placement_of(config)
    connect(placement)
    with console.working("starting the run"):
        state, rows, finished = restore_or_start(experiment, folder, placement)
        first = 1 if learning.algorithm.prepare is None else 0

        def write() -> dict[str, str]:
            # Rows may be those of a start that saved less often.
            before = read_config(folder) if has_config(folder) else {}
            save_every = before.get("save_every")
            if type(save_every) is not int or save_every < config.save_every:
                save_every = config.save_every
            restore_metrics(folder, finished, first=first, save_every=save_every)
            write_config(folder, config)
            return report.preflight(chosen, finished or 0, read_metrics(folder))

        facts = processes.on_first(write)
    console.print_table("On this machine", facts)
    stopped = False
    if finished is not None:
        processes.on_first(lambda: forget(folder))
    if finished is None or finished < last:
        done_before, hashes = finished or 0, experiment.data.hashes
        processes.on_first(
            lambda: environment.record(folder, config, done_before, hashes)
        )
    if finished is None:
        finished = 0
        with stop_requested() as stop:
            prepared = prepare(experiment, folder, placement, state, rows, stop=stop)
        stopped = stop.is_set()
        state = state if prepared is None else prepared
    if finished < last and not stopped:
        finished = run_rounds(
            experiment=experiment,
            folder=folder,
            placement=placement,
            state=state,
            rows=rows,
            finished=finished,
            last=last,
        )
    return finished


def _require_same_everywhere(config: Config) -> None:
    """Compares the configurations of all processes.

    Raises:
      SettingsError: if they differ.
    """
    first, *others = processes.gather(plain_fields(config))
    for number, other in enumerate(others, 1):
        if found := [
            f"{name} must be the same in all processes, got {first.get(name)!r} in "
            f"process 0 and {other.get(name)!r} in process {number}"
            for name in {**first, **other}
            if first.get(name) != other.get(name)
        ]:
            raise SettingsError(found)


def _load_everywhere(config: Config) -> RunData:
    """Loads the data in every process, and compares them.

    Raises:
      DataError: if they differ; as `load_data`, too.
    """
    data = processes.together(lambda: load_data(config))
    of_all = processes.gather(dict(data.hashes))
    for number, hashes in enumerate(of_all):
        if hashes != of_all[0]:
            raise DataError(
                f"Process {number} has other examples of {config.data.name} than "
                "process 0: all need the same data."
            )
    return data


def evaluate_workdir(workdir: str | Path) -> dict[str, Any]:
    """Evaluates the newest checkpoint of a run as the run does after its last round.

    It evaluates all clients, or the first `eval.num_clients` if that is not 0. If the
    run goes on and has removed the checkpoint meanwhile, it takes the newest once more.

    Args:
      workdir: folder of the run.

    Returns:
      `round` and the accuracies under the names of metrics.jsonl.

    Raises:
      WorkdirError, CheckpointError, DataError: if there is nothing to evaluate.
    """
    config = read_usable_config(workdir)
    with product_precision(config.precision):
        learning = make_learning(config)
        experiment = Experiment(learning, load_data(config))
        origin = origin_of(config, experiment.data.hashes)
        ids = last_clients(config)

        def evaluate() -> dict[str, Any]:
            state, rows = restore(learning, Path(workdir), origin=origin)
            accuracies = Evaluation(experiment, ONE_DEVICE)(state, rows, ids)
            row = metrics.accuracy_row(experiment, read_devices(accuracies))
            return {"round": int(state.round)} | row

        return of_newest(Path(workdir), evaluate)
