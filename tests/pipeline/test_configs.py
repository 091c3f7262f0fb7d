"""Settings from flags and files: one field of a recipe is one flag and one key of a file."""

import dataclasses
import json
import tomllib
import typing
from pathlib import Path

import pytest

from ccsrp_jax.attacks import NFGSM, PGD, rs_fgsm
from ccsrp_jax.networks import cost, zoo
from ccsrp_jax.pipeline.config import Config, Training, settings
from ccsrp_jax.pipeline.parse_config import parse
from ccsrp_jax.pipeline.settings_file import field_kinds
from ccsrp_jax.training.recipe import BaseRecipe, Recipe
from ccsrp_jax.utils.errors import InputError

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
CONFIGS = sorted((EXPERIMENTS / "configs").glob("*.toml"))
RUNS = sorted((EXPERIMENTS / "results").rglob("config.json"))
SHARED = [each.name for each in dataclasses.fields(Recipe) if each.name != "adversarial"]


def changed(name: str) -> bool | int | float | str:
    """A valid value of a shared setting other than its default."""
    value = getattr(Training(), name)
    choices = typing.get_args(field_kinds(Recipe)[name])
    if choices:
        return next(choice for choice in choices if choice != value)
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else value / 2 + 0.25


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_settings_file_describes_a_run(path):
    config = parse(["--config", str(path)])
    assert config.dataset == "cifar10" and config.finetune_recipe.epochs
    architecture = zoo.build(
        config.model, (32, 32, 3), 10, time_steps=config.time_steps, neuron=config.neuron
    )
    assert sum(cost.macs(architecture).values()) > 1e6
    assert path.name in (path.parents[1] / "ccsrp.py").read_text()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_value_of_a_settings_file_is_a_setting_of_its_run(path):
    found, count = settings(parse(["--config", str(path)])), 0
    for name, value in tomllib.loads(path.read_text()).items():
        for key, each in value.items() if isinstance(value, dict) else [(None, value)]:
            assert (found[name] if key is None else found[name][key]) == each, (name, key)
            count += 1
    assert count > 3


@pytest.mark.parametrize("path", RUNS, ids=lambda path: str(path.relative_to(EXPERIMENTS)))
def test_every_committed_run_parses_to_its_own_settings(path):
    """A run has the settings that existed when it was made; the others are at their defaults."""
    written = json.loads(path.read_text())
    default = settings(Config(preset=written["preset"]))
    config = parse(["--config", str(path)])
    found = json.loads(json.dumps(settings(config)))
    written.pop("member_chunk", None)  # was a setting of the result in early runs
    for name, value in written.items():
        if isinstance(value, dict):
            assert {key: found[name][key] for key in value} == value
            new = found[name].keys() - value.keys()
            if name != "search":  # whose defaults are those of the preset
                assert {key: found[name][key] for key in new} == {
                    key: default[name][key] for key in new
                }
        else:
            assert found[name] == value
    for name in found.keys() - written.keys():
        assert found[name] == default[name]


def test_there_are_committed_runs_and_settings_files():
    assert len(RUNS) >= 5 and len(CONFIGS) >= 4


def test_settings_as_written_by_a_run_parse_to_the_same_run(tmp_path):
    config = parse(["--training.ema", "0.9", "--training.no-adversarial", "--rounds", "2"])
    assert config.training.ema == 0.9 and not config.training.adversarial
    (tmp_path / "config.json").write_text(json.dumps(settings(config)))
    again = parse(["--config", str(tmp_path / "config.json")])
    assert settings(again) == settings(config)


@pytest.mark.parametrize("name", SHARED)
def test_every_setting_of_a_recipe_has_a_flag_and_a_key_that_reach_it(name, tmp_path):
    value = changed(name)
    assert value != getattr(Training(), name)
    flag = f"--training.{name.replace('_', '-')}"
    file = tmp_path / "settings.toml"
    file.write_text(f"[training]\n{name} = {json.dumps(value)}\n")
    flags = [flag] if value is True else [flag, str(value)]
    for config in (parse(flags), parse(["--config", str(file)])):
        assert getattr(config.training, name) == getattr(config.recipe, name) == value
        assert settings(config)["training"][name] == value
        expected = dataclasses.replace(Training(), **{name: value})
        assert config.training == Training(**{name: value}) == expected
        # fine-tuning has its own epochs and learning rate, and begins on full attacks
        own = name in ("epochs", "learning_rate", "clean_epochs", "eps_ramp")
        own |= name in ("early_epochs", "relu_epochs")
        assert (getattr(config.finetune_recipe, name) == value) == (not own)


def test_the_attack_of_a_recipe_follows_its_flags():
    assert parse(["--training.no-adversarial"]).recipe.adversarial is None
    config = parse(["--training.attack-steps", "5", "--attack.eps", "0.25"])
    attack = config.recipe.adversarial
    assert (attack.eps, attack.steps) == (0.25, 5)
    assert config.finetune_recipe.adversarial == attack


def test_one_step_attacks_of_training_are_named_by_a_flag(tmp_path):
    assert Training().recipe(0.1).adversarial == PGD(0.1, 3)  # as in settings of earlier versions
    file = tmp_path / "settings.toml"
    file.write_text('[training]\nattack = "rs-fgsm"\n[attack]\neps = 0.25\n')
    assert parse(["--config", str(file)]).recipe.adversarial == rs_fgsm(0.25)
    config = parse(["--training.attack", "n-fgsm", "--attack.eps", "0.25"])
    assert config.finetune_recipe.adversarial == config.recipe.adversarial == NFGSM(0.25)
    assert not Training(adversarial=False, attack="n-fgsm").recipe(0.25).adversarial
    with pytest.raises(InputError, match="trades 6"):
        Training(attack="n-fgsm", trades=6.0).recipe(0.25)


def test_a_setting_of_a_recipe_is_declared_once():
    """All but the attack, which flags describe in their own way, and one other default."""
    own = set(Training.__annotations__) & set(Recipe.__dataclass_fields__)
    assert own == {"adversarial", "clean_epochs"}
    assert set(Recipe.__annotations__) == {"adversarial"}
    assert [each.name for each in dataclasses.fields(Recipe)] == list(BaseRecipe.__annotations__)
    for name in SHARED:
        assert f"      {name}: " in BaseRecipe.__doc__
        assert f"      {name}: " not in Training.__doc__ + Recipe.__doc__


def test_help_explains_every_setting_of_a_recipe(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(["--help"])
    assert not stop.value.code
    text = capsys.readouterr().out
    for name in [*SHARED, "adversarial", "finetune-epochs"]:
        assert f"--training.{name.replace('_', '-')}" in text
    assert "torch.optim.SGD" in text  # from the documentation of BaseRecipe


def test_flags_by_default_train_as_a_recipe_by_default():
    flags = dataclasses.replace(Config().recipe, adversarial=None, clean_epochs=0)
    assert flags == Recipe()
