"""What holds for every attack: ball, box, radius 0, odd inputs, losses and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import linear, thinned
from hypothesis import given, settings
from hypothesis import strategies as st

from ccsrp_jax.attacks.apgd import APGD
from ccsrp_jax.attacks.gradients import loss_and_gradient
from ccsrp_jax.attacks.losses import LOSSES, margin
from ccsrp_jax.attacks.mifgsm import MIFGSM
from ccsrp_jax.attacks.noise import Noise
from ccsrp_jax.attacks.pgd import PGD, fgsm
from ccsrp_jax.attacks.rays import RayS
from ccsrp_jax.attacks.sapgd import SAPGD
from ccsrp_jax.attacks.seeded_search import SeededSearch
from ccsrp_jax.attacks.square import Square
from ccsrp_jax.attacks.threat_model import ThreatModel, check_norm
from ccsrp_jax.data.splits import to_unit_range
from ccsrp_jax.utils.errors import InputError

KEY = jax.random.key(0)
ATTACKS = {
    "fgsm": fgsm,
    "fgsm from a random start": lambda eps: fgsm(eps, random_start=True),
    "fgsm l2": lambda eps: fgsm(eps, norm="l2"),
    "pgd": lambda eps: PGD(eps, 3),
    "pgd restarts": lambda eps: PGD(eps, 2, restarts=2, loss="margin"),
    "pgd dlr": lambda eps: PGD(eps, 3, loss="dlr"),
    "pgd l2": lambda eps: PGD(eps, 3, norm="l2"),
    "noise": Noise,
    "noise l2": lambda eps: Noise(eps, "l2"),
    "apgd": lambda eps: APGD(eps, 4),
    "apgd l2": lambda eps: APGD(eps, 4, norm="l2", loss="dlr"),
    "apgd targeted": lambda eps: APGD(eps, 3, loss="dlr_targeted", targets=2),
    "sa-pgd": lambda eps: SAPGD(eps, 4),
    "apgd targeted margin": lambda eps: APGD(eps, 3, loss="margin_targeted", targets=2),
    "mi-fgsm": lambda eps: MIFGSM(eps, 3),
    "mi-fgsm targeted": lambda eps: MIFGSM(eps, 2, loss="margin_targeted", targets=2),
    "square": lambda eps: Square(eps, 6),
    "rays": lambda eps: RayS(eps, 8, 2),
    "seeded search": lambda eps: SeededSearch(eps, 4, 2),
}
SHAPES = ((4, 5, 1), (3, 3, 3))


def problem(shape, count, classes, dtype, seed):
    """Images with pixels on and inside the borders of the box, labels, weights."""
    rng = np.random.default_rng(seed)
    images = np.clip(rng.uniform(-0.3, 1.3, (count, *shape)), 0, 1)
    images = (255 * images).astype(np.uint8) if dtype == "uint8" else images.astype(dtype)
    weights = rng.normal(size=(int(np.prod(shape)), classes)).astype(np.float32)
    return jnp.asarray(images), jnp.asarray(rng.integers(0, classes, count)), jnp.asarray(weights)


def distance(moved, images, name):
    step = np.abs(np.asarray(moved, np.float64) - np.asarray(to_unit_range(images), np.float64))
    if name.endswith("l2"):
        return np.sqrt((step**2).sum((1, 2, 3))).max()
    return step.max()


@pytest.mark.parametrize("name", ATTACKS)
@settings(deadline=None, max_examples=4)
@given(
    eps=st.floats(0, 1, width=32),
    shape=st.sampled_from(SHAPES),
    dtype=st.sampled_from(("float32", "float16", "uint8")),
    seed=st.integers(0, 9),
)
def test_adversarial_images_stay_in_ball_and_box(name, eps, shape, dtype, seed):
    images, labels, weights = problem(shape, 5, 3, dtype, seed)
    moved = ATTACKS[name](eps)(linear, weights, images, labels, jax.random.key(seed))
    assert moved.dtype == jnp.float32 and moved.shape == images.shape
    assert moved.min() >= 0 and moved.max() <= 1
    assert distance(moved, images, name) <= eps + 1e-6


@pytest.mark.parametrize("name", ATTACKS)
def test_a_ball_of_radius_zero_returns_the_image(name):
    images, labels, weights = problem(SHAPES[0], 5, 3, "float32", 0)
    moved = ATTACKS[name](0.0)(linear, weights, images, labels, KEY)
    np.testing.assert_array_equal(moved, images)


@pytest.mark.parametrize("classes", thinned((1, 2, 3), (1,)))
@pytest.mark.parametrize("name", ATTACKS)
def test_one_image_and_few_classes_are_enough(name, classes):
    images, labels, weights = problem(SHAPES[1], 1, classes, "uint8", 1)
    moved = ATTACKS[name](0.1)(linear, weights, images, labels, KEY)
    assert jnp.isfinite(moved).all()
    assert distance(moved, images, name) <= 0.1 + 1e-6


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_are_functions_of_their_key(name):
    images, labels, weights = problem(SHAPES[0], 5, 3, "float32", 2)
    attack = ATTACKS[name](0.1)
    once, again = (attack(linear, weights, images, labels, KEY) for _ in range(2))
    np.testing.assert_array_equal(once, again)


@pytest.mark.parametrize("name", ATTACKS)
def test_what_an_attack_costs_is_known(name):
    attack = ATTACKS[name](0.1)
    parts = getattr(attack, "parts", (attack,))
    assert attack.gradients == sum(part.gradients for part in parts)
    assert attack.queries == sum(part.queries for part in parts)
    without = ("square", "noise", "rays", "seeded")
    assert (attack.gradients > 0) == all(word not in name for word in without)


def test_l2_pgd_reaches_the_worst_case_of_a_linear_classifier():
    rng = np.random.default_rng(3)
    images = jnp.asarray(rng.uniform(0.4, 0.6, (6, 4, 4, 1)).astype(np.float32))
    weights = jnp.asarray(rng.normal(size=(16, 2)).astype(np.float32))
    labels = jnp.asarray(rng.integers(0, 2, 6))
    towards = np.asarray(weights[:, 1] - weights[:, 0]).reshape(4, 4, 1)
    sign = np.where(np.asarray(labels) == 0, 1, -1)[:, None, None, None]
    worst = images + 0.3 * sign * towards / np.linalg.norm(towards)
    moved = PGD(0.3, 20, norm="l2", random_start=False)(linear, weights, images, labels, KEY)
    np.testing.assert_allclose(moved, worst, atol=1e-5)


def test_l2_starts_are_uniform_in_the_ball():
    images = jnp.full((4000, 3, 3, 1), 0.5)
    moved = ThreatModel("l2", 0.2).random_point(KEY, images) - 0.5
    radius = np.linalg.norm(np.asarray(moved).reshape(4000, 9), axis=1) / 0.2
    # P(radius <= r) = r^9
    np.testing.assert_allclose(
        np.quantile(radius**9, (0.25, 0.5, 0.75)), (0.25, 0.5, 0.75), atol=0.03
    )
    np.testing.assert_allclose(np.asarray(moved).mean((0, 3)), 0, atol=0.01)


def test_noise_is_as_large_as_the_ball_allows():
    images = jnp.full((50, 3, 3, 1), 0.5)
    corners = Noise(0.2)(linear, None, images, None, KEY) - 0.5
    np.testing.assert_allclose(np.abs(corners), 0.2, atol=1e-6)
    assert abs(float(jnp.sign(corners).mean())) < 0.15
    sphere = Noise(0.2, "l2")(linear, None, images, None, KEY) - 0.5
    np.testing.assert_allclose((np.asarray(sphere) ** 2).sum((1, 2, 3)) ** 0.5, 0.2, atol=1e-6)


def test_losses_equal_their_definitions():
    rng = np.random.default_rng(4)
    z, labels, targets = rng.normal(size=(20, 6)), rng.integers(0, 6, 20), rng.integers(0, 6, 20)
    for i in range(20):
        own, others = z[i, labels[i]], np.delete(z[i], labels[i])
        ordered = np.sort(z[i])[::-1]
        expected = {
            "ce": np.log(np.exp(z[i]).sum()) - own,
            "margin": others.max() - own,
            "dlr": (others.max() - own) / (ordered[0] - ordered[2]),
            "margin_targeted": z[i, targets[i]] - own,
            "dlr_targeted": (z[i, targets[i]] - own) / (ordered[0] - (ordered[2] + ordered[3]) / 2),
        }
        one = (jnp.asarray(z[i : i + 1], jnp.float32), *map(jnp.asarray, (labels, targets)))
        for name, loss in LOSSES.items():
            found = loss(one[0], one[1][i : i + 1], one[2][i : i + 1])
            np.testing.assert_allclose(found[0], expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("classes", (1, 2, 3, 4))
def test_every_loss_has_a_finite_gradient_whatever_the_classes(loss, classes):
    images, labels, weights = problem(SHAPES[0], 5, classes, "float32", 5)
    for scaled in (weights, 0 * weights):
        found = loss_and_gradient(linear, scaled, images, labels, loss=loss, targets=labels * 0)
        assert jnp.isfinite(found.loss).all() and jnp.isfinite(found.gradient).all()
    assert margin(linear(weights, images), labels).shape == (5,)


def test_an_expectation_is_the_mean_of_its_draws():
    class Noisy:
        stochastic = True

        def __call__(self, weights, images, key):
            return linear(weights + jax.random.normal(key, weights.shape), images)

    images, labels, weights = problem(SHAPES[0], 5, 3, "float32", 6)
    noisy = Noisy()
    found = loss_and_gradient(noisy, weights, images, labels, key=KEY, samples=4)
    each = [
        loss_and_gradient(noisy, weights, images, labels, key=k) for k in jax.random.split(KEY, 4)
    ]
    for name in ("loss", "gradient", "logits"):
        mean = np.mean([getattr(one, name) for one in each], 0)
        np.testing.assert_allclose(getattr(found, name), mean, rtol=1e-4, atol=1e-6)
    assert np.abs(each[0].gradient - each[1].gradient).max() > 0.01


@pytest.mark.parametrize(
    "make, message",
    (
        (lambda: check_norm("l3"), "norm 'l3'"),
        (lambda: PGD(2.0, norm="linf"), "eps 2.0 is outside"),
        (lambda: PGD(-1.0, norm="l2"), "eps -1.0 is outside"),
        (lambda: PGD(samples=0), "samples 0"),
        (lambda: Noise(7.0), "eps 7.0"),
        (lambda: Square(budget=0), "budget 0"),
        (lambda: APGD(steps=0), "steps 0"),
        (lambda: SAPGD(restarts=0), "restarts 0"),
        (lambda: MIFGSM(decay=1.5), "decay 1.5"),
        (lambda: MIFGSM(relative_step=0.0), "relative_step 0"),
        (lambda: SeededSearch(budget=0), "budget 0"),
        (lambda: RayS(budget=0), "budget 0"),
    ),
)
def test_impossible_attacks_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
