"""A run's directory: its files are written whole or not at all, its state can be resumed."""

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

ROOM = 64 * 2**20  # bytes that a run wants free before it starts


EPOCH = "training.msgpack"  # the state of training in between


def check(run_dir: Path, settings: dict, *, resume: bool) -> None:
    """Refuses a directory that a run with these settings cannot start or go on in.

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
    """Makes a run's directory, with its settings and its splits.

    Raises:
      InputError: it cannot be made, there is no room, or the data is not what it was.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{run_dir} cannot be made a directory ({error.strerror}): choose another --run-dir."
        ) from error
    free = shutil.disk_usage(run_dir).free
    if free < ROOM:
        raise InputError(
            f"only {free // 2**20} MiB are free at {run_dir}: make room for at least "
            f"{ROOM // 2**20} MiB or choose another --run-dir."
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
    """The run's state after training (step 0) and after each round, newest two kept.

    Orbax writes to a temporary name and renames, so that a step is there whole or not.
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
          OSError: it could not be written; earlier steps are as they were.
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
        """Newest step, its state in the shape of `like`, and its record; None if none.

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


def save_epoch(run_dir: Path, done: int, state: Any, seconds: float) -> None:
    """Keeps the state of training after `done` epochs, in one file that is there whole or not."""
    kept = {"done": done, "seconds": seconds, "state": jax.device_get(state)}
    write_atomic(run_dir / EPOCH, serialization.to_bytes(kept))


def load_epoch(run_dir: Path, like: Any) -> tuple[int, Any, float] | None:
    """Epochs done, the state in the shape of `like`, and seconds spent; None if none was kept.

    Raises:
      InputError: the file is damaged.
    """
    path = run_dir / EPOCH
    if not path.exists():
        return None
    try:
        kept = serialization.from_bytes(
            {"done": 0, "seconds": 0.0, "state": like}, path.read_bytes()
        )
    except Exception as error:  # msgpack raises many kinds
        raise InputError(f"checkpoint {path} is damaged: delete it to train anew.") from error
    return kept["done"], kept["state"], kept["seconds"]


def forget_epoch(run_dir: Path) -> None:
    """Deletes it, once the network is trained."""
    (run_dir / EPOCH).unlink(missing_ok=True)


def point_latest(run_dir: Path) -> None:
    """Makes `latest`, beside the run's directory, a link to it."""
    link = run_dir.parent / "latest"
    fresh = link.with_name(f".latest-{os.getpid()}")
    fresh.symlink_to(run_dir.name)
    fresh.replace(link)
