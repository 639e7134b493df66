"""Gates, which choose the channels of a convolution that one sample uses.

A gate reads the convolution's input, scores every output channel, and keeps the
K best of them, for every sample separately.

References:
  FedDP: Yu, Nguyen, Anwar, Jannesari, Heterogeneous Federated Learning using
  Dynamic Model Pruning and Adaptive Gradient, equations 2 to 8,
  https://arxiv.org/abs/2106.06921.
  FBS: Gao et al., Dynamic Channel Pruning: Feature Boosting and Suppression,
  ICLR 2019, https://arxiv.org/abs/1810.05331.
"""

import math
from collections.abc import Mapping
from typing import Annotated, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from fedjax_prune.fields import ABOVE_ZERO, FINITE, check_fields, fields_of, one_of
from fedjax_prune.models.initializers import normal
from fedjax_prune.models.platforms import ANY, traced_platform
from fedjax_prune.models.precision import at_least_float32, wide
from fedjax_prune.models.selection import mark_largest, top_k
from fedjax_prune.shares import nearest_in

MODES = ("hard_ste", "scale", "hard_dense_ste", "hard_nograd")
RESCALES = ("none", "sqrt", "inverse")
RESNET_GATINGS = ("branch", "inner", "literal")


class GateSettings(NamedTuple):
    """How the convolutions of a model are gated.

    Attributes:
      keep_ratio: share of the channels that a gate keeps, in (0, 1] (rho).
      mode: one of MODES, see `straight_through`.
      rescale: one of RESCALES. Kept channels are multiplied by 1, by rho^-1/2, which
        keeps the second moment of the features, or by 1/rho, with rho = K/C.
      bias: first bias of the logits, finite.
      first: whether the first convolution is gated; that of ResNet32 never is.
      input_grad: whether a gate's gradient also reaches the layers before it.
      resnet: one of RESNET_GATINGS, for ResNet32 alone. A gate follows both
        convolutions of a block (`branch`), only the first (`inner`), or both, and the
        first convolution reads only the channels that the previous block's gate kept
        (`literal`).

    References:
      FedDP, equations 2 to 4.

    Examples:
      >>> model = fedjax_prune.CNN(10, gates=GateSettings(keep_ratio=0.5))
      >>> model.gates.mode
      'hard_ste'
    """

    keep_ratio: Annotated[float, ABOVE_ZERO, "Share of the channels kept."]
    mode: Annotated[
        str,
        one_of(MODES),
        "What a kept channel is multiplied by and where gradients flow.",
    ] = "hard_ste"
    rescale: Annotated[
        str, one_of(RESCALES), "Kept channels times 1, the root of 1/rho, or 1/rho."
    ] = "none"
    bias: Annotated[float, FINITE, "First bias of the gates."] = 1.0
    first: Annotated[bool, "Whether the first convolution is gated, too."] = True
    input_grad: Annotated[
        bool, "Whether the gates' gradient also reaches the layers before them."
    ] = True
    resnet: Annotated[
        str, one_of(RESNET_GATINGS), "Which convolutions of resnet32 are gated."
    ] = "branch"


_FIELDS = fields_of(GateSettings)


def check_gate_settings(settings: GateSettings) -> None:
    """Refuses settings that no gate can have.

    Raises:
      ValueError: if a number is out of range or a name is unknown.
    """
    check_fields(_FIELDS, settings._asdict())


def num_kept(keep_ratio: float, num_channels: int) -> int:
    """Counts the kept channels, K: at least 1, nearest to the decimal rho times C."""
    return max(1, nearest_in(keep_ratio, num_channels))


def active_gates(
    settings: GateSettings | None, num_channels: int
) -> GateSettings | None:
    """Gives a layer's gate settings, or None if its gate would keep all channels.

    Such a gate is left out, so that a model with keep ratio 1 has no gates.
    """
    if settings is None or num_kept(settings.keep_ratio, num_channels) == num_channels:
        return None
    return settings


