"""Which network of a run is exported: the shared one, or that of one client."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_prune.data.augment import TO_INPUT
from fedjax_prune.engine.dealing import draw_clients
from fedjax_prune.models import costs
from fedjax_prune.models.modules import without_gates
from fedjax_prune.models.precision import product_precision
from fedjax_prune.pruning.client_network import (
    BudgetError,
    client_network,
    make_client_selection,
)
from fedjax_prune.pruning.smaller import compact
from fedjax_prune.runs.experiment import RunData, load_data
from fedjax_prune.runs.export.ask import Asked, ask, problems
from fedjax_prune.runs.export.client_accuracy import ClientAccuracy, client_accuracy
from fedjax_prune.runs.learning import Learning, data_info, first_row, task_of
from fedjax_prune.runs.manifest import has_rows
from fedjax_prune.runs.origin import Origin, origin_of
from fedjax_prune.runs.saving import CHECKPOINTS
from fedjax_prune.runs.settings import SettingsError
from fedjax_prune.runs.start import of_newest, restore, restore_state
from fedjax_prune.types import Config, ServerState, Task, Tree, Variables


class Chosen(NamedTuple):
    """A network of a run.

    Attributes:
      learning: of the run.
      round: finished rounds of the checkpoint.
      kind: one of KINDS.
      client: whose gates it has; None if it is the shared network.
      words: what it is, in one line.
      model: the network.
      task: of that network.
      variables: of the network.
      left: name of a group -> number of its channels that are left; {} if none was
        removed.
      own_validation: of a client's compact network: its accuracy on the client's
        validation set, beside those of the dense and the gated network.
    """

    learning: Learning
    round: int
    kind: str
    client: int | None
    words: str
    model: Any
    task: Task
    variables: Variables
    left: dict[str, int]
    own_validation: ClientAccuracy | None = None


def choose(
    workdir: str | Path,
    kind: str | None = None,
    client: int | None = None,
    macs: float | None = None,
    multiple: int = 1,
) -> Chosen:
    """Reads a network of the newest checkpoint of a run.

    `dense` has the shared parameters at full size, and `masked` has those under the
    final masks of a run that prunes (AutoFLIP, step 27). Of `compact` the removed
    channels are sliced out. All three are without gates. `gated` is what a client
    predicts with: the shared parameters, and its own gates. With a client `compact` is
    its plain network of the channels that its data select (`client_network`); this
    reads the data of the run.

    Args:
      workdir: of the run.
      kind: one of KINDS. None is `gated` with a client; without one it is `compact`, or
        `masked` if the network says nothing of its channels, of a run that prunes and
        `dense` of another.
      client: id of a client that was in a cohort; only of a run with gates.
      macs: budget of a client's compact network, as in `client_network`.
      multiple: at least 1, and 1 except for `compact`. With a client it is as in
        `client_network`, and without one as in `pruning.smaller.compact`.

    Raises:
      SettingsError: if the run cannot give that; it names the argument.
      WorkdirError, CheckpointError, RowsError: if there is nothing to read.
      DataError: if the data that a client's compact network needs cannot be read.
    """
    asked = ask(workdir, kind, client, macs, multiple)
    if found := problems(asked):
        raise SettingsError(found)
    return read(asked)


def read(asked: Asked) -> Chosen:
    """Reads a network that is asked for as `choose` does.

    Args:
      asked: without `problems`.

    Raises:
      SettingsError, WorkdirError, CheckpointError, RowsError, DataError: as `choose`.
    """
    learning, client, workdir = asked.learning, asked.client, asked.workdir
    if client is None:
        state, has_gates = of_newest(workdir, lambda: _read_shared(learning, workdir))
        shared = _shared(asked, state)
        if not learning.has_gates:
            return shared
        where = "--client=ID exports a client's gates"
        if not has_gates:
            where = "the clients' gates are on the nodes of Flower"
        return shared._replace(words=f"{shared.words}; without gates; {where}")
    data = load_data(learning.config) if asked.kind == "compact" else None
    origin = origin_of(learning.config, data and data.hashes)
    state, gates = of_newest(
        workdir, lambda: _read_client(learning, workdir, client, origin)
    )
    _require_drawn(learning.config, client, int(state.round))
    variables = jax.jit(learning.algorithm.deliver)(state)._replace(personal=gates)
    chosen = Chosen(
        learning=learning,
        round=int(state.round),
        kind=asked.kind,
        client=client,
        words=f"gated: the shared parameters and the gates of client {client}",
        model=learning.model,
        task=learning.task,
        variables=variables,
        left={},
    )
    if data:
        chosen = _compacted(asked, chosen, state, data)
    if _are_first(learning, client, gates):
        note = "; these gates are still those from before the first round"
        chosen = chosen._replace(words=chosen.words + note)
    return chosen


def _shared(asked: Asked, state: ServerState) -> Chosen:
    """The network that all clients share, without gates."""
    learning, kind = asked.learning, asked.kind
    variables = jax.jit(learning.algorithm.deliver)(state)._replace(alive={})
    model, task, left = without_gates(learning.model), learning.dense_task, {}
    words = f"{kind}: the shared parameters at full size"
    if kind == "masked":
        pruned = sum(int((leaf == 0).sum()) for leaf in jax.tree.leaves(variables[0]))
        total = costs.num_entries(variables.params)
        words += f", of which {pruned:,} of {total:,} are 0"
    if kind == "compact":
        masked = learning.algorithm.masked
        assert masked is not None, "a kind that was checked"
        masks, shape = masked.delivered(state), learning.image_shape
        model, variables, kept = compact(
            model, variables, masks, shape, multiple=asked.multiple
        )
        left = {name: len(indices) for name, indices in kept.items()}
        task = task_of(learning.config, model)
        words = "compact: the shared parameters without the channels that were removed"
        words += _in_blocks(asked.multiple)
    return Chosen(
        learning=learning,
        round=int(state.round),
        kind=kind,
        client=None,
        words=words,
        model=model,
        task=task,
        variables=variables,
        left=left,
    )


def _compacted(
    asked: Asked, gated: Chosen, state: ServerState, data: RunData
) -> Chosen:
    """The plain network of the channels that a client's training examples select."""
    learning, client, config = asked.learning, asked.client, asked.learning.config
    macs, multiple = asked.macs, asked.multiple
    assert client is not None
    images = data.training_of(client).images
    model, variables, shape = gated.model, gated.variables, learning.image_shape
    share = 1.0
    if learning.algorithm.masked is not None:
        # Units that no gate looks at are removed by the masks.
        masks = learning.algorithm.masked.delivered(state)
        whole = costs.macs_of(learning.dense_task.layers).dense
        # Groups are filled up first: one of five channels could not make a block of 8.
        model, variables, _ = compact(model, variables, masks, shape, multiple=multiple)
        share = costs.macs(model, shape).dense / whole
    budget = None if macs is None else min(1.0, macs / share)
    with product_precision(config.precision):
        select = make_client_selection(
            model,
            to_input=TO_INPUT[data_info(config).kind],
            normalize=config.data.normalize,
        )
        try:
            selection = select(variables, images)
            found = client_network(
                model, variables, selection, shape, macs=budget, multiple=multiple
            )
        except BudgetError as error:
            assert macs is not None, "there was a budget"
            # Its shares are of what the masks have left.
            least = BudgetError(error.least * share, macs)
            raise SettingsError([str(least).rstrip(".")]) from error
        except ValueError as error:
            raise SettingsError([str(error).rstrip(".")]) from error
        accuracy = client_accuracy(
            config,
            data,
            client,
            gated=(gated.model, gated.variables),
            compact=(found.model, found.variables),
        )
    return gated._replace(
        kind="compact",
        words=(
            f"compact: a plain network of the channels that the {len(images)} training "
            f"examples of client {client} select, which were read for this"
            f"{_in_blocks(multiple)}"
        ),
        model=found.model,
        task=task_of(config, found.model),
        variables=found.variables,
        left={name: len(indices) for name, indices in found.kept.items()},
        own_validation=accuracy,
    )


