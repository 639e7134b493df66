"""What `flwr run launch/flower` starts."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

from flwr.clientapp import ClientApp
from flwr.common.config import flatten_dict, validate_config
from flwr.serverapp import ServerApp

from fedjax_prune.fields import fields_of
from fedjax_prune.flower.server import serve

ROOT = Path(__file__).parents[2]
APP = tomllib.loads((ROOT / "launch/flower/pyproject.toml").read_text())

# In a process of its own, because it sets up JAX for a node.
READ = """
import json, sys
from fedjax_prune.runs.settings import SettingsError
from launch import flower_apps as apps
kinds = [type(apps.server).__name__, type(apps.client).__name__]
given = json.loads(sys.argv[1])
print(json.dumps(kinds))
print(apps.read_config(given).to_json_best_effort())
try:
    apps.read_config(given | {"overrides": "client.lr=-1 cohort_sise=3", "rounds": 0})
except SettingsError as error:
    print(json.dumps(error.problems))
try:
    apps.read_config({"overrides": "data.dir='no end"})
except SettingsError as error:
    print(json.dumps(error.problems))
"""


def test_the_app_is_one_that_flower_accepts():
    assert validate_config(APP, check_module=False) == (True, [], [])


def test_the_fields_of_the_app_are_read():
    given = flatten_dict(APP["tool"]["flwr"]["app"]["config"])
    fields = fields_of(serve)
    assert {n: given[n] for n in fields} == {n: f.default for n, f in fields.items()}
    given["overrides"] = "client.lr=0.05 model.gated=false data.dir='my digits'"
    done = subprocess.run(
        [sys.executable, "-c", READ, json.dumps(given)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    kinds, config, problems, unclosed = map(json.loads, done.stdout.splitlines())
    assert kinds == [ServerApp.__name__, ClientApp.__name__]
    assert (config["rounds"], config["cohort_size"]) == (3, 2)
    assert (config["data"]["num_clients"], config["data"]["name"]) == (2, "digits")
    assert (config["client"]["lr"], config["model"]["gated"]) == (0.05, False)
    assert config["data"]["dir"] == "my digits"
    assert len(unclosed) == 1 and "No closing quotation" in unclosed[0]
    told = " ".join(problems)
    assert len(problems) == 3
    assert all(name in told for name in ("client.lr", "cohort_sise", "rounds"))
