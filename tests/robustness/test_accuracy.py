import jax
import numpy as np
import pytest

from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.data.batching import padded_batches
from ccsrp_jax.data.splits import Split
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.robustness.accuracy import correct
from ccsrp_jax.utils.errors import InputError


@pytest.fixture(scope="module")
def split(digits):
    return Split(digits.search.images[:21], digits.search.labels[:21])


def test_last_batch_is_filled_and_its_filling_never_counts(network, split):
    architecture, variables = network
    sizes = [(len(images), len(labels), real) for images, labels, real in padded_batches(split, 8)]
    assert sizes == [(7, 7, 7)] * 3  # even, so that little is filled up
    sizes = [(len(images), len(labels), real) for images, labels, real in padded_batches(split, 12)]
    assert sizes == [(11, 11, 11), (11, 11, 10)]
    whole = correct(Classifier(architecture), (variables, None), split, batch_size=21)
    parts = correct(Classifier(architecture), (variables, None), split, batch_size=12)
    assert whole.shape == (21,)
    np.testing.assert_array_equal(whole, parts)


def test_correct_is_the_argmax_of_each_image(network, split):
    architecture, variables = network
    classifier, params = Classifier(architecture), (variables, None)
    logits = np.asarray(jax.jit(classifier)(params, split.images))
    expected = logits.argmax(-1) == split.labels
    np.testing.assert_array_equal(correct(classifier, params, split, batch_size=21), expected)


def test_attacked_accuracy_is_that_on_the_attacks_images(network, split):
    architecture, variables = network
    classifier, params = Classifier(architecture), (variables, None)
    attack, key, progress = PGD(0.15, 3), jax.random.key(1), []
    robust = correct(
        classifier, params, split, attack=attack, key=key, batch_size=21, progress=progress.append
    )
    images, labels = jax.numpy.asarray(split.images), jax.numpy.asarray(split.labels)
    key_batch = jax.random.fold_in(key, 0)
    adversarial = attack(classifier, params, images, labels, key_batch)
    logits = np.asarray(jax.jit(classifier)(params, adversarial))
    np.testing.assert_array_equal(robust, logits.argmax(-1) == split.labels)
    assert progress == [21]


def test_bytes_and_floats_are_the_same_images(network, digits):
    architecture, variables = network
    pixels = (digits.search.images[:12] * 255).round().astype(np.uint8)
    labels = digits.search.labels[:12]
    scaled = pixels.astype(np.float32) / 255
    classifier, params = Classifier(architecture), (variables, None)
    np.testing.assert_array_equal(
        correct(classifier, params, Split(pixels, labels), batch_size=12),
        correct(classifier, params, Split(scaled, labels), batch_size=12),
    )


def test_batches_need_as_many_labels_as_images(split):
    for images, labels in (
        (split.images, split.labels[:5]),
        (split.images[:5], split.labels),
        (split.images[:0], split.labels[:0]),
    ):
        with pytest.raises(InputError, match="give one label an image, and at least one"):
            next(padded_batches(Split(images, labels), 8))
