"""Logits that are not finite are wrong everywhere: in accuracies, attacks, suites, certificates."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import linear, thinned

from ccsrp_jax.attacks import APGD, PGD, SAPGD, Square
from ccsrp_jax.attacks.base import worst_of
from ccsrp_jax.attacks.threat_model import ThreatModel
from ccsrp_jax.data.splits import Split
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.robustness import Smoothing, certify, smoothing
from ccsrp_jax.robustness.accuracy import Evaluator, correct, predict
from ccsrp_jax.robustness.evaluation import evaluate
from ccsrp_jax.robustness.outcome import Outcome
from ccsrp_jax.robustness.suite_record import load_progress, save_progress

KEY = jax.random.key(0)
BAD = {"nan": jnp.nan, "inf": jnp.inf, "-inf": -jnp.inf}


def breaking(value):
    """A linear classifier with one logit that is not finite where the first pixel is above 1/2."""

    def classifier(weights, images):
        z = linear(weights, images)
        bad = images[:, 0, 0, 0] > 0.5
        return z.at[:, 2].set(jnp.where(bad, value, z[:, 2]))

    return classifier


BREAKING = {name: breaking(value) for name, value in BAD.items()}


@dataclasses.dataclass(frozen=True)
class Flaky:
    """A stochastic classifier whose passes are not finite with the given probability."""

    chance: float
    stochastic = True

    def __call__(self, weights, images, key):
        bad = jax.random.bernoulli(key, self.chance)
        return linear(weights, images) + jnp.where(bad, jnp.nan, 0)


@pytest.fixture(scope="module")
def problem():
    """Images, half of them with a first pixel above 1/2, all of class 0 to a linear classifier."""
    rng = np.random.default_rng(0)
    images = rng.uniform(0.2, 0.8, (60, 3, 3, 1)).astype(np.float32)
    images[::2, 0, 0, 0], images[1::2, 0, 0, 0] = 0.7, 0.45
    weights = rng.normal(size=(9, 3)).astype(np.float32)
    weights[:, 0] = 3
    labels = np.zeros(60, np.int32)
    assert (np.asarray(linear(weights, images)).argmax(-1) == 0).all()
    return jnp.asarray(weights), Split(images, labels)


@pytest.mark.parametrize("kind", BAD)
def test_no_class_is_predicted_and_the_image_is_wrong(problem, kind):
    weights, split = problem
    classes = np.asarray(predict(BREAKING[kind], weights, split.images))
    np.testing.assert_array_equal(classes, np.where(np.arange(60) % 2, 0, -1))
    hits = correct(BREAKING[kind], weights, split, batch_size=16)
    np.testing.assert_array_equal(hits, np.arange(60) % 2 == 1)


def test_a_spiking_network_of_nans_is_right_nowhere(network, digits):
    architecture, variables = network
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, variables)
    zeros = digits.test.labels == 0
    split = Split(digits.test.images[zeros], digits.test.labels[zeros])
    assert not correct(Classifier(architecture), (broken, None), split).any()


@pytest.mark.parametrize("chance, share", ((0.0, 1.0), (0.1, 1.0), (0.9, 0.0), (1.0, 0.0)))
def test_a_vote_without_a_class_counts_against_every_class(problem, chance, share):
    weights, split = problem
    hits = correct(Flaky(chance), weights, split, key=KEY, votes=15)
    assert hits.mean() == share


ATTACKS = {
    "pgd": PGD(0.1, 3, restarts=3),
    "apgd": APGD(0.1, 4),
    "apgd restarts": APGD(0.1, 3, restarts=2),
    "apgd margin": APGD(0.1, 4, loss="margin"),
    "sa-pgd": SAPGD(0.1, 4),
    "square": Square(0.1, 12),
}


@pytest.mark.parametrize(
    "name, kind",
    # where a logit is -inf the loss has a gradient, which the last step of PGD may follow out again
    [(name, kind) for name in ATTACKS for kind in BAD if (name, kind) != ("pgd", "-inf")],
)
def test_attacks_keep_an_image_whose_logits_are_not_finite(problem, name, kind):
    weights, split = problem
    # every perturbation is tried from images next to the border at 1/2
    images = jnp.asarray(split.images[1::2]).at[:, 0, 0, 0].set(0.4999)
    labels = jnp.asarray(split.labels[1::2])
    moved = ATTACKS[name](BREAKING[kind], weights, images, labels, KEY)
    assert jnp.isfinite(moved).all()
    classes = predict(BREAKING[kind], weights, moved)
    # random starts reach the half of the ball where the network breaks
    assert (np.asarray(classes) == -1).mean() > 0.4


def test_the_worst_of_several_attacks_is_the_one_that_breaks_the_network(problem):
    weights, split = problem
    images, labels = jnp.asarray(split.images[1::2]), jnp.asarray(split.labels[1::2])

    def bright(classifier, network_state, images, labels, key):
        return images.at[:, 0, 0, 0].set(0.6)

    def same(classifier, network_state, images, labels, key):
        return images

    for attacks in ((bright, same), (same, bright)):
        worst = worst_of(attacks, BREAKING["nan"], weights, images, labels, KEY)
        np.testing.assert_allclose(worst[:, 0, 0, 0], 0.6)


@pytest.mark.parametrize("suite", thinned(("pgd", "quick"), ("quick",)))
def test_the_headline_is_unreliable_and_says_why(problem, suite, tmp_path):
    weights, split = problem
    options = {"eps": 0.02, "key": KEY, "suite": suite, "natural": (), "audit_images": 20}
    record = tmp_path / "suite.json"
    found = evaluate(BREAKING["nan"], weights, split, record=record, **options)
    assert found.outcome.accuracy == 0.5 and found.outcome.robust_accuracy <= 0.5
    assert found.headline.startswith("unreliable: ")
    assert "30 of 60 images have a logit that is not finite" in found.headline
    assert "two passes" not in found.headline
    assert not json.loads(json.dumps(found.record()))["reliable"]
    again = evaluate(BREAKING["nan"], weights, split, record=record, **options)
    assert again.headline == found.headline


def test_a_network_that_breaks_under_attack_only_is_reported_too(problem):
    weights, split = problem
    split = Split(split.images[1::2], split.labels[1::2])
    options = {"eps": 0.2, "key": KEY, "suite": "pgd", "natural": (), "audit_images": 20}
    found = evaluate(BREAKING["nan"], weights, split, **options)
    assert found.outcome.accuracy == 1
    assert found.outcome.not_finite.any() and "not finite" in found.headline
    assert not (found.outcome.robust & found.outcome.not_finite).any()


def test_images_of_class_zero_alone_have_no_robust_accuracy(problem):
    weights, split = problem
    options = {"eps": 0.02, "key": KEY, "suite": "pgd", "natural": (), "audit_images": 20}
    found = evaluate(linear, weights * jnp.nan, split, **options)
    assert found.outcome.accuracy == 0 and found.outcome.robust_accuracy == 0
    assert "60 of 60 images" in found.headline


def test_a_record_written_before_such_images_were_counted_is_read(tmp_path):
    path, threat = tmp_path / "suite.json", ThreatModel("linf", 0.1)
    mask = np.array([True, False])
    save_progress(path, "x", Outcome(threat, mask, np.full(2, -1), not_finite=~mask))
    np.testing.assert_array_equal(load_progress(path, "x", threat).not_finite, ~mask)
    record = json.loads(path.read_text())
    del record["not_finite"], record["sha256"]
    path.write_text(json.dumps(record))
    assert not load_progress(path, "x", threat).not_finite.any()


def test_certificates_abstain(problem):
    weights, split = problem
    images, settings = split.images[:4], Smoothing(0.02, 20, 60, 0.01)
    for network in (weights * jnp.nan, weights * jnp.inf):
        certificates = certify(linear, network, images, KEY, settings)
        np.testing.assert_array_equal(certificates.classes, -1)
        np.testing.assert_array_equal(certificates.radii, 0)
        np.testing.assert_array_equal(smoothing.predict(linear, network, images, KEY, settings), -1)
    certificates = certify(BREAKING["nan"], weights, images, KEY, settings)
    np.testing.assert_array_equal(certificates.classes, [-1, 0, -1, 0])
    np.testing.assert_array_equal(
        smoothing.predict(BREAKING["nan"], weights, images, KEY, settings), [-1, 0, -1, 0]
    )


def test_certificates_count_broken_draws_against_the_class():
    def half(weights, images):  # class 0, broken for half of the draws around 1/2
        return jnp.where(images[:, 0, 0] > 0.5, jnp.nan, jnp.array([[1.0, 0.0]]))

    images = np.full((3, 1, 1, 1), 0.5, np.float32)
    certificates = certify(half, None, images, KEY, Smoothing(0.1, 20, 200, 0.05))
    np.testing.assert_array_equal(certificates.classes, -1)


def test_finite_networks_are_counted_as_before(problem):
    weights, split = problem
    evaluator = Evaluator(linear, weights, split)
    assert evaluator.correct(KEY).all()
    found = evaluate(linear, weights, split, eps=0.01, key=KEY, suite="pgd", natural=())
    assert not found.outcome.not_finite.any() and "not finite" not in found.headline
