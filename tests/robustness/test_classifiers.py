"""Functions and states that are no classifier's are refused in a sentence."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import linear
from flax import nnx

import ccsrp_jax as cc
from ccsrp_jax.attacks import PGD
from ccsrp_jax.data.splits import Split
from ccsrp_jax.networks.inputs import checked_logits
from ccsrp_jax.utils.errors import InputError

IMAGES = np.full((4, 3, 3, 1), 0.5, np.float32)
SPLIT = Split(IMAGES, np.zeros(4, np.int32))
WEIGHTS = jnp.ones((9, 3))
KEY = jax.random.key(0)


@dataclass(frozen=True)
class Listed:
    """Frozen, and not hashable for its field."""

    sizes: list = field(default_factory=list)

    def __call__(self, weights, images):
        return linear(weights, images)


@dataclass(frozen=True)
class Arrays(Listed):
    sizes: Any = field(default_factory=lambda: jnp.ones(3))


@jax.tree_util.register_dataclass
@dataclass
class Tree:
    """A module that is a PyTree and holds its activation function, as Equinox's are."""

    weights: Any = field(default_factory=lambda: WEIGHTS)
    activation: Any = jax.nn.relu


@dataclass(frozen=True)
class Keyed:
    stochastic = True

    def __call__(self, weights, images):
        return linear(weights, images)


def returning(change):
    return lambda weights, images: change(linear(weights, images))


CASES = {
    "a list in it": (Listed(), WEIGHTS, r"not hashable \(unhashable type: 'list'\)"),
    "an array in it": (Arrays(), WEIGHTS, "Arrays is not hashable"),
    "a flax module": (nn.Dense(3), WEIGHTS, "the flax module Dense is no classifier"),
    "an NNX module": (
        nnx.Linear(9, 3, rngs=nnx.Rngs(0)),
        None,
        "the NNX module Linear is no classifier: split it",
    ),
    "a flax module as the state": (linear, nn.Dense(3), "state of the network holds a Dense: give"),
    "a module in the state": (linear, {"net": nn.Dense(3)}, r"holds a Dense at \['net'\]"),
    "a tree with a function": (linear, Tree(), r"at \.activation: give arrays only"),
    "text in the state": (linear, (WEIGHTS, "relu"), r"holds a str at \[1\]"),
    "one argument": (lambda images: images, WEIGHTS, r"cannot be called with \(network_state, im"),
    "no key": (Keyed(), WEIGHTS, r"\(network_state, images, key=\.\.\.\)"),
    "a dictionary": (returning(lambda z: {"logits": z}), WEIGHTS, "returns a dict of 1"),
    "a tuple": (returning(lambda z: (z, z)), WEIGHTS, "returns a tuple of 2 for one image"),
    "no axis of classes": (returning(lambda z: z[:, 0]), WEIGHTS, r"returns \(1,\) for one image"),
    "time steps": (returning(lambda z: z[None]), WEIGHTS, r"returns \(1, 1, 3\) for one image"),
    "two for one": (returning(lambda z: z.repeat(2, 0)), WEIGHTS, r"returns \(2, 3\) for one"),
    "nothing": (returning(lambda z: None), WEIGHTS, "returns NoneType for one image"),
    "classes": (returning(lambda z: z.astype(int)), WEIGHTS, "logits of type int32"),
}
ENTRIES = {
    "correct": lambda f, s: cc.correct(f, s, SPLIT, key=KEY),
    "evaluate": lambda f, s: cc.evaluate(f, s, SPLIT, eps=0.1, key=KEY, suite="pgd"),
    "PGD": lambda f, s: PGD(0.1, 1)(f, s, *map(jnp.asarray, SPLIT), KEY),
}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("case", CASES)
def test_what_is_no_classifier_is_refused_in_a_sentence(case, entry, untyped):
    function, state, message = CASES[case]
    with pytest.raises(InputError, match=message) as refused:
        ENTRIES[entry](function, state)
    assert "\n" not in str(refused.value) and str(refused.value).endswith(".")


def test_logits_of_a_whole_batch_are_refused_where_they_are_used():
    # one image alone does not tell a mean over the batch
    mean = returning(lambda z: z.mean(0, keepdims=True))
    for call in (
        lambda: cc.correct(mean, WEIGHTS, SPLIT),
        lambda: cc.predict(mean, WEIGHTS, IMAGES),
    ):
        with pytest.raises(InputError, match=r"returns \(1, 3\) for 4 images"):
            call()
    assert checked_logits(jnp.ones((4, 3)), 4).shape == (4, 3)


@pytest.mark.parametrize(
    "other, message",
    (
        ((linear, WEIGHTS, None), "'twin' is a tuple: give GradientSource"),
        ((nn.Dense(3), WEIGHTS), "'twin' cannot be used: the flax module Dense"),
        (WEIGHTS, "the other network 'twin' is a ArrayImpl"),
    ),
)
def test_other_networks_are_checked_and_named(other, message, untyped):
    with pytest.raises(InputError, match=message):
        options = {"suite": "pgd", "others": {"twin": other}}
        cc.evaluate(linear, WEIGHTS, SPLIT, eps=0.1, key=KEY, **options)


def test_parameters_of_modules_are_taken():
    module = nn.Dense(3)
    variables = module.init(KEY, IMAGES.reshape(4, 9))
    graph, state = nnx.split(nnx.Linear(9, 3, rngs=nnx.Rngs(0)))

    def flax_classifier(variables, images):
        return module.apply(variables, images.reshape(len(images), 9))

    def nnx_classifier(state, images):
        return nnx.merge(graph, state)(images.reshape(len(images), 9))

    assert cc.correct(flax_classifier, variables, SPLIT).shape == (4,)
    assert cc.correct(nnx_classifier, state, SPLIT).shape == (4,)
    tree = dataclasses.replace(Tree(), activation=None)
    assert cc.correct(lambda tree, x: linear(tree.weights, x), tree, SPLIT).shape == (4,)
