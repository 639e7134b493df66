"""Declared fields: what is read from a signature, and what is refused."""

import inspect
import math
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
import pytest

from fedjax_prune.algorithms import ALGORITHMS, Algorithm
from fedjax_prune.algorithms.autoflip.autoflip import autoflip
from fedjax_prune.algorithms.random_pruning import random_pruning
from fedjax_prune.fields import (
    ABOVE_ZERO,
    ANY,
    FINITE,
    FRACTION,
    SEED,
    Field,
    Relation,
    above,
    at_least,
    at_most,
    check_fields,
    checked,
    fields_of,
    like,
    one_of,
    related,
    relations_of,
)
from fedjax_prune.runs.settings import default_config


@checked
def build(
    model: Any,
    *,
    mu: Annotated[float, at_least(0), "Weight."] = 0.01,
    epochs: Annotated[int, at_least(1), "Epochs."],
    name: Annotated[str, one_of(("a", "b")), "Name."] = "a",
    layers: Annotated[Sequence[str], "Layers."] = (),
    both: Annotated[bool, "Both."] = False,
) -> tuple:
    """Builds."""
    return model, mu, epochs, name, layers, both


class Settings(NamedTuple):
    """Two fields and `other`, which is no field."""

    seed: Annotated[int, SEED, "Seed."] = 3
    share: Annotated[float, ABOVE_ZERO, "Share."] = 1.0
    other: int = 5


def test_fields_are_read_from_functions_and_records():
    fields = fields_of(build)
    assert list(fields) == ["mu", "epochs", "name", "layers", "both"]
    assert fields["mu"][::2] == (float, "Weight.") and fields["mu"].default == 0.01
    assert fields["mu"].text == "at least 0"
    assert fields["epochs"].default is inspect.Parameter.empty
    assert fields["layers"] == Field(Sequence[str], ANY, "Layers.", ())
    assert (fields["layers"].text, fields["both"].text) == (
        "a list of strings",
        "true or false",
    )
    assert fields_of(Settings) == {
        "seed": Field(int, SEED, "Seed.", 3),
        "share": Field(float, ABOVE_ZERO, "Share.", 1.0),
    }


def test_a_checked_function_is_called_with_good_values():
    assert build("m", epochs=2) == ("m", 0.01, 2, "a", (), False)
    assert build(model=-1, mu=0, epochs=np.int32(7), layers=["x"]) == (
        -1,
        0,
        7,
        "a",
        ["x"],
        False,
    )
    assert build.__name__ == "build" and build.__doc__ == "Builds."


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mu": -1}, "mu must be at least 0, got -1."),
        ({"mu": math.nan}, "mu must be finite and at least 0, got nan."),
        ({"mu": math.inf}, "mu must be finite and at least 0, got inf."),
        ({"mu": "1"}, "mu must be a number, got '1'."),
        ({"mu": True}, "mu must be a number, got True."),
        ({"mu": None}, "mu must be a number, got None."),
        ({"mu": 2**128}, f"mu must be at least 0 and below 2^128, got {2**128}."),
        ({"mu": -(10**400)}, f"mu must be at least 0, got -1{'0' * 400}."),
        ({"epochs": 0}, "epochs must be at least 1, got 0."),
        ({"epochs": 1.0}, "epochs must be a whole number, got 1.0."),
        (
            {"epochs": 2**31},
            "epochs must be at least 1 and below 2^31, got 2147483648.",
        ),
        ({"name": "c"}, "name must be one of a, b, got 'c'."),
        ({"name": ["a"]}, "name must be a string, got ['a']."),
        ({"layers": "abc"}, "layers must be a list of strings, got 'abc'."),
        ({"layers": (1, 2)}, "layers must be a list of strings, got (1, 2)."),
        ({"both": 1}, "both must be true or false, got 1."),
    ],
)
def test_a_checked_function_refuses_bad_values(values, message):
    with pytest.raises(ValueError) as error:
        build("m", **{"epochs": 1} | values)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("type_", "rule", "value", "unmet"),
    [
        (int, ANY, 2**31, "below 2^31"),
        (int, ANY, -(2**31), "above -2^31"),
        (int, at_most(1), -(2**40), "at most 1 and above -2^31"),
        (float, FINITE, -1e39, "finite and above -2^128"),
        (float, FINITE, 1e39, "finite and below 2^128"),
        (int, ANY, 1 - 2**31, ""),
        (float, FINITE, -3e38, ""),
        (int, SEED, 2**31, ""),
        (float, at_least(0), 1e-50, "at least 0 and 0 or at least 2^-126 in magnitude"),
        (float, above(0), 1e-50, "above 0 and at least 2^-126 in magnitude"),
        (float, FINITE, -1e-40, "finite and 0 or at least 2^-126 in magnitude"),
        (float, above(0), 2.0**-126, ""),
        (float, at_least(0), 0.0, ""),
    ],
)
def test_numbers_fit_the_types_of_devices(type_, rule, value, unmet):
    assert Field(type_, rule, "Field.").unmet(value) == unmet


def test_a_checked_function_refuses_unknown_and_missing_names():
    with pytest.raises(TypeError, match="unexpected keyword argument 'nu'"):
        build("m", epochs=1, nu=2)
    with pytest.raises(TypeError, match=r"missing a required.* argument: 'epochs'"):
        build("m")


def test_values_of_a_record_are_checked():
    fields = fields_of(Settings)
    check_fields(fields, Settings(2**32 - 1, 0.5, -1)._asdict())
    with pytest.raises(ValueError, match=r"seed must be in \[0, 2\^32\), got 42949672"):
        check_fields(fields, Settings(seed=2**32)._asdict())


