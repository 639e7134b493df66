"""How a process is set up before JAX is first used."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch import runtime

ROOT = Path(__file__).parents[2]

CODE = """
import os
from launch import runtime
runtime.configure()
import jax
print(os.environ["XLA_FLAGS"])
print(len(jax.devices()), float(jax.jit(lambda x: x + 1)(1.0)))
print(jax.config.jax_compilation_cache_dir)
"""


def run(code, environment=(), without=(), **changes):
    """Runs code in a process that knows nothing of the test's own set-up."""
    own = ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES", *without)
    inherited = {k: v for k, v in os.environ.items() if k not in own}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=inherited | {"JAX_PLATFORMS": "cpu"} | dict(environment) | changes,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines(), done.stderr


def test_cpu_devices_wait_and_the_users_flags_come_last():
    own = "--xla_cpu_collective_call_warn_stuck_timeout_seconds=9"
    # A flag that XLA does not know would end the process.
    (flags, result, _), _ = run(CODE, XLA_FLAGS=own)
    assert "--xla_cpu_collective_call_terminate_timeout_seconds=" in flags
    assert flags.endswith(own)
    assert result == f"{len(runtime.cores())} 2.0"


def test_every_core_counts_where_the_system_does_not_say():
    """As on macOS."""
    code = f"import os; del os.sched_getaffinity{CODE}"
    (_, result, _), _ = run(code)
    assert result == f"{os.cpu_count()} 2.0"


def test_compiled_programs_are_kept_in_the_users_cache(tmp_path):
    (*_, folder), told = run(
        CODE, without=["JAX_COMPILATION_CACHE_DIR"], XDG_CACHE_HOME=str(tmp_path)
    )
    assert Path(folder) == tmp_path / "fedjax_prune" / "compiled"
    assert told == ""


NO_HOME = "import pwd; del pwd.getpwuid; pwd.getpwuid = lambda uid: {}[uid]"


@pytest.mark.parametrize(
    ("before", "cache", "reason"),
    [
        ("", __file__, "Not a directory"),
        (NO_HOME, "", "Could not determine home directory"),
    ],
)
def test_without_a_cache_a_run_goes_on_and_says_so_once(before, cache, reason):
    (_, result, folder), told = run(
        before + CODE,
        without=["JAX_COMPILATION_CACHE_DIR", "HOME"],
        XDG_CACHE_HOME=cache,
    )
    assert result == f"{len(runtime.cores())} 2.0"
    assert folder == "None"
    assert told.count("compiled programs are not kept for the next run") == 1
    assert reason in told


def test_a_child_says_why_it_has_no_platform(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert runtime.platform_of_children() == ("cpu", "")
    monkeypatch.setenv("JAX_PLATFORMS", "abacus")
    platform, said = runtime.platform_of_children()
    assert platform == "" and "Unable to initialize backend 'abacus'" in said


STUCK = """
import time
from launch import runtime
runtime.configure()
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec as P

def wait(x):
    if x[0] == 0:
        time.sleep(2)
    return x

def add(x):
    return jax.lax.psum(jax.pure_callback(wait, x, x), "d")

mesh = Mesh(jax.devices(), "d")
add = jax.jit(jax.shard_map(add, mesh=mesh, in_specs=P("d"), out_specs=P()))
print(add(jnp.arange(2.0)))
"""


@pytest.mark.parametrize("level", [None, "ERROR"])
def test_alarms_of_xla_are_not_printed_unless_wanted(level):
    """A slow compilation raises its alarm after minutes, so another is raised here."""
    wanted = {} if level is None else {"JAX_LOGGING_LEVEL": level}
    (result,), told = run(
        STUCK,
        wanted,
        XLA_FLAGS="--xla_cpu_collective_call_warn_stuck_timeout_seconds=1",
        JAX_NUM_CPU_DEVICES="2",
    )
    assert result == "[1.]"
    assert ("may be stuck" in told) == (level is not None)
