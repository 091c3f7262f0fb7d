"""Pruning methods behind one interface: `(key, problem, **settings) -> Pruned`."""

from ccsrp_jax.pruning import criteria
from ccsrp_jax.pruning.criteria import by_score, magnitude
from ccsrp_jax.pruning.methods.ccsrp import ccsrp
from ccsrp_jax.pruning.methods.ccsrp_widths import best_of, ccsrp_widths
from ccsrp_jax.pruning.problem import Passes, Problem, Pruned
from ccsrp_jax.pruning.registry import FILTER_METHODS, METHODS, WEIGHT_METHODS

__all__ = [
    "FILTER_METHODS",
    "METHODS",
    "WEIGHT_METHODS",
    "Passes",
    "Problem",
    "Pruned",
    "best_of",
    "by_score",
    "ccsrp",
    "ccsrp_widths",
    "criteria",
    "magnitude",
]
