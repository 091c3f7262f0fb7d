"""Checkpoints to resume a run from: of its rounds, and of the dense network's training."""

import contextlib
import errno
import io
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization

from ccsrp_jax.pipeline.checkpoint_settings import TRAINING_STATE, steps_in
from ccsrp_jax.pipeline.config import default_settings
from ccsrp_jax.pipeline.settings_file import changes, flat
from ccsrp_jax.utils.devices import nbytes
from ccsrp_jax.utils.digests import seal, sha256_files, unseal
from ccsrp_jax.utils.errors import InputError, reason
from ccsrp_jax.utils.io import PARTIAL, sync, sync_all, write_atomic, write_json

RECORD_BYTES = 2**20  # ample for what a checkpoint holds beside its arrays
KEPT = 2  # checkpoints of rounds; older ones are deleted
DIGESTS = "digests.json"  # in a checkpoint: the SHA-256 of each of its other files
DELETED = ".deleted"  # ends the name of a checkpoint that is being deleted


class Checkpoints:
    """Checkpoints of the run's state after training (step 0) and each round; keeps the last two.

    One is written under another name, read back, and renamed when it is on the disk with the
    digests of its files, so that a checkpoint is complete or absent.
    """

    def __init__(self, run_dir: Path):
        self._folder = Path(run_dir).absolute() / "checkpoints"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._delete_leftovers()

    def save(self, step: int, state: Any, record: dict) -> None:
        """Saves a pytree of arrays, and a JSON-able record beside it.

        Raises:
          OSError: it could not be written; earlier checkpoints are unchanged.
        """
        name, record = f"{step}{PARTIAL}", record | {"digests": True}
        args = {"state": ocp.args.StandardSave(state), "record": ocp.args.JsonSave(record)}
        try:
            _reserve(self._folder, nbytes(state) + RECORD_BYTES)
            with _plain(self._folder) as folder, _silent(), _checkpointer() as checkpointer:
                checkpointer.save(folder / name, ocp.args.Composite(**args))
                kept, said = _read(checkpointer, folder / name, state)
            if not (_equal(kept, state) and said == json.loads(json.dumps(record))):
                raise ValueError("what was read back is not what was written")
            self._keep(name, step)
        except Exception as error:  # orbax and tensorstore raise many kinds
            with contextlib.suppress(OSError):
                self._delete_leftovers()
            # their own sentences are long
            if isinstance(error, OSError) and error.errno:
                raise OSError(error.errno, error.strerror, str(self._folder)) from error
            raise OSError(
                errno.EIO, f"checkpoint {step} failed: {_first(error)}", str(self._folder)
            ) from error

    def latest(self, like: Any) -> tuple[int, Any, dict] | None:
        """Newest step, its state in the structure of `like`, and its record; None if there is none.

        Raises:
          InputError: the checkpoint is damaged.
        """
        steps = steps_in(self._folder)
        if not steps:
            return None
        path = self._folder / str(steps[-1])
        try:
            recorded = _digests(path)
            with _plain(self._folder) as folder, _silent(), _checkpointer() as checkpointer:
                state, record = _read(checkpointer, folder / path.name, like)
            if record.pop("digests", False) and recorded is None:
                raise ValueError(f"{DIGESTS} is missing")
        except Exception as error:  # orbax and tensorstore raise many kinds
            before = f"from {steps[-2]}, the one before it" if steps[1:] else "from the start"
            raise InputError(
                f"checkpoint {path} is damaged ({_first(error)}): move that folder elsewhere to "
                f"resume {before}."
            ) from error
        return steps[-1], state, record

    def _keep(self, name: str, step: int) -> None:
        """Makes what was written the checkpoint of a step, and deletes older ones."""
        written, path = self._folder / name, self._folder / str(step)
        write_json(written / DIGESTS, sha256_files(written))
        sync_all(written)
        if path.exists():  # of a run that resumed from before it
            path.rename(self._folder / f"{step}{DELETED}")
        written.rename(path)
        sync(self._folder)
        self._delete_leftovers()

    def _delete_leftovers(self) -> None:
        """Deletes checkpoints of which newer ones are kept, and those that are not complete."""
        for step in steps_in(self._folder)[:-KEPT]:
            shutil.rmtree(self._folder / f"{step}{DELETED}", ignore_errors=True)
            (self._folder / str(step)).rename(self._folder / f"{step}{DELETED}")
        for path in self._folder.iterdir():
            if path.name.endswith((PARTIAL, DELETED)) or ".orbax-checkpoint-tmp" in path.name:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def save_training_state(
    run_dir: Path, done: int, state: Any, seconds: float, settings: dict | None = None
) -> None:
    """Saves the state of training after `done` epochs, atomically in one file.

    Args:
      run_dir: directory of the run.
      done: number of epochs.
      state: pytree of arrays.
      seconds: spent so far.
      settings: of the run.
    """
    kept = {"done": done, "seconds": seconds, "settings": json.dumps(settings)}
    data = serialization.to_bytes(kept | {"state": jax.device_get(state)})
    write_atomic(run_dir / TRAINING_STATE, seal(data))


