"""What sweep and verify do with own data and an own class."""

import pytest

from fedjax_prune.runs import estimates, replay, tables, train
from fedjax_prune.runs.settings import SettingsError
from fedjax_prune.runs.workdir import agree_config
from launch import grid
from tests.own_files import NETS, write_nets, write_pictures


def overrides(tmp_path):
    changes = {
        "data.name": "image_folder",
        "data.dir": write_pictures(tmp_path / "data"),
        "data.num_clients": 2,
        "data.num_train": 0,
        "data.min_size": 1,
        "data.partitioner": "iid",
        "eval.num_examples": 0,
        "model.name": f"{write_nets(tmp_path)}:Small",
        "algorithm.name": "fedavg",
        "cohort_size": 2,
        "rounds": 2,
        "lanes": 1,
        "devices": 1,
        "save_every": 1,
    }
    return [f"--config.{name}={value}" for name, value in changes.items()]


@pytest.mark.long
def test_a_sweep_trains_estimates_verifies_and_compares(tmp_path):
    axes = ["model.hidden=4,5"]
    runs = grid.make_grid("quickstart", [], axes, overrides(tmp_path))
    assert [run.config.model.hidden for run in runs] == [4, 5]
    workdirs = [tmp_path / run.folder for run in runs]
    # A picture is multiplied by the kernel at 64 places, and by the dense layer. Of 20
    # pictures of each of 3 classes, 4 are for tests.
    for num_train, trained in ((0, 48), (40, 40)):
        runs[0].config.data.num_train = num_train
        assert estimates.estimate(runs[0].config, workdirs[0]).macs == (
            2 * 3 * (9 * 4 * 64 + 4 * 3) * trained * runs[0].config.client.epochs
        )
    runs[0].config.data.num_train = 0
    for run, workdir in zip(runs, workdirs, strict=True):
        assert train.run(run.config, workdir) == 0
        # What the files held at the start is in the workdir alone.
        agree_config(workdir, run.config)
        assert estimates.is_finished(run.config, workdir)
    assert replay.verify_workdir(workdirs[0]).equal
    table = tables.comparison({"4": workdirs[:1], "5": workdirs[1:]})
    assert " | 2,316 | " in table and table.count("\n") == 4
    write_nets(tmp_path, NETS + "\n")
    with pytest.raises(SettingsError, match=r"model.file_hash is .*, but the run in"):
        train.run(runs[0].config, workdirs[0])
