"""Atomic and durable writing of files, and reading of JSON files."""

import errno
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ccsrp_jax.utils.digests import sha256
from ccsrp_jax.utils.errors import InputError, reason, shown

PARTIAL = ".partial"  # ends the name of a file whose writing has not ended


def as_path(given: Any) -> Path:
    """A path from what was given as one.

    Raises:
      InputError: no file can have it.
    """
    try:
        path = Path(given)
        if b"\0" in os.fsencode(path):
            raise ValueError("it holds a NUL")
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{shown(given)} is no path ({reason(error)}): give text or a pathlib.Path."
        ) from error
    return path


def write_atomic(path: Path, data: bytes) -> None:
    """Replaces the content of a file in one step; a failed write leaves the old file unchanged.

    On return the content is on the disk, also if the machine fails.
    """
    with replacing(path) as partial:
        partial.write_bytes(data)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to be written in this context, which then replaces `path` as in `write_atomic`."""
    partial = path.with_name(path.name + PARTIAL)
    try:
        yield partial
        with partial.open("r+b") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync(path.parent)


def sync(path: Path) -> None:
    """Returns when a file's content, or a folder's list of names, is on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:  # some file systems cannot do it for a folder
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(opened)


def sync_all(folder: Path) -> None:
    """`sync` of a folder with all that is in it."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def write_json(path: Path, data: Any) -> None:
    """Replaces a JSON file atomically."""
    write_atomic(path, to_json(data))


def to_json(data: Any) -> bytes:
    """The content that `write_json` gives a file."""
    return (json.dumps(data, indent=1) + "\n").encode()


def write_rows(path: Path, rows: Iterable[dict]) -> None:
    """Replaces a JSON Lines file atomically."""
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def append_row(path: Path, row: dict) -> None:
    """Appends a row to a JSON Lines file, which is created if absent."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def read_rows(path: Path) -> tuple[list[dict], list[bytes]]:
    """The rows of a JSON Lines file, and its lines that are none.

    An absent file has neither. A last line whose writing was interrupted is left out.
    """
    rows, bad = [], []
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line.decode())
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif line.strip() and number < len(lines):
            bad.append(line)
    return rows, bad


def mark(path: Path) -> dict:
    """Number and SHA-256 of the bytes of a file that is appended to; puts them on the disk."""
    if not path.exists():
        return {"bytes": 0, "sha256": sha256(b"")}
    sync(path)
    data = path.read_bytes()
    return {"bytes": len(data), "sha256": sha256(data)}


def has_mark(path: Path, recorded: dict) -> bool:
    """Whether a file still begins with the bytes of which `mark` was taken."""
    data = path.read_bytes() if path.exists() else b""
    return sha256(data[: recorded["bytes"]]) == recorded["sha256"]


def keep_aside(path: Path, lines: list[bytes]) -> Path:
    """Adds lines to the file that keeps a JSON Lines file's bad ones; returns its path."""
    aside = path.with_name(path.name + ".damaged")
    kept = aside.read_bytes().split(b"\n")[:-1] if aside.exists() else []
    kept += [line for line in lines if line not in kept]
    write_atomic(aside, b"".join(line + b"\n" for line in kept))
    return aside


def read_json(path: Path) -> dict:
    """Reads a JSON file of a run directory.

    Raises:
      InputError: the file is damaged.
    """
    try:
        data = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is damaged ({reason(error)}): choose another --run-dir."
        ) from error
    if not isinstance(data, dict):
        raise InputError(f"{path} is damaged (it holds no JSON object): choose another --run-dir.")
    return data
