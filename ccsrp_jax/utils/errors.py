"""One exception for everything a user can get wrong, and the nearest valid name."""

import difflib
import math
from collections.abc import Iterable


class InputError(Exception):
    """A value that cannot be used; its message is one sentence for the user.

    The sentence names the value, what was expected and what to do. Scripts print it and
    exit with status 2. It is no `ValueError`, which the flag parser would catch and frame.
    """


def unknown(what: str, name: str, options: Iterable[str]) -> InputError:
    """The error for a name that is not among `options`, with the nearest ones."""
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
    """Refuses a number that is not finite, or not from `low` (or above it) to `high`."""
    reaches = value > low if above else value >= low
    if not (reaches and value <= high and math.isfinite(value)):
        bounds = f"above {low:g}" if above else f"of {low:g} or more"
        top = "" if high == math.inf else f" and at most {high:g}"
        raise InputError(f"{name} {value} is out of range: give a number {bounds}{top}.")


def reason(error: Exception) -> str:
    """First line of an error's text, or its type where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
