"""The benchmark: its configs, its workers and what is made of their reports."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import bench
from fedjax_prune.data.datasets import DATASETS
from fedjax_prune.data.partition import partition
from fedjax_prune.runs.interrupt import INTERRUPTED
from fedjax_prune.runs.settings import problems
from launch import runtime
from launch.benchmark import limits, ours, suites, turns, worker
from launch.benchmark.process import Process, WorkerError, is_installed
from launch.benchmark.suites import SUITES, Worker, make_arrays
from launch.benchmark.table import make_rows, print_table

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("work", bench.WORKS)
def test_configs_have_no_mistake(work):
    config = bench.get_config(work)
    assert problems(config) == []
    assert not config.model.gated and config.data.augment == "none"


def test_the_first_work_is_the_published_benchmark():
    config = bench.get_config()
    client, data = config.client, config.data
    assert (config.rounds, config.cohort_size, config.eval.every) == (1500, 50, 10)
    assert (client.epochs, client.batch_size, client.lr) == (1, 10, 0.1)
    assert (client.lr_schedule, client.weight_decay) == ("constant", 0.0)
    assert (data.name, data.partitioner, data.num_clients) == ("cifar10", "iid", 1000)


def test_the_third_work_can_be_dealt():
    # EMNIST balanced has 2,400 training images of each class.
    data = bench.get_config("w3").data
    labels = np.repeat(np.arange(DATASETS[data.name].num_classes), 2400)
    sizes = partition(
        data.partitioner,
        labels,
        data.num_clients,
        seed=data.seed,
        alpha=data.alpha,
        min_size=data.min_size,
    ).sizes
    assert sizes.sum() == len(labels)
    assert data.min_size <= sizes.min() < 10 < 60 < sizes.max()


def test_an_unknown_work_lists_the_known_ones():
    with pytest.raises(ValueError, match="one of w1, w2, w3, got 'w4'"):
        bench.get_config("w4")


def test_operations_of_a_training_image():
    # 3x3 convolutions without padding to 30x30x32 and 28x28x64, pooled to 14x14x64,
    # dense layers to 128 and 10; three passes, but the first layer has no gradient
    # of its input.
    first = 30 * 30 * 32 * 9 * 3
    macs = first + 28 * 28 * 64 * 9 * 32 + 14 * 14 * 64 * 128 + 128 * 10
    assert (first, macs) == (777_600, 16_835_200)
    model = ours.make_model("w1", (32, 32, 3), 10)
    wanted = 2 * (3 * macs - first)
    assert limits.train_flops(model, (32, 32, 3)) == wanted == 99_456_000


def test_gates_do_not_change_the_operations():
    gated = ours.make_model("w1", (32, 32, 3), 10, settings=ours.Settings(gated=True))
    assert gated.gates.keep_ratio < 1
    assert limits.train_flops(gated, (32, 32, 3)) == 99_456_000


@pytest.mark.parametrize("name", sorted(SUITES))
def test_data_of_the_suites(name):
    suite = SUITES[name]
    if name == "devices":
        assert suite.make_data is SUITES["w1"].make_data
        return
    arrays = make_arrays(suite, 3)
    sizes, cohorts = np.diff(arrays["offsets"]), arrays["cohorts"]
    assert arrays["images"].shape[1:] == suite.image_shape
    assert arrays["images"].dtype == np.uint8
    assert arrays["indices"].max() < len(arrays["images"])
    assert (len(cohorts), cohorts.dtype) == (3, np.int32)
    assert all(len(np.unique(cohort)) == len(cohort) for cohort in cohorts)
    num_clients, cohort_size, fewest, most = {
        "w1": (1000, 50, 50, 50),
        "lanes": (1000, 128, 50, 50),
        "w2_one": (1, 1, 640, 640),
        "w2_ten": (10, 10, 64, 448),
        "w2_variants": (10, 10, 64, 448),
        "compact_two_cnn": (4, 4, 500, 500),
        "compact_vgg11": (4, 4, 320, 320),
        "w3": (3400, 10, 10, 400),
    }[name]
    assert (len(sizes), cohorts.shape[1]) == (num_clients, cohort_size)
    assert fewest <= sizes.min() and sizes.max() <= most
    if name.startswith("w2_t"):
        assert sizes.sum() == 3008 and (sizes % 64 == 0).all()  # 47 batches
    if name == "w3":
        assert 190 < sizes.mean() < 210


def test_devices_double_up_to_all_cores():
    def devices(threads):
        return [group[0].options[0] for group in SUITES["devices"].groups(threads, "")]

    assert devices(1) == ["--devices=1"]
    assert devices(6) == [f"--devices={count}" for count in (1, 2, 4, 6)]
    assert devices(8) == [f"--devices={count}" for count in (1, 2, 4, 8)]


def test_every_worker_is_compared_with_one_that_runs():
    for suite in SUITES.values():
        for platform in ("cpu", "gpu"):
            groups = suite.groups(4, platform)
            names = [worker.name for group in groups for worker in group]
            assert len(set(names)) == len(names)
            assert {w.reference for group in groups for w in group} <= set(names)


def test_rows_are_medians_without_the_first_round():
    def reports(*seconds):
        return [{"images": 600, "seconds": s} for s in seconds]

    mine = [
        report | {"steps": 60, "steps_executed": executed}
        for report, executed in zip(reports(90, 1, 2, 6), (60, 60, 90, 75), strict=True)
    ]
    rows = make_rows(
        [Worker("ours"), Worker("other", "torch_loop"), Worker("lost", reference="x")],
        {"ours": {"bytes": 5_000_000}, "other": {}, "lost": {}},
        {"ours": mine, "other": reports(1, 4, 6, 8), "lost": reports(1, 6)},
        {"float32": 1200.0},
    )
    ours_row, other, lost = rows
    # 600, 300 and 100 images a second; then 150, 100 and 75.
    assert (ours_row.median, ours_row.lowest, ours_row.highest) == (300, 100, 600)
    assert (other.median, other.lowest, other.highest) == (100, 75, 150)
    assert (ours_row.time, other.time, lost.time) == (1, 3, None)
    assert (ours_row.share, other.share) == (0.25, 100 / 1200)
    assert (ours_row.waste, other.waste) == (225 / 180, None)
    assert (ours_row.num_bytes, other.num_bytes) == (5_000_000, None)


def test_table_leaves_out_what_nobody_has(capsys):
    reports = {"other": [{"images": 600, "seconds": s} for s in (1, 4, 6, 8)]}
    print_table(make_rows([Worker("other")], {"other": {}}, reports, {}))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["images/s", "min-max"]
    assert lines[1].split() == ["other", "100", "75-150"]


@pytest.fixture(scope="module")
def data_file(tmp_path_factory):
    """Five clients of 3 to 7 small images; the second cohort is not the first."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "data.npz"
    np.savez(
        path,
        images=rng.integers(0, 256, (25, 8, 8, 1), np.uint8),
        labels=rng.integers(0, 4, 25, np.int32),
        indices=rng.integers(0, 25, 25, np.int32),
        offsets=np.cumsum([0, 3, 4, 5, 6, 7]),
        cohorts=np.array([[0, 1, 2], [1, 3, 4]], np.int32),
        batch_size=4,
        epochs=2,
        client_lr=0.1,
        server_lr=1.0,
        num_classes=4,
        width=0.25,
    )
    return path


