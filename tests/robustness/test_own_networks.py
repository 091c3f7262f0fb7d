"""Networks of linen, NNX and Equinox are attacked and evaluated as they are."""

from dataclasses import dataclass

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
from ccsrp_jax.networks.neurons import Surrogate, spike
from ccsrp_jax.robustness.gradient_sources import gradient_sources
from ccsrp_jax.robustness.suites import AttackSpec
from ccsrp_jax.utils.errors import InputError

KEY = jax.random.key(0)
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.uniform(0.2, 0.8, (8, 3, 3, 1)).astype(np.float32)
SPLIT = Split(IMAGES, np.arange(8, dtype=np.int32) % 3)
BRIEF = {"suite": [AttackSpec("pgd", PGD(0.1, 2))], "natural": [], "audit_images": 2}


def of_linen():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.BatchNorm(use_running_average=True)(nn.Dense(8)(x.reshape(len(x), -1)))
            return nn.Dense(3)(nn.Dropout(0.5, deterministic=True)(nn.relu(x)))

    module = Net()
    return lambda variables, x: module.apply(variables, x), module.init(KEY, IMAGES)


def of_nnx():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.hidden, self.out = nnx.Linear(9, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)
            self.norm, self.dropout = nnx.BatchNorm(8, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            x = nnx.relu(self.norm(self.hidden(x.reshape(len(x), -1))))
            return self.out(self.dropout(x))

    module = Net(nnx.Rngs(0))
    module.eval()
    graph, state = nnx.split(module)  # the state holds the random keys of dropout
    return lambda state, x: nnx.merge(graph, state)(x), state


def of_equinox():
    eqx = pytest.importorskip("equinox")
    module = eqx.nn.MLP(9, 3, 8, 1, key=KEY)
    arrays, rest = eqx.partition(module, eqx.is_array)
    return lambda arrays, x: jax.vmap(eqx.combine(arrays, rest))(x.reshape(len(x), -1)), arrays


LIBRARIES = {"linen": of_linen, "nnx": of_nnx, "equinox": of_equinox}


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_network_of_another_library_is_attacked(library):
    classifier, state = LIBRARIES[library]()
    images, labels = jnp.asarray(IMAGES), jnp.asarray(SPLIT.labels)
    attacked = PGD(0.1, 3)(classifier, state, images, labels, KEY)

    def loss(x):
        logits = jax.nn.log_softmax(classifier(state, x))
        return -float(jnp.take_along_axis(logits, labels[:, None], 1).mean())

    assert loss(attacked) > loss(images) + 1e-3  # as only its own gradient shows
    assert cc.correct(classifier, state, SPLIT).shape == (8,)


def test_an_evaluation_goes_on_from_its_record_where_the_state_holds_random_keys(tmp_path):
    classifier, state = of_nnx()
    leaves = jax.tree.leaves(state)
    assert any(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves)
    options = {"eps": 0.1, "key": KEY, "record": tmp_path / "record.json", **BRIEF}
    first = cc.evaluate(classifier, state, SPLIT, **options)
    again = cc.evaluate(classifier, state, SPLIT, **options)
    assert (tmp_path / "record.json").exists()
    assert first.outcome.robust_accuracy == again.outcome.robust_accuracy


@dataclass(frozen=True)
class Spiking:
    """A network of one's own with the surrogate gradients of the whole suite."""

    surrogate: Surrogate = Surrogate()

    def __call__(self, weights, images):
        return spike(linear(weights, images), self.surrogate)

    def with_backward(self, surrogate):
        return Spiking(surrogate)


def test_a_network_with_backward_has_all_gradient_sources():
    sources = gradient_sources(Spiking(), jnp.ones((9, 3)))
    assert {"own", "atan:0.5", "triangle:2"} <= sources.keys()
    assert sources["triangle:2"].classifier.surrogate == Surrogate("triangle", 2.0)


WRONG = {
    "suite": (3, "the suite is 3"),
    "others": ([linear], "others are"),
    "natural": (3, "natural is 3"),
    "baseline": (linear, "the baseline is"),
    "terminal": (3, "terminal is 3"),
    "eps": ("a", "eps"),
    "key": (None, "the key is a NoneType"),
    "votes": (0, "votes 0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_arguments_of_another_type_are_refused(name, untyped):
    value, why = WRONG[name]
    options = {"eps": 0.1, "key": KEY, **BRIEF, name: value}
    with pytest.raises(InputError, match=why):
        cc.evaluate(linear, jnp.ones((9, 3)), SPLIT, **options)
