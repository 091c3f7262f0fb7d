"""A lock that one process at a time holds on a folder."""

import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from ccsrp_jax.utils.errors import InputError

LOCK = ".lock"  # stays in the folder, since to remove it would race with those who wait for it
OURS = "process "  # how its content begins, if all of it was written


@contextmanager
def locked(
    folder: Path,
    say: Callable[[str], None] = lambda line: None,
    *,
    flag: str = "--run-dir",
    again: str = "--resume",
) -> Iterator[None]:
    """Holds the lock of a folder, which the operating system releases when the process ends.

    Args:
      folder: what to lock; it must exist.
      say: told so if the file system has no locks.
      flag: that names the folder, for the advice.
      again: flag that goes on after an interruption, likewise.

    Raises:
      InputError: another run holds it, or the folder was deleted or moved meanwhile.
    """
    with _lock_file(folder, flag) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = _holder(folder)
            raise InputError(
                f"{folder} is in use by another run{holder and f' ({holder})'}: wait until that "
                f"ends, or choose another {flag}."
            ) from error
        except OSError:  # some network file systems
            say(f"{folder} cannot be locked: take care that no other run uses it.")
        else:
            file.truncate(0)
            file.write(f"{_me()}\n")
            file.flush()
        here = folder.stat()
        try:
            yield
        except OSError as error:
            if _is_same_folder(folder, here):
                raise
            raise InputError(
                f"{folder} was deleted or moved while the run wrote to it: put it back and go on "
                f"with {again}, or choose another {flag}."
            ) from error


def _lock_file(folder: Path, flag: str) -> TextIO:
    """The open file that is locked; a file of that name that is not ours is left alone."""
    try:
        file = (folder / LOCK).open("a+", errors="replace")
    except IsADirectoryError as error:
        raise _foreign(folder, flag) from error
    file.seek(0)
    if not OURS.startswith(file.read(len(OURS))):
        file.close()
        raise _foreign(folder, flag)
    return file


def _foreign(folder: Path, flag: str) -> InputError:
    return InputError(f"{folder / LOCK} is not this library's: choose another {flag}.")


def check_not_taken(folder: Path) -> None:
    """Checks that a folder, which this process has locked, is not one that another process locked
    after that was deleted or moved.

    Raises:
      InputError: it is.
    """
    holder = _holder(folder)
    if holder not in ("", _me()):
        raise InputError(
            f"{folder} was deleted or moved while the run wrote to it, and another run ({holder}) "
            "is in its place: that one goes on alone."
        )


def _holder(folder: Path) -> str:
    """The process that says that it holds a folder's lock; empty where none does."""
    try:
        return " ".join((folder / LOCK).read_text(errors="replace")[:200].split())
    except OSError:
        return ""


def _me() -> str:
    return f"{OURS}{os.getpid()} on {socket.gethostname()}"


def _is_same_folder(folder: Path, before: os.stat_result) -> bool:
    """Whether a path still leads to the same folder."""
    try:
        return os.path.samestat(folder.stat(), before)
    except OSError:
        return False
