"""Earlier names of keyword arguments."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def keyword_aliases(**names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator that still accepts earlier names of keyword arguments, as `earlier="current"`.

    Raises:
      TypeError: on a call with both names of an argument.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            for earlier, current in names.items():
                if earlier in kwargs:
                    if current in kwargs:
                        raise TypeError(
                            f"{function.__name__} got {current!r} and its earlier name "
                            f"{earlier!r}: give {current!r} only."
                        )
                    kwargs[current] = kwargs.pop(earlier)
            return function(*args, **kwargs)

        return call

    return decorate
