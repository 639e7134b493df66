#!/usr/bin/env bash
# Installs into .venv and trains FedDP on handwritten digits: quickstart.sh [WORKDIR]
set -euo pipefail
case "${1:-}" in
  "") workdir=runs/quickstart ;;
  /* | *://*) workdir=$1 ;;
  *) workdir=$PWD/$1 ;;
esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."

EXTRAS="[report]"
source launch/environment.sh
exec python -m launch.train --config=configs/quickstart.py --workdir="$workdir"
