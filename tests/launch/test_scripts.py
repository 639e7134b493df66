"""The scripts for clusters and clouds, as far as they can be checked without one."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
SCRIPTS = sorted([*LAUNCH.rglob("*.sh"), *LAUNCH.glob("*.sbatch")])
BESIDE_PYTHON = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
SHELLCHECK = shutil.which("shellcheck", path=BESIDE_PYTHON)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_bash_can_read_a_script(script):
    subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.skipif(
    SHELLCHECK is None,
    reason="shellcheck is not installed: pip install 'fedjax_prune[test]'",
)
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    done = subprocess.run(
        [str(SHELLCHECK), "--external-sources", script],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


# Writes its arguments down; the state of the slice is the first line of a file, which
# it removes unless it is the last one.
GCLOUD = """#!/usr/bin/env python3
import json, os, sys
from pathlib import Path
folder = Path(os.environ["CALLS"])
with (folder / "calls").open("a") as file:
    print(json.dumps(sys.argv[1:]), file=file)
if "describe" in sys.argv:
    now, *later = (folder / "states").read_text().split()
    (folder / "states").write_text("\\n".join(later or [now]))
    if now == "missing":
        sys.exit("not found")
    print(now)
"""


@pytest.fixture
def pod(tmp_path):
    """Calls the script where gcloud and sleep only write down what they are asked."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in {"gcloud": GCLOUD, "sleep": "#!/bin/sh\n"}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    calls = tmp_path / "calls"

    def call(*arguments, states="ACTIVE", code=0, **settings):
        calls.write_text("")
        (tmp_path / "states").write_text(states)
        known = {"PROJECT": "p", "ZONE": "z", "SHARE": "10.0.0.2:/runs"} | settings
        path = f"{folder}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", LAUNCH / "tpu_pod.sh", *arguments],
            env={"PATH": path, "CALLS": str(tmp_path), "TMPDIR": str(tmp_path)} | known,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr
        made = [json.loads(line) for line in calls.read_text().splitlines()]
        return made, done.stdout, done.stderr

    return call


def verbs(calls):
    """The word of each call that says what is done."""
    known = ("create", "describe", "delete", "ssh", "scp")
    return [next(word for word in call if word in known) for call in calls]


def printed(out):
    """What the script says that it does, as gcloud would be called."""
    commands = [shlex.split(line) for line in out.splitlines()]
    return [words[1:] for words in commands if words[:1] == ["gcloud"]]


def test_a_slice_is_awaited_and_made_ready(pod):
    states = "missing\nWAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE"
    calls, _, _ = pod("create", "feddp", states=states)
    ready = ["ssh", "scp", "ssh"]
    assert verbs(calls) == ["describe", "create", *["describe"] * 3, *ready]
    assert calls[1] == [
        *("compute", "tpus", "queued-resources", "create", "feddp"),
        *("--project=p", "--zone=z", "--accelerator-type=v5litepod-16"),
        *("--runtime-version=v2-alpha-tpuv5-lite", "--node-id=feddp", "--spot"),
    ]
    assert all("--worker=all" in call for call in calls[-3:])
    assert "sudo mount 10.0.0.2:/runs /mnt/runs" in calls[-3][-1]
    calls, _, _ = pod(
        "create", "feddp", states="missing\nACTIVE", SPOT="", ACCELERATOR="v6e-8"
    )
    assert "--spot" not in calls[1] and "--accelerator-type=v6e-8" in calls[1]
    # After a failure, the slice that was asked for is awaited.
    for action, start in (("create", []), ("resume", ["ssh"])):
        calls, _, _ = pod(action, "feddp", states="PROVISIONING\nACTIVE")
        assert verbs(calls) == ["describe", "describe", *ready, *start]
    calls, _, err = pod("create", "feddp", states="PROVISIONING\nFAILED", code=1)
    assert verbs(calls) == ["describe", "describe"]
    assert err == "error: the slice feddp is FAILED: resume or delete it\n"


