"""Certified accuracy is below what any attack leaves, and certificates need a spiking network."""

import dataclasses

import jax
import numpy as np
import pytest
from conftest import linear

from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.attacks.square import Square
from ccsrp_jax.data.splits import Split
from ccsrp_jax.networks import masks
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.gradients import Relu
from ccsrp_jax.robustness import accuracy, certified_accuracy
from ccsrp_jax.robustness.interval_certificates import certified
from ccsrp_jax.utils.errors import InputError


@pytest.fixture(scope="module")
def labelled(network, digits):
    """A network, and images that it classifies correctly but for every tenth."""
    architecture, variables = network
    classifier = Classifier(architecture)
    images = digits.test.images[:60]
    labels = np.array(accuracy.predict(classifier, (variables, None), images))
    labels[::10] = (labels[::10] + 1) % 10
    return classifier, variables, Split(images, labels)


def test_no_certified_image_is_misclassified_under_attack(labelled):
    classifier, variables, split = labelled
    state, key = (variables, None), jax.random.key(0)
    clean = accuracy.correct(classifier, state, split)
    found = [certified(classifier, state, split, eps, batch_size=25) for eps in (0, 0.001, 0.004)]
    assert (found[0] <= clean).all() and found[0].mean() > 0.8
    assert (found[1] <= found[0]).all() and (found[2] <= found[1]).all()
    assert 0.1 < found[1].mean() < 0.9
    for attack in (PGD(0.001, 5), Square(0.001, budget=20)):
        robust = accuracy.correct(classifier, state, split, attack=attack, key=key)
        assert (found[1] <= robust).all()
    assert certified_accuracy(classifier, state, split, 0.001) == found[1].mean()


def test_masks_and_labels_count(labelled):
    classifier, variables, split = labelled
    pruned = masks.random(jax.random.key(1), classifier.architecture, 0.6)
    found = certified(classifier, (variables, pruned), split, 0.001)
    clean = accuracy.correct(classifier, (variables, pruned), split)
    assert (found <= clean).all() and 0 < found.sum() < clean.sum()
    wrong = Split(split.images, (np.asarray(split.labels) + 1) % 10)
    right = certified(classifier, (variables, pruned), wrong, 0.001)
    assert not (found & right).any()


def test_what_has_no_bounds_is_refused(labelled, untyped):
    classifier, variables, split = labelled
    small = Split(split.images[:2], split.labels[:2])
    weights = np.ones((64, 10), np.float32)
    with pytest.raises(InputError, match="function has no spiking network to bound"):
        certified(linear, weights, small, 0.1)
    with pytest.raises(InputError, match="Classifier has no spiking network to bound"):
        certified(classifier.with_backward(Relu()), (variables, None), small, 0.1)
    other = dataclasses.replace(classifier.architecture, encoding="poisson")
    with pytest.raises(InputError, match="poisson encoding has no interval bounds"):
        certified(Classifier(other), (variables, None), small, 0.1)
    with pytest.raises(InputError, match=r"eps -0\.1 is out of range"):
        certified(classifier, (variables, None), small, -0.1)
