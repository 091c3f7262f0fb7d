"""A run's directory takes one run: nothing of another is continued, overwritten or mixed in."""

import json
import os
import shutil
from types import SimpleNamespace

import pytest

from ccsrp_jax.pipeline import run_dir
from ccsrp_jax.utils.errors import InputError

SETTINGS = {"seed": 0, "attack": {"eps": 0.1}}
SPLITS = {"name": "digits", "search_indices": [1, 2]}


def start(folder, resume=False, settings=SETTINGS, splits=SPLITS, **options):
    return run_dir.opened(folder, settings, splits, resume=resume, **options)


def refuses(match, *args, **options) -> None:
    with pytest.raises(InputError, match=match), start(*args, **options):
        pass


def content(folder) -> dict:
    return {
        str(path.relative_to(folder)): os.readlink(path)
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in folder.rglob("*")
        if path.name != ".lock"
    }


@pytest.mark.parametrize("name", run_dir.OURS)
@pytest.mark.parametrize("kind", ["file", "folder", "broken link"])
def test_a_new_run_refuses_anything_under_the_names_of_a_run(name, kind, tmp_path):
    if kind == "file":
        (tmp_path / name).write_text("somebody's work")
    elif kind == "folder":
        (tmp_path / name).mkdir()
        (tmp_path / name / "round00.safetensors").write_text("somebody's work")
    else:
        (tmp_path / name).symlink_to("nowhere")
    before = content(tmp_path)
    with pytest.raises(InputError, match="already holds") as refused:
        run_dir.check(tmp_path, SETTINGS, resume=False)
    assert name in str(refused.value) and "choose another --run-dir" in str(refused.value)
    assert "delete" not in str(refused.value)
    refuses("already holds", tmp_path)
    assert content(tmp_path) == before


@pytest.mark.parametrize("names", [["config.json"], ["config.json", "splits.json", "digests.json"]])
def test_a_run_without_its_settings_is_neither_continued_nor_overwritten(names, tmp_path):
    folder = tmp_path / "run"
    with start(folder):
        (folder / "checkpoints").mkdir()
        (folder / "metrics.jsonl").write_text("{}\n")
    for name in names:
        (folder / name).unlink()
    before = content(folder)
    refuses("already holds", folder)
    with pytest.raises(InputError, match=r"no config\.json.*put that file back"):
        run_dir.check(folder, SETTINGS, resume=True)
    assert content(folder) == before


def test_other_files_in_the_directory_are_left_alone(tmp_path):
    for name in ("slurm-1.out", "movie.partial", "config.yaml", "Metrics.JSONL.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "data").mkdir()
    with start(tmp_path):
        pass
    assert content(tmp_path).items() >= {"movie.partial": b"movie.partial", "data": None}.items()
    with start(tmp_path, resume=True):
        assert (tmp_path / "slurm-1.out").read_text() == "slurm-1.out"


@pytest.mark.parametrize("kept", [(), (".lock",), (".lock", "config.json.partial")])
def test_a_start_killed_before_its_settings_were_written_can_be_repeated(kept, tmp_path):
    for name in kept:
        (tmp_path / name).write_text("")
    with start(tmp_path):
        pass
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("lost", [["splits.json", "digests.json"], ["digests.json"]])
def test_a_start_killed_after_its_settings_were_written_can_be_resumed(lost, tmp_path):
    with start(tmp_path / "run"):
        pass
    whole = content(tmp_path / "run")
    for name in lost:
        (tmp_path / "run" / name).unlink()
    with start(tmp_path / "run", resume=True):
        pass
    assert content(tmp_path / "run") == whole


def test_two_runs_in_one_directory_are_refused_whatever_they_do(tmp_path):
    folder = tmp_path / "run"
    with start(folder):
        for resume in (False, True):
            refuses("in use by another run", folder, resume)
    with start(folder, resume=True):
        refuses("in use", folder, resume=True)


def test_runs_of_the_same_second_get_directories_of_their_own(tmp_path):
    folder = tmp_path / "runs" / "digits-small-20260101-000000"
    with start(folder, rename=True) as one, start(folder, rename=True) as two:
        assert one == folder and two.name == f"{folder.name}-2" and two.parent == folder.parent
        assert (one / "config.json").exists() and (two / "config.json").exists()
    folder.with_name("x").mkdir()  # of somebody, and empty
    with start(folder.with_name("x"), rename=True) as four:
        assert four.name == "x-2"


@pytest.mark.parametrize("there", [True, False])
def test_a_refusal_for_room_leaves_nothing(there, monkeypatch, tmp_path):
    if there:
        (tmp_path / "a").mkdir()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20))
    refuses("only 1 MiB are free", tmp_path / "a" / "b" / "c")
    assert [path.name for path in tmp_path.rglob("*")] == ["a"] * there


