"""Strategies, selections and optimizers from outside the library, and what is none."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from evosax.algorithms import SNES, SimpleGA

from ccsrp_jax.coevolution.selection import weighted_sum
from ccsrp_jax.coevolution.settings import Search
from ccsrp_jax.coevolution.strategies import make_strategy
from ccsrp_jax.coevolution.subpopulation import search_group
from ccsrp_jax.pipeline.config import Config, settings
from ccsrp_jax.training.recipe import Recipe, optimizer
from ccsrp_jax.utils.errors import InputError

KEY = jax.random.key(0)
VALUE = np.linspace(0.1, 1, 12)  # of every filter; a good mask removes those of little value


def scored(masks):
    """Lost value, twice, and the share of filters that are left."""
    masks = np.asarray(masks)
    lost = 1 - masks @ VALUE / VALUE.sum()
    return np.stack([lost, lost, masks.mean(1)], 1)


def searched(**settings):
    search = Search(population=6, generations=4, keep_floor=0.75, **settings)
    return search_group(KEY, np.ones(12, np.float32), scored, search)


def test_a_class_and_an_instance_search_as_the_name_does():
    named = searched(strategy="SNES")
    of_class = searched(strategy=SNES)
    instance = searched(strategy=SNES(6, np.zeros(3)))
    for other in (of_class, instance):
        np.testing.assert_array_equal(named.mask, other.mask)
        np.testing.assert_array_equal(named.scored_objectives, other.scored_objectives)


def test_an_instance_keeps_its_settings():
    given = SimpleGA(6, np.zeros(3))
    given.elite_ratio = 0.25
    made = make_strategy(given, 6, 12)
    assert made.elite_ratio == 0.25 and made.num_dims == 12
    assert make_strategy("SimpleGA", 6, 12).elite_ratio == 0.5


@pytest.mark.parametrize("strategy", ["BitFlip", "SNES"])
def test_a_selection_of_ones_own_decides(strategy):
    seen = []

    def reverse(points):
        seen.append(points.shape[1])
        return -weighted_sum(points)

    worst, best = searched(strategy=strategy, selection=reverse), searched(strategy=strategy)
    assert set(seen) == {3}
    own = searched(strategy=strategy, selection=weighted_sum)
    lost = [scored(found.mask[None])[0, 0] for found in (best, own, worst)]
    assert lost[0] < lost[2] and lost[1] < lost[2]


WRONG = {
    "strategy is 3": {"strategy": 3},
    "strategy is <class 'dict'>": {"strategy": dict},
    "unknown strategy 'SNESS'": {"strategy": "SNESS"},
    "unknown selection 3": {"selection": 3},
    "compares ranks of different": {"strategy": "PSO", "selection": weighted_sum},
}


@pytest.mark.parametrize("why", WRONG)
def test_what_is_no_part_is_refused(why, untyped):
    with pytest.raises(InputError, match=why):
        Search(**WRONG[why])


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="population of 4"):
        searched(strategy=SNES(4, np.zeros(3)))
    with pytest.raises(InputError, match="return one number for each"):
        searched(selection=lambda points: points)


@pytest.mark.parametrize("part", [{"strategy": SNES}, {"selection": weighted_sum}])
def test_a_run_refuses_what_its_settings_cannot_hold(part):
    config = dataclasses.replace(Config(), search=Search(**part))
    with pytest.raises(InputError, match=f"search.{next(iter(part))} is .*cannot hold"):
        settings(config)


def test_an_optimizer_of_ones_own_replaces_that_of_the_recipe(untyped):
    own = optax.sgd(0.5)
    assert optimizer(Recipe(optimizer=own)) is own
    for wrong in ("adam", 3, None):
        with pytest.raises(InputError, match="optimizer"):
            Recipe(optimizer=wrong)