def top_k_mask(logits: jax.Array, k: int) -> jax.Array:
    """Marks the `k` largest entries along the last axis.

    Logits are ranked and not saliences, because float32 sigmoids of logits above about
    17 are equal. On CPUs the entries of several rows are selected without sorting; the
    platform is found as in `convolve`. No gradient flows through the mask.

    Args:
      logits: [..., channels] float.
      k: number of entries, in [1, channels].

    Returns:
      [..., channels], dtype of the logits, with exactly `k` ones; all others are 0. Of
      equal entries the one with the lower index is marked.

    Raises:
      ValueError: if `k` is out of range.

    Examples:
      >>> top_k_mask(jnp.array([0.1, 2.0, -1.0, 2.0]), k=2).tolist()
      [0.0, 1.0, 0.0, 1.0]
    """
    if not 1 <= k <= logits.shape[-1]:
        raise ValueError(f"k must be in [1, {logits.shape[-1]}], got {k}.")
    logits = jax.lax.stop_gradient(logits)
    platform = traced_platform()
    # One row is sorted faster than its entries are compared bit by bit.
    if platform == "cpu" and logits.size > logits.shape[-1]:
        return mark_largest(logits, k).astype(logits.dtype)
    if platform == "tpu":
        return (_ranks(logits) < k).astype(logits.dtype)
    _, indices = top_k(logits, k)
    if platform == ANY:
        # A scatter would need a batch size that is known.
        return jax.nn.one_hot(indices, logits.shape[-1], dtype=logits.dtype).sum(-2)
    zeros = jnp.zeros_like(logits)
    return jnp.put_along_axis(zeros, indices, 1.0, axis=-1, inplace=False)


def _ranks(logits: jax.Array) -> jax.Array:
    """Gives each entry its place, from the largest on, along the last axis.

    It sorts twice. To write ones at the first indices would be a scatter, which a TPU
    does number by number.
    """
    _, order = top_k(logits, logits.shape[-1])
    places = jax.lax.broadcasted_iota(order.dtype, order.shape, order.ndim - 1)
    return jax.lax.sort_key_val(order, places)[1]


def straight_through(mask: jax.Array, score: jax.Array, mode: str) -> jax.Array:
    """Makes the multiplier of the features from a mask and its soft score.

    The modes are:

    - `hard_ste` has the value of `mask` and the gradient of `score` for kept channels.
    - `hard_dense_ste` has the value of `mask` and the gradient of `score` for all.
    - `scale` is `mask * score` with its own gradient, as in FBS.
    - `hard_nograd` is `mask` without a gradient.

    FedDP says only that gates are trained with the network. The straight-through
    estimator is our choice for the gradient of its top-K.

    Args:
      mask: [...] float, 0 or 1.
      score: shape and dtype of `mask`, in (0, 1).
      mode: one of MODES.

    Returns:
      Multipliers, shape and dtype of `mask`.

    Raises:
      ValueError: if `mode` is unknown.

    References:
      Bengio et al., Estimating or Propagating Gradients Through Stochastic Neurons for
      Conditional Computation, https://arxiv.org/abs/1308.3432.

    Examples:
      >>> mask, score = jnp.array([0.0, 1.0]), jnp.array([0.25, 0.75])
      >>> straight_through(mask, score, "scale").tolist()
      [0.0, 0.75]
    """
    mask = jax.lax.stop_gradient(mask)
    # This difference is exactly 0, whereas (1 + score) - score need not be exactly 1.
    surrogate = score - jax.lax.stop_gradient(score)
    match mode:
        case "hard_ste":
            return mask * (1 + surrogate)
        case "scale":
            return mask * score
        case "hard_dense_ste":
            return mask + surrogate
        case "hard_nograd":
            return mask
    raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}.")


def rescaling(rescale: str, k: int, num_channels: int) -> float:
    """Gives the constant, at least 1, by which kept channels are multiplied.

    Raises:
      ValueError: if `rescale` is unknown.
    """
    if rescale not in RESCALES:
        raise ValueError(
            f"rescale must be one of {', '.join(RESCALES)}, got {rescale!r}."
        )
    exponent = {"none": 0.0, "sqrt": 0.5, "inverse": 1.0}[rescale]
    return (num_channels / k) ** exponent


def gate_logits(kernel: jax.Array, bias: jax.Array, pooled: jax.Array) -> jax.Array:
    """Computes z = W s + b in full precision on every backend.

    Args:
      kernel: [in_channels, channels], at least float32.
      bias: [channels], dtype of the kernel.
      pooled: [batch_size, in_channels], dtype of the kernel, the input's channel means.

    Returns:
      [batch_size, channels], dtype of the kernel.
    """
    # At a lower precision the gate would keep other channels.
    product = jnp.dot(pooled, kernel, precision=jax.lax.Precision.HIGHEST)
    return product + bias[None]


