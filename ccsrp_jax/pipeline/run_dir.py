"""A run's directory: who may use it, and what it was started with."""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ccsrp_jax.pipeline.checkpoint_settings import TRAINING_STATE, checkpoint_settings
from ccsrp_jax.pipeline.checkpoints import (
    Checkpoints,
    delete_training_state,
    load_training_state,
    save_training_state,
)
from ccsrp_jax.pipeline.parse_config import started_with
from ccsrp_jax.pipeline.settings_file import changes, recorded
from ccsrp_jax.utils import digests
from ccsrp_jax.utils.errors import InputError
from ccsrp_jax.utils.io import PARTIAL, read_json, to_json, write_atomic, write_json
from ccsrp_jax.utils.locks import LOCK, check_not_taken, locked

__all__ = [  # with what earlier versions of this module held
    "Checkpoints",
    "check",
    "check_in_place",
    "delete_training_state",
    "link_latest",
    "load_training_state",
    "opened",
    "record_devices",
    "record_digest",
    "save_training_state",
    "verify_digest",
]

MIN_FREE_BYTES = 64 * 2**20  # on the disk, before a run starts
CONFIG, SPLITS, DIGESTS, DEVICES = "config.json", "splits.json", "digests.json", "devices.json"
METRICS, ARCHIVE, NETWORKS = "metrics.jsonl", "archive.jsonl", "networks"
OURS = (  # names that a run writes to
    *(CONFIG, SPLITS, DIGESTS, DEVICES, METRICS, ARCHIVE, NETWORKS, TRAINING_STATE),
    *("checkpoints", "tensorboard", "pruned.safetensors", "summary.json", "report.html"),
    *("suite-dense.json", "suite-pruned.json", "tradeoff.png", "filters.png", "training.png"),
    *("robustness.png", METRICS + ".damaged"),
)


def check(run_dir: Path, settings: dict, *, resume: bool) -> None:
    """Checks that a run with these settings can start, or resume, in a directory.

    Raises:
      InputError: it holds another run, files under the names of a run's, or no run to resume.
    """
    there = [name for name in OURS if _exists(run_dir / name)]
    if not resume and there:
        advice = "add --resume if that is a run to continue, or " if CONFIG in there else ""
        raise InputError(
            f"{run_dir} already holds {_list(there)}: {advice}choose another --run-dir."
        )
    if resume and there and not (run_dir / CONFIG).exists():
        raise InputError(
            f"{run_dir} holds {_list(there)} but no {CONFIG}, without which it cannot be resumed: "
            "put that file back, or choose another --run-dir."
        )
    if resume and not there:
        raise InputError(f"{run_dir} holds no run to resume: leave out --resume to start one.")
    if resume:
        changed = changes(started_with(run_dir), settings)
        if changed:
            raise InputError(
                f"{run_dir} was started with other settings ({', '.join(changed)}): resume "
                "it with its own, or choose another --run-dir."
            )


