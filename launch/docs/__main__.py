"""Writes the API reference: a page for each module, made of its docstrings.

python -m launch.docs [--out=build/docs] [--source]

It runs in a checkout and needs `pip install -e '.[docs]'`. index.html opens without a
network; links to papers are the only ones that leave the folder. Anything that pdoc
warns of, such as an annotation that it cannot read, is an error. For example:

    python -m launch.docs
    python -m launch.docs --out=/tmp/reference
    python -m launch.docs --source
"""

import importlib.util
import warnings
from pathlib import Path

from absl import app, flags

from fedjax_prune.runs.settings import SettingsError
from fedjax_prune.runs.workdir import local_folder

from ..errors import exit_code
from ..flags import not_arguments, parse

_OUT = flags.DEFINE_string("out", "build/docs", "folder of the pages")
_SOURCE = flags.DEFINE_bool("source", False, "show the code of each function")

LIBRARY = Path(__file__).parents[2] / "fedjax_prune"


def main(argv: list[str]) -> int:
    """Returns the exit code: 0 if there was no warning."""

    def run() -> int:
        found = not_arguments(argv[1:])
        if not _OUT.value:
            found.append("--out must name a folder, got ''")
        if importlib.util.find_spec("pdoc") is None:
            found.append("pdoc is not installed: pip install -e '.[docs]'")
        if found:
            raise SettingsError(found)
        folder = local_folder(_OUT.value)
        try:
            write(folder, source=_SOURCE.value)
        except UserWarning as warning:
            raise SettingsError([str(warning)]) from warning
        print(folder / "index.html")
        return 0

    return exit_code(run)


def modules() -> list[str]:
    """The package, whose page has the public names, its rooms and its other files."""
    inside = sorted(LIBRARY.glob("[!_]*.py")) + sorted(LIBRARY.glob("[!_]*/"))
    names = (path.stem for path in inside)
    return ["fedjax_prune", *(f"fedjax_prune.{name}" for name in names)]


def write(folder: Path, *, source: bool) -> None:
    """Writes all pages.

    Args:
      folder: made if missing.
      source: show the code of each function.

    Raises:
      UserWarning: if pdoc warns of something.
    """
    import pdoc  # pyright: ignore[reportMissingImports]

    pdoc.render.configure(
        docformat="google",
        footer_text="fedjax_prune",
        show_source=source,
        template_directory=Path(__file__).parent,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        pdoc.pdoc(*modules(), output_directory=folder)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
