"""Files of settings: TOML or JSON, with values of the types that the settings have.

Settings are named by their path: `training.epochs` is the field `epochs` of the field `training`.
"""

import dataclasses
import json
import math
import tomllib
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ccsrp_jax.utils.errors import InputError, reason, shown, similar
from ccsrp_jax.utils.fields import Limits, converted

VERSION = 2  # of what settings are called and mean; files of version 1 do not say it
# Other names that a file may have for settings: those of earlier versions, which stay readable.
RENAMED = {"training.sparse_grad": "training.sparse_gradient"}
# Settings that a resumed run may change, since no network depends on them. Its directory keeps
# them, unlike those of `config.EXECUTION`, so that by default it goes on as it began.
MAY_CHANGE = ("latency_batch", "training.checkpoint_epochs")
ANY_NUMBER = Limits(-math.inf, math.inf, infinite=True)  # objects of settings check the range


def read_table(path: Path) -> dict[str, Any]:
    """The table in a JSON file, if its suffix is `.json`, or else in a TOML file.

    Raises:
      InputError: the file cannot be read, or holds no table.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
        if path.suffix == ".json":
            table = json.loads(text, object_pairs_hook=_without_repetition)
        else:
            table = tomllib.loads(text)
    except OSError as error:
        raise InputError(
            f"config file {path} cannot be read ({error.strerror}): give a TOML or JSON file."
        ) from error
    except RecursionError as error:
        raise InputError(
            f"config file {path} is not valid (its values are nested too deeply): give settings "
            "as --help names them."
        ) from error
    except ValueError as error:
        raise InputError(
            f"config file {path} is not valid ({reason(error)}): mend that line."
        ) from error
    if not isinstance(table, dict):
        raise InputError(f"config file {path} holds no table of settings: give names and values.")
    return table


def _without_repetition(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    table = {}
    for key, value in pairs:
        if key in table:
            raise ValueError(f"{shown(key)} occurs twice")
        table[key] = value
    return table


def read(path: Path, kind: type) -> dict[str, Any]:
    """The settings in a file, by name, converted to the types of the fields of a dataclass.

    Raises:
      InputError: the file cannot be read, or has a value or a name that is no setting's.
    """
    return typed(path, read_table(path), kind)


def typed(path: Path, table: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """As `read`, of a table that was read from a file."""
    table, kinds, found = dict(table), field_kinds(kind), {}
    version = table.pop("version", 1)
    if type(version) is not int or not 1 <= version <= VERSION:
        raise InputError(
            f"{path} has version {shown(version)} of the settings, and this version of ccsrp-jax "
            f"knows 1 to {VERSION}: use the one that wrote the file, or a later one."
        )
    for name, value in _leaves(path, table, kinds):
        if name in found:
            raise InputError(f"{path} gives the setting {name} twice: leave one of them out.")
        what = f"setting {name.rpartition('.')[2]} of the config file"
        try:
            found[name] = converted(what, value, kinds[name], ANY_NUMBER)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
    if found.get("config"):
        raise InputError(
            f"{path} names another config file, {shown(found['config'])}: put all settings into "
            "one file."
        )
    return found


def field_kinds(kind: type) -> dict[str, Any]:
    """Annotations of the fields of a dataclass of settings, and of those within, by name.

    A field that is a dataclass itself has the annotation `dict` beside those of its fields.
    """
    kinds: dict[str, Any] = {}
    for name, annotation in typing.get_type_hints(kind, include_extras=True).items():
        if typing.get_origin(annotation) is typing.Annotated:  # a part that is a name in files
            annotation = typing.get_args(annotation)[-1]
        if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
            inner = field_kinds(annotation)
            kinds |= {name: dict} | {f"{name}.{each}": inner[each] for each in inner}
        elif name in {field.name for field in dataclasses.fields(kind)}:
            kinds[name] = annotation
    return kinds


def _leaves(
    path: Path, table: Mapping[str, Any], kinds: Mapping[str, Any]
) -> Iterable[tuple[str, Any]]:
    """Names and values of settings; the tables of a file are as deep as the settings are."""
    rest = [("", table)]
    while rest:
        prefix, inner = rest.pop()
        for key, value in inner.items():
            name = prefix + key.replace("-", "_")
            name = RENAMED.get(name, name)
            if name not in kinds:
                raise _unrecognized(path, prefix + key, kinds)
            if kinds[name] is not dict:
                yield name, value
            elif isinstance(value, dict):
                rest.append((f"{name}.", value))
            else:
                raise InputError(
                    f"{path}: setting {name} of the config file is {shown(value)}: give a table "
                    "of settings."
                )


def _unrecognized(path: Path, name: str, kinds: Iterable[str]) -> InputError:
    near = similar(name, kinds)
    hint = f"did you mean {' or '.join(near)}?" if near else "see --help."
    flag = shown(f"--{name}").strip("'")
    return InputError(f"{path}: Unrecognized options: {flag}: {hint}")


def flags(values: Mapping[str, Any]) -> list[str]:
    """The flags that are equivalent to settings by name."""
    given = []
    for name, value in values.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            head, dot, last = flag.removeprefix("--").rpartition(".")
            given.append(flag if value else f"--{head}{dot}no-{last}")
        elif isinstance(value, tuple):
            given += [flag, *map(str, value)]
        else:
            given.append(f"{flag}={value}")
    return given


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by name, under today's names, of a table with tables in it, as JSON has them."""
    found: dict[str, Any] = {}
    for key, value in json.loads(json.dumps(settings)).items():
        if isinstance(value, dict):
            found |= {f"{key}.{name}": each for name, each in flat(value).items()}
        else:
            found[key] = value
    return {RENAMED.get(name, name): value for name, value in found.items()}


def changes(
    before: Mapping[str, Any], now: Mapping[str, Any], allowed: Iterable[str] = MAY_CHANGE
) -> list[str]:
    """Settings that differ from what they were, each as one phrase.

    Args:
      before: what a file says; a setting that it does not have is not compared.
      now: what they are.
      allowed: settings that may differ.
    """
    was, compared = flat(before), flat(now)
    return [
        f"{name}: {was[name]} then, {value} now"
        for name, value in sorted(compared.items())
        if name in was and name not in allowed and was[name] != value
    ]


def recorded(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as a run's directory keeps them: with the version of their names."""
    return {"version": VERSION, **settings}
