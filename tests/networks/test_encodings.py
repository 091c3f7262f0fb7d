"""Encodings other than direct through the whole job, from the data set to the report."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import busy

from ccsrp_jax import cli
from ccsrp_jax.coevolution import fitness, subproblem
from ccsrp_jax.data.datasets import load
from ccsrp_jax.data.splits import Split, to_unit_range
from ccsrp_jax.networks import cost, masks, serialization, zoo
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.pipeline.config import settings
from ccsrp_jax.pipeline.parse_config import parse
from ccsrp_jax.robustness.accuracy import correct

TINY = [
    *("--train-images", "32", "--search-images", "32", "--test-images", "16", "--model", "tiny"),
    *("--time-steps", "2", "--rounds", "1", "--target-macs", "0", "--batch-size", "16"),
    *("--latency-batch", "16", "--tolerance", "1", "--training.epochs", "1"),
    *("--training.finetune-epochs", "1", "--training.batch-size", "16"),
    *("--training.clean-epochs", "0", "--training.attack-steps", "1", "--attack.suite", "pgd"),
    *("--attack.search-steps", "1", "--attack.test-steps", "1", "--search.population", "2"),
    *("--search.generations", "2", "--search.multiple", "1", "--seed", "3"),
]


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    """A network that compiles in seconds, among the models."""
    monkeypatch.setitem(zoo.MODELS, "tiny", partial(zoo.plain, (8, "A")))


def finished(folder, *flags: str) -> tuple[dict, list[dict]]:
    """Summary and archive of a job; a network's file may be read from its folder."""
    assert cli.main([*TINY, *flags, "--run-dir", str(folder)]) == 0
    archive = (folder / "archive.jsonl").read_text().splitlines()
    return json.loads((folder / "summary.json").read_text()), [json.loads(row) for row in archive]


def recordings(path, count: int = 80) -> None:
    """An .npz of two classes of recordings: a bar that moves to the right, or to the left."""
    random = np.random.default_rng(0)
    label, place = np.arange(count) % 2, np.repeat(np.arange(8), 8)
    x = np.concatenate([7 - place if left else place for left in label])
    events = {"x": x, "y": random.integers(0, 8, x.shape), "p": random.integers(0, 2, x.shape)}
    t = np.tile(np.arange(64) * 50, count)
    offset = np.arange(count + 1) * 64
    np.savez(path, **events, t=t, offset=offset, label=label, shape=(8, 8), train=count - 16)


@pytest.mark.slow
def test_recordings_of_events_go_through_the_job_as_frames(tmp_path, capsys):
    recordings(tmp_path / "bars.npz")
    flags = ("--dataset", str(tmp_path / "bars.npz"), "--width", "0.75", "--norm", "tdbn")
    flags = (*flags, "--neuron.threshold", "0.5", "--rounds", "0")
    summary, [dense] = finished(tmp_path / "run", *flags)
    architecture, variables = serialization.load(tmp_path / "run" / "pruned.safetensors")
    assert (architecture.encoding, architecture.input_shape) == ("frames", (8, 8, 4))
    assert (architecture.mean, architecture.std) == ((0.0,), (1.0,))
    assert architecture.nodes[1].scale == 0.5 and dense["filters"] == {"conv1": 6}
    # all that is done are additions, those of the first layer too: 9 each at most for 6 filters
    images = load(str(tmp_path / "bars.npz"), time_steps=2, seed=3).search.images
    met = cost.synops(architecture, variables, to_unit_range(jnp.asarray(images)))
    assert dense["synops"] == pytest.approx(sum(met.values()))
    assert met["conv1"] == pytest.approx(_met(images) * 6)
    assert dense["energy_nj"] == pytest.approx(0.9 * dense["synops"] / 1000)
    assert summary["dense"]["latency_ms"] > 0 and capsys.readouterr().err == ""

    flags = (*flags, "--encoding", "poisson", "--run-dir", str(tmp_path / "other"))
    assert cli.main([*TINY, *flags]) == 2
    assert "bars comes as frames" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def _met(images: np.ndarray) -> float:
    """Places of a 3 x 3 convolution that the events of an image meet, by one after the other."""
    side = range(images.shape[1])
    return sum(
        (y + dy in side) * (x + dx in side)
        for _, y, x, _ in np.argwhere(images)
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
    ) / len(images)


