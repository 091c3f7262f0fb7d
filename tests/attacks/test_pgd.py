"""PGD and FGSM: foolbox's images, closed forms on linear classifiers, ball and box."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import curved, curved_weights, linear
from flax.traverse_util import unflatten_dict
from hypothesis import given, settings
from hypothesis import strategies as st

from ccsrp_jax.attacks.pgd import PGD, fgsm
from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.utils.errors import InputError

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def problem():
    """Images with pixels on and inside the borders of the box, labels and weights."""
    rng = np.random.default_rng(0)
    images = np.clip(rng.uniform(-0.2, 1.2, (20, 4, 4, 1)), 0, 1).astype(np.float32)
    labels = rng.integers(0, 2, 20)
    weights = rng.normal(size=(16, 2)).astype(np.float32)
    return jnp.asarray(images), jnp.asarray(labels), jnp.asarray(weights)


@pytest.fixture(scope="module")
def hard_problem(problem):
    images, _, _ = problem
    weights = curved_weights(np.random.default_rng(1), 16, scale=3)
    return images, curved(weights, images).argmax(-1), weights


def cross_entropy(logits, labels):
    return np.asarray(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


@pytest.mark.parametrize(
    "name, attack", (("pgd", PGD(0.1, 10, random_start=False)), ("fgsm", fgsm(0.1)))
)
def test_adversarial_images_of_a_spiking_network_equal_foolbox(name, attack):
    # See tests/oracles/make_fixtures.py for who answered what.
    with np.load(Path(__file__).parents[1] / "fixtures" / "attack_foolbox.npz") as file:
        frozen = unflatten_dict(dict(file), sep="/")
    classifier = Classifier(Architecture.from_json(str(frozen["architecture"])))
    images, labels = jnp.asarray(frozen["images"]), jnp.asarray(frozen["labels"])
    ours = attack(classifier, (frozen["variables"], None), images, labels, KEY)
    expected = frozen["adversarial"][name]
    assert np.abs(expected - images).max() > 0.09
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("eps", (0.03, 0.4))
def test_fgsm_is_one_signed_step_along_the_closed_form_gradient(problem, eps):
    images, _, _ = problem
    rng = np.random.default_rng(2)
    weights = rng.normal(size=(16, 5)).astype(np.float32)
    labels = rng.integers(0, 5, 20)
    logits = np.asarray(images).reshape(20, 16) @ weights
    chance = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    gradient = ((chance - np.eye(5)[labels]) @ weights.T).reshape(images.shape)
    expected = np.clip(images + eps * np.sign(gradient), 0, 1)
    ours = fgsm(eps)(linear, jnp.asarray(weights), images, jnp.asarray(labels), KEY)
    np.testing.assert_allclose(ours, expected, atol=1e-6)


@pytest.mark.parametrize("random_start", (False, True))
@pytest.mark.parametrize("restarts", (1, 3))
def test_pgd_reaches_the_worst_case_of_a_linear_classifier(problem, random_start, restarts):
    images, labels, weights = problem
    # Two classes: every pixel moves towards the other class, as far as ball and box allow.
    towards = np.asarray(weights[:, 1] - weights[:, 0]).reshape(4, 4, 1)
    sign = np.where(np.asarray(labels)[:, None, None, None] == 0, 1, -1) * np.sign(towards)
    worst = np.clip(images + 0.1 * sign, 0, 1)
    attack = PGD(0.1, 10, restarts, random_start=random_start)
    ours = attack(linear, weights, images, labels, KEY)
    np.testing.assert_allclose(ours, worst, atol=1e-6)


@settings(deadline=None, max_examples=25)
@given(eps=st.floats(0, 1, width=32), seed=st.integers(0, 99), relative_step=st.floats(0.1, 10))
def test_adversarial_images_stay_in_ball_and_box(hard_problem, eps, seed, relative_step):
    images, labels, weights = hard_problem
    attack = PGD(eps, 3, relative_step=relative_step)
    ours = attack(curved, weights, images, labels, jax.random.key(seed))
    assert ours.dtype == images.dtype
    assert ours.min() >= 0 and ours.max() <= 1
    assert np.abs(ours - images).max() <= eps + 1e-6


@pytest.mark.parametrize("attack", (PGD(0.0, 5), PGD(0.0, 5, restarts=3), fgsm(0.0)))
def test_a_ball_of_radius_zero_returns_the_image(hard_problem, attack):
    images, labels, weights = hard_problem
    ours = attack(curved, weights, images, labels, KEY)
    np.testing.assert_array_equal(ours, images)


def test_random_starts_are_uniform_in_the_ball_and_follow_the_key(hard_problem):
    images, labels, weights = hard_problem
    inside = jnp.full((400, 4, 4, 1), 0.5)
    none = jnp.zeros(400, jnp.int32)
    # On a constant classifier every gradient is zero, so the start is the result.
    start = PGD(0.2, 3)(linear, jnp.zeros((16, 2)), inside, none, KEY) - 0.5
    quantiles = np.quantile(start, (0, 0.25, 0.5, 0.75, 1))
    np.testing.assert_allclose(quantiles, (-0.2, -0.1, 0, 0.1, 0.2), atol=0.01)
    once, again, other = (
        PGD(0.2, 3)(curved, weights, images, labels, jax.random.key(seed)) for seed in (4, 4, 5)
    )
    np.testing.assert_array_equal(once, again)
    assert (once != other).any()


def test_restarts_are_never_weaker_than_the_first_of_them(hard_problem):
    # Random keys split alike whatever their number, so the starts are nested.
    images, labels, weights = hard_problem
    improved = 0
    for seed in range(6):
        key = jax.random.key(seed)
        single, many = (
            curved(weights, PGD(0.05, 4, restarts)(curved, weights, images, labels, key))
            for restarts in (1, 8)
        )
        broken, broken_by_many = single.argmax(-1) != labels, many.argmax(-1) != labels
        assert (broken_by_many | ~broken).all()
        loss, loss_of_many = cross_entropy(single, labels), cross_entropy(many, labels)
        spared = ~np.asarray(broken_by_many)
        assert (loss_of_many >= loss)[spared].all()
        improved += ((loss_of_many > loss + 1e-3) | np.asarray(broken_by_many & ~broken)).sum()
    assert improved > 0


def test_among_restarts_that_break_an_image_the_highest_loss_wins(hard_problem):
    images, labels, weights = hard_problem
    eps, steps = 0.05, 2

    def loss(x):
        logits = curved(weights, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).sum()

    losses, broken = [], []
    for key in jax.random.split(KEY, 8):
        x = images + eps * jax.random.uniform(key, images.shape, images.dtype, -1.0, 1.0)
        for step in range(steps + 1):
            x = x + (step > 0) * 2.5 * eps / steps * jnp.sign(jax.grad(loss)(x))
            x = jnp.clip(jnp.clip(x, images - eps, images + eps), 0, 1)
        logits = curved(weights, x)
        losses.append(cross_entropy(logits, labels))
        broken.append(np.asarray(logits.argmax(-1) != labels))
    counted = np.where(np.any(broken, 0) & ~np.array(broken), -np.inf, losses)
    ours = PGD(eps, steps, restarts=8)(curved, weights, images, labels, KEY)
    loss_of_ours = cross_entropy(curved(weights, ours), labels)
    np.testing.assert_allclose(loss_of_ours, counted.max(0), rtol=1e-4)


def test_an_outer_jit_gives_the_same_images(hard_problem):
    images, labels, weights = hard_problem
    attack = PGD(0.1, 3, restarts=2)
    jitted = jax.jit(attack, static_argnums=0)
    np.testing.assert_allclose(
        jitted(curved, weights, images, labels, KEY),
        attack(curved, weights, images, labels, KEY),
        atol=1e-6,
    )


@pytest.mark.parametrize(
    "make, message",
    (
        (lambda: PGD(8.0), "eps 8.0 is outside"),
        (lambda: PGD(-0.1), "eps -0.1 is outside"),
        (lambda: PGD(steps=0), "steps 0"),
        (lambda: PGD(restarts=0), "restarts 0"),
        (lambda: PGD(relative_step=0.0), "relative_step 0.0"),
    ),
)
def test_impossible_attacks_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
