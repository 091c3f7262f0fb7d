"""CCSRP: splices against brute force, single removals and levels, and rounds under a budget."""

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import pruning_problem

from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.coevolution import fitness
from ccsrp_jax.coevolution import search as coevolution
from ccsrp_jax.coevolution.settings import PRESETS, Search
from ccsrp_jax.coevolution.subpopulation import GroupResult, search_group
from ccsrp_jax.networks import masks as masking
from ccsrp_jax.networks import zoo
from ccsrp_jax.pruning import METHODS, budget, splicing
from ccsrp_jax.pruning.budget import Target
from ccsrp_jax.pruning.methods import ccsrp as module
from ccsrp_jax.pruning.methods.ccsrp import RoundKeys, RoundState, ccsrp, round_keys
from ccsrp_jax.pruning.problem import Callbacks, kept
from ccsrp_jax.pruning.splicing import fit_to_budget, splice_by_lagrangian
from ccsrp_jax.robustness.accuracy import correct
from ccsrp_jax.training.recipe import Recipe
from ccsrp_jax.utils.errors import InputError

KEY = jax.random.key(4)
FAITHFUL = Search(population=3, generations=2, keep_floor=0.6)
PRICED = Search(
    strategy="SNES",
    population=3,
    generations=3,
    levels=(0.9, 0.6, 0.4),
    single_removals=True,
    splice="price",
    objective="loss",
)


def gone(before, after):
    """The filters that were removed, as group name and index."""
    return {
        f"{name}{i}"
        for name in before
        for i in np.flatnonzero(np.asarray(before[name]) > np.asarray(after[name]))
    }


def with_one_back(cost, before, after):
    """Costs of the masks with each one of the removed filters restored."""
    after = {name: np.asarray(mask) for name, mask in after.items()}
    return [
        cost(after | {name: mask + (np.arange(len(mask)) == i)})
        for name, mask in after.items()
        for i in np.flatnonzero(np.asarray(before[name]) > mask)
    ]


# ---- meeting a limit by importance

BEFORE = {"a": np.array([1, 1, 0, 1, 1.0]), "b": np.array([1, 1, 1, 0.0]), "c": np.ones(3)}
AFTER = {"a": np.array([1, 0, 0, 0, 1.0]), "b": np.array([1, 0, 1, 0.0]), "c": np.ones(3)}
IMPORTANCE = {"a": np.array([0.5, 0.3, 0, 0.1, -0.2]), "b": np.array([0.4, 0.2, 0.6, 0])}


def test_filters_are_restored_or_removed_by_importance():
    """At first a1, a3 and b1 are removed; filters removed earlier are never restored."""
    order = ["a3", "b1", "a1", "a4", "b0"]  # then each group has one filter
    for limit in range(12, 4, -1):
        found = fit_to_budget(KEY, BEFORE, AFTER, IMPORTANCE, kept, float(limit))
        assert gone(BEFORE, found) == set(order[: max(10 - limit, 0)])
        assert kept(found) == min(limit, 10)
        assert all((found[name] <= BEFORE[name]).all() for name in BEFORE)
        np.testing.assert_array_equal(found["c"], AFTER["c"])  # not searched
    with pytest.raises(InputError, match="cannot be reached"):
        fit_to_budget(KEY, BEFORE, AFTER, IMPORTANCE, kept, 4.0)


def test_the_rest_of_a_limit_is_filled_with_less_costly_filters():
    """Filters of `b` cost 3, so that of the filters to restore some fit and others do not."""
    importance = {"a": np.array([0.5, 0.1, 0, 0.3, 0.4]), "b": np.array([0.7, 0.2, 0.6, 0])}

    def cost(masks):
        return float(sum(np.sum(mask) * (3 if name == "b" else 1) for name, mask in masks.items()))

    assert cost(BEFORE) == 16 and cost(AFTER) == 11
    for limit, expected in (
        (16, set()),
        (15, {"a1"}),
        (14, {"b1"}),
        (12, {"b1", "a1"}),
        (11, {"a1", "a3", "b1"}),
        (9, {"a1", "b1", "b2"}),  # without b2, a4 and a3 fit again
    ):
        found = fit_to_budget(KEY, BEFORE, AFTER, importance, cost, float(limit))
        assert gone(BEFORE, found) == expected


