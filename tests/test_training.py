import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccsrp_jax import compaction, masks, training
from ccsrp_jax.attacks import PGD
from ccsrp_jax.data import Split
from ccsrp_jax.errors import InputError
from ccsrp_jax.models import Classifier
from ccsrp_jax.training import Recipe


@pytest.fixture(scope="module")
def split(digits):
    return Split(digits.train.images[:24], digits.train.labels[:24])


def test_one_batch_can_be_overfitted(network, split):
    architecture, variables = network
    recipe = Recipe(epochs=60, batch_size=24, learning_rate=0.02)
    record = []
    classifier = Classifier(architecture)
    trained = training.train(
        jax.random.key(0),
        classifier,
        variables,
        masks.ones(architecture),
        split,
        recipe,
        report=record.append,
    )
    assert record[-1].accuracy == pytest.approx(1.0) and record[-1].loss < 0.2 * record[0].loss
    assert not np.allclose(
        trained["batch_stats"]["norm1"]["mean"], variables["batch_stats"]["norm1"]["mean"]
    )


@pytest.mark.parametrize("adversarial", [None, PGD(0.1, 2)])
def test_masked_network_trains_like_its_compact_twin(network, split, adversarial):
    architecture, variables = network
    mask = masks.random(jax.random.key(5), architecture, 0.6)
    recipe = Recipe(epochs=1, batch_size=12, adversarial=adversarial, weight_decay=1e-2)

    def trained(architecture, variables, mask):
        return training.train(
            jax.random.key(0), Classifier(architecture), variables, mask, split, recipe
        )

    masked = compaction.compact(architecture, trained(architecture, variables, mask), mask)[1]
    smaller, weights = compaction.compact(architecture, variables, mask)
    compact = trained(smaller, weights, masks.ones(smaller))
    chex.assert_trees_all_close(masked, compact, atol=2e-4)
    changed = jax.tree.map(lambda a, b: float(abs(a - b).max()), masked, weights)
    assert min(jax.tree.leaves(changed["params"])) > 1e-3


@pytest.mark.parametrize("encoding", ("poisson", "gaussian"))
def test_a_stochastic_encoding_trains_and_follows_the_key(network, split, encoding):
    architecture, variables = network
    classifier = Classifier(dataclasses.replace(architecture, encoding=encoding))
    recipe = Recipe(epochs=1, batch_size=24, adversarial=PGD(0.1, 1))

    def trained(seed):
        key = jax.random.key(seed)
        return training.train(key, classifier, variables, {}, split, recipe)["params"]

    first, again, other = trained(0), trained(0), trained(1)
    chex.assert_trees_all_equal(first, again)
    assert not np.allclose(first["conv1"]["kernel"], other["conv1"]["kernel"])
    assert not np.allclose(first["conv1"]["kernel"], variables["params"]["conv1"]["kernel"])


def test_weight_decay_leaves_batch_norm_and_biases_alone(network):
    _, variables = network
    rule = training.optimizer(0.5)
    params = variables["params"]
    still = jax.tree.map(jnp.zeros_like, params)
    direction, _ = rule.update(still, rule.init(params), params)
    for path, value in jax.tree_util.tree_leaves_with_path(direction):
        assert bool((value != 0).any()) == (path[-1].key == "kernel")


def test_attack_in_training_leaves_batch_statistics_alone(network, split):
    architecture, variables = network
    recipe = Recipe(epochs=1, batch_size=24, adversarial=PGD(0.0, 3), clean_weight=0.0)
    plain = Recipe(epochs=1, batch_size=24)
    whole = masks.ones(architecture)
    by_attack, by_images = (
        training.train(jax.random.key(0), Classifier(architecture), variables, whole, split, r)
        for r in (recipe, plain)
    )
    chex.assert_trees_all_close(by_attack, by_images, atol=1e-6)


def test_same_key_same_weights(network, split):
    architecture, variables = network
    recipe = Recipe(epochs=2, batch_size=8, adversarial=PGD(0.1, 1), clean_weight=0.3)

    def trained(seed):
        key, whole = jax.random.key(seed), masks.ones(architecture)
        return training.train(
            key, Classifier(architecture), variables, whole, split, recipe, augmentation="shift"
        )

    first = trained(0)
    chex.assert_trees_all_equal(first, trained(0))
    kernels = [tree["params"]["conv1"]["kernel"] for tree in (first, trained(1))]
    assert not np.allclose(*kernels)


def test_rate_warms_up_to_its_peak_and_falls_to_zero():
    recipe = Recipe(learning_rate=0.1, warmup=0.2)
    assert training.learning_rate(recipe, 0.1) == pytest.approx(0.05)
    assert training.learning_rate(recipe, 0.2) == pytest.approx(0.1)
    assert training.learning_rate(recipe, 0.6) == pytest.approx(0.05)
    assert training.learning_rate(recipe, 1.0) == pytest.approx(0.0)


@pytest.mark.parametrize("kind", ["none", "shift", "crop_flip"])
def test_augmentation_moves_whole_images_within_its_reach(kind, images):
    marked = jnp.zeros((64, 16, 16, 1)).at[:, 6, 5, 0].set(1.0)
    moved = np.asarray(training.augment(jax.random.key(0), marked, kind=kind))
    assert (moved.sum((1, 2, 3)) == 1).all()
    rows, columns = (np.unique(axis) for axis in np.nonzero(moved[..., 0])[1:])
    reach = 0 if kind == "none" else 2
    assert (rows.min(), rows.max()) == (6 - reach, 6 + reach)
    mirror = 15 - 5 if kind == "crop_flip" else 5
    assert (columns.min(), columns.max()) == (5 - reach, mirror + reach)


def test_diverged_training_is_reported(network, split):
    architecture, variables = network
    broken = jax.tree.map(lambda x: x * jnp.inf, variables)
    with pytest.raises(InputError, match="learning rate"):
        training.train(
            jax.random.key(0),
            Classifier(architecture),
            broken,
            masks.ones(architecture),
            split,
            Recipe(epochs=1, batch_size=24),
        )
