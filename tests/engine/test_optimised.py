"""Equal bits in optimised programs, in a process with XLA's default flags."""

import os
import subprocess
import sys
from pathlib import Path


def test_promises_of_equal_bits_hold_in_optimised_programs():
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    options = ("-q", "-p", "no:cacheprovider")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "tests/optimised.py"],
        cwd=Path(__file__).parents[2],
        env=inherited | {"XLA_FLAGS": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert "6 passed" in done.stdout
