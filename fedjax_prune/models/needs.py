"""Checks of what a model needs: attributes in their ranges, fitting data."""

from collections.abc import Collection
from typing import Annotated, NamedTuple

from fedjax_prune.fields import (
    ANY,
    BELOW_ONE,
    Relation,
    Rule,
    above,
    at_least,
    check_relations,
    checked,
    one_of,
)
from fedjax_prune.models.gates import GateSettings, check_gate_settings

NORMS = ("none", "bn", "gn")

Width = Annotated[
    float,
    above(0),
    "Multiplier of all channels and, for most networks, of hidden units.",
]
Norm = Annotated[
    str, one_of(NORMS), "Norm of the convolutions; gn has one group per channel."
]
Dropout = Annotated[
    float, BELOW_ONE, "Rate before dense layers; each network says before which."
]


class Needs(NamedTuple):
    """The data and settings that a model class can work with; `needs()` returns them.

    Attributes:
      kind: kind of the examples that it reads, as in `DatasetInfo`.
      sides: rule for height and width of its images; its text follows "images".
      norms: names of the norms that it can have.
      gates: whether its convolutions can be gated.
    """

    kind: str = "image"
    sides: Rule = ANY
    norms: Collection[str] = NORMS
    gates: bool = True

    def relations(self, model: str) -> tuple[Relation, ...]:
        """Lists the conditions on `norm` and `gated`, whether a model has gates.

        Args:
          model: name of the model, for the messages.
        """
        norms = " or ".join(self.norms)
        return (
            Relation(
                ("norm",),
                lambda norm: norm in self.norms,
                f"{{norm}} must be {norms} for {model}, got {{0!r}}",
            ),
            Relation(
                ("gated",),
                lambda gated: self.gates or not gated,
                f"{{gated}} must be false for {model}, got {{0}}",
            ),
        )


@checked
def check_model(
    num_classes: Annotated[int, at_least(1), "Logits of an example."],
    width: Width,
    norm: Norm,
    gates: GateSettings | None,
    dropout: Dropout,
) -> None:
    """Refuses attributes that no model can have.

    Raises:
      ValueError: if a number is out of range or a name is unknown.
    """
    if gates is not None:
        check_gate_settings(gates)


def check_needs(
    model: str, needs: Needs, norm: str, gates: GateSettings | None
) -> None:
    """Refuses a norm and gates that a model cannot have.

    Args:
      model: name of the model, for the message.
      needs: the needs of its class.
      norm: one of NORMS.
      gates: how its convolutions are to be gated; None if they are not.

    Raises:
      ValueError: if the needs do not allow the norm or the gates.
    """
    # The attribute has another name than the field.
    if gates is not None and not needs.gates:
        raise ValueError(f"gates must be None for {model}, got {gates!r}.")
    values = {"norm": norm, "gated": gates is not None}
    check_relations(needs.relations(model), values)


def check_size(model: str, needs: Needs, image_shape: tuple[int, ...]) -> None:
    """Refuses images that a model cannot read.

    Args:
      model: name of the model, for the message.
      needs: the needs of its class.
      image_shape: (height, width, channels).

    Raises:
      ValueError: if height or width breaks the rule.
    """
    height, width, _ = image_shape
    if not (needs.sides.holds(height) and needs.sides.holds(width)):
        raise ValueError(
            f"{model} needs images {needs.sides.text}, got {height}x{width}."
        )
