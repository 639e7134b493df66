"""What a run's newest checkpoint has, for measurements after the run."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedjax_prune.engine.store import Store
from fedjax_prune.models.precision import product_precision
from fedjax_prune.runs.experiment import Experiment, load_data
from fedjax_prune.runs.learning import make_learning
from fedjax_prune.runs.origin import origin_of
from fedjax_prune.runs.start import restore
from fedjax_prune.runs.workdir import read_usable_config
from fedjax_prune.types import ServerState


@contextmanager
def newest(workdir: Path) -> Iterator[tuple[Experiment, ServerState, Store]]:
    """Yields a run's parts, state and rows, with the precision of its products.

    Args:
      workdir: of the run.

    Raises:
      WorkdirError, CheckpointError, DataError: if there is nothing to measure.
    """
    config = read_usable_config(workdir)
    with product_precision(config.precision):
        experiment = Experiment(make_learning(config), load_data(config))
        origin = origin_of(config, experiment.data.hashes)
        yield experiment, *restore(experiment.learning, workdir, origin=origin)
