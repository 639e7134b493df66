# shellcheck shell=bash disable=SC1091
# Sourced: makes .venv beside the code, installs into it when needed, activates it.
# EXTRAS (for example "[test]") names the extras; PYTHON the interpreter to use.

find_python() {
  local candidate candidates
  candidates=(python3.12 python3.11 python3.13 python3 python)
  [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
    then
      echo "$candidate"
      return
    fi
  done
  echo "error: Python 3.11 or newer is needed. Install it, or name it:" >&2
  echo "       PYTHON=/path/to/python3.12 bash $0" >&2
  return 1
}

# Not so once the checkout was moved, or the Python that it was made with is gone.
environment_works() {
  (
    source .venv/bin/activate &&
      python -c 'import os, sys; sys.exit(not os.path.samefile(sys.prefix, ".venv"))'
  ) 2>/dev/null
}

make_environment() {
  local python site stamp
  stamp=".venv/installed${EXTRAS:-}"
  if [ -e .venv ] && ! environment_works; then
    echo "$PWD/.venv does not work and is made anew." >&2
    rm -rf .venv
  fi
  if [ "$stamp" -nt setup.cfg ] && [ "$stamp" -nt pyproject.toml ] &&
    [ "$stamp" -nt launch/environment.sh ]; then
    return
  fi
  if [ ! -x .venv/bin/pip ]; then
    python=$(find_python) || return 1
    if ! "$python" -m venv .venv; then
      rm -rf .venv
      echo "error: $python has no working venv module." >&2
      echo "       On Debian and Ubuntu: sudo apt install python3-venv" >&2
      return 1
    fi
  fi
  echo "Installing into $PWD/.venv (some minutes the first time) ..."
  .venv/bin/pip install --quiet --disable-pip-version-check --no-compile -e ".${EXTRAS:-}" ||
    return 1
  # In the folder above, Python sees a folder with the name of the package, the checkout.
  # It prefers a package that has __init__.py, wherever on its path that is.
  site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') ||
    return 1
  echo "$PWD" >"$site/checkout.pth" || return 1
  touch "$stamp"
}

# Told here, too, because not every shell that sources this ends at an error.
make_environment || return 1
source .venv/bin/activate
# Python keeps the bytecode of what it imports, also where PYTHONDONTWRITEBYTECODE is set.
# Without bytecode, each process spends more than half of its start on compiling.
unset PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX="$PWD/.venv/bytecode"
