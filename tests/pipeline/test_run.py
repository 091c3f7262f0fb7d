"""The main job as a user runs it: one command, killed and resumed, or given bad input."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from ccsrp_jax import cli
from ccsrp_jax.networks import serialization
from ccsrp_jax.pipeline import run_dir as rundir
from ccsrp_jax.pipeline.archive import choose
from ccsrp_jax.pipeline.config import settings
from ccsrp_jax.pipeline.parse_config import parse
from ccsrp_jax.utils.errors import InputError
from ccsrp_jax.utils.locks import locked

ROOT = Path(__file__).parents[2]
SLOW = pytest.mark.slow
TINY = [
    *("--train-images", "64", "--search-images", "32", "--test-images", "32"),
    *("--time-steps", "2", "--rounds", "2", "--target-macs", "0", "--batch-size", "32"),
    *("--latency-batch", "8", "--tolerance", "1", "--training.epochs", "2"),
    *("--training.finetune-epochs", "1", "--training.batch-size", "32"),
    *("--training.attack-steps", "1", "--attack.search-steps", "1", "--attack.test-steps", "2"),
    *("--attack.test-restarts", "1", "--search.population", "2", "--search.generations", "2"),
    *("--attack.suite", "pgd", "--training.checkpoint-epochs", "1"),
]


def start(run_dir: Path, cache: Path, *flags: str) -> subprocess.Popen:
    """The job in a process of its own; a shared compilation cache keeps the test short."""
    command = [sys.executable, "experiments/ccsrp.py", *TINY, "--run-dir", str(run_dir), *flags]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | cache_settings(cache),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def cache_settings(cache: Path) -> dict[str, str]:
    return {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def kill_when(process: subprocess.Popen, reached) -> None:
    """SIGKILL as soon as `reached()`; the process must not end before."""
    deadline = time.monotonic() + 120
    while not reached():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the job did not get that far"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One uninterrupted run: its directory and the compilation cache that it filled."""
    folder = tmp_path_factory.mktemp("job")
    flags = "--tensorboard", "--profile", "1"
    process = start(folder / "whole", folder / "cache", *flags)
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    return folder / "whole", folder / "cache", output


def test_run_writes_what_it_promises(finished):
    run_dir, _, output = finished
    names = {path.name for path in run_dir.iterdir()}
    assert names >= {
        *("config.json", "metrics.jsonl", "archive.jsonl", "summary.json", "splits.json"),
        *("report.html", "tradeoff.png", "filters.png", "training.png", "pruned.safetensors"),
        *("robustness.png", "suite-dense.json", "suite-pruned.json"),
    }
    assert not (run_dir.parent / "latest").exists()  # the link is for runs/ alone
    summary = json.loads((run_dir / "summary.json").read_text())
    keys = {"accuracy", "robust_accuracy", "pgd_accuracy", "reliable"}
    keys |= {"macs", "params", "synops", "energy_nj", "latency_ms"}
    assert summary["dense"].keys() == summary["pruned"].keys() == keys
    for name in ("dense", "pruned"):
        record = summary["robustness"][name]
        assert record["robust_accuracy"] == summary[name]["robust_accuracy"]
        assert record["headline"] in output
    assert summary.keys() >= {
        *("dataset", "model", "time_steps", "seed", "seconds", "attack", "run_dir"),
        *("versions", "device"),
    }
    assert summary["pruned"]["macs"] < summary["dense"]["macs"]
    archive = rows(run_dir / "archive.jsonl")
    assert [row["round"] for row in archive] == [0, 1, 2]
    assert archive[0]["shared_gap"] is None
    for row in archive[1:]:
        assert row["shared_gap"] == row["shared_accuracy"] - row["white_box_accuracy"]
    assert not [name for name in names if "partial" in name]
    assert "\x1b" not in output and "report.html" in output  # plain where it is no terminal
    assert len(output.splitlines()) < 40


