"""MI-FGSM: a plain loop over one image, target classes, and surrogates that change."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import curved, curved_weights, linear

from ccsrp_jax.attacks import gradients
from ccsrp_jax.attacks.mifgsm import MIFGSM
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.gradients import RandomWidth

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def problem():
    """Images with pixels on and inside the borders of the box, their classes and weights."""
    rng = np.random.default_rng(0)
    images = np.clip(rng.uniform(-0.2, 1.2, (12, 4, 4, 1)), 0, 1).astype(np.float32)
    weights = curved_weights(rng, 16)
    return jnp.asarray(images), curved(weights, images).argmax(-1), weights


def plain_points(image, label, weights, start, attack):
    """The iterates of one image, in 64 bits."""
    inner, outer = (np.asarray(part, float) for part in weights)
    x, momentum, points = np.asarray(start, float), 0, []
    for step in range(attack.steps):
        hidden = np.tanh(x.ravel() @ inner)
        z = hidden @ outer
        other = np.argmax(np.where(np.arange(len(z)) == label, -np.inf, z))
        slope = outer[:, other] - outer[:, label]
        gradient = (inner @ (slope * (1 - hidden**2))).reshape(x.shape)
        momentum = attack.decay * momentum + gradient / np.abs(gradient).sum()
        size = attack.relative_step * attack.eps * (1 + math.cos(math.pi * step / attack.steps)) / 2
        x = x + size * np.sign(momentum)
        x = np.clip(np.clip(x, image - attack.eps, image + attack.eps), 0, 1)
        points.append(x)
    return np.array(points)


def test_points_equal_a_plain_loop_over_each_image(problem):
    images, labels, weights = problem
    attack = MIFGSM(0.1, 12, decay=0.9, relative_step=0.7)
    start = attack.threat.random_surface_point(KEY, images)
    states = list(attack.path(curved, weights, images, labels, KEY, start))
    ours = np.stack([state.x for state in states[:-1]], 1)
    plain = np.array(
        [
            plain_points(image, label, weights, first, attack)
            for image, label, first in zip(
                np.asarray(images, float), np.asarray(labels), start, strict=True
            )
        ]
    )
    np.testing.assert_allclose(ours[:, 0], plain[:, 0], atol=1e-6)
    # the sign of a pixel whose momentum is nearly 0 is a matter of rounding
    assert (np.abs(ours - plain).max((1, 2, 3, 4)) < 1e-5).mean() >= 0.75


@pytest.mark.parametrize("loss", ("margin", "margin_targeted"))
def test_the_worst_case_of_a_linear_classifier_is_reached(problem, loss):
    images, rng = problem[0], np.random.default_rng(3)
    labels, weights = rng.integers(0, 2, 12), rng.normal(size=(16, 2)).astype(np.float32)
    sign = np.where(labels == 0, 1, -1)[:, None] * np.sign(weights[:, 1] - weights[:, 0])
    worst = np.clip(images + 0.1 * sign.reshape(images.shape), 0, 1)
    attack = MIFGSM(0.1, 20, loss=loss, targets=1)
    ours = attack(linear, *map(jnp.asarray, (weights, images, labels)), KEY)
    np.testing.assert_allclose(ours, worst, atol=1e-6)


def test_restarts_through_random_widths_differ_and_compile_once(network, images):
    architecture, variables = network
    classifier = Classifier(architecture, RandomWidth())
    before = gradients._loss_and_gradient._cache_size()
    state, labels = (variables, None), jnp.arange(16) % 10
    attack = MIFGSM(0.1, 3, restarts=2)
    keys = jax.random.split(KEY, 2)
    first, second = (
        part.run_once(classifier, state, images, labels, key)
        for part, key in zip(attack.parts, keys, strict=True)
    )
    assert (first != second).any()
    attack(classifier, state, images, labels, KEY)
    assert gradients._loss_and_gradient._cache_size() == before + 1
