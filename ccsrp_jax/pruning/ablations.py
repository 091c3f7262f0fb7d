"""Ablations of CCSRP: the default, and the method before it, with one thing changed at a time."""

from dataclasses import replace
from functools import partial

from ccsrp_jax.coevolution.settings import PRESETS
from ccsrp_jax.pruning import METHODS, best_of, criteria
from ccsrp_jax.pruning.registry import Method

PRICED = PRESETS["priced"]
ABLATIONS: dict[str, Method] = {
    "ccsrp: " + name: partial(METHODS["ccsrp"], **changes)
    for name, changes in {
        "even widths": {"factors": ()},
        "widths alone": {"search": None},
        "three orders": {"orders": (criteria.gamma, criteria.taylor, criteria.at_random)},
        "random order": {"orders": (criteria.at_random,)},
        "L1 order": {"orders": (criteria.l1,)},
        "one epoch": {"epochs": 1},
        "two cycles": {"cycles": 2},
        "smaller steps": {"factors": (0.75, 1.25)},
    }.items()
}
ABLATIONS |= {
    "ccsrp-priced: " + name: partial(METHODS["ccsrp-priced"], **changes)
    for name, changes in {
        "one round": {"rounds": 1, "early": None},
        "equal rounds": {"early": None},
        "winners": {"search": replace(PRICED, splice="winners", levels=(), keep_floor=0.8)},
        "single removals": {"criterion": None},
        "no start": {"criterion": None, "search": replace(PRICED, single_removals=False)},
        "no search": {"search": replace(PRICED, generations=1, population=2)},
        "accuracy": {"search": replace(PRICED, objective="accuracy")},
        "change of the loss": {"search": replace(PRICED, objective="change")},
        "clean objective": {"search": replace(PRICED, robust_weight=0.0)},
        "robust objective x 3": {"search": replace(PRICED, robust_weight=3.0)},
        "per layer": {"search": replace(PRICED, shared_set="per_layer")},
        "white box": {"search": replace(PRICED, white_box_steps=5)},
        "population 32": {"search": replace(PRICED, population=32)},
        "CMA-ES": {"search": replace(PRICED, strategy="CMA_ES")},
        "clean fine-tuning": {"clean_training": True},
    }.items()
}
# the default's comparison of trained candidates, without its evolution
ABLATIONS |= {"random: auditioned": best_of}
