"""Hostile clients, to measure what aggregators are worth.

A hostile client trains as the others do and then multiplies what it sends: by -1 with
`sign_flip`, by a large factor with `scaled`. Batch statistics, the part `model_state`,
are sent as they are: a negative variance would end the run at once. Integers are sent
as they are, too. Of the signs of an update, the part `signs`, only the sign changes.

References:
  Sign flip: Li et al., RSA: Byzantine-Robust Stochastic Aggregation Methods, AAAI 2019,
  https://arxiv.org/abs/1811.03761. Scaled updates: Bagdasaryan et al., How To Backdoor
  Federated Learning, AISTATS 2020, https://arxiv.org/abs/1807.00459.
"""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_prune.engine.clipping import MODEL_STATE, SIGNS, STEP_MASS
from fedjax_prune.engine.floats import is_float
from fedjax_prune.fields import FINITE, FRACTION, checked, one_of
from fedjax_prune.shares import num_in
from fedjax_prune.types import Mean, Message, Total

ATTACKS = ("sign_flip", "scaled")
_DRAW = 2**32 - 3
"""Stands for a round where the hostile clients are drawn."""


class Hostile(NamedTuple):
    """The clients that attack, the same ones in every round.

    Attributes:
      client_ids: ascending.
      factor: of all that they send.
    """

    client_ids: tuple[int, ...]
    factor: float

    def includes(self, client_id: jax.Array) -> jax.Array:
        """Says whether a client attacks, [] bool."""
        ids = jnp.array(self.client_ids, jnp.int32)
        return (ids == client_id).any()

    def attack(self, message: Message, client_id: jax.Array) -> Message:
        """Returns what a client sends if it is hostile, else its message."""
        factor = jnp.where(self.includes(client_id), self.factor, 1.0)

        def scale(x: jax.Array, by: jax.Array) -> jax.Array:
            return x * by.astype(x.dtype) if is_float(x) else x

        def of_part(name: str, part: Mean | Total) -> Mean | Total:
            # The step mass multiplies the other parts, which attack already.
            if name in (MODEL_STATE, STEP_MASS):
                return part
            by = jnp.sign(factor) if name == SIGNS else factor
            return part._replace(
                values=jax.tree.map(lambda x: scale(x, by), part.values)
            )

        return {name: of_part(name, part) for name, part in message.items()}


@checked
def make_hostile(
    *,
    fraction: Annotated[
        float, FRACTION, "Share of the clients that attack, rounded down."
    ] = 0.0,
    attack: Annotated[
        str,
        one_of(ATTACKS),
        "What they send, their update times -1 or times hostile.scale.",
    ] = "sign_flip",
    scale: Annotated[float, FINITE, "Factor of the attack scaled."] = -10.0,
    num_clients: int,
    seed: int,
) -> Hostile | None:
    """Chooses the hostile clients; None if there are none.

    Args:
      fraction: of the population, in [0, 1].
      attack: one of ATTACKS.
      scale: the factor of `scaled`.
      num_clients: in the population.
      seed: of the run; it chooses the clients.

    Raises:
      ValueError: if a value is out of its range or the attack unknown.

    Examples:
      >>> hostile = make_hostile(fraction=0.29, num_clients=10, seed=0)
      >>> len(hostile.client_ids), hostile.factor
      (2, -1.0)
    """
    count = num_in(fraction, num_clients)
    if not count:
        return None
    ids = np.random.default_rng((seed, _DRAW)).permutation(num_clients)[:count]
    factor = scale if attack == "scaled" else -1.0
    return Hostile(tuple(sorted(ids.tolist())), factor)
