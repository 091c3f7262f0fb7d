"""Settings dataclasses from command-line flags."""

import contextlib
import io
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import tyro

from ccsrp_jax.utils.errors import InputError

Settings = TypeVar("Settings")
PARTS = tyro.constructors.ConstructorRegistry()


@PARTS.primitive_rule
def _name_of_a_part(
    info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec | None:
    """A part that in Python may be an object of one's own is a name in flags; its class is Any."""
    if info.type is not Any:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="NAME",
        instance_from_str=lambda given: given[0],
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=lambda value: [str(value)],
    )


def read_flags(
    kind: type,
    flags: Sequence[str],
    default: Any = tyro.MISSING_NONPROP,
    prog: str | None = None,
) -> Any:
    """Makes a settings dataclass from command-line flags.

    Args:
      kind: the dataclass.
      flags: such as `["--training.epochs", "3"]`.
      default: values of the settings without a flag; by default those of the dataclass.
      prog: the command in the text of --help; by default the name of the script.

    Raises:
      InputError: invalid flags, in one sentence.
      SystemExit: after printing the text of --help.
    """
    options = {"prog": prog, "default": default, "args": list(flags), "registry": PARTS}
    return _refusing(lambda: tyro.cli(kind, **options))


def read_known_flags(kind: type[Settings], flags: Sequence[str]) -> Settings:
    """As `read_flags`, of those flags alone that the dataclass has.

    Raises:
      InputError: one of them is invalid.
    """
    args = [] if flags and flags[0].startswith("--tyro-") else list(flags)  # shell completion
    return _refusing(
        lambda: tyro.cli(kind, args=args, return_unknown_args=True, add_help=False, registry=PARTS)[
            0
        ]
    )


def _refusing(parse: Callable[[], Any]) -> Any:
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return parse()
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        raise InputError(_sentence(printed.getvalue())) from None


def _sentence(message: str) -> str:
    """The first paragraph of tyro's error message, which stands in a box, as one line."""
    rows = [row.strip("\u2502 ") for row in message.splitlines()]
    rows = [row for row in rows if row and row[0] not in "\u256d\u2570"]
    end = next((i for i, row in enumerate(rows) if row.startswith("\u2500")), len(rows))
    return " ".join(rows[:end]).rstrip(".") + ": see --help."
