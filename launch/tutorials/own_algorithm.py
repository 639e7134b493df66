# %% [markdown]
# # An algorithm and a pruning score of your own
#
# A federated algorithm is a few pure functions, `Rules`, and a pruning method is a few
# more, `Masking`. The engine does the rest: it trains the clients of a round side by
# side, on all devices, and adds up what arrives. This tutorial writes
#
# - FedExP, a server that takes longer steps when the clients disagree, and
# - movement pruning, a score that keeps the weights that grow in training,
#
# and compares them with FedAvg and with magnitude pruning on handwritten digits. It
# takes about half a minute on two CPU cores. It runs as a script,
#
#     python launch/tutorials/own_algorithm.py
#
# or, cell by cell, as the notebook that `jupytext --to notebook
# launch/tutorials/own_algorithm.py` makes of it; `pip install -e '.[docs]'` brings
# jupytext.

# %%
from collections.abc import Callable
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import fedjax_prune as fp
from fedjax_prune.algorithms import Algorithm
from fedjax_prune.fields import above, at_least, checked
from fedjax_prune.pruning.mask_rule import GuardedMasks, Threshold, make_rule
from fedjax_prune.pruning.masked_round import Masking, masked
from fedjax_prune.runs import settings

# Runs multiply in full float32. Here it is asked for: GPUs and TPUs would round.
jax.config.update("jax_default_matmul_precision", "highest")

# %% [markdown]
# ## 1. Data, network and loop
#
# Twenty clients hold very different shares of the digits, and five of them train in a
# round. The network is a Flax module. `show` trains with an algorithm and prints the
# accuracy of what it delivers: the loop of a run, without its workdir.

# %%
NUM_CLIENTS, COHORT_SIZE, EPOCHS, BATCH_SIZE = 20, 5, 2, 16
examples, test = fp.load("digits")
population = fp.partition("dirichlet", examples.labels, NUM_CLIENTS, seed=0, alpha=0.1)
train_set, test_set = jax.device_put((examples, test))


class Net(nn.Module):
    """One hidden layer."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns logits, [batch_size, 10]."""
        hidden = nn.Dense(64, name="hidden")(images.reshape(images.shape[0], -1))
        return nn.Dense(10, name="logits")(nn.relu(hidden))


task = fp.make_task(Net(), (8, 8, 1))
solver = fp.make_solver(epochs=EPOCHS, batch_size=BATCH_SIZE, lr=0.05)
key = jax.random.key(0)


def cohort_of(number: int) -> fp.Cohort:
    """The clients of a round, dealt to one lane."""
    return fp.sample_cohort(
        population,
        COHORT_SIZE,
        num_lanes=1,
        seed=0,
        round=number,
        epochs=EPOCHS,
        batch_size=BATCH_SIZE,
    )


def show(
    name: str,
    algorithm: fp.FederatedAlgorithm,
    more: Callable[[fp.ServerState], str] = lambda state: "",
    rounds: int = 30,
) -> fp.ServerState:
    """Trains, and prints the test accuracy of every tenth round.

    Args:
      name: printed before each line.
      algorithm: trained from its first state.
      more: state -> what else is printed.
      rounds: how many.

    Returns:
      The last state.
    """
    state = algorithm.init(key)
    rows = fp.make_store("device", algorithm.row(key), NUM_CLIENTS)
    train_round, deliver = jax.jit(algorithm.round), jax.jit(algorithm.deliver)
    for number in range(rounds):
        cohort = cohort_of(number)
        taken = rows.take(cohort.client_ids)
        round_key = jax.random.fold_in(key, number)
        inputs = fp.RoundInputs(state, taken, train_set, cohort, round_key)
        state, taken, _ = train_round(inputs)
        rows.put(cohort.client_ids, taken)
        if (number + 1) % 10 == 0:
            right = fp.correct_examples(task, deliver(state), test_set).mean()
            print(f"{name}, round {number + 1}: {float(right):.1%}{more(state)}")
    return state


fedavg = fp.fedavg(task, solver, fp.make_server_tx())
show("FedAvg", fedavg)

