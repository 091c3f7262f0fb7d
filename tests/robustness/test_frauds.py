"""Functions that look robust are caught or broken, and honest ones are not flagged."""

import dataclasses
from typing import Any, NamedTuple

import frauds
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import busy, curved, curved_weights, linear, thinned
from frauds import EPS, SPLIT, WEIGHTS

from ccsrp_jax.attacks.threat_model import ThreatModel
from ccsrp_jax.data.splits import Split
from ccsrp_jax.networks import zoo
from ccsrp_jax.networks.classifier import Classifier, is_stochastic
from ccsrp_jax.networks.cuba_lif import CubaLIF
from ccsrp_jax.networks.neurons import LIF
from ccsrp_jax.robustness import gradient_sources, predict
from ccsrp_jax.robustness.evaluation import evaluate
from ccsrp_jax.robustness.suites import build_suite

SHORT = {"steps": 10, "budget": 60, "restarts": 1, "targets": 2, "samples": 10}
ZERO, CLIFF = "gradients do not vanish", "margins shrink before the class changes"
FLAT, WIDTH = "logits change inside the ball", "the surrogate's width matters little"
FALLS, BLACK_BOX = "accuracy falls to 0 with eps", "black-box attacks add nothing"
BATCH, SAME = "answers do not depend on the batch", "answers stay the same"
TINY, FACES = "tiny changes do not matter", "the same answers while differentiated"
TWICE, EPS_CURVE = "same answer twice", "never rises with eps"
BROKEN = "broken"  # as many images as the classifier behind it loses


class Fraud(NamedTuple):
    """A function, and all checks that must catch it; `BROKEN` if attacks break it instead."""

    function: Any
    caught_by: tuple[str, ...]
    state: Any = WEIGHTS


FRAUDS = {
    "quantised input": Fraud(frauds.quantised, (ZERO, FALLS)),
    "thermometer encoding": Fraud(frauds.thermometer, (ZERO, FALLS)),
    "rounded DCT": Fraud(frauds.jpeg, (ZERO, FALLS)),
    "argmax embedding": Fraud(frauds.embedded, (ZERO, FALLS)),
    "stopped gradient": Fraud(frauds.stopped, (ZERO, FALLS)),
    "wrong sign": Fraud(frauds.wrong_sign, (BLACK_BOX, FALLS)),
    "huge logits": Fraud(frauds.loud, (ZERO,)),
    "tiny logits": Fraud(frauds.silent, (BROKEN,)),
    "saturated logits": Fraud(frauds.saturated, (ZERO, FLAT)),
    "rounded logits": Fraud(frauds.rounded_logits, (ZERO,)),
    "shattered gradient": Fraud(frauds.shattered, (FALLS,)),
    "narrow surrogate": Fraud(frauds.Steps(1e-4), (ZERO,), frauds.SPIKING),
    "wide surrogate": Fraud(frauds.Steps(1e6), (ZERO,), frauds.SPIKING),
    "other widths ignored": Fraud(frauds.SameBackward(1e-4), (ZERO,), frauds.SPIKING),
    "other widths mislead": Fraud(frauds.OtherForward(1e-4), (FACES,), frauds.SPIKING),
    "one-hot, gradient of a decoy": Fraud(frauds.one_hot_with_decoy, (CLIFF,)),
    "one-hot beside a decoy": Fraud(frauds.one_hot_beside_decoy, (CLIFF,)),
    "nearest image looked up": Fraud(frauds.lookup, (ZERO, FLAT, CLIFF)),
    "snapped to known images": Fraud(frauds.snapped, (FLAT,)),
    "detector and copied answer": Fraud(frauds.detector, (FLAT,)),
    "labels by position": Fraud(
        frauds.by_position, (BATCH, ZERO, FLAT), (WEIGHTS, frauds.MEMORY_ANSWERS)
    ),
    "not a number": Fraud(frauds.not_a_number, (BROKEN,)),
    "noise by a hash": Fraud(frauds.noise_by_hash, (TINY,)),
    "resized by a hash": Fraud(frauds.resized_by_hash, (TINY,)),
    "batch norm in training mode": Fraud(frauds.batch_norm, (BATCH,)),
    "batch of unknown images": Fraud(frauds.batch_decoy, (FLAT,)),
    "answers by batch size": Fraud(frauds.batch_size, (BATCH, FLAT)),
    "undeclared noise": Fraud(frauds.Undeclared(), (TWICE, SAME)),
    "noise drawn while traced": Fraud(frauds.drawn_while_traced, (SAME,)),
    "counted calls": Fraud(frauds.ByCalls(), (FLAT,)),
    "counted traces": Fraud(frauds.ByTraces(), (SAME,)),
    "differentiated otherwise": Fraud(frauds.two_faced, (FACES,)),
    "gradient drowned in noise": Fraud(frauds.Drowned(), (BLACK_BOX,)),
    "labels in the key": Fraud(frauds.LeakedKey(), (BROKEN,)),
}