def _in_blocks(multiple: int) -> str:
    return f", in blocks of {multiple} channels" if multiple > 1 else ""


def _require_drawn(config: Config, client: int, finished: int) -> None:
    """Refuses a client that was in no cohort of the finished rounds.

    Raises:
      SettingsError: if it was in none.
    """
    size, seed, count = config.cohort_size, config.seed, config.data.num_clients
    if not any(
        client in draw_clients(count, size, seed=seed, round=round)
        for round in range(finished)
    ):
        raise SettingsError(
            [
                "client must be one that was trained: no cohort of the "
                f"{finished} rounds had client {client}"
            ]
        )


def _are_first(learning: Learning, client: int, gates: Tree) -> bool:
    """Whether gates are those from before the first round, as of a dropped client."""
    first = jax.jit(lambda own: first_row(learning, own).personal)(np.int32(client))
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, gates, first)))


def _read_shared(learning: Learning, workdir: Path) -> tuple[ServerState, bool]:
    """The state of the newest checkpoint, and whether clients' gates were saved."""
    state = restore_state(learning, workdir)
    return state, has_rows(workdir / CHECKPOINTS / str(int(state.round)))


def _read_client(
    learning: Learning, workdir: Path, client: int, origin: Origin
) -> tuple[ServerState, Tree]:
    """The state of the newest checkpoint, and a client's personal parameters."""
    state, rows = restore(learning, workdir, origin=origin)
    personal = rows.personal(np.array([client], np.int32))
    return state, jax.tree.map(lambda leaf: leaf[0], personal)
