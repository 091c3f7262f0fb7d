"""The audit: planted frauds are caught for the right reason, an honest network passes."""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import thinned

from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.attacks.threat_model import ThreatModel
from ccsrp_jax.data.splits import Split
from ccsrp_jax.networks import zoo
from ccsrp_jax.networks.classifier import Classifier, is_stochastic
from ccsrp_jax.networks.neurons import Surrogate
from ccsrp_jax.robustness.accuracy import Evaluator
from ccsrp_jax.robustness.audit import (
    audit,
    largest_rise,
    monotone_in_eps,
    monotone_in_steps,
    noise,
)
from ccsrp_jax.robustness.evaluation import evaluate
from ccsrp_jax.robustness.gradient_sources import gradient_sources
from ccsrp_jax.robustness.outcome import Outcome
from ccsrp_jax.robustness.probes import Probes
from ccsrp_jax.robustness.sweeps import EPS_FACTORS, STEPS, WIDTHS, Sweeps
from ccsrp_jax.training import trainer

EPS = 1 / 16
IMAGES = 96
RECTANGLE = Surrogate("rectangle", 0.02)


@pytest.fixture(scope="module")
def trained(digits):
    """An adversarially trained network and its variables."""
    architecture = zoo.plain((12, "A", 24, "A"), (8, 8, 1), 10, mean=digits.mean, std=digits.std)
    recipe = trainer.Recipe(epochs=8, adversarial=PGD(EPS, 3), clean_epochs=2)
    variables = trainer.train(
        jax.random.key(1),
        Classifier(architecture),
        zoo.init(jax.random.key(0), architecture),
        {},
        digits.train,
        recipe,
    )
    return architecture, variables


@pytest.fixture(scope="module")
def images(digits):
    return Split(digits.test.images[:IMAGES], digits.test.labels[:IMAGES])


def judge(classifier, variables, images, eps=EPS, votes=16, **options):
    """The audit of a network that no attack has been run on yet; stochastic ones by `own` only."""
    clean = np.ones(len(images.labels), bool)
    outcome = Outcome(ThreatModel("linf", eps), clean, np.full(len(clean), -1))
    network_state = (variables, None)
    key = jax.random.key(3)
    sources = gradient_sources(classifier, network_state)
    if is_stochastic(classifier):
        sources = {"own": sources["own"]}
    evaluator = Evaluator(classifier, network_state, images, votes=votes)
    return audit(evaluator, outcome, sources, key, **options)


def failed(verdict):
    return {check.name for check in verdict.checks if check.passed is False}


@dataclass(frozen=True)
class Quantised:
    """A network that rounds its input: the gradient is zero everywhere."""

    inner: Classifier

    def __call__(self, params, images):
        return self.inner(params, jnp.round(images * 16) / 16)


@jax.custom_vjp
def reversed_gradient(x):
    return x


reversed_gradient.defvjp(lambda x: (x, None), lambda _, g: (-g,))


@dataclass(frozen=True)
class Away:
    """A network whose gradient points to safety."""

    inner: Classifier

    def __call__(self, params, images):
        return self.inner(params, reversed_gradient(images))


@dataclass(frozen=True)
class Loud:
    """A network with its logits scaled up until the softmax saturates."""

    inner: Classifier

    def __call__(self, params, images):
        return 1e4 * self.inner(params, images)


def saturated(architecture, variables, factor):
    """The same spikes, from membranes and thresholds that are `factor` times as large."""

    def scale(path, value):
        is_norm = path[-1].key in ("scale", "bias") and path[-2].key.startswith("norm")
        return factor * value if is_norm else value

    neuron = dataclasses.replace(
        architecture.neuron, threshold=factor * architecture.neuron.threshold
    )
    scaled = jax.tree_util.tree_map_with_path(scale, variables)
    return dataclasses.replace(architecture, neuron=neuron), scaled


def test_an_honest_network_passes(trained, images):
    architecture, variables = trained
    verdict = judge(Classifier(architecture), variables, images)
    assert verdict.reliable, verdict.reasons
    assert verdict.images == IMAGES
    assert [steps for steps, _ in verdict.steps_curve] == list(STEPS)
    assert [name for name, _ in verdict.width_curve] == ["own", *WIDTHS]
    radii = [radius for radius, _ in verdict.eps_curve]
    assert radii == [0, *(times * EPS for times in EPS_FACTORS), 1]
    assert verdict.eps_curve[0][1] > 0.7 and verdict.eps_curve[-1][1] == 0


@pytest.mark.slow
def test_an_honest_network_passes_with_the_whole_quick_suite(trained, images):
    architecture, variables = trained
    found = evaluate(
        Classifier(architecture),
        (variables, None),
        images,
        eps=EPS,
        key=jax.random.key(0),
        suite="quick",
        natural=(),
    )
    assert found.verdict.reliable, found.verdict.reasons
    assert not found.verdict.unchecked
    assert found.outcome.robust_accuracy < found.outcome.alone("PGD 20 x 2")


@pytest.mark.parametrize(
    "surrogate",
    thinned([RECTANGLE, Surrogate("triangle", 0.005)], [RECTANGLE]),
)
def test_a_very_narrow_surrogate_is_caught_by_wider_ones(trained, images, surrogate):
    # ATan's tails reach so far that even a hundredth of its width still breaks most images.
    architecture, variables = trained
    verdict = judge(Classifier(architecture, surrogate), variables, images)
    assert "the surrogate's width matters little" in failed(verdict)
    assert any("another width" in reason for reason in verdict.reasons)


