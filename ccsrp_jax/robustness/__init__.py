"""How robust a network is, and whether the figure can be believed."""

from ccsrp_jax.robustness.accuracy import correct, predict
from ccsrp_jax.robustness.corruptions import corrupt
from ccsrp_jax.robustness.evaluation import Assessment, evaluate
from ccsrp_jax.robustness.run_suite import Outcome, attack_all
from ccsrp_jax.robustness.smoothing import Smoothing, certify
from ccsrp_jax.robustness.suites import View

__all__ = [
    "Assessment",
    "Outcome",
    "Smoothing",
    "View",
    "attack_all",
    "certify",
    "correct",
    "corrupt",
    "evaluate",
    "predict",
]
