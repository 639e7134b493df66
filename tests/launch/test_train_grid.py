"""What is refused before a grid goes on in the workdir of an earlier one."""

import json

import pytest

from fedjax_prune.data.datasets import DataError
from fedjax_prune.runs import environment
from fedjax_prune.runs.settings import SettingsError
from launch.grid import Run
from launch.train_grid import check_begun, cost_table, error_of
from tests.made_up_runs import config_of, write_finished
from tests.own_files import NETS, write_nets
from tests.small_runs import own_config


def run_of(config):
    return Run("quickstart", (), config, group="a", folder="a")


def problems(folder, config):
    with pytest.raises(SettingsError) as error:
        check_begun([run_of(config)], folder)
    return error.value.problems


def test_a_finished_run_is_not_shown_as_one_that_was_evaluated_otherwise(tmp_path):
    write_finished(
        tmp_path / "a", config_of(**{"eval.every": 5, "eval.num_examples": 100})
    )
    changes = {"eval.num_clients": 3, "eval.num_examples": 0, "eval.every": 2}
    run = f"the run in {tmp_path / 'a'} was evaluated with"
    assert problems(tmp_path, config_of(**changes)) == [
        f"eval.num_clients is 3, but {run} 0",
        f"eval.num_examples is 0, but {run} 100",
    ]
    check_begun([run_of(config_of(**{"eval.num_examples": 100}))], tmp_path)
    # What is left of a longer run is evaluated as asked.
    check_begun([run_of(config_of(rounds=30, **changes))], tmp_path)


def test_a_run_cannot_end_at_a_round_that_was_not_evaluated(tmp_path):
    """It was stopped there; as it is, no call would ever finish it."""
    config = config_of(rounds=18, **{"eval.every": 5})
    write_finished(tmp_path / "a", config)
    log = tmp_path / "a" / "metrics.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    for name in [name for name in rows[-1] if name.startswith("eval/")]:
        del rows[-1][name]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert problems(tmp_path, config) == [
        f"rounds must be above 18, which the run in {tmp_path / 'a'} has finished "
        "without an evaluation"
    ]
    check_begun([run_of(config_of(rounds=19, **{"eval.every": 5}))], tmp_path)


def test_a_run_cannot_end_at_a_round_that_evaluated_its_cohort_alone(tmp_path):
    """It was stopped there; the last round of a run evaluates all clients."""
    config, longer = config_of(rounds=10), config_of(rounds=20)
    write_finished(tmp_path / "a", config)
    (tmp_path / "a" / environment.FILE).unlink()
    environment.record(tmp_path / "a", longer, 0, {})
    assert problems(tmp_path, config) == [
        f"rounds must be above 10, which the run in {tmp_path / 'a'} has finished "
        "with an evaluation of other clients than those of the last round"
    ]
    # It goes on after the sixth, asked for ten, and ends.
    environment.record(tmp_path / "a", config, 6, {})
    check_begun([run_of(config)], tmp_path)
    # More rounds were asked for since, and none was finished.
    environment.record(tmp_path / "a", longer, 10, {})
    check_begun([run_of(config)], tmp_path)


def test_a_run_of_all_clients_can_end_where_it_was_stopped(tmp_path):
    config = config_of(rounds=10, cohort_size=20)
    write_finished(tmp_path / "a", config)
    (tmp_path / "a" / environment.FILE).unlink()
    environment.record(tmp_path / "a", config_of(rounds=20, cohort_size=20), 0, {})
    check_begun([run_of(config)], tmp_path)


def test_a_class_that_has_changed_is_told_before_anything_is_trained(tmp_path):
    config = own_config(write_nets(tmp_path, NETS))
    check_begun([run_of(config)], tmp_path)
    (tmp_path / "a").mkdir()
    with config.unlocked():
        config.model.file_hash = "of before"
    (tmp_path / "a" / "config.json").write_text(json.dumps(config.to_dict()))
    config.model.file_hash = ""
    first, *_ = problems(tmp_path, config)
    assert first.startswith("model.file_hash is ") and "of before" in first


def test_a_run_that_was_stopped_after_an_earlier_error_goes_on(tmp_path):
    run, log = run_of(config_of()), tmp_path / "a.log"
    for text, error in (
        ("error: no data\n", "error: no data"),
        ("error: no data\nerror: stopped\n", ""),
        ("error: stopped at once; the same command goes on from round 2\n", ""),
        ("error: no data\nround 1\n", ""),
    ):
        log.write_text(text)
        assert error_of(run, tmp_path) == error


def test_finished_runs_that_have_read_another_folder_are_told(tmp_path):
    """They are not trained again, so nothing would compare their data."""
    changes = {"data.name": "femnist", "data.dir": "hospital_a"}
    write_finished(tmp_path / "a", config_of(**changes))
    moved = changes | {"data.dir": "hospital_b"}
    told, advice = problems(tmp_path, config_of(**moved))
    run = f"the run in {tmp_path / 'a'} was evaluated with 'hospital_a'"
    assert told == f"data.dir is 'hospital_b', but {run}"
    assert "once more by `python -m fedjax_prune train`" in advice
    # What is not finished goes to `train`, which compares them.
    check_begun([run_of(config_of(rounds=30, **moved))], tmp_path)


def test_the_folder_of_data_that_are_not_read_from_one_may_be_any(tmp_path):
    write_finished(tmp_path / "a", config_of())
    check_begun([run_of(config_of(**{"data.dir": "elsewhere"}))], tmp_path)


def test_what_is_finished_costs_nothing_and_its_data_may_be_gone(tmp_path):
    changes = {"data.name": "image_folder", "data.dir": str(tmp_path / "gone")}
    run = run_of(config_of(**changes))
    with pytest.raises(DataError):
        cost_table([("a", run)], tmp_path)
    write_finished(tmp_path / "a", run.config)
    check_begun([run], tmp_path)
    *_, left, of_all = cost_table([("a", run)], tmp_path).splitlines()
    assert left == "| a | 0 | 0.0 | 0.00e+00 |"
    assert of_all == "| 1 runs | 0 | 0.0 | 0.00e+00 |"
