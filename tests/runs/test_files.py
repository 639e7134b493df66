"""How files of a workdir are replaced."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

from fedjax_prune.runs.files import replace


def test_writers_at_the_same_time_do_not_hinder_each_other(tmp_path):
    file, texts = tmp_path / "table.md", [b"a" * 1000, b"b" * 2000]

    def write(text):
        for _ in range(100):
            replace(file, text)

    with ThreadPoolExecutor(2) as writers:
        assert list(writers.map(write, texts)) == [None, None]
    assert file.read_bytes() in texts
    assert list(tmp_path.iterdir()) == [file]


def test_what_a_killed_writer_has_left_is_removed_later(tmp_path):
    """A young one may be still in writing, and others are of another file."""
    names = (".a[1].md.0123abcd.new", ".a[1].md.new", ".a[1].md.young.new", ".b.md.new")
    for name in names:
        (tmp_path / name).touch()
        if "young" not in name:
            os.utime(tmp_path / name, (time.time() - 7200,) * 2)
    replace(tmp_path / "a[1].md", b"text")
    assert {path.name for path in tmp_path.iterdir()} == {"a[1].md", *names[2:]}
