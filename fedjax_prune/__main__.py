"""The launchers from any folder: python -m fedjax_prune VERB --FLAG=VALUE ...

`python -m fedjax_prune VERB --help` says what a verb does, with its flags, the fields
of its configuration and examples. In a checkout `python -m launch.benchmark` times
rounds, and `python -m launch.docs` writes the API reference.
"""

import ast
import runpy
import sys
from pathlib import Path

import fedjax_prune
from fedjax_prune.runs import console

VERBS = ("train", "evaluate", "report", "export", "sweep", "verify", "compile")


def main() -> None:
    """Runs the launcher that the first argument names, with the other arguments."""
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb in ("--help", "-h", "--version"):
        try:
            print(fedjax_prune.__version__ if verb == "--version" else _help())
            sys.stdout.flush()
        except BrokenPipeError:  # such as `--help | head`
            console.discard(sys.stdout)
            sys.exit(1)
        sys.exit(0)
    if verb not in VERBS:
        known = ", ".join(VERBS)
        print(f"error: the verb must be one of {known}, got {verb!r}", file=sys.stderr)
        sys.exit(1)
    if _folder().parent != Path(__file__).parent:
        # A checkout has the launchers beside the library, an installation inside.
        fedjax_prune.__path__.append(str(_folder().parent))
    del sys.argv[1]
    runpy.run_module(f"fedjax_prune.launch.{verb}", run_name="__main__", alter_sys=True)


def _folder() -> Path:
    """The folder of the launchers."""
    inside = Path(__file__).parent / "launch"
    return inside if inside.is_dir() else inside.parents[1] / "launch"


def _help() -> str:
    """The verbs, each with the first line of its launcher, which is not imported."""
    lines = [(__doc__ or "").strip(), "", "Verbs:"]
    for verb in VERBS:
        source = ast.parse((_folder() / f"{verb}.py").read_text())
        first, _, _ = (ast.get_docstring(source) or "").partition("\n")
        lines.append(f"  {verb:10}{first}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
