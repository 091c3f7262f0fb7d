"""Checkpoints of rounds of earlier versions, which are directories of orbax, and only read."""

import contextlib
import io
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from ccsrp_jax.utils.digests import sha256_files

DIGESTS = "digests.json"  # in a checkpoint: the SHA-256 of each of its other files


def read(path: Path, like: Any) -> tuple[Any, dict]:
    """The state in a checkpoint, in the structure of `like`, and its record.

    Raises:
      Exception: of many kinds, where it is damaged.
    """
    has_digests = _check_digests(path)
    with _plain(path.parent) as folder, _silent(), _checkpointer() as checkpointer:
        state, record = _restore(checkpointer, folder / path.name, like)
    if record.pop("digests", False) and not has_digests:
        raise ValueError(f"{DIGESTS} is missing")
    return state, record


def _checkpointer() -> ocp.Checkpointer:
    parts = {"state": ocp.StandardCheckpointHandler(), "record": ocp.JsonCheckpointHandler()}
    return ocp.Checkpointer(ocp.CompositeCheckpointHandler(**parts))


def _restore(checkpointer: ocp.Checkpointer, path: Path, like: Any) -> tuple[Any, dict]:
    _check_shapes(checkpointer, path, like)
    template = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    args = {"state": ocp.args.StandardRestore(template), "record": ocp.args.JsonRestore()}
    restored = checkpointer.restore(path, ocp.args.Composite(**args))
    return restored["state"], restored["record"]


def _check_shapes(checkpointer: ocp.Checkpointer, path: Path, like: Any) -> None:
    """Checks the shapes of saved arrays before any is read.

    Where one read fails, orbax leaves the others unfinished, and each of them prints a traceback.

    Raises:
      ValueError: an array has another shape than in `like`.
    """
    kept: Any = checkpointer.metadata(path)
    saved = {leaf.name: leaf.shape for leaf in jax.tree.leaves(kept.item_metadata["state"].tree)}
    for keys, leaf in ocp.tree.to_flat_dict(like).items():
        name = ".".join(keys)
        if saved.get(name, np.shape(leaf)) != np.shape(leaf):
            raise ValueError(f"its {name} has shape {saved[name]}, expected {np.shape(leaf)}")


def _check_digests(path: Path) -> bool:
    """Whether a checkpoint has digests; the oldest have none.

    Raises:
      ValueError: its files do not have them.
    """
    if not (path / DIGESTS).exists():
        return False
    recorded = json.loads((path / DIGESTS).read_text())
    found = sha256_files(path)
    del found[DIGESTS]
    for name in sorted(recorded.keys() | found.keys()):
        if recorded.get(name) != found.get(name):
            raise ValueError(f"its {name} does not have the SHA-256 that it was saved with")
    return True


@contextlib.contextmanager
def _plain(folder: Path) -> Iterator[Path]:
    """Another path to a folder, in which nothing can be taken for a pattern.

    Orbax looks for its files with patterns that begin with the path of the folder, so that it
    would not see them in one called `lr[0.1]`. Linux has a path for an open folder.
    """
    opened = os.open(folder, os.O_RDONLY)
    try:
        plain = Path(f"/proc/self/fd/{opened}")
        yield plain if plain.is_dir() else folder
    finally:
        os.close(opened)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Turns the output off of a library whose errors are raised too."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
