#!/usr/bin/env bash
# Installs into .venv and trains FedDP on handwritten digits: quickstart.sh [WORKDIR]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

EXTRAS="[report]"
source launch/environment.sh
exec python -m launch.train --config=configs/quickstart.py \
  --workdir="${1:-runs/quickstart}"