def test_compacted_rounds_are_timed_as_whole_ones(data_file):
    data, checksums = worker.load(str(data_file)), []
    for compact in (False, True):
        settings = ours.Settings("eflprune", devices=1, removed=0.5, compact=compact)
        runner = ours.make("two_cnn", data, settings, lanes=1)
        runner.run_round(data.cohort(0))
        checksums.append(runner.checksum())
        assert 0.2 < runner.facts["kept"] <= 0.5
        assert runner.facts["compile_seconds"] > 0
    np.testing.assert_allclose(*checksums, rtol=1e-4)


def test_more_than_all_channels_cannot_be_removed(data_file):
    settings = ours.Settings("eflprune", devices=1, removed=0.999)
    with pytest.raises(ValueError, match=r"removed must be below 0\.9"):
        ours.make("two_cnn", worker.load(str(data_file)), settings, lanes=1)


def test_our_worker_keeps_the_protocol(data_file, monkeypatch):
    data = worker.load(str(data_file))
    settings = ours.Settings("scaffold", devices=1, reduction="fixed_order")
    runner = ours.make("w1", data, settings, lanes=1)
    monkeypatch.setattr(sys, "stdin", io.StringIO("round\nround\nround\nquit\n"))
    said = []
    channel = worker.Channel.__new__(worker.Channel)
    monkeypatch.setattr(channel, "reply", said.append, raising=False)
    worker.serve(
        channel=channel,
        data=data,
        peer="ours",
        package="jax",
        run_round=runner.run_round,
        checksum=runner.checksum,
        facts=runner.facts,
        counted=runner.counted,
    )
    ready, *reports = said
    assert ready["ready"] and ready["version"] == jax.__version__
    assert (ready["lanes"], ready["devices"], ready["bytes"] > 0) == (1, 1, True)
    # Two epochs of 3 + 4 + 5 and of 4 + 6 + 7 images, in batches of 4.
    assert [report["images"] for report in reports] == [24, 34, 24]
    assert [report["steps"] for report in reports] == [8, 10, 8]
    # One lane never waits.
    assert [report["steps_executed"] for report in reports] == [8, 10, 8]
    assert all(report["seconds"] > 0 for report in reports)
    checksums = [report["checksum"] for report in reports]
    assert np.isfinite(checksums).all() and len(set(checksums)) == 3
    json.dumps(said)


