"""The server's step, whose pseudo-gradient an optax optimiser applies."""

from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
import optax

from fedjax_prune.engine.aggregate import Gathered, receive
from fedjax_prune.engine.contract import Received
from fedjax_prune.engine.floats import is_float
from fedjax_prune.engine.policy import Policy
from fedjax_prune.fields import BELOW_ONE, above, checked, one_of
from fedjax_prune.models.precision import wide
from fedjax_prune.types import Anchor, ServerState, Sums, Tree

SERVER_OPTIMIZERS = {
    "sgd": lambda lr, momentum, b1, b2, eps: optax.sgd(lr),
    "momentum": lambda lr, momentum, b1, b2, eps: optax.sgd(lr, momentum),
    # v = momentum v + (1 - momentum) g, as in AutoFLIP's code.
    "damped": lambda lr, momentum, b1, b2, eps: optax.chain(
        optax.ema(momentum, debias=False), optax.sgd(lr)
    ),
    "adam": lambda lr, momentum, b1, b2, eps: optax.adam(lr, b1, b2, eps),
    "yogi": lambda lr, momentum, b1, b2, eps: optax.yogi(lr, b1, b2, eps),
}


@checked
def make_server_tx(
    optimizer: Annotated[
        str, one_of(SERVER_OPTIMIZERS), "Optimiser of the server."
    ] = "sgd",
    *,
    lr: Annotated[
        float, above(0), "Server step size; 1 with sgd is plain averaging."
    ] = 1.0,
    momentum: Annotated[float, BELOW_ONE, "Momentum of momentum and damped."] = 0.9,
    b1: Annotated[
        float, BELOW_ONE, "Decay of the first moment of adam and yogi."
    ] = 0.9,
    b2: Annotated[
        float, BELOW_ONE, "Decay of the second moment of adam and yogi."
    ] = 0.99,
    eps: Annotated[
        float, above(0), "What adam and yogi add to the root of the second moment."
    ] = 1e-3,
) -> optax.GradientTransformation:
    """Makes the server optimiser.

    Returns:
      The transformation; fields that the optimiser does not have are ignored.

      `adam` and `yogi` have the form of Optax, not the one that Reddi et al. print.
      With g the pseudo-gradient and t = 1, 2, ... the server's steps,

        m <- b1 m + (1 - b1) g
        v <- b2 v + (1 - b2) g^2                            adam
        v <- v - (1 - b2) sign(v - g^2) g^2                 yogi
        params <- params - lr m' / (sqrt(v') + eps),
        m' = m / (1 - b1^t),  v' = v / (1 - b2^t).

      The paper's algorithm 2 steps by m / (sqrt(v) + eps) without that correction of
      the bias and starts v at eps^2 or more. Here m and v start at 0 with `adam` and at
      1e-6 with `yogi`.

    Raises:
      ValueError: if a value is out of its range or the name unknown.

    References:
      Reddi et al., Adaptive Federated Optimization, ICLR 2021, algorithm 2,
      https://arxiv.org/abs/2003.00295.

    Examples:
      >>> tx = make_server_tx("sgd", lr=0.5)
      >>> params, pseudo_gradient = {"w": jnp.float32(3)}, {"w": jnp.float32(2)}
      >>> updates, _ = tx.update(pseudo_gradient, tx.init(params), params)
      >>> optax.apply_updates(params, updates)["w"].item()
      2.0
    """
    return SERVER_OPTIMIZERS[optimizer](lr, momentum, b1, b2, eps)


def server_step(
    server_tx: optax.GradientTransformation,
    params: Tree,
    opt_state: Tree,
    pseudo_gradient: Tree,
) -> tuple[Tree, Tree]:
    """Applies the pseudo-gradient to the shared parameters.

    With `sgd` of step size 1 this is w <- w - sum_k (n_k / n) (w - w_k). n is the total
    of the cohort's examples.

    Args:
      server_tx: the server optimiser.
      params: before the round.
      opt_state: of `server_tx`.
      pseudo_gradient: mean of the deltas, a tree like `params`.

    Returns:
      The new params and optimiser state.
    """
    updates, opt_state = server_tx.update(pseudo_gradient, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def scale(tree: Tree, factor: jax.Array) -> Tree:
    """Multiplies a tree by a scalar.

    Args:
      tree: float arrays.
      factor: [] float, rounded to the dtype of each array, at least to float32.
    """
    return jax.tree.map(lambda x: jnp.asarray(factor, wide(x.dtype)) * x, tree)


def conclude_round(
    update: Callable[[ServerState, Received], ServerState],
    state: ServerState,
    gathered: Gathered,
    cohort_size: jax.Array,
    key: jax.Array,
    policy: Policy,
) -> tuple[ServerState, Sums]:
    """Makes the server's half of a round, which needs no examples.

    Args:
      update: as in Rules.
      state: before the round.
      gathered: what the clients have sent.
      cohort_size: [] int32, clients in the cohort, whether they have arrived or not.
      key: of the round.
      policy: of the round.

    Returns:
      The state after the round and `server_nonfinite`, as of a round.
    """

    def finish(after: ServerState) -> tuple[ServerState, Sums]:
        sums = {"server_nonfinite": _count_nonfinite(after)}
        return after._replace(round=state.round + 1), sums

    if policy.privacy is not None:
        anchor = Anchor(state.params, state.model_state, state.round)
        received = policy.privacy.receive(gathered.parts, cohort_size, key, anchor)
        # Whether anything has arrived must not show.
        return finish(update(state, received))
    # In a branch of its own, its roundings do not depend on what comes after it.
    after = jax.lax.cond(
        gathered.num_clients > 0,
        lambda: update(state, receive(gathered)),
        lambda: state,
    )
    return finish(after)


def _count_nonfinite(state: ServerState) -> jax.Array:
    """Counts the arrays of a state that have an entry that is not finite."""
    floats = [x for x in jax.tree.leaves(state) if is_float(x)]
    broken = jnp.stack([~jnp.isfinite(x).all() for x in floats])
    return broken.sum(dtype=jnp.int32)
