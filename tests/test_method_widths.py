"""Widths by coevolution: shares that meet a budget, and candidates compared after training."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import pruning_problem

from ccsrp_jax import budget
from ccsrp_jax import masks as masking
from ccsrp_jax.apgd import APGD
from ccsrp_jax.attacks import PGD
from ccsrp_jax.data import unit
from ccsrp_jax.gradients import Surrogate
from ccsrp_jax.methods import best_of, by_score, ccsrp_widths, criteria, widths
from ccsrp_jax.methods.problem import Passes, finetune

KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def problem(digits):
    return pruning_problem(digits)


@pytest.fixture
def heard(monkeypatch):
    """Auditions in the order of `wish`, a function of masks, without training."""
    tried = []

    def use(wish):
        def audition(key, problem, way, *, epochs=None):
            masks = way.keywords.get("masks")  # None: in rounds
            tried.append((np.asarray(jax.random.key_data(key)).tobytes(), masks))
            return float(wish(masks)), Passes(100, 10)

        monkeypatch.setattr(widths, "audition", audition)
        return tried

    return use


def counts(masks):
    return {name: int(np.asarray(mask).sum()) for name, mask in masks.items()}


@pytest.mark.parametrize("shares", [(1.0, 1.0), (0.5, 1.0), (1.0, 0.25)])
def test_groups_keep_filters_in_proportion_to_their_shares(shares):
    rng = np.random.default_rng(0)
    scores = {"a": rng.permutation(40), "b": rng.permutation(20)}
    placed = budget.proportioned(scores, dict(zip(scores, shares, strict=True)))
    for limit in (10, 20, 30):
        masks = budget.cut(placed, lambda m: sum(x.sum() for x in m.values()), limit)
        kept = counts(masks)
        assert sum(kept.values()) == limit
        assert abs(kept["a"] / 40 / shares[0] - kept["b"] / 20 / shares[1]) <= 1 / 20 / min(shares)
        for name, mask in masks.items():  # the highest stay
            assert scores[name][mask > 0].min() == len(mask) - kept[name]


def test_a_share_of_more_than_all_filters_keeps_all():
    scores = {"a": np.arange(4.0), "b": np.arange(16.0)}
    placed = budget.proportioned(scores, {"a": 100.0, "b": 1.0})
    masks = budget.cut(placed, lambda m: sum(x.sum() for x in m.values()), 8)
    assert counts(masks) == {"a": 4, "b": 4}


@pytest.mark.parametrize("wide", ["conv1", "conv2"])
def test_widths_go_where_auditions_are_best(problem, heard, wide):
    tried = heard(lambda masks: -masks[wide].sum())
    found = ccsrp_widths(KEY, problem, search=None, factors=(0.7, 1.4))
    most = max(counts(masks)[wide] for _, masks in tried)
    assert counts(found.masks)[wide] == most
    order, _ = criteria.taylor(KEY, problem, problem.variables, masking.ones(problem.architecture))
    shares = {name: 1e6 if name == wide else 1.0 for name in order}
    placed = budget.proportioned(order, shares)
    end = budget.cut(placed, problem.cost(), problem.limit())
    assert most == counts(end)[wide]  # as far as any division of the budget goes


def test_every_candidate_meets_the_target_and_is_auditioned_once_alike(problem, heard):
    tried = heard(lambda masks: abs(masks["conv1"].sum() - 5))
    ccsrp_widths(KEY, problem, search=None, cycles=2)
    cost, limit = problem.cost(), problem.limit()
    assert len({key for key, _ in tried}) == 1
    seen = [tuple(np.concatenate([np.asarray(m) for m in masks.values()])) for _, masks in tried]
    assert len(set(seen)) == len(seen) > 4
    for _, masks in tried:
        assert cost(masks) <= limit
        back = [
            cost(masks | {name: mask + (np.arange(len(mask)) == i)})
            for name, mask in masks.items()
            for i in np.flatnonzero(np.asarray(mask) == 0)
        ]
        assert max(back) > limit


@pytest.mark.parametrize("better", [True, False])
def test_evolved_masks_keep_the_widths_and_stay_if_they_are_better(problem, heard, better):
    tried = heard(lambda masks: -len(tried) if better else len(tried))
    search = dataclasses.replace(widths.SEARCH, population=3, generations=2)
    found = ccsrp_widths(KEY, problem, search=search, factors=())
    [(_, ordered), (_, evolved)] = tried
    assert counts(ordered) == counts(evolved)
    for name in ordered:
        assert np.array_equal(found.masks[name], (evolved if better else ordered)[name])


def test_training_takes_the_recipe_and_auditions_are_search(problem):
    steps, epochs = [], []
    told = dataclasses.replace(
        problem,
        recipe=dataclasses.replace(problem.recipe, epochs=2, adversarial=PGD(0.05, 3)),
        progress=lambda: steps.append(1),
        report=epochs.append,
    )
    found = ccsrp_widths(KEY, told, search=None, factors=(), epochs=1)
    assert len(steps) == 2 * 2 and len(epochs) == 2
    taylor, images = 32 * (2 + 2), 32
    audition = 64 * (1 + 3), images * 26
    assert found.search.backward == taylor + sum(audition)
    assert found.search.forward == taylor + sum(audition) + 2 * images


@pytest.mark.parametrize("better", [True, False])
def test_the_other_way_goes_in_rounds_to_the_same_shares_if_that_is_better(problem, heard, better):
    """The second group is to be wide; then either way ends at the shares that were found."""
    longer = dataclasses.replace(problem, recipe=dataclasses.replace(problem.recipe, epochs=2))
    tried = heard(
        lambda masks: (-1000 if better else 1000) if masks is None else -masks["conv2"].sum()
    )
    found = ccsrp_widths(KEY, longer, search=None, factors=(2.0,), rounds=3)
    assert [masks is None for _, masks in tried] == [False] * (len(tried) - 1) + [True]
    widest = max((masks for _, masks in tried[:-1]), key=lambda masks: masks["conv2"].sum())
    assert counts(found.masks) == counts(widest)
    scored = 32 * (2 + longer.attack.gradients)  # images, by Taylor's criterion
    assert found.search.backward == 10 * len(tried) + scored * (3 if better else 1)


def test_a_round_of_given_shares_keeps_filters_in_proportion(problem):
    taken = by_score(
        KEY, problem, criterion=criteria.l1, allocation={"conv1": 1.0, "conv2": 0.5, "fc1": 2.0}
    )
    dense = masking.ones(problem.architecture)
    shares = {name: float(mask.sum() / dense[name].size) for name, mask in taken.masks.items()}
    assert shares["fc1"] == 1.0 > shares["conv1"]
    assert abs(shares["conv1"] - 2 * shares["conv2"]) <= 2 / 12 + 1 / 8
    order, _ = criteria.l1(KEY, problem, problem.variables, dense)
    for name, mask in taken.masks.items():
        assert mask[np.argsort(np.asarray(order[name]))[: int((mask == 0).sum())]].sum() == 0


def test_the_control_takes_the_best_of_its_draws(problem, heard):
    tried = heard(lambda masks: masks["conv1"][0] + masks["conv2"][0] + 0.1 * masks["conv2"][1])
    found = best_of(KEY, problem, candidates=6)
    assert len({tuple(masks["conv2"]) for _, masks in tried}) > 1
    first = min(m["conv1"][0] + m["conv2"][0] + 0.1 * m["conv2"][1] for _, m in tried)
    assert (
        found.masks["conv1"][0] + found.masks["conv2"][0] + 0.1 * found.masks["conv2"][1] == first
    )
    assert found.search == Passes(600, 60)


def test_an_audition_is_the_loss_after_training(problem):
    masks = masking.ones(problem.architecture)
    masks["conv1"] = masks["conv1"].at[2:5].set(0.0)
    told = []
    tried = dataclasses.replace(
        problem, attack=PGD(0.3, 2), tried=lambda *entry: told.append(entry)
    )
    value, _ = widths.audition(KEY, tried, partial(widths.at_once, masks=masks), epochs=1)
    assert told == [(value, {"conv1": 5, "conv2": 12, "fc1": 10})]
    key_train, key_attack = jax.random.split(KEY)
    variables, _ = finetune(key_train, problem, problem.variables, masks, epochs=1)
    images = unit(jnp.asarray(problem.search.images))
    labels = jnp.asarray(problem.search.labels)
    narrow = problem.classifier.with_backward(Surrogate("atan", 0.5))
    attacked = APGD(0.3, 25, loss="margin")(
        narrow, (variables, masks), images, labels, jax.random.fold_in(key_attack, 0)
    )
    clean, fooled = (
        float(
            optax.softmax_cross_entropy_with_integer_labels(
                problem.classifier((variables, masks), version), labels
            ).mean()
        )
        for version in (images, attacked)
    )
    assert fooled > clean + 1e-3
    assert value == pytest.approx(clean + fooled, rel=1e-5)
