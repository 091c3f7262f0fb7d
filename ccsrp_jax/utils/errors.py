"""The exception for invalid input, and common ways to raise it."""

import difflib
import math
from collections.abc import Iterable
from typing import Any

SHOWN = 60  # characters of a value in a message


class InputError(Exception):
    """An invalid value given by the user.

    The message is one sentence that names the value, what was expected and what to do. Scripts
    print it and exit with status 2. It does not derive from `ValueError`, which the parser of
    command-line flags would catch and reformat.
    """


def shown(value: Any) -> str:
    """A value for a message: on one line, and cut where it is long."""
    try:
        text = " ".join(repr(value).split())
    except (ValueError, RecursionError):  # integers of thousands of digits, lists in lists in lists
        text = f"a {type(value).__name__} too large to print"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def unknown(what: str, name: Any, options: Iterable[str]) -> InputError:
    """The error for a name that is not one of `options`; it suggests the most similar ones."""
    options = sorted(options)
    near = similar(name, options)
    hint = f"did you mean {' or '.join(near)}?" if near else "choose one of these."
    return InputError(f"unknown {what} {shown(name)}: expected one of {', '.join(options)}; {hint}")


def similar(name: Any, options: Iterable[str]) -> list[str]:
    """The most similar ones of `options`, at most three."""
    return difflib.get_close_matches(str(name)[:SHOWN], list(options), n=3, cutoff=0.4)


def check_number(
    name: str,
    value: Any,
    low: float | int,
    high: float | int = math.inf,
    *,
    above: bool = False,
) -> None:
    """Checks that a number is finite and in [low, high], or in (low, high] with `above`.

    Raises:
      InputError: it is not, or is no number.
    """
    number = _as_float(value)
    reaches = number > low if above else number >= low
    if not (reaches and number <= high and math.isfinite(number)):
        bounds = f"above {low:g}" if above else f"of {low:g} or more"
        top = "" if high == math.inf else f" and at most {high:g}"
        plain = value.item() if getattr(value, "shape", None) == () else value
        raise InputError(f"{name} {shown(plain)} is out of range: give a number {bounds}{top}.")


def _as_float(value: Any) -> float:
    """A number as a float; NaN for what is none."""
    if isinstance(value, str | bytes | bool) or getattr(value, "shape", ()) != ():
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf
    except (TypeError, ValueError):
        return math.nan


def reason(error: Exception) -> str:
    """The first line of an exception's message, or its type if it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
