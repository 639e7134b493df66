"""What a user can mend is told in one line, without a traceback."""

from collections.abc import Callable

from absl import logging

from fedjax_prune import console, outcome
from fedjax_prune.checkpoint import CheckpointError
from fedjax_prune.data.datasets import DataError
from fedjax_prune.settings import SettingsError
from fedjax_prune.workdir import WorkdirError


def exit_code(command: Callable[[], int]) -> int:
    """Runs a command; prints its errors and returns 1 if it has some."""
    # The launcher's default would print every step of JAX, Orbax and TFDS.
    logging.set_verbosity(logging.ERROR)
    try:
        return command()
    except SettingsError as error:
        console.print_error(error.problems)
    except (CheckpointError, DataError, WorkdirError, outcome.TrainingError) as error:
        console.print_error(str(error))
    return 1
