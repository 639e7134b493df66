#!/usr/bin/env bash
# Makes a virtual environment for each peer, or for those named, in DIR/NAME:
#   bash launch/benchmark/environments.sh DIR [torch] [pfl] [flower] [fedjax]
# PYTHON names the interpreter to use, Python 3.11 or 3.12.
set -euo pipefail

# FedJAX does not work with the current JAX; these versions work together.
packages() {
  case "$1" in
    torch) echo torch==2.13.0 numpy ;;
    pfl) echo torch==2.13.0 pfl==0.6.0 ;;
    flower) echo torch==2.13.0 'flwr[simulation]==1.41.0' ;;
    fedjax)
      echo fedjax==0.0.17 jax==0.4.30 jaxlib==0.4.30 dm-haiku==0.0.12 \
        optax==0.2.3 chex==0.1.86 numpy==1.26.4 scipy==1.13.1
      ;;
    *)
      echo "error: no peer is called $1: torch, pfl, flower or fedjax." >&2
      return 1
      ;;
  esac
}

find_python() {
  local candidate candidates check
  check="import sys; sys.exit(sys.version_info[:2] not in [(3, 11), (3, 12)])"
  candidates=(python3.11 python3.12 python3 python)
  [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    if "$candidate" - 2>/dev/null <<<"$check"; then
      echo "$candidate"
      return
    fi
  done
  echo "error: Python 3.11 or 3.12 is needed; PYTHON=/path/to/python names it." >&2
  return 1
}

make_environment() {
  local name=$1 wanted python requirements
  wanted=$(packages "$name")
  # The stamp holds what was installed, so a changed pin installs again. So does an
  # interpreter that is gone.
  if [ "$(cat "$dir/$name/installed" 2>/dev/null)" = "$wanted" ] &&
    "$dir/$name/bin/python" -c '' 2>/dev/null; then
    return
  fi
  python=$(find_python)
  echo "Installing into $dir/$name (some minutes) ..."
  "$python" -m venv --clear "$dir/$name"
  read -ra requirements <<<"$wanted"
  "$dir/$name/bin/pip" install --quiet --disable-pip-version-check "${requirements[@]}"
  echo "$wanted" >"$dir/$name/installed"
}

if [ $# -eq 0 ]; then
  echo "usage: bash $0 DIR [torch] [pfl] [flower] [fedjax]" >&2
  exit 2
fi
dir=$1
shift
[ $# -gt 0 ] || set -- torch pfl flower fedjax
mkdir -p "$dir"
if [ $# -gt 1 ]; then
  # Each in a shell of its own: one that cannot be made does not keep others from it.
  status=0
  for name in "$@"; do
    bash "${BASH_SOURCE[0]}" "$dir" "$name" || status=1
  done
  exit $status
fi
make_environment "$1"
