"""Files that appear whole or not at all."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ccsrp_jax.utils.errors import InputError, reason


def write_atomic(path: Path, data: bytes) -> None:
    """Replaces a file's content in one step; a failed write leaves the old file as it was."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, data: Any) -> None:
    """Replaces a JSON file."""
    write_atomic(path, (json.dumps(data, indent=1) + "\n").encode())


def write_rows(path: Path, rows: Iterable[dict]) -> None:
    """Replaces a JSON-lines file."""
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def append_row(path: Path, row: dict) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def read_rows(path: Path) -> list[dict]:
    """The rows of a JSON-lines file, without a last one that was cut off in writing."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def read_json(path: Path) -> dict:
    """What `write_json` wrote.

    Raises:
      InputError: the file is damaged.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise InputError(
            f"{path} is damaged ({reason(error)}): choose another --run-dir."
        ) from error