def assess(function, state, split, eps, preset="quick"):
    """An evaluation with the attacks of a preset, on small budgets."""
    threat = ThreatModel("linf", eps)
    sources, specs = gradient_sources(function, state), []
    for spec in build_suite(preset, threat, sources, samples=SHORT["samples"]):
        known = {field.name for field in dataclasses.fields(spec.attack)} & SHORT.keys()
        less = {name: min(getattr(spec.attack, name), SHORT[name]) for name in known}
        specs.append(dataclasses.replace(spec, attack=dataclasses.replace(spec.attack, **less)))
    key, options = jax.random.key(0), {"natural": (), "votes": 8}
    return evaluate(function, state, split, eps=eps, key=key, suite=specs, **options)


def failed(verdict):
    return {check.name for check in verdict.checks if check.passed is False}


LONG = (
    *("quantised input", "gradient drowned in noise", "wide surrogate", "labels in the key"),
    *("noise by a hash", "resized by a hash", "undeclared noise", "batch norm in training mode"),
    *("other widths mislead", "counted calls", "detector and copied answer"),
)


@pytest.mark.parametrize("name", thinned(FRAUDS, FRAUDS.keys() - LONG))
def test_what_only_looks_robust_is_caught_or_broken(name):
    fraud, truth = FRAUDS[name], frauds.left_of(SPLIT)
    found = assess(fraud.function, fraud.state, SPLIT, EPS)
    broken = found.outcome.robust.sum() <= truth.sum() + 2
    caught = failed(found.verdict)
    assert not found.verdict.reliable or broken
    assert set(fraud.caught_by) - {BROKEN} <= caught
    assert broken or BROKEN not in fraud.caught_by


@dataclasses.dataclass(frozen=True)
class Noisy:
    """A linear classifier of images with noise, declared stochastic."""

    stochastic = True

    def __call__(self, weights, images, *, key):
        return linear(weights, images + 0.05 * jax.random.normal(key, images.shape))


def kernel(weights, images):
    """The logarithm of a sum of bumps around known images of each class."""
    squares = ((images[:, None] - frauds.MEMORY[None, :24]) ** 2).sum((2, 3, 4))
    of_class = frauds.MEMORY_ANSWERS[:24] > 0
    return jax.nn.logsumexp(jnp.where(of_class, -10 * squares[..., None], -1e9), 1)


FUNCTIONS = {
    "linear": (linear, WEIGHTS, EPS),
    "linear, wide margins": (linear, WEIGHTS, 0.01),
    "two layers": (curved, curved_weights(np.random.default_rng(0), 16, 3), 0.05),
    "kernel": (kernel, None, 0.1),
    "noise, declared": (Noisy(), WEIGHTS, EPS),
}
NEURONS = {
    "LIF": LIF(),
    "soft reset": LIF(reset="soft", decay_input=False),
    "PLIF": LIF(learned=True),
    "IF": LIF(tau=float("inf"), decay_input=False),
    "CubaLIF": CubaLIF(),
}
DIGITS = {"input_shape": (8, 8, 1), "classes": 10, "mean": (0.3,), "std": (0.4,)}
EAGER = LIF(threshold=0.5, decay_input=False)
NETWORKS = {
    name: zoo.plain((6, "A", 5), time_steps=3, neuron=neuron, **DIGITS)
    for name, neuron in NEURONS.items()
} | {"residual": zoo.residual(((6, 1, 1),), stem=6, time_steps=4, neuron=EAGER, **DIGITS)}


def judged(function, state, images):
    """The images with the function's own answers as labels."""
    key = jax.random.key(1) if is_stochastic(function) else None
    return Split(images, np.asarray(predict(function, state, images, key=key)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_honest_functions_are_not_flagged(name):
    function, state, eps = FUNCTIONS[name]
    found = assess(function, state, judged(function, state, frauds.IMAGES), eps)
    assert found.verdict.reliable, found.headline


@pytest.mark.parametrize("name", thinned(NETWORKS, ("LIF",)))
def test_honest_spiking_networks_are_not_flagged(name, digits):
    architecture = NETWORKS[name]
    variables = busy(architecture, seed=0)
    if name == "residual":  # behind global pooling one class prevails
        z = jax.jit(Classifier(architecture))((variables, None), digits.test.images[:64])
        variables["params"]["classifier"]["bias"] -= z.mean(0)
    network = Classifier(architecture), (variables, None)
    split = judged(*network, digits.test.images[:64])
    found = assess(*network, split, 1 / 32)
    assert found.verdict.reliable, found.headline
