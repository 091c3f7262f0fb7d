"""Files that appear whole or not at all."""

from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Replaces a file's content in one step; a failed write leaves the old file as it was."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