@pytest.mark.parametrize("name", thinned(("triangle", "rectangle"), ("rectangle",)))
def test_saturated_membranes_are_caught_by_their_vanishing_gradients(trained, images, name):
    # ATan's tails still point the right way there, so a network with it is no fraud.
    architecture, variables = saturated(*trained, factor=200.0)
    classifier = Classifier(architecture, Surrogate(name))
    honest = jax.jit(Classifier(trained[0]))((trained[1], None), jnp.asarray(images.images))
    logits = jax.jit(classifier)((variables, None), jnp.asarray(images.images))
    np.testing.assert_allclose(logits, honest, atol=1e-3)  # the very same function
    verdict = judge(classifier, variables, images)
    assert "gradients do not vanish" in failed(verdict)


def test_a_quantised_input_is_caught_by_its_zero_gradients(trained, images):
    architecture, variables = trained
    verdict = judge(Quantised(Classifier(architecture)), variables, images)
    assert {"gradients do not vanish", "accuracy falls to 0 with eps"} <= failed(verdict)
    assert verdict.checks[6].figure == 1


def test_a_gradient_that_points_away_is_beaten_by_noise(trained, images):
    architecture, variables = trained
    verdict = judge(Away(Classifier(architecture)), variables, images, eps=0.2)
    assert {"noise is weaker", "accuracy falls to 0 with eps"} <= failed(verdict)


def test_rises_are_counted_from_the_lowest_value_before():
    assert largest_rise([0.9, 0.5, 0.6, 0.3]) == pytest.approx(0.1)
    assert largest_rise([0.9, 0.5, 0.5, 0.8]) == pytest.approx(0.3)
    assert largest_rise([0.9, 0.5, 0.2]) == 0


def test_what_was_not_run_is_said_and_not_passed(trained, images):
    architecture, variables = trained
    verdict = judge(Quantised(Classifier(architecture)), variables, images)
    assert verdict.unchecked == [
        "black-box attacks add nothing",
        "the surrogate's width matters little",
    ]


def test_saturated_logits_are_caught_by_their_zero_gradients(trained, images):
    architecture, variables = trained
    verdict = judge(Loud(Classifier(architecture)), variables, images)
    assert {"gradients do not vanish", "accuracy falls to 0 with eps"} <= failed(verdict)


@pytest.mark.slow
def test_a_stochastic_encoder_needs_an_expectation(trained, images):
    architecture, variables = trained
    noisy = Classifier(dataclasses.replace(architecture, encoding="gaussian", noise=0.2))
    few = Split(images.images[:16], images.labels[:16])
    single = judge(noisy, variables, few, votes=2)
    assert "gradient averaged over 10 draws or more" in failed(single)
    assert any("not averaged over enough draws" in reason for reason in single.reasons)
    many = judge(noisy, variables, few, samples=10, votes=2)
    assert "gradient averaged over 10 draws or more" not in failed(many)


def test_black_boxes_that_break_more_make_the_headline_unreliable(trained, images):
    # No gradient at all, and a black-box attack that needs none.
    architecture, variables = trained
    classifier = Quantised(Classifier(architecture))
    found = evaluate(
        classifier, (variables, None), images, eps=0.15, key=jax.random.key(0), suite="quick"
    )
    assert "black-box attacks add nothing" in failed(found.verdict)
    assert found.headline.startswith("unreliable: ")
    assert "attacks without this network's gradients" in found.headline


def test_steps_outside_of_the_ball_are_caught(trained, images):
    architecture, variables = trained
    clean = np.ones(IMAGES, bool)
    outcome = Outcome(ThreatModel("linf", EPS), clean, np.full(IMAGES, -1), (), 1e-3)
    classifier = Classifier(architecture)
    network_state = (variables, None)
    sources = gradient_sources(classifier, network_state)
    evaluator = Evaluator(classifier, network_state, images)
    verdict = audit(evaluator, outcome, sources, jax.random.key(0))
    assert failed(verdict) == {"inside ball and box"}


@pytest.mark.parametrize("check", (monotone_in_eps, monotone_in_steps, noise))
def test_four_images_are_no_trend_at_any_number_of_images(check):
    # a difference of quotients, such as 24 / 55 - 20 / 55, can be above 4 / 55
    for count in range(50, 200):
        for rise in (4, 5):
            by_steps = ((1, 20 / count), (2, (20 + rise) / count))
            by_eps = tuple((float(eps), accuracy) for eps, accuracy in by_steps)
            sweeps = sweeps_of(count, by_eps=by_eps, by_steps=by_steps, noise=20 / count)
            outcome = Outcome(ThreatModel("linf", EPS), sweeps.clean, np.full(count, -1))
            assert check(sweeps, outcome).passed == (rise == 4)


def sweeps_of(count, **changes):
    """Sweeps over so many images, all of them correct, that show no symptom."""
    sound = Probes(count, False, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, None)
    right, flat = np.ones(count, bool), ((0.1, 0.5),)
    options = {"by_eps": flat, "by_steps": flat, "by_width": (("own", 0.5),), "noise": 1.0}
    return Sweeps(
        **{"images": count, "places": np.arange(count), "clean": right, "at_zero": right}
        | {"vanished": 0.0, "pass_difference": 0.0, "samples": 1, "stochastic": False}
        | {"probes": sound}
        | options
        | changes
    )


def test_nothing_is_established_without_another_width(trained, images):
    architecture, variables = trained

    def foreign(network_state, x):
        return Classifier(architecture)(network_state, x)

    found = evaluate(
        foreign, (variables, None), images, eps=EPS, key=jax.random.key(0), suite="pgd", natural=()
    )
    assert found.verdict.conclusion == "not established" and not found.verdict.reliable
    assert found.headline.startswith("not established: no surrogate gradient of another width")
    record = found.record()
    assert record["conclusion"] == "not established" and not record["reliable"]
    assert record["reasons"] == found.verdict.reasons != []
