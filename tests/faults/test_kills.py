"""Runs that are killed at every place that could hurt, against an unbroken twin.

After each blow the same command is given again. The run must end as if nothing had
happened: the same bits in the server's state and in the rows of clients, and a row of
metrics for each round, once.
"""

import signal

import jax
import numpy as np
import pytest

from fedjax_prune.runs.checkpoint import latest, rounds
from fedjax_prune.runs.interrupt import INTERRUPTED
from fedjax_prune.runs.metrics_log import read_metrics
from tests.faults.lives import Blow, live
from tests.small_runs import (
    final_state,
    plain_config,
    pruned_config,
    tiny_config,
)

LOG = "fedjax_prune.runs.metrics_log:MetricsLog.write"
SAVE = "fedjax_prune.runs.checkpoint:"
KILLED = -signal.SIGKILL

DISPATCH = "fedjax_prune.runs.dispatch:Dispatcher.dispatch"

BEFORE_SAVING = {
    "before anything is written": Blow("fedjax_prune.runs.train:open_shared_workdir"),
    "before the config is written": Blow("fedjax_prune.runs.train:write_config"),
    "in the first round": Blow(DISPATCH),
    "after the first round": Blow(LOG, after=True),
}
IN_A_SAVE = {
    "before the rows": Blow(SAVE + "_begin"),
    "after the rows": Blow(SAVE + "_begin", after=True),
    "before the state": Blow("fedjax_prune.runs.state_files:write"),
    "before it is read back": Blow("fedjax_prune.runs.state_files:_read_back"),
    "before the manifest": Blow(SAVE + "write_manifest"),
    "before it gets its name": Blow(SAVE + "write_manifest", after=True),
}
BETWEEN_SAVES = {
    "before an old one is deleted": Blow(SAVE + "remove", 2),
    "between rounds": Blow(LOG),
    "after a round": Blow(LOG, after=True),
    "while the metrics are cut": Blow("fedjax_prune.runs.metrics_log:replace"),
}
STOPS = {
    "SIGTERM within a round": Blow(DISPATCH, after=True, number=signal.SIGTERM),
    "SIGHUP within a round": Blow(DISPATCH, after=True, number=signal.SIGHUP),
}
AT_THE_END = {"before the page": Blow("fedjax_prune.runs.train:_draw_page")}


def assert_like_the_twin(config, workdir, twin, first=1):
    jax.tree.map(
        np.testing.assert_array_equal,
        final_state(config, twin),
        final_state(config, workdir),
    )
    numbers = [row["round"] for row in read_metrics(workdir)]
    assert numbers == list(range(first, config.rounds + 1))
    assert not (workdir / "checkpoints" / ".unfinished").exists()
    assert not (workdir / "lock").exists()


def survive(config, folder, *, first=1, only=None):
    """Kills one run at every place in turn, or at some of them, and lets it end."""

    def places(group):
        return [item for item in group.items() if only is None or item[0] in only]

    workdir, twin = folder / "run", folder / "twin"
    checkpoints = workdir / "checkpoints"
    for where, blow in places(BEFORE_SAVING):
        assert live(config, workdir, blow) == KILLED, where
        # A preparation is saved as round 0.
        prepared = first == 0 and blow.place in (DISPATCH, LOG)
        assert rounds(checkpoints) == [0] * prepared, where
    for where, blow in places(IN_A_SAVE):
        before = rounds(checkpoints)
        assert live(config, workdir, blow) == KILLED, where
        assert rounds(checkpoints) == before, where
    for where, blow in places(BETWEEN_SAVES):
        assert live(config, workdir, blow) == KILLED, where
    for where, blow in places(STOPS):
        before = latest(checkpoints) or 0
        assert live(config, workdir, blow) == INTERRUPTED, where
        assert latest(checkpoints) == before + 1, where
    for where, blow in places(AT_THE_END):
        assert live(config, workdir, blow) == KILLED, where
    assert live(config, workdir) == 0
    assert live(config, twin) == 0
    assert_like_the_twin(config, workdir, twin, first)


def test_a_run_survives_the_places_that_matter_most(tmp_path):
    only = {"before it gets its name", "after a round", "SIGTERM within a round"}
    survive(plain_config(rounds=8), tmp_path, only=only)


@pytest.mark.long
def test_fedavg_survives(tmp_path):
    survive(plain_config(rounds=20), tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("client_rows", ["device", "host"])
def test_feddp_survives(client_rows, tmp_path):
    survive(tiny_config(rounds=20, client_rows=client_rows), tmp_path)


@pytest.mark.long
def test_autoflip_on_compacted_rounds_survives(tmp_path):
    config = pruned_config(rounds=20, devices=1, compact_training=True)
    survive(config, tmp_path, first=0)