# %% [markdown]
# ## 2. An algorithm: FedExP
#
# FedAvg's server subtracts the mean of the clients' deltas. If the deltas point in
# different directions, their mean is short, although every client has moved far. FedExP
# (Jhunjhunwala et al., ICLR 2023, [arXiv 2301.09604](https://arxiv.org/abs/2301.09604))
# multiplies the mean by
#
#     eta = max(1, sum_k |delta_k|^2 / (2 M (|mean delta|^2 + epsilon)))
#
# where M clients have sent something. So a client sends two parts, its delta and the
# delta's squared norm, and the server needs the mean of each. `Mean(values, weight)`
# asks for a mean, here with the same weight for all; if a client is lost, it is missing
# in both means alike. Whatever lasts from round to round is in the state: here the
# server keeps eta, so that we can look at it.
#
# Only three of the rules of FedAvg change. The annotation of `epsilon` is the
# declaration of a field, with its rule and its words.


# %%
def squared_norm(tree: dict) -> jax.Array:
    """Sum of the squares of all numbers of a tree, []."""
    return optax.tree.norm(tree, squared=True)


@checked
def fedexp(
    task: fp.Task,
    solver: fp.LocalSolver,
    server_tx: optax.GradientTransformation,
    *,
    epsilon: Annotated[
        float, at_least(0), "What the squared norm is raised by."
    ] = 1e-3,
) -> fp.FederatedAlgorithm:
    """Builds FedExP, in which clients count alike; `server_tx` is unused."""
    base = fp.fedavg(task, solver, server_tx)

    def init(key: jax.Array) -> fp.ServerState:
        return base.init(key)._replace(server=jnp.float32(1))

    def program(state: fp.ServerState, cohort: fp.Cohort) -> fp.ClientProgram:
        below = base.rules.program(state, cohort)

        def upload(result: fp.LocalResult, row: fp.ClientState) -> tuple:
            one = jnp.float32(1)
            message = {
                "delta": fp.Mean(result.delta, one),
                "squared": fp.Mean(squared_norm(result.delta), one),
                "model_state": fp.Mean(result.model_state, one),
            }
            return message, row._replace(personal=result.personal)

        return below._replace(upload=upload)

    def update(state: fp.ServerState, received: dict) -> fp.ServerState:
        length = 2 * (squared_norm(received["delta"]) + epsilon)
        eta = jnp.maximum(1, received["squared"] / length)
        step = optax.tree.scale(eta, received["delta"])
        return state._replace(
            params=optax.tree.sub(state.params, step),
            model_state=received["model_state"],
            server=eta,
        )

    rules = base.rules._replace(init=init, program=program, update=update)
    return fp.make_algorithm(task, rules, base.messages)


algorithm = fedexp(task, solver, fp.make_server_tx())
show("FedExP", algorithm, lambda state: f", eta {float(state.server):.2f}")

# %% [markdown]
# ## 3. Is it right?
#
# `train_client` trains one client as a round's lanes do. So the first round can be
# computed once more, one client after another, with the formula in NumPy.

# %%
state, cohort = algorithm.init(key), cohort_of(0)
round_key = jax.random.fold_in(key, 0)
deltas = []
for client in cohort.client_ids:
    held = population.of(client)
    result = fp.train_client(
        task=task,
        solver=solver,
        program=algorithm.rules.program(state, cohort),
        anchor=fp.Anchor(state.params, state.model_state, state.round),
        row=algorithm.row(key),
        dataset=train_set,
        indices=jnp.asarray(held, jnp.int32),
        size=jnp.int32(len(held)),
        key=jax.random.fold_in(round_key, client),
    )
    deltas.append(np.asarray(ravel_pytree(result.delta)[0], np.float64))

