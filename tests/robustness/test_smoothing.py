"""Certificates against closed forms on linear classifiers, exact binomials and naive loops."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import busy
from scipy import special
from scipy.stats import beta, binom, binomtest, norm
from workers.processes import finish, start

from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.stochastic_lif import StochasticLIF
from ccsrp_jax.robustness.smoothing import (
    Certificates,
    Smoothing,
    certified_accuracy,
    certify,
    clopper_pearson,
    predict,
)
from ccsrp_jax.utils.errors import InputError

KEY = jax.random.key(0)
# so many pixels that images at all of the distances below are in the box
WEIGHTS = np.tile(np.array([0.9, -0.5, 0.3, 1.1], np.float32), 25)
LENGTH = float(np.linalg.norm(WEIGHTS))


def linear(weights, images):
    """Class 1 where w (x - 1/2) is positive: smoothing does not move the boundary."""
    score = (images.reshape(len(images), -1) - 0.5) @ weights
    return jnp.stack([-score, score], -1)


def at_distance(distances):
    """Images of 10 x 10 pixels on class 1's side of the boundary, at these L2 distances."""
    steps = np.asarray(distances)[:, None] * WEIGHTS / LENGTH
    return (0.5 + steps).reshape(-1, 10, 10, 1).astype(np.float32)


def radius_of(hits, smoothing):
    """The paper's radius for this number of hits, by scipy's one-sided interval."""
    test = binomtest(int(hits), smoothing.samples, alternative="greater")
    low = test.proportion_ci(1 - smoothing.alpha, "exact").low
    return smoothing.sigma * norm.ppf(low) if low > 0.5 else 0.0


def radii_of_quantiles(probability, smoothing, chance=1e-5):
    """An interval that an image's radius leaves with probability 2 `chance`."""
    ends = binom.ppf((chance, 1 - chance), smoothing.samples, probability)
    return tuple(radius_of(hits, smoothing) for hits in ends)


@pytest.mark.parametrize("trials, alpha", ((1, 0.3), (40, 0.05), (200, 0.001)))
def test_the_lower_bound_is_the_probability_that_makes_the_tail_alpha(trials, alpha):
    hits = np.arange(trials + 1)
    bounds = clopper_pearson(hits, trials, alpha)
    assert bounds[0] == 0
    for k, p in zip(hits[1:], bounds[1:], strict=True):
        tail = sum(
            math.comb(trials, j) * p**j * (1 - p) ** (trials - j) for j in range(k, trials + 1)
        )
        assert tail == pytest.approx(alpha, rel=1e-6)
        peer = binomtest(int(k), trials, alternative="greater").proportion_ci(1 - alpha, "exact")
        assert p == pytest.approx(peer.low, abs=1e-9)


@pytest.mark.parametrize("sigma", (0.25, 1.0))
def test_radii_on_a_linear_classifier_are_the_distance_within_sampling_error(sigma):
    smoothing = Smoothing(sigma, selection_samples=20, samples=1000)
    # Far beyond the box once noise is added, so that clipping it would show.
    distances = np.linspace(0.2, 2.2, 11) * sigma
    classes, radii = certify(linear, WEIGHTS, at_distance(distances), KEY, smoothing)
    np.testing.assert_array_equal(classes, 1)
    ends = [radii_of_quantiles(norm.cdf(d / sigma), smoothing) for d in distances]
    low, high = np.array(ends).T
    assert (low - 1e-6 <= radii).all() and (radii <= high + 1e-6).all()
    assert (radii[3:] > 0.65 * distances[3:]).all()
    mirrored = certify(linear, -WEIGHTS, at_distance(distances), KEY, smoothing)
    np.testing.assert_array_equal(mirrored.classes, 0)


def test_certificates_exceed_the_true_radius_with_probability_at_most_alpha():
    smoothing, distance, repeats = Smoothing(0.5, 10, 60, alpha=0.1), 0.45, 3000
    images = at_distance(np.full(repeats, distance))
    certificates = certify(linear, WEIGHTS, images, KEY, smoothing, batch_size=70)
    probability, counts = norm.cdf(distance / 0.5), np.arange(61)
    too_far = [radius_of(hits, smoothing) > distance for hits in counts]
    expected = binom.pmf(counts, 60, probability)[too_far].sum()
    assert 0.05 < expected <= 0.1  # counts are integers, so the bound is conservative
    exceeding = (certificates.radii > distance).sum()
    assert abs(exceeding - repeats * expected) < 4 * math.sqrt(repeats * expected)