def test_a_failed_worker_is_reported_with_its_last_output(data_file, tmp_path):
    arguments = ["--work=w1", f"--data={data_file}x", "--threads=1"]
    told = r"limits has failed:\n(.*\n)*.*FileNotFoundError.*data.npzx"
    with (
        pytest.raises(WorkerError, match=told),
        Process(turns.LIMITS, arguments, tmp_path, {}, tmp_path / "log") as process,
    ):
        process.run_round()


def test_what_is_kept_lies_in_the_users_cache(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert runtime.cache_folder() == Path("/cache/fedjax_prune")


def test_peers_are_exact_on_the_cpu_and_fedjax_has_no_other():
    on_cpu = suites.peers_on("cpu", ["pfl_sim", "fedjax_sim"])
    assert [worker.precision for worker in on_cpu] == ["float32"] * 2
    (on_gpu,) = suites.peers_on("gpu", ["pfl_sim", "fedjax_sim"])
    assert (on_gpu.module, on_gpu.precision) == ("pfl_sim", "tf32")


def test_an_environment_without_its_interpreter_is_not_complete(tmp_path):
    (tmp_path / "pfl" / "bin").mkdir(parents=True)
    (tmp_path / "pfl" / "installed").touch()
    (tmp_path / "pfl" / "bin" / "python").symlink_to(tmp_path / "gone")
    assert not is_installed("pfl_sim", tmp_path)
    worker = Worker("pfl_sim", "pfl_sim")
    with pytest.raises(WorkerError, match=r"pfl_sim cannot start: .*No such file"):
        Process(worker, [], tmp_path, {}, tmp_path / "log")


def test_peers_of_suites_without_any_are_refused():
    command = [sys.executable, "-m", "launch.benchmark", "--suite=devices"]
    done = subprocess.run(
        [*command, "--peers=pfl_sim"], cwd=ROOT, capture_output=True, check=False
    )
    assert done.stderr == b"error: --peers must be empty for devices\n"


def test_mistakes_are_reported_one_line_each(tmp_path):
    output = tmp_path / "missing" / "result.json"
    command = [
        sys.executable,
        "-m",
        "launch.benchmark",
        "--suite=w1,w9",
        "--peers=ray",
        "--threads=0",
        f"--output={output}",
        "--round=3",
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.splitlines() == [
        "error: --round is not an argument; did you mean --rounds?",
        f"error: --suite must be among {', '.join([*SUITES, 'inference'])}, got 'w9'",
        "error: --peers must be among torch_loop, pfl_sim, flower_sim, fedjax_sim, "
        "got 'ray'",
        f"error: --threads must be in [1, {len(runtime.cores())}], got 0",
        f"error: --output must be a file in a folder, got '{output}'",
    ]
    assert not output.parent.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_benchmark_in_one_line(number):
    command = [sys.executable, "-m", "launch.benchmark", "--suite=w1", "--peers="]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, text=True, stdout=pipe, stderr=pipe) as process:
        assert process.stdout and process.stdout.readline()  # the suite's words
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (INTERRUPTED, "error: stopped\n")
