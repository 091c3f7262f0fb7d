"""SHA-256 digests: of data, of files, and of data that carries its own."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

OWN = "sha256"  # name of a record's own digest
MARK = b"ccsrp-jax sha256 "  # what sealed data begins with; its digest and a newline follow


def sha256(data: bytes) -> str:
    """SHA-256 of data, as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_json(value: Any) -> str:
    """SHA-256 of JSON-compatible data, in whatever order its keys come."""
    return sha256(json.dumps(value, sort_keys=True).encode())


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_arrays(arrays: Iterable[Any]) -> str:
    """SHA-256 of the shapes, types and values of arrays."""
    digest = hashlib.sha256()
    for array in map(np.ascontiguousarray, arrays):
        digest.update(f"{array.shape}{array.dtype.str}".encode())
        digest.update(array.data)
    return digest.hexdigest()


def sha256_files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a folder and its subfolders, by path within it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in paths}


def with_digest(record: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON-compatible record with its own SHA-256."""
    return {**record, OWN: sha256_json(record)}


def without_digest(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record that `with_digest` was given; one without a digest is returned as it is.

    Raises:
      ValueError: it does not have its digest.
    """
    content = {name: value for name, value in record.items() if name != OWN}
    if record.get(OWN, "") not in ("", sha256_json(content)):
        raise ValueError("its content does not have the SHA-256 that it was saved with")
    return content


def seal(data: bytes) -> bytes:
    """Data behind its own digest."""
    return MARK + sha256(data).encode() + b"\n" + data


def unseal(sealed: bytes) -> bytes:
    """Data that `seal` put behind its digest; data without one is returned as it is.

    Raises:
      ValueError: the data does not have the digest before it.
    """
    if not sealed.startswith(MARK):
        return sealed
    digest, _, data = sealed.removeprefix(MARK).partition(b"\n")
    if digest != sha256(data).encode():
        raise ValueError("its content does not have the SHA-256 that it was saved with")
    return data
