"""The mean corruption error: figures by hand, and what has no ratio."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import linear

from ccsrp_jax.attacks.threat_model import ThreatModel
from ccsrp_jax.data.splits import Split
from ccsrp_jax.robustness import evaluation
from ccsrp_jax.robustness.corruption_error import mean_corruption_error
from ccsrp_jax.robustness.evaluation import Assessment
from ccsrp_jax.robustness.gradient_sources import GradientSource
from ccsrp_jax.robustness.outcome import Outcome
from ccsrp_jax.utils.errors import InputError

DENSE = {"fog 1": 0.9, "fog 5": 0.7, "jpeg 1": 0.95, "glass_blur 3": 0.5}
PRUNED = {"fog 1": 0.8, "fog 5": 0.6, "jpeg 1": 0.96, "glass_blur 3": 0.5}


def test_it_is_the_mean_over_corruptions_of_ratios_of_errors_summed_over_severities():
    found = mean_corruption_error(PRUNED, DENSE)
    by_hand = {"fog": 0.6 / 0.4, "jpeg": 0.04 / 0.05, "glass_blur": 1.0}
    assert found.by_corruption == pytest.approx(by_hand)
    assert found.mean == pytest.approx((1.5 + 0.8 + 1.0) / 3)
    assert mean_corruption_error(DENSE, DENSE).mean == 1
    # not the ratio of mean errors, nor the mean of the ratios at each severity
    assert found.mean != pytest.approx(0.3 * 3.8 / 0.95, abs=0.05)
    perfect = dict.fromkeys(DENSE, 1.0)
    assert mean_corruption_error(perfect, DENSE).mean == 0


@pytest.mark.parametrize(
    "accuracies, baseline, message",
    (
        ({}, {}, "there is no accuracy under a corruption"),
        (PRUNED, DENSE | {"fog 1": 1.0, "fog 5": 1.0}, "the baseline makes no error under fog"),
        (PRUNED, {"fog 1": 0.9}, "only one of the two networks was measured under 'fog 5'"),
        (PRUNED | {"fog 1": 1.2}, DENSE, r"accuracy under fog 1 1\.2 is out of range"),
        (PRUNED, DENSE | {"jpeg 1": float("nan")}, "accuracy under jpeg 1 nan is out of range"),
        ({"fog": 0.5}, {"fog": 0.5}, "'fog' names no corruption with its severity"),
        ({"fog 1.5": 0.5}, {"fog 1.5": 0.5}, r"'fog 1\.5' names no corruption"),
    ),
)
def test_what_has_no_ratio_is_refused_in_one_sentence(accuracies, baseline, message):
    with pytest.raises(InputError, match=message) as refusal:
        mean_corruption_error(accuracies, baseline)
    assert "\n" not in str(refusal.value) and str(refusal.value)[-1] == "."


def test_an_evaluation_measures_its_baseline_on_the_same_corrupted_images(monkeypatch, untyped):
    random = np.random.default_rng(0)
    images = random.uniform(size=(40, 4, 4, 1)).astype(np.float32)
    weights = jnp.asarray(random.normal(size=(16, 3)), jnp.float32)
    labels = np.asarray(linear(weights, images).argmax(-1), np.int32)
    monkeypatch.setattr(evaluation, "attack_all", lambda *args, **options: None)
    monkeypatch.setattr(evaluation, "audit", lambda *args, **options: None)
    options = {"eps": 0.1, "key": jax.random.key(0), "suite": "pgd"}
    natural = (("gaussian_noise", 5), ("impulse_noise", 5), ("gaussian_noise", 1))
    split = Split(images, labels)

    def assess(weights, baseline):
        source = GradientSource(linear, baseline)
        return evaluation.evaluate(
            linear, weights, split, natural=natural, baseline=source, **options
        )

    same, other = assess(weights, weights), assess(0.5 * weights + 0.4, weights)
    assert same.natural == same.natural_baseline == other.natural_baseline
    assert 0 < same.natural["gaussian_noise 5"] < 1
    without = evaluation.evaluate(linear, weights, split, natural=natural, **options)
    assert without.natural == same.natural and without.natural_baseline is None


class Reliable:
    """Stands for the verdict of an audit."""

    reliable, conclusion, reasons, unchecked, checks, images = True, "reliable", (), (), (), 0
    eps_curve = steps_curve = width_curve = ()


def test_a_record_has_the_mean_corruption_error_or_the_reason_why_not(untyped):
    outcome = Outcome(ThreatModel("linf", 0.1), np.ones(4, bool), np.full(4, -1))
    with_it = Assessment(outcome, Reliable(), PRUNED, DENSE).record()
    assert with_it["corruption_error"]["mean"] == pytest.approx(1.1)
    without = Assessment(outcome, Reliable(), PRUNED, dict.fromkeys(DENSE, 1.0)).record()
    assert without["corruption_error"]["mean"] is None
    assert "the baseline makes no error under fog" in without["corruption_error"]["reason"]
    json.dumps(without)
    assert "corruption_error" not in Assessment(outcome, Reliable(), PRUNED).record()
