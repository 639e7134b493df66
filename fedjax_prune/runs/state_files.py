"""The leaves of a tree as files, written and read by Orbax.

Leaf n of a tree is named n.
"""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fedjax_prune.engine import processes
from fedjax_prune.types import Tree


def copy_leaves(tree: Tree) -> dict[str, np.ndarray]:
    """Copies the leaves of a tree to the host, so that the tree may be donated."""
    # On the CPU `device_get` gives views of the arrays themselves.
    leaves = (np.array(leaf) for leaf in jax.tree.leaves(jax.device_get(tree)))
    return {str(n): leaf for n, leaf in enumerate(leaves)}


def write(folder: Path, leaves: dict[str, np.ndarray]) -> None:
    """Writes leaves into a new folder and reads the largest one back.

    Raises:
      OSError: if they cannot be written, or what is read is not what was written.
    """
    # Orbax takes half a second to import, and only checkpoints use it.
    import orbax.checkpoint as ocp
    from etils import epath

    # Orbax refuses arrays without entries.
    kept = {name: leaf for name, leaf in leaves.items() if leaf.size}
    folder.mkdir()
    # The handler is used directly and without OCDBT. A Checkpointer finds the databases
    # of OCDBT by a glob of the whole path, which fails in a folder like `runs[1]`. It
    # also writes under another name first; checkpoints do that themselves.
    handler = ocp.StandardCheckpointHandler(use_ocdbt=False, **_alone())
    with _quiet_threads():
        try:
            handler.save(epath.Path(folder), args=ocp.args.StandardSave(kept))
        except ValueError as error:
            # TensorStore reports what the system says as text.
            code = re.search(r"os_error_code='(\d+)'", str(error))
            if code is None:
                raise
            raise OSError(int(code[1]), os.strerror(int(code[1]))) from error
        finally:
            handler.close()
    if kept:
        _read_back(folder, kept)


def read(folder: Path, template: Tree) -> Tree:
    """Reads a tree that was written.

    Args:
      folder: filled by `write`.
      template: a tree of arrays or `jax.ShapeDtypeStruct`s of the same shapes.

    Returns:
      A tree like `template`; leaves are numpy arrays where the template's are and
      JAX arrays elsewhere.
    """
    import orbax.checkpoint as ocp

    likes, tree = jax.tree.flatten(template)
    values = {str(n): np.empty(x.shape, x.dtype) for n, x in enumerate(likes)}
    handler = ocp.StandardCheckpointHandler(**_alone())
    with ocp.Checkpointer(handler, **_alone()) as checkpointer:
        kept = {name: buffer for name, buffer in values.items() if buffer.size}
        values |= checkpointer.restore(folder, args=ocp.args.StandardRestore(kept))
    leaves = [
        value if isinstance(like, np.ndarray) else jax.device_put(value)
        for value, like in zip(values.values(), likes, strict=True)
    ]
    return jax.tree.unflatten(tree, leaves)


def _read_back(folder: Path, written: dict[str, np.ndarray]) -> None:
    """Reads the index and the largest leaf as a restore would.

    Raises:
      OSError: if they cannot be read or differ.
    """
    import orbax.checkpoint as ocp

    name = max(written, key=lambda n: written[n].nbytes)
    item = {name: np.empty_like(written[name])}
    args = ocp.args.PyTreeRestore(item=item, partial_restore=True)
    try:
        handler = ocp.PyTreeCheckpointHandler(**_alone())
        with ocp.Checkpointer(handler, **_alone()) as checkpointer:
            found = checkpointer.restore(folder, args=args)[name]
    except (ValueError, KeyError) as error:
        raise OSError(f"what was written cannot be read: {error}") from error
    if found.tobytes() != written[name].tobytes():
        raise OSError("what is read is not what was written")


def _alone() -> dict[str, Any]:
    """Keeps Orbax from waiting for other processes, which do not call it."""
    import orbax.checkpoint as ocp

    if processes.count() == 1:
        return {}
    number = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=number,
        active_processes={number},
        barrier_sync_key_prefix=f"process_{number}",
    )
    return {"multiprocessing_options": options}


@contextmanager
def _quiet_threads() -> Iterator[None]:
    """Drops the traceback that each of Orbax's threads logs.

    The error itself is raised where the threads are waited for.
    """

    def drop(record: logging.LogRecord) -> bool:
        del record
        return False

    logger = logging.getLogger("absl")
    logger.addFilter(drop)
    try:
        yield
    finally:
        logger.removeFilter(drop)
