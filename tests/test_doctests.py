"""The examples in docstrings: they run, and every public name has some.

They run as a user would run them, with JAX's usual promotion of dtypes and ranks. They
may use `np`, `jnp`, `jax` and `fedjax_prune` without importing them.
"""

import doctest
import importlib
import inspect
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_prune

ROOT = Path(fedjax_prune.__file__).parent
NAMES = {"np": np, "jnp": jnp, "jax": jax, "fedjax_prune": fedjax_prune}


def modules_with_examples():
    for path in sorted(ROOT.rglob("*.py")):
        if ">>> " in path.read_text():
            parts = path.relative_to(ROOT.parent).with_suffix("").parts
            yield ".".join(parts).removesuffix(".__init__")


@pytest.mark.parametrize("name", list(modules_with_examples()))
def test_examples_give_what_they_show(name):
    module = importlib.import_module(name)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        result = doctest.testmod(module, extraglobs=NAMES)
    assert result.attempted > 0, "doctest does not find the examples"
    assert result.failed == 0


def test_every_public_name_has_examples():
    public = {name: getattr(fedjax_prune, name) for name in fedjax_prune.__all__}
    described = [
        name
        for name, value in public.items()
        if inspect.isclass(value) or inspect.isfunction(value)
    ]
    missing = {
        name
        for name in described
        if "\nExamples:\n" not in (inspect.getdoc(public[name]) or "")
    }
    assert missing == set()