def test_the_command_reaches_all_hosts_as_it_was_given(pod, tmp_path):
    """The shell of a host reads what gcloud is told to run there."""
    given = ["--config=feddp:feddp,vgg11,100", "--config.data.dir=/mnt/a b'$HOME"]
    calls, _, _ = pod("run", "feddp", *given)
    assert verbs(calls) == ["ssh", "ssh"]
    assert "--worker=0" in calls[0] and "--worker=all" in calls[1]
    write, start = (call[-1].removeprefix("--command=") for call in calls)
    write = write.replace("/mnt/runs", str(tmp_path))
    subprocess.run(["sh", "-c", write], check=True)
    assert shlex.split((tmp_path / "feddp.command").read_text()) == [
        *("python", "-m", "launch.train", f"--workdir={tmp_path}/feddp", *given)
    ]
    subprocess.run(["bash", "-n", "-c", start], check=True)
    early = start.replace("/mnt/runs", str(tmp_path / "empty"))
    done = subprocess.run(["sh", "-c", early], capture_output=True, check=False)
    assert done.returncode == 1 and b"no command yet: run feddp FLAG" in done.stderr
    assert "bash /mnt/runs/feddp.command >> /mnt/runs/feddp.output/" in start


def test_a_preempted_run_is_resumed_on_a_new_slice_by_the_same_command(pod):
    _, start = pod("run", "feddp", "--config=quickstart")[0]
    for states, removes in (("SUSPENDED\nACTIVE", True), ("missing\nACTIVE", False)):
        calls, _, _ = pod("resume", "feddp", states=states)
        done = verbs(calls)
        assert ("delete" in done) == removes
        rest = [verb for verb in done if verb != "delete"]
        assert rest == ["describe", "create", "describe", "ssh", "scp", "ssh", "ssh"]
        assert calls[-1] == start
    calls, _, err = pod("resume", "feddp", states="ACTIVE", code=1)
    assert (
        verbs(calls) == ["describe"]
        and "follow its run, or, if that has ended, give the same" in err
    )


@pytest.mark.parametrize(
    ("action", "states"),
    [
        (["create"], "missing\nACTIVE"),
        (["run", "--config=a,b", "--config.data.dir=a b"], "ACTIVE"),
        (["follow"], "ACTIVE"),
        (["resume"], "SUSPENDED\nACTIVE"),
        (["delete"], "ACTIVE"),
    ],
    ids=lambda value: value[0],
)
def test_a_dry_run_prints_each_command_and_runs_none(pod, action, states):
    verb, *flags = action
    calls, out, _ = pod("--dry_run", verb, "feddp", *flags)
    assert calls == []
    calls, _, _ = pod(verb, "feddp", *flags, states=states)
    # Whether there is a slice already is known only when it is asked.
    calls = calls[verb in ("create", "resume") :]
    assert without_folder(printed(out)) == without_folder(calls) != []


def without_folder(commands):
    """The folder of the code has another name each time."""
    return [re.sub(r"\S*/code.tar", "code.tar", " ".join(call)) for call in commands]


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ([], {}, "tpu_pod.sh [--dry_run] create NAME"),
        (["stop", "feddp"], {}, "tpu_pod.sh [--dry_run] create NAME"),
        (["run", "feddp"], {}, "tpu_pod.sh [--dry_run] run NAME FLAG..."),
        (["delete"], {}, "error: NAME must be lower-case letters"),
        (["delete", "Fed;dp"], {}, "error: NAME must be lower-case letters"),
        (["delete", "feddp"], {"ZONE": ""}, "ZONE: names the zone"),
        (["delete", "feddp"], {"SHARE": ""}, "SHARE: names the NFS share"),
    ],
)
def test_mistakes_are_told_before_anything_is_done(pod, arguments, settings, message):
    calls, out, err = pod(*arguments, code=1, **settings)
    assert calls == [] and out == "" and message in err


SRUN = """#!/usr/bin/env bash
printf '%s\\n' "$@" > "$CALLED"
echo "$SRUN_CPUS_PER_TASK" > "$CALLED.cores"
exit 130
"""


def submit(tmp_path, *arguments, **variables):
    """Runs the batch script as Slurm would; returns what srun gets."""
    (tmp_path / "srun").write_text(SRUN)
    (tmp_path / "srun").chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    known = {"SLURM_SUBMIT_DIR": str(tmp_path), "CALLED": str(tmp_path / "called")}
    done = subprocess.run(
        ["bash", LAUNCH / "slurm.sbatch", *arguments],
        env={"PATH": path} | known | variables,
        check=False,
    )
    assert done.returncode == 130
    return (tmp_path / "called").read_text().splitlines()


