"""Settings dataclasses from command-line flags and from TOML or JSON files."""

import contextlib
import io
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from ccsrp_jax.utils.errors import InputError

LIST_SETTINGS = ("levels",)  # the settings whose values may be lists


def read_flags(kind: type, flags: Sequence[str], default: Any = tyro.MISSING_NONPROP) -> Any:
    """Makes a settings dataclass from command-line flags.

    Args:
      kind: the dataclass.
      flags: such as `["--training.epochs", "3"]`.
      default: values of the settings without a flag; by default those of the dataclass.

    Raises:
      InputError: invalid flags, in one sentence.
      SystemExit: after printing the text of --help.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(kind, default=default, args=list(flags))
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


def last_value(flags: Sequence[str], name: str) -> str | None:
    """The last value given for `--name`, as `--name value` or `--name=value`; None without one."""
    value = None
    for i, flag in enumerate(flags):
        if flag == f"--{name}" and i + 1 < len(flags):
            value = flags[i + 1]
        elif flag.startswith(f"--{name}="):
            value = flag.partition("=")[2]
    return value


def file_flags(path: Path) -> list[str]:
    """The flags that are equivalent to a settings file.

    Args:
      path: of a JSON file if its suffix is `.json`, else of a TOML file.

    Raises:
      InputError: the file cannot be read, or a value is neither number, text nor truth value.
    """
    try:
        text = path.read_text()
        table = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise InputError(
            f"config file {path} cannot be read ({error.strerror}): give a TOML or JSON file."
        ) from error
    except ValueError as error:
        raise InputError(f"config file {path} is not valid ({error}): mend that line.") from error
    if not isinstance(table, dict):
        raise InputError(f"config file {path} holds no table of settings: give names and values.")
    return _table_flags(table)


def _table_flags(table: dict, prefix: str = "") -> list[str]:
    flags = []
    for key, value in table.items():
        name = prefix + key.replace("_", "-")
        match value:
            case dict():
                flags += _table_flags(value, name + ".")
            case bool():
                flags.append(f"--{name}" if value else f"--{prefix}no-{key.replace('_', '-')}")
            case None | int() | float() | str():
                flags.append(f"--{name}={value}")
            case list() if key in LIST_SETTINGS:
                flags += [f"--{name}", *map(str, value)]
            case _:
                raise InputError(
                    f"setting {key} of the config file is {value!r}: give a number, a text, true "
                    "or false."
                )
    return flags
