"""Settings of the main job from flags, files and a run's directory."""

import itertools
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ccsrp_jax.coevolution.settings import PRESETS
from ccsrp_jax.data.paths import user_path
from ccsrp_jax.pipeline import settings_file
from ccsrp_jax.pipeline.checkpoint_settings import checkpoint_settings
from ccsrp_jax.pipeline.config import EXECUTION, Config, check_not_empty, default_settings
from ccsrp_jax.pipeline.flags import read_flags, read_known_flags
from ccsrp_jax.utils.errors import InputError, unknown
from ccsrp_jax.utils.io import read_json

LATEST = "runs/latest"  # symbolic link to the newest run


@dataclass(frozen=True)
class _Sources:
    """The settings that say where further settings come from."""

    run_dir: str | None = None
    resume: bool = False
    config: str | None = None
    preset: str = Config.preset

    def __post_init__(self) -> None:
        check_not_empty(self, ("run_dir", "config"))


def parse(args: Sequence[str] | None = None, prog: str | None = None) -> Config:
    """The settings of a run from, in order of precedence, flags, `--config` and `--preset`.

    The settings in a file are converted to flags and put before the given ones, so that a file
    and the same flags describe the same run. The file of a resumed run comes first of all.

    Args:
      args: the flags; by default those of the command line.
      prog: the command in the text of --help; by default the name of the script.

    Raises:
      InputError: an invalid value, or a file that cannot be read.
    """
    args = list(sys.argv[1:] if args is None else args)
    files: dict[Path, list[str]] = {}  # as flags, in the order of precedence
    try:
        given = read_known_flags(_Sources, args)
        if given.config is not None:
            path = user_path(given.config)
            files[path] = settings_file.flags(settings_file.read(path, Config))
            given = read_known_flags(_Sources, [*files[path], *args])
        if given.resume:
            path = run_folder(given.run_dir) / "config.json"
            if path.exists():
                files = {path: settings_file.flags(recorded_settings(path.parent))} | files
        return _of_flags([*itertools.chain(*files.values()), *args], prog)
    except InputError as error:
        raise _with_its_file(error, files) from error


def _of_flags(flags: list[str], prog: str | None = None) -> Config:
    preset = read_known_flags(_Sources, flags).preset
    return read_flags(Config, flags, _of_preset(preset), prog)


def _of_preset(preset: str) -> Config:
    if preset not in PRESETS:
        raise unknown("preset", preset, PRESETS)
    return Config(preset=preset, search=PRESETS[preset])


def _with_its_file(error: InputError, files: Mapping[Path, list[str]]) -> InputError:
    """The error, with the path of a settings file that causes it on its own."""
    for path, flags in files.items():
        try:
            _of_flags(flags)
        except InputError as same:
            if str(same) == str(error):
                return InputError(f"{path}: {error}")
    return error


def run_folder(run_dir: str | None) -> Path:
    """The directory that the setting says, or without it, that of the latest run in `runs`.

    Raises:
      InputError: the path cannot be used, or `runs/latest` is not the link to it.
    """
    if run_dir is not None:
        return user_path(run_dir)
    latest = Path(LATEST)
    if latest.exists() and not latest.is_symlink():
        raise InputError(
            f"{LATEST} is not the link to the newest run, but a file or directory of its own: give "
            "the run to resume by --run-dir."
        )
    return user_path(os.path.realpath(latest))


def recorded_settings(run_dir: Path) -> dict[str, Any]:
    """The settings in a run's directory, by name: of config.json; what that does not have is as
    its last checkpoint says, if it says so.

    Raises:
      InputError: config.json is damaged, or has settings that this version does not know.
    """
    path = run_dir / "config.json"
    table = {name: value for name, value in read_json(path).items() if name not in EXECUTION}
    try:
        found = settings_file.typed(path, table, Config)
    except InputError as error:
        why = str(error).removeprefix(f"{path}: ").rstrip(".")
        raise InputError(
            f"{path} is damaged or of another version ({why}): put back what the run wrote, or "
            "choose another --run-dir."
        ) from error
    kinds = settings_file.field_kinds(Config)
    known = {*found, *EXECUTION}
    missing = [name for name in kinds if name not in known and kinds[name] is not dict]
    said = settings_file.flat(checkpoint_settings(run_dir)) if missing else {}
    filled = {name: said[name] for name in missing if name in said}
    return settings_file.typed(path, filled, Config) | found


def started_with(run_dir: Path) -> dict[str, Any]:
    """All settings that a run was started with, by name: `recorded_settings`, or the defaults.

    Raises:
      InputError: as `recorded_settings`.
    """
    found = recorded_settings(run_dir)
    return settings_file.flat(default_settings(found.get("preset"))) | found
