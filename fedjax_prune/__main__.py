"""The launchers from any folder: python -m fedjax_prune VERB --FLAG=VALUE ...

VERB is train, evaluate, report, export, sweep, verify or compile. What it does is said
by `python -m fedjax_prune VERB --help`. For example:

    python -m fedjax_prune train --config=quickstart --workdir=runs/quickstart
"""

import runpy
import sys
from pathlib import Path

import fedjax_prune

VERBS = ("train", "evaluate", "report", "export", "sweep", "verify", "compile")


def main() -> None:
    """Runs the launcher that the first argument names, with the other arguments."""
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb in ("--help", "-h", "--version"):
        print(fedjax_prune.__version__ if verb == "--version" else (__doc__ or ""))
        sys.exit(0)
    if verb not in VERBS:
        known = ", ".join(VERBS)
        print(f"error: the verb must be one of {known}, got {verb!r}", file=sys.stderr)
        sys.exit(1)
    package = Path(__file__).parent
    if not (package / "launch").is_dir():
        # A checkout has the launchers beside the library, an installation inside.
        fedjax_prune.__path__.append(str(package.parent))
    del sys.argv[1]
    runpy.run_module(f"fedjax_prune.launch.{verb}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