def load_training_state(
    run_dir: Path, like: Any, settings: dict | None = None
) -> tuple[int, Any, float] | None:
    """Epochs done, the state in the structure of `like`, and seconds spent; None if none is saved.

    Raises:
      InputError: the file is damaged, or of a run with other settings.
    """
    path = run_dir / TRAINING_STATE
    if not path.exists():
        return None
    try:
        kept: Any = serialization.msgpack_restore(unseal(path.read_bytes()))
        done, seconds = kept["done"], kept["seconds"]
        said = json.loads(kept.get("settings", "null"))
        state = serialization.from_state_dict(like, kept["state"])
        if jax.tree.map(_kind, state) != jax.tree.map(_kind, like):
            raise ValueError("its arrays have other shapes than those of the network")
    except Exception as error:  # msgpack raises many kinds
        raise InputError(
            f"checkpoint {path} is damaged ({_first(error)}): move it elsewhere or delete it to "
            "train anew."
        ) from error
    check_settings(path, said, settings)
    return done, state, seconds


def delete_training_state(run_dir: Path) -> None:
    """Deletes the state of training, once the network is trained."""
    (run_dir / TRAINING_STATE).unlink(missing_ok=True)


def check_settings(path: Path, recorded: dict | None, settings: dict | None) -> None:
    """Checks that a checkpoint is of a run with these settings; old ones do not say.

    Raises:
      InputError: it is of a run with others.
    """
    changed = settings_changes(recorded, settings) if recorded and settings else []
    if changed:
        raise InputError(
            f"checkpoint {path} is of a run with other settings ({', '.join(changed)}): "
            "resume it with its own, or choose another --run-dir."
        )


def settings_changes(before: dict, now: dict) -> list[str]:
    """Settings that differ, each as one phrase.

    A setting that only `now` has did not exist in the version that wrote `before`, which worked as
    its default does.
    """
    return changes(flat(default_settings(now.get("preset"))) | flat(before), now)


def _checkpointer() -> ocp.Checkpointer:
    parts = {"state": ocp.StandardCheckpointHandler(), "record": ocp.JsonCheckpointHandler()}
    return ocp.Checkpointer(ocp.CompositeCheckpointHandler(**parts))


def _read(checkpointer: ocp.Checkpointer, path: Path, like: Any) -> tuple[Any, dict]:
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


def _digests(path: Path) -> dict | None:
    """The digests in a checkpoint, None in an old one.

    Raises:
      ValueError: its files do not have them.
    """
    if not (path / DIGESTS).exists():
        return None
    recorded = json.loads((path / DIGESTS).read_text())
    found = sha256_files(path)
    del found[DIGESTS]
    for name in sorted(recorded.keys() | found.keys()):
        if recorded.get(name) != found.get(name):
            raise ValueError(f"its {name} does not have the SHA-256 that it was saved with")
    return recorded


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


def _equal(kept: Any, state: Any) -> bool:
    """Whether two trees of arrays have the same bytes."""
    pairs = zip(jax.tree.leaves(kept), jax.tree.leaves(state), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


def _kind(leaf: Any) -> tuple:
    return np.shape(leaf), np.asarray(leaf).dtype


def _reserve(folder: Path, size: int) -> None:
    """Checks that a disk has room, before a library that fails with a page of text finds out.

    Raises:
      OSError: it has not.
    """
    path = folder / f"room{PARTIAL}"
    try:
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot do it
            raise
    finally:
        path.unlink(missing_ok=True)


def _first(error: Exception) -> str:
    """The reason of an error, short enough for a sentence."""
    text = reason(error)
    return text if len(text) <= 200 else text[:197] + "..."
