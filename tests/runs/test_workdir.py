"""The folder of a run and its configuration."""

import json
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from configs import base
from fedjax_prune.runs.origin import differences, origin_of
from fedjax_prune.runs.settings import ALWAYS, SettingsError
from fedjax_prune.runs.workdir import (
    WorkdirError,
    agree_config,
    folders_named,
    local_folder,
    open_workdir,
    read_config,
    read_usable_config,
    runs_below,
    write_config,
)


def as_read(config):
    """A configuration with the values that JSON gives back: lists for tuples."""
    return json.loads(json.dumps(config.to_dict()))


def test_the_folder_is_made_and_the_lock_goes_with_the_block(tmp_path):
    with open_workdir(tmp_path / "a" / "b") as folder:
        assert (folder / "lock").read_text().startswith(f"process {os.getpid()} on ")
        (folder / "kept").touch()
    assert [f.name for f in folder.iterdir()] == ["kept"]


def test_a_failed_run_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), open_workdir(tmp_path / "a" / "b"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_stays(tmp_path):
    with open_workdir(tmp_path):
        pass
    assert tmp_path.is_dir()


@pytest.mark.parametrize("path", ["file", "file/below"])
def test_a_path_that_cannot_be_written(tmp_path, path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(WorkdirError, match=r"file.* cannot be written: "),
        open_workdir(tmp_path / path),
    ):
        pass
    assert [f.name for f in tmp_path.iterdir()] == ["file"]


WITHOUT_FCNTL = """
import sys
sys.modules["fcntl"] = None
from fedjax_prune.runs.workdir import open_workdir
try:
    with open_workdir(sys.argv[1]):
        pass
except Exception as error:
    print(type(error).__name__, error)
"""


def test_windows_is_refused_in_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_FCNTL, str(tmp_path / "new")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == (
        "WorkdirError This system has no POSIX file locks: runs need Linux or macOS, "
        "or the Windows Subsystem for Linux (WSL).\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_the_home_directory_has_a_short_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_folder("~/runs") == tmp_path / "runs"
    with open_workdir("~/runs") as folder:
        assert folder == tmp_path / "runs"
    monkeypatch.chdir(tmp_path)
    assert local_folder("runs[1]") == tmp_path / "runs[1]"


def test_a_user_without_a_home_directory(monkeypatch):
    def getpwuid(uid):
        raise KeyError(uid)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", getpwuid)
    with pytest.raises(WorkdirError, match=r"~/runs cannot be found: .* no home"):
        local_folder("~/runs")


@pytest.mark.parametrize("path", ["gs://bucket/run", "s3://b/r", Path("gs://b/r")])
def test_object_storage_is_refused(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with (
        pytest.raises(WorkdirError, match=r"[gs][s3]:/.* is not a folder of this mach"),
        open_workdir(path),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_config_is_written_and_read(tmp_path):
    config = base.get_config()
    agree_config(tmp_path, config)
    write_config(tmp_path, config)
    agree_config(tmp_path, config)
    assert read_config(tmp_path) == as_read(config)
    assert [f.name for f in tmp_path.iterdir()] == ["config.json"]


def test_some_fields_may_change_on_resuming(tmp_path):
    config = base.get_config()
    write_config(tmp_path, config)
    config.rounds, config.save_every, config.keep, config.eval.every = 7, 3, 9, 2
    agree_config(tmp_path, config)
    write_config(tmp_path, config)
    assert read_config(tmp_path) == as_read(config)


def test_the_files_of_a_run_may_be_moved(tmp_path):
    config = base.get_config()
    config.model.update({"name": "old/nets.py:Net", "file_hash": "f" * 64})
    config.data.dir = "old"
    write_config(tmp_path, config)
    config.model.name, config.data.dir = "new/nets.py:Net", "new"
    agree_config(tmp_path, config)
    config.model.name, config.model.width = "new/other.py:Net", 0.5
    config.model.file_hash = "0" * 64
    with pytest.raises(SettingsError) as error:
        agree_config(tmp_path, config)
    named = [line.split()[0] for line in error.value.problems[:-1]]
    assert named == ["model.file_hash", "model.name", "model.width"]


def test_all_other_changes_are_refused_and_named(tmp_path):
    write_config(tmp_path, base.get_config())
    before = (tmp_path / "config.json").read_bytes()
    config = base.get_config("fedprox")
    config.seed, config.client.lr, config.rounds = 1, 0.2, 7
    with pytest.raises(SettingsError) as error:
        agree_config(tmp_path, config)
    *lines, advice = error.value.problems
    named = [line.split()[0] for line in lines]
    # Not the fields that one of the two algorithms has alone.
    assert named == ["algorithm.name", "client.lr", "seed"]
    run = f"the run in {tmp_path} was started with"
    assert lines[0] == f"algorithm.name is 'fedprox', but {run} 'scaffold'"
    assert lines[1] == f"client.lr is 0.2, but {run} 0.1"
    assert "another workdir" in advice
    assert (tmp_path / "config.json").read_bytes() == before


def without(config, *fields):
    """The configuration as a version without some fields has written it."""
    values = json.loads(config.to_json_best_effort())
    for field in fields:
        section, _, name = field.rpartition(".")
        del (values[section] if section else values)[name]
    return values


GAINED = ("on_bad_client", "model.keep_ratio", "data.min_size", "algorithm.mu")


def test_fields_that_an_old_config_lacks_count_as_their_defaults(tmp_path):
    config = base.get_config("fedprox")
    old = without(config, *GAINED)
    del old["eval"]
    (tmp_path / "config.json").write_text(json.dumps(old))
    agree_config(tmp_path, config)
    assert as_read(read_usable_config(tmp_path)) == as_read(config)
    assert read_config(tmp_path) == old
    config.on_bad_client = "drop"
    config.algorithm.mu = 0.5
    with pytest.raises(SettingsError) as error:
        agree_config(tmp_path, config)
    run = f"the run in {tmp_path} was started with"
    assert error.value.problems[:-1] == [
        f"algorithm.mu is 0.5, but {run} 0.01",
        f"on_bad_client is 'drop', but {run} 'abort'",
    ]
    # As `write_config` does when the run goes on: the written value wins from now on.
    write_config(tmp_path, base.get_config("fedprox"))
    assert read_config(tmp_path)["on_bad_client"] == "abort"


def test_a_checkpoint_of_a_version_with_fewer_fields_is_compared_with_defaults():
    now = origin_of(base.get_config("fedprox"))
    fields = {k: v for k, v in now.config.items() if k not in GAINED}
    assert differences(now._replace(config=fields), now) == []
    other = base.get_config("fedprox")
    other.data.min_size = 3
    assert differences(now._replace(config=fields), origin_of(other)) == [
        "data.min_size is 3, but it was saved with 10"
    ]


@pytest.mark.parametrize("value", [None, 3])
def test_fields_that_this_version_does_not_know_are_named(value, tmp_path):
    config = base.get_config()
    old = json.loads(config.to_json_best_effort())
    old["client"]["warmup"] = value
    (tmp_path / "config.json").write_text(json.dumps(old))
    with pytest.raises(SettingsError, match=r"client.warmup is 'not set', but .* with"):
        agree_config(tmp_path, config)
    with pytest.raises(WorkdirError, match=r"client\.warmup is not a field"):
        read_usable_config(tmp_path)


def test_a_section_of_another_kind_is_named(tmp_path):
    old = json.loads(base.get_config().to_json_best_effort()) | {"eval": 3}
    (tmp_path / "config.json").write_text(json.dumps(old))
    with pytest.raises(WorkdirError, match="eval is not a field"):
        read_usable_config(tmp_path)


@pytest.mark.parametrize("field", sorted(ALWAYS))
def test_a_config_that_does_not_say_what_it_is_of_is_damaged(field, tmp_path):
    config = base.get_config()
    values = without(config, field, "keep")
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(WorkdirError, match=f"{field} is missing"):
        read_usable_config(tmp_path)


def test_a_workdir_without_a_run(tmp_path):
    with pytest.raises(WorkdirError, match="no run was started here"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WorkdirError, match="cannot be read"):
        read_config(tmp_path)


@pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
@pytest.mark.parametrize("name", ["config.json", ".config.json.new"])
def test_the_file_that_a_link_names_stays_as_it_is(name, link, tmp_path):
    outside = tmp_path / "outside"
    write_config(tmp_path, base.get_config())
    (tmp_path / "config.json").replace(outside)
    before = outside.read_bytes()
    getattr(tmp_path / name, link)(outside)
    config = base.get_config()
    config.rounds = 7
    write_config(tmp_path, config)
    assert outside.read_bytes() == before
    assert not (tmp_path / "config.json").is_symlink()
    assert read_config(tmp_path) == as_read(config)


def test_runs_below_links_are_found_once(tmp_path):
    run, linked = tmp_path / "b" / "seed=1", tmp_path / "linked"
    run.mkdir(parents=True)
    (run / "config.json").write_text("{}")
    linked.mkdir()
    (linked / "seed=1").symlink_to(run)
    (linked / "above").symlink_to(tmp_path)
    assert runs_below(tmp_path / "b") == [run]
    for folder in (linked, tmp_path):
        assert [found.resolve() for found in runs_below(folder)] == [run.resolve()]


def test_commas_may_be_in_the_name_of_a_folder_that_exists(tmp_path):
    for folder in ("mnist,feddp,10/seed=0", "other"):
        (tmp_path / folder).mkdir(parents=True)
    named = f"{tmp_path}/mnist,feddp,10/seed=0,{tmp_path}/other,{tmp_path}/none"
    assert folders_named(named.split(",")) == [
        tmp_path / "mnist,feddp,10/seed=0",
        tmp_path / "other",
        tmp_path / "none",
    ]
