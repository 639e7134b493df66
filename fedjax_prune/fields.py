"""The declarations of configuration fields, and of the relations between them.

A field is declared once, with its rule, description and default. A function declares
its fields in its signature, and a record in its annotations. A condition on several
fields of a function together is declared once, too, above the function:

    @checked
    @related(Relation(("mu", "nu"), lambda mu, nu: mu <= nu, "{mu} must be ..."))
    def build(..., *, mu: Annotated[float, at_least(0), "Weight of ..."] = 0.01, ...):

The errors of builders, `settings` and `--help` read these declarations.
"""

import ast
import functools
import inspect
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from numbers import Integral, Real
from typing import Annotated, Any, NamedTuple, ParamSpec, TypeVar, get_args, get_origin

P = ParamSpec("P")
R = TypeVar("R")


class Rule(NamedTuple):
    """A condition that a value must meet.

    Attributes:
      holds: value -> whether it meets the condition. A field calls it only with values
        of the field's type.
      text: the condition, in the words that follow "must be".
      finite: whether the message to an infinite value says that it must be finite, as
        the condition alone would seem to allow it.
    """

    holds: Callable[[Any], bool]
    text: str
    finite: bool = False

    def __repr__(self) -> str:
        return self.text


def at_least(low: float) -> Rule:
    """Allows finite numbers from `low` on."""
    return Rule(lambda v: low <= v < math.inf, f"at least {low}", finite=True)


def above(low: float) -> Rule:
    """Allows finite numbers above `low`."""
    return Rule(lambda v: low < v < math.inf, f"above {low}", finite=True)


def at_most(high: float) -> Rule:
    """Allows numbers up to `high`."""
    return Rule(lambda v: v <= high, f"at most {high}")


def one_of(known: Collection[str]) -> Rule:
    """Allows the names of a table or a list."""
    return Rule(lambda v: v in known, f"one of {', '.join(known)}")


FRACTION = Rule(lambda v: 0 <= v <= 1, "in [0, 1]")
"""Fractions; ABOVE_ZERO and BELOW_ONE leave out one end."""
ABOVE_ZERO = Rule(lambda v: 0 < v <= 1, "in (0, 1]")
BELOW_ONE = Rule(lambda v: 0 <= v < 1, "in [0, 1)")
FINITE = Rule(lambda v: -math.inf < v < math.inf, "finite")
SEED = Rule(lambda v: 0 <= v < 2**32, "in [0, 2^32)")
ANY = Rule(lambda v: True, "")

TYPES: dict[Any, Rule] = {
    bool: Rule(lambda v: isinstance(v, bool), "true or false"),
    int: Rule(lambda v: _is_number(v, Integral), "a whole number"),
    float: Rule(lambda v: _is_number(v, Real), "a number"),
    str: Rule(lambda v: isinstance(v, str), "a string"),
    Sequence[str]: Rule(
        lambda v: isinstance(v, list | tuple) and all(isinstance(x, str) for x in v),
        "a list of strings",
    ),
}
"""Annotated type -> the rule that a value must meet before the field's own rule."""

BITS = {int: 31, float: 128}
"""Annotated type -> the power of 2 below which magnitudes fit the types of devices."""

SMALLEST = 2.0**-126
"""Devices may take a smaller magnitude as 0."""


