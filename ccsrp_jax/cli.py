"""Command line of the main job; an error is one sentence and exit status 2."""

import sys
from collections.abc import Callable, Sequence

from ccsrp_jax.pipeline import config
from ccsrp_jax.pipeline import run as job
from ccsrp_jax.utils import compilation
from ccsrp_jax.utils.errors import InputError


def main(args: Sequence[str] | None = None) -> int:
    """Runs the job with these flags; returns the exit status."""
    compilation.enable_persistent_cache()
    return guard(lambda: job.run(config.parse(args)))


def guard(run: Callable[[], object], flag: str = "--run-dir", again: str = "--resume") -> int:
    """Runs a command, prints one sentence for an error, and returns the exit status.

    Args:
      run: the command.
      flag: of the folder that it writes to, named in the advice.
      again: flag that resumes it after an interruption, likewise.
    """
    try:
        run()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has exited
        return 1
    except OSError as error:
        place = f" at {error.filename}" if error.filename else ""
        print(
            f"error: the disk refused a write or read{place} ({error.strerror}): make room or "
            f"choose another {flag}, then go on with {again}.",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print(f"interrupted; {again} continues from the last checkpoint.", file=sys.stderr)
        return 130
    return 0
