"""Which checkpoints a run has, and the settings that the last one is of."""

import contextlib
import json
from pathlib import Path
from typing import Any

from flax import serialization

from ccsrp_jax.utils.digests import unseal

TRAINING_STATE = "training.msgpack"  # checkpoint of the dense network's training


ROUND_STATE = ".msgpack"  # ends the name of a round's checkpoint, which begins with its number


def checkpoints_in(folder: Path) -> dict[int, Path]:
    """Checkpoints of rounds in a folder, by their number, in order.

    A directory is one of an earlier version.
    """
    found: dict[int, Path] = {}
    there = list(folder.iterdir()) if folder.is_dir() else []
    for path in sorted(there, key=Path.is_file):
        name = path.name if path.is_dir() else path.name.removesuffix(ROUND_STATE)
        if name.isascii() and name.isdigit() and (path.is_dir() or path.name != name):
            found[int(name)] = path
    return dict(sorted(found.items()))


def checkpoint_settings(run_dir: Path) -> dict:
    """The settings that a run's last checkpoint says it is of; none if it does not say them."""
    found = checkpoints_in(run_dir / "checkpoints")
    said: Any = None
    with contextlib.suppress(Exception):  # one that is damaged is refused when it is restored
        last = list(found.values())[-1] if found else run_dir / TRAINING_STATE
        if last.is_dir():
            said = json.loads((last / "record" / "metadata").read_text("utf-8"))["settings"]
        else:
            kept: Any = serialization.msgpack_restore(unseal(last.read_bytes()))
            said = json.loads(kept["record"])["settings"] if found else json.loads(kept["settings"])
    return said if isinstance(said, dict) else {}
