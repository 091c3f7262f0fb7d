"""Every subcommand: its help, its errors, and what the short ones print and write."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from ccsrp_jax import cli
from ccsrp_jax.data import provenance
from ccsrp_jax.data.datasets import load
from ccsrp_jax.networks import serialization
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.cost import macs, params

ROOT = Path(__file__).parents[2]
MAIN = "from ccsrp_jax.cli import main; status = main(sys.argv[1:]); "


def process(code: str, *args: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code, *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def refused(capsys, *args: str) -> str:
    """The one sentence on which a command ends with status 2."""
    assert cli.main(list(args)) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1
    return text


def test_the_help_is_short_and_loads_nothing_that_is_slow():
    names = process("import sys; " + MAIN + "print(*sys.modules)", "--help").stdout.splitlines()
    text, modules = names[:-1], set(names[-1].split())
    assert len(text) <= 40 and all(len(line) <= 100 for line in text)
    for name in cli.COMMANDS:
        assert any(line.startswith(f"  {name} ") for line in text)
    slow = {"jax", "flax", "numpy", "orbax", "matplotlib", "tyro", "rich", "evosax", "scipy"}
    assert "ccsrp_jax.cli" in modules and not modules & slow


def test_every_command_has_help(capsys):
    for name in cli.COMMANDS:
        with pytest.raises(SystemExit) as stop:
            cli.main([name, "--help"])
        assert stop.value.code == 0
        assert f"usage: ccsrp {name}" in capsys.readouterr().out


def test_no_command_is_help_on_stderr(capsys):
    assert cli.main([]) == 2
    out, err = capsys.readouterr()
    assert not out and err == cli.HELP


@pytest.mark.parametrize(
    ("args", "near"),
    [
        (("robustnes", "--suite", "quick"), "did you mean robustness"),
        (("cmopare",), "did you mean compare"),
        (("run", "--trainin.epochs", "3"), "--training.epochs"),
        (("--trainin.epochs", "3"), "--training.epochs"),  # flags alone are those of `run`
        (("robustness", "net.safetensors", "--sute", "quick"), "--suite"),
        (("compare", "runs/x", "--method", "l1"), "--methods"),
        (("export", "net.safetensors", "--to", "stablhlo"), "did you mean stablehlo"),
    ],
)
def test_a_mistyped_name_is_told_the_nearest(args, near, capsys):
    assert near in refused(capsys, *args)


def test_a_missing_extra_is_one_sentence_with_the_command_that_installs_it(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)  # as where it is not installed
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    text = refused(capsys, "prepare", "mnist", str(tmp_path))
    assert "pip install 'ccsrp-jax[prepare]'" in text
    text = refused(capsys, "run", "--tensorboard", "--run-dir", str(tmp_path / "run"))
    assert "pip install 'ccsrp-jax[tensorboard]'" in text
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, network):
    """As much of a finished run as `info` reads."""
    folder = tmp_path_factory.mktemp("run")
    data = load("digits", seed=5)
    origin = provenance.describe("digits", data.record, recipe={}, train_images=64)
    (folder / "networks").mkdir()
    serialization.save(folder / "pruned.safetensors", *network, origin)
    serialization.save(folder / "networks" / "round00.safetensors", *network)
    summary = {"dense": {"accuracy": 0.75, "robust_accuracy": 0.5}, "pruned": {"accuracy": 0.625}}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_info_says_what_a_network_is_and_how_accurate(run_dir, network, capsys, tmp_path):
    assert cli.main(["info", str(run_dir / "pruned.safetensors")]) == 0
    one = capsys.readouterr().out
    assert f"{sum(params(network[0]).values()):,} parameters" in one
    assert f"{sum(macs(network[0]).values()):,} MACs a time step" in one
    assert "dataset 'digits'" in one and "seed 5" in one and "64 train_images" in one
    digests = load("digits", seed=5).record[provenance.DIGESTS]
    assert len(digests) == 2 and all(digest[:12] in one for digest in digests)
    assert "accuracy 0.625" in one and "0.75" not in one
    assert all(node.name in one for node in network[0].nodes)
    assert cli.main(["info", str(run_dir)]) == 0
    both = capsys.readouterr().out
    assert one in both and "accuracy 0.75, robust_accuracy 0.5" in both
    copy = shutil.copy(run_dir / "pruned.safetensors", tmp_path / "net.safetensors")
    assert cli.main(["info", str(copy)]) == 0
    assert "0.625" not in capsys.readouterr().out


def test_info_refuses_what_is_no_network(tmp_path, capsys):
    assert "holds no network of a run" in refused(capsys, "info", str(tmp_path))
    assert "no such file" in refused(capsys, "info", str(tmp_path / "net.safetensors"))


def test_version_names_packages_and_devices(capsys):
    assert cli.main(["version"]) == 0
    text = capsys.readouterr().out
    for name in ("ccsrp-jax ", f"jax {jax.__version__}\n", "flax ", "evosax ", "CPython "):
        assert name in text
    assert f"{len(jax.devices())} x cpu (cpu)" in text
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == text


@pytest.mark.usefixtures("untyped")  # sizes are symbols
def test_an_exported_program_computes_the_logits_of_the_network(network, tmp_path, capsys):
    pytest.importorskip("flatbuffers")
    saved = tmp_path / "net.safetensors"
    serialization.save(saved, *network)
    assert cli.main(["export", str(saved), "--to", "stablehlo"]) == 0
    assert "largest difference of a logit 0" in capsys.readouterr().out.replace("\n", " ")
    program = jax.export.deserialize(bytearray((tmp_path / "net.stablehlo").read_bytes()))
    images = np.random.default_rng(0).random((3, 8, 8, 1), np.float32)
    expected = Classifier(network[0])((network[1], None), images)
    np.testing.assert_allclose(program.call(images), expected, atol=1e-5)


def test_an_export_never_replaces_the_network_that_it_reads(network, tmp_path, capsys):
    saved = tmp_path / "net.safetensors"
    serialization.save(saved, *network)
    before = saved.read_bytes()
    arguments = ["export", str(saved), "--to", "torch", "--out", str(tmp_path / "net.py")]
    assert cli.main(arguments) == 2
    assert "would replace the network" in capsys.readouterr().err
    assert saved.read_bytes() == before