def test_filters_of_unknown_importance_are_chosen_at_random():
    unknown = dict.fromkeys(IMPORTANCE)
    found = [
        fit_to_budget(jax.random.key(seed), BEFORE, AFTER, unknown, kept, limit)
        for seed in range(8)
        for limit in (9.0, 6.0)
    ]
    back, more = ({frozenset(gone(BEFORE, each)) for each in found[i::2]} for i in (0, 1))
    assert all(len(names) == 1 and names < {"a1", "a3", "b1"} for names in back)
    assert all(len(names) == 4 and names > {"a1", "a3", "b1"} for names in more)
    assert len(back) > 1 and len(more) > 1


# ---- splice by Lagrangian relaxation

ARCHITECTURE = zoo.plain((7, 6, 5), (8, 8, 1), 10, time_steps=2)
WHOLE = {name: np.asarray(mask) for name, mask in masking.ones(ARCHITECTURE).items()}


def searched(seed):
    """By group, random masks with losses that increase with removals, and one infinite loss."""
    random, cost = np.random.default_rng(seed), budget.cost_of(ARCHITECTURE, "macs")
    found = {}
    for name, whole in WHOLE.items():
        masks = np.stack([random.permutation(np.arange(len(whole)) < n) for n in (6, 5, 4, 3, 2)])
        masks = np.concatenate([whole[None], masks * whole]).astype(np.float32)
        macs = np.array([cost(WHOLE | {name: mask}) / cost(WHOLE) for mask in masks])
        losses = 2 * random.uniform() * (1 - macs) ** 2 + 0.1 * random.uniform(size=(2, len(masks)))
        points = np.stack([*losses, macs], axis=-1)
        points[random.integers(1, len(masks))] = np.inf
        importance = random.permutation(len(whole)) + random.uniform()
        found[name] = GroupResult(masks[0], points[0], 6, [], 1, masks, points, importance)
    return found, cost


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fraction", (0.7, 0.45))
def test_the_splice_is_the_best_combination_at_the_lowest_multiplier_that_fits(
    monkeypatch, seed, fraction
):
    monkeypatch.setattr(
        splicing, "fit_to_budget", lambda key, before, after, importance, cost_of, limit: after
    )
    search = dataclasses.replace(PRICED, robust_weight=0.5)
    found, cost = searched(seed)
    limit = fraction * cost(WHOLE)
    chosen = splice_by_lagrangian(KEY, found, WHOLE, search, cost, limit)
    combinations = list(
        itertools.product(*(range(len(each.scored_masks)) for each in found.values()))
    )
    points = np.array(
        [
            sum(each.scored_objectives[i] for each, i in zip(found.values(), places, strict=True))
            for places in combinations
        ]
    )
    loss, macs = points[:, 0] + 0.5 * points[:, 1] + 1e-5 * points[:, 2], points[:, 2]
    finite = np.isfinite(loss)
    loss, macs = loss[finite], macs[finite]
    combinations = [combinations[i] for i in np.flatnonzero(finite)]

    def masks_of(places):
        return {
            name: each.scored_masks[i]
            for (name, each), i in zip(found.items(), places, strict=True)
        }

    # the optimum changes only at multipliers at which two combinations are equally good
    apart = macs[None] - macs[:, None]
    prices = np.unique((loss[:, None] - loss[None]) / np.where(apart > 0, apart, np.inf))
    prices = np.r_[0, prices[prices > 0]]
    for price in prices + 1e-9:
        best = masks_of(combinations[int(np.argmin(loss + price * macs))])
        if cost(best) <= limit:
            break
    assert price > 1e-6
    for name, mask in best.items():
        np.testing.assert_array_equal(chosen[name], mask)
    within = np.array([cost(masks_of(places)) <= limit for places in combinations])
    value = loss + price * macs
    assert value[within].min() == value.min()


