"""Which checkpoints a run has, and the settings that the last one is of."""

import contextlib
import json
from pathlib import Path
from typing import Any

from flax import serialization

from ccsrp_jax.utils.digests import unseal

TRAINING_STATE = "training.msgpack"  # checkpoint of the dense network's training


def steps_in(folder: Path) -> list[int]:
    """Steps that have a checkpoint in a folder, in order."""
    return sorted(
        int(path.name)
        for path in (folder.iterdir() if folder.is_dir() else ())
        if path.is_dir() and path.name.isascii() and path.name.isdigit()
    )


def checkpoint_settings(run_dir: Path) -> dict:
    """The settings that a run's last checkpoint says it is of; none if it does not say them."""
    steps = steps_in(run_dir / "checkpoints")
    said: Any = None
    with contextlib.suppress(Exception):  # one that is damaged is refused when it is restored
        if steps:
            record = run_dir / "checkpoints" / str(steps[-1]) / "record" / "metadata"
            said = json.loads(record.read_text("utf-8"))["settings"]
        else:
            data = unseal((run_dir / TRAINING_STATE).read_bytes())
            kept: Any = serialization.msgpack_restore(data)
            said = json.loads(kept["settings"])
    return said if isinstance(said, dict) else {}
