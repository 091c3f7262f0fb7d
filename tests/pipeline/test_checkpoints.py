"""A checkpoint is complete, as it was saved, and of this run, or it is refused in a sentence."""

import gc
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccsrp_jax.coevolution.settings import PRESETS
from ccsrp_jax.pipeline import checkpoints
from ccsrp_jax.pipeline.checkpoints import (
    Checkpoints,
    check_settings,
    load_training_state,
    save_training_state,
    settings_changes,
)
from ccsrp_jax.pipeline.config import Config, settings
from ccsrp_jax.utils.digests import sha256_files
from ccsrp_jax.utils.errors import InputError

ROOT = Path(__file__).parents[2]
STATE = {"a": jnp.arange(3.0), "b": {"c": jnp.ones((2, 2), jnp.bfloat16)}, "d": jnp.array([True])}


def same(a, b) -> bool:
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y) and x.dtype == y.dtype for x, y in leaves)


BOTH = ["1.msgpack", "2.msgpack"]
NAMES = [
    *("lr[0.1]", "a\\b", "a*b", "a?b", "[!a]", "**", "{a,b}", "$HOME", "a b", "a#b", "a%20b"),
    *("a:b", "größe", "a\nb", "a'b\"c", "-rf", "a|b", "[", "]", "a" * 200, "gs:", "~", "a&b=c;d"),
    os.fsdecode(b"a\xffb"),
]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_of_a_directory_will_do(name, tmp_path):
    folder = tmp_path / name / "run"
    for step in range(3):
        Checkpoints(folder).save(step, STATE, {"row": step})
    step, state, record = Checkpoints(folder).latest(STATE)
    assert (step, record) == (2, {"row": 2}) and same(state, STATE)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == BOTH
    save_training_state(folder, 4, STATE, 1.0)
    assert same(load_training_state(folder, STATE)[1], STATE)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    for step in range(2):
        Checkpoints(folder).save(step, STATE, {"row": step})
    return folder


def save_as_before(run_dir: Path, step: int, *, digests: bool = True) -> Path:
    """A checkpoint as earlier versions wrote it, with orbax."""
    import orbax.checkpoint as ocp

    record = {"row": step} | ({"digests": True} if digests else {})
    args = {"state": ocp.args.StandardSave(STATE), "record": ocp.args.JsonSave(record)}
    parts = {"state": ocp.StandardCheckpointHandler(), "record": ocp.JsonCheckpointHandler()}
    path = run_dir / "checkpoints" / str(step)
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler(**parts)) as checkpointer:
        checkpointer.save(path, ocp.args.Composite(**args))
    if digests:
        (path / "digests.json").write_text(json.dumps(sha256_files(path)))
    return path


@pytest.fixture(scope="module")
def saved_before(tmp_path_factory):
    folder = tmp_path_factory.mktemp("before")
    for step in range(2):
        save_as_before(folder, step)
    return folder


def files(folder) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


HARM = ["flip", "cut", "empty", "grow"]


