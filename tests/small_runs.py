"""Configurations of runs that take seconds, and what such a run leaves behind."""

import re
from pathlib import Path

from configs import base, quickstart
from fedjax_prune.runs import start as resume
from fedjax_prune.runs.experiment import Experiment, load_data
from fedjax_prune.runs.learning import make_learning
from tests.toys import all_rows

PRUNED_FIELDS = {
    "explore_epochs": 2,
    "guidance_norm": "rank",
    "structured_rule": "guidance_l1",
    "structured_share": 0.5,
}


def tiny_config(**changes):
    """The quick start cut down to seconds: four sampled rounds."""
    config = quickstart.get_config()
    changes = {
        "rounds": 4,
        "cohort_size": 3,
        "lanes": 2,
        "devices": 1,
        "save_every": 2,
        "report.every": 0,
        "data.num_clients": 5,
        "data.num_train": 300,
        "eval.every": 2,
        "eval.num_clients": 2,
        "eval.num_examples": 60,
        "model.width": 0.25,
        "client.epochs": 1,
    } | changes
    config.update_from_flattened_dict(changes)
    return config


def build(config):
    """Network, task and algorithm of a checked configuration, and its data."""
    learning = make_learning(config)
    return Experiment(learning, load_data(learning.config))


def plain_config(**changes):
    """FedAvg without gates and norms, for what does not depend on the algorithm."""
    config = tiny_config(**{"model.gated": False, "model.norm": "none"} | changes)
    config.algorithm = base.algorithm("fedavg")
    return config


def own_config(path, cls="Small", config=None, **changes):
    """A small run, of FedAvg if none is given, with a class of the file at a path."""
    config = plain_config() if config is None else config
    config.model = base.model(f"{path}:{cls}")
    config.update_from_flattened_dict({"client.lr": 0.1} | changes)
    return config


def pruned_config(name="autoflip", fields=PRUNED_FIELDS, **changes):
    config = tiny_config(**{"devices": 2, "lanes": 1, "model.gated": False})
    config.server.optimizer = "damped"
    # A batch norm on few examples would amplify rounding.
    config.model.norm = "none"
    config.update_from_flattened_dict(changes)
    config.algorithm = base.algorithm(name)
    config.algorithm.update(fields)
    return config


def final_state(config, workdir):
    """The server's state and the rows of all clients, of the newest checkpoint."""
    state, rows = resume.restore(make_learning(config), workdir)
    return state, all_rows(rows)


def undocumented(row):
    """The fields of a row of metrics that the table of runs/README.md leaves out."""
    guide = Path(__file__).parents[1] / "fedjax_prune" / "runs" / "README.md"
    table = guide.read_text().split("## What a row of metrics.jsonl holds")[1]
    names = re.findall(r"`([a-zA-Z_/.]+)`", table)
    patterns = [
        re.escape(name)
        .replace(r"\.\.\.", r"(mean|std|p10|min)")
        .replace("LAYER", r"\w+")
        .replace("ARRAY", r"[\w/]+")
        .replace("GROUP", r"[\w/]+")
        for name in names
    ]
    return [f for f in row if not any(re.fullmatch(p, f) for p in patterns)]
