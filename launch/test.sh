#!/usr/bin/env bash
# Installs the test extra into .venv and runs every check; with --quick, only those that
# take a minute and a half in all; with --long, only the tests that take minutes. Other
# arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# jax2onnx needs an older Orbax than all else, so it has an environment of its own, which
# finds the rest in .venv.
make_onnx_environment() {
  local stamp=.venv/onnx/installed where='import sysconfig as s; print(s.get_path("purelib"))'
  if [ "$stamp" -nt setup.cfg ]; then
    return
  fi
  echo "Installing into $PWD/.venv/onnx (a minute the first time) ..."
  python -m venv .venv/onnx
  python -c "$where" >"$(.venv/onnx/bin/python -c "$where")/rest.pth"
  .venv/onnx/bin/pip install --quiet --disable-pip-version-check --no-compile -e ".[onnx]"
  touch "$stamp"
}

EXTRAS="[test]"
# A round is compiled for a TPU slice, rows are kept in an S3 of this machine, Flower
# simulates nodes, Hugging Face's library makes a data set, and the API reference is made.
if [ "${1:-}" = --long ]; then
  EXTRAS="[test,docs,flower,huggingface,cloud,emulator]"
  # There is no libtpu for other systems; the test that needs it is skipped there.
  if [ "$(uname -sm)" = "Linux x86_64" ]; then EXTRAS="${EXTRAS%]},tpu]"; fi
fi
source launch/environment.sh
if [ "${1:-}" = --quick ]; then
  shift
  set -- tests/test_architecture.py tests/test_doctests.py tests/data/test_partition.py \
    tests/models/test_{costs,gates,task,traced}.py \
    tests/engine/test_{cohort,evaluate,server,solver,transforms}.py \
    tests/pruning/test_{enforce,transport}.py \
    tests/algorithms/test_{agreement,algorithms,feddyn,scaffold}.py \
    tests/runs/test_{checkpoint,console,fields,relations,report,settings}.py "$@"
fi
if [ "${1:-}" = --long ]; then
  shift
  make_onnx_environment
  # What is skipped is told with the reason.
  set -- -m long -rs "$@"
fi
status=0
ruff format --check --quiet || status=1
ruff check --quiet || status=1
pyright || status=1
# Each process finds in the session's cache what the other has compiled.
pytest --numprocesses=2 --dist=worksteal "$@" || status=1
exit $status
