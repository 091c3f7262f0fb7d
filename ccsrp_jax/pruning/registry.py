"""Pruning methods behind one interface: `(key, problem, **settings) -> Pruned`.

`METHODS` names them as the scripts do. Each is a function with its settings as arguments, and can
be called with others:

    from ccsrp_jax.pruning import Problem, by_score, criteria
    pruned = by_score(key, problem, criterion=criteria.l1, allocation="global", rounds=4)
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from ccsrp_jax.coevolution.settings import PRESETS
from ccsrp_jax.pruning import criteria
from ccsrp_jax.pruning.criteria import by_score, magnitude
from ccsrp_jax.pruning.methods import criticality, cyclical, dpap, hydra, lottery, nm, sca, sdsnn
from ccsrp_jax.pruning.methods.ccsrp import ccsrp
from ccsrp_jax.pruning.methods.ccsrp_widths import best_of, ccsrp_widths
from ccsrp_jax.pruning.problem import Passes, Problem, Pruned

Method = Callable[..., Pruned]


FAITHFUL, PRICED = PRESETS["faithful"], PRESETS["priced"]


# The schedule of all that prunes in rounds: most of the training comes after the last.
ROUNDS = {"rounds": 3, "early": 1}


# Filters; the default comes first.
FILTER_METHODS: dict[str, Method] = {
    "ccsrp": ccsrp_widths,
    "ccsrp-priced": partial(ccsrp, search=PRICED, criterion=criteria.taylor, **ROUNDS),
    "ccsrp-faithful": partial(ccsrp, search=FAITHFUL),
    "ccsrp-nsga2": partial(ccsrp, search=replace(FAITHFUL, selection="nsga2")),
    "ccsrp-snes": partial(ccsrp, search=replace(PRESETS["snes"], multiple=1)),
    "ccep": partial(ccsrp, search=replace(FAITHFUL, robust_weight=0.0)),
    "random": partial(by_score, criterion=criteria.at_random),
    "l1": partial(by_score, criterion=criteria.l1),
    "l1-rounds": partial(by_score, criterion=criteria.l1, **ROUNDS),
    "l1-global": partial(by_score, criterion=criteria.l1, allocation="global"),
    "l1-sensitivity": partial(by_score, criterion=criteria.l1, allocation="sensitivity"),
    "slimming": partial(by_score, criterion=criteria.gamma, allocation="global"),
    "slimming-uniform": partial(by_score, criterion=criteria.gamma),
    "spike-rate": partial(by_score, criterion=criteria.spike_rate),
    "taylor": partial(by_score, criterion=criteria.taylor, **ROUNDS),
    "taylor-global": partial(by_score, criterion=criteria.taylor, allocation="global", **ROUNDS),
    "criticality": criticality.criticality,
    "criticality-ablation": partial(criticality.criticality, regenerate=False),
    "sd-snn": sdsnn.sdsnn,
    "dpap": partial(dpap.dpap, synapses=False),
    "sca": sca.sca,
    "hydra": hydra.hydra,
}


# Single weights, which cost a dense machine as much when they are 0.
WEIGHT_METHODS: dict[str, Method] = {
    "magnitude": magnitude,
    "criticality-weights": criticality.criticality_weights,
    "criticality-weights-ablation": partial(criticality.criticality_weights, regenerate=False),
    "hydra-weights": hydra.hydra_weights,
    "lottery": lottery.lottery,
    "u-ticket": lottery.u_ticket,
    "nm": partial(nm.nm, m=8, mixed=True),
    "cyclical": cyclical.cyclical,
}


METHODS = FILTER_METHODS | WEIGHT_METHODS


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
    "criticality",
    "cyclical",
    "dpap",
    "hydra",
    "lottery",
    "magnitude",
    "nm",
    "sca",
    "sdsnn",
]
