"""Settings that are names in flags and files, and in Python may be objects of one's own too."""

from typing import Any

import tyro


def by_name(metavar: str, choices: tuple[str, ...] | None = None) -> Any:
    """How a flag reads such a setting.

    It stands in the annotation, before the type that the setting has in a file:
    `part: Annotated[Any, by_name("STR"), str]`.

    Args:
      metavar: what `--help` shows for the value.
      choices: the names there are, if they are few.
    """
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda given: given[0],
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=lambda value: [str(value)],
        choices=choices,
    )
