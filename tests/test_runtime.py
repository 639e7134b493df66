"""How a process is set up before JAX is first used."""

import os
import subprocess
import sys
from pathlib import Path

CODE = """
import os
from launch import runtime
runtime.prepare()
import jax
print(os.environ["XLA_FLAGS"])
print(len(jax.devices()), float(jax.jit(lambda x: x + 1)(1.0)))
"""


def test_cpu_devices_wait_and_the_users_flags_come_last():
    own = "--xla_cpu_collective_call_warn_stuck_timeout_seconds=9"
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")
    }
    # A flag that XLA does not know would end the process.
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=Path(__file__).parent.parent,
        env=environment | {"XLA_FLAGS": own, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    flags, result = done.stdout.splitlines()
    assert "--xla_cpu_collective_call_terminate_timeout_seconds=" in flags
    assert flags.endswith(own)
    assert result == f"{len(os.sched_getaffinity(0))} 2.0"
