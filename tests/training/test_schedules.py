"""Rates, radii and rules of steps: triangular, rising, Nesterov, Lookahead."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import busy
from workers import trainer

from ccsrp_jax.attacks.one_step import NFGSM
from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.data.splits import Split
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.training import recipe, step
from ccsrp_jax.training import trainer as training
from ccsrp_jax.training.recipe import Recipe
from ccsrp_jax.utils.errors import InputError


def test_a_triangular_rate_rises_and_falls_linearly():
    plan = Recipe(learning_rate=0.4, warmup=0.25, schedule="triangular")
    found = [recipe.learning_rate(plan, share) for share in (0.0, 0.125, 0.25, 0.625, 1.0)]
    np.testing.assert_allclose(found, (0, 0.2, 0.4, 0.2, 0), atol=1e-9)


def test_nesterov_momentum_steps_as_that_of_torch():
    random = np.random.default_rng(0)
    plan = Recipe(optimizer="sgd", momentum=0.8, nesterov=True, weight_decay=0.1, clip_norm=0.0)
    rule = recipe.optimizer(plan)
    w = random.normal(size=(3, 4)).astype(np.float32)
    params, velocity = {"w": w}, 0.0
    state = rule.init(params)
    for _ in range(4):
        gradient = random.normal(size=w.shape).astype(np.float32)
        direction, state = rule.update({"w": gradient}, state, params)
        params = {"w": params["w"] - 0.1 * direction["w"]}
        decayed = gradient + 0.1 * w
        velocity = 0.8 * velocity + decayed
        w = w - 0.1 * (decayed + 0.8 * velocity)
        np.testing.assert_allclose(params["w"], w, rtol=1e-5)


def test_the_slow_weights_of_lookahead_follow_its_source():
    """Slow weights go half of their way to the fast ones, which then return to them."""
    plan = Recipe(lookahead=3, learning_rate=1.0)
    assert [recipe.synchronizes(plan, i, 8) for i in range(8)] == [
        *(False, False, True, False, False, True, False, True)
    ]
    assert not recipe.synchronizes(Recipe(), 2, 3)
    fast, slow = {"w": jnp.array([4.0, 2.0])}, {"w": jnp.array([0.0, 1.0])}
    for moves, expected in ((True, ([2.0, 1.5], [2.0, 1.5])), (False, (fast["w"], slow["w"]))):
        found = step._looked_ahead(fast, slow, moves)
        for each, want in zip(found, expected, strict=True):
            np.testing.assert_allclose(each["w"], want)


@pytest.fixture(scope="module")
def split(digits):
    return Split(digits.train.images[:24], digits.train.labels[:24])


def trained(split, plan, **options):
    classifier, variables = Classifier(trainer.SMALL), busy(trainer.SMALL, seed=0)
    return training.train(jax.random.key(0), classifier, variables, {}, split, plan, **options)


def test_training_with_lookahead_ends_at_the_slow_weights_and_resumes(split):
    plan = Recipe(epochs=3, batch_size=12, lookahead=4, precise_bn="off")
    states = {}

    def keep(done, state):
        states[done] = jax.device_get(state)

    whole = trained(split, plan, on_checkpoint=keep)
    chex.assert_trees_all_equal(whole["params"], states[3].moments[1])
    start = busy(trainer.SMALL, seed=0)["params"]
    chex.assert_trees_all_equal(states[1].moments[1], start)  # two steps, none synchronized
    again = trained(split, plan, start=states[2], first_epoch=2)
    chex.assert_trees_all_equal(again, whole)


def test_the_radius_of_the_attack_rises_over_its_epochs_and_compiles_nothing_anew(split):
    seen, sizes = [], []

    class Spy(NFGSM):
        def run(self, *arguments):
            seen.append(self.eps)
            return super().run(*arguments)

    plan = Recipe(epochs=4, batch_size=12, clean_epochs=1, eps_ramp=0.5, adversarial=Spy(0.08))
    trained(split, plan, on_step=lambda: sizes.append(step.train_step._cache_size()))
    # an epoch ends with a check for overfitting, at the radius that it has reached
    steps = [eps for eps in seen if round(eps, 6) not in (0.04, 0.08)]
    np.testing.assert_allclose(steps, (0.01, 0.03, 0.05, 0.07), atol=1e-9)
    assert seen.count(0.08) >= 2 and sizes[2] == sizes[-1]


def test_a_ramp_needs_a_radius_and_full_radius_is_the_default(untyped):
    with pytest.raises(InputError, match="eps_ramp"):
        Recipe(eps_ramp=0.5, adversarial=lambda *arguments: None)
    plan = Recipe(epochs=10, adversarial=PGD(0.1), clean_epochs=2)
    assert plan.attack_at(2.1) is plan.adversarial
    assert dataclasses.replace(plan, eps_ramp=0.2).attack_at(3.0).eps == pytest.approx(0.05)
