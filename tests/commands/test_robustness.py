"""`ccsrp robustness` as a user runs it: files, figures, and sentences for bad input."""

import json

import numpy as np
import pytest

from ccsrp_jax.commands import robustness as command
from ccsrp_jax.networks import serialization


@pytest.fixture
def saved(network, tmp_path):
    path = tmp_path / "net.safetensors"
    serialization.save(path, *network)
    return path


def test_a_saved_network_is_attacked_audited_and_certified(saved, tmp_path, capsys):
    out = tmp_path / "out"
    flags = [str(saved), "--suite", "pgd", "--images", "16", "--out", str(out)]
    more = ["--certify", "0.1", "--certify-samples", "30", "--eps", "0.05"]
    assert command.main([*flags, *more]) == 0
    said = capsys.readouterr().out
    record = json.loads((out / "robustness.json").read_text())
    assert record["headline"] in said
    assert record["images"] == 16 and record["eps"] == 0.05
    assert [row["name"] for row in record["attacks"]] == ["noise", "PGD 20 x 2"]
    assert record["robust_accuracy"] <= record["accuracy"]
    curve = record["certified"]["accuracy"]
    assert len(curve) == len(record["certified"]["radii"])
    assert np.all(np.diff(curve) <= 0)
    assert (out / "robustness.png").read_bytes()[:4] == b"\x89PNG"
    assert record["versions"]["jax"] and record["device"]


def test_attacks_of_ones_own_and_transfers(saved, tmp_path, capsys):
    flags = ["--attacks", "noise", "fgsm:relu", "fgsm:twin", "--others", f"twin={saved}"]
    assert command.main([str(saved), "--images", "12", *flags]) == 0
    record = json.loads((tmp_path / "robustness.json").read_text())
    assert [(row["through"], row["kind"]) for row in record["attacks"]] == [
        ("own", "noise"),
        ("relu", "transfer"),
        ("twin", "transfer"),
    ]


@pytest.mark.slow
def test_the_mean_corruption_error_is_relative_to_a_baseline(
    saved, network, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(command, "every_corruption", lambda _: [("contrast", 1), ("contrast", 5)])
    baseline = tmp_path / "dense.safetensors"
    architecture, variables = network
    kernel = variables["params"]["classifier"]["kernel"]
    params = variables["params"] | {"classifier": {**variables["params"]["classifier"]}}
    params["classifier"]["kernel"] = -kernel
    serialization.save(baseline, architecture, variables | {"params": params})
    flags = ["--images", "20", "--attacks", "noise", "--baseline", str(baseline)]
    assert command.main([str(saved), *flags]) == 0
    record = json.loads((tmp_path / "robustness.json").read_text())
    sums = [2 - sum(record[name].values()) for name in ("natural", "natural_baseline")]
    assert record["corruption_error"]["mean"] == pytest.approx(sums[0] / sums[1])
    assert "mean corruption error relative to dense.safetensors" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, sentence",
    (
        (["--images", "0"], "test_images 0"),
        (["--eps", "2"], "eps 2.0 is outside [0, 1]"),
        (["--suite", "fast"], "fast"),
        (["--attacks", "apdg-ce"], "did you mean apgd-ce"),
        (["--attacks", "pgd:twin"], "gradient source of the attack 'pgd' 'twin'"),
        (["--attacks", "square", "--norm", "l2"], "no l2 variant"),
        (["--others", "net.safetensors"], "give NAME=FILE"),
        (["--others", "a=missing.safetensors"], "missing.safetensors is not a readable network"),
        (["--certify", "-1"], "sigma -1.0"),
        (["--baseline", "missing.safetensors"], "missing.safetensors is not a readable network"),
        (["--batch-size", "0"], "batch_size 0"),
    ),
)
def test_bad_input_gets_one_sentence(saved, capsys, flags, sentence):
    assert command.main([str(saved), *flags]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert sentence in captured.err
    assert not (saved.parent / "robustness.json").exists()


def test_images_of_another_shape_are_refused(saved, tmp_path, capsys):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 255, (100, 12, 12, 1), np.uint8), np.arange(100) % 10
    path = tmp_path / "other.npz"
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    assert command.main([str(saved), "--dataset", str(path)]) == 2
    assert "takes images of (8, 8, 1)" in capsys.readouterr().err


def test_reports_of_several_networks_and_settings_lie_side_by_side(tmp_path, monkeypatch):
    """Each call's own figures are read back after all of them."""

    def pretend(settings, terminal):
        text = f"{settings.network} {settings.eps}"
        record = {"network": settings.network.name, "settings": {"text": text}, "headline": text}
        path = command.report_path(tmp_path, record, str(settings.eps))
        path.write_text(json.dumps(record))
        return path.name

    calls = [("a", 0.1), ("b", 0.1), ("c", 0.1), ("b", 0.2), ("a", 0.2), ("b", 0.2), ("a", 0.1)]
    names = []
    for name, eps in calls:
        settings = command.Settings(tmp_path / f"{name}.safetensors", eps=eps)
        names.append(pretend(settings, None))
    assert names == [
        "robustness.json",
        "b.robustness.json",
        "c.robustness.json",
        "b.0.2.robustness.json",
        "a.robustness.json",
        "b.0.2.robustness.json",
        "robustness.json",
    ]
    for (name, eps), file in zip(calls, names, strict=True):
        headline = json.loads((tmp_path / file).read_text())["headline"]
        assert headline == f"{tmp_path / name}.safetensors {eps}"


@pytest.mark.parametrize("content", ("", "[]", "3", "{", '{"network": "other.safetensors"}'))
def test_a_file_of_anothers_under_the_name_of_a_report_stays(tmp_path, content):
    (tmp_path / "robustness.json").write_text(content)
    record = {"network": "net.safetensors", "settings": {}}
    assert command.report_path(tmp_path, record, "1").name == "net.robustness.json"


def test_two_networks_in_one_folder_keep_their_reports(saved, tmp_path):
    other = tmp_path / "other.safetensors"
    other.write_bytes(saved.read_bytes())
    flags = ["--attacks", "noise", "--images", "12"]
    for path in (saved, other, saved):
        assert command.main([str(path), *flags]) == 0
    for file, network in (("robustness", saved), ("other.robustness", other)):
        assert json.loads((tmp_path / f"{file}.json").read_text())["network"] == network.name
        assert (tmp_path / f"{file}.png").exists()
    assert len(list(tmp_path.glob("*robustness*"))) == 4
