"""Checkpoints to resume a run from: of its rounds, and of the dense network's training.

Each is one file: a tree of arrays in flax's msgpack, behind its SHA-256.
"""

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization

from ccsrp_jax.pipeline.checkpoint_settings import ROUND_STATE, TRAINING_STATE, checkpoints_in
from ccsrp_jax.pipeline.config import default_settings
from ccsrp_jax.pipeline.settings_file import changes, flat
from ccsrp_jax.utils.digests import seal, unseal
from ccsrp_jax.utils.errors import InputError, reason
from ccsrp_jax.utils.io import PARTIAL, write_atomic

KEPT = 2  # checkpoints of rounds; older ones are deleted
DELETED = ".deleted"  # ends the name of a checkpoint that is being deleted


class Checkpoints:
    """Checkpoints of the run's state after training (step 0) and each round; keeps the last two.

    A write is atomic, so that a checkpoint is complete or absent. Those of earlier versions,
    directories of orbax, are read too.
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
        data = _packed(state, {"record": json.dumps(record)})
        try:
            kept, said = _read(data, state)
            if not (_equal(kept, state) and said == json.loads(json.dumps(record))):
                raise ValueError("what is read back is not what is to be written")
        except Exception as error:  # msgpack raises many kinds
            raise OSError(
                errno.EIO, f"checkpoint {step} failed: {_first(error)}", str(self._folder)
            ) from error
        write_atomic(self._folder / f"{step}{ROUND_STATE}", data)
        self._delete_leftovers()

    def latest(self, like: Any) -> tuple[int, Any, dict] | None:
        """Newest step, its state in the structure of `like`, and its record; None if there is none.

        Raises:
          InputError: the checkpoint is damaged.
        """
        found = checkpoints_in(self._folder)
        if not found:
            return None
        (step, path), *earlier = reversed(found.items())
        try:
            if path.is_dir():
                from ccsrp_jax.pipeline import orbax_checkpoints  # slow to import

                state, record = orbax_checkpoints.read(path, like)
            else:
                state, record = _read(path.read_bytes(), like)
        except Exception as error:  # msgpack and orbax raise many kinds
            before = f"from {earlier[0][0]}, the one before it" if earlier else "from the start"
            raise InputError(
                f"checkpoint {path} is damaged ({_first(error)}): move it elsewhere to resume "
                f"{before}."
            ) from error
        return step, state, record

    def _delete_leftovers(self) -> None:
        """Deletes checkpoints of which newer ones are kept, and those that are not complete."""
        for path in list(checkpoints_in(self._folder).values())[:-KEPT]:
            if path.is_dir():
                shutil.rmtree(path.with_name(path.name + DELETED), ignore_errors=True)
                path.rename(path.with_name(path.name + DELETED))
            else:
                path.unlink()
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
    write_atomic(run_dir / TRAINING_STATE, _packed(state, kept))


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
        state, kept = _unpacked(path.read_bytes(), like)
        done, seconds = kept["done"], kept["seconds"]
        said = json.loads(kept.get("settings", "null"))
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


def _packed(state: Any, more: dict[str, Any]) -> bytes:
    """The content of a checkpoint's file: a tree of arrays, and what else is to be known."""
    return seal(serialization.to_bytes(more | {"state": jax.device_get(state)}))


def _unpacked(data: bytes, like: Any) -> tuple[Any, dict[str, Any]]:
    """The state of such a file in the structure of `like`, and the rest.

    Raises:
      Exception: of many kinds, where it is damaged or of another network.
    """
    kept: Any = serialization.msgpack_restore(unseal(data))
    state = serialization.from_state_dict(like, kept.pop("state"))
    leaves = zip(jax.tree.leaves_with_path(like), jax.tree.leaves(state), strict=True)
    for (keys, expected), leaf in leaves:
        if _kind(leaf) != _kind(expected):
            name = jax.tree_util.keystr(keys, simple=True, separator=".")
            raise ValueError(f"its {name} has {_kind(leaf)}, expected {_kind(expected)}")
    return state, kept


def _read(data: bytes, like: Any) -> tuple[Any, dict]:
    state, kept = _unpacked(data, like)
    state = jax.tree.map(
        lambda leaf, at: jnp.asarray(leaf) if isinstance(at, jax.Array) else leaf, state, like
    )
    return state, json.loads(kept["record"])


def _equal(kept: Any, state: Any) -> bool:
    """Whether two trees of arrays have the same bytes."""
    pairs = zip(jax.tree.leaves(kept), jax.tree.leaves(state), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


def _kind(leaf: Any) -> str:
    return f"shape {np.shape(leaf)} of {np.asarray(leaf).dtype}"


def _first(error: Exception) -> str:
    """The reason of an error, short enough for a sentence."""
    text = reason(error)
    return text if len(text) <= 200 else text[:197] + "..."