def test_at_the_boundary_it_abstains_with_probability_1_minus_alpha():
    smoothing, repeats = Smoothing(0.5, 61, 61, alpha=0.1), 2000
    images, counts = at_distance(np.zeros(repeats)), np.arange(62)
    half = binom.pmf(counts, 61, 0.5)
    certificates = certify(linear, WEIGHTS, images, KEY, smoothing, batch_size=122)
    expected = half[[radius_of(hits, smoothing) > 0 for hits in counts]].sum()
    predicted = predict(linear, WEIGHTS, images, KEY, smoothing, batch_size=61)
    answered = half[[binomtest(int(hits), 61).pvalue <= 0.1 for hits in counts]].sum()
    for classes, share in ((certificates.classes, expected), (predicted, answered)):
        assert 0.04 < share <= 0.1
        assert set(classes) == {-1, 0, 1}
        assert abs((classes >= 0).sum() - repeats * share) < 4 * math.sqrt(repeats * share)
    assert (certificates.radii[certificates.classes < 0] == 0).all()
    assert (certificates.radii[certificates.classes >= 0] > 0).all()


def test_the_worst_attack_inside_a_certified_radius_flips_what_alpha_allows_and_outside_all():
    smoothing, alpha = Smoothing(0.5, 30, 300, alpha=0.02), 0.02
    key_certify, key_predict = jax.random.split(KEY)
    distances = np.linspace(0.15, 0.9, 400)
    classes, radii = certify(linear, WEIGHTS, at_distance(distances), key_certify, smoothing)
    held = classes >= 0
    assert held.mean() > 0.9
    inside = predict(linear, WEIGHTS, at_distance(distances - radii), key_predict, smoothing)
    flipped = (held & (inside >= 0) & (inside != classes)).sum()
    # A false certificate and a false prediction are each allowed their alpha.
    assert flipped <= binom.ppf(0.999, held.sum(), 2 * alpha)
    beyond = at_distance(distances - np.maximum(2 * radii, distances + 0.15))
    outside = predict(linear, WEIGHTS, beyond, key_predict, smoothing)
    assert (outside[held] != classes[held]).all() and (outside == 0).mean() > 0.95


def test_the_radius_is_limited_by_the_number_of_draws():
    smoothing = Smoothing(0.5, samples=300)
    (radius,) = certify(linear, WEIGHTS, at_distance([3.4]), KEY, smoothing).radii
    assert radius == pytest.approx(0.5 * norm.ppf(0.001 ** (1 / 300)))


def test_one_class_one_image_and_one_draw_per_call():
    def only(_, images):
        return images.sum((1, 2))

    smoothing = Smoothing(0.5, 1, 12, alpha=0.01)
    images = at_distance([0.1])
    certificates = certify(only, None, images, KEY, smoothing, batch_size=1)
    np.testing.assert_array_equal(certificates.classes, [0])
    np.testing.assert_allclose(certificates.radii, [0.5 * norm.ppf(0.01 ** (1 / 12))])
    np.testing.assert_array_equal(predict(only, None, images, KEY, smoothing, batch_size=1), [0])
    for refused in (certify, predict):
        with pytest.raises(InputError, match="there are no images"):
            refused(only, None, images[:0], KEY, smoothing)


def test_predict_tests_the_top_class_against_the_second_only():
    def thirds(_, images):
        """Classes 0, 1 and 2 for 45%, 30% and 25% of the draws."""
        z = images[:, 0, 0, 0]
        return jax.nn.one_hot(jnp.where(z > 0.674, 2, jnp.where(z > -0.126, 1, 0)), 3)

    images, smoothing = np.zeros((12, 1, 1, 1), np.float32), Smoothing(1.0, samples=170, alpha=0.01)
    classes = predict(thirds, None, images, KEY, smoothing, batch_size=170)
    expected = []
    for number in range(12):
        counts = np.bincount(naive_votes(thirds, None, images[number], number, 1.0, 170))
        second, most = sorted(counts)[-2:]
        sure = binomtest(int(most), int(most + second)).pvalue <= 0.01
        expected.append(counts.argmax() if sure else -1)
    np.testing.assert_array_equal(classes, expected)
    assert 2 < (classes < 0).sum() < 10


