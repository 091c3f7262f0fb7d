"""The certified loss bounds the loss in the ball, and training with it lowers it."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import busy, jit
from workers.trainer import SMALL

from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.data.splits import Split
from ccsrp_jax.networks import masks
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.gradients import StraightThrough
from ccsrp_jax.networks.neurons import LIF
from ccsrp_jax.training import losses
from ccsrp_jax.training.certified import certified_loss
from ccsrp_jax.training.recipe import Recipe, certified_share
from ccsrp_jax.training.trainer import train
from ccsrp_jax.utils.errors import InputError

RECIPE = Recipe(4, 24, certified=0.4, certified_eps=0.02, certified_ramp=0.5, clean_epochs=1)


@pytest.fixture(scope="module")
def split(digits):
    return Split(*(part[:48] for part in digits.train))


def trained(recipe, split, architecture=SMALL, surrogate=None, **options):
    classifier = Classifier(architecture, *([surrogate] if surrogate else []))
    variables = busy(architecture, seed=0)
    return train(jax.random.key(0), classifier, variables, {}, split, recipe, **options)


@pytest.fixture(scope="module")
def worst():
    """Mean certified loss of variables on images, compiled once."""
    return jit(lambda *args: certified_loss(Classifier(SMALL), *args).mean())


@pytest.mark.parametrize("reset", ("hard", "soft_delayed"))
def test_without_a_radius_it_is_the_loss_with_its_gradient(images, reset):
    """As in evaluation, for neurons whose resets stop gradients."""
    neuron = LIF(reset=reset, detach_reset=True)
    classifier = Classifier(dataclasses.replace(SMALL, neuron=neuron))
    variables, labels = busy(SMALL, seed=0), jnp.arange(8)
    tree = masks.random(jax.random.key(0), SMALL, 0.7)

    def with_params(loss):
        def of(params):
            return loss({**variables, "params": params})

        return jit(jax.value_and_grad(of))(variables["params"])

    x = images[:8]
    found = with_params(
        lambda v: certified_loss(classifier, v, tree, x, labels, jnp.asarray(0.0)).mean()
    )
    expected = with_params(
        lambda v: losses.cross_entropy(classifier((v, tree), x)[None], labels).mean()
    )
    chex.assert_trees_all_close(found, expected, atol=2e-5)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(found[1])) > 0.01


def test_it_is_no_less_than_the_loss_of_any_image_in_the_ball(images):
    classifier, variables, x = Classifier(SMALL), busy(SMALL, seed=0), images[:8]
    labels, eps, run = jnp.arange(8), 0.02, jit(Classifier(SMALL).__call__)
    bound = jit(partial(certified_loss, classifier))(variables, None, x, labels, eps)
    attacked = PGD(eps, 3)(classifier, (variables, None), x, labels, jax.random.key(0))
    moves = np.random.default_rng(0).choice([-eps, eps], (20, *x.shape)).astype(np.float32)
    for point in (x, attacked, *jnp.clip(x + moves, 0, 1)):
        z = run((variables, None), point)
        assert (losses.cross_entropy(z[None], labels) <= bound + 1e-5).all()


@pytest.mark.parametrize(
    ("epochs", "share"), [(0.5, 0.0), (1.0, 0.0), (2.0, 0.5), (2.5, 0.75), (3.0, 1.0), (4.0, 1.0)]
)
def test_radius_and_weight_rise_linearly_after_the_clean_epochs(epochs, share):
    assert certified_share(RECIPE, epochs) == pytest.approx(share)
    at_once = dataclasses.replace(RECIPE, certified_ramp=0.0)
    assert certified_share(at_once, epochs) == (epochs > 1)
    assert certified_share(dataclasses.replace(RECIPE, certified=0.0), epochs) == 0


def test_the_loss_of_a_step_is_the_weighted_sum(split, worst):
    record, recipe = [], dataclasses.replace(RECIPE, epochs=1, clean_epochs=0, batch_size=48)
    trained(recipe, split, on_epoch=record.append)
    trained(dataclasses.replace(recipe, certified=0.0), split, on_epoch=record.append)
    bound = worst(busy(SMALL, seed=0), {}, *map(jnp.asarray, split), 0.02)
    assert float(bound) > record[1].loss
    # halfway through the only epoch, a ramp of half of it is over
    assert record[0].loss == pytest.approx(0.6 * record[1].loss + 0.4 * float(bound), rel=1e-4)


def test_training_with_it_lowers_it_and_resumes(split, worst):
    kept = {}

    def keep(done, state):
        kept[done] = jax.device_get(state)

    recipe = dataclasses.replace(RECIPE, epochs=20, certified=0.9, learning_rate=0.02)
    found = trained(recipe, split, on_checkpoint=keep)
    again = trained(recipe, split, start=kept[8], first_epoch=8)
    chex.assert_trees_all_equal(found, again)
    plain = trained(dataclasses.replace(recipe, certified=0.0), split)
    with_it, without = (
        float(worst(variables, {}, *map(jnp.asarray, split), 0.02)) for variables in (found, plain)
    )
    assert with_it < 0.8 * without


def test_clean_epochs_are_as_without_it(split):
    clean = dataclasses.replace(RECIPE, epochs=1)
    without = dataclasses.replace(clean, certified=0.0)
    chex.assert_trees_all_equal(trained(clean, split), trained(without, split))


def test_the_radius_is_the_attacks_if_none_is_given():
    recipe = dataclasses.replace(RECIPE, certified_eps=0.0, adversarial=PGD(0.05, 2))
    assert recipe.certified_radius == 0.05
    assert dataclasses.replace(recipe, certified_eps=0.1).certified_radius == 0.1


@pytest.mark.parametrize(
    ("changes", "options", "says"),
    [
        ({}, {"surrogate": StraightThrough()}, "certified 0.4 needs a surrogate"),
        (
            {"certified_eps": 0.0, "adversarial": PGD(0.5, 2, norm="l2")},
            {},
            "is of norm l2, and the certified loss needs one of linf",
        ),
        (
            {},
            {"architecture": dataclasses.replace(SMALL, encoding="poisson")},
            "poisson encoding has no interval bounds",
        ),
    ],
)
def test_training_that_cannot_have_it_is_refused(split, changes, options, says):
    with pytest.raises(InputError, match=says):
        trained(dataclasses.replace(RECIPE, **changes), split, **options)