class Field(NamedTuple):
    """A configuration field.

    Attributes:
      type: a key of TYPES, or a union, whose types only the rule checks.
      rule: rule for values of that type.
      words: one sentence that describes the field.
      default: the default, or `inspect.Parameter.empty` if the field must be given.
    """

    type: Any
    rule: Rule
    words: str
    default: Any = inspect.Parameter.empty

    @property
    def text(self) -> str:
        """The text of the rule that applies."""
        return self.rule.text or TYPES[self.type].text

    def mistyped(self, value: Any) -> str:
        """Names the type that a value should have; empty if it has it."""
        of_type = TYPES.get(self.type, ANY)
        return "" if of_type.holds(value) else of_type.text

    def unmet(self, value: Any) -> str:
        """Names the rule that a value breaks; empty if it breaks none."""
        if mistyped := self.mistyped(value):
            return mistyped
        if not self.rule.holds(value):
            infinite = self.rule.finite and not -math.inf < value < math.inf
            return f"finite and {self.rule.text}" if infinite else self.rule.text
        if self.rule is SEED or not (bound := self._beyond(value)):
            return ""
        return f"{self.rule.text} and {bound}" if self.rule.text else bound

    def _beyond(self, value: Any) -> str:
        """Names the bound of the devices' type that a value breaks; empty if none."""
        bits = BITS.get(self.type)
        if bits is not None and abs(value) >= 2**bits:
            return f"below 2^{bits}" if value > 0 else f"above -2^{bits}"
        if self.type is float and 0 < abs(value) < SMALLEST:
            zero = "0 or " if self.rule.holds(0) else ""
            return f"{zero}at least 2^-126 in magnitude"
        return ""

    def read(self, text: str) -> Any:
        """Reads a value from a text of the command line; gives the text if it cannot.

        True and false are written `true` and `false` or 1 and 0. A list is written as
        in Python, or with commas alone: `fc1/*,fc2/*`.
        """
        if self.type is str:
            return text
        if self.type is bool:
            return _SWITCHES.get(text.lower(), text)
        # Names alone may read as Python, too: `1,2` are not two numbers here.
        if self.type == Sequence[str] and not _WRITTEN_AS_IN_PYTHON.match(text):
            return _names_in(text)
        try:
            return (
                self.type(text) if self.type in (int, float) else ast.literal_eval(text)
            )
        except (ValueError, SyntaxError):
            # A pattern may begin with a bracket: `[ab]/*,c`.
            return _names_in(text) if self.type == Sequence[str] else text


def _names_in(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(",") if part)


_WRITTEN_AS_IN_PYTHON = re.compile(r"[(\['\"]|None$")
_SWITCHES = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


class Relation(NamedTuple):
    """A condition on the values of several fields together.

    Attributes:
      fields: their names; in a configuration they are dotted, `client.lr`.
      holds: called with their values, each of which meets its own rule.
      text: the message; `{0}`, `{1}` stand for the values, `{lr}` for the shown name of
        the field `lr`.

    Examples:
      >>> text = "{low} must be at most {high} = {1}, got {0}"
      >>> relation = Relation(("low", "high"), lambda low, high: low <= high, text)
      >>> relation.unmet({"low": 3, "high": 2})
      'low must be at most high = 2, got 3'
      >>> relation.within("data").unmet({"data.low": 3, "data.high": 2})
      'data.low must be at most data.high = 2, got 3'
    """

    fields: tuple[str, ...]
    holds: Callable[..., bool]
    text: str

    def unmet(self, values: Mapping[str, Any]) -> str:
        """Gives the message if the values break the relation; empty if they do not."""
        own = [values[name] for name in self.fields]
        if self.holds(*own):
            return ""
        return self.text.format(*own, **{name: name for name in self.fields})

    def within(self, section: str) -> "Relation":
        """Returns the relation with the names that its fields have in a section."""
        text, names = self.text, {name: f"{section}.{name}" for name in self.fields}
        for name, dotted in names.items():
            text = text.replace(f"{{{name}}}", dotted)
        return Relation(tuple(names.values()), self.holds, text)


Count = Annotated[int, at_least(1), "A number of things."]

ImageShape = Annotated[
    tuple[int, int, int],
    Rule(
        lambda v: (
            isinstance(v, list | tuple)
            and len(v) == 3
            and all(_is_number(x, Integral) and x > 0 for x in v)
        ),
        "(height, width, channels), whole numbers of at least 1",
    ),
    "Shape of one image.",
]
Seed = Annotated[int, SEED, "A number that random draws depend on."]
"""Parameters that many functions have and that `checked` checks."""


