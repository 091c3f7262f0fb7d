"""The end of a command: an error is one sentence and exit status 2."""

import sys
from collections.abc import Callable

from ccsrp_jax.utils.console import escape_what_cannot_be_encoded, one_line
from ccsrp_jax.utils.errors import InputError, reason
from ccsrp_jax.utils.interruption import Interrupted, Interruption


def guard(
    run: Callable[[], object],
    flag: str = "--run-dir",
    again: str = "--resume",
    interruption: Interruption | None = None,
) -> int:
    """Runs a command, prints one sentence for an error, and returns the exit status.

    Args:
      run: the command.
      flag: of the folder that it writes to, named in the advice.
      again: flag that resumes it after an interruption, likewise.
      interruption: what the command asks where it can be interrupted; by default, it is
        interrupted anywhere.
    """
    escape_what_cannot_be_encoded(sys.stdout, sys.stderr)
    try:
        with (interruption or Interruption(at_once=True)).handled():
            run()
    except InputError as error:
        return _failed(f"error: {error}")
    except BrokenPipeError:  # the reader of our output has exited
        return 1
    except OSError as error:
        place = f" at {error.filename}" if error.filename else ""
        return _failed(
            f"error: the disk refused a write or read{place} ({error.strerror or reason(error)}): "
            f"make room or choose another {flag}, then go on with {again}."
        )
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        return _failed(
            f"error: memory is exhausted ({reason(error)[:200]}): free some and go on with "
            f"{again}, or start with smaller sizes in another {flag}."
        )
    except KeyboardInterrupt as error:
        name = error.name if isinstance(error, Interrupted) else "SIGINT"
        status = error.status if isinstance(error, Interrupted) else 130
        text = f"interrupted ({name}); {again} continues from the last checkpoint, if there is one."
        return _failed(text, status)
    return 0


def _is_out_of_memory(error: Exception) -> bool:
    from ccsrp_jax.utils.devices import is_out_of_memory  # loads JAX

    return is_out_of_memory(error)


def _failed(text: str, status: int = 2) -> int:
    print(one_line(text), file=sys.stderr)
    return status
