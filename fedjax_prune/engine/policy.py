"""Policies: what a round does about its clients and with what they send.

No algorithm knows of them. Algorithms send means and totals; a policy says whether
means are means or medians, what happens to a message that is too large, which clients
do not report, and so on.
"""

from typing import Annotated, NamedTuple

from fedjax_prune.engine.hostile import Hostile
from fedjax_prune.engine.participation import Participation
from fedjax_prune.engine.privacy import Privacy
from fedjax_prune.fields import (
    BELOW_ONE,
    FRACTION,
    Relation,
    Rule,
    above,
    checked,
    one_of,
    related,
)

AGGREGATORS = ("mean", "median", "trimmed_mean", "norm_clipping")
ORDERED = ("median", "trimmed_mean")
"""The aggregators that sort the values of all clients and so keep all messages."""

BAD_CLIENT = ("abort", "drop", "clip")
"""What is done about a client whose loss, message or personal parameters are not
finite: a run ends, or a round goes on without it. With `clip` a message that is too
large is bad, too."""

HALF = Rule(lambda v: 0 <= v < 0.5, "in [0, 0.5)")


class Policy(NamedTuple):
    """How the messages of a round's clients become one.

    Attributes:
      aggregator: one of AGGREGATORS.
      trim_fraction: share of the clients that `trimmed_mean` leaves out at each end.
      clip_norm: L2 norm to which a larger part of a message is scaled, by
        `norm_clipping` or because its client is bad.
      on_bad_client: one of BAD_CLIENT. A round goes on without a bad client and marks
        it in the sum `nonfinite`, whatever this says; with `abort` a run then ends.
      participation: which clients are missing or slow; None if nobody is.
      privacy: bounds and noise; None if there are none.
      hostile: who attacks; None if nobody does.

    Examples:
      >>> Policy() == make_policy()
      True
    """

    aggregator: str = "mean"
    trim_fraction: float = 0.1
    clip_norm: float = 1.0
    on_bad_client: str = "abort"
    participation: Participation | None = None
    privacy: Privacy | None = None
    hostile: Hostile | None = None

    @property
    def keeps_messages(self) -> bool:
        """Whether each device keeps the message of every client."""
        return self.aggregator in ORDERED

    @property
    def bounds_parts(self) -> bool:
        """Whether parts of messages are scaled to `clip_norm`."""
        return self.aggregator == "norm_clipping" or self.large_is_bad

    @property
    def large_is_bad(self) -> bool:
        """Whether the row of a client whose message is scaled stays as it was.

        But for what `ClientProgram.settle` changes of it.
        """
        return self.on_bad_client == "clip"


PLAIN = Policy()
"""The weighted mean of all messages that arrive."""


@checked
@related(
    Relation(
        ("on_bad_client", "aggregator"),
        lambda on_bad_client, aggregator: (
            on_bad_client != "clip" or aggregator != "norm_clipping"
        ),
        "{on_bad_client} must be abort or drop with {aggregator} {1}, which scales "
        "messages to clip_norm itself, got {0!r}",
    ),
)
def make_policy(
    *,
    aggregator: Annotated[
        str,
        one_of(AGGREGATORS),
        "How messages become one: mean, weighted as the algorithm says; median or "
        "trimmed_mean, unweighted and for each number by itself; norm_clipping, the "
        "mean of messages scaled to clip_norm.",
    ] = "mean",
    trim_fraction: Annotated[
        float,
        HALF,
        "Share of the clients that trimmed_mean leaves out at each end, of those who "
        "report and rounded down: it may be none if some do not.",
    ] = 0.1,
    clip_norm: Annotated[
        float,
        above(0),
        "L2 norm to which norm_clipping or on_bad_client clip scale a larger update, "
        "each part of a message by itself.",
    ] = 1.0,
    on_bad_client: Annotated[
        str,
        one_of(BAD_CLIENT),
        "What a round does about a client whose loss, message or gates are not finite: "
        "end the run or go on without it; clip also scales what exceeds clip_norm.",
    ] = "abort",
    client_dropout: Annotated[
        float,
        BELOW_ONE,
        "Probability that a client of a round does not report.",
    ] = 0.0,
    stragglers: Annotated[
        float,
        FRACTION,
        "Probability that a client of a round makes only some of its local steps.",
    ] = 0.0,
    straggler_steps: Annotated[
        float,
        FRACTION,
        "Least share of its local steps that such a client makes; its share is drawn "
        "between this and 1.",
    ] = 0.0,
    privacy: Privacy | None = None,
    hostile: Hostile | None = None,
) -> Policy:
    """Makes a policy.

    Args:
      privacy: of `make_privacy`; None adds no noise.
      hostile: of `make_hostile`; None has no attackers.

    Raises:
      ValueError: if a value is out of its range, a name unknown, or private rounds
        have another aggregator than `mean` or do something else than to drop.

    Examples:
      >>> make_policy(aggregator="trimmed_mean", trim_fraction=0.5)
      Traceback (most recent call last):
      ValueError: trim_fraction must be in [0, 0.5), got 0.5.
    """
    if privacy is not None and (aggregator, on_bad_client) != ("mean", "drop"):
        raise ValueError(
            "privacy needs aggregator = mean and on_bad_client = drop, got "
            f"{aggregator!r} and {on_bad_client!r}."
        )
    participation = Participation(client_dropout, stragglers, straggler_steps)
    return Policy(
        aggregator=aggregator,
        trim_fraction=trim_fraction,
        clip_norm=clip_norm,
        on_bad_client=on_bad_client,
        participation=participation if client_dropout or stragglers else None,
        privacy=privacy,
        hostile=hostile,
    )
