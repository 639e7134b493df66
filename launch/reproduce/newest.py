"""What runs' newest checkpoints have, for measurements after the runs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
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


def by_column(
    runs: Mapping[str, Sequence[Path]],
    columns_of: Callable[[Path], Mapping[str, float]],
) -> dict[str, dict[str, dict[int, float]]]:
    """Measures runs.

    Args:
      runs: name -> workdirs of its seeds, at least one.
      columns_of: workdir -> column -> value; all have the same columns.

    Returns:
      Name -> column -> seed -> value.

    Raises:
      WorkdirError, CheckpointError, DataError: if there is nothing to measure.
    """
    found = {}
    for name, workdirs in runs.items():
        seeds = {read_usable_config(w).seed: columns_of(w) for w in workdirs}
        columns = next(iter(seeds.values()))
        found[name] = {
            column: {seed: values[column] for seed, values in seeds.items()}
            for column in columns
        }
    return found
