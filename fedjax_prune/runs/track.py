"""Logs a run's rows to Weights & Biases, MLflow or Trackio, beside metrics.jsonl.

The field `logger` chooses one; only that one is imported. A run that is started again
goes on in the same place. If a logger fails, a warning says so, and the run goes on.
"""

import hashlib
import importlib.util
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from fedjax_prune.engine import processes
from fedjax_prune.runs import environment
from fedjax_prune.runs.metrics_log import read_metrics
from fedjax_prune.runs.settings import SettingsError
from fedjax_prune.runs.workdir import plain_fields
from fedjax_prune.types import Config

PROJECT = "fedjax_prune"
"""The project or experiment that runs are logged to."""
PIP = "pip install 'fedjax_prune[track]'"
PARAM_LENGTH = 6000
"""Characters of a parameter's value in MLflow 3, which refuses or warns of longer ones.

The names of a thousand classes are longer.
"""

Values = Mapping[str, Any]


class Log(Protocol):
    """What rows are written to."""

    def write(self, row: Values) -> None:
        """Writes one row."""
        ...

    def sync(self) -> None:
        """Waits until all rows are on the disk."""
        ...


class Tracker(NamedTuple):
    """A run in a logger.

    Attributes:
      log: (numbers of a round, round) -> None.
      finish: ends the run there.
    """

    log: Callable[[dict[str, float], int], Any]
    finish: Callable[[], Any]


class TrackedLog:
    """Writes rows to a log and then to a tracker, until that fails."""

    def __init__(self, inner: Log, name: str, tracker: Tracker):
        """Takes a log that stays open, and the tracker with its name."""
        self._inner, self._name = inner, name
        self._tracker: Tracker | None = tracker

    def write(self, row: Values) -> None:
        """Writes one row; errors of the inner log are raised."""
        self._inner.write(row)
        self.track(row)

    def sync(self) -> None:
        """Waits for the inner log; errors of it are raised."""
        self._inner.sync()

    def track(self, row: Values) -> None:
        """Writes one row to the tracker alone."""
        if self._tracker is None:
            return
        numbers = {
            name: float(value)
            for name, value in row.items()
            if isinstance(value, int | float) and name != "round"
        }
        self._try(lambda tracker: tracker.log(numbers, row["round"]))

    def finish(self) -> None:
        """Ends the tracker's run."""
        self._try(lambda tracker: tracker.finish())

    def _try(self, action: Callable[[Tracker], Any]) -> None:
        if self._tracker is None:
            return
        try:
            action(self._tracker)
        # Each logger has errors of its own, and none of them is worth a run.
        except Exception as error:
            self._tracker = None
            warnings.warn(_failed(self._name, error), stacklevel=3)


@contextmanager
def tracked(log: Log, config: Config, folder: Path, finished: int) -> Iterator[Any]:
    """Adds the logger that the configuration names to a log.

    Args:
      log: of the rows; processes other than the first log nothing else.
      config: of the run.
      folder: its workdir.
      finished: rounds done before; before the first one, the row of the preparation is
        logged at once.

    Yields:
      What rows are written to.
    """
    name = config.logger
    if name == "none" or not processes.is_first():
        yield log
        return
    try:
        tracker = _OPEN[name](folder, plain_fields(config))
    except Exception as error:
        warnings.warn(_failed(name, error), stacklevel=2)
        yield log
        return
    both = TrackedLog(log, name, tracker)
    for row in [] if finished else read_metrics(folder):
        both.track(row)
    try:
        yield both
    finally:
        both.finish()


def require_installed(name: str) -> None:
    """Refuses a logger that is not installed.

    Args:
      name: value of the field `logger`.

    Raises:
      SettingsError: with the command that installs it.
    """
    if name != "none" and importlib.util.find_spec(name) is None:
        raise SettingsError([f"logger must be an installed one, got {name!r}: {PIP}"])


def _wandb(folder: Path, fields: Mapping[str, Any]) -> Tracker:
    import wandb  # pyright: ignore[reportMissingImports]

    run = wandb.init(
        project=PROJECT,
        name=folder.name,
        id=_identity(folder),
        resume="allow",
        dir=str(folder),
        config=dict(fields),
    )
    return Tracker(lambda numbers, step: run.log(numbers, step=step), run.finish)


def _mlflow(folder: Path, fields: Mapping[str, Any]) -> Tracker:
    import mlflow  # pyright: ignore[reportMissingImports]

    tags = {"workdir": _identity(folder)}
    mlflow.set_experiment(PROJECT)
    words = f"tags.workdir = '{tags['workdir']}'"
    found = mlflow.search_runs(filter_string=words, output_format="list")
    if found:
        mlflow.start_run(run_id=found[0].info.run_id)
    else:
        mlflow.start_run(run_name=folder.name, tags=tags)
        # A value can be set once, and a request has at most 100.
        values = [(name, _short(value)) for name, value in fields.items()]
        for first in range(0, len(values), 100):
            mlflow.log_params(dict(values[first : first + 100]))
    return Tracker(
        lambda numbers, step: mlflow.log_metrics(
            # Its store of files makes folders of slashes.
            {name.replace("/", "."): x for name, x in numbers.items()},
            step=step,
        ),
        mlflow.end_run,
    )


def _trackio(folder: Path, fields: Mapping[str, Any]) -> Tracker:
    import trackio  # pyright: ignore[reportMissingImports]

    name = f"{folder.name}-{_identity(folder)}"
    trackio.init(project=PROJECT, name=name, config=dict(fields), resume="allow")
    return Tracker(
        lambda numbers, step: trackio.log(numbers, step=step), trackio.finish
    )


_OPEN = {"wandb": _wandb, "mlflow": _mlflow, "trackio": _trackio}
"""Value of the field `logger` -> what opens it; `none` opens nothing."""


def _short(value: Any) -> str:
    """The text of a value, cut at PARAM_LENGTH characters."""
    text = str(value)
    return text if len(text) <= PARAM_LENGTH else f"{text[: PARAM_LENGTH - 3]}..."


def _identity(folder: Path) -> str:
    """The same 12 digits for each start of the run in a folder.

    A run that begins anew in a folder has others.
    """
    starts = environment.read(folder)
    began = starts[0].get("started", "") if starts else ""
    return hashlib.sha256(f"{folder} {began}".encode()).hexdigest()[:12]


def _failed(name: str, error: Exception) -> str:
    return (
        f"logger {name} has failed, and the run goes on without it: "
        f"{type(error).__name__}: {error}"
    )
