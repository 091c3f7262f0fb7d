"""N:M sparsity: the pattern in every block, the distribution of samples, and the search."""

import dataclasses
from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import pruning_problem

from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.data.splits import to_unit_range
from ccsrp_jax.pruning.budget import Target
from ccsrp_jax.pruning.methods.nm import (
    blocks,
    keep_counts,
    masks_from_logits,
    nm,
    patterns,
    sample,
    unblock,
)
from ccsrp_jax.pruning.problem import Passes, weight_masks
from ccsrp_jax.utils.errors import InputError

KEY = jax.random.key(5)


@pytest.fixture(scope="module")
def problem(digits):
    return pruning_problem(digits, target=Target("macs", 0.6))


def untrained(key, problem, variables, masks):
    """Replaces `finetune` by no training."""
    return variables, masks


def counts(mask, m):
    """By size of a block of input channels, the numbers of weights that blocks keep."""
    found = {}
    for start in range(0, mask.shape[-2], m):
        part = np.asarray(mask)[..., start : start + m, :]
        found.setdefault(part.shape[-2], set()).update(np.unique(part.sum(-2)).tolist())
    return found


def test_every_block_keeps_n_of_m_and_incomplete_blocks_their_share(problem):
    masks = {"a/kernel": jnp.ones((3, 3, 11, 2)), "b/kernel": jnp.ones((6, 5))}
    rng = np.random.default_rng(0)
    logits = {
        name: blocks(jnp.asarray(rng.normal(size=mask.shape), jnp.float32), 4, -1e9)
        for name, mask in masks.items()
    }
    found = masks_from_logits(logits, masks, {"a/kernel": 2, "b/kernel": 1}, 4)
    assert counts(found["a/kernel"], 4) == {4: {2}, 3: {2}}  # ceil(3 / 2)
    assert counts(found["b/kernel"], 4) == {4: {1}, 2: {1}}
    values = np.asarray(unblock(logits["a/kernel"], 11))
    assert (values.shape, found["a/kernel"].shape) == ((3, 3, 11, 2), (3, 3, 11, 2))
    block, bits = values[1, 2, 4:8, 1], np.asarray(found["a/kernel"])[1, 2, 4:8, 1]
    np.testing.assert_array_equal(np.flatnonzero(bits), np.sort(np.argsort(block)[2:]))


def test_samples_are_drawn_from_the_softmax_without_replacement():
    logits, draws = jnp.array([[1.0, 0.0, -0.5, 0.3]]), 20000
    keys = jax.random.split(KEY, draws)
    found = jax.jit(jax.vmap(lambda key: sample(key, logits, np.array([2]), 0.5)))(keys)
    np.testing.assert_allclose(found.sum(-1), 2, rtol=1e-5)
    share, expected = np.exp(np.asarray(logits[0])), np.zeros(4)
    for order in permutations(range(4), 2):  # Plackett and Luce
        left, chance = share.sum(), 1.0
        for place in order:
            chance, left = chance * share[place] / left, left - share[place]
        expected[list(order)] += chance
    np.testing.assert_allclose(found.mean((0, 1)), expected, atol=0.012)


def test_gradients_of_samples_are_those_of_the_relaxed_top_k():
    logits, temperature = np.array([0.4, -0.3, 0.1, 0.9]), 0.7
    noise = np.asarray(jax.random.gumbel(KEY, (1, 4)), np.float64)[0]

    def relaxed(logits):
        left, total = (logits + noise) / temperature, 0
        for _ in range(3):
            share = np.exp(left) / np.exp(left).sum()
            total, left = total + share, left + np.log(1 - share)
        return total

    weights = np.array([1.0, -2.0, 0.5, 3.0])
    gradients = [
        weights @ (relaxed(logits + s) - relaxed(logits - s)) / 2e-5 for s in 1e-5 * np.eye(4)
    ]

    @jax.jit
    @jax.grad
    def found(logits):
        return sample(KEY, logits[None], np.array([3]), temperature)[0] @ weights

    np.testing.assert_allclose(found(jnp.asarray(logits, jnp.float32)), gradients, rtol=2e-3)


