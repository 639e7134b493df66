"""Workdirs whose rows and records are written by hand, as a run would leave them."""

import json
import math

import numpy as np

from configs import base
from fedjax_prune.runs import record
from fedjax_prune.runs.page.read import as_lines, read_runs
from fedjax_prune.runs.workdir import write_config

LAYERS = {"conv1": 16, "conv2": 32, "fc1": 64}
NUM_CLIENTS, NUM_CLASSES = 20, 10


def config_of(algorithm="scaffold", **changes):
    """A configuration of 20 clients, 8 of them in a round."""
    config = base.get_config(algorithm)
    changes = {
        "rounds": 20,
        "cohort_size": 8,
        "data.name": "digits",
        "data.num_clients": NUM_CLIENTS,
        "model.name": "cnn",
        "lanes": 2,
    } | changes
    config.update_from_flattened_dict(changes)
    return config


def write_run(folder, config, *, best=0.9, records=True, **fields):
    """Writes a finished run.

    Args:
      folder: is made.
      config: as `config_of`.
      best: the accuracy after many rounds.
      records: whether `report.every` has recorded every fifth round.
      fields: of every row beside the usual ones.
    """
    folder.mkdir(parents=True)
    write_config(folder, config)
    rng = np.random.default_rng(config.seed)
    rows = [
        row_of(config, n, best, rng) | {k: f(n) for k, f in fields.items()}
        for n in range(1, config.rounds + 1)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(text)
    start = {
        "finished": 0,
        "fields": {},
        "versions": {"python": "3.11.7", "jax": "0.10.2"},
        "commit": "a" * 40,
        "machine": {"system": "Linux", "processor": "made up"},
        "devices": {"cpu": 1},
        "flags": {},
    }
    (folder / "environment.json").write_text(json.dumps([start]))
    if records:
        counts = rng.multinomial(100, rng.dirichlet([0.3] * NUM_CLASSES, NUM_CLIENTS))
        record.write_partition(folder, counts.astype(np.int32))
        for n in range(5, config.rounds + 1, 5):
            record.write_record(folder, record_of(config, n, best, rng))
    return folder


def write_finished(folder, config):
    """Writes a run as it is when its last round is evaluated and saved."""
    write_run(folder, config, records=False)
    (folder / "checkpoints" / str(config.rounds)).mkdir(parents=True)


def lines_of(folder, *configs, **fields):
    """The lines of a page of finished runs, one of each configuration."""
    folders = [
        write_run(folder / str(n), config, **fields) for n, config in enumerate(configs)
    ]
    return as_lines(read_runs(folders))


def row_of(config, n, best, rng):
    """The row of a round; rounds that `eval.every` divides are evaluated."""
    accuracy = best * (1 - math.exp(-n / 6)) + rng.normal(0, 0.01)
    row = {
        "round": n,
        "seconds": 2.0 + rng.random(),
        "clients": config.cohort_size,
        "train/loss": 2.3 * math.exp(-n / 8),
        "train/accuracy": accuracy,
        "steps/real": 90,
        "steps/executed": 100,
        "bytes/down": 2e6,
        "bytes/up": 1e6,
        "bytes/dense": 4e6,
        "flops/dense": 2e12,
    }
    if n == 1:
        row["seconds/compile"] = 11.0
    if n % config.eval.every == 0:
        row |= {"eval/headline": accuracy, "eval/global_dense/accuracy": accuracy}
        row |= {"eval/clients": config.cohort_size, "seconds/evaluate": 0.5}
        for name in ("client_gated", "client_local", "after_local"):
            row |= {f"eval/{name}/mean": accuracy, f"eval/{name}/min": accuracy / 2}
    return row


def with_masks(config):
    """Fields of rows whose masks prune more from round to round."""
    fields = {
        "sparsity/all": lambda n: 0.6 * n / config.rounds,
        "macs/theoretical": lambda n: 1 - 0.6 * n / config.rounds,
        "macs/realisable": lambda n: 1 - 0.3 * n / config.rounds,
    }
    for place, (layer, size) in enumerate(LAYERS.items()):
        share = 0.3 + 0.2 * place
        fields |= {
            f"sparsity/{layer}/kernel": lambda n, s=share: s * n / config.rounds,
            f"sparsity/{layer}/bias": lambda n: 0.0,
            f"channels/{layer}": lambda n, s=size: s - n * s // 2 // config.rounds,
        }
    return fields


def record_of(config, n, best, rng):
    """The record of a round; the second half of each layer is hardly selected."""
    size = config.cohort_size
    ids = np.sort(rng.choice(NUM_CLIENTS, size, replace=False)).astype(np.int32)

    def shares(rows, channels):
        found = rng.beta(0.4, 0.5, (rows, channels))
        found[:, channels // 2 :] *= rng.random((rows, channels - channels // 2)) < 0.2
        return found.astype(np.float16)

    gated = config.model.gated
    return record.Record(
        round=n,
        clients=ids,
        loss=rng.gamma(2, 1.0, size).astype(np.float32),
        examples=np.full(size, 100, np.float32),
        arrived=np.ones(size, bool),
        selected={k: shares(size, c) for k, c in LAYERS.items()} if gated else {},
        classes={k: shares(NUM_CLASSES, c) for k, c in LAYERS.items()} if gated else {},
        churn={f"{k}/kernel": np.float32(1 / n) for k in LAYERS},
        churn_since=n - 5,
        evaluated=np.arange(NUM_CLIENTS, dtype=np.int32),
        accuracies={
            name: rng.beta(8 * best, 8 * (1.1 - best), NUM_CLIENTS).astype(np.float32)
            for name in ("client_gated", "client_local")
        },
    )
