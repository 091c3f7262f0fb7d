"""A run of an earlier version is resumed; its settings are kept, but for those that may change."""

import json

import numpy as np
import pytest

from ccsrp_jax.pipeline import parse_config, run_dir, settings_file
from ccsrp_jax.pipeline.checkpoint_settings import checkpoint_settings
from ccsrp_jax.pipeline.checkpoints import Checkpoints, save_training_state
from ccsrp_jax.pipeline.config import settings
from ccsrp_jax.pipeline.parse_config import parse
from ccsrp_jax.utils.errors import InputError

SPLITS = {"name": "digits"}
FLAGS = ["--tolerance", "0.5", "--training.epochs", "3", "--latency-batch", "8"]


def opened(folder, *flags, resume=True):
    config = parse(["--run-dir", str(folder), *["--resume"][: int(resume)], *flags])
    return run_dir.opened(folder, settings(config), SPLITS, resume=resume)


def resume(folder, *flags) -> dict:
    with opened(folder, *flags):
        return json.loads((folder / "config.json").read_text())


def refusal(folder, *flags) -> str:
    with pytest.raises(InputError) as refused:
        resume(folder, *flags)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.fixture
def folder(tmp_path):
    """A run's directory, without a checkpoint."""
    with opened(tmp_path / "run", *FLAGS, resume=False):
        pass
    return tmp_path / "run"


def with_checkpoint(folder, kind: str) -> None:
    said = settings(parse(FLAGS))
    if kind == "round":
        Checkpoints(folder).save(2, {"a": np.zeros(2)}, {"settings": said})
    else:
        save_training_state(folder, 1, {"a": np.zeros(2)}, 0.0, said)
    assert checkpoint_settings(folder) == json.loads(json.dumps(said))


def edit(folder, change, *, digest: str) -> None:
    """Changes the settings of a run, with its digest, without one, or behind its back."""
    path = folder / "config.json"
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))
    if digest == "recorded":
        run_dir.record_digest(folder, "config.json")
    elif digest == "absent":
        (folder / "digests.json").unlink()


def of_before(table: dict) -> None:
    """As a version wrote it in which three settings did not exist and one had another name."""
    del table["version"], table["latency_batch"], table["training"]["membrane"]
    del table["search"]["splice"]
    table["training"]["sparse_grad"] = table["training"].pop("sparse_gradient")
    table["member_chunk"] = 1  # was no setting of the execution


@pytest.mark.parametrize("digest", ["recorded", "absent"])
def test_a_run_of_before_a_setting_existed_or_had_its_name_is_resumed(digest, folder):
    whole = json.loads((folder / "config.json").read_text())
    edit(folder, of_before, digest=digest)
    now = resume(folder)
    assert now == whole | {"latency_batch": 256}  # the default
    assert now["version"] == settings_file.VERSION
    assert resume(folder) == now  # its digest is that of the new content


@pytest.mark.parametrize("kind", ["round", "training"])
def test_what_the_settings_lack_is_as_the_checkpoint_says(kind, folder):
    """Also where only the file was edited, so that it does not have its digest."""
    whole = json.loads((folder / "config.json").read_text())
    with_checkpoint(folder, kind)
    edit(folder, of_before, digest="stale")
    assert resume(folder) == whole


def test_a_missing_setting_is_not_taken_from_the_flags(folder):
    edit(folder, lambda table: table.pop("tolerance"), digest="recorded")
    assert "tolerance: 0.02 then, 0.25 now" in refusal(folder, "--tolerance", "0.25")
    with_checkpoint(folder, "round")
    assert "tolerance: 0.5 then, 0.25 now" in refusal(folder, "--tolerance", "0.25")
    assert resume(folder, "--tolerance", "0.5")["tolerance"] == 0.5


@pytest.mark.parametrize("with_one", [True, False])
def test_a_changed_value_is_not_taken_for_that_of_another_version(with_one, folder):
    if with_one:
        with_checkpoint(folder, "round")
    edit(folder, lambda table: table.update(tolerance=0.25), digest="stale")
    assert "config.json is damaged or was changed" in refusal(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda table: table.update(tolerence=1), "--tolerence: did you mean tolerance"),
        (lambda table: table.update(version=9), "has version 9"),
        (lambda table: table["search"].update(population="8"), "population .*'8'"),
        (lambda table: table.update(rounds=-1), "rounds -1"),
        (lambda table: table.update(preset="snez"), "unknown preset 'snez'"),
    ],
)
def test_settings_that_this_version_does_not_know_are_one_sentence(change, says, folder):
    edit(folder, change, digest="recorded")
    with pytest.raises(InputError, match=says) as refused:
        resume(folder)
    assert str(folder / "config.json") in str(refused.value)