@pytest.mark.parametrize("mixed", (False, True))
def test_n_is_the_largest_that_the_target_allows(problem, mixed, monkeypatch):
    monkeypatch.setattr("ccsrp_jax.pruning.methods.nm.finetune", untrained)
    found = nm(KEY, problem, mixed=mixed)
    cost, limit = problem.cost("params"), problem.limit(measure="params")
    whole = weight_masks(problem)
    n = {name: max(counts(mask, 4)[4]) for name, mask in found.masks.items() if mask.shape[-2] > 1}
    assert set(found.masks) == set(whole) == {"conv1/kernel", "conv2/kernel", "fc1/kernel"}
    assert np.all(found.masks["conv1/kernel"])  # which reads one channel
    for name in n:
        assert counts(found.masks[name], 4) == {4: {n[name]}}
    assert cost(found.masks) <= limit
    rest = cost(found.masks) - sum(int(np.sum(found.masks[name])) for name in n)
    sizes = {name: whole[name].size for name in n}
    used = {name: sizes[name] * n[name] / 4 for name in n}
    assert rest + sum(used.values()) == cost(found.masks)
    if mixed:
        smallest = min(n, key=n.get)
        used[smallest] += sizes[smallest] / 4
        assert max(n.values()) - min(n.values()) <= 1
    else:
        assert len(set(n.values())) == 1
        used = {name: used[name] + sizes[name] / 4 for name in n}
    assert rest + sum(used.values()) > limit


def test_patterns_fall_from_m_to_1_largest_layers_first():
    masks = {"a": np.ones((2, 3)), "b": np.ones((4, 4)), "c": np.ones((1, 1))}
    assert [p["a"] for p in patterns(masks, 4, False)] == [4, 3, 2, 1]
    assert [tuple(p.values()) for p in patterns(masks, 3, True)] == [
        (3, 3, 3), (3, 2, 3), (2, 2, 3), (2, 2, 2), (2, 1, 2), (1, 1, 2), (1, 1, 1)
    ]  # fmt: skip
    assert keep_counts(masks, {"a": 1, "b": 3, "c": 1}, 4)["b"].tolist() == [3]


def test_the_search_lowers_the_loss_with_weights_frozen(problem, monkeypatch):
    searching = dataclasses.replace(problem, recipe=dataclasses.replace(problem.recipe, epochs=40))
    monkeypatch.setattr("ccsrp_jax.pruning.methods.nm.finetune", untrained)
    found = []

    @jax.jit
    def loss(pruned):
        images, labels = jnp.asarray(to_unit_range(problem.search.images)), problem.search.labels
        logits = problem.classifier(pruned, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    for share in (0.0, 1.0):
        found.append(nm(KEY, searching, epochs_share=share, prior=0, rate=0.3))
    assert [each.search for each in found] == [Passes(32, 32), Passes(40 * 32, 40 * 32)]
    for layer, leaves in problem.variables["params"].items():
        for name, leaf in leaves.items():
            np.testing.assert_array_equal(found[1].variables["params"][layer][name], leaf)
    assert loss(found[1][:2]) < loss(found[0][:2]) - 0.15


@pytest.mark.parametrize("robust, parts", ((None, 1), (0.5, 2)))
def test_a_robust_loss_attacks_search_images_and_counts_it(problem, robust, parts, monkeypatch):
    monkeypatch.setattr("ccsrp_jax.pruning.methods.nm.finetune", untrained)
    recipe = dataclasses.replace(problem.recipe, adversarial=PGD(0.05, 1))
    found = nm(KEY, dataclasses.replace(problem, recipe=recipe), robust=robust, epochs_share=0.5)
    assert found.search == Passes(2 * 32 * (parts + 2), 2 * 32 * (parts + 2))


def test_the_mask_is_fixed_in_training_and_meets_the_target(problem):
    found = nm(KEY, problem)
    assert found.search == Passes(2 * 32, 2 * 32)
    assert problem.cost("params")(found.masks) <= problem.limit(measure="params")
    before, after = (v["params"]["conv2"]["kernel"] for v in (problem.variables, found.variables))
    assert not np.array_equal(before, after)


def test_a_target_below_one_of_m_is_refused(problem):
    hard = dataclasses.replace(problem, target=Target("params", 0.2))
    with pytest.raises(InputError, match="1:2 leaves"):
        nm(KEY, hard, m=2)