def test_a_start_that_fails_leaves_nothing(monkeypatch, tmp_path):
    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_dir, "write_json", fail)
    with pytest.raises(OSError, match="No space"), start(tmp_path / "a" / "b"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_a_directory_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("file", "file/run", "loop", "loop/run"):
        for rename in (False, name == "file/run"):
            refuses("cannot be made a directory", tmp_path / name, rename=rename)


def flip(path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["config.json", "splits.json", "networks/round00.safetensors"])
@pytest.mark.parametrize("harm", [flip, lambda path: path.write_bytes(b""), os.unlink])
def test_a_file_that_a_resumed_run_reads_is_checked(name, harm, tmp_path):
    (tmp_path / "networks").mkdir()
    (tmp_path / "networks" / "round00.safetensors").write_bytes(bytes(100))
    for made in ("config.json", "splits.json"):
        (tmp_path / made).write_text(json.dumps({"seed": 1}))
    names = ("config.json", "splits.json", "networks/round00.safetensors")
    run_dir.record_digest(tmp_path, *names)
    run_dir.verify_digest(tmp_path, *names, "unknown")
    harm(tmp_path / name)
    with pytest.raises(InputError, match=rf"{name} is (damaged|missing)"):
        run_dir.verify_digest(tmp_path, *names)


@pytest.mark.parametrize("harm", [flip, lambda path: path.write_text("{}")])
@pytest.mark.parametrize("name", ["config.json", "splits.json"])
def test_a_changed_record_is_not_resumed(name, harm, tmp_path):
    with start(tmp_path / "run"):
        pass
    harm(tmp_path / "run" / name)
    refuses("damaged|other settings", tmp_path / "run", resume=True)


def test_data_of_the_same_description_with_other_values_is_refused(tmp_path):
    with start(tmp_path / "run", inputs={"data": "0" * 64, "dense": "1" * 64}):
        pass
    for inputs in ({"data": "2" * 64}, {"data": "0" * 64, "dense": "3" * 64}):
        refuses("the data is not what", tmp_path / "run", resume=True, inputs=inputs)


def test_a_version_may_record_more_of_the_data(tmp_path):
    with start(tmp_path / "run"):
        pass
    with start(tmp_path / "run", resume=True, splits=SPLITS | {"warnings": []}):
        pass
    changed = SPLITS | {"search_indices": [1, 3]}
    refuses("search_indices", tmp_path / "run", resume=True, splits=changed)


def test_a_run_of_before_there_were_digests_can_be_resumed(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SETTINGS))
    (tmp_path / "splits.json").write_text(json.dumps(SPLITS))
    with start(tmp_path, resume=True, inputs={"data": "0" * 64}):
        pass
    refuses("the data is not what", tmp_path, resume=True, inputs={"data": "1" * 64})


def test_devices_are_recorded_when_they_change(tmp_path):
    assert run_dir.record_devices(tmp_path, "1 x cpu") == []
    assert run_dir.record_devices(tmp_path, "1 x cpu") == ["1 x cpu"]
    assert run_dir.record_devices(tmp_path, "2 x cpu") == ["1 x cpu"]
    assert run_dir.record_devices(tmp_path, "1 x cpu") == ["1 x cpu", "2 x cpu"]
    assert run_dir.record_devices(tmp_path, "1 x cpu") == ["1 x cpu", "2 x cpu", "1 x cpu"]
    (tmp_path / "devices.json").write_text('{"devices": "2 x cpu"}')
    with pytest.raises(InputError, match=r"devices\.json is damaged"):
        run_dir.record_devices(tmp_path, "1 x cpu")


def test_a_link_left_by_a_killed_run_is_removed(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    (tmp_path / ".latest-4711").symlink_to("first")
    (tmp_path / ".latest-second").symlink_to("second")
    (tmp_path / ".latest-notes").write_text("somebody's")
    run_dir.link_latest(tmp_path / "second")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [".latest-notes", "first", "latest", "second"]
    assert os.readlink(tmp_path / "latest") == "second"


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_real_file_or_directory_called_latest_is_left_alone(kind, tmp_path):
    (tmp_path / "run").mkdir()
    latest = tmp_path / "latest"
    latest.write_text("mine") if kind == "file" else latest.mkdir()
    run_dir.link_latest(tmp_path / "run")
    assert not latest.is_symlink() and len(list(tmp_path.iterdir())) == 2
