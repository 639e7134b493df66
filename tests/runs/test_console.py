"""What is printed, away from a terminal and on one."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from fedjax_prune.runs import console
from fedjax_prune.runs.interrupt import stop_requested

ROOT = Path(__file__).parents[2]


def test_tables_show_every_fact_within_80_columns(capsys):
    facts = {"clients": "10, cohort 4", "[path]": "/a/" + "long" * 40}
    console.print_table("This run", facts)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == "This run"
    assert [lines[1].split(maxsplit=1)[0], lines[2].split()[0]] == ["clients", "[path]"]
    assert "".join(" ".join(lines[2:]).split()) == "[path]" + facts["[path]"]
    assert max(map(len, lines)) <= 80
    console.print_table("Result", {"accuracy": "0.5"})
    assert capsys.readouterr().out.split() == ["Result", "accuracy", "0.5"]


def test_away_from_a_terminal_a_round_is_a_line(capsys):
    with console.progress(100, 8) as bar:
        bar.advance(9, 2.302585, 0.125, 1234.5)
        bar.advance(10, float("nan"), 1.0, 12345.6, test=0.5)
    lines = capsys.readouterr().out.splitlines()
    expected = [
        r"round   9/100  loss 2.303 train  12.5%   1234 img/s",
        r"round  10/100  loss nan train 100.0%  12346 img/s  \d+:\d\d left  test 50.0%",
    ]
    assert len(lines) == 2
    for line, pattern in zip(lines, expected, strict=True):
        assert re.fullmatch(pattern, line)
        assert len(line) <= 80


def test_on_a_terminal_the_bar_ends_with_the_last_round(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    with console.progress(3, 1) as bar:
        bar.advance(2, 1.0, 0.25, 10.0, test=0.125)
        bar.advance(3, 0.5, 0.75, 10.0)
    out = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().out)
    last = out.replace("\r", "\n").strip().splitlines()[-1]
    assert "round 3/3" in last
    assert "loss 0.500 train  75.0%     10 img/s  test 12.5%" in last
    assert len(last.rstrip()) <= 80


def test_the_bar_leaves_room_for_an_echoed_ctrl_c(capsys, monkeypatch):
    """In a full line ^C begins a new one, and the bar is drawn twice."""
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "80"}.items():
        monkeypatch.setenv(name, value)
    with console.progress(3, 1) as bar:
        bar.advance(2, 1.0, 0.25, 10.0)
    out = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().out)
    frames = [frame for frame in re.split(r"[\r\n]", out) if frame]
    assert any("round 2/3" in frame for frame in frames)
    assert {len(frame) for frame in frames} == {80 - len("^C")}


UNREAD = """
import signal, sys
from fedjax_prune.runs import console
stopped = []
signal.signal(signal.SIGINT, lambda *_: stopped.append(True))
with console.progress(9, 0) as bar:
    for round in range(1, 10):
        bar.advance(round, 1.0, 0.5, 9.0)
        if stopped:
            break
        sys.stdin.readline()
console.print_table("Result", {"rounds": "5"})
print("stopped after", round, file=sys.stderr)
"""


def test_a_run_whose_output_nobody_reads_is_asked_to_stop():
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", UNREAD]
    with subprocess.Popen(
        command, text=True, stdin=pipe, stdout=pipe, stderr=pipe, cwd=ROOT
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        assert process.stdout.readline().startswith("round 1/9")
        process.stdout.close()
        process.stdin.write("\n\n")
        process.stdin.close()
        assert process.stderr.read() == "stopped after 2\n"
        assert process.wait() == 0


def test_a_table_that_nobody_reads_asks_the_run_to_stop(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream, stop_requested() as stop:
        monkeypatch.setattr(sys, "stdout", stream)
        console.print_table("Result", {"rounds": "5"})
        assert stop.is_set()
        console.print_table("Result", {"rounds": "5"})


def test_times_are_short():
    assert [console._duration(s) for s in (4.6, 61, 3725)] == [
        "0:05",
        "1:01",
        "1:02:05",
    ]


def test_errors_go_to_the_error_stream(capsys):
    console.print_error("one\ntwo")
    console.print_error(["three", "four"])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "error: one",
        "       two",
        "error: three",
        "error: four",
    ]


def test_a_long_round_says_that_it_goes_on(capsys, monkeypatch):
    """It prints every EVERY seconds without a round, and nothing in short rounds."""
    monkeypatch.setattr(console, "EVERY", 0.05)
    with console.progress(3, 1) as bar:
        time.sleep(0.3)
        bar.advance(2, 1.0, 0.5, 10.0)
        time.sleep(0.3)
        bar.advance(3, 1.0, 0.5, 10.0)
        time.sleep(0.2)
    lines = capsys.readouterr().out.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("round 2/3"))
    assert first >= 1
    for line in lines[:first]:
        assert re.fullmatch(r"compiling and running round 2 for 0:0\d", line)
    between = lines[first + 1 : -1]
    assert between
    for line in between:
        assert re.fullmatch(r"round 3 has been running for 0:0\d", line)
    assert lines[-1].startswith("round 3/3")


def test_a_request_is_told_at_once_above_the_bar(capsys, monkeypatch):
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "80"}.items():
        monkeypatch.setenv(name, value)
    with (
        stop_requested() as stop,
        console.progress(3, 0) as bar,
        console.telling(stop.known, "stopping after this round"),
    ):
        bar.advance(1, 1.0, 0.5, 10.0)
        signal.raise_signal(signal.SIGINT)
        time.sleep(5 * console.GLANCE)
        bar.advance(2, 1.0, 0.5, 10.0)
    out = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().out)
    lines = [line.strip() for line in re.split(r"[\r\n]+", out)]
    told = lines.index("stopping after this round")
    assert lines.count("stopping after this round") == 1
    assert any("round 1/3" in line for line in lines[:told])
    assert any("round 2/3" in line for line in lines[told:])


def test_nothing_is_told_where_nobody_asks(capsys):
    with stop_requested() as stop, console.telling(stop.known, "stopping"):
        time.sleep(3 * console.GLANCE)
    assert capsys.readouterr().out == ""


def test_a_slow_step_says_how_long_it_was(capsys, monkeypatch):
    with console.working("counting"):
        pass
    monkeypatch.setattr(console, "WORTH_SAYING", 0.0)
    with console.working("counting"):
        pass
    assert capsys.readouterr().out.splitlines() == [
        "counting ...",
        "counting ...",
        "counting: 0:00",
    ]
