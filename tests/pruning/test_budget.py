"""Budgets are met to within one filter or weight, in every measure."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import busy

from ccsrp_jax.networks import cost, masks, zoo
from ccsrp_jax.networks.architecture import groups, kernel_shapes
from ccsrp_jax.pruning import budget
from ccsrp_jax.pruning.budget import Target
from ccsrp_jax.utils.errors import InputError

ARCHITECTURE = zoo.plain((9, "A", 12), (8, 8, 1), 10, dense=(7,), time_steps=2)
RESIDUAL = zoo.build("resnet8", (8, 8, 1), 10, width=0.5, time_steps=2)


def random_scores(architecture, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.uniform(size=n) for name, n in groups(architecture).items()}


@pytest.mark.parametrize("architecture", (ARCHITECTURE, RESIDUAL))
@pytest.mark.parametrize("measure", ("macs", "params"))
def test_filters_are_removed_in_order_until_the_budget_is_met(architecture, measure):
    scores = random_scores(architecture)
    costs = budget.cost_of(architecture, measure)
    limit = 0.5 * costs(masks.ones(architecture))
    cut = budget.prune_to_budget(scores, costs, limit)
    gone = [(scores[g][i], g, i) for g, mask in cut.items() for i in np.flatnonzero(mask == 0)]
    assert costs(cut) <= limit
    _, group, last = max(gone)
    one_more = cut | {group: cut[group] + (np.arange(len(cut[group])) == last)}
    assert costs(one_more) > limit
    kept = {g: scores[g][mask == 1] for g, mask in cut.items()}
    for values in kept.values():  # kept filters score higher, or are the last of their group
        assert len(values) == 1 or values.min() > max(gone)[0]


def test_every_group_keeps_its_best_filters():
    scores = random_scores(ARCHITECTURE)
    scores["conv1"] -= 5
    costs = budget.cost_of(ARCHITECTURE, "params")
    cut = budget.prune_to_budget(scores, costs, 0.3 * costs({}), least=2)
    assert cut["conv1"].sum() == 2
    assert set(np.flatnonzero(cut["conv1"])) == set(np.argsort(scores["conv1"])[-2:])


def test_uniform_ranking_removes_the_same_share_of_every_group():
    scores = random_scores(ARCHITECTURE)
    scores["conv2"] += 100  # with a global ranking, no filter of it would be removed
    costs = budget.cost_of(ARCHITECTURE, "macs")
    cut = budget.prune_to_budget(budget.uniform_ranking(scores), costs, 0.4 * costs({}))
    for name, mask in cut.items():
        share = mask.mean()
        assert abs(share - np.mean([m.mean() for m in cut.values()])) <= 1.01 / min(
            len(m) for m in cut.values()
        )
        assert scores[name][mask == 1].min() > scores[name][mask == 0].max()


def test_a_group_of_twice_the_weight_loses_twice_the_share():
    wide = zoo.plain((400, 400), (8, 8, 1), 10)
    scores, costs = random_scores(wide), budget.cost_of(wide, "params")
    weights = {"conv1": 1.0, "conv2": 2.0}
    cut = budget.prune_to_budget(budget.uniform_ranking(scores, weights), costs, 0.6 * costs({}))
    lost = {name: 1 - mask.mean() for name, mask in cut.items()}
    assert lost["conv2"] == pytest.approx(2 * lost["conv1"], abs=0.01)


def test_weights_are_removed_one_by_one():
    rng = np.random.default_rng(0)
    shapes = kernel_shapes(ARCHITECTURE)
    scores = {masks.kernel(name): rng.uniform(size=shape) for name, shape in shapes.items()}
    costs = budget.cost_of(ARCHITECTURE, "params")
    limit = round(0.2 * costs({}))
    cut = budget.prune_to_budget(scores, costs, limit)
    assert costs(cut) == limit
    masks.check(ARCHITECTURE, cut)
    threshold = max(scores[name][mask == 0].max() for name, mask in cut.items())
    best = {name: values.max() for name, values in scores.items()}
    for name, mask in cut.items():
        kept = scores[name][mask == 1]
        assert ((kept > threshold) | (kept == best[name])).all()


def test_synops_are_measured_on_images():
    variables = busy(ARCHITECTURE, seed=0)
    images = jax.random.uniform(jax.random.key(0), (8, 8, 8, 1))
    costs = budget.cost_of(ARCHITECTURE, "synops", variables, images)
    dense = sum(cost.synops(ARCHITECTURE, variables, images).values())
    assert costs({}) == dense > 0
    cut = budget.prune_to_budget(random_scores(ARCHITECTURE), costs, 0.5 * dense)
    assert costs(cut) <= 0.5 * dense
    assert any((mask == 1).sum() > 1 for mask in cut.values())


def test_budgets_that_cannot_be_met_are_refused():
    costs = budget.cost_of(ARCHITECTURE, "macs")
    with pytest.raises(InputError, match="cannot be reached"):
        budget.prune_to_budget(random_scores(ARCHITECTURE), costs, 1)
    broken = random_scores(ARCHITECTURE) | {"conv1": np.full(9, np.nan)}
    with pytest.raises(InputError, match="are not all finite"):
        budget.prune_to_budget(broken, costs, 1000)
    with pytest.raises(InputError, match="measure of a target"):
        Target("watts")
    with pytest.raises(InputError, match="target fraction"):
        Target("macs", 0.0)


def test_masks_have_the_shapes_of_scores_given_as_jax_arrays():
    scores = {name: jnp.asarray(s) for name, s in random_scores(ARCHITECTURE).items()}
    costs = budget.cost_of(ARCHITECTURE, "macs")
    cut = budget.prune_to_budget(scores, costs, costs({}))
    assert all((mask == 1).all() and mask.shape == scores[name].shape for name, mask in cut.items())
