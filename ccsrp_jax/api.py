"""The names that `ccsrp_jax` offers, which it loads when the first of them is used."""

from ccsrp_jax.attacks.apgd import APGD
from ccsrp_jax.attacks.noise import Noise
from ccsrp_jax.attacks.pgd import PGD, fgsm
from ccsrp_jax.attacks.sapgd import SAPGD
from ccsrp_jax.attacks.square import Square
from ccsrp_jax.coevolution import selection
from ccsrp_jax.coevolution.fitness import Scores, score
from ccsrp_jax.coevolution.racing import Racing
from ccsrp_jax.coevolution.search import search_round
from ccsrp_jax.coevolution.settings import PRESETS, Search
from ccsrp_jax.coevolution.subpopulation import search_group
from ccsrp_jax.coevolution.subproblem import make_task
from ccsrp_jax.coevolution.task import Task
from ccsrp_jax.data.datasets import load as load_data
from ccsrp_jax.data.splits import Dataset, Split
from ccsrp_jax.exchange.from_nir import from_nir
from ccsrp_jax.exchange.from_torch import from_torch
from ccsrp_jax.networks import cost, gradients, masks
from ccsrp_jax.networks.architecture import Architecture, groups
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.compaction import compact
from ccsrp_jax.networks.neurons import LIF, Surrogate, lif, spike
from ccsrp_jax.networks.serialization import load, save
from ccsrp_jax.networks.spiking_network import SpikingNetwork
from ccsrp_jax.networks.zoo import MODELS, build, init, plain, residual
from ccsrp_jax.reporting.comparison import hypervolume
from ccsrp_jax.robustness import suites as suite
from ccsrp_jax.robustness.accuracy import correct, predict
from ccsrp_jax.robustness.corruptions import corrupt
from ccsrp_jax.robustness.evaluation import Assessment, evaluate
from ccsrp_jax.robustness.interval_certificates import certified_accuracy
from ccsrp_jax.robustness.smoothing import Smoothing, certify
from ccsrp_jax.training.trainer import Recipe, train
from ccsrp_jax.utils import devices
from ccsrp_jax.utils.errors import InputError

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
    "certified_accuracy",
    "certify",
    "compact",
    "correct",
    "corrupt",
    "cost",
    "devices",
    "evaluate",
    "fgsm",
    "from_nir",
    "from_torch",
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
