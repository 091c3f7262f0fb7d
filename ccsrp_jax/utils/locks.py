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
            file.seek(0)
            holder = " ".join(file.read(200).split())
            raise InputError(
                f"{folder} is in use by another run{holder and f' ({holder})'}: wait until that "
                f"ends, or choose another {flag}."
            ) from error
        except OSError:  # some network file systems
            say(f"{folder} cannot be locked: take care that no other run uses it.")
        else:
            file.truncate(0)
            file.write(f"{OURS}{os.getpid()} on {socket.gethostname()}\n")
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


def _is_same_folder(folder: Path, before: os.stat_result) -> bool:
    """Whether a path still leads to the same folder."""
    try:
        return os.path.samestat(folder.stat(), before)
    except OSError:
        return False