def test_no_filter_fits_into_a_spliced_network():
    for seed, fraction in itertools.product(range(3), (0.8, 0.5, 0.2)):
        found, cost = searched(seed)
        limit = fraction * cost(WHOLE)
        masks = splice_by_lagrangian(KEY, found, WHOLE, PRICED, cost, limit)
        masking.check(ARCHITECTURE, masks)
        assert cost(masks) <= limit
        assert min(with_one_back(cost, WHOLE, masks)) > limit


def test_groups_that_were_not_searched_keep_their_masks():
    found, cost = searched(0)
    before = WHOLE | {"conv2": np.array([0, 1, 0, 0, 0, 0.0])}
    searched_now = {name: each for name, each in found.items() if name != "conv2"}
    masks = splice_by_lagrangian(KEY, searched_now, before, PRICED, cost, 0.5 * cost(before))
    np.testing.assert_array_equal(masks["conv2"], before["conv2"])
    assert 0.3 * cost(before) < cost(masks) <= 0.5 * cost(before)


# ---- single removals and levels


def objectives(members):
    """Losses by the index of each removed filter, and more for pairs of neighbors."""
    lost = 1 - members
    clean = lost @ np.linspace(1, 2, 12) ** 2 + (lost[:, 1:] * lost[:, :-1]).sum(-1)
    robust = lost @ np.cos(np.arange(12))
    return np.stack([clean, robust, members.mean(-1)], axis=-1)


def generations_of(search, alive):
    """A search's result, all masks that it scores, and their number after each generation."""
    calls, ends = [], []

    def evaluate(members):
        calls.extend(members)
        return objectives(members)

    found = search_group(KEY, alive, evaluate, search, lambda *_: ends.append(len(calls)))
    return found, np.stack(calls), ends


ALIVE = np.array([1, 1, 0, 1, 1, 1, 1, 1, 0, 1, 1, 1], np.float32)


