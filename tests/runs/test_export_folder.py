"""The folder of an export: new, empty, a link, or one that cannot be."""

import os

import pytest

from fedjax_prune.runs.export.folder import folder_problems, whole_folder
from fedjax_prune.runs.files import WorkdirError


def write(folder):
    with whole_folder(folder) as unfinished:
        for name in ("model.json", "README.md"):
            (unfinished / name).write_text(name)


def names(folder):
    return sorted(f.name for f in folder.iterdir())


def test_a_new_folder_and_its_parents_are_made(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".b.unfinished").mkdir()
    folder = tmp_path / "a" / "b"
    assert not folder_problems(folder)
    write(folder)
    assert names(folder) == ["README.md", "model.json"]
    assert names(tmp_path / "a") == ["b"]


@pytest.mark.parametrize("by", ["name", "link", "dot"])
def test_an_empty_folder_is_filled_and_stays_what_it_is(by, tmp_path, monkeypatch):
    place = tmp_path / "empty"
    place.mkdir()
    # What a process that was killed has left does not count.
    (place / ".unfinished").mkdir()
    (place / ".unfinished" / "model.json").touch()
    (tmp_path / "link").symlink_to(place)
    monkeypatch.chdir(place)
    folder = {"name": place, "link": tmp_path / "link", "dot": place / "."}[by]
    before = place.stat().st_ino
    assert not folder_problems(folder)
    write(folder)
    assert names(place) == ["README.md", "model.json"]
    assert place.stat().st_ino == os.stat(".").st_ino == before
    assert names(tmp_path) == ["empty", "link"]


def test_a_link_to_a_folder_that_is_not_there_makes_it(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "new")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "new") == ["README.md", "model.json"]


def test_what_is_no_place_for_a_folder_is_told_by_the_name_that_was_given(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    full = "must be a new or an empty folder"
    long = "a" * 300
    for name, words in (
        (long, "cannot be used: File name too long"),
        (".", full),
        ("file", full),
        ("link", full),
        ("loop", f"{full}, got a link to itself"),
        ("file/a/b", f"must be in a folder, but {tmp_path / 'file'} is a file"),
    ):
        assert folder_problems(tmp_path / name) == [f"{tmp_path / name} {words}"]


def test_after_an_error_nothing_is_left(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new"):
        with (
            pytest.raises(WorkdirError, match=f"{tmp_path / name} cannot be written"),
            whole_folder(tmp_path / name) as unfinished,
        ):
            (unfinished / "model.json").touch()
            raise OSError("full")
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "a" / "b" / "c"):
        raise KeyboardInterrupt
    assert names(tmp_path) == ["empty"]
    assert names(tmp_path / "empty") == []