@pytest.mark.parametrize(
    ("rule", "held", "refused"),
    [
        (at_least(1), (1, 2.5), (0.999, math.inf, math.nan)),
        (above(0), (1e-300, 3), (0, -1, math.inf, math.nan)),
        (at_most(1), (1, -5), (1.1, math.nan)),
        (FRACTION, (0, 1), (-1e-9, 1.1, math.nan)),
        (ABOVE_ZERO, (1e-9, 1), (0, 1.1, math.nan)),
        (one_of({"a": 1}), ("a",), ("b", "")),
    ],
)
def test_rules(rule, held, refused):
    assert all(rule.holds(value) for value in held)
    assert not any(rule.holds(value) for value in refused)


@pytest.mark.parametrize(
    ("type_", "text", "value"),
    [
        (bool, "true", True),
        (bool, "False", False),
        (bool, "0", False),
        (bool, "2", "2"),
        (int, "1_000", 1000),
        (int, "1e3", "1e3"),
        (float, "1e-3", 1e-3),
        (float, "1", 1.0),
        (str, "1", "1"),
        (float | None, "None", None),
        (float | None, "0.5", 0.5),
        (int | str, "3", 3),
        (int | str, "auto", "auto"),
        (Sequence[str], "a/*,b", ("a/*", "b")),
        (Sequence[str], "('a',)", ("a",)),
        (Sequence[str], "'a', 'b'", ("a", "b")),
        (Sequence[str], "[ab]/*,c", ("[ab]/*", "c")),
        (Sequence[str], "1,2", ("1", "2")),
        (Sequence[str], "3", ("3",)),
        (Sequence[str], "[1, 2]", [1, 2]),
        (Sequence[str], "None", None),
        (Sequence[str], "", ()),
    ],
)
def test_texts_are_read_by_the_type_of_a_field(type_, text, value):
    found = Field(type_, ANY, "Field.").read(text)
    assert (found, type(found)) == (value, type(value))


def test_a_function_may_take_over_the_fields_of_another():
    @checked
    @like(build, epochs=Field(int, at_least(2), "More.", 4))
    def other(model, **fields):
        return model, fields

    assert list(inspect.signature(other).parameters) == [
        "model",
        "mu",
        "epochs",
        "name",
        "layers",
        "both",
    ]
    assert fields_of(other)["epochs"].default == 4
    assert fields_of(other)["mu"] == fields_of(build)["mu"]
    assert other(1, mu=2) == (1, {"mu": 2})
    with pytest.raises(ValueError, match="epochs must be at least 2, got 1"):
        other(1, epochs=1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'fields'"):
        other(1, fields=1)


ORDERED = Relation(
    ("low", "high"),
    lambda low, high: low <= high,
    "{low} must be at most {high} = {1}, got {0}",
)


@checked
@related(ORDERED)
def between(
    low: Annotated[float, at_least(0), "Low."],
    *,
    high: Annotated[float, at_least(0), "High."] = 1.0,
) -> float:
    return high - low


def test_a_checked_function_refuses_fields_that_do_not_fit_together():
    assert (between(1.0), between(2.0, high=2.0), between(low=0, high=3)) == (0, 0, 3)
    assert relations_of(between) == (ORDERED,) and relations_of(build) == ()
    with pytest.raises(ValueError) as error:
        between(2.0)  # more than the default of the other field
    assert str(error.value) == "low must be at most high = 1.0, got 2.0."
    with pytest.raises(ValueError, match="high must be at least 0, got -1"):
        between(2.0, high=-1)  # a field's own rule comes first


def test_relations_are_taken_over_with_the_fields():
    @checked
    @like(between, high=Field(float, at_least(0), "High.", 2.0))
    def other(**fields):
        return fields

    assert other(low=2) == {"low": 2}
    with pytest.raises(ValueError, match=r"low must be at most high = 2\.0, got 3"):
        other(low=3)


def test_a_relation_names_its_fields_as_they_are_shown():
    assert ORDERED.unmet({"low": 1, "high": 1, "more": 0}) == ""
    within = ORDERED.within("data")
    assert within.fields == ("data.low", "data.high")
    assert within.unmet({"data.low": 2, "data.high": 1}) == (
        "data.low must be at most data.high = 1, got 2"
    )


def test_random_pruning_has_the_fields_of_autoflip():
    fields, those = fields_of(random_pruning), fields_of(autoflip)
    assert list(fields) == list(those)
    differing = {name for name in fields if fields[name] != those[name]}
    assert differing == {"mask_schedule"}
    assert fields["mask_schedule"].default == "fixed"


@pytest.mark.parametrize(
    "annotation",
    [
        Annotated[float, "The words before the rule.", at_least(0)],
        Annotated[float, at_least(0)],
        Annotated[float | None, "A type that needs a rule."],
        Annotated[float, at_least(0), at_least(1), "Two rules."],
    ],
)
def test_a_field_that_is_declared_in_another_way_is_named(annotation):
    def build(*, weight: annotation = 1.0):  # pyright: ignore[reportInvalidTypeForm]
        return weight

    with pytest.raises(TypeError, match=r"weight of build must be Annotated\[type, "):
        fields_of(build)


@pytest.mark.parametrize(
    "build",
    [
        lambda task, *, weight=1.0: None,
        checked(lambda task, *, weight: None),
    ],
)
def test_every_keyword_of_an_algorithm_is_a_field_with_a_default(build, monkeypatch):
    monkeypatch.setitem(ALGORITHMS, "mine", Algorithm(build))
    with pytest.raises(TypeError, match="weight of mine must be a field, Annotated"):
        default_config("mine")
