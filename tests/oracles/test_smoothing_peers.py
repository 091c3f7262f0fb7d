"""Certificates of a trained spiking network against foolbox's L2 attack, live."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import binom

from ccsrp_jax.data import datasets
from ccsrp_jax.data.splits import Split
from ccsrp_jax.networks import masks, zoo
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.neurons import Surrogate
from ccsrp_jax.robustness.smoothing import Smoothing, certify, predict
from ccsrp_jax.training.trainer import Recipe, train

foolbox = pytest.importorskip("foolbox")

pytestmark = pytest.mark.oracle

SMOOTHING = Smoothing(0.25, 50, 1000, alpha=0.01)
INIT, TRAIN, CERTIFY, ATTACK, PREDICT = jax.random.split(jax.random.key(0), 5)


@pytest.fixture(scope="module")
def trained():
    """A network trained on noisy digits for seconds, and clean test images."""
    digits = datasets.load("digits")
    images, labels = digits.train.images.repeat(4, 0), digits.train.labels.repeat(4)
    noise = np.random.default_rng(0).normal(0, SMOOTHING.sigma, images.shape)
    noisy = Split((images + noise).astype(np.float32), labels)
    architecture = zoo.plain((12, "A", 16, "A"), (8, 8, 1), 10, mean=(0.3,), std=(0.4,))
    classifier = Classifier(architecture, Surrogate(width=2.0))
    variables = zoo.init(INIT, architecture)
    variables = train(
        TRAIN, classifier, variables, masks.ones(architecture), noisy, Recipe(epochs=5)
    )
    return classifier, (variables, None), digits.test.images[:24], digits.test.labels[:24]


def attacked(classifier, params, images, classes, radii):
    """Worst images that foolbox finds by the mean logits over 64 fixed draws of the noise."""
    noise = SMOOTHING.sigma * jax.random.normal(ATTACK, (64, *images.shape[1:]))

    @jax.jit
    def smoothed(x):
        copies = (x[:, None] + noise).reshape(-1, *x.shape[1:])
        return classifier(params, copies).reshape(len(x), len(noise), -1).mean(1)

    # The certificate knows no box, so the attack gets none that matters.
    model = foolbox.JAXModel(smoothed, bounds=(-10, 11))
    attack = foolbox.attacks.L2PGD(steps=20, rel_stepsize=0.1, random_start=False)
    worst = []
    for image, label, radius in zip(images, classes, radii, strict=True):
        criterion = foolbox.criteria.Misclassification(jnp.asarray([label]))
        worst.append(attack.run(model, jnp.asarray(image[None]), criterion, epsilon=float(radius)))
    return np.concatenate(worst)


def test_foolbox_flips_inside_certified_radii_what_alpha_allows_and_far_outside_most(trained):
    classifier, params, images, labels = trained
    classes, radii = certify(classifier, params, images, CERTIFY, SMOOTHING)
    held = classes >= 0
    assert held.mean() > 0.7 and (classes == labels)[held].mean() > 0.8
    images, classes, radii = images[held], classes[held], radii[held]
    answers = []
    for times in (1, 4):
        worst = attacked(classifier, params, images, classes, times * radii)
        lengths = np.linalg.norm((worst - images).reshape(len(images), -1), axis=-1)
        np.testing.assert_allclose(lengths, times * radii, rtol=1e-3)  # it went as far as it may
        answers.append(predict(classifier, params, worst, PREDICT, SMOOTHING))
    inside, outside = ((found >= 0) & (found != classes) for found in answers)
    assert inside.sum() <= binom.ppf(0.999, len(classes), 2 * SMOOTHING.alpha)
    assert outside.mean() > 0.7
