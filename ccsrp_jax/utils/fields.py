"""Checks of the fields of frozen dataclasses by their annotations, and their conversion.

Numbers come from NumPy, arrays and JSON as well as from source code. They are converted to plain
Python numbers where an object is made, so that it is hashable, equal to the same one from a file,
and can be written as JSON.
"""

import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from numbers import Real
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from ccsrp_jax.utils.errors import SHOWN, InputError, shown, unknown

LARGEST_FLOAT = 1e30  # float32 holds it, and its products with weights
LARGEST_INTEGER = 2**24  # of a size: more than fits into memory


class Limits(NamedTuple):
    """Which numbers a field takes.

    Attributes:
      low, high: the smallest and the largest.
      above: `low` itself is not taken.
      infinite: infinity is taken too.
    """

    low: float = -LARGEST_FLOAT
    high: float = LARGEST_FLOAT
    above: bool = False
    infinite: bool = False


SIZE = Limits(1, LARGEST_INTEGER)  # of something that is there
POSITIVE = Limits(0, above=True)


def check_fields(
    instance: Any, label: str = "", limits: Mapping[str, Limits] | None = None
) -> None:
    """Checks every field of a frozen dataclass, and sets it to its converted value.

    Fields annotated as int, float, bool, str, a `Literal` of strings, one of these or None, or a
    tuple of one of these are checked, and whether a value is of the dataclass that a field is
    annotated as; others are left as they are.

    Args:
      instance: as it is made, in its `__post_init__`.
      label: goes before the field's name in messages.
      limits: by field, which numbers it takes.

    Raises:
      InputError: naming the field, its value and what was expected.
    """
    for name, annotation in _annotations(type(instance)).items():
        bounds = (limits or {}).get(name, Limits())
        what, value = f"{label} {name}".strip(), getattr(instance, name)
        of_class = isinstance(annotation, type) and is_dataclass(annotation)
        if of_class and not isinstance(value, annotation):
            raise InputError(f"{what} is {shown(value)}: give a {annotation.__name__}.")
        value = converted(what, value, annotation, bounds)
        object.__setattr__(instance, name, value)


def converted(name: str, value: Any, annotation: Any, limits: Limits = Limits()) -> Any:
    """The value as the annotation has it; see `check_fields`."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        known = [each for each in inner if each is not NoneType]
        if len(known) != 1 or (value is None and NoneType in inner):
            return value
        return converted(name, value, known[0], limits)
    if origin is Literal:
        if not isinstance(value, str) or value not in inner:
            raise unknown(name, value, inner)
        return str(value)
    if origin is tuple:
        return _tuple(name, value, inner, limits)
    if annotation is bool:
        return _boolean(name, value)
    if annotation is int:
        return integer(name, value, limits)
    if annotation is float:
        return real(name, value, limits)
    if annotation is str and not isinstance(value, str):
        raise InputError(f"{name} is {shown(value)}: give a string.")
    return str(value) if annotation is str else value


def json_object(what: str, value: Any) -> dict[str, Any]:
    """A copy of a JSON object that describes something.

    Raises:
      InputError: the value is no object.
    """
    if not isinstance(value, dict):
        raise InputError(f"the description of {what} is {shown(value)}: give a JSON object.")
    return dict(value)


Described = TypeVar("Described")


def from_object(what: str, kind: type[Described], given: Mapping[str, Any]) -> Described:
    """An object of a dataclass, from its fields as a JSON object has them.

    Raises:
      InputError: a name that is no field, or a field without a value; or what the class raises.
    """
    accepted: list[Field] = [each for each in fields(kind) if each.init]  # type: ignore[arg-type]
    names = [each.name for each in accepted]
    for name in given:
        if name not in names:
            raise unknown(f"field of {what}", name[:SHOWN], names)
    lacking = [
        each.name
        for each in accepted
        if each.name not in given and each.default is MISSING and each.default_factory is MISSING
    ]
    if lacking:
        raise InputError(f"{what} has no {', '.join(lacking)}: give all of {', '.join(names)}.")
    return kind(**given)


def integer(name: str, value: Any, limits: Limits = Limits()) -> int:
    """A whole number, from any type that has one.

    Raises:
      InputError: it is none, or out of range.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or _is_boolean(value):
        raise InputError(f"{name} is {shown(value)}: give an integer{_range(limits)}.")
    if not limits.low <= number <= limits.high:
        raise _out_of_range(name, value, limits)
    return number


def real(name: str, value: Any, limits: Limits = Limits()) -> float:
    """A number that is finite and in range, and stays so in float32.

    Raises:
      InputError: it is not.
    """
    numeric = not isinstance(value, (str, bytes)) and not _is_boolean(value)
    try:
        if not numeric or np.ndim(value) or np.iscomplexobj(value):
            raise TypeError
        number = float(value)
    except OverflowError as error:
        raise _out_of_range(name, value, limits) from error
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} is {shown(value)}: give a number{_range(limits)}.") from error
    if number == math.inf and limits.infinite:
        return number
    with np.errstate(over="ignore", under="ignore"):
        single = float(np.float32(number))
    above = single > limits.low if limits.above else number >= limits.low
    if not (above and number <= limits.high):  # false for NaN too
        raise _out_of_range(name, value, limits)
    return number


def _tuple(name: str, value: Any, inner: tuple, limits: Limits) -> tuple:
    many = len(inner) == 2 and inner[1] is Ellipsis
    single = isinstance(value, Real) or getattr(value, "ndim", None) == 0
    if many and inner[0] is float and single:
        value = (value,)  # one number that holds for all
    is_list = isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping, set))
    items: Any = value
    try:
        values = list(items) if is_list else None
    except TypeError:  # an array without axes
        values = None
    if values is None or not (many or len(values) == len(inner)):
        wanted = "a tuple" if many else f"{len(inner)} values"
        raise InputError(f"{name} is {shown(value)}: give {wanted}.")
    kinds = [inner[0]] * len(values) if many else inner
    name = f"each of {name}" if many else name
    return tuple(converted(name, *pair, limits) for pair in zip(values, kinds, strict=True))


def _boolean(name: str, value: Any) -> bool:
    if not _is_boolean(value):
        raise InputError(f"{name} is {shown(value)}: give True or False.")
    return bool(value)


def _is_boolean(value: Any) -> bool:
    if isinstance(value, (bool, np.bool_)):
        return True
    return getattr(value, "dtype", None) == np.bool_ and np.ndim(value) == 0


def _out_of_range(name: str, value: Any, limits: Limits) -> InputError:
    return InputError(
        f"{name} {shown(_plain(value))} is out of range: give a number{_range(limits)}."
    )


def _plain(value: Any) -> Any:
    """NumPy's numbers as Python's, which print without their type."""
    return value.item() if isinstance(value, np.generic) else value


def _range(limits: Limits) -> str:
    low = ""
    if limits.low > -LARGEST_FLOAT:
        low = f" above {limits.low:g}" if limits.above else f" of {limits.low:g} or more"
    if limits.high >= LARGEST_FLOAT:
        return low
    return f"{low}{' and' if low else ' of'} at most {limits.high:g}"


@cache
def _annotations(kind: type) -> dict[str, Any]:
    """Annotations of a dataclass's fields, without those that cannot be resolved."""
    try:
        hints = get_type_hints(kind)
    except (NameError, TypeError):  # written as strings, of names that only its module knows
        hints = {field.name: field.type for field in fields(kind)}
    return {field.name: hints[field.name] for field in fields(kind)}
