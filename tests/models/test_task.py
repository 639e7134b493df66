"""Models that a task can be made of, and the errors for other models."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fedjax_prune.models.task import make_task
from fedjax_prune.types import Batch

SHAPE = (2, 2, 1)
KEY = jax.random.key(0)


def a_batch(num_real: int = 3) -> Batch:
    images = np.random.default_rng(0).integers(0, 256, (4, *SHAPE)).astype(np.uint8)
    return Batch(
        jnp.asarray(images),
        jnp.array([0, 1, 2, 0], jnp.int32),
        jnp.arange(4) < num_real,
    )


class Net(nn.Module):
    """A dense layer, of which each test overrides a part."""

    num_classes: int = 3

    @nn.compact
    def __call__(self, images, *, train, example_mask):
        x = images.reshape(images.shape[0], -1)
        return self.finish(nn.Dense(self.num_classes)(x), train)

    def finish(self, logits, train):
        del train
        return logits


class Counting(Net):
    def finish(self, logits, train):
        steps = self.variable("batch_stats", "steps", jnp.zeros, (), jnp.int32)
        if train:
            steps.value = steps.value + 1
        return logits


def test_integers_of_the_model_state_are_carried():
    task = make_task(Counting(), SHAPE)
    variables = task.init(KEY)
    assert variables.model_state["steps"].dtype == jnp.int32
    _, (state, _) = jax.jit(task.loss)(variables, a_batch(), KEY)
    assert state["steps"].dtype == jnp.int32 and int(state["steps"]) == 1
    _, (state, _) = jax.jit(task.loss)(
        variables._replace(model_state=state), a_batch(), KEY
    )
    assert int(state["steps"]) == 2


class IntegerWeights(Net):
    def finish(self, logits, train):
        shift = self.param("shift", lambda key: jnp.zeros(3, jnp.int32))
        return logits + shift.astype(logits.dtype)[None]


class Narrow(Net):
    def finish(self, logits, train):
        shift = self.param("shift", lambda key: jnp.zeros(3, jnp.bfloat16))
        return logits + shift.astype(logits.dtype)[None]


class IntegerGates(Net):
    def finish(self, logits, train):
        shift = self.variable("gates", "shift", jnp.zeros, (3,), jnp.int32)
        return logits + shift.value.astype(logits.dtype)[None]


class Caching(Net):
    def finish(self, logits, train):
        self.variable("cache", "last", jnp.zeros, (3,))
        return logits


class WithoutWeights(Net):
    @nn.compact
    def __call__(self, images, *, train, example_mask):
        return images.reshape(images.shape[0], -1)[:, :3]


class Pair(Net):
    def finish(self, logits, train):
        return logits, logits


class Maps(Net):
    def finish(self, logits, train):
        return logits[:, None]


class Chosen(Net):
    def finish(self, logits, train):
        return logits.argmax(-1)


class TooMany(Net):
    def finish(self, logits, train):
        return jnp.concatenate([logits, logits], -1)


class Summed(Net):
    def finish(self, logits, train):
        return jnp.concatenate([logits, logits], 0)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            IntegerWeights(),
            "params of IntegerWeights must be floats, got int32 at shift: keep",
        ),
        (
            Narrow(),
            "params of Narrow must be float32 or wider, .* got bfloat16 at shift: give",
        ),
        (
            IntegerGates(),
            "gates of IntegerGates must be floats, got int32 at shift: keep",
        ),
        (Caching(), r"params .*, gates .* or batch_stats .*, got 'cache': move"),
        (WithoutWeights(), "WithoutWeights must have weights in the collection params"),
        (Pair(), r"Pair must return float logits \[batch_size, 3\], got a tuple"),
        (
            Maps(),
            r"float logits \[batch_size, 3\], got float32 \[1, 1, 3\] for 1 image",
        ),
        (Chosen(), r"float logits \[batch_size, 3\], got int32 \[1\] for 1 image"),
        (
            TooMany(),
            r"float logits \[batch_size, 3\], got float32 \[1, 6\] for 1 image",
        ),
        (Summed(), r"float logits \[batch_size, 3\], got float32 \[2, 3\] for 1 image"),
    ],
)
def test_a_model_that_cannot_be_trained_is_refused_at_once(model, message):
    with pytest.raises(ValueError, match=message):
        make_task(model, SHAPE)


class PairInTraining(Net):
    def finish(self, logits, train):
        return (logits, logits) if train else logits


class Narrowing(Net):
    def finish(self, logits, train):
        last = self.variable("batch_stats", "last", jnp.zeros, (3,))
        if train:
            last.value = logits[0].astype(jnp.float16)
        return logits


class Growing(Net):
    def finish(self, logits, train):
        if train:
            self.variable("batch_stats", "late", jnp.zeros, (3,))
        return logits


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (PairInTraining(), r"float logits \[batch_size, 3\], got a tuple"),
        (Narrowing(), r"batch_stats .* got float16 \[3\] from float32 \[3\] at last"),
        (Growing(), r"batch_stats .* got float32 \[3\] from nothing at late"),
    ],
)
def test_faults_that_only_training_shows_are_refused_when_traced(model, message):
    task = make_task(model, SHAPE)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(task.loss, task.init(KEY), a_batch(), KEY)


class NNXNet(nnx.Module):
    def __init__(self, num_classes, *, rngs):
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.fc = nnx.Linear(4, num_classes, rngs=rngs)

    def __call__(self, images, *, train, example_mask):
        x = images.reshape(images.shape[0], -1)
        x = self.norm(x, use_running_average=not train, mask=example_mask[:, None])
        return self.fc(self.drop(x, deterministic=not train))


def test_a_module_that_has_its_parameters_says_what_to_give():
    with pytest.raises(ValueError, match=r"got NNXNet: give .*functools.partial"):
        make_task(NNXNet(3, rngs=nnx.Rngs(0)), SHAPE)
    with pytest.raises(
        ValueError, match=r"got the linen class Net: call it, as in Net"
    ):
        make_task(Net, SHAPE)
    with pytest.raises(ValueError, match=r"must make an NNX module .* got Shape"):
        make_task(lambda rngs: 3, SHAPE)


class SwitchedNet(nnx.Module):
    """As NNXNet, told by `train()` and `eval()` in place of arguments."""

    def __init__(self, num_classes, *, rngs):
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.fc = nnx.Linear(4, num_classes, rngs=rngs)

    def __call__(self, images, example_mask):
        x = self.norm(images.reshape(images.shape[0], -1), mask=example_mask[:, None])
        return self.fc(self.drop(x))


@pytest.mark.parametrize(
    "model",
    [
        nnx.bridge.to_linen(NNXNet, 3),
        functools.partial(NNXNet, 3),
        functools.partial(SwitchedNet, 3),
    ],
)
def test_an_nnx_module_trains_as_numpy_does(model):
    """One step of batch norm; then batch norm and the dense layer in evaluation."""
    task = make_task(model, SHAPE)
    variables = task.init(KEY)
    assert set(variables.params) == {"norm", "fc"}
    batch = a_batch()
    _, (state, sums) = jax.jit(task.loss)(variables, batch, KEY)
    x = np.asarray(batch.images[:3], np.float64).reshape(3, 4) / 255
    np.testing.assert_allclose(state["norm"]["mean"], 0.01 * x.mean(0), rtol=1e-5)
    assert float(sums["count"]) == 3
    fc = jax.tree.map(np.asarray, variables.params["fc"])
    whole = np.asarray(batch.images, np.float64).reshape(4, 4) / 255
    np.testing.assert_allclose(
        jax.jit(task.predict)(variables, batch.images),
        whole / np.sqrt(1 + 1e-5) @ fc["kernel"] + fc["bias"],
        rtol=1e-4,
        atol=1e-5,
    )


class Layered(Net):
    layers: tuple[int, ...] = (4, 3)


def test_a_field_that_is_called_layers_describes_no_costs():
    assert [layer.name for layer in make_task(Layered(), SHAPE).layers] == ["Dense_0"]


class Plain(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


class Told(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = True):
        return nn.Dense(3)(nn.Dropout(0.5)(x.reshape(x.shape[0], -1), not train))


def test_dropout_of_a_switched_module_depends_on_the_key():
    task = make_task(functools.partial(SwitchedNet, 3), SHAPE)
    losses = [
        float(jax.jit(task.loss)(task.init(KEY), a_batch(), jax.random.key(n))[0])
        for n in (0, 0, 1)
    ]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("model", [Plain(), Told()])
def test_a_module_is_given_only_the_arguments_that_it_takes(model):
    """In evaluation nothing is dropped, so both compute the dense layer of Net."""
    task, net = make_task(model, SHAPE), make_task(Net(), SHAPE)
    variables, images = net.init(KEY), a_batch().images
    np.testing.assert_array_equal(
        task.predict(variables, images), net.predict(variables, images)
    )


def test_dropout_is_on_in_training_alone():
    variables = make_task(Net(), SHAPE).init(KEY)
    kernel, bias = jnp.eye(4)[:, :3], jnp.zeros(3)
    variables = variables._replace(params={"Dense_0": {"kernel": kernel, "bias": bias}})
    told, plain = make_task(Told(), SHAPE), make_task(Plain(), SHAPE)
    losses = [
        float(task.loss(variables, a_batch(), jax.random.key(n))[0])
        for task in (told, plain)
        for n in range(2)
    ]
    assert losses[0] != losses[1] and losses[2] == losses[3]


class Asking(nn.Module):
    @nn.compact
    def __call__(self, x, temperature):
        return nn.Dense(3)(x.reshape(x.shape[0], -1)) / temperature


class AskingForMore(nn.Module):
    @nn.compact
    def __call__(self, x, temperature, **further):
        return nn.Dense(3)(x.reshape(x.shape[0], -1)) / temperature


class Unmasked(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(not train)(x.reshape(x.shape[0], -1))
        return nn.Dense(3)(x)


class Deaf(nn.Module):
    @nn.compact
    def __call__(self):
        return nn.Dense(3)(jnp.ones((1, 4)))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Asking(), r"Asking must take .* a further argument without .*, temperature"),
        (AskingForMore(), r"AskingForMore must take .* without .*, temperature"),
        (Unmasked(), r"Unmasked has the collection batch_stats, .* take example_mask"),
        (Deaf(), "Deaf must take images as its first argument"),
    ],
)
def test_a_module_that_cannot_be_called_is_refused(model, message):
    with pytest.raises(ValueError, match=message):
        make_task(model, SHAPE)
