"""The page in a browser: every picture is drawn, nothing is loaded or complained of."""

import os
import re
import shutil
import subprocess

import numpy as np
import pytest

from fedjax_prune.runs.page.write import write_report
from fedjax_prune.runs.record import read_records, write_record
from tests.made_up_runs import config_of, with_masks, write_run

BROWSERS = ("chromium-headless-shell", "chromium", "google-chrome")
"""The first is Debian's package of that name."""


@pytest.fixture
def browser():
    """The program of a browser, which CHROMIUM may name; without any, a skip."""
    if named := os.environ.get("CHROMIUM"):
        program = shutil.which(named)
        assert program, f"CHROMIUM names {named}, which is no program"
        return program
    found = [program for name in BROWSERS if (program := shutil.which(name))]
    if not found:
        pytest.skip(
            f"none of {', '.join(BROWSERS)} is installed: apt-get install "
            "chromium-headless-shell, or set CHROMIUM"
        )
    return found[0]


@pytest.mark.long
def test_a_browser_draws_every_picture_and_asks_nobody(tmp_path, browser):
    config = config_of("autoflip", **{"model.gated": True})
    attacked = {"clients/hostile": lambda n: "0 1 2 3 4"}
    fields = with_masks(config) | attacked
    folders = [
        write_run(tmp_path / "masks", config, **fields),
        write_run(tmp_path / "fedavg", config_of("fedavg"), **attacked),
        write_run(tmp_path / "fedavg1", config_of("fedavg", seed=1)),
    ]
    # A line with a lost loss beside lines without, in the same picture.
    record = read_records(folders[0], 20)[0]
    record.loss[:] = np.nan
    write_record(folders[0], record)
    page = write_report(folders, tmp_path / "report")
    net = tmp_path / "net.json"
    done = subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--enable-logging=stderr",
            "--virtual-time-budget=20000",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--log-net-log={net}",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    pictures = re.findall(r'class="picture[^"]*" id="(\w+)"', done.stdout)
    drawn = {file.stem for file in page.parent.glob("*.svg")}
    assert set(pictures) == drawn and len(drawn) == 17
    assert done.stdout.count('<svg xmlns="http://www.w3.org/2000/svg"') >= len(drawn)
    assert [line for line in done.stderr.splitlines() if ":CONSOLE" in line] == []
    assert set(re.findall(r'"url":"(https?://[^"]*)"', net.read_text())) == set()
