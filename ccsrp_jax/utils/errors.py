"""The exception for invalid input, and common ways to raise it."""

import difflib
import math
from collections.abc import Iterable


class InputError(Exception):
    """An invalid value given by the user.

    The message is one sentence that names the value, what was expected and what to do. Scripts
    print it and exit with status 2. It does not derive from `ValueError`, which the parser of
    command-line flags would catch and reformat.
    """


def unknown(what: str, name: str, options: Iterable[str]) -> InputError:
    """The error for a name that is not one of `options`; it suggests the most similar ones."""
    options = sorted(options)
    near = difflib.get_close_matches(name, options, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else "choose one of these."
    return InputError(f"unknown {what} {name!r}: expected one of {', '.join(options)}; {hint}")


def check_number(
    name: str,
    value: float | int,
    low: float | int,
    high: float | int = math.inf,
    *,
    above: bool = False,
) -> None:
    """Checks that a number is finite and in [low, high], or in (low, high] with `above`.

    Raises:
      InputError: it is not.
    """
    reaches = value > low if above else value >= low
    if not (reaches and value <= high and math.isfinite(value)):
        bounds = f"above {low:g}" if above else f"of {low:g} or more"
        top = "" if high == math.inf else f" and at most {high:g}"
        raise InputError(f"{name} {value} is out of range: give a number {bounds}{top}.")


def reason(error: Exception) -> str:
    """The first line of an exception's message, or its type if it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
