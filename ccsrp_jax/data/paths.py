"""Paths that the user gave."""

import os
from pathlib import Path

from ccsrp_jax.utils.errors import InputError, reason


def user_path(given: str | os.PathLike) -> Path:
    """A path with ~ expanded, once it is known to be one that files can have.

    Raises:
      InputError: no file can have that path: no such user, a NUL, a name that the file system
        cannot encode or that is too long, a link that leads to itself.
    """
    try:
        path = Path(given).expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return path  # its reader says what it expected there
    except (OSError, RuntimeError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else reason(error)
        raise InputError(
            f"{str(given)!r} cannot be used as a path ({why}): give another."
        ) from error
    return path