def test_candidates_on_frames_score_what_the_masked_network_does():
    architecture = zoo.plain((6, 5), (8, 8, 6), 3, time_steps=3, encoding="frames")
    variables, random = busy(architecture, seed=0), np.random.default_rng(0)
    images = random.integers(0, 256, (40, 8, 8, 6), np.uint8) * (random.random((40, 8, 8, 6)) < 0.2)
    split = Split(images.astype(np.uint8), random.integers(0, 3, 40).astype(np.int32))
    classifier, whole = Classifier(architecture), masks.ones(architecture)
    members = (random.random((3, 6)) < 0.6).astype(np.float32)
    task = subproblem.make_task(classifier, variables, whole, "conv1", split, split, batch_size=20)
    errors = fitness.score(task, members).error
    for member, error in zip(members, errors, strict=True):
        params = (variables, whole | {"conv1": jnp.asarray(member)})
        assert error == pytest.approx(1 - correct(classifier, params, split).mean())
    assert len(set(errors)) > 1


@pytest.mark.slow
def test_a_network_that_draws_noise_goes_through_the_job(tmp_path, capsys):
    summary, archive = finished(tmp_path / "run", "--encoding", "gaussian", "--noise", "0.2")
    architecture, _ = serialization.load(tmp_path / "run" / "pruned.safetensors")
    assert (architecture.encoding, architecture.noise) == ("gaussian", 0.2)
    assert archive[1]["macs"] < archive[0]["macs"] and archive[1]["shared_gap"] is not None
    for row in (*archive, summary["dense"], summary["pruned"]):
        # the first layer's products are done anew in both steps
        first = 9 * 64 * (row["macs"] / (9 * 64 + 160))
        energy = (4.6 * 2 * first + 0.9 * row["synops"]) / 1000
        assert row["synops"] > 0 and row["energy_nj"] == pytest.approx(energy)
    checks = summary["robustness"]["pruned"]["audit"]["checks"]
    [averaged] = [check for check in checks if "averaged over" in check["name"]]
    assert averaged["passed"] and summary["pruned"]["latency_ms"] > 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("encoding", ("poisson", "gaussian"))
def test_costs_follow_their_key(encoding, digits):
    architecture = zoo.plain((6, 5), (8, 8, 1), 10, time_steps=2, encoding=encoding)
    variables = busy(architecture, seed=0)
    split = Split(digits.test.images[:20], digits.test.labels[:20])
    once, again, other = (
        cost.costs(architecture, variables, None, split, jax.random.key(seed)) for seed in (1, 1, 2)
    )
    assert once == again and once["synops"] != other["synops"]
    images = jnp.asarray(split.images)
    networks = [(Classifier(architecture), (variables, None))]
    assert cost.latency_ms(networks, images, repeats=2, key=jax.random.key(0))[0] > 0


def test_a_resumed_run_has_the_encoding_that_it_was_started_with(tmp_path):
    flags = ["--encoding", "poisson", "--width", "0.5", "--norm", "tdbn", "--noise", "0.3"]
    for given in ([*TINY, *flags], TINY):
        config = parse(given)
        (tmp_path / "config.json").write_text(json.dumps(settings(config)))
        again = parse(["--run-dir", str(tmp_path), "--resume"])
        names = ("encoding", "width", "norm", "noise")
        assert [getattr(again, name) for name in names] == [getattr(config, n) for n in names]
    assert (config.encoding, config.norm) == ("direct", None)


@pytest.mark.parametrize(
    "flags, sentence",
    (
        (["--encoding", "poison"], "invalid choice 'poison'"),
        (["--encoding", "frames"], "invalid choice 'frames'"),
        (["--norm", "tdBN"], "invalid choice 'tdBN'"),
        (["--width", "0"], "width 0.0 is out of range"),
        (["--noise", "-1"], "noise -1.0 is out of range"),
        (["--dataset", "nmnist"], "give the --data-dir that holds Train and Test"),
    ),
)
def test_impossible_settings_are_refused_in_a_sentence(flags, sentence, capsys, tmp_path):
    assert cli.main([*flags, "--run-dir", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert sentence in message and message.count("\n") == 1
    assert not (tmp_path / "run").exists()