def test_chosen_network_is_the_file_beside_the_report(finished):
    run_dir, _, _ = finished
    summary = json.loads((run_dir / "summary.json").read_text())
    architecture, variables = serialization.load(run_dir / "pruned.safetensors")
    sizes = [np.size(leaf) for leaf in _leaves(variables["params"])]
    assert sum(sizes) == summary["pruned"]["params"]
    [chosen] = [row for row in rows(run_dir / "archive.jsonl") if row["chosen"]]
    assert chosen["macs"] == summary["pruned"]["macs"]
    assert architecture.time_steps == summary["time_steps"]
    found = serialization.load_with_provenance(run_dir / "pruned.safetensors")
    origin, splits = found.provenance or {}, json.loads((run_dir / "splits.json").read_text())
    assert (origin["dataset"], origin["seed"]) == ("digits", summary["seed"])
    assert origin["train_and_test_sha256"] == splits["train_and_test_sha256"]


def _leaves(tree):
    return [leaf for v in tree.values() for leaf in (_leaves(v) if isinstance(v, dict) else [v])]


@pytest.mark.parametrize("chosen", [(0, 3, 5), pytest.param((1, 2, 4, 6, 7), marks=SLOW)])
def test_killed_and_resumed_run_is_bit_identical(chosen, finished, tmp_path):
    whole, cache, _ = finished
    run_dir = tmp_path / "killed[0.1]*\\?"  # nothing in it is a pattern
    metrics = run_dir / "metrics.jsonl"

    def stages(stage: str, number: int) -> bool:
        found = [row for row in _rows(metrics) if row["stage"] == stage]
        return any(row.get("round", 0) == number for row in found)

    points = [
        lambda: stages("train", 0),  # in training
        lambda: (run_dir / "training.msgpack").exists(),  # right after its checkpoint
        lambda: (run_dir / "checkpoints" / "0.msgpack").exists(),  # right after the first
        lambda: stages("search", 1),
        lambda: stages("finetune", 1),
        lambda: any((run_dir / "checkpoints").glob("1*")),  # while or after it is written
        lambda: stages("round", 2),
        lambda: (run_dir / "summary.json").exists(),  # before the report
    ]
    resume = []
    for reached in (points[number] for number in chosen):
        kill_when(start(run_dir, cache, *resume), reached)
        resume = ["--resume"]
    process = start(run_dir, cache, *resume)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors

    assert_same(run_dir, whole)


def assert_same(run_dir: Path, whole: Path) -> None:
    """Both runs have the same results, times apart, and nothing is left over."""
    for name in ("archive.jsonl", "config.json", "splits.json"):
        assert (run_dir / name).read_text() == (whole / name).read_text()
    for path in [whole / "pruned.safetensors", *sorted((whole / "networks").iterdir())]:
        assert (run_dir / path.relative_to(whole)).read_bytes() == path.read_bytes()

    def timeless(path):
        timed = re.compile("second|step_ms|share_of_peak")
        return [{k: v for k, v in row.items() if not timed.search(k)} for row in rows(path)]

    assert timeless(run_dir / "metrics.jsonl") == timeless(whole / "metrics.jsonl")
    assert _names(run_dir) == _names(whole)  # nothing is left over
    assert (run_dir / "report.html").exists()


INTERRUPTED = """
import os, signal, sys
from ccsrp_jax import cli
from ccsrp_jax.pipeline import checkpoints, stages

log, read = stages.Run.log, checkpoints._read

class Dropped:
    def __del__(self):  # Python swallows what is raised here
        os.kill(os.getpid(), signal.SIGTERM)

def in_training(self, row):
    log(self, row)
    if row["stage"] == "train" and row["epoch"] == 0:
        Dropped()

def in_checkpoint(*args):
    os.kill(os.getpid(), signal.SIGINT)
    return read(*args)

if sys.argv[1] == "training":
    stages.Run.log = in_training
else:
    checkpoints._read = in_checkpoint
sys.exit(cli.main(sys.argv[2:]))
"""


