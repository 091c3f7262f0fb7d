"""Widths by coevolution: shares that meet a budget, and candidates compared after training."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import pruning_problem

from ccsrp_jax.attacks.apgd import APGD
from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.data.splits import to_unit_range
from ccsrp_jax.networks import masks as masking
from ccsrp_jax.networks.gradients import Surrogate
from ccsrp_jax.pruning import best_of, budget, by_score, candidates, ccsrp_widths, criteria
from ccsrp_jax.pruning.candidates import finetune_once, score_after_finetuning
from ccsrp_jax.pruning.methods import ccsrp_widths as widths
from ccsrp_jax.pruning.problem import Callbacks, Passes, finetune
from ccsrp_jax.utils.errors import InputError

KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def problem(digits):
    return pruning_problem(digits)


@pytest.fixture
def scored(monkeypatch):
    """Candidates are scored by a function of their masks, without training, and recorded."""
    tried = []

    def use(score_of):
        def score(key, problem, prune, *, epochs=None):
            masks = prune.keywords["masks"]
            tried.append((np.asarray(jax.random.key_data(key)).tobytes(), masks))
            return float(score_of(masks)), Passes(100, 10)

        monkeypatch.setattr(candidates, "score_after_finetuning", score)
        return tried

    return use


def counts(masks):
    return {name: int(np.asarray(mask).sum()) for name, mask in masks.items()}


@pytest.mark.parametrize("shares", [(1.0, 1.0), (0.5, 1.0), (1.0, 0.25)])
def test_groups_keep_filters_in_proportion_to_their_shares(shares):
    rng = np.random.default_rng(0)
    scores = {"a": rng.permutation(40), "b": rng.permutation(20)}
    placed = budget.proportional_ranking(scores, dict(zip(scores, shares, strict=True)))
    for limit in (10, 20, 30):
        masks = budget.prune_to_budget(placed, lambda m: sum(x.sum() for x in m.values()), limit)
        kept = counts(masks)
        assert sum(kept.values()) == limit
        assert abs(kept["a"] / 40 / shares[0] - kept["b"] / 20 / shares[1]) <= 1 / 20 / min(shares)
        for name, mask in masks.items():  # the highest are kept
            assert scores[name][mask > 0].min() == len(mask) - kept[name]


def test_a_share_of_more_than_all_filters_keeps_all():
    scores = {"a": np.arange(4.0), "b": np.arange(16.0)}
    placed = budget.proportional_ranking(scores, {"a": 100.0, "b": 1.0})
    masks = budget.prune_to_budget(placed, lambda m: sum(x.sum() for x in m.values()), 8)
    assert counts(masks) == {"a": 4, "b": 4}


@pytest.mark.parametrize("wide", ["conv1", "conv2"])
def test_the_widest_group_is_the_one_with_the_best_scores(problem, scored, wide):
    tried = scored(lambda masks: -masks[wide].sum())
    found = ccsrp_widths(KEY, problem, search=None, factors=(0.7, 1.4))
    most = max(counts(masks)[wide] for _, masks in tried)
    assert counts(found.masks)[wide] == most
    order, _ = criteria.taylor(KEY, problem, problem.variables, masking.ones(problem.architecture))
    shares = {name: 1e6 if name == wide else 1.0 for name in order}
    placed = budget.proportional_ranking(order, shares)
    end = budget.prune_to_budget(placed, problem.cost(), problem.limit())
    assert most == counts(end)[wide]  # the largest width that the budget allows


def test_every_candidate_meets_the_target_and_is_scored_once_with_the_same_key(problem, scored):
    tried = scored(lambda masks: abs(masks["conv1"].sum() - 5))
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
def test_evolved_masks_keep_the_widths_and_are_used_if_better(problem, scored, better):
    tried = scored(lambda masks: -len(tried) if better else len(tried))
    search = dataclasses.replace(widths.SEARCH, population=3, generations=2)
    found = ccsrp_widths(KEY, problem, search=search, factors=())
    [(_, ordered), (_, evolved)] = tried
    assert counts(ordered) == counts(evolved)
    for name in ordered:
        assert np.array_equal(found.masks[name], (evolved if better else ordered)[name])


def test_candidates_count_as_search_and_training_uses_the_recipe(problem):
    steps, epochs = [], []
    observed = dataclasses.replace(
        problem,
        recipe=dataclasses.replace(problem.recipe, epochs=2, adversarial=PGD(0.05, 3)),
        callbacks=Callbacks(on_epoch=epochs.append, on_step=lambda: steps.append(1)),
    )
    found = ccsrp_widths(KEY, observed, search=None, factors=(), epochs=1)
    assert len(steps) == 2 * 2 and len(epochs) == 2
    taylor, images = 32 * (2 + 2), 32
    candidate_passes = 64 * (1 + 3), images * 26
    assert found.search.backward == taylor + sum(candidate_passes)
    assert found.search.forward == taylor + sum(candidate_passes) + 2 * images


def firsts(scores, kept):
    """By group, indices of the highest scores."""
    return {
        name: set(np.argsort(-np.asarray(values), kind="stable")[: kept[name]].tolist())
        for name, values in scores.items()
    }


def test_widths_use_the_best_order_and_masks_the_best_order_at_these_widths(problem, scored):
    """The second order is best at equal shares, the third when the second group is wider."""
    rng = np.random.default_rng(4)
    widths_ = {name: len(mask) for name, mask in masking.ones(problem.architecture).items()}
    orders = [{name: rng.permutation(n) for name, n in widths_.items()} for _ in range(3)]
    calls = [lambda *_, scores=scores: (scores, Passes(1, 2)) for scores in orders]

    def by(masks, number):
        kept = firsts(orders[number], counts(masks))
        return all(set(np.flatnonzero(mask).tolist()) == kept[n] for n, mask in masks.items())

    tried_widths = []

    def score_of(masks):
        width = int(masks["conv2"].sum())
        tried_widths.append(width)
        better = 2 if width > tried_widths[0] else 1
        return -width - 0.5 * by(masks, better)

    tried = scored(score_of)
    found = ccsrp_widths(KEY, problem, orders=calls, search=None, factors=(2.0,))
    masks = [masks for _, masks in tried]
    assert [by(m, n) for n, m in enumerate(masks[:3])] == [True] * 3
    assert all(by(m, 1) for m in masks[3:-2])  # widths are varied in the order that was best
    assert by(masks[-2], 0) and by(masks[-1], 2)
    assert by(found.masks, 2) and counts(found.masks) == counts(masks[-1]) == counts(masks[-2])
    assert counts(found.masks)["conv2"] == max(tried_widths) > tried_widths[0]
    assert found.search == Passes(100 * len(tried) + 3, 10 * len(tried) + 6)


def test_an_empty_list_of_orders_is_refused(problem):
    with pytest.raises(InputError, match="no orders"):
        ccsrp_widths(KEY, problem, orders=())


def test_given_shares_keep_filters_in_proportion(problem):
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


def test_best_of_takes_the_best_random_masks(problem, scored):
    tried = scored(lambda masks: masks["conv1"][0] + masks["conv2"][0] + 0.1 * masks["conv2"][1])
    found = best_of(KEY, problem, candidates=6)
    assert len({tuple(masks["conv2"]) for _, masks in tried}) > 1
    first = min(m["conv1"][0] + m["conv2"][0] + 0.1 * m["conv2"][1] for _, m in tried)
    assert (
        found.masks["conv1"][0] + found.masks["conv2"][0] + 0.1 * found.masks["conv2"][1] == first
    )
    assert found.search == Passes(600, 60)


def test_the_score_of_a_candidate_is_the_loss_after_training(problem):
    masks = masking.ones(problem.architecture)
    masks["conv1"] = masks["conv1"].at[2:5].set(0.0)
    recorded = []
    attacked_problem = dataclasses.replace(
        problem,
        attack=PGD(0.3, 2),
        callbacks=Callbacks(on_candidate=lambda *entry: recorded.append(entry)),
    )
    value, _ = score_after_finetuning(
        KEY, attacked_problem, partial(finetune_once, masks=masks), epochs=1
    )
    assert recorded == [(value, {"conv1": 5, "conv2": 12, "fc1": 10})]
    key_train, key_attack = jax.random.split(KEY)
    variables, _ = finetune(key_train, problem, problem.variables, masks, epochs=1)
    images = to_unit_range(jnp.asarray(problem.search.images))
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
