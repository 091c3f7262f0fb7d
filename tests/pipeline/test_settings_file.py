"""Files of settings: every name and value is a setting's, or the file is refused by its name."""

import json
import re
from pathlib import Path

import pytest

from ccsrp_jax.pipeline import settings_file
from ccsrp_jax.pipeline.config import Config, settings
from ccsrp_jax.pipeline.parse_config import parse
from ccsrp_jax.utils.errors import InputError

DEEP_JSON = '{"training": ' + "[" * 20_000 + "]" * 20_000 + "}"


def written(tmp_path, text, name="s.toml"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refusal(path, *flags) -> str:
    with pytest.raises(InputError) as refused:
        parse(["--config", str(path), *flags])
    message = str(refused.value)
    assert str(path) in message and len(message) < 600
    return message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("help = true", "Unrecognized options: --help"),
        ("[training]\nepoch = 3", r"--training.epoch: did you mean training.epochs"),
        ("[neuron.tau]\nx = 3", r"setting tau of the config file is \{'x': 3\}"),
        ("[foo]\n", "--foo"),
        ('"rounds=3" = 4', "--rounds=3"),
        ('"a\\nb" = 4', r"--a\\nb"),
        ('config = "other.toml"', "names another config file, 'other.toml'"),
        ("training = 3", "setting training of the config file is 3: give a table"),
        ("rounds = true", "rounds of the config file is True: give an integer"),
        ("rounds = 4.5", "4.5: give an integer"),
        ("rounds = 1979-05-27", r"datetime.date\(1979, 5, 27\): give an integer"),
        (f"rounds = 1{'0' * 400}", "rounds 10000.*out of range"),
        (f"width = 1{'0' * 400}", "width .*out of range"),
        (f"rounds = 1{'0' * 5000}", "is not valid"),
        ("rounds = -1", "rounds -1 is out of range"),
        ("width = nan", "width of the config file nan is out of range"),
        ("width = inf", "width inf is out of range"),
        ('norm = "bm"', "unknown setting norm of the config file 'bm'.*did you mean bn"),
        ('preset = "snez"', "unknown preset 'snez'"),
        ('model = "a\\nb"', r"unknown model 'a\\nb'"),
        ('run_dir = ""', "run_dir is empty"),
        ("rounds = 1\n[training]\nepochs = -3", "epochs -3"),
        ("target-macs = 0.4\ntarget_macs = 0.5", "gives the setting target_macs twice"),
        ("training.sparse_grad = 1\ntraining.sparse_gradient = 1", "sparse_gradient twice"),
        ("[search]\nlevels = ['--resume']", "levels of the config file is '--resume'"),
        ("version = 3", "has version 3"),
        ("version = 'x'", "has version 'x'"),
        (b"\xff\xfe", "is not valid"),
        ("training = " + "[" * 20_000, "nested too deeply|is not valid"),
        (".".join(["training"] * 5000) + " = 1", r"--training\.training"),
    ],
)
def test_what_is_no_setting_is_refused_by_name(text, says, tmp_path):
    message = refusal(written(tmp_path, text))
    assert re.search(says, message), message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (DEEP_JSON, "nested too deeply"),
        ('{"rounds": 1, "rounds": 2}', "'rounds' occurs twice"),
        ('{"rounds": NaN}', "nan: give an integer"),
        ('{"rounds": null}', "None: give an integer"),
        ('{"rounds": "\\ud800"}', "give an integer"),
        ('{"training": {"help": true}}', "--training.help"),
    ],
)
def test_json_likewise(text, says, tmp_path):
    message = refusal(written(tmp_path, text, "s.json"))
    assert re.search(says, message), message


@pytest.mark.parametrize(
    "path", ["nowhere.toml", ".", "a\0b", "~nosuchuser/s.toml", "\ud800", "loop", "x" * 5000]
)
def test_a_path_that_cannot_be_read_is_one_sentence(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError, match=r"cannot be (read|used as a path)"):
        parse(["--config", path])


def test_an_error_of_the_flags_does_not_blame_the_file(tmp_path):
    path = written(tmp_path, "rounds = 3")
    for flags in (["--rounds", "-1"], ["--foo", "3"], ["--time-steps", "0"]):
        with pytest.raises(InputError) as refused:
            parse(["--config", str(path), *flags])
        assert str(path) not in str(refused.value)


def test_flags_can_complete_a_file(tmp_path):
    path = written(tmp_path, 'method = "l1"\ntarget_macs = 0\n')
    assert "l1 needs a target" in refusal(path)
    assert parse(["--config", str(path), "--target-macs", "0.5"]).method == "l1"


def test_both_spellings_other_names_and_both_shapes_of_tables_are_read(tmp_path):
    text = {"training.epochs": 3, "target-macs": 0.25, "training": {"sparse_grad": 0.5}}
    config = parse(["--config", str(written(tmp_path, json.dumps(text), "s.json"))])
    assert (config.training.epochs, config.target_macs) == (3, 0.25)
    assert config.training.sparse_gradient == 0.5
    windows = b"\xef\xbb\xbfrounds = 2\r\n[search]\r\nlevels = [0.5, 1]\r\n"
    config = parse(["--config", str(written(tmp_path, windows))])
    assert (config.rounds, config.search.levels) == (2, (0.5, 1.0))


def test_a_file_under_the_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    written(tmp_path, "rounds = 2")
    assert parse(["--config=~/s.toml"]).rounds == 2


def test_every_setting_survives_its_way_through_flags():
    config = Config(dataset="a=b --resume\n", run_dir="-x", seed=7, train_images=3)
    values = settings_file.typed(Path("config"), settings(config), Config)
    again = parse([*settings_file.flags(values), "--run-dir=-x"])
    assert again == config


@pytest.mark.parametrize("name", ["run-dir", "run_dir", "config", "dataset", "data-dir", "dense"])
def test_an_empty_path_is_refused(name):
    with pytest.raises(InputError, match="is empty, as a shell variable is"):
        parse([f"--{name}="])
    with pytest.raises(InputError, match="is empty"):
        parse([f"--{name}", "", "--resume"])


def test_changes_compare_what_both_have_under_todays_names():
    before = {"version": 1, "training": {"sparse_grad": 1, "epochs": 2}, "latency_batch": 8}
    now = {"training": {"sparse_gradient": 2, "epochs": 2}, "latency_batch": 9, "seed": 0}
    assert settings_file.changes(before, now) == ["training.sparse_gradient: 1 then, 2 now"]
    assert len(settings_file.changes(before, now, allowed=())) == 2