def test_what_does_not_change_results_may_change_and_is_kept(folder):
    with_checkpoint(folder, "round")
    flags = ["--latency-batch", "4", "--training.checkpoint-epochs", "1", "--member-chunk", "3"]
    now = resume(folder, *flags)
    assert (now["latency_batch"], now["training"]["checkpoint_epochs"]) == (4, 1)
    assert resume(folder) == now
    assert "seed: 0 then, 1 now" in refusal(folder, "--seed", "1")


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_kill_while_settings_are_replaced_leaves_a_run_to_resume(after, folder, monkeypatch):
    """The three writes are those of the digests of both contents, of the content, of its digest."""
    done = []

    def write(real):
        def counted(*args):
            if len(done) == after:
                raise KeyboardInterrupt
            done.append(real(*args))

        return counted

    with monkeypatch.context() as patch:
        patch.setattr(run_dir, "write_json", write(run_dir.write_json))
        patch.setattr(run_dir, "write_atomic", write(run_dir.write_atomic))
        with pytest.raises(KeyboardInterrupt):
            resume(folder, "--latency-batch", "4")
    assert len(done) == after
    assert resume(folder)["latency_batch"] == (8 if after < 2 else 4)
    assert resume(folder, "--latency-batch", "5")["latency_batch"] == 5


def test_the_underscore_of_a_flag_is_the_same_flag(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "other").mkdir(parents=True)
    (tmp_path / "runs" / "other" / "config.json").write_text('{"tolerance": 0.125}')
    (tmp_path / "runs" / "latest").symlink_to("other")
    for flags in (["--run_dir", "run"], ["--run_dir=run"], ["--run-dir", "run"]):
        assert parse([*flags, "--resume"]).tolerance == 0.5
    assert parse(["--resume"]).tolerance == 0.125
    assert parse(["--resume", "--no-resume"]).tolerance == 0.02
    (tmp_path / "s.toml").write_text('run_dir = "run"\nresume = true\n')
    assert parse(["--config", "s.toml"]).tolerance == 0.5


def test_a_latest_that_is_no_link_is_neither_resumed_nor_replaced(monkeypatch, tmp_path, folder):
    monkeypatch.chdir(tmp_path)
    folder.rename(tmp_path / "runs")
    (tmp_path / "runs" / "latest").mkdir()
    assert "of its own" in str(run_dir.link_latest(tmp_path / "runs" / "new"))
    with pytest.raises(InputError, match=r"runs/latest is not the link.*--run-dir"):
        parse(["--resume"])
    (tmp_path / "runs" / "latest").rmdir()
    (tmp_path / "runs" / "latest").symlink_to("latest")
    with pytest.raises(InputError, match="cannot be used as a path"):
        parse(["--resume"])


def test_paths_under_the_home_folder_are_found(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert parse_config.run_folder("~/run") == folder
    assert parse(["--run-dir=~/run", "--resume"]).tolerance == 0.5
    for path in ("~nosuchuser/x", "a\0b", "\ud800", "x" * 5000):
        with pytest.raises(InputError, match="cannot be used as a path"):
            parse_config.run_folder(path)


def test_a_directory_that_was_replaced_is_not_written_to(folder):
    with opened(folder):
        run_dir.check_in_place(folder)
        (folder / ".lock").unlink()  # by somebody who took it for a leftover
        run_dir.check_in_place(folder)
        folder.rename(folder.with_name("moved"))
        with pytest.raises(InputError, match="was deleted or moved"):
            run_dir.check_in_place(folder)
        folder.mkdir()
        with pytest.raises(InputError, match="was deleted or moved"):
            run_dir.check_in_place(folder)
        (folder / ".lock").write_text("process 1 on elsewhere\n")
        (folder / "config.json").write_text("{}")
        with pytest.raises(InputError, match=r"another run \(process 1 on elsewhere\)"):
            run_dir.check_in_place(folder)
