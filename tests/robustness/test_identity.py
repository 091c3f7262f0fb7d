"""No figure of one function is given to another that only looks the same."""

import dataclasses
from typing import Any

import frauds
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import linear

from ccsrp_jax.attacks.pgd import fgsm
from ccsrp_jax.attacks.threat_model import ThreatModel
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.neurons import Surrogate
from ccsrp_jax.robustness.accuracy import Evaluator
from ccsrp_jax.robustness.evaluation import evaluate
from ccsrp_jax.robustness.gradient_sources import GradientSource
from ccsrp_jax.robustness.identity import Identified, answers, identified, program
from ccsrp_jax.robustness.run_suite import attack_all
from ccsrp_jax.robustness.suites import AttackSpec
from ccsrp_jax.utils.errors import InputError

IMAGES = jnp.asarray(frauds.IMAGES)


@dataclasses.dataclass(frozen=True)
class Wrapper:
    """A network that keeps its weights out of the comparison."""

    weights: Any = dataclasses.field(compare=False)

    def __call__(self, state, images):
        return linear(self.weights, images)


@dataclasses.dataclass(eq=False)
class Module:
    """A network that is trained in place."""

    weights: Any

    def __call__(self, state, images):
        return linear(self.weights, images)


def closure(weights):
    def classifier(state, images):
        return linear(weights, images)

    return classifier


def measure(function):
    options = {"suite": [AttackSpec("fgsm", fgsm(frauds.EPS))], "natural": (), "audit_images": 64}
    key = jax.random.key(0)
    return evaluate(function, None, frauds.SPLIT, eps=frauds.EPS, key=key, **options).outcome


@pytest.mark.parametrize("kind", ("a wrapper", "trained in place"))
def test_equal_functions_are_not_taken_for_each_other(kind):
    module = Module(frauds.WEIGHTS)
    first = measure(Wrapper(frauds.WEIGHTS) if kind == "a wrapper" else module)
    module.weights = frauds.DECOY
    second = measure(Wrapper(frauds.DECOY) if kind == "a wrapper" else module)
    expected = np.asarray(linear(frauds.DECOY, IMAGES).argmax(-1)) == frauds.LABELS
    assert first.clean.all() and 0.1 < expected.mean() < 0.9
    np.testing.assert_array_equal(second.clean, expected)
    left = frauds.left_of(frauds.SPLIT, frauds.DECOY) & expected
    np.testing.assert_array_equal(second.robust, left)


def run(function, record, other=linear, state=None):
    evaluator = Evaluator(function, None, frauds.SPLIT)
    specs = [AttackSpec("transfer", fgsm(frauds.EPS), "twin")]
    options = {"threat": ThreatModel("linf", frauds.EPS), "record": record}
    sources = {"twin": GradientSource(other, state)}
    return attack_all(evaluator, specs, sources, jax.random.key(0), **options)


def test_a_record_is_continued_by_the_same_function_only(tmp_path):
    record, first, second = tmp_path / "suite.json", frauds.WEIGHTS, frauds.DECOY
    whole = run(closure(first), record, closure(first))
    again = run(closure(first), record, closure(first))  # other objects, the same functions
    np.testing.assert_array_equal(again.broken_by, whole.broken_by)
    for function, other in ((second, first), (first, second)):
        with pytest.raises(InputError, match="of another network"):
            run(closure(function), record, closure(other))
    record.unlink()
    run(Wrapper(first), record, linear, first)
    with pytest.raises(InputError, match="of another network"):
        run(Wrapper(second), record, linear, first)


def test_the_same_function_is_the_same_program_whatever_its_state():
    functions = (linear, frauds.wrong_sign, frauds.Drowned(), frauds.noise_by_hash)
    for function in functions:
        found = {program(function, scale * frauds.WEIGHTS, IMAGES) for scale in (1, 2)}
        assert len(found) == 1
    assert len({program(function, frauds.WEIGHTS, IMAGES) for function in functions}) == 4


def test_captured_arrays_count_wherever_they_are():
    weights = frauds.WEIGHTS
    kinds = (
        closure,
        lambda w: jax.jit(closure(w)),
        lambda w: (
            lambda state, images: jax.lax.cond(
                images[0, 0, 0, 0] > 0.5, lambda x: linear(w, x), lambda x: linear(2 * w, x), images
            )
        ),
        lambda w: lambda state, images: linear(weights, images) * np.asarray(w)[0, 0].item(),
    )
    for make in kinds:
        same, other = make(weights), make(weights.at[0, 0].add(1e-3))
        digests = [program(function, None, IMAGES) for function in (make(weights), same, other)]
        assert digests[0] == digests[1] != digests[2]


def test_an_identified_function_has_what_the_function_has(network):
    function = identified(frauds.SameBackward(0.1), frauds.SPIKING, IMAGES)
    assert isinstance(function, Identified) and not hasattr(function, "stochastic")
    assert function.with_backward(Surrogate()) == function
    assert identified(function, frauds.SPIKING, IMAGES) is function
    assert identified(frauds.Drowned(), frauds.WEIGHTS, IMAGES).stochastic
    classifier = Classifier(network[0])
    assert identified(classifier, (network[1], None), IMAGES) is classifier
    assert answers(classifier, (network[1], None), IMAGES) is None