@pytest.mark.parametrize(
    ("harm", "kind"),
    [*((harm, "saved") for harm in HARM), *((harm, "saved_before") for harm in [*HARM, "delete"])],
)
def test_any_damage_to_a_checkpoint_is_noticed_and_the_one_before_offered(
    harm, kind, request, tmp_path
):
    original = request.getfixturevalue(kind)
    name = {"saved": "1.msgpack", "saved_before": "1"}[kind]
    count = len(files(original / "checkpoints" / name)) or 1
    assert count > 4 or kind == "saved"
    for number in range(count):
        folder = tmp_path / str(number)
        shutil.copytree(original, folder)
        path = [*files(folder / "checkpoints" / name), folder / "checkpoints" / name][number]
        data = bytearray(path.read_bytes())
        if harm == "delete":
            path.unlink()
        elif data or harm == "grow":
            if harm == "flip":
                data[len(data) // 2] ^= 1 << number % 8
            ends = {"cut": len(data) // 2, "empty": 0}
            path.write_bytes(data[: ends.get(harm)] + (b"\0" if harm == "grow" else b""))
        else:
            continue
        says = rf"checkpoints/{name} is damaged.*move it elsewhere"
        with pytest.raises(InputError, match=says) as told:
            Checkpoints(folder).latest(STATE)
        assert "\n" not in str(told.value) and "from 0, the one before it" in str(told.value)
        shutil.move(folder / "checkpoints" / name, folder / "elsewhere")
        step, state, record = Checkpoints(folder).latest(STATE)
        assert (step, record) == (0, {"row": 0}) and same(state, STATE)
        Checkpoints(folder).save(1, STATE, {"row": 1})
        assert Checkpoints(folder).latest(STATE)[0] == 1


def test_a_file_added_to_a_checkpoint_of_before_is_noticed(saved_before, tmp_path):
    shutil.copytree(saved_before, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "1" / "state" / "more").write_text("")
    with pytest.raises(InputError, match="damaged"):
        Checkpoints(tmp_path / "run").latest(STATE)


@pytest.mark.parametrize("kind", ["saved", "saved_before"])
def test_a_state_of_another_network_is_refused_and_no_read_left_unfinished(
    kind, request, monkeypatch
):
    printed_later = []
    monkeypatch.setattr(sys, "unraisablehook", printed_later.append)
    folder = request.getfixturevalue(kind)
    for name, other in {"a": jnp.arange(4.0), "b": {"c": jnp.ones((2, 3))}}.items():
        with pytest.raises(InputError, match=rf"its {name}[.c]* has shape .* expected"):
            Checkpoints(folder).latest(STATE | {name: other})
        gc.collect()
    assert not printed_later


@pytest.mark.parametrize("digests", [True, False])
def test_a_run_of_before_is_read_and_goes_on_in_the_one_format(digests, tmp_path):
    for step in (2, 3):
        save_as_before(tmp_path, step, digests=digests)
    kept = Checkpoints(tmp_path)
    step, state, record = kept.latest(STATE)
    assert (step, record) == (3, {"row": 3}) and same(state, STATE)
    kept.save(3, STATE, {"row": "again"})
    assert kept.latest(STATE)[2] == {"row": "again"}
    kept.save(4, STATE, {"row": 4})
    kept.save(5, STATE, {"row": 5})
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir() if path.is_file())
    assert kept.latest(STATE)[0] == 5 and names == ["4.msgpack", "5.msgpack"]


def test_what_killed_runs_left_is_deleted(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    left = ["2.partial", "0.deleted", "2.orbax-checkpoint-tmp-7", "2.partial.orbax-checkpoint-tmp"]
    for name in left:
        (folder / name / "state").mkdir(parents=True)
    (folder / "4.msgpack.partial").write_text("")
    for step in (2, 3):
        shutil.copy(folder / "1.msgpack", folder / f"{step}.msgpack")
    (folder / "notes").write_text("somebody's")
    (folder / "7").write_text("somebody's")
    assert Checkpoints(tmp_path / "run").latest(STATE)[0] == 3
    names = ["2.msgpack", "3.msgpack", "7", "notes"]
    assert sorted(path.name for path in folder.iterdir()) == names


def test_a_checkpoint_that_reads_back_otherwise_is_not_kept(monkeypatch, tmp_path):
    kept = Checkpoints(tmp_path)
    kept.save(0, STATE, {})
    wrong = STATE | {"a": jnp.zeros(3)}
    monkeypatch.setattr(checkpoints, "_read", lambda *args: (wrong, {}))
    with pytest.raises(OSError, match="read back"):
        kept.save(1, STATE, {})
    monkeypatch.undo()
    assert kept.latest(STATE)[0] == 0
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["0.msgpack"]


FULL = """
import resource, sys
from pathlib import Path
import jax.numpy as jnp
from ccsrp_jax.cli import guard
from ccsrp_jax.pipeline.checkpoints import Checkpoints
kept = Checkpoints(Path(sys.argv[1]))
state = {str(i): jnp.arange(100_000.0) for i in range(3)}
kept.save(0, state, {})
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
sys.exit(guard(lambda: kept.save(1, state, {})))
"""


@pytest.mark.parametrize("limit", [0, 100, 9000, 200_000])
def test_a_disk_that_fills_up_in_a_checkpoint_is_one_sentence(limit, tmp_path):
    """A limit on the size of files stands in for a full disk."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path), str(limit)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert "make room" in done.stderr and not done.stdout
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["0.msgpack"]


def test_a_directory_deleted_meanwhile_is_not_made_anew(tmp_path):
    kept = Checkpoints(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(OSError, match="No such file"):
        kept.save(0, STATE, {})
    assert not list(tmp_path.iterdir())


def test_every_flipped_bit_in_the_state_of_training_is_noticed(tmp_path):
    state = {"a": np.arange(3.0), "n": np.int32(3)}
    save_training_state(tmp_path, 4, state, 1.5, {"seed": 1})
    path = tmp_path / "training.msgpack"
    whole = path.read_bytes()
    for place in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(InputError, match=r"training\.msgpack is damaged"):
            load_training_state(tmp_path, state)


def test_a_state_of_training_of_before_there_were_digests_is_read(tmp_path):
    from flax import serialization

    kept = {"done": 2, "seconds": 0.5, "state": {"a": np.arange(3.0)}}
    (tmp_path / "training.msgpack").write_bytes(serialization.to_bytes(kept))
    done, state, _ = load_training_state(tmp_path, {"a": np.ones(3)}, {"seed": 1})
    assert done == 2 and state["a"].tolist() == [0, 1, 2]
    with pytest.raises(InputError, match=r"its a has shape \(3,\).*expected.*\(4,\)"):
        load_training_state(tmp_path, {"a": np.ones(4)})


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    state, settings = {"a": np.arange(3.0)}, {"seed": 1, "attack": {"eps": 0.1}}
    save_training_state(tmp_path, 4, state, 1.5, settings)
    assert load_training_state(tmp_path, state, settings)
    now = {"seed": 1, "attack": {"eps": 0.2}}
    with pytest.raises(InputError, match=r"other settings \(attack.eps: 0.1 then, 0.2 now\)"):
        load_training_state(tmp_path, state, now)
    check_settings(tmp_path, None, now)  # an old one does not say
    check_settings(tmp_path, json.loads(json.dumps({"levels": (1, 2)})), {"levels": (1, 2)})


@pytest.mark.parametrize("preset", ("snes", "faithful"))
def test_a_setting_that_an_earlier_version_did_not_have_was_at_its_default(preset):
    now = json.loads(json.dumps(settings(Config(preset=preset, search=PRESETS[preset]))))
    before = json.loads(json.dumps(now))
    for section, name in (("training", "certified"), ("search", "objective"), (None, "noise")):
        (before[section] if section else before).pop(name)
    assert settings_changes(before, now) == []
    now["training"]["certified"] = 0.5
    assert settings_changes(before, now) == ["training.certified: 0.0 then, 0.5 now"]
