"""Atomic writing of files, and reading of JSON files."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ccsrp_jax.utils.errors import InputError, reason


def write_atomic(path: Path, data: bytes) -> None:
    """Replaces the content of a file in one step; a failed write leaves the old file unchanged."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, data: Any) -> None:
    """Replaces a JSON file atomically."""
    write_atomic(path, (json.dumps(data, indent=1) + "\n").encode())


def write_rows(path: Path, rows: Iterable[dict]) -> None:
    """Replaces a JSON Lines file atomically."""
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def append_row(path: Path, row: dict) -> None:
    """Appends a row to a JSON Lines file, which is created if absent."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def read_rows(path: Path) -> list[dict]:
    """The rows of a JSON Lines file, without a last row whose writing was interrupted.

    An absent file has no rows.
    """
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def read_json(path: Path) -> dict:
    """Reads a JSON file of a run directory.

    Raises:
      InputError: the file is damaged.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise InputError(
            f"{path} is damaged ({reason(error)}): choose another --run-dir."
        ) from error