@contextlib.contextmanager
def opened(
    run_dir: Path,
    settings: dict,
    splits: dict,
    *,
    resume: bool,
    rename: bool = False,
    inputs: dict[str, str] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[Path]:
    """A run's directory, locked, with its settings and its splits; a new run's is created.

    Args:
      run_dir: the directory.
      settings: of the run.
      splits: record of its data.
      resume: whether it is that of a run to continue.
      rename: whether a number may be added to the name, if the directory exists.
      inputs: digests of what else determines the results, by what it is.
      say: told what is worth knowing.

    Yields:
      The directory.

    Raises:
      InputError: it cannot be created, is in use or holds another run; the disk is full; or the
        data has changed.
    """
    _check_room(run_dir)
    run_dir, made = (run_dir, []) if resume else _create(run_dir, rename)
    beginning = False
    try:
        with locked(run_dir, say):
            # again, now that no other run can change it
            check(run_dir, settings, resume=resume)
            beginning = True
            _record(run_dir, settings, splits, inputs or {})
            beginning = False
            yield run_dir
    except BaseException:
        if beginning:
            _remove_empty(run_dir, made)
        raise


def _check_room(run_dir: Path) -> None:
    there = run_dir.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < MIN_FREE_BYTES:
        raise InputError(
            f"only {free // 2**20} MiB are free at {run_dir}: make room for at least "
            f"{MIN_FREE_BYTES // 2**20} MiB or choose another --run-dir."
        )


def _create(run_dir: Path, rename: bool) -> tuple[Path, list[Path]]:
    """Creates a directory; returns it, and all directories that were created, parents first."""
    made = [path for path in reversed(run_dir.parents) if not path.exists()]
    wanted, number = run_dir, 1
    try:
        run_dir.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_made(run_dir, error) from error
    while True:
        try:
            run_dir.mkdir()
        except FileExistsError as error:
            if rename:  # another run started in the same second
                number += 1
                run_dir = wanted.with_name(f"{wanted.name}-{number}")
            elif run_dir.is_dir():
                return run_dir, []
            else:
                raise _not_made(run_dir, error) from error
        except OSError as error:
            raise _not_made(run_dir, error) from error
        else:
            return run_dir, [*made, run_dir]


def _not_made(run_dir: Path, error: OSError) -> InputError:
    return InputError(
        f"{run_dir} cannot be made a directory ({error.strerror}): choose another --run-dir."
    )


def _record(run_dir: Path, settings: dict, splits: dict, inputs: dict[str, str]) -> None:
    """Writes settings and splits of a new run, or compares those of a resumed one."""
    partial = [run_dir / f"{name}{PARTIAL}" for name in OURS]
    for path in [*partial, *(run_dir / NETWORKS).glob(f"round*{PARTIAL}")]:
        path.unlink(missing_ok=True)  # its writing was interrupted
    files = {CONFIG: recorded(settings), SPLITS: splits}
    for name, data in files.items():
        if not (run_dir / name).exists():
            write_json(run_dir / name, data)
    _verify_settings(run_dir, settings)
    verify_digest(run_dir, SPLITS)
    before = read_json(run_dir / SPLITS)
    now = json.loads(json.dumps(splits))
    # a version may record more than the one before
    known = _digests_of(run_dir)
    changed = [name for name in before.keys() & now.keys() if before[name] != now[name]]
    changed += [name for name, digest in inputs.items() if known.get(name, digest) != digest]
    if changed:
        raise InputError(
            f"the data is not what {run_dir} was started with ({', '.join(sorted(changed))} "
            f"differ from its {SPLITS} and {DIGESTS}): resume it with the same data, or choose "
            "another --run-dir."
        )
    if any(name not in known for name in (*files, *inputs)):
        found = {name: digests.sha256_file(run_dir / name) for name in files}
        write_json(run_dir / DIGESTS, found | inputs | known)
    written = to_json(files[CONFIG])
    if (run_dir / CONFIG).read_bytes() != written or (
        _digests_of(run_dir)[CONFIG] != digests.sha256(written)
    ):  # of an earlier version, or with a setting that a resumed run may change
        _replace(run_dir, CONFIG, written)


def _verify_settings(run_dir: Path, settings: dict) -> None:
    """Checks that the file of settings is what the run wrote, or says what its checkpoint does.

    Raises:
      InputError: it is not.
    """
    try:
        verify_digest(run_dir, CONFIG)
    except InputError:
        said = checkpoint_settings(run_dir)
        if not said or changes(said, settings, allowed=()):
            raise


def _replace(run_dir: Path, name: str, data: bytes) -> None:
    """Replaces a file that has a digest; if that is interrupted, both are known."""
    both = [digests.sha256_file(run_dir / name), digests.sha256(data)]
    write_json(run_dir / DIGESTS, _digests_of(run_dir) | {name: both})
    write_atomic(run_dir / name, data)
    record_digest(run_dir, name)


def _remove_empty(run_dir: Path, made: list[Path]) -> None:
    """Removes the directories that were made for a run which could not begin."""
    if made:
        with contextlib.suppress(OSError):
            for name in (LOCK, CONFIG, SPLITS, DIGESTS):
                (run_dir / name).unlink(missing_ok=True)
            for path in reversed(made):
                path.rmdir()


def record_digest(run_dir: Path, *names: str) -> None:
    """Records the SHA-256 of files that a resumed run reads."""
    found = {name: digests.sha256_file(run_dir / name) for name in names}
    write_atomic(run_dir / DIGESTS, to_json(_digests_of(run_dir) | found))


def verify_digest(run_dir: Path, *names: str) -> None:
    """Checks that files have the SHA-256 that was recorded, if one was.

    Raises:
      InputError: one does not.
    """
    known = _digests_of(run_dir)
    for name in (name for name in names if name in known):
        path = run_dir / name
        if not path.is_file():
            raise InputError(
                f"{path} is missing, which the run wrote: put it back, or choose another --run-dir."
            )
        # two of a file whose replacement was interrupted
        accepted = known[name] if isinstance(known[name], list) else [known[name]]
        if digests.sha256_file(path) not in accepted:
            raise InputError(
                f"{path} is damaged or was changed (its SHA-256 is not that in {DIGESTS}): put "
                "back what the run wrote, or choose another --run-dir."
            )


def _digests_of(run_dir: Path) -> dict[str, Any]:
    path = run_dir / DIGESTS
    return read_json(path) if path.exists() else {}


def check_in_place(run_dir: Path) -> None:
    """Checks that a run's directory is still there, before something is written to it.

    Raises:
      InputError: it was deleted or moved, and perhaps another one made in its place.
    """
    check_not_taken(run_dir)
    if not (run_dir / CONFIG).exists():
        raise InputError(
            f"{run_dir} was deleted or moved while the run wrote to it: put it back and go on with "
            "--resume, or choose another --run-dir."
        )


def record_devices(run_dir: Path, now: str) -> list[str]:
    """Records the devices that a run goes on with; returns all so far, the last those before it.

    Raises:
      InputError: the record is damaged.
    """
    path = run_dir / DEVICES
    before = read_json(path).get("devices") if path.exists() else []
    if not (isinstance(before, list) and all(isinstance(each, str) for each in before)):
        raise InputError(f"{path} is damaged (it holds no list of devices): delete it to go on.")
    if before[-1:] != [now]:
        write_json(path, {"devices": [*before, now]})
    return before


def link_latest(run_dir: Path) -> str | None:
    """Makes `latest`, beside the run's directory, a symbolic link to it, atomically.

    A file or directory of that name, which is not ours, is left alone.

    Returns:
      Why there is no such link, or None where there is.
    """
    link = run_dir.parent / "latest"
    if _exists(link) and not link.is_symlink():
        return "is a file or directory of its own, and is left alone"
    fresh = link.with_name(f".latest-{run_dir.name}")
    for _ in range(100):
        for left in run_dir.parent.glob(".latest-*"):  # by runs that were killed
            if left.is_symlink():
                left.unlink(missing_ok=True)
        try:
            fresh.symlink_to(run_dir.name)
            fresh.replace(link)
        except (FileExistsError, FileNotFoundError):  # another run came between
            continue
        except OSError as error:  # some file systems have no links
            return f"cannot be made a link to this run ({error.strerror})"
        return None
    return "cannot be made a link to this run (others are)"


def _list(names: list[str]) -> str:
    """The first few of some names, as text."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if names[4:] else "")


def _exists(path: Path) -> bool:
    """Whether there is anything under a name, a broken link too."""
    return path.exists() or path.is_symlink()
