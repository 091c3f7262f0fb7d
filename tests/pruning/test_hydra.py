"""HYDRA: the search changes scores only, by the gradient of the robust loss for the masks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import pruning_problem

from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.data.splits import Split, to_unit_range
from ccsrp_jax.networks import masks
from ccsrp_jax.networks.architecture import kernel_shapes
from ccsrp_jax.pruning import budget
from ccsrp_jax.pruning.methods import hydra as module
from ccsrp_jax.pruning.methods.hydra import (
    ScoreSearch,
    hydra,
    hydra_weights,
    initial_scores,
    search_scores,
)
from ccsrp_jax.pruning.problem import Callbacks, Passes, weight_masks
from ccsrp_jax.training.recipe import Recipe

KEY = jax.random.key(3)
NONE = Recipe(epochs=0, batch_size=32)  # of fine-tuning


@pytest.fixture(scope="module")
def problem(digits):
    """A problem without epochs of fine-tuning, so that weights are those after the search."""
    return pruning_problem(digits, recipe=NONE)


def counts_of(problem, scores):
    cost, limit = problem.cost("params"), problem.limit(measure="params")
    cut = budget.prune_to_budget(
        budget.uniform_ranking({n: np.abs(s) for n, s in scores.items()}), cost, limit
    )
    return {name: int(mask.sum()) for name, mask in cut.items()}


def loss(problem, scores, counts):
    """Cross-entropy of the frozen network on training images, its masks ranked by numpy."""
    chosen = {}
    for name, values in scores.items():
        rank = np.argsort(np.argsort(-np.abs(np.asarray(values).ravel())))
        chosen[name] = (rank < counts[name]).astype(np.float32).reshape(values.shape)
    images, labels = problem.train
    logits = jax.jit(problem.classifier)(
        (problem.variables, chosen), to_unit_range(jnp.asarray(images))
    )
    return float(optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean())


def test_masks_are_the_largest_absolute_scores_with_a_straight_through_gradient():
    rng = np.random.default_rng(0)
    scores = {"a": rng.normal(size=(3, 3, 2, 5)).astype(np.float32), "b": rng.normal(size=9)}
    scores = {name: jnp.asarray(values, jnp.float32) for name, values in scores.items()}
    weights = {name: jnp.asarray(rng.normal(size=s.shape)) for name, s in scores.items()}
    counts = {"a": 31, "b": 9}
    found = module.straight_through(scores, counts)
    for name, mask in found.items():
        order = np.argsort(-np.abs(scores[name]).ravel())
        expected = np.zeros(mask.size)
        expected[order[: counts[name]]] = 1
        np.testing.assert_array_equal(np.asarray(mask).ravel(), expected)

    def weighted(scores):
        masks = module.straight_through(scores, counts)
        return sum(jnp.vdot(weights[name], mask) for name, mask in masks.items())

    for name, gradient in jax.grad(weighted)(scores).items():
        np.testing.assert_allclose(gradient, weights[name] * np.sign(scores[name]), rtol=1e-6)


def test_initial_scores_are_scaled_weights(problem):
    shapes = kernel_shapes(problem.architecture)
    kernels = {n: np.asarray(problem.variables["params"][n]["kernel"]) for n in shapes}
    single = initial_scores(problem, weight_masks(problem))
    for name, scores in single.items():
        kernel = kernels[name.removesuffix("/kernel")]
        scale = np.sqrt(6 / np.prod(kernel.shape[:-1]))
        np.testing.assert_allclose(scores, scale * kernel / np.abs(kernel).max(), rtol=1e-6)
    for name, scores in initial_scores(problem, masks.ones(problem.architecture)).items():
        norms = np.abs(kernels[name]).reshape(-1, kernels[name].shape[-1]).sum(0)
        scale = np.sqrt(6 / np.prod(kernels[name].shape[:-1]))
        np.testing.assert_allclose(scores, scale * norms / norms.max(), rtol=1e-5)


def test_a_step_follows_the_gradient_of_the_masked_network(problem, digits):
    one = pruning_problem(digits, recipe=NONE, train=Split(*(part[:32] for part in digits.train)))
    before = initial_scores(one, weight_masks(one))
    counts = counts_of(one, before)
    after, passes = search_scores(
        KEY, one, before, counts, ScoreSearch(epochs=1, learning_rate=0.3, robust=False)
    )
    assert passes == Passes(32, 32)
    params, kept = dict(one.variables["params"]), module.straight_through(before, counts)
    for name, mask in kept.items():
        layer = name.removesuffix("/kernel")
        params[layer] = {**params[layer], "kernel": params[layer]["kernel"] * mask}

    def masked_loss(params):  # without masks, with zeros in the weights instead
        logits = one.classifier(({**one.variables, "params": params}, {}), images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    images, labels = to_unit_range(jnp.asarray(one.train.images)), one.train.labels
    gradients = jax.jit(jax.grad(masked_loss))(params)
    for name, scores in before.items():
        layer = name.removesuffix("/kernel")
        gradient = gradients[layer]["kernel"] * one.variables["params"][layer]["kernel"]
        expected = scores - 0.3 * gradient * np.sign(scores)
        moved = np.abs(after[name] - scores).max()
        assert moved > 1e-4
        np.testing.assert_allclose(after[name], expected, atol=1e-3 * moved)


def test_the_search_lowers_the_loss_of_the_frozen_network(problem):
    before = initial_scores(problem, weight_masks(problem))
    counts = counts_of(problem, before)
    after, _ = search_scores(
        KEY, problem, before, counts, ScoreSearch(epochs=20, learning_rate=10.0, robust=False)
    )
    assert loss(problem, after, counts) < loss(problem, before, counts) - 0.15


def test_attacks_of_the_recipe_or_the_problem_are_used_and_counted(problem, digits, monkeypatch):
    used = []

    def record(attack, classifier, params, images, labels, key):
        used.append((attack.eps, attack.steps))
        assert set(np.unique(params[1]["conv2"])) == {0, 1}
        return images

    monkeypatch.setattr(PGD, "__call__", record)
    robust = Recipe(epochs=0, batch_size=32, adversarial=PGD(0.1, 7))
    trained_robustly = pruning_problem(digits, recipe=robust)
    scores = initial_scores(problem, masks.ones(problem.architecture))
    counts = {name: len(values) // 2 for name, values in scores.items()}
    for problem_, kind in ((problem, (0.05, 2)), (trained_robustly, (0.1, 7))):
        used.clear()
        _, passes = search_scores(KEY, problem_, scores, counts, ScoreSearch(epochs=1))
        assert used == [kind] * 2
        assert passes == Passes(64 * (kind[1] + 1), 64 * (kind[1] + 1))


@pytest.mark.parametrize("method", (hydra, hydra_weights))
def test_weights_do_not_change_and_every_layer_loses_the_same_share(problem, method):
    before = jax.tree.map(np.array, problem.variables)
    found = method(KEY, problem, search=ScoreSearch(epochs=1))
    jax.tree.map(np.testing.assert_array_equal, found.variables, before)
    masks.check(problem.architecture, found.masks)
    measure = "macs" if method is hydra else "params"
    assert problem.cost(measure)(found.masks) <= problem.limit(measure=measure)
    kept = [np.mean(mask) for mask in found.masks.values()]
    assert max(kept) - min(kept) <= 1 / min(mask.size for mask in found.masks.values()) + 1e-6
    costs = []
    for name, mask in found.masks.items():
        more = np.asarray(mask).copy().ravel()
        more[np.argmin(more)] = 1
        costs.append(problem.cost(measure)(found.masks | {name: more.reshape(mask.shape)}))
    assert max(costs) > problem.limit(measure=measure)  # no more than needed were removed
    assert found.search == Passes(3 * 64, 3 * 64)


def test_fine_tuning_uses_the_whole_recipe(digits):
    epochs = []
    problem_ = pruning_problem(digits, callbacks=Callbacks(on_epoch=epochs.append))
    found = hydra(KEY, problem_, search=ScoreSearch(robust=False))
    assert len(epochs) == 4
    assert found.search == Passes(64, 64)  # by default an epoch at least
    assert not np.array_equal(
        found.variables["params"]["conv1"]["kernel"],
        problem_.variables["params"]["conv1"]["kernel"],
    )
