"""What is asked of a run, and whether the run can give it."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fedjax_prune.fields import ABOVE_ZERO
from fedjax_prune.models.checks import name_of
from fedjax_prune.runs.learning import Learning, make_learning
from fedjax_prune.runs.workdir import read_usable_config

KINDS = ("dense", "masked", "compact", "gated")


class Asked(NamedTuple):
    """A network that is asked of a run.

    Attributes:
      workdir: of the run.
      learning: of the run.
      kind: one of KINDS.
      client: whose gates it has; None if it is the shared network.
      macs: budget of a client's compact network, or None.
      multiple: channels of a compact network stay in blocks of so many, at least 1.
    """

    workdir: Path
    learning: Learning
    kind: str
    client: int | None
    macs: float | None
    multiple: int


def ask(
    workdir: str | Path,
    kind: str | None,
    client: int | None,
    macs: float | None,
    multiple: int,
) -> Asked:
    """Reads what a run learns with; the arguments are as those of `choose`.

    Raises:
      WorkdirError: if there is no run.
    """
    learning = make_learning(read_usable_config(workdir))
    return Asked(
        workdir=Path(workdir),
        learning=learning,
        kind=_default(learning, client) if kind is None else kind,
        client=client,
        macs=macs,
        multiple=multiple,
    )


def problems(asked: Asked) -> list[str]:
    """Says what of the arguments the run cannot give."""
    return [
        *_of_client(asked),
        *_of_kind(asked),
        *_of_macs(asked),
        *_of_multiple(asked),
    ]


def _default(learning: Learning, client: int | None) -> str:
    if client is not None:
        return "gated"
    if learning.algorithm.masked is None:
        return "dense"
    return "compact" if learning.task.groups else "masked"


def _of_client(asked: Asked) -> Iterator[str]:
    kind, client = asked.kind, asked.client
    count = asked.learning.config.data.num_clients
    if client is None:
        return
    if not asked.learning.has_gates:
        yield f"client must be left out for a run without gates, got {client}"
    elif kind in ("dense", "masked"):
        yield f"client must be left out for kind {kind}, which is the same for all"
    elif not 0 <= client < count:
        yield f"client must be in [0, {count - 1}], got {client}"


def _of_kind(asked: Asked) -> Iterator[str]:
    learning, kind, client = asked.learning, asked.kind, asked.client
    name, masked = learning.config.algorithm.name, learning.algorithm.masked is not None
    if kind not in KINDS:
        yield f"kind must be one of {', '.join(KINDS)}, got {kind!r}"
    if kind == "dense" and masked:
        yield (
            f"kind must be masked or compact for a run of {name}, whose shared "
            "parameters are under masks, got 'dense'"
        )
    if kind == "masked" and not masked:
        yield f"kind must not be masked for a run of {name}, which has no masks"
    if kind == "compact" and client is None and not masked:
        yield (
            f"kind compact needs the masks of a run that prunes, which {name} has not, "
            "or a client of a run with gates: --client=ID"
        )
    elif kind == "compact" and not learning.task.groups:
        yield (
            f"kind must not be compact for {name_of(learning.model)}, which names no "
            "channels that could be removed"
        )
    # With a client, the client is what is wrong.
    if kind == "gated" and client is None:
        yield (
            "kind gated needs a client, whose gates are exported: --client=ID"
            if learning.has_gates
            else "kind must not be gated for a run without gates (model.gated)"
        )


def _of_macs(asked: Asked) -> Iterator[str]:
    if asked.macs is None:
        return
    if asked.kind != "compact" or asked.client is None:
        yield "macs must be left out except for kind compact with a client"
    elif not ABOVE_ZERO.holds(asked.macs):
        yield f"macs must be {ABOVE_ZERO.text}, got {asked.macs}"


def _of_multiple(asked: Asked) -> Iterator[str]:
    if asked.multiple < 1:
        yield f"multiple must be at least 1, got {asked.multiple}"
    elif asked.multiple > 1 and asked.kind != "compact":
        yield "multiple must be left out except for kind compact"
