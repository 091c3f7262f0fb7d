"""Sizes that cannot work are refused before anything is created."""

from types import SimpleNamespace

import psutil
import pytest

from ccsrp_jax import cli
from ccsrp_jax.networks import zoo
from ccsrp_jax.pipeline.parse_config import parse
from ccsrp_jax.pipeline.sizes import check_sizes
from ccsrp_jax.utils import devices
from ccsrp_jax.utils.errors import InputError

ARCHITECTURE = zoo.plain((6, "A", 8), (8, 8, 1), 10, time_steps=2)


def check(data, *flags, mesh=None):
    check_sizes(parse(list(flags)), data, ARCHITECTURE, mesh)


@pytest.mark.parametrize("flag", ["--latency-batch", "--search.population"])
def test_what_memory_cannot_hold_is_refused_with_the_most_that_it_can(flag, monkeypatch, digits):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10**6))
    with pytest.raises(InputError, match=r"needs more than .* GiB of memory") as refused:
        check(digits, flag, "1000000")
    most = str(refused.value).split("give ")[1].split(" ")[0]
    check(digits, flag, most)
    with pytest.raises(InputError):
        check(digits, flag, str(int(most) + 1))
    if flag == "--search.population":
        check(digits, flag, "1000000", "--rounds", "0")
        check(digits, flag, "1000000", "--method", "l1")


def test_a_batch_that_the_devices_cannot_share_is_refused(monkeypatch, digits, untyped):
    monkeypatch.setattr(devices, "device_count", lambda mesh: 3 if mesh else 1)
    monkeypatch.setattr(devices, "free_bytes", lambda mesh=None: 10**12)
    mesh = SimpleNamespace()
    with pytest.raises(InputError, match="a batch of 128 images cannot be sharded evenly over 3"):
        check(digits, mesh=mesh)
    check(digits, "--training.batch-size", "129", mesh=mesh)
    check(digits, "--rounds", "0", "--dense", "x", mesh=mesh)  # nothing is trained


@pytest.mark.parametrize(
    "flags",
    [
        ("--latency-batch", str(10**12)),
        ("--latency-batch", str(10**7)),
        ("--search.population", str(10**30)),
        ("--search.generations", str(10**30)),
        ("--member-chunk", str(10**30)),
        ("--width", "1e30"),
        ("--width", "1e6"),
        ("--time-steps", str(10**12)),
        ("--rounds", str(10**400)),
        ("--batch-size", str(10**400)),
        ("--training.batch-size", str(10**20)),
        ("--training.epochs", str(10**20)),
        ("--training.finetune-epochs", str(10**20)),
        ("--training.attack-steps", str(10**20)),
        ("--attack.test-restarts", str(10**20)),
        ("--search.white-box-steps", str(10**20)),
        ("--devices", "99999"),
        ("--train-images", str(10**400)),
        ("--seed", str(10**400)),
        ("--rounds", "1" + "0" * 5000),
    ],
)
def test_impossible_sizes_leave_nothing(flags, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**33))
    assert cli.main([*flags, "--run-dir", str(tmp_path / "a" / "b")]) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1 and len(text) < 800
    assert not list(tmp_path.iterdir())
