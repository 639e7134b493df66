"""What the loop of a run reads from the devices, and when."""

import time
import traceback

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_prune.engine import row_files, rows_on_host, store
from fedjax_prune.runs import loop, programs, state_files, train
from fedjax_prune.runs.dispatch import Dispatched
from fedjax_prune.runs.metrics_log import read_metrics
from fedjax_prune.runs.saving import Saver
from tests.small_runs import tiny_config

FILES = {m.__file__ for m in (loop, row_files, rows_on_host, state_files, store)}


class Sealed:
    """An array that can only be copied to the host: `float` and the like raise."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return np.array(self.array, dtype)


def seal(tree):
    return jax.tree.map(Sealed, tree)


def unseal(tree):
    return jax.tree.map(lambda x: x.array if isinstance(x, Sealed) else x, tree)


class SealedRounds:
    """Rounds whose results the loop can only pass on, and that note when they start."""

    def __init__(self, rounds, events):
        self.rounds, self.events = rounds, events

    @property
    def seconds(self):
        return self.rounds.seconds

    @property
    def compiled(self):
        return self.rounds.compiled

    def __call__(self, inputs, test, wanted):
        self.events.append("a round starts")
        inputs = inputs._replace(state=unseal(inputs.state))
        state, rows, sums = self.rounds(inputs, test, wanted)
        return seal(state), rows, seal(sums)


class Recompiled:
    """Rounds of which the third says that it was compiled for 100 seconds."""

    def __init__(self, rounds):
        self.rounds, self.seconds, self.compiled, self.calls = rounds, 0.0, 0.0, 0

    def __call__(self, *args):
        self.calls += 1
        found = self.rounds(*args)
        if self.calls == 3:
            self.seconds, self.compiled = 100.0, time.monotonic()
        else:
            self.seconds, self.compiled = self.rounds.seconds, self.rounds.compiled
        return found


class Careless(SealedRounds):
    """Rounds beside which the host hands an array to a computation."""

    def __call__(self, inputs, test, wanted):
        jnp.sin(np.ones(2, np.float32))
        return self.rounds(inputs, test, wanted)


class SealedEvaluation(programs.Evaluation):
    def __call__(self, state, rows, client_ids):
        return seal(super().__call__(unseal(state), rows, client_ids))


def spy_on_reads(patch, events):
    """Notes which functions of FILES copy arrays of a run, or have them copied."""

    def spy_on(owner, name):
        convert = getattr(owner, name)

        def spied(*args, **kwargs):
            stack = traceback.extract_stack()[:-1]
            ours = [frame.name for frame in stack if frame.filename in FILES]
            leaves = jax.tree.leaves(args)
            reads = any(isinstance(x, jax.Array | Sealed) for x in leaves)
            # JAX calls numpy, too, when it compiles.
            direct = owner is not np or stack[-1].filename in FILES
            direct |= any(isinstance(x, Sealed) for x in leaves)
            if reads and direct and "run_rounds" in ours:
                events.append(ours[-1])
            return convert(*args, **kwargs)

        patch.setattr(owner, name, spied)

    for name in ("asarray", "array", "copy", "copyto"):
        spy_on(np, name)
    spy_on(jax, "device_get")


@pytest.fixture(scope="module", params=["device", "host", "disk"])
def watched(request, tmp_path_factory):
    """Where the rows are, and what happened in order: rounds and readers."""
    events = []
    make_rounds, save = loop.make_rounds, Saver.save

    def sealed_rounds(experiment, placement):
        return SealedRounds(make_rounds(experiment, placement), events)

    def save_unsealed(saver, finished, state, rows):
        save(saver, finished, unseal(state), rows)

    config = tiny_config(rounds=5, save_every=3, client_rows=request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_rounds", sealed_rounds)
        patch.setattr(loop, "Evaluation", SealedEvaluation)
        patch.setattr(Saver, "save", save_unsealed)
        spy_on_reads(patch, events)
        assert train.run(config, tmp_path_factory.mktemp("watched")) == 0
    return request.param, events


def test_only_one_function_reads_from_the_device(watched):
    """The transfer guard of the CPU does not see device-to-host copies.

    Only saving reads, too, and the code that brings rows to a store on the host. Rows
    on disk are read by a thread of their own.
    """
    client_rows, events = watched
    others = {"device": {"pieces_of_devices"}, "host": {"_settled"}, "disk": set()}
    readers = set(events) - {"a round starts"}
    assert readers == {"read_devices", "copy_leaves"} | others[client_rows]


def test_an_implicit_transfer_in_the_loop_is_an_error(tmp_path, monkeypatch):
    make_rounds = loop.make_rounds
    monkeypatch.setattr(
        loop, "make_rounds", lambda *args: Careless(make_rounds(*args), [])
    )
    with pytest.raises(jax.errors.JaxRuntimeError, match="host-to-device transfer"):
        train.run(tiny_config(rounds=2, save_every=2), tmp_path)


def test_a_round_is_dispatched_before_the_previous_one_is_read(watched):
    """Rows are written one round late, except where a checkpoint is due."""
    _, events = watched
    letters = {"a round starts": "s", "read_devices": "r"}
    order = "".join(letters.get(event, "") for event in events)
    assert order == "ssr" + "srr" + "ssrr"


def test_compiling_takes_no_time_from_the_round_before(tmp_path, monkeypatch):
    """The devices run round 2 while round 3 is compiled, here for 100 seconds."""
    make_rounds = loop.make_rounds
    monkeypatch.setattr(
        loop, "make_rounds", lambda *args: Recompiled(make_rounds(*args))
    )
    assert train.run(tiny_config(rounds=4, save_every=4), tmp_path) == 0
    rows = read_metrics(tmp_path)
    assert rows[2]["seconds/compile"] == 100.0
    assert all(0 < row["seconds"] < 100 for row in rows)


@pytest.mark.parametrize(("moment", "seconds"), [(5.0, 3.0), (8.0, 2.0), (11.0, 0.0)])
def test_seconds_of_compiling_after_a_moment_by_hand(moment, seconds):
    """It took 3 seconds, from 7 to 10."""
    found = dict.fromkeys(Dispatched._fields) | {
        "compile_seconds": 3.0,
        "compiled": 10.0,
    }
    assert Dispatched(**found).compiled_after(moment) == seconds