def select(
    weights: Mapping[str, jax.Array],
    pooled: jax.Array,
    settings: GateSettings,
    channels_before: int,
    alive: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Chooses the channels of one sample by index.

    Args:
      weights: a Gate's `kernel` [in_channels, channels] and `bias` [channels].
      pooled: [in_channels], dtype of the weights, means of the convolution's input,
        0 where the input's own gate dropped a channel.
      settings: valid gate settings.
      channels_before: as in Gate.
      alive: [channels] bool, False = pruned; None if all are alive.

    Returns:
      indices [min(K, channels)] int32 and the multipliers [min(K, channels)] of these
      channels, 0 for channels that are not alive.
    """
    logits = gate_logits(weights["kernel"], weights["bias"], pooled[None])[0]
    if alive is not None:
        logits = jnp.where(alive, logits, -jnp.inf)
    k = num_kept(settings.keep_ratio, channels_before)
    values, indices = top_k(logits, min(k, logits.size))
    multiplier = straight_through(
        (values > -jnp.inf).astype(values.dtype), nn.sigmoid(values), settings.mode
    )
    return indices, multiplier * rescaling(settings.rescale, k, channels_before)


class Gate(nn.Module):
    """Chooses K output channels of a convolution for every sample.

    A pruned channel ranks last, as if its logit were minus infinity, so a gate with
    fewer than K channels alive keeps all of these. The collection `alive` holds `alive`
    [channels] bool; without it all channels are alive.

    The weights are in the collection `gates` and are drawn from the random stream of
    that name, so a gate does not change what other modules draw or send. The gate sows
    three sums over the real samples into `gate_sums`: `lasso` [], the sum of |logits|
    (FedDP, equation 5), `selected` [channels], the number of samples that kept each
    channel, and `multiplier` [channels], what it was multiplied by. Weights, sums and
    masks have the input's dtype, but at least float32.

    Attributes:
      channels: output channels of the convolution.
      settings: valid gate settings.
      channels_before: output channels before some were removed, more than K; K and the
        rescaling are computed from it.
    """

    channels: int
    settings: GateSettings
    channels_before: int

    @nn.compact
    def __call__(
        self, x: jax.Array, example_mask: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Computes masks from the convolution's own input.

        Args:
          x: [batch_size, height, width, in_channels] float.
          example_mask: [batch_size] bool, False = padding.

        Returns:
          (multiplier, mask), each [batch_size, channels]. The features are multiplied
          by the first; the second is 1 for kept channels, without a gradient.
        """
        kernel, bias = self._weights(x.shape[-1], wide(x.dtype))
        pooled = at_least_float32(x).mean((1, 2))
        if not self.settings.input_grad:
            pooled = jax.lax.stop_gradient(pooled)
        logits = gate_logits(kernel, bias, pooled)
        k = num_kept(self.settings.keep_ratio, self.channels_before)
        alive = self.get_variable("alive", "alive")
        if alive is None:
            mask = top_k_mask(logits, min(k, self.channels))
        else:
            ranked = jnp.where(alive[None], logits, -jnp.inf)
            mask = top_k_mask(ranked, min(k, self.channels))
            mask = jnp.where(alive[None], mask, 0)
            logits = jnp.where(alive[None], logits, 0.0)
        real = example_mask[:, None]
        self._sow("lasso", jnp.where(real, jnp.abs(logits), 0.0).sum())
        self._sow("selected", jnp.where(real, mask, 0.0).sum(0))
        multiplier = straight_through(mask, nn.sigmoid(logits), self.settings.mode)
        multiplier *= rescaling(self.settings.rescale, k, self.channels_before)
        self._sow("multiplier", jnp.where(real, multiplier, 0.0).sum(0))
        return multiplier, mask

    def _weights(
        self, in_channels: int, dtype: jnp.dtype
    ) -> tuple[jax.Array, jax.Array]:
        shape, stddev = (in_channels, self.channels), math.sqrt(2 / in_channels)
        kernel = self.variable(
            "gates",
            "kernel",
            lambda: normal(self.make_rng("gates"), shape, stddev, dtype),
        )
        bias = self.variable(
            "gates", "bias", jnp.full, (self.channels,), self.settings.bias, dtype
        )
        return kernel.value, bias.value

    def _sow(self, name: str, value: jax.Array) -> None:
        # Without these functions sow would collect all values in a tuple.
        self.sow(
            "gate_sums",
            name,
            value,
            init_fn=lambda: jnp.zeros_like(value),
            reduce_fn=lambda _, new: new,
        )
