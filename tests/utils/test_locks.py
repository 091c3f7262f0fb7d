"""One process at a time holds the lock of a folder, and the lock ends with the process."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ccsrp_jax.utils.errors import InputError
from ccsrp_jax.utils.locks import locked

HOLD = """
import sys, time
from pathlib import Path
from ccsrp_jax.utils.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_holder_is_refused_until_the_first_ends(tmp_path):
    with (
        locked(tmp_path),
        pytest.raises(InputError, match=f"in use by another run.*{os.getpid()}"),
        locked(tmp_path),
    ):
        pass
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_lock_ends_with_its_process_even_if_that_was_stopped(end, tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert holder.stdout
    assert holder.stdout.readline() == "held\n"
    holder.send_signal(signal.SIGSTOP)
    with pytest.raises(InputError, match=f"process {holder.pid} on "), locked(tmp_path):
        pass
    holder.send_signal(end)
    holder.send_signal(signal.SIGCONT)
    holder.communicate()
    with locked(tmp_path):
        pass


def test_a_folder_deleted_or_moved_meanwhile_is_one_sentence(tmp_path):
    for remove in (shutil.rmtree, lambda path: path.rename(tmp_path / "elsewhere")):
        folder = tmp_path / "run"
        folder.mkdir()
        with pytest.raises(InputError, match="run was deleted or moved"), locked(folder):
            remove(folder)
            (folder / "row").write_text("")
    folder.mkdir()
    with pytest.raises(OSError, match="No space"), locked(folder):  # still there
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("content", ("mine\n", "{}", "\0\1", "process"))
def test_a_file_of_that_name_that_is_not_ours_stays_as_it_is(content, tmp_path):
    (tmp_path / ".lock").write_text(content)
    if content == "process":  # the beginning of our own
        with locked(tmp_path):
            return
    with pytest.raises(InputError, match="not this library's"), locked(tmp_path):
        pass
    assert (tmp_path / ".lock").read_text() == content


def test_a_folder_of_that_name_is_refused(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(InputError, match="not this library's"), locked(tmp_path):
        pass


def test_a_file_system_without_locks_is_said(monkeypatch, tmp_path):
    def fail(*args):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", fail)
    said = []
    with locked(tmp_path, said.append):
        pass
    assert len(said) == 1 and "cannot be locked" in said[0]
