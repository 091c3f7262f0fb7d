"""A run's directory: atomic files, and checkpoints to resume from."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import serialization

from ccsrp_jax.utils.errors import InputError, reason
from ccsrp_jax.utils.io import read_json, write_atomic, write_json

MIN_FREE_BYTES = 64 * 2**20  # on the disk, before a run starts
TRAINING_STATE = "training.msgpack"  # checkpoint of the dense network's training


def check(run_dir: Path, settings: dict, *, resume: bool) -> None:
    """Checks that a run with these settings can start, or resume, in a directory.

    Raises:
      InputError: it holds another run, or none to resume.
    """
    recorded = run_dir / "config.json"
    if not recorded.exists():
        if resume:
            raise InputError(f"{run_dir} holds no run to resume: leave out --resume to start one.")
        return
    if not resume:
        raise InputError(
            f"{run_dir} already holds a run: add --resume to continue it, or choose "
            "another --run-dir."
        )
    changed = _differences(read_json(recorded), json.loads(json.dumps(settings)))
    if changed:
        raise InputError(
            f"{run_dir} was started with other settings ({', '.join(sorted(changed))}): resume it "
            "with its own, or choose another --run-dir."
        )


def prepare(run_dir: Path, settings: dict, splits: dict) -> None:
    """Creates a run's directory, with its settings and its splits.

    Raises:
      InputError: it cannot be created, the disk is full, or the data has changed.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{run_dir} cannot be made a directory ({error.strerror}): choose another --run-dir."
        ) from error
    free = shutil.disk_usage(run_dir).free
    if free < MIN_FREE_BYTES:
        raise InputError(
            f"only {free // 2**20} MiB are free at {run_dir}: make room for at least "
            f"{MIN_FREE_BYTES // 2**20} MiB or choose another --run-dir."
        )
    recorded = run_dir / "splits.json"
    if recorded.exists() and read_json(recorded) != json.loads(json.dumps(splits)):
        raise InputError(
            f"the data is not what {run_dir} was started with (see its splits.json): resume it "
            "with the same data, or choose another --run-dir."
        )
    write_json(recorded, splits)
    write_json(run_dir / "config.json", settings)


def _differences(before: dict, now: dict, prefix: str = "") -> list[str]:
    names = []
    for key in before.keys() | now.keys():
        a, b = before.get(key), now.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            names += _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            names.append(f"{prefix}{key}: {a} then, {b} now")
    return names


class Checkpoints:
    """Checkpoints of the run's state after training (step 0) and each round; keeps the last two.

    Orbax writes to a temporary name and renames, so that a checkpoint is complete or absent.
    """

    def __init__(self, run_dir: Path):
        self._folder = (run_dir / "checkpoints").absolute()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2, create=True, enable_async_checkpointing=False
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def save(self, step: int, state: Any, record: dict) -> None:
        """Saves a pytree of arrays, and a JSON-able record beside it.

        Raises:
          OSError: it could not be written; earlier checkpoints are unchanged.
        """
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record)
        )
        try:
            self._manager.save(step, args=args)
            self._manager.wait_until_finished()
        except Exception as error:  # orbax and tensorstore raise many kinds
            raise OSError(
                errno.EIO, f"checkpoint {step} failed: {reason(error)}", str(self._folder)
            ) from error

    def latest(self, like: Any) -> tuple[int, Any, dict] | None:
        """Newest step, its state in the structure of `like`, and its record; None if there is none.

        Raises:
          InputError: the checkpoint is damaged.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        template = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(template), record=ocp.args.JsonRestore()
                ),
            )
        except Exception as error:  # orbax and tensorstore raise many kinds
            raise InputError(
                f"checkpoint {self._folder / str(step)} is damaged: delete that folder to resume "
                "from the one before it."
            ) from error
        return step, restored["state"], restored["record"]


def save_training_state(run_dir: Path, done: int, state: Any, seconds: float) -> None:
    """Saves the state of training after `done` epochs, atomically in one file."""
    kept = {"done": done, "seconds": seconds, "state": jax.device_get(state)}
    write_atomic(run_dir / TRAINING_STATE, serialization.to_bytes(kept))


def load_training_state(run_dir: Path, like: Any) -> tuple[int, Any, float] | None:
    """Epochs done, the state in the structure of `like`, and seconds spent; None if none is saved.

    Raises:
      InputError: the file is damaged.
    """
    path = run_dir / TRAINING_STATE
    if not path.exists():
        return None
    try:
        kept = serialization.from_bytes(
            {"done": 0, "seconds": 0.0, "state": like}, path.read_bytes()
        )
    except Exception as error:  # msgpack raises many kinds
        raise InputError(f"checkpoint {path} is damaged: delete it to train anew.") from error
    return kept["done"], kept["state"], kept["seconds"]


def delete_training_state(run_dir: Path) -> None:
    """Deletes the state of training, once the network is trained."""
    (run_dir / TRAINING_STATE).unlink(missing_ok=True)


def link_latest(run_dir: Path) -> None:
    """Makes `latest`, beside the run's directory, a symbolic link to it, atomically."""
    link = run_dir.parent / "latest"
    fresh = link.with_name(f".latest-{os.getpid()}")
    fresh.symlink_to(run_dir.name)
    fresh.replace(link)