def naive_votes(classifier, params, image, number, sigma, draws):
    """Votes of one noisy copy after the other, with the keys that `certify` documents."""
    run, votes, stochastic = jax.jit(classifier), [], getattr(classifier, "stochastic", False)
    for draw in range(draws):
        key = jax.random.fold_in(jax.random.fold_in(KEY, number), draw)
        key_noise, key_own = jax.random.split(key)
        noise = jax.random.normal(key_noise, image.shape)
        own = {"key": key_own} if stochastic else {}
        votes.append(int(run(params, image[None] + sigma * noise, **own).argmax()))
    return votes


@pytest.mark.parametrize(
    "changes",
    (
        {},
        {"encoding": "poisson"},
        {"neuron": StochasticLIF(membrane_noise=0.005, firing_noise=0.005)},
    ),
)
def test_a_spiking_networks_certificates_equal_a_naive_loop(network, images, changes):
    architecture, variables = network
    usual = 0.9 * jax.jit(Classifier(architecture))((variables, None), images).mean(0)
    changed = dataclasses.replace(architecture, **changes)
    params = busy(changed, seed=0), None  # the same weights
    params[0]["params"]["classifier"]["bias"] -= usual  # without this one class has all votes
    classifier = Classifier(changed)
    assert classifier.stochastic == bool(changes)
    smoothing = Smoothing(0.1, 7, 50, alpha=0.05)
    certificates = certify(classifier, params, images[:4], KEY, smoothing, batch_size=16)
    assert len(set(certificates.radii)) > 2
    for number in range(4):
        votes = naive_votes(classifier, params, images[number], number, 0.1, 57)
        top = np.bincount(votes[:7]).argmax()
        radius = radius_of(votes[7:].count(top), smoothing)
        assert certificates.classes[number] == (top if radius else -1)
        assert certificates.radii[number] == pytest.approx(radius)


def test_results_depend_on_the_key_and_not_on_the_size_of_a_call():
    smoothing = Smoothing(0.5, 10, 90)
    images, progress = at_distance(np.linspace(0.1, 0.8, 12)), []

    def answers(seed, batch_size):
        key = jax.random.key(seed)
        options = {"batch_size": batch_size, "progress": progress.append}
        certificates = certify(linear, WEIGHTS, images, key, smoothing, **options)
        return *certificates, predict(linear, WEIGHTS, images, key, smoothing, **options)

    once, again, cut, other = (answers(*way) for way in ((3, 100), (3, 100), (3, 7), (4, 100)))
    for a, b, c in zip(once, again, cut, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)
    assert (once[1] != other[1]).any()
    assert progress == [1] * (8 * len(images))
    # The same image at two positions has independent noise.
    twins = certify(linear, WEIGHTS, images[[5] * 6], KEY, smoothing)
    assert len(set(twins.radii)) > 1


def test_one_shape_is_compiled_for_any_number_of_draws():
    shapes = []

    def watched(weights, images):
        shapes.append(images.shape)
        return linear(weights, images)

    for selection, samples, sigma in ((1, 1, 0.5), (10, 23, 0.5), (16, 64, 0.25)):
        smoothing, images = Smoothing(sigma, selection, samples), at_distance([0.3, 0.4])
        certify(watched, WEIGHTS, images, KEY, smoothing, batch_size=16)
        predict(watched, WEIGHTS, images, KEY, smoothing, batch_size=16)
    assert shapes == [(16, 10, 10, 1)]


class Jittery:
    """The linear classifier with its own Gaussian noise, one draw per call."""

    stochastic = True

    def __call__(self, params, images, *, key):
        weights, spread = params
        # The shape of an image's noise: the same key would repeat it.
        own = jax.random.normal(key, (10, 10, 1)).ravel() @ weights / LENGTH
        score = (images.reshape(len(images), -1) - 0.5) @ weights + spread * own
        return jnp.stack([-score, score], -1)


