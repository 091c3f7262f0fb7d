"""Robust pruning of spiking neural networks by cooperative coevolution, in JAX.

The pieces compose: describe a network (`Architecture`, `build`, `plain`, `residual`), run it
(`SpikingNetwork`, `Classifier`), attack it (`PGD`, `APGD`, `Square`, ...) through any backward
pass (`gradients`), say how robust it is and whether that can be believed (`evaluate`,
`certify`), score populations of masks for its filters (`make_task`, `score`), search them
(`Search`, `search_round`), cut them out (`compact`) and count what was saved (`cost`).
"""

from ccsrp_jax import cost, devices, gradients, masks, selection, suite
from ccsrp_jax.apgd import APGD, SAPGD
from ccsrp_jax.architecture import Architecture, groups
from ccsrp_jax.assess import Assessment, evaluate
from ccsrp_jax.attacks import PGD, Noise, fgsm
from ccsrp_jax.coevolution import search_group, search_round
from ccsrp_jax.compaction import compact, load, save
from ccsrp_jax.corruptions import corrupt
from ccsrp_jax.data import Dataset, Split
from ccsrp_jax.data import load as load_data
from ccsrp_jax.errors import InputError
from ccsrp_jax.evaluation import correct, predict
from ccsrp_jax.fitness import Scores, score
from ccsrp_jax.hypervolume import hypervolume
from ccsrp_jax.models import MODELS, build, init, plain, residual
from ccsrp_jax.network import Classifier, SpikingNetwork
from ccsrp_jax.neurons import LIF, Surrogate, lif, spike
from ccsrp_jax.racing import Racing
from ccsrp_jax.search import PRESETS, Search
from ccsrp_jax.smoothing import Smoothing, certify
from ccsrp_jax.square import Square
from ccsrp_jax.tasks import Task, make_task
from ccsrp_jax.training import Recipe, train

__all__ = [
    "APGD",
    "LIF",
    "MODELS",
    "PGD",
    "PRESETS",
    "SAPGD",
    "Architecture",
    "Assessment",
    "Classifier",
    "Dataset",
    "InputError",
    "Noise",
    "Racing",
    "Recipe",
    "Scores",
    "Search",
    "Smoothing",
    "SpikingNetwork",
    "Split",
    "Square",
    "Surrogate",
    "Task",
    "build",
    "certify",
    "compact",
    "correct",
    "corrupt",
    "cost",
    "devices",
    "evaluate",
    "fgsm",
    "gradients",
    "groups",
    "hypervolume",
    "init",
    "lif",
    "load",
    "load_data",
    "make_task",
    "masks",
    "plain",
    "predict",
    "residual",
    "save",
    "score",
    "search_group",
    "search_round",
    "selection",
    "spike",
    "suite",
    "train",
]
