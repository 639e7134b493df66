"""Equal bits in optimised programs, in a process with XLA's default flags."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

POOLING = (
    "tests/models/test_precision.py::test_gradient_of_a_pool_of_what_xla_computes_twice"
)


DEVICES = "tests/engine/test_placement.py::test_every_algorithm_has_the_same_bits"
MASKED = tuple(f"{DEVICES}_on_two_devices[{name}]" for name in ("autoflip", "prunefl"))
COMPACTED = "tests/runs/test_pruned_runs.py::test_compacted_rounds_end_as_whole_ones"


def test_promises_of_equal_bits_hold_in_optimised_programs():
    assert_passed(8, "not long", "tests/optimised.py", POOLING, *MASKED)


@pytest.mark.long
def test_promises_of_equal_bits_hold_in_all_optimised_programs():
    tests = ("tests/optimised.py", POOLING, *MASKED, COMPACTED)
    assert_passed(11, "long or not long", *tests)


def assert_passed(count, marks, *tests):
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    options = ("-q", "-p", "no:cacheprovider", "-m", marks)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *tests],
        cwd=Path(__file__).parents[2],
        env=inherited | {"XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout
    assert f"{count} passed" in done.stdout
