"""The settings files in experiments/configs can be used as they are."""

from pathlib import Path

import pytest

from ccsrp_jax.networks import cost, zoo
from ccsrp_jax.pipeline.config import parse

CONFIGS = sorted((Path(__file__).parents[2] / "experiments" / "configs").glob("*.toml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_settings_file_describes_a_run(path):
    config = parse(["--config", str(path)])
    assert config.dataset == "cifar10" and config.finetune_recipe.epochs
    architecture = zoo.build(
        config.model, (32, 32, 3), 10, time_steps=config.time_steps, neuron=config.neuron
    )
    assert sum(cost.macs(architecture).values()) > 1e6
    assert path.name in (path.parents[1] / "ccsrp.py").read_text()