def test_importance_is_the_increase_of_each_single_removal_and_orders_the_first_masks():
    search = dataclasses.replace(PRICED, population=64, generations=1, robust_weight=0.5)
    found, masks, [end] = generations_of(search, ALIVE)

    def value(mask):
        clean, robust, macs = objectives(mask[None])[0]
        return clean + 0.5 * robust + 1e-5 * macs

    expected = np.zeros(12)
    for i in np.flatnonzero(ALIVE):
        without = ALIVE.copy()
        without[i] = 0
        expected[i] = value(without) - value(ALIVE)
    np.testing.assert_allclose(found.importance, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(masks[:1], ALIVE[None])
    np.testing.assert_array_equal(masks[1:11].sum(-1), 9)
    order = [i for i in np.argsort(expected) if ALIVE[i]]
    # of the levels, 9 of 10 is among the single removals
    for mask, left in zip(masks[11:13], (6, 4), strict=True):
        assert set(np.flatnonzero(ALIVE - mask)) == set(order[: 10 - left])
    assert (
        end == len(masks) == 13
    )  # all masks with 9 filters were scored before the first generation


def test_the_first_generation_varies_the_order_of_importance_moderately():
    search = dataclasses.replace(PRICED, population=64, generations=1, levels=(0.5,))
    found, masks, _ = generations_of(search, ALIVE)
    drawn = masks[12:]
    order = [i for i in np.argsort(found.importance) if ALIVE[i]]
    assert len(drawn) > 5 and (drawn.sum(-1) == 5).all()
    share = drawn[:, order].mean(0)  # of masks that keep a filter, by increasing importance
    assert share[:3].max() < 0.4 < 0.6 < share[-3:].min()


def test_given_importance_replaces_single_removals():
    order, calls = np.arange(12.0)[::-1], []

    def evaluate(members):
        calls.extend(members)
        return objectives(members)

    found = search_group(KEY, ALIVE, evaluate, PRICED, importance=order)
    assert found.importance is order
    for mask, left in zip(
        calls, (9, 6, 4), strict=False
    ):  # the last filters are the least important
        assert set(np.flatnonzero(mask)) == set(np.flatnonzero(ALIVE)[:left])


def test_generations_alternate_between_the_levels():
    search = dataclasses.replace(PRICED, population=8, generations=7, single_removals=False)
    found, masks, ends = generations_of(search, ALIVE)
    assert found.importance is None
    for number, (first, last) in enumerate(itertools.pairwise([0, *ends])):
        assert (masks[first:last].sum(-1) == (9, 6, 4)[number % 3]).all()
        assert last > first or number >= 3
    assert (masks <= ALIVE).all()


def test_levels_need_a_strategy_that_compares_one_generation_only():
    for options in (
        {"levels": (0.9, 0.5)},
        {"levels": (0.9,), "strategy": "SNES", "decoder": "threshold"},
        {"levels": (0.9,), "strategy": "PSO"},
        {"single_removals": True},
        {"single_removals": True, "strategy": "SNES", "decoder": "threshold"},
    ):
        with pytest.raises(InputError, match="levels and single_removals need decoder topk"):
            Search(**options)
    with pytest.raises(InputError, match="each of levels"):
        Search(strategy="SNES", levels=(0.9, 0.0))
    with pytest.raises(InputError, match="each of levels"):
        Search(strategy="SNES", levels=(1.5,))


# ---- the method


@pytest.fixture(scope="module")
def problem(digits):
    return pruning_problem(digits)


def reported(problem, **changes):
    """The problem, and a list to which epochs of training are appended."""
    epochs = []
    return dataclasses.replace(
        problem, callbacks=Callbacks(on_epoch=epochs.append), **changes
    ), epochs


@pytest.fixture
def rounds(monkeypatch):
    """Arguments and results of all searches, in order."""
    found = []

    def record(*arguments, **options):
        found.append((arguments, coevolution.search_round(*arguments, **options)))
        return found[-1][1]

    monkeypatch.setattr(module, "search_round", record)
    return found


def test_importance_in_a_network_is_that_of_scoring_it_without_each_filter(problem):
    search = dataclasses.replace(PRICED, objective="accuracy", robust_weight=0.5)
    current = masking.ones(problem.architecture)
    current["conv2"] = current["conv2"].at[4:].set(0.0)
    result = coevolution.search_round(
        *(KEY, problem.classifier, problem.variables, current),
        *(problem.search, problem.attack, search),
        batch_size=32,
    )
    cost = problem.cost()

    def value(masks):
        errors = (
            1 - correct(problem.classifier, (problem.variables, masks), split).mean()
            for split in (problem.search, result.shared_sets["conv2"])
        )
        return np.dot([1, 0.5], list(errors)) + 1e-5 * cost(masks) / cost({})

    for i in range(4):
        without = current | {"conv2": current["conv2"].at[i].set(0.0)}
        expected = value(without) - value(current)
        assert result.groups["conv2"].importance[i] == pytest.approx(expected, abs=1e-6)
    assert not result.groups["conv2"].importance[4:].any()


def within_one_filter(problem, before, found):
    cost, limit = problem.cost(), problem.limit()
    masking.check(problem.architecture, found.masks)
    assert cost(found.masks) <= limit
    assert min(with_one_back(cost, before, found.masks)) > limit


@pytest.mark.parametrize("target", (Target("macs", 0.5), Target("params", 0.3)), ids=str)
def test_each_round_with_a_lagrangian_splice_meets_its_limit(problem, rounds, target):
    problem, epochs = reported(problem, target=target)
    found = ccsrp(KEY, problem, search=PRICED, rounds=3, early=1)
    within_one_filter(problem, rounds[-1][0][3], found)
    assert [epoch.epoch for epoch in epochs] == [0, 0, 0, 1]
    cost, (_, second, third) = problem.cost(), (arguments[3] for arguments, _ in rounds)
    for masks, share in ((second, 1 / 3), (third, 2 / 3)):
        assert 0.85 * problem.limit(share) < cost(masks) <= problem.limit(share)
    for earlier, later in ((second, third), (third, found.masks)):
        assert all((np.asarray(later[n]) <= np.asarray(earlier[n])).all() for n in later)


def test_faithful_rounds_remove_what_the_search_does_and_stop_at_the_target(problem, rounds):
    problem, epochs = reported(problem)
    found = ccsrp(KEY, problem, search=FAITHFUL, rounds=4)
    within_one_filter(problem, rounds[-1][0][3], found)
    assert len(epochs) == 4 and 1 <= len(rounds) < 4  # and the last has all remaining epochs
    assert [epoch.epoch for epoch in epochs] == [0] * (len(rounds) - 1) + [*range(5 - len(rounds))]
    costs = [problem.cost()(result.masks) for _, result in rounds]
    assert costs[-1] <= problem.limit()
    assert all(cost > problem.limit() for cost in costs[:-1])
    before, after = rounds[-1][0][3], rounds[-1][1].masks
    for name, mask in found.masks.items():  # no more filters were removed than by the search
        mask = np.asarray(mask)
        assert (np.asarray(after[name]) <= mask).all() and (mask <= np.asarray(before[name])).all()


def test_a_last_round_above_the_target_removes_more_filters(problem, rounds):
    problem, epochs = reported(problem, target=Target("macs", 0.15))
    found = ccsrp(KEY, problem, search=FAITHFUL, rounds=1)
    within_one_filter(problem, rounds[-1][0][3], found)
    [(_, result)] = rounds
    assert len(epochs) == 4 and problem.cost()(result.masks) > problem.limit()
    assert kept(found.masks) < kept(result.masks)


def test_the_default_number_of_rounds_follows_from_the_keep_floor(problem, rounds):
    """Input and output channels of a layer shrink: 0.8 ** (2 * 2) is about 0.4."""
    problem, epochs = reported(problem, target=Target("macs", 0.42))
    gentle = dataclasses.replace(PRICED, keep_floor=0.8)
    ccsrp(KEY, problem, search=gentle)
    assert len(rounds) == 2 and len(epochs) == 4


SMALL = dataclasses.replace(PRESETS["snes"], population=3, generations=2, multiple=2)


def test_inexact_rounds_end_with_the_first_within_the_target(problem, rounds):
    """Masks are those of the search, and every round trains the given number of epochs."""
    problem, epochs = reported(problem)
    pruned = METHODS["rounds"](KEY, problem, search=SMALL, rounds=5, epochs=1)
    assert 1 < len(rounds) < 5 and [epoch.epoch for epoch in epochs] == [0] * len(rounds)
    costs = [problem.cost()(found.masks) for _, found in rounds]
    assert costs[-1] <= problem.limit() < min(costs[:-1])
    jax.tree.map(np.testing.assert_array_equal, pruned.masks, rounds[-1][1].masks)


def test_rounds_end_when_no_group_can_lose_a_filter(problem, rounds):
    problem, epochs = reported(problem, target=Target("macs", 1e-6))
    coarse = dataclasses.replace(SMALL, multiple=8, residual_streams=True)
    pruned = METHODS["rounds"](KEY, problem, search=coarse, rounds=9, epochs=0)
    assert len(rounds) < 9 and not epochs
    assert not coarse.prunable(problem.architecture, pruned.masks)


@pytest.mark.parametrize("name", ("rounds", "ccsrp-priced"))
def test_rounds_resume_from_any_of_their_states_bit_for_bit(problem, name):
    small = {"population": 3, "generations": 2, "multiple": 1}
    search = dataclasses.replace(METHODS[name].keywords["search"], **small)
    method, states = partial(METHODS[name], search=search, rounds=2), []
    spliced = []
    whole = method(
        *(KEY, problem),
        on_splice=lambda state, found: spliced.append((state, found)),
        on_round=lambda state, found: states.append(state),
    )
    assert [state.number for state in states] == [1, 2]
    assert [state.number for state, _ in spliced] == [1, 2]
    for (before, found), after in zip(spliced, states, strict=True):
        assert found.groups.keys() <= before.masks.keys()
        jax.tree.map(np.testing.assert_array_equal, before.masks, after.masks)
    assert spliced[0][0].variables is problem.variables
    assert spliced[1][0].variables is states[0].variables
    for state in (RoundState(0, problem.variables, masking.ones(problem.architecture)), *states):
        again = method(KEY, problem, start=state)
        jax.tree.map(np.testing.assert_array_equal, whole[:2], again[:2])


def test_rounds_use_the_given_keys(problem, rounds):
    drawn = []

    def keys(key, number):
        drawn.append(RoundKeys(*(jax.random.fold_in(key, 10 * number + i) for i in range(3))))
        return drawn[-1]

    given = ccsrp(KEY, problem, search=FAITHFUL, rounds=2, keys=keys)
    searched = [arguments[0] for arguments, _ in rounds]
    assert all(a is b.search for a, b in zip(searched, drawn, strict=True))
    default = ccsrp(KEY, problem, search=FAITHFUL, rounds=2, keys=round_keys)
    plain = ccsrp(KEY, problem, search=FAITHFUL, rounds=2)
    jax.tree.map(np.testing.assert_array_equal, default[:2], plain[:2])
    kernels = [each.variables["params"]["conv1"]["kernel"] for each in (given, plain)]
    assert not np.array_equal(*kernels)


def test_without_a_robust_weight_the_attack_does_not_matter(problem, monkeypatch):
    def masks_under(attack, weight):
        search = dataclasses.replace(FAITHFUL, robust_weight=weight, objective="loss")
        attacked = dataclasses.replace(problem, attack=attack)
        return ccsrp(KEY, attacked, search=search, rounds=1)

    weak, strong = PGD(0.001, 1), PGD(0.5, 2)
    ccep, again = (masks_under(attack, 0.0) for attack in (weak, strong))
    jax.tree.map(np.testing.assert_array_equal, ccep[:2], again[:2])
    robust, other = (masks_under(attack, 1.0) for attack in (weak, strong))
    assert any(not np.array_equal(robust.masks[name], other.masks[name]) for name in other.masks)


def test_clean_training_equals_training_without_an_attack(problem):
    robust = Recipe(epochs=2, batch_size=32, learning_rate=2e-3, adversarial=PGD(0.1, 1))
    robust = dataclasses.replace(robust, trades=1.0)
    plain = dataclasses.replace(robust, adversarial=None, trades=0.0)
    results = [
        ccsrp(KEY, dataclasses.replace(problem, recipe=recipe), search=FAITHFUL, rounds=1, **option)
        for recipe, option in (
            (robust, {"clean_training": True}),
            (plain, {}),
            (robust, {}),
        )
    ]
    ablated, clean, attacked = (each.variables["params"] for each in results)
    jax.tree.map(np.testing.assert_array_equal, ablated, clean)
    assert not np.array_equal(ablated["conv1"]["kernel"], attacked["conv1"]["kernel"])


@pytest.mark.parametrize("search", (FAITHFUL, PRICED), ids=("faithful", "priced"))
def test_passes_count_all_scoring_and_attacks(problem, monkeypatch, search):
    counted, (score, attack) = {"scored": 0, "attacked": 0}, (fitness.score, PGD.__call__)

    def scoring(task, members, **options):
        counted["scored"] += 2 * 32 * len(members)
        return score(task, members, **options)

    def attacking(self, classifier, params, images, labels, key):
        counted["attacked"] += 2 * len(images)  # steps
        return attack(self, classifier, params, images, labels, key)

    monkeypatch.setattr(fitness, "score", scoring)
    monkeypatch.setattr(PGD, "__call__", attacking)
    found = ccsrp(KEY, problem, search=search, rounds=2)
    assert found.search.backward == counted["attacked"] > 0
    assert found.search.forward == counted["scored"] + counted["attacked"]
    assert jnp.isfinite(found.variables["params"]["conv1"]["kernel"]).all()
