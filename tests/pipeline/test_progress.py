"""What a long run tells of its progress: lines, TensorBoard's curves, rows for other trackers."""

import io
import json
from types import SimpleNamespace

import jax
import pytest
from rich.console import Console
from workers.trainer import SMALL

from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.pipeline import stages, tensorboard
from ccsrp_jax.pipeline.stages import Run, epoch_line
from ccsrp_jax.training.recipe import Recipe
from ccsrp_jax.training.trainer import Epoch
from ccsrp_jax.utils.console import Terminal, duration
from ccsrp_jax.utils.profiling import StepProfile


def test_curves_go_on_from_round_to_round_without_gaps(monkeypatch, tmp_path):
    points = []

    class Recorder:
        def __init__(self, folder):
            assert folder == str(tmp_path / "tensorboard")

        def add_scalar(self, name, value, step):
            points.append((name, step))

        def flush(self):
            pass

    monkeypatch.setattr(tensorboard, "summary_writer", lambda: Recorder)
    writer = tensorboard.TensorBoardWriter(tmp_path, {"finetune": 3, "search": 2})
    for epoch in range(4):
        writer.add({"stage": "train", "epoch": epoch, "loss": 1.0})
    for number in (1, 2):
        for generation in range(2):
            row = {"stage": "search", "round": number, "group": "conv1", "generation": generation}
            writer.add(row | {"best_fitness": 0.5})
        for epoch in range(3):
            writer.add({"stage": "finetune", "round": number, "epoch": epoch, "loss": 1.0})
        writer.add({"stage": "round", "round": number, "evaluations": 8})
    steps = {name: [step for each, step in points if each == name] for name, _ in points}
    assert steps == {
        "train/loss": [0, 1, 2, 3],
        "search/conv1/best_fitness": [0, 1, 2, 3],
        "finetune/loss": [0, 1, 2, 3, 4, 5],
        "round/evaluations": [1, 2],
    }


def test_every_row_of_the_metrics_is_given_to_another_tracker(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    rows = []
    fields = dict.fromkeys(Run._fields) | {"folder": tmp_path, "on_metrics": rows.append}
    for number in range(2):
        Run(**fields).log({"stage": "train", "epoch": number})
    written = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert rows == [json.loads(line) for line in written] and len(rows) == 2


def test_the_line_of_an_epoch_says_how_much_time_is_left():
    epoch = Epoch(4, 0.25, 0.5, 0.1, 20.0, 1600.4)
    line = epoch_line("training", epoch, 5, 8, seconds=70.0)
    assert line == (
        "training: epoch 5 of 8, loss 0.250  accuracy 0.500, 1600 images a second, 3 min 30 s left"
    )
    assert "left" not in epoch_line("training", epoch, 8, 8, seconds=70.0)


def test_catastrophic_overfitting_is_said_once_and_logged_always(monkeypatch, tmp_path, untyped):
    monkeypatch.setattr(stages.throughput, "peak_macs", lambda *arguments: 1.0)
    (tmp_path / "config.json").write_text("{}")
    out, rows = io.StringIO(), []
    fields = dict.fromkeys(Run._fields) | {"folder": tmp_path, "on_metrics": rows.append}
    fields |= {"classifier": Classifier(SMALL)}
    fields |= {"data": SimpleNamespace(train=SimpleNamespace(labels=range(8)))}
    job = Run(**fields | {"terminal": Terminal(Console(file=out, width=400))})
    with stages.training_stage(job, Recipe(4, 8), "training", {}) as (on_epoch, _):
        for number, seen in enumerate((None, False, True, True)):
            figures = (None, None) if seen is None else (0.75, 0.05)
            on_epoch(Epoch(number, 1.0, 0.5, 0.1, 20.0, 400.0, *figures, seen))
    assert [row.get("collapsed") for row in rows] == [None, False, True, True]
    assert "pgd_accuracy" not in rows[0] and rows[1]["pgd_accuracy"] == 0.05
    warnings = [line for line in out.getvalue().splitlines() if "catastrophic" in line]
    assert len(warnings) == 1
    assert "epoch 3" in warnings[0] and "0.75" in warnings[0] and "0.05" in warnings[0]


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (3599.0, "59 min 59 s"),
        (3660.0, "1 h 01 min"),
    ],
)
def test_times_are_said_in_two_units(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize("steps, total, traced", [(2, 10, (2, 4)), (5, 4, (2, 4)), (0, 9, None)])
def test_a_trace_begins_after_compilation_and_ends_with_its_steps(
    steps, total, traced, monkeypatch, tmp_path
):
    done, calls = [], []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append(len(done)))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append(len(done)))
    profile = StepProfile(tmp_path, steps)
    for _ in range(total):
        done.append("a step")
        profile.step()
    profile.close()
    assert calls == list(traced or ())
