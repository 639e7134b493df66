"""How a launcher ends: an error that a user can fix is one line, not a traceback."""

import logging as python_logging
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from absl import logging

from fedjax_prune.data.datasets import DataError
from fedjax_prune.engine.outcome import TrainingError
from fedjax_prune.engine.processes import ProcessError
from fedjax_prune.engine.rows_on_disk import RowsError
from fedjax_prune.runs import console
from fedjax_prune.runs.checkpoint import CheckpointError
from fedjax_prune.runs.interrupt import INTERRUPTED
from fedjax_prune.runs.settings import SettingsError
from fedjax_prune.runs.workdir import WorkdirError

LOST = 75
"""Exit code if other processes of a run are lost or not reached: "try again"."""


class UnreachedError(RuntimeError):
    """The other processes of a run are not reached, but may be at the next try."""


def exit_code(command: Callable[[], int]) -> int:
    """Runs a command and prints its errors.

    Returns:
      The code of the command; after an error 1, LOST or INTERRUPTED.
    """
    open_standard_streams()
    # The library has given it up for the time of its imports.
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # The launcher's default would print every step of JAX, Orbax and TFDS.
    logging.set_verbosity(logging.ERROR)
    # It prints a traceback for each try to reach a bucket, and raises the last error.
    python_logging.getLogger("gcsfs").setLevel(python_logging.CRITICAL)
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        code = command()
        sys.stdout.flush()
        return code
    except SettingsError as error:
        console.print_error(error.problems)
    except (
        CheckpointError,
        DataError,
        ProcessError,
        RowsError,
        TrainingError,
        WorkdirError,
    ) as error:
        console.print_error(str(error))
    except UnreachedError as error:
        console.print_error(str(error))
        return LOST
    except BrokenPipeError:
        console.discard(sys.stdout)
    except OSError as error:
        # Such as a full disk or a folder without permission.
        where = f"{error.filename}: " if error.filename else ""
        console.print_error(f"{where}{error.strerror or error}")
    except KeyboardInterrupt as error:
        console.print_error(str(error) or "stopped")
        return INTERRUPTED
    return 1


def open_standard_streams() -> None:
    """Opens closed standard streams on the null device.

    Otherwise the next opened file would get the stream's number, and native code would
    log into that file. Python sets `sys.stdout` to None if it is closed at the start.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is None:
        sys.stdout = _null()
    if sys.stderr is None:
        sys.stderr = _null()


def _null() -> TextIO:
    # Opened by path, because a file that Python opened may have the stream's number.
    return Path(os.devnull).open("w")
