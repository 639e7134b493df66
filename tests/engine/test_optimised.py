"""Equal bits in optimised programs, in a process with XLA's default flags."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

POOLING = (
    "tests/models/test_precision.py::test_gradient_of_a_pool_of_what_xla_computes_twice"
)


def test_promises_of_equal_bits_hold_in_optimised_programs():
    assert_passed(6, "not long")


@pytest.mark.long
def test_promises_of_equal_bits_hold_in_all_optimised_programs():
    assert_passed(8, "long or not long")


def assert_passed(count, marks):
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    options = ("-q", "-p", "no:cacheprovider", "-m", marks)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "tests/optimised.py", POOLING],
        cwd=Path(__file__).parents[2],
        env=inherited | {"XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout
    assert f"{count} passed" in done.stdout
