"""A line on every registered pruning method, with its source."""

import inspect
from functools import partial
from typing import NamedTuple

from ccsrp_jax.pruning.registry import METHODS

CCSRP = "CCSRP, arXiv 2408.00794"
CCEP = "CCEP: Shang et al., Neural Network Pruning by Cooperative Coevolution, IJCAI 2022"
LI = "Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017"
LIU = "Liu et al., Network Slimming, ICCV 2017"
MOLCHANOV = "Molchanov et al., Importance Estimation for Pruning, CVPR 2019"
CRITICALITY = "Chen et al., arXiv 2311.16141, and its released code"
HYDRA = "Sehwag et al., HYDRA, NeurIPS 2020, arXiv 2002.10509"


class Description(NamedTuple):
    """What a method does and where it comes from, in a line each."""

    text: str
    source: str


DESCRIPTIONS = {
    "ccsrp": Description(
        "Coevolves the width of every group, scored after fine-tuning, then the masks at these "
        "widths; prunes in one round.",
        f"Ours; sub-populations and their splice are those of {CCSRP}",
    ),
    "rounds": Description(
        "Coevolves masks of all groups in rounds of search and fine-tuning, by SNES, until the "
        "target is met.",
        f"Our reading of {CCSRP}, with another strategy",
    ),
    "ccsrp-priced": Description(
        "Coevolves masks in three rounds that start from the order of `taylor`, and splices them "
        "by Lagrangian relaxation.",
        f"Ours, on the basis of {CCSRP}",
    ),
    "ccsrp-faithful": Description(
        "Coevolves masks by bit flips, with clean and robust accuracy as objectives.",
        f"Our reading of {CCSRP}, whose settings are not published",
    ),
    "ccsrp-nsga2": Description(
        "`ccsrp-faithful` with candidates selected by NSGA-II.",
        f"Our reading of {CCSRP}; Deb et al., NSGA-II, IEEE TEVC 2002",
    ),
    "ccsrp-snes": Description(
        "Coevolves masks in rounds by SNES, to any number of filters and exactly to the target.",
        f"Our reading of {CCSRP}; Schaul et al., SNES, GECCO 2011",
    ),
    "ccep": Description("`ccsrp-faithful` without its robust objective.", CCEP),
    "random": Description("Removes filters at random, the same share of every group.", "Baseline"),
    "l1": Description(
        "Removes filters of the smallest mean absolute weight, the same share of every group.", LI
    ),
    "l1-rounds": Description("`l1` in three rounds.", LI),
    "l1-global": Description("`l1` with one ranking for all groups.", LI),
    "l1-sensitivity": Description(
        "`l1`, with smaller shares of groups whose weights are sensitive to perturbation.",
        f"{LI}; our reading of Module Robust Sensitivity, arXiv 2410.15176",
    ),
    "slimming": Description(
        "Removes filters of the smallest batch norm scale, in one ranking for all groups.", LIU
    ),
    "slimming-uniform": Description("`slimming` with the same share of every group.", LIU),
    "spike-rate": Description(
        "Removes filters that fire least on the search images, the same share of every group.",
        "A common criterion for spiking networks; ours here",
    ),
    "stability": Description(
        "Removes filters whose spikes are most often undecided in the ball of the attack.",
        "Ours, after Li et al., Can Pruning Improve Certified Robustness, TMLR 2023",
    ),
    "taylor": Description(
        "Removes filters by the squared gradient of clean and attacked losses with respect to "
        "their gates, in three rounds.",
        MOLCHANOV,
    ),
    "taylor-global": Description("`taylor` with one ranking for all groups.", MOLCHANOV),
    "criticality": Description(
        "Network slimming with regeneration of channels near the firing threshold.",
        CRITICALITY,
    ),
    "criticality-ablation": Description("`criticality` without regeneration.", CRITICALITY),
    "sd-snn": Description(
        "Prunes neurons whose dendritic spines shrink during training, and regenerates some.",
        "Han et al., Information Sciences 689 (2025), arXiv 2211.12219, and its released code",
    ),
    "dpap": Description(
        "Prunes neurons whose BCM plasticity stays low during training.",
        "Han et al., IEEE TPAMI, arXiv 2211.12714, and its released code",
    ),
    "sca": Description(
        "Prunes the least active channels between epochs, and regrows those of largest gradient.",
        "Li et al., Spiking activity based pruning, ICML 2024",
    ),
    "hydra": Description("`hydra-weights` with a score for each filter.", f"Ours, after {HYDRA}"),
    "magnitude": Description(
        "Removes the weights of smallest magnitude, ranked over all layers.", "Baseline"
    ),
    "criticality-weights": Description(
        "Removes small weights during training, and regrows weights of critical channels.",
        CRITICALITY,
    ),
    "criticality-weights-ablation": Description(
        "`criticality-weights` without regrowth.", CRITICALITY
    ),
    "hydra-weights": Description(
        "Learns a score of every frozen weight on the robust loss, and keeps the highest.", HYDRA
    ),
    "lottery": Description(
        "Iterative magnitude pruning; all weights are rewound after each round.",
        "Kim et al., Lottery Ticket Hypothesis in Spiking Neural Networks, ECCV 2022, "
        "arXiv 2207.01382",
    ),
    "u-ticket": Description(
        "`lottery` with equal workloads for all processing elements of an accelerator.",
        "Yin et al., Workload-Balanced Pruning, IEEE TETCI 2024, arXiv 2302.06746",
    ),
    "nm": Description(
        "Learns which N of the weights of 8 input channels are kept, by relaxed sampling.",
        "Our reading of Ye et al., Sparse by Rule, arXiv 2511.12097",
    ),
    "cyclical": Description(
        "Magnitude pruning in cycles from the dense network to the target.",
        "Srinivas et al., Cyclical Pruning, CVPR Workshops 2022, arXiv 2202.01290",
    ),
}


def describe(name: str) -> Description:
    """What a method does and where it comes from.

    A variant `METHOD: CHANGE` is described by its method. A method that was registered from
    outside is described by its docstring: its first line, and what follows `References:`.
    """
    if name in DESCRIPTIONS:
        return DESCRIPTIONS[name]
    base, colon, change = name.partition(": ")
    if colon and base in DESCRIPTIONS:
        return Description(f"`{base}` with one change: {change}.", DESCRIPTIONS[base].source)
    method = METHODS.get(name)
    while isinstance(method, partial):
        method = method.func
    text, _, references = (inspect.getdoc(method) or "").partition("References:")
    first = text.strip().splitlines()[:1]
    return Description(
        first[0] if first else "Not described.",
        " ".join(references.split()) or "No source is stated.",
    )
