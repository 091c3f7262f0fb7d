"""Shared small networks and data; memory is bounded, since caches are dropped between modules."""

import importlib.util
import os
import signal
import sys
import tempfile
from collections.abc import Container, Iterable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

# tests mostly compile, and run what they compiled once: half the time in all
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0"
    # XLA aborts at a flag that it does not know
    + " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    * version("jaxlib").startswith("0.10."),
)

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.data import datasets, splits
from ccsrp_jax.networks import zoo
from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.neurons import LIF
from ccsrp_jax.pruning.budget import Target
from ccsrp_jax.pruning.problem import Problem
from ccsrp_jax.training.recipe import Recipe

PLAN = (6, "A", 5, 4)
# As `jax.jit`, for deep networks that run a few times: it compiles twice as fast.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
EAGER = {"threshold": 0.5, "decay_input": False}  # their spikes reach the end of deep networks
# Every model, with options that make it small enough to compile in seconds; all neurons and
# norms occur. Five poolings take a side of 32.
TINY = {
    "small": {"width": 0.25, "neuron": LIF(learned=True)},
    "medium": {"width": 0.25, "norm": "tdbn"},
    "wide5": {"width": 1 / 16, "neuron": LIF(**EAGER)},
    "vgg11": {"width": 1 / 32, "neuron": LIF(**EAGER)},
    "vgg16": {"width": 1 / 16, "side": 32, "neuron": LIF(**EAGER)},
    "6conv2fc": {"width": 1 / 32, "neuron": LIF(threshold=0.5)},
    "resnet18": {"width": 1 / 16, "norm": "tdbn", "neuron": LIF(**EAGER)},
    "sew_resnet18": {"width": 1 / 16, "neuron": LIF(3.0, **EAGER, learned=True)},
    "resnet19": {"width": 1 / 16, "neuron": LIF(**EAGER)},
    "resnet8": {"width": 0.25, "neuron": LIF(reset="soft", decay_input=False)},
}
AT_REST = {"var": (1, 1), "scale": (1, 1), "mean": (0, 0), "bias": (0, 0), "leak": (0, 0)}
BUSY = {"var": (0.02, 0.2), "scale": (0.8, 1.6), "mean": (-0.4, 0.4), "bias": (-0.2, 1.0)}
BUSY |= {"leak": (-1.0, 1.0), "self_weight": (-0.6, 0.6)}


def tiny(name: str, **options) -> Architecture:
    """The model of that name with its options in `TINY`, for digits, in two time steps."""
    options = {"side": 8, "time_steps": 2, "mean": (0.3,), "std": (0.4,)} | TINY[name] | options
    side = options.pop("side")
    return zoo.build(name, (side, side, 1), 10, **options)


def thinned(values: Iterable, kept: Container) -> list:
    """Parameters of a test: `make test` tries those that are kept, `make test-all` all of them."""
    rest = partial(pytest.param, marks=pytest.mark.slow)
    return [
        value if value in kept else rest(*(value if isinstance(value, tuple) else (value,)))
        for value in values
    ]


def enlarged(images: jax.Array, architecture: Architecture) -> jax.Array:
    """The images with every pixel repeated, as large as the network wants them."""
    times = architecture.input_shape[0] // images.shape[1]
    return images.repeat(times, 1).repeat(times, 2)


def pytest_configure(config):
    """Programs that several files need are compiled once by each worker.

    What earlier sessions compiled is not tested. A session in the background ignores SIGINT, which
    tests send.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    folder = tempfile.TemporaryDirectory(prefix="programs-")
    config.add_cleanup(folder.cleanup)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder.name  # for processes that tests start
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    jax.config.update("jax_compilation_cache_dir", folder.name)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def pytest_collection_modifyitems(items):
    """The longest files begin first, so that at the end no worker waits for the other."""
    longest = ("test_readme.py", "test_run.py", "test_audit.py", "test_compare.py")
    items.sort(key=lambda item: item.path.name not in longest)


@pytest.fixture(autouse=True, scope="module")
def _bounded_caches():
    yield
    jax.clear_caches()


@pytest.fixture
def untyped():
    """Switches the tests' type checker off, which users do not have: what they see is tested."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def digits() -> splits.Dataset:
    return datasets.load("digits")


@pytest.fixture(scope="session")
def images(digits) -> jax.Array:
    return jnp.asarray(digits.train.images[:16])


@pytest.fixture(scope="session")
def network():
    """A small architecture and variables whose layers all spike."""
    architecture = zoo.plain(PLAN, (8, 8, 1), 10, time_steps=3, mean=(0.3,), std=(0.4,))
    return architecture, busy(architecture, seed=0)


def linear(weights, images):
    """A linear classifier: its worst case in the ball is known."""
    return images.reshape(images.shape[0], -1) @ weights


def curved(weights, images):
    """A small network whose loss has more than one maximum in the ball."""
    inner, outer = weights
    return jnp.tanh(images.reshape(images.shape[0], -1) @ inner) @ outer


def curved_weights(random: np.random.Generator, pixels: int, classes: int = 5, scale: float = 1):
    """Those of `curved`, in float32; the larger the scale, the more maxima."""
    inner = random.normal(0, scale, (pixels, 12)).astype(np.float32)
    outer = random.normal(size=(12, classes)).astype(np.float32)
    return jnp.asarray(inner), jnp.asarray(outer)


def busy(architecture: Architecture, seed: int, ranges: dict = BUSY) -> dict:
    """Random weights, with batch norms, biases and shifts far from where training starts, or
    with `AT_REST` as there; compiles nothing, unlike `models.init`."""
    random = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name == "kernel":
            value = random.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))
        elif name == "filter":
            value = np.arange(len(leaf))
        else:
            value = random.uniform(*ranges[name], leaf.shape)
        return jnp.asarray(value, leaf.dtype)

    shapes = jax.eval_shape(lambda key: zoo.init(key, architecture), jax.random.key(0))
    return jax.tree_util.tree_map_with_path(draw, shapes)


def experiment(name: str) -> ModuleType:
    """A script of experiments/, as a module."""
    path = Path(__file__).parents[1] / "experiments" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{name}_script", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where the flag parser looks for the docstrings
    spec.loader.exec_module(module)
    return module


def pruning_problem(digits: splits.Dataset, **changes) -> Problem:
    """A small network with busy neurons and 64 digits, of which methods may train 4 epochs."""
    architecture = zoo.plain((8, "A", 12), (8, 8, 1), 10, dense=(10,), time_steps=2)
    search = splits.Split(*(part[:32] for part in digits.search))
    options = {
        "classifier": Classifier(architecture),
        "variables": busy(architecture, seed=0),
        "train": splits.Split(*(part[:64] for part in digits.train)),
        "search": search,
        "target": Target("macs", 0.5),
        "recipe": Recipe(epochs=4, batch_size=32, learning_rate=2e-3),
        "attack": PGD(0.05, 2),
        "batch_size": 32,
    }
    return Problem(**options | changes)