mean = np.mean(deltas, 0)
eta = max(1, np.mean([d @ d for d in deltas]) / (2 * (mean @ mean + 1e-3)))
expected = ravel_pytree(state.params)[0] - eta * mean
rows = fp.make_store("device", algorithm.row(key), NUM_CLIENTS)
inputs = fp.RoundInputs(
    state, rows.take(cohort.client_ids), train_set, cohort, round_key
)
after = jax.jit(algorithm.round)(inputs)[0]
difference = np.abs(ravel_pytree(after.params)[0] - expected).max()
assert difference < 1e-5, difference
print(f"eta {float(after.server):.4f}, in NumPy {eta:.4f}")
print(f"largest difference of a parameter: {difference:.0e}")

# %% [markdown]
# ## 4. A pruning score: movement
#
# Magnitude pruning removes the weights that are small. Movement pruning (Sanh et al.,
# NeurIPS 2020, [arXiv 2005.07683](https://arxiv.org/abs/2005.07683)) removes those that
# shrink: its score adds up `- gradient * w` over training. In rounds the mean delta
# stands for the gradient:
#
#     S^{t+1} = S^t - delta^t * w^t
#
# A `Masking` says what masks are made of (`start`, `absorb`) and when they are made
# (`refresh`). The server has both factors, so clients send nothing new. `make_rule`
# turns scores into masks: it prunes the lowest ones, and leaves a hundredth of each
# array. `masked` puts any algorithm under masks; FedAvg trains here, so that only the
# scores differ, and `fedexp` could as well.


# %%
@checked
def movement(
    task: fp.Task,
    base: fp.FederatedAlgorithm,
    *,
    threshold: Threshold = 0.7,
    warmup_rounds: Annotated[int, above(0), "Rounds before the mask is made."] = 10,
) -> fp.FederatedAlgorithm:
    """Puts an algorithm under a mask that is made once, from movements."""
    rule = make_rule(task, normalization="none", threshold=threshold, structured="off")

    def start(params: dict) -> dict:
        return optax.tree.zeros_like(params)

    def absorb(state: fp.ServerState, received: dict) -> dict:
        moved = optax.tree.mul(received["delta"], state.params)
        return optax.tree.sub(state.server.guide, moved)

    def refresh(
        state: fp.ServerState, rows: fp.ClientState, cohort: fp.Cohort
    ) -> tuple[GuardedMasks, dict]:
        server = state.server
        made = jax.lax.cond(
            state.round == warmup_rounds,
            lambda: rule.masks(server.guide),
            lambda: server.current,
        )
        return made, server.guide

    return masked(task, base, Masking(refresh, start, absorb=absorb))


def left(state: fp.ServerState) -> str:
    """The share of the weights of kernels that are left."""
    kept = [layer["kernel"] for layer in state.server.masks.values()]
    share = sum(map(jnp.sum, kept)) / sum(mask.size for mask in kept)
    return f", {float(share):.1%} of the weights left"


tx = fp.make_server_tx()
pruned = movement(task, fedavg, threshold=0.7)
by_movement = show("movement", pruned, left)
pruned = fp.magnitude(task, solver, tx, threshold=0.7, warmup_rounds=10)
by_magnitude = show("magnitude", pruned, left)
both = jax.tree.map(
    lambda a, b: (a & b).sum() / (a | b).sum(),
    by_movement.server.masks,
    by_magnitude.server.masks,
)
print("Of the weights that one of the two keeps, both keep")
for layer, shares in both.items():
    print(f"  {float(shares['kernel']):.1%} in the layer {layer}")

# %% [markdown]
# ## 5. From a function to a command
#
# An entry in the table of algorithms gives FedExP a name in configurations. The fields,
# their check and their help come from its signature.

# %%
fp.ALGORITHMS["fedexp"] = Algorithm(fedexp)
config = settings.default_config("fedexp")
print(config["algorithm"])
config["algorithm"]["epsilon"] = -1.0
print(settings.problems(config))

# %% [markdown]
# The entry lasts as long as this process. To keep it, save the function as `fedexp.py`
# in `fedjax_prune/algorithms/` and add the entry to `ALGORITHMS` in the `__init__.py`
# there: `--config.algorithm.name=fedexp` then trains with it, and the tests in
# `tests/algorithms` check what every algorithm promises, such as that padding changes
# nothing.