def test_slurm_starts_a_process_on_each_node_and_a_shard_in_each_task(tmp_path):
    start = ["--kill-on-bad-exit=1", "python", "-m", "fedjax_prune"]
    given = ["sweep", "--settings=fedavg,10 feddp,10", "--workdir=/shared/runs"]
    assert submit(tmp_path, *given, SLURM_CPUS_PER_TASK="4") == [*start, *given]
    assert (tmp_path / "called.cores").read_text() == "4\n"
    task = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8"}
    assert submit(tmp_path, *given, **task) == [*start, *given, "--shard=3/8"]
    again = task | {"SLURM_ARRAY_TASK_COUNT": "2", "SHARDS": "8"}
    assert submit(tmp_path, *given, **again) == [*start, *given, "--shard=3/8"]


def test_slurm_reads_all_directives():
    """It stops at the first line that is neither empty nor a comment."""
    lines = (LAUNCH / "slurm.sbatch").read_text().splitlines()
    assert lines[0].startswith("#!")
    command = next(n for n, x in enumerate(lines) if x and not x.startswith("#"))
    places = [n for n, line in enumerate(lines) if line.startswith("#SBATCH ")]
    assert places == list(range(1, len(places) + 1)) and places[-1] < command
    words = [lines[n].removeprefix("#SBATCH --").partition("=") for n in places]
    options = {name: value for name, _, value in words}
    assert len(options) == len(places)
    assert options["ntasks-per-node"] == "1"
    # To the processes, not to the shell ("B:"), with time to save.
    assert re.fullmatch(r"TERM@\d+", options["signal"])
    assert re.fullmatch(r"\d+:\d\d:\d\d", options["time"])
    assert options["output"] == "%x-%j.out" and options["open-mode"] == "append"
    # All others could be refused by some cluster.
    assert set(options) == {
        *("job-name", "ntasks-per-node", "cpus-per-task", "time", "signal", "requeue"),
        *("open-mode", "output"),
    }


def enter(folder, extras, **variables):
    """Sources environment.sh in a folder, in a shell that goes on after errors."""
    script = shlex.quote(str(LAUNCH / "environment.sh"))
    return subprocess.run(
        ["bash", "-c", f"EXTRAS='{extras}' && source {script}"],
        cwd=folder,
        env={"PATH": os.environ["PATH"]} | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def make_venv(folder):
    venv = folder / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    return venv


def write_pip(venv, code):
    pip = venv / "bin" / "pip"
    pip.write_text(f"#!/bin/sh\nexit {code}\n")
    pip.chmod(0o755)
    return pip


def test_an_environment_that_could_not_be_made_is_an_error(tmp_path):
    """Also in a shell that goes on after errors, as a host of a slice does."""
    venv = make_venv(tmp_path)
    pip = write_pip(venv, 1)
    assert enter(tmp_path, "[tpu]").returncode == 1
    assert pip.exists() and not (venv / "installed[tpu]").exists()


def test_an_environment_that_was_moved_is_made_anew(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    (make_venv(old) / "installed[test]").touch()
    # Nothing is made where an environment works, so no Python is needed.
    assert enter(old, "[test]", PYTHON="missing").returncode == 0
    old.rename(new)
    done = enter(new, "[test]", PYTHON="missing")
    assert done.returncode == 1 and not (new / ".venv").exists()
    assert "new/.venv does not work and is made anew" in done.stderr
    assert "Python 3.11 or newer is needed" in done.stderr


def test_the_package_is_found_in_the_folder_above_a_checkout_of_its_name(tmp_path):
    """Where Python sees a folder with the name of the package."""
    checkout = tmp_path / "fedjax_prune"
    package = checkout / "fedjax_prune" / "__init__.py"
    package.parent.mkdir(parents=True)
    package.touch()
    venv = make_venv(checkout)
    write_pip(venv, 0)
    assert enter(checkout, "[test]").returncode == 0
    command = [
        venv / "bin" / "python",
        "-c",
        "import fedjax_prune as f; print(f.__file__)",
    ]
    found = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == str(package)
