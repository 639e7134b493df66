"""W1 beside pfl-research: what pfl is given, and the table of both."""

import json
import math

import numpy as np

from fedjax_prune.engine.dealing import sample_cohort
from fedjax_prune.runs.completed import completed
from fedjax_prune.runs.experiment import load_data
from fedjax_prune.runs.interrupt import INTERRUPTED
from fedjax_prune.runs.metrics_log import read_metrics
from launch.benchmark import worker
from launch.reproduce import pfl_files
from launch.reproduce.beside_pfl import beside_pfl, train_pfl, write_for_pfl
from launch.reproduce.table import Block, Line, Table, lines_of
from tests.made_up_runs import config_of, write_run
from tests.own_files import draw_images
from tests.small_runs import tiny_config


def rows_of_pfl(workdir, accuracy, rounds=20):
    """Rounds of pfl that take 2, 3 and 10 seconds in the median of each row."""
    file = workdir / "pfl.jsonl"
    rows = [
        {"round": 5, "seconds": 2.0, "accuracy": accuracy},
        {"round": 10, "seconds": 3.0, "accuracy": accuracy},
        {"round": rounds, "seconds": 10.0, "accuracy": accuracy},
    ]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def test_pfl_gets_the_images_the_clients_and_the_cohorts_of_a_run(tmp_path):
    config = tiny_config(rounds=3, cohort_size=2)
    file = tmp_path / "data.npz"
    write_for_pfl(config, file)
    found, data = worker.load(str(file)), load_data(config)
    np.testing.assert_array_equal(found.images, data.train.images)
    for client in range(config.data.num_clients):
        np.testing.assert_array_equal(
            found.examples(client), data.population.of(client)
        )
    for number in range(3):
        cohort = sample_cohort(
            data.population,
            2,
            1,
            seed=config.seed,
            round=number,
            epochs=1,
            batch_size=4,
        )
        assert found.cohort(number).tolist() == sorted(cohort.client_ids.tolist())
    client = config.client
    assert (found.epochs, found.batch_size) == (client.epochs, client.batch_size)
    assert (found.client_lr, found.server_lr) == (client.lr, config.server.lr)
    more = pfl_files.read(file)
    np.testing.assert_array_equal(more.test_images, data.test.images)
    np.testing.assert_array_equal(more.test_labels, data.test.labels)
    assert (more.mean.tolist(), more.std.tolist()) == ([0], [1])


def colours(folder):
    """A run on colour images, which are normalised as in the benchmark."""
    folder.mkdir()
    for part, seed in (("train", 0), ("test", 1)):
        images, labels = draw_images(60, seed)
        colour = np.repeat(images, 3, axis=-1)
        np.savez(folder / f"{part}.npz", images=colour, labels=labels)
    changes = {
        "data.name": "arrays",
        "data.dir": str(folder),
        "data.num_train": 0,
        "data.partitioner": "iid",
        "data.normalize": "cifar10",
        "eval.num_examples": 30,
    }
    return completed(tiny_config(rounds=3, **changes))


def test_pfl_gets_the_test_set_and_how_images_are_normalised(tmp_path):
    config, file = colours(tmp_path / "data"), tmp_path / "data.npz"
    write_for_pfl(config, file)
    found, test = pfl_files.read(file), load_data(config).test
    np.testing.assert_array_equal(found.test_images, test.images)
    np.testing.assert_array_equal(found.test_labels, test.labels)
    assert found.test_images.shape == (30, 8, 8, 3)
    # Of the training images of CIFAR-10.
    np.testing.assert_array_equal(found.mean, np.float32([0.4914, 0.4822, 0.4465]))
    np.testing.assert_array_equal(found.std, np.float32([0.2470, 0.2435, 0.2616]))


