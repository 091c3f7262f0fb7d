"""Pruning methods behind one interface: `(key, problem, **settings) -> Pruned`."""

from ccsrp_jax.pruning import criteria
from ccsrp_jax.pruning.budget import Target
from ccsrp_jax.pruning.candidates import best_of
from ccsrp_jax.pruning.criteria import by_score, magnitude
from ccsrp_jax.pruning.methods.ccsrp import ccsrp
from ccsrp_jax.pruning.methods.ccsrp_widths import ccsrp_widths
from ccsrp_jax.pruning.problem import Callbacks, Passes, Problem, Pruned, finetune
from ccsrp_jax.pruning.registry import FILTER_METHODS, METHODS, WEIGHT_METHODS

__all__ = [
    "FILTER_METHODS",
    "METHODS",
    "WEIGHT_METHODS",
    "Callbacks",
    "Passes",
    "Problem",
    "Pruned",
    "Target",
    "best_of",
    "by_score",
    "ccsrp",
    "ccsrp_widths",
    "criteria",
    "finetune",
    "magnitude",
]
