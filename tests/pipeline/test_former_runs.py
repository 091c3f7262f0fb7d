"""A run that the version before the subpackages left after training can be resumed by this one."""

import json
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import traverse_util

from ccsrp_jax.networks import compaction, masks, serialization, zoo
from ccsrp_jax.pipeline import run_dir as rundir
from ccsrp_jax.pipeline.checkpoints import Checkpoints
from ccsrp_jax.pipeline.config import settings
from ccsrp_jax.pipeline.parse_config import parse
from ccsrp_jax.pipeline.stages import State

ARCHIVE = Path(__file__).parents[1] / "fixtures" / "run_of_0_1.tar.gz"


@pytest.fixture
def former(tmp_path):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path / "run", filter="data")
    return tmp_path / "run"


def test_its_checkpoint_holds_the_network_that_it_saved(former):
    architecture, saved = serialization.load(former / "networks" / "round00.safetensors")
    like = State(zoo.init(jax.random.key(0), architecture), masks.ones(architecture))
    step, state, record = Checkpoints(former).latest(like)
    assert step == 0
    assert record["archive"] == [json.loads((former / "archive.jsonl").read_text())]
    _, found = compaction.compact(architecture, *State(*state))
    found, saved = (traverse_util.flatten_dict(tree, sep="/") for tree in (found, saved))
    assert found.keys() == saved.keys()
    for name, value in saved.items():
        np.testing.assert_array_equal(found[name], value)


def test_its_settings_and_its_data_are_those_of_a_run_to_resume(former):
    config = parse(["--run-dir", str(former), "--resume"])
    assert config.training.epochs == 2 and config.width == 0.1
    rundir.check(former, settings(config), resume=True)
    splits = json.loads((former / "splits.json").read_text())
    with rundir.opened(former, settings(config), splits, resume=True) as folder:
        assert folder == former
