"""The finding says when the pruned network was trained otherwise than the dense one."""

import dataclasses
import json

import pytest
from run_records import SUMMARY

from ccsrp_jax.pipeline.config import Config, Training, settings
from ccsrp_jax.reporting.training_difference import UNKNOWN, training_difference


def recipes(**changes) -> tuple[dict, dict]:
    """Of the dense network and of fine-tuning, as a run with these settings records them."""
    config = Config(training=Training(**changes))
    return tuple(
        json.loads(json.dumps(dataclasses.asdict(recipe)))
        for recipe in (config.recipe, config.finetune_recipe)
    )


def said(dense, tuned, **changes) -> str:
    training = {"dense": dense, "finetune": tuned}
    return training_difference({}, SUMMARY | {"training": training} | changes)


ROBUST, CLEAN = recipes(), recipes(adversarial=False)


def test_fine_tuning_that_is_shorter_or_slower_is_no_difference():
    dense, tuned = recipes(finetune_epochs=2, finetune_learning_rate=1e-4, clean_epochs=4)
    assert said([dense], tuned) == "" and said([CLEAN[0]], CLEAN[1]) == ""


def test_attacks_in_one_training_alone_are_said():
    only_tuned = said([CLEAN[0]], ROBUST[1])
    assert "fine-tuned on adversarial images" in only_tuned and "clean images only" in only_tuned
    only_dense = said([ROBUST[0]], CLEAN[1])
    assert "fine-tuned on clean images" in only_dense
    assert said([CLEAN[0], ROBUST[1]], ROBUST[1]) == ""  # fine-tuned before


def test_a_dense_training_that_ends_before_its_attacks_begin_was_clean():
    dense, tuned = recipes(epochs=2, clean_epochs=3)
    assert said([dense], tuned) == said([CLEAN[0]], ROBUST[1]) != ""


def test_other_settings_that_differ_are_named():
    dense, tuned = ROBUST[0], recipes(attack_steps=7, loss="tet")[1]
    assert said([dense], tuned) == (
        "Their training differed: adversarial PGD linf eps 0.0625, 7 steps (dense: PGD linf eps "
        "0.0625, 3 steps), loss tet (dense: ce)."
    )


@pytest.mark.parametrize("dense", (None, []))
def test_a_training_that_is_not_recorded_is_said_to_be_unknown(dense):
    assert said(dense, ROBUST[1]) == UNKNOWN


def test_nothing_is_said_of_networks_that_were_not_fine_tuned():
    assert said([CLEAN[0]], ROBUST[1] | {"epochs": 0}) == ""
    assert said([CLEAN[0]], ROBUST[1], chosen_round=0) == ""
    assert said([CLEAN[0]], ROBUST[1], pruned=None) == ""


def test_settings_of_earlier_versions_runs_are_read():
    config = settings(Config())
    assert training_difference(config, SUMMARY) == ""
    short = settings(Config(training=Training(epochs=3)))
    assert "clean images only" in training_difference(short, SUMMARY)
    assert training_difference(settings(Config(dense="net")), SUMMARY) == UNKNOWN
    assert training_difference({}, SUMMARY) == ""
