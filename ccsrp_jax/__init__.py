"""Robust pruning of spiking neural networks by cooperative coevolution, in JAX.

The pieces compose: describe a network (`Architecture`, `build`, `plain`), run it
(`SpikingNetwork`, `Classifier`), attack it (`PGD`, `fgsm`), search masks for its filters
(`Search`, `search_round`), cut them out (`compact`) and count what was saved (`cost`).
"""

from ccsrp_jax import cost, masks, selection
from ccsrp_jax.architecture import Architecture, groups
from ccsrp_jax.attacks import PGD, fgsm
from ccsrp_jax.coevolution import PRESETS, Search, search_group, search_round
from ccsrp_jax.compaction import compact, load, save
from ccsrp_jax.data import Dataset, Split
from ccsrp_jax.data import load as load_data
from ccsrp_jax.errors import InputError
from ccsrp_jax.evaluation import correct
from ccsrp_jax.models import MODELS, Classifier, SpikingNetwork, build, init, plain
from ccsrp_jax.neurons import LIF, Surrogate, lif, spike
from ccsrp_jax.training import Recipe, train

__all__ = [
    "LIF",
    "MODELS",
    "PGD",
    "PRESETS",
    "Architecture",
    "Classifier",
    "Dataset",
    "InputError",
    "Recipe",
    "Search",
    "SpikingNetwork",
    "Split",
    "Surrogate",
    "build",
    "compact",
    "correct",
    "cost",
    "fgsm",
    "groups",
    "init",
    "lif",
    "load",
    "load_data",
    "masks",
    "plain",
    "save",
    "search_group",
    "search_round",
    "selection",
    "spike",
    "train",
]
