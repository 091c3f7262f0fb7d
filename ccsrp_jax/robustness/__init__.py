"""Robustness of a network, and whether the measured figure is reliable."""

from ccsrp_jax.robustness.accuracy import Evaluator, correct, predict
from ccsrp_jax.robustness.corruption_error import CorruptionError, mean_corruption_error
from ccsrp_jax.robustness.corruptions import corrupt
from ccsrp_jax.robustness.evaluation import Assessment, evaluate
from ccsrp_jax.robustness.gradient_sources import GradientSource, gradient_sources
from ccsrp_jax.robustness.interval_certificates import certified, certified_accuracy
from ccsrp_jax.robustness.outcome import Outcome
from ccsrp_jax.robustness.run_suite import attack_all
from ccsrp_jax.robustness.smoothing import Smoothing, certify
from ccsrp_jax.robustness.suites import AttackSpec, build_suite, parse_attack

__all__ = [
    "Assessment",
    "AttackSpec",
    "CorruptionError",
    "Evaluator",
    "GradientSource",
    "Outcome",
    "Smoothing",
    "attack_all",
    "build_suite",
    "certified",
    "certified_accuracy",
    "certify",
    "correct",
    "corrupt",
    "evaluate",
    "gradient_sources",
    "mean_corruption_error",
    "parse_attack",
    "predict",
]