def test_an_interrupted_run_is_checkpointed_and_goes_on_as_if_it_had_not_been(finished, tmp_path):
    """In a callback of training between two checkpoints, and in a checkpoint."""
    whole, cache, _ = finished
    run_dir = tmp_path / "run"
    cases = [
        (["training", *TINY, "--training.checkpoint-epochs", "10"], "SIGTERM", 143),
        (["checkpoint", *TINY, "--resume"], "SIGINT", 130),
    ]
    for flags, name, status in cases:
        done = subprocess.run(
            [sys.executable, "-c", INTERRUPTED, *flags, "--run-dir", str(run_dir)],
            cwd=ROOT,
            env=os.environ | cache_settings(cache),
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == status, done.stderr
        assert done.stderr.startswith(f"interrupted ({name}); --resume continues")
        assert done.stderr.count("\n") == 1
    assert "resumed training after epoch 1" in done.stdout
    assert (run_dir / "checkpoints" / "0.msgpack").exists()
    process = start(run_dir, cache, "--resume")
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert "resumed after training" in output
    assert_same(run_dir, whole)


VARYING = ("tensorboard", "profile")  # names in there are drawn


def _names(run_dir: Path) -> set[str]:
    paths = (path.relative_to(run_dir).as_posix() for path in run_dir.rglob("*"))
    return {path for path in paths if not path.startswith(VARYING)}


def _rows(path: Path) -> list[dict]:
    """The complete rows of a file that is being written."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def test_a_run_can_begin_with_a_trained_network(finished, tmp_path):
    whole, cache, _ = finished
    dense = whole / "networks" / "round00.safetensors"
    process = start(tmp_path / "run", cache, "--dense", str(dense), "--rounds", "0")
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert (tmp_path / "run" / "pruned.safetensors").read_bytes() == dense.read_bytes()
    assert not (tmp_path / "run" / "metrics.jsonl").read_text()


def test_a_network_for_other_data_is_refused(finished, capsys, tmp_path):
    dense = finished[0] / "networks" / "round00.safetensors"
    images, labels = np.zeros((30, 6, 6, 1), np.uint8), np.arange(30) % 3
    data = tmp_path / "other.npz"
    np.savez(data, x_train=images, y_train=labels, x_test=images, y_test=labels)
    flags = ("--dataset", str(data), "--dense", str(dense), "--run-dir", str(tmp_path / "run"))
    assert cli.main([*TINY[4:], *flags]) == 2
    assert "(8, 8, 1) and 10 classes (direct)" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_metrics_say_how_fast_training_went(finished):
    trained = [row for row in rows(finished[0] / "metrics.jsonl") if row["stage"] == "train"]
    for row in trained:
        assert row["images_per_second"] == pytest.approx(32e3 / row["step_ms"])
        assert row["share_of_peak"] > 0
    assert [path for path in (finished[0] / "tensorboard").iterdir() if path.stat().st_size > 500]


def test_without_a_terminal_a_line_an_epoch_and_a_round_says_how_far_it_is(finished):
    output = finished[2]
    for number in (1, 2):
        found = re.findall(rf"training: epoch {number} of 2, loss .*images a second.*", output)
        assert len(found) == 1 and (" left" in found[0]) == (number == 1)
        assert output.count(f"round {number}: fine-tuning: epoch 1 of 1") == 1
        assert len(re.findall(rf"round {number} of at most 2: \d+ candidates in", output)) == 1


def test_a_profile_of_some_steps_is_written(finished):
    assert list((finished[0] / "profile").rglob("*.xplane.pb"))


def test_latest_points_at_the_newest_run(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(name)
        rundir.link_latest(tmp_path / name)
        assert (tmp_path / "latest" / "summary.json").read_text() == name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "latest", "second"]


def refused(capsys, *flags: str) -> str:
    """The one sentence with which the job refuses; it exits with status 2."""
    assert cli.main(list(flags)) == 2
    captured = capsys.readouterr()
    message = captured.err.strip()
    assert message.startswith("error: ") and "\n" not in message, message
    assert "Traceback" not in captured.err + captured.out
    return message


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.toml", "rounds = ", "a.toml is not valid"),
        ("a.json", "[1, 2]", "no table of settings"),
        ("a.json", "null", "no table of settings"),
        ("a.toml", "rounds = [1]", r"setting rounds of the config file is \[1\]"),
        ("a.toml", "round = 1", "Unrecognized options: --round"),
        ("a.toml", 'rounds = "few"', "few"),
    ],
)
def test_bad_config_file_is_one_sentence(name, text, says, capsys, tmp_path):
    (tmp_path / name).write_text(text)
    message = refused(capsys, "--config", str(tmp_path / name), "--run-dir", str(tmp_path / "r"))
    assert re.search(says, message), message


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--dataset", "cifar1"], "cifar1.*cifar10"),
        (["--dataset", "mnist", "--data-dir", "nowhere"], "nowhere"),
        (["--dataset", "none.npz"], "none.npz"),
        (["--model", "smal"], "unknown model 'smal'.*small"),
        (["--search.strategy", "SNEZ"], "unknown strategy 'SNEZ'.*SNES"),
        (["--preset", "faithfull"], "unknown preset 'faithfull'.*faithful"),
        (["--surrogate.name", "atn"], "unknown surrogate 'atn'.*atan"),
        (["--attack.eps", "-0.1"], "eps -0.1"),
        (["--search.keep-floor", "0"], "keep_floor 0.0"),
        (["--search.keep-floor", "1.5"], "keep_floor 1.5"),
        (["--search.population", "0"], "population 0"),
        (["--search.population", "1"], "population 1"),
        (["--time-steps", "0"], "time_steps 0"),
        (["--rounds", "-1"], "rounds -1"),
        (["--training.epochs", "-1"], "epochs -1"),
        (["--training.learning-rate", "nan"], "learning_rate nan"),
        (["--training.clean-weight", "2"], "clean_weight 2.0"),
        (["--training.attack-steps", "0"], "attack_steps 0"),
        (["--attack.eps", "nan"], "eps nan"),
        (["--surrogate.width", "inf"], "width inf"),
        (["--search.robust-weight", "nan"], "robust_weight nan"),
        (["--search.strategy", "SV_CMA_ES"], "SV_CMA_ES.*argument"),
        (["--search.strategy", "Open_ES", "--search.population", "5"], "Open_ES.*even"),
        (["--seed", str(2**40)], "seed 1099511627776"),
        (["--seed", "-1"], "seed -1"),
        (["--config", "none.toml"], "none.toml"),
        (["--search.decoder", "top"], "invalid choice 'top'.*topk"),
        (["--foo", "3"], "Unrecognized options: --foo"),
        (["--rounds", "many"], "invalid literal.*many"),
        (["--resume"], "no run to resume"),
        (["--rounds", "1" + "0" * 400], "rounds 1000.*out of range"),
        (["--dataset", "a\0b.npz"], "cannot be used as a path"),
        (["--dataset", "a\nb.npz"], r"a\\nb.npz"),
        (["--dense", "~nosuchuser/x"], "nosuchuser.*cannot be used as a path"),
        (["--dense", "\ud800"], r"\\ud800.*cannot be used as a path"),
        (["--dense="], "dense is empty"),
        (["--config="], "config is empty"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(flags, says, capsys, tmp_path):
    run_dir = tmp_path / "run"
    message = refused(capsys, *flags, "--run-dir", str(run_dir))
    assert re.search(says, message), message
    assert not run_dir.exists()


def test_what_does_not_fit_into_memory_is_refused_before_training(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=500_000))
    assert cli.main([*TINY, "--batch-size", "256", "--run-dir", str(tmp_path / "big")]) == 2
    message = capsys.readouterr().err
    assert re.search(r"use a batch_size of \d+ or less", message)
    assert message.count("\n") == 1 and not list(tmp_path.glob("big/metrics*"))


def test_another_runs_directory_is_refused(finished, capsys):
    run_dir = finished[0]
    before = {path: path.stat().st_mtime_ns for path in run_dir.iterdir()}
    assert "--resume" in refused(capsys, *TINY, "--run-dir", str(run_dir))
    message = refused(capsys, *TINY, "--run-dir", str(run_dir), "--resume", "--attack.eps", "0.2")
    assert "attack.eps: 0.0625 then, 0.2 now" in message
    assert before == {path: path.stat().st_mtime_ns for path in run_dir.iterdir()}


def state_of(run_dir: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}


def test_a_run_that_is_in_use_is_refused(finished, capsys, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(finished[0], run_dir)
    with locked(run_dir):
        before = state_of(run_dir)
        assert "in use" in refused(capsys, "--run-dir", str(run_dir), "--resume")
        assert state_of(run_dir) == before


def test_a_run_whose_settings_are_gone_is_not_continued_under_others(finished, capsys, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(finished[0], run_dir)
    (run_dir / "config.json").unlink()
    before = state_of(run_dir)
    for flags in ([], ["--resume"], ["--seed", "3"]):
        message = refused(capsys, *TINY, "--run-dir", str(run_dir), *flags)
        assert "metrics.jsonl" in message and "choose another --run-dir" in message
    assert state_of(run_dir) == before


def test_settings_put_in_place_of_others_are_not_taken_for_those_of_the_checkpoints(
    finished, capsys, tmp_path
):
    run_dir = tmp_path / "run"
    shutil.copytree(finished[0], run_dir)
    (run_dir / "digests.json").unlink()
    path = run_dir / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tolerance": 0.5}))
    message = refused(capsys, "--run-dir", str(run_dir), "--resume")
    assert (
        "checkpoints/2.msgpack is of a run with other settings" in message
        and "tolerance" in message
    )


@pytest.mark.parametrize(
    "name", ["networks/round00.safetensors", "networks/round01.safetensors", "suite-dense.json"]
)
def test_a_flipped_bit_in_what_a_resumed_run_reads_is_refused(name, finished, capsys, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(finished[0], run_dir)
    data = bytearray((run_dir / name).read_bytes())
    place = data.find(b'"overstep": 0') + len(b'"overstep": ') if "suite" in name else -1
    data[place] ^= 1
    (run_dir / name).write_bytes(data)
    assert f"{name} is damaged" in refused(capsys, "--run-dir", str(run_dir), "--resume")


def test_a_finished_run_can_be_resumed_on_other_devices_and_says_so(finished, capsys, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(finished[0], run_dir)
    (run_dir / "devices.json").write_text('{"devices": ["8 x gpu"]}')
    (run_dir / "training.msgpack").write_text("left by a kill right after the checkpoint")
    bad = '{"stage": "train"}\nnot a row\n'
    metrics = run_dir / "metrics.jsonl"
    metrics.write_text(bad + metrics.read_text())
    assert cli.main(["--run-dir", str(run_dir), "--resume"]) == 0
    output = capsys.readouterr().out
    assert "resumed on 1 x cpu, after 8 x gpu" in output
    assert "2 damaged lines, which are now in metrics.jsonl.damaged" in output
    assert "metrics.jsonl is not as the run left it" in output
    assert sorted((run_dir / "metrics.jsonl.damaged").read_text().split("\n")) == sorted(
        bad.split("\n")
    )
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["devices"] == ["8 x gpu", "1 x cpu"]
    for name in ("metrics.jsonl", "archive.jsonl"):
        assert (run_dir / name).read_text() == (finished[0] / name).read_text()
    assert not (run_dir / "training.msgpack").exists()


def test_resume_needs_no_flag_but_the_place(finished, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(finished[0], run_dir)
    again = parse(["--run-dir", str(run_dir), "--resume"])
    assert settings(again) == settings(parse([*TINY, "--run-dir", str(run_dir)]))


@SLOW
def test_resume_with_other_data_is_refused(capsys, tmp_path, digits):
    data = tmp_path / "own.npz"
    run_dir = tmp_path / "run"
    flags = ["--dataset", str(data), "--run-dir", str(run_dir), "--rounds", "0"]
    for shift in (0, 1):
        images = np.roll(digits.train.images[:200], shift, 0)
        arrays = {"x_train": images, "x_test": images, "y_train": digits.train.labels[:200]}
        np.savez(data, **arrays, y_test=digits.train.labels[:200])
        if shift == 0:
            assert cli.main([*TINY, *flags, "--training.epochs", "0"]) == 0
            capsys.readouterr()
    assert "the data is not what" in refused(capsys, "--run-dir", str(run_dir), "--resume")


def test_truncated_checkpoint_is_refused(finished, capsys, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(finished[0], run_dir)
    path = run_dir / "checkpoints" / "2.msgpack"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    message = refused(capsys, *TINY, "--run-dir", str(run_dir), "--resume")
    assert "damaged" in message and str(path) in message


def test_a_damaged_state_of_training_is_refused(tmp_path):
    like = {"a": np.ones(3)}
    rundir.save_training_state(tmp_path, 4, {"a": np.arange(3.0)}, 1.5)
    done, state, seconds = rundir.load_training_state(tmp_path, like)
    assert (done, state["a"].tolist(), seconds) == (4, [0.0, 1.0, 2.0], 1.5)
    path = tmp_path / "training.msgpack"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match="delete it to train anew"):
        rundir.load_training_state(tmp_path, like)
    rundir.delete_training_state(tmp_path)
    assert rundir.load_training_state(tmp_path, like) is None


def test_disk_that_cannot_be_written_is_refused(capsys, tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    assert "file" in refused(capsys, *TINY, "--run-dir", str(blocker / "run"))


def test_disk_that_fills_up_ends_in_one_sentence(finished, tmp_path):
    """A limit on the size of files stands in for a full disk."""
    limit = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000)); "
    flags = [*TINY, "--run-dir", str(tmp_path / "run")]
    run = f"from ccsrp_jax import cli; sys.exit(cli.main({flags}))"
    cache = {"JAX_COMPILATION_CACHE_DIR": str(finished[1])}
    done = subprocess.run(
        [sys.executable, "-c", limit + run],
        cwd=ROOT,
        env=os.environ | cache,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and "error: " in done.stderr
    assert "make room" in done.stderr


def test_config_file_and_flags_give_the_same_run(tmp_path):
    flags = ["--preset", "faithful", "--rounds", "4", "--attack.eps", "0.05", "--neuron.tau", "3"]
    flags.append("--training.no-adversarial")
    toml = tmp_path / "settings.toml"
    toml.write_text(
        'preset = "faithful"\nrounds = 4\n[attack]\neps = 0.05\n[neuron]\ntau = 3\n'
        "[training]\nadversarial = false\n"
    )
    data = {"preset": "faithful", "rounds": 4, "attack": {"eps": 0.05}, "neuron": {"tau": 3}}
    (tmp_path / "settings.json").write_text(json.dumps(data | {"training": {"adversarial": False}}))
    by_flags = parse(flags)
    for name in ("settings.toml", "settings.json"):
        by_file = parse(["--config", str(tmp_path / name)])
        assert by_file.config.endswith(name)
        assert by_flags == type(by_flags)(**(vars(by_file) | {"config": None}))
    assert parse(["--config", str(toml), "--rounds", "5"]).rounds == 5
    assert by_flags.search.strategy == "BitFlip" and by_flags.recipe.adversarial is None


def test_choice_is_the_cheapest_network_within_the_tolerance():
    archive = [
        {"round": 0, "accuracy": 0.98, "robust_accuracy": 0.80, "macs": 100},
        {"round": 1, "accuracy": 0.98, "robust_accuracy": 0.79, "macs": 70},
        {"round": 2, "accuracy": 0.97, "robust_accuracy": 0.81, "macs": 50},
        {"round": 3, "accuracy": 0.99, "robust_accuracy": 0.70, "macs": 30},
    ]
    assert choose(archive, 0.015) == 2
    assert choose(archive, 0.0) == 0
    assert choose(archive, 0.2) == 3
