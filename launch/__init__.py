"""The commands."""

import signal
import sys

# While `python -m` imports a launcher, Ctrl-C ends the process at once. The exception
# that Python raises would be lost in an import, or shown as a traceback.
# `launch.errors.exit_code` takes it back.
if (
    sys.argv[:1] == ["-m"]
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
    signal.signal(signal.SIGINT, signal.SIG_DFL)
