#!/usr/bin/env bash
# Installs the test extra into .venv and runs every check; with --quick a core of them,
# which takes a minute and a half. Other arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

EXTRAS="[test]"
source launch/environment.sh
if [ "${1:-}" = --quick ]; then
  shift
  set -- -m quick "$@"
fi
status=0
ruff format --check --quiet || status=1
ruff check --quiet || status=1
pyright || status=1
# What one process has compiled the other finds in the cache of the session.
pytest --numprocesses=2 --dist=worksteal "$@" || status=1
exit $status
