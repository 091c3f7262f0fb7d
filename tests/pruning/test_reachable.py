"""Nothing left to prune, or a target out of reach: one sentence, before anything is computed."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import busy, pruning_problem

from ccsrp_jax import cli
from ccsrp_jax.coevolution.search import search_round
from ccsrp_jax.coevolution.settings import PRESETS
from ccsrp_jax.networks import masks as masking
from ccsrp_jax.networks import zoo
from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.nodes import IMAGE, Conv, Dense, Flatten, Norm, Spike
from ccsrp_jax.pipeline.parse_config import parse
from ccsrp_jax.pipeline.pruning_stage import check_target
from ccsrp_jax.pruning import FILTER_METHODS, METHODS, WEIGHT_METHODS, Target, budget, ccsrp
from ccsrp_jax.pruning import problem as problems
from ccsrp_jax.pruning.methods.ccsrp import RoundState
from ccsrp_jax.pruning.methods.lottery import lottery
from ccsrp_jax.pruning.methods.sdsnn import sdsnn
from ccsrp_jax.pruning.registry import check_reachable
from ccsrp_jax.training.recipe import Recipe
from ccsrp_jax.utils.errors import InputError

KEY = jax.random.key(0)
NO_GROUP = Architecture(  # the norm behind the spikes shifts channels that are 0
    (
        Conv("c", IMAGE, 4, stride=2),
        Spike("s", "c"),
        Norm("n", "s"),
        Flatten("f", "n"),
        Dense("out", "f", 10),
    ),
    (8, 8, 1),
    time_steps=2,
)
NO_LAYER = Architecture((Flatten("f", IMAGE), Dense("out", "f", 10)), (8, 8, 1), time_steps=2)
ONE_FILTER = zoo.plain((1, "A", 1), (8, 8, 1), 10, dense=(1,), time_steps=2)
SMALL = zoo.plain((4, "A", 6), (8, 8, 1), 10, time_steps=2)
RESIDUAL = zoo.residual(((3, 1, 1),), (8, 8, 1), 10, stem=3, time_steps=2)
STOPS_EARLY = "rounds"  # which meets no target exactly


@pytest.fixture(scope="module")
def of(digits):
    """The problem of a network, which is made once."""
    return cache(
        lambda architecture: pruning_problem(
            digits, classifier=Classifier(architecture), variables=busy(architecture, seed=0)
        )
    )


@pytest.fixture
def make(of, monkeypatch):
    """Makes a problem in which nothing may be trained."""

    def trained(*args, **options):
        raise AssertionError("a network was trained")

    monkeypatch.setattr(problems, "train", trained)

    def make(architecture, fraction=0.5, measure="macs", **changes):
        return dataclasses.replace(of(architecture), target=Target(measure, fraction), **changes)

    return make


def refused(name, problem, says="cannot be reached", **settings):
    """The method refuses in one sentence, as does the check before there are weights."""
    method = METHODS[name] if isinstance(name, str) else name
    with pytest.raises(InputError, match=says) as caught:
        method(KEY, problem, **settings)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 350
    if isinstance(name, str) and name not in ("u-ticket", STOPS_EARLY):  # its own check is sharper
        with pytest.raises(InputError) as before:
            check_reachable(name, problem.architecture, problem.target)
        assert str(before.value) == text


@pytest.mark.parametrize("name", sorted(FILTER_METHODS))
def test_filters_of_a_network_without_groups(make, name):
    for fraction in (0.5, 1.0):
        for measure in budget.MEASURES:
            problem = make(NO_GROUP, fraction, measure)
            if name != STOPS_EARLY:
                refused(name, problem, "nothing to prune")
        if name == STOPS_EARLY and measure != "synops":
            variables, masks, _ = METHODS[name](KEY, problem)
            assert variables is problem.variables and masks == {}


@pytest.mark.parametrize("name", sorted(WEIGHT_METHODS))
def test_weights_of_a_network_with_a_classifier_alone(make, name):
    prunes_classifier = name.startswith("criticality")
    for measure in budget.MEASURES:
        if not (prunes_classifier and measure == "synops"):
            refused(
                name,
                make(NO_LAYER, 0.001, measure),
                "0.017 of them are left" if prunes_classifier else "nothing to prune",
            )


@pytest.mark.parametrize("name", sorted(FILTER_METHODS.keys() - {STOPS_EARLY}))
def test_groups_of_one_filter_have_none_to_lose(make, name):
    for measure in budget.MEASURES:
        refused(name, make(ONE_FILTER, 0.999, measure), "no group can lose a filter")


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {STOPS_EARLY}))
def test_targets_below_one_filter_or_weight_in_each_are_refused_with_one_that_is_not(make, name):
    for measure in ("macs", "params"):
        problem = make(SMALL, 0.02, measure)
        with pytest.raises(InputError, match=r"give a target of at least 0\.\d+, or") as caught:
            METHODS[name](KEY, problem)
        reachable = float(str(caught.value).split("at least ")[1].split(",")[0])
        refused(name, make(SMALL, reachable - 0.002, measure))
        check_reachable(name, SMALL, Target(measure, reachable))


@pytest.mark.parametrize("name", ("ccsrp-faithful", "ccsrp-nsga2", "ccep"))
def test_groups_that_a_search_leaves_alone_count_whole(make, name):
    refused(name, make(RESIDUAL, 0.3), "cannot be reached: 0.43 ")
    check_reachable("ccsrp-snes", RESIDUAL, Target("macs", 0.3))  # prunes residual streams too


def test_settings_of_a_method_count(make):
    problem = make(SMALL, 0.02)
    refused(lottery, problem, structured=True)
    refused(sdsnn, problem, "of the connections cannot be reached", measure="connections")
    refused(sdsnn, make(NO_GROUP), "nothing to prune", rates="paper")
    refused(METHODS["rounds"], problem, search=PRESETS["priced"])


@pytest.mark.parametrize("name", ("ccsrp-faithful", "ccsrp-priced", "ccsrp-snes", "l1", "random"))
def test_groups_of_one_filter_meet_a_target_of_all(make, monkeypatch, name):
    monkeypatch.setattr(problems, "train", lambda key, classifier, variables, *_, **__: variables)
    schedule = {} if name in ("l1", "random") else {"rounds": 1, "epochs": 0, "criterion": None}
    problem = make(ONE_FILTER, 1.0, recipe=Recipe(epochs=1, batch_size=32))
    variables, masks, passes = METHODS[name](KEY, problem, **schedule)
    assert variables is problem.variables and sum(passes) == 0
    assert all(np.asarray(mask).tolist() == [1.0] for mask in masks.values()) and len(masks) == 3


def test_a_search_without_groups_changes_nothing(make):
    problem = make(ONE_FILTER)
    found = search_round(
        KEY,
        problem.classifier,
        problem.variables,
        masking.ones(ONE_FILTER),
        problem.search,
        problem.attack,
        PRESETS["faithful"],
        batch_size=32,
    )
    assert not found.groups and found.masks.keys() == masking.ones(ONE_FILTER).keys()


def test_rounds_that_leave_a_multiple_say_so_where_they_are_stuck(make):
    architecture = zoo.plain((8, "A", 8), (8, 8, 1), 10, time_steps=2)
    half = {name: jnp.arange(8) < 4 for name in masking.ones(architecture)}
    state = RoundState(1, busy(architecture, seed=0), half)
    with pytest.raises(InputError, match="no group has more than the 4 filters"):
        ccsrp(KEY, make(architecture, 0.1), search=PRESETS["snes"], rounds=3, start=state)


def test_a_budget_without_masks_is_met_or_refused():
    assert budget.prune_to_budget({}, lambda masks: 3, 3) == {}
    with pytest.raises(InputError, match="nothing can be removed"):
        budget.prune_to_budget({}, lambda masks: 3, 2)


@pytest.mark.parametrize(
    "fraction", (0, 0.0, -0.5, 1.01, 2, np.nan, np.inf, None, "half", "0.5", True, [0.5], 1e-60)
)
def test_targets_that_are_none_are_refused(untyped, fraction):
    with pytest.raises(InputError, match=r"target fraction .* above 0 and at most 1"):
        Target("macs", fraction)


@pytest.mark.parametrize("measure", ("mac", "", None, ["macs"], 3))
def test_measures_that_are_none_are_refused(untyped, measure):
    with pytest.raises(InputError, match="measure"):
        Target(measure, 0.5)


@pytest.mark.parametrize("number", (np.float32(0.5), np.float64(0.5), jnp.asarray(0.5)))
def test_targets_take_numbers_of_any_type(untyped, number):
    assert Target("macs", number) == Target("macs", 0.5)
    assert type(Target("macs", number).fraction) is type(Target("macs", np.int64(1)).fraction)


FLAGS = ("--train-images", "64", "--search-images", "32", "--test-images", "32", "--rounds", "6")


@pytest.mark.parametrize("name", ("ccsrp", "ccep", "l1", "sd-snn", "magnitude", "u-ticket"))
def test_the_main_job_refuses_before_it_creates_anything(name, capsys, tmp_path):
    flags = [*FLAGS, "--width", "0.1", "--method", name, "--target-macs", "0.001"]
    assert cli.main([*flags, "--run-dir", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert "cannot be reached" in message and message.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_main_job_warns_where_its_rounds_can_remove_nothing():
    config, said = parse([*FLAGS]), []
    check_target(config, SMALL, said.append)  # its groups of 4 are pruned to multiples of 4
    assert not said
    check_target(config, ONE_FILTER, said.append)
    check_target(config, NO_GROUP, said.append)
    assert len(said) == 2 and all("keeps 4 filters" in text for text in said)
    check_target(dataclasses.replace(config, rounds=0), NO_GROUP, said.append)
    assert len(said) == 2
    priced = dataclasses.replace(config, search=PRESETS["priced"], target_macs=0.02)
    with pytest.raises(InputError, match="cannot be reached"):
        check_target(priced, SMALL, said.append)
