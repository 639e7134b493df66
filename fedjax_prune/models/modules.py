"""Flax modules as a task uses them: linen or NNX, with the arguments that they take.

A task has more to give than images: whether it trains, and which examples are real. A
module gets those of the two that its `__call__` names, the first one by any of the
names that Flax has for it. An NNX module is also switched by its `train()` and
`eval()`, as such modules expect.
"""

import inspect
import sys
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from fedjax_prune.models.gates import GateSettings

IN_TRAINING = {
    "train": True,
    "training": True,
    "deterministic": False,
    "use_running_average": False,
}
"""The keywords by which a module may be told whether it trains -> value if it does."""
GIVEN = (*IN_TRAINING, "example_mask")
"""The keywords that a module may take beside its images."""


class Arguments(NamedTuple):
    """What a module is called with beside its images.

    Attributes:
      taken: the names of GIVEN that its `__call__` takes.
      is_nnx: whether it is a wrapped NNX module.
    """

    taken: tuple[str, ...]
    is_nnx: bool

    def __call__(self, train: bool, example_mask: jax.Array) -> dict[str, Any]:
        """Gives the keywords of the module's `init` and `apply`.

        Args:
          train: whether it trains.
          example_mask: [batch_size] bool, which examples are real.
        """
        given = {
            name: example_mask if name == "example_mask" else IN_TRAINING[name] == train
            for name in self.taken
        }
        if not self.is_nnx:
            return given

        def call(module: Any, images: jax.Array) -> Any:
            (module.train if train else module.eval)()
            return module(images, **given)

        return {"nnx_method": call}


def as_linen(model: Any) -> nn.Module:
    """Makes a linen module of what `make_task` accepts.

    Args:
      model: a linen module, or a function of `rngs` that returns an NNX module, such as
        its class or `functools.partial(Class, 10)`.

    Returns:
      The linen module; `flax.nnx.bridge.ToLinen` of an NNX one. What a function makes
      is looked at by `arguments_of`.

    Raises:
      ValueError: if it is something else, such as an NNX module that has its parameters
        already.
    """
    if isinstance(model, nn.Module):
        return model
    if isinstance(model, type) and issubclass(model, nn.Module):
        raise ValueError(
            f"model must be a module, got the linen class {model.__name__}: call it, "
            f"as in {model.__name__}(...)."
        )
    from flax import nnx

    if callable(model) and not isinstance(model, nnx.Module):
        make: Any = model
        return nnx.bridge.to_linen(make)
    raise ValueError(
        f"model must be a flax.linen module or make an NNX one, got "
        f"{type(model).__name__}: give an NNX class with its arguments, as in "
        "functools.partial(Class, 10), because a task draws the parameters itself."
    )


def arguments_of(model: nn.Module) -> Arguments:
    """Says with which keywords a module is called beside its images.

    Args:
      model: as `as_linen` returns it.

    Raises:
      ValueError: if it needs an argument that nobody gives, takes no images, or is a
        wrapped function that makes no NNX module.
    """
    is_nnx = _is_wrapped(model)
    return Arguments(_taken(type(_instance(model) if is_nnx else model)), is_nnx)


def described(model: Any, method: str, image_shape: tuple[int, ...]) -> Any:
    """Calls the method by which a model describes itself.

    Args:
      model: a linen module.
      method: `layers` or `channel_groups`.
      image_shape: (height, width, channels), its argument.

    Returns:
      What the method returns; None if there is no such method, or for an NNX module.
    """
    if _is_wrapped(model):
        return None
    describe = getattr(model, method, None)
    return describe(image_shape) if callable(describe) else None


def without_gates(model: Any) -> Any:
    """The same model without gates; it is the model itself if it has none."""
    return model if gates_of(model) is None else model.clone(gates=None)


def gates_of(model: Any) -> GateSettings | None:
    """The gate settings of a model; None if it has no gates."""
    gates = getattr(model, "gates", None)
    # Gates of a user's own may be something else, such as a number of experts.
    return gates if isinstance(gates, GateSettings) else None


def _is_wrapped(model: Any) -> bool:
    """Whether it is an NNX module that `as_linen` has wrapped.

    Importing NNX takes most of a second. Where nobody has, there is no such module.
    """
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(model, nnx.bridge.ToLinen)


def _instance(model: Any) -> Any:
    """Makes the shapes of a wrapped NNX module.

    Raises:
      ValueError: if the wrapped function makes something else.
    """
    from flax import nnx

    def make() -> nnx.Module:
        keywords = {} if model.skip_rng else {"rngs": nnx.Rngs(0)}
        return model.nnx_class(*model.args, **model.kwargs, **keywords)

    # Nothing is computed here.
    made = nnx.eval_shape(make)
    if not isinstance(made, nnx.Module):
        raise ValueError(
            f"model must make an NNX module when it is called with rngs, got {made!r}."
        )
    return made


def _taken(cls: type) -> tuple[str, ...]:
    """The names of GIVEN that the `__call__` of a linen or NNX class takes.

    Raises:
      ValueError: as `arguments_of`.
    """
    parameters = list(inspect.signature(cls.__call__).parameters.values())
    # The first one is `self`.
    if len(parameters) < 2 or parameters[1].kind == inspect.Parameter.KEYWORD_ONLY:
        raise ValueError(f"{cls.__name__} must take images as its first argument.")
    others = parameters[2:]
    for p in others:
        further = p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        needed = p.default is p.empty and not further
        if needed and p.name not in GIVEN:
            raise ValueError(
                f"{cls.__name__} must take images and no more than "
                f"{', '.join(GIVEN[:-1])} and {GIVEN[-1]}, got a further argument "
                f"without a default, {p.name}."
            )
    named = {p.name for p in others}
    # A Sequential passes keywords on to functions that know none, such as `nn.relu`.
    nnx = sys.modules.get("flax.nnx")
    is_sequential = issubclass(cls, nn.Sequential) or (
        nnx is not None and issubclass(cls, nnx.Sequential)
    )
    if not is_sequential and any(p.kind == p.VAR_KEYWORD for p in others):
        # Other switches might reach a submodule that does not know them.
        named |= {"train", "example_mask"}
    return tuple(name for name in GIVEN if name in named)