def test_pfl_goes_on_only_with_what_it_has_trained_on(tmp_path):
    file = tmp_path / "data.npz"
    write_for_pfl(colours(tmp_path / "data"), file)
    data, more = worker.load(str(file)), pfl_files.read(file)

    def changed(array):
        array = array.copy()
        array.flat[-1] += 1
        return array

    digest = pfl_files.digest(data, more, 7, 2)
    # Rounds may be added: those of before stay as they were.
    assert digest == pfl_files.digest(
        data._replace(cohorts=changed(data.cohorts)), more, 7, 2
    )
    others = [pfl_files.digest(data, more, seed, n) for seed, n in ((8, 2), (7, 3))]
    for name in ("images", "labels", "indices", "offsets"):
        new = data._replace(**{name: changed(getattr(data, name))})
        others.append(pfl_files.digest(new, more, 7, 2))
    cohorts = np.concatenate([changed(data.cohorts[:2]), data.cohorts[2:]])
    others.append(pfl_files.digest(data._replace(cohorts=cohorts), more, 7, 2))
    others.append(pfl_files.digest(data._replace(client_lr=0.5), more, 7, 2))
    for name in more._fields:
        new = more._replace(**{name: changed(getattr(more, name))})
        others.append(pfl_files.digest(data, new, 7, 2))
    assert len({digest, *others}) == 1 + len(others)


def test_each_round_of_pfl_has_a_seed_of_its_own():
    seeds = [pfl_files.mixed(seed, n) for seed in range(3) for n in range(50)]
    assert len(set(seeds)) == len(seeds) and 0 <= min(seeds) <= max(seeds) < 2**32


def test_the_rows_of_pfl_are_replaced(tmp_path):
    file, rows = tmp_path / "pfl.jsonl", [{"round": 50, "seconds": 1.5}]
    for _ in range(2):
        rows = [*rows, {"round": 100, "seconds": math.nan}]
        pfl_files.write_rows(rows, file)
        assert len(file.read_text().splitlines()) == len(rows)
    assert list(tmp_path.iterdir()) == [file]


def test_seeds_of_both_libraries_are_compared_and_unfinished_ones_named(tmp_path):
    """Of our rounds those without an evaluation count, less the waiting for saves."""
    workdirs = [tmp_path / f"seed={seed}" for seed in range(3)]
    lasts = []
    for seed, workdir in enumerate(workdirs):
        write_run(
            workdir,
            config_of(seed=seed, **{"eval.every": 2}),
            records=False,
            **{
                "seconds": lambda n: 3.0 if n % 2 and n != 7 else 100.0,
                "seconds/save": lambda n: 1.0,
            },
        )
        lasts.append(read_metrics(workdir)[-1]["eval/global_dense/accuracy"])
        rows_of_pfl(workdir, lasts[-1] + 0.01, 20 if seed < 2 else 15)
    table = beside_pfl({"ours": workdirs}).splitlines()
    _, _, ours, pfl, _, left = table
    assert ours.startswith(f"| ours | 20 | 3 | {np.mean(lasts):.1%} ± ")
    assert ours.endswith("|  | 40 |")
    assert pfl.startswith("| pfl-research, FedAvg | 20 | 2 | ")
    assert pfl.endswith("| +1.0% ± 0.0% | 60 |")
    assert left == "Not finished: pfl-research (1 of 3 seeds)."
    rows_of_pfl(workdirs[0], math.nan)
    table = beside_pfl({"ours": workdirs}).splitlines()
    assert table[3].startswith(
        f"| pfl-research, FedAvg | 20 | 1 | {lasts[1] + 0.01:.1%}"
    )
    assert table[-1] == "Not finite: pfl-research (1 of 3 seeds)."


def lines_of_one_run():
    block = Block("w1", "W1", (Line("FedAvg", "quickstart", ("rounds=20",)),))
    return lines_of(Table("?", (block,), (0,)), (0,), [])


def test_pfl_is_neither_installed_nor_started_when_finished_or_out_of_time(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    lines = lines_of_one_run()
    assert train_pfl(lines, tmp_path / "runs", 0.0) == INTERRUPTED
    assert "1 runs are not finished" in capsys.readouterr().err
    workdir = tmp_path / "runs" / lines[0].runs[0].folder
    workdir.mkdir(parents=True)
    rows_of_pfl(workdir, 0.7)
    assert train_pfl(lines, tmp_path / "runs", math.inf) == 0
    assert not (tmp_path / "cache").exists()
