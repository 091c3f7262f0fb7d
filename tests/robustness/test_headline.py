"""The headline of an evaluation says first what a reader must know."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccsrp_jax.attacks.threat_model import ThreatModel
from ccsrp_jax.data.splits import Split
from ccsrp_jax.robustness.evaluation import Assessment, evaluate, most_frequent_share
from ccsrp_jax.robustness.outcome import Outcome


class Verdict:
    """Stands for that of an audit."""

    unchecked, checks, images = (), (), 0
    eps_curve = steps_curve = width_curve = ()

    def __init__(self, *reasons: str):
        self.reasons, self.reliable = list(reasons), not reasons
        self.conclusion = "unreliable" if reasons else "reliable"


def assessment(correct: int, images: int, *reasons: str, chance: float = 0.1) -> Assessment:
    clean = np.arange(images) < correct
    outcome = Outcome(ThreatModel("linf", 0.1), clean, np.full(images, -1))
    return Assessment(outcome, Verdict(*reasons), {}, chance=chance)


@pytest.mark.parametrize("correct, at_chance", [(6, True), (10, True), (30, False), (64, False)])
def test_a_network_that_is_not_better_than_one_answer_is_at_chance(untyped, correct, at_chance):
    found = assessment(correct, 64, "even at eps 1 attacks fail")
    assert found.headline.startswith("at chance: accuracy" if at_chance else "unreliable: even")
    assert "even at eps 1 attacks fail" in found.headline  # what the audit found is said too
    assert found.record()["conclusion"] == ("at chance" if at_chance else "unreliable")


def test_a_sound_network_gets_the_figure_alone(untyped):
    assert assessment(60, 64).headline.startswith("robust accuracy 0.938")


def test_chance_is_the_share_of_the_most_frequent_class():
    assert most_frequent_share(np.array([0, 1, 1, 2])) == 0.5
    assert most_frequent_share(np.array([3, 3])) == 0  # a right answer to both says nothing


def test_an_untrained_function_is_evaluated_as_at_chance():
    def constant(bias, images):
        return bias + 0 * images.sum((1, 2, 3))[:, None]

    images = np.random.default_rng(0).random((40, 2, 2, 1)).astype(np.float32)
    split = Split(images, np.arange(40) % 4)
    bias, options = jnp.arange(4.0), {"eps": 0.1, "key": jax.random.key(0), "suite": "pgd"}
    found = evaluate(constant, bias, split, natural=(), **options)
    assert found.headline.startswith("at chance: accuracy 0.250 where one answer to all images has")