def test_a_stochastic_classifier_is_averaged_over_its_own_randomness():
    sigma, spread, distance, repeats = 0.5, 0.6, 0.6, 300
    smoothing = Smoothing(sigma, 20, 200)
    images = at_distance(np.full(repeats, distance))
    classes, radii = certify(Jittery(), (WEIGHTS, spread), images, KEY, smoothing, batch_size=44)
    probability = norm.cdf(distance * LENGTH / math.hypot(sigma * LENGTH, spread))
    counts = np.arange(201)
    chances = binom.pmf(counts, 200, probability)
    possible = np.array([radius_of(hits, smoothing) for hits in counts])
    mean = chances @ possible
    spread_of_radii = math.sqrt(chances @ possible**2 - mean**2)
    assert (classes[radii > 0] == 1).all() and mean < 0.8 * distance
    assert radii.mean() == pytest.approx(mean, abs=4 * spread_of_radii / math.sqrt(repeats))
    assert radii.std() == pytest.approx(spread_of_radii, rel=0.2)
    again = certify(Jittery(), (WEIGHTS, spread), images[:5], KEY, smoothing, batch_size=220)
    np.testing.assert_array_equal(again.radii, radii[:5])
    predicted = predict(Jittery(), (WEIGHTS, spread), images[:20], KEY, smoothing)
    np.testing.assert_array_equal(predicted, 1)


def test_certified_accuracy_counts_correct_classes_with_at_least_the_radius():
    certificates = Certificates(np.array([2, -1, 0, 1, 1]), np.array([0.5, 0, 0.25, 0.75, 1.0]))
    labels = np.array([2, 0, 0, 1, 3])
    curve = certified_accuracy(certificates, labels, np.array([0.0, 0.25, 0.3, 0.5, 0.75, 1.0]))
    np.testing.assert_allclose(curve, [0.6, 0.6, 0.4, 0.4, 0.2, 0.0])


@pytest.mark.parametrize(
    "make, message",
    (
        (lambda: Smoothing(0.0), "sigma 0.0 is out of range"),
        (lambda: Smoothing(-0.1), "sigma -0.1 is out of range"),
        (lambda: Smoothing(math.nan), "sigma nan is out of range"),
        (lambda: Smoothing(0.5, alpha=0.0), r"alpha 0.0 is outside \(0, 1\)"),
        (lambda: Smoothing(0.5, alpha=1.0), r"alpha 1.0 is outside \(0, 1\)"),
        (lambda: Smoothing(0.5, samples=0), "samples 0"),
        (lambda: Smoothing(0.5, selection_samples=0), "selection_samples 0"),
        (
            lambda: certify(linear, WEIGHTS, at_distance([0.1]), KEY, Smoothing(0.5), batch_size=0),
            "batch_size 0",
        ),
        (
            lambda: predict(linear, WEIGHTS, at_distance([0.1]), KEY, Smoothing(0.5), batch_size=0),
            "batch_size 0",
        ),
    ),
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize("trials", (1, 2, 7, 100, 1000, 100_000))
@pytest.mark.parametrize("alpha", (1e-12, 0.001, 0.05, 0.5, 0.999))
def test_bounds_are_scipys_quantiles_of_the_beta_distribution(trials, alpha):
    hits = np.unique(np.linspace(0, trials, 40).astype(int))
    expected = np.where(hits > 0, beta.ppf(alpha, np.maximum(hits, 1), trials - hits + 1), 0)
    bounds = clopper_pearson(hits, trials, alpha)
    np.testing.assert_allclose(bounds, expected, rtol=1e-9, atol=1e-300)


def test_radii_and_tests_are_scipys_normal_quantiles_and_binomial_tails():
    p = np.concatenate([np.linspace(0, 1, 201), [1e-300, 1e-12, 1 - 1e-12]])
    np.testing.assert_allclose(special.ndtri(p), norm.ppf(p), rtol=1e-12)
    for total in (0, 1, 2, 9, 100, 1001):
        most = np.arange(total + 1)
        tails = special.bdtrc(most - 1, np.full(total + 1, total), 0.5)
        np.testing.assert_allclose(tails, binom.sf(most - 1, total, 0.5), rtol=1e-10, atol=1e-300)


def test_the_library_does_not_load_scipy_stats():
    # it takes half a second
    finish([start("import sys, ccsrp_jax; assert 'scipy.stats' not in sys.modules")])
