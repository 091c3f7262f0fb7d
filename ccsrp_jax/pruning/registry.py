"""All pruning methods by name, for scripts and the main job's `--method`.

A method is a function `(key, problem, **settings) -> Pruned`, here often with some of its settings
fixed. Methods can also be called with other settings, without being registered:

    from ccsrp_jax.pruning import Problem, by_score, criteria
    pruned = by_score(key, problem, criterion=criteria.l1, allocation="global", rounds=4)

Variants of coevolution; all but `ccsrp` search masks in rounds:

  rounds          The default of the main job: the search of the preset `snes`, for at most six
                  rounds; stops after the first round at or below the target.
  ccsrp           The default of the comparison, `ccsrp_widths`: evolves the width of every group,
                  scores candidates after fine-tuning, and prunes in one round.
  ccsrp-priced    Splices by Lagrangian relaxation, so that every round is within its limit; starts
                  from the order of `taylor`; most of the training follows the last round.
  ccsrp-faithful  The search of CCSRP as far as it is known: CCEP's bit flips, and accuracies as
                  objectives.
  ccsrp-nsga2     `ccsrp-faithful` with candidates selected by NSGA-II, not by a weighted sum.
  ccsrp-snes      The search of the preset `snes`, down to any number of filters, exactly at the
                  target.
  ccep            `ccsrp-faithful` without its robust objective.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from ccsrp_jax.coevolution.settings import PRESETS, Search
from ccsrp_jax.networks import masks
from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.pruning import criteria, problem
from ccsrp_jax.pruning.budget import Target
from ccsrp_jax.pruning.criteria import by_score, magnitude
from ccsrp_jax.pruning.methods.ccsrp import ccsrp, fixed_groups
from ccsrp_jax.pruning.methods.ccsrp_widths import ccsrp_widths
from ccsrp_jax.pruning.methods.criticality import criticality, criticality_weights
from ccsrp_jax.pruning.methods.cyclical import cyclical
from ccsrp_jax.pruning.methods.dpap import dpap
from ccsrp_jax.pruning.methods.hydra import hydra, hydra_weights
from ccsrp_jax.pruning.methods.lottery import lottery, u_ticket
from ccsrp_jax.pruning.methods.nm import nm
from ccsrp_jax.pruning.methods.sca import sca
from ccsrp_jax.pruning.methods.sdsnn import sdsnn
from ccsrp_jax.pruning.problem import Pruned, kernel_masks

Method = Callable[..., Pruned]

FAITHFUL, SNES, PRICED = PRESETS["faithful"], PRESETS["snes"], PRESETS["priced"]

# A schedule for pruning in rounds: most of the training follows the last round.
ROUNDS = {"rounds": 3, "early": 1}

# Methods that remove filters; the default comes first.
FILTER_METHODS: dict[str, Method] = {
    "ccsrp": ccsrp_widths,
    "rounds": partial(ccsrp, search=SNES, rounds=6, exact=False),
    "ccsrp-priced": partial(ccsrp, search=PRICED, criterion=criteria.taylor, **ROUNDS),
    "ccsrp-faithful": partial(ccsrp, search=FAITHFUL),
    "ccsrp-nsga2": partial(ccsrp, search=replace(FAITHFUL, selection="nsga2")),
    "ccsrp-snes": partial(ccsrp, search=replace(SNES, multiple=1)),
    "ccep": partial(ccsrp, search=replace(FAITHFUL, robust_weight=0.0)),
    "random": partial(by_score, criterion=criteria.at_random),
    "l1": partial(by_score, criterion=criteria.l1),
    "l1-rounds": partial(by_score, criterion=criteria.l1, **ROUNDS),
    "l1-global": partial(by_score, criterion=criteria.l1, allocation="global"),
    "l1-sensitivity": partial(by_score, criterion=criteria.l1, allocation="sensitivity"),
    "slimming": partial(by_score, criterion=criteria.gamma, allocation="global"),
    "slimming-uniform": partial(by_score, criterion=criteria.gamma),
    "spike-rate": partial(by_score, criterion=criteria.spike_rate),
    "stability": partial(by_score, criterion=criteria.stability),
    "taylor": partial(by_score, criterion=criteria.taylor, **ROUNDS),
    "taylor-global": partial(by_score, criterion=criteria.taylor, allocation="global", **ROUNDS),
    "criticality": criticality,
    "criticality-ablation": partial(criticality, regenerate=False),
    "sd-snn": sdsnn,
    "dpap": partial(dpap, synapses=False),
    "sca": sca,
    "hydra": hydra,
}

# Methods that remove single weights, which save no work on a dense machine.
WEIGHT_METHODS: dict[str, Method] = {
    "magnitude": magnitude,
    "criticality-weights": criticality_weights,
    "criticality-weights-ablation": partial(criticality_weights, regenerate=False),
    "hydra-weights": hydra_weights,
    "lottery": lottery,
    "u-ticket": u_ticket,
    "nm": partial(nm, m=8, mixed=True),
    "cyclical": cyclical,
}

METHODS = FILTER_METHODS | WEIGHT_METHODS


def check_reachable(
    name: str, architecture: Architecture, target: Target, search: Search | None = None
) -> None:
    """Checks that a method can meet a target on a network that is not trained yet.

    Methods check that first themselves; this is for those who train the network before. A method
    that was registered from outside is not checked.

    Args:
      name: in `METHODS`.
      architecture, target: of the problem.
      search: settings of the method's search, if they are not those that are registered.

    Raises:
      InputError: as `budget.check_reachable`.
    """
    method = METHODS[name]
    if name in WEIGHT_METHODS:
        all_layers = getattr(method, "func", method) is criticality_weights
        dense, fixed = kernel_masks(architecture, classifier=all_layers), frozenset()
    elif name in FILTER_METHODS:
        search = search or getattr(method, "keywords", {}).get("search")
        fixed = fixed_groups(architecture, search) if search else frozenset()
        dense = masks.ones(architecture)
    else:
        return
    problem.check_reachable(architecture, target, dense, fixed=fixed)