def fields_of(declared: Callable[..., Any]) -> dict[str, Field]:
    """Lists the fields that a function or a record declares.

    Args:
      declared: a function or a record. Its parameters or attributes annotated as
        `Annotated[type, rule, words]` or `Annotated[type, words]` are fields.

    Returns:
      Name of a field -> Field.

    Raises:
      TypeError: if a field is annotated in another way.
    """
    fields = {}
    for name, parameter in inspect.signature(declared).parameters.items():
        if get_origin(parameter.annotation) is Annotated:
            kind, *rules, words = get_args(parameter.annotation)
            rule = rules[0] if rules else ANY
            described = isinstance(rule, Rule) and isinstance(words, str)
            if len(rules) > 1 or not described or not (kind in TYPES or rule.text):
                raise TypeError(
                    f"{name} of {declared.__name__} must be Annotated[type, rule, "
                    f"words] or, with one of {_names(TYPES)} as type, Annotated[type, "
                    f"words], got {parameter.annotation}."
                )
            fields[name] = Field(kind, rule, words, parameter.default)
    return fields


def _names(types: Collection[Any]) -> str:
    return ", ".join(getattr(kind, "__name__", str(kind)) for kind in types)


def check_fields(fields: Mapping[str, Field], values: Mapping[str, Any]) -> None:
    """Refuses values that break the rules of their fields; ignores other names.

    Raises:
      ValueError: if a value breaks a rule; it names the field, the rule and the value.
    """
    for name, value in values.items():
        if name in fields and (unmet := fields[name].unmet(value)):
            raise ValueError(f"{name} must be {unmet}, got {value!r}.")


def related(*relations: Relation) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Declares relations between the fields of a function; `checked` enforces them."""

    def declare(function: Callable[P, R]) -> Callable[P, R]:
        function.__dict__["relations"] = relations
        return function

    return declare


def relations_of(declared: Callable[..., Any]) -> tuple[Relation, ...]:
    """Lists the relations that a function declares by `related`."""
    return declared.__dict__.get("relations", ())


def check_relations(relations: Sequence[Relation], values: Mapping[str, Any]) -> None:
    """Refuses values that break a relation.

    Raises:
      ValueError: if they do; it is the text of the relation.
    """
    for relation in relations:
        if unmet := relation.unmet(values):
            raise ValueError(f"{unmet}.")


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Makes a function refuse bad values of its fields before it runs.

    Raises:
      ValueError: by the returned function, as in `check_fields` and, if all fields are
        good, as in `check_relations`.
    """
    signature, fields = inspect.signature(function), fields_of(function)
    relations = relations_of(function)

    @functools.wraps(function)
    def check_and_call(*args: P.args, **kwargs: P.kwargs) -> R:
        bound = signature.bind(*args, **kwargs)
        check_fields(fields, bound.arguments)
        bound.apply_defaults()
        check_relations(relations, bound.arguments)
        return function(*args, **kwargs)

    return check_and_call


def like(
    declared: Callable[..., Any], **changed: Field
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Gives a function that takes `**fields` the fields and relations of another one.

    Args:
      declared: the other function.
      changed: name of a field -> the field in place of the other function's.
    """

    def take_over(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind != p.VAR_KEYWORD]
        taken = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                annotation=Annotated[field.type, field.rule, field.words],
                default=field.default,
            )
            for name, field in (fields_of(declared) | changed).items()
        ]
        function.__dict__["__signature__"] = signature.replace(
            parameters=[*own, *taken]
        )
        return related(*relations_of(declared))(function)

    return take_over


def _is_number(value: Any, kind: type) -> bool:
    """Tells whether a value is of a kind of number; True and False never are."""
    return isinstance(value, kind) and not isinstance(value, bool)
