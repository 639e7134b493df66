"""Runs that are written without training, and exported folders read elsewhere."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_prune.engine.store import make_store
from fedjax_prune.models.channels import drop_channels
from fedjax_prune.pruning.masks import prunable
from fedjax_prune.runs import checkpoint
from fedjax_prune.runs.learning import make_learning, start
from fedjax_prune.runs.origin import origin_of
from fedjax_prune.runs.saving import CHECKPOINTS
from fedjax_prune.runs.workdir import write_config

CLIENT = 2
"""The client whose row is not the first one; it is in the cohort of the first round."""

_LOADER = '''
"""Runs the code of each folder's card on examples, in a process without the library."""

import os
import re
import sys

import numpy as np

seen = []


def watch(event, arguments):
    if event in ("pickle.find_class", "compile", "exec") and seen:
        seen.append((event, str(arguments)[:200]))


sys.addaudithook(watch)
for folder in sys.argv[1:]:
    os.chdir(folder)
    with open("README.md") as file:
        code = re.search("```python\\n(.*?)```", file.read(), re.DOTALL)[1]
    exec(code, {})  # brings the imports
    own = re.sub("examples = .*", "examples = given", code)
    names, own = {"given": np.load("examples.npy")}, compile(own, "card", "exec")
    before = set(sys.modules)
    seen.append("from here on nothing else may be evaluated")
    exec(own, names)
    others, seen = [each for each in seen[1:] if "card" not in each[1]], []
    assert not others, others
    np.save("logits.npy", np.asarray(names["logits"]))
    assert "fedjax_prune" not in sys.modules
    assert "flax" not in sys.modules
'''


def load_elsewhere(examples, python=sys.executable):
    """Loads exported networks by what their cards say, where nothing is unpickled.

    Args:
      examples: folder -> examples that the network is given.
      python: the interpreter.

    Returns:
      Folder -> logits.
    """
    for folder, given in examples.items():
        np.save(folder / "examples.npy", given)
    done = subprocess.run(
        [python, "-W", "ignore", "-c", _LOADER, *map(str, examples)],
        capture_output=True,
        text=True,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    return {folder: np.load(folder / "logits.npy") for folder in examples}


def write_run(workdir: Path, config, seed: int = 0):
    """Writes the workdir of a run as it is after its first round, with random arrays.

    Masks, if there are any, prune a third of the weights and of the channels.

    Returns:
      Learning, the server's state, and the personal parameters of CLIENT.
    """
    learning, rng = make_learning(config), np.random.default_rng(seed)

    def moved(leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        # Variances stay above 0.
        return jnp.asarray(leaf * rng.uniform(1, 2, leaf.shape), leaf.dtype)

    state, row = jax.jit(lambda: start(learning))()
    params, model_state = jax.tree.map(moved, (state.params, state.model_state))
    state = state._replace(
        round=jnp.int32(1), params=params, model_state=model_state, pending=()
    )
    if learning.algorithm.masked is not None:
        server = state.server._replace(masks=_masks(learning, params, rng))
        state = state._replace(server=server)
    personal = jax.tree.map(moved, row.personal)
    rows = make_store("host", row, config.data.num_clients)
    trained = jax.tree.map(lambda x: x[None], row._replace(personal=personal))
    rows.put(np.array([CLIENT], np.int32), trained)
    workdir.mkdir(parents=True)
    write_config(workdir, learning.config)
    origin = origin_of(learning.config)
    checkpoint.save(workdir / CHECKPOINTS, 1, state, rows=rows, origin=origin, keep=1)
    return learning, state, personal


def _masks(learning, params, rng):
    masks = jax.tree.map(
        lambda leaf, may: jnp.asarray((not may) | (rng.random(leaf.shape) > 1 / 3)),
        params,
        prunable(params),
    )
    groups = learning.task.groups or ()
    alive = {}
    for group in groups:
        flags = rng.random(group.size) > 1 / 3
        flags[0] = True
        alive[group.name] = jnp.asarray(flags)
    return drop_channels(masks, groups, alive)
