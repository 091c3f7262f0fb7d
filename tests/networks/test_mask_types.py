"""Masks of any number type, as comparisons and lists give them, do what those of floats do."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import EAGER, busy, thinned

from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.coevolution import fitness, subproblem
from ccsrp_jax.coevolution.search import search_round
from ccsrp_jax.coevolution.settings import Search
from ccsrp_jax.data.splits import Split
from ccsrp_jax.networks import compaction, cost, masks, zoo
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.neurons import LIF
from ccsrp_jax.robustness.accuracy import correct
from ccsrp_jax.training.recipe import Recipe
from ccsrp_jax.training.trainer import train
from ccsrp_jax.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("untyped")
NETWORK = zoo.plain((4, "A", 5), (8, 8, 1), 10, time_steps=2, neuron=LIF(**EAGER))
BITS = {"conv1": [1, 0, 1, 1], "conv2": [0, 1, 1, 1, 1]}
FORMS = {
    "bool": lambda bits: np.array(bits, bool),
    "int": np.array,
    "uint8": lambda bits: np.array(bits, np.uint8),
    "float64": lambda bits: np.array(bits, np.float64),
    "float16": lambda bits: np.array(bits, np.float16),
    "jax bool": lambda bits: jnp.array(bits, bool),
    "jax int": jnp.array,
}
KEY = jax.random.key(0)


def formed(form):
    return {name: form(bits) for name, bits in BITS.items()}


FLOATS = formed(np.float32)


@pytest.fixture(scope="module")
def variables():
    return busy(NETWORK, seed=0)


@pytest.fixture(scope="module")
def split(digits):
    return Split(*(part[:24] for part in digits.search))


def searched(variables, split, given, strategy="BitFlip"):
    search = Search(strategy=strategy, population=2, generations=1)
    network = Classifier(NETWORK), variables, given
    return search_round(KEY, *network, split, PGD(0.05, 1), search, batch_size=24).masks


@pytest.mark.parametrize("name", thinned(FORMS, ("bool",)))
def test_a_search_finds_what_it_finds_with_floats(variables, split, name):
    expected = searched(variables, split, FLOATS)
    found = searched(variables, split, formed(FORMS[name]))
    chex.assert_trees_all_equal(found, expected)
    assert masks.widths(NETWORK, found) != masks.widths(NETWORK, FLOATS)


@pytest.mark.parametrize("form", (*FORMS.values(), list, tuple), ids=(*FORMS, "list", "tuple"))
def test_a_network_is_cut_counted_and_scored_as_with_floats(variables, split, form):
    given = formed(form)
    chex.assert_trees_all_equal(
        compaction.compact(NETWORK, variables, given)[1],
        compaction.compact(NETWORK, variables, FLOATS)[1],
    )
    assert masks.widths(NETWORK, given) == {"conv1": 3, "conv2": 4}
    assert cost.macs(NETWORK, given) == cost.macs(NETWORK, FLOATS)
    assert cost.params(NETWORK, given) == cost.params(NETWORK, FLOATS)
    members = np.eye(4, dtype=np.float32)[:2]
    tasks = [
        subproblem.make_task(
            *(Classifier(NETWORK), variables, each, "conv1", split, split), batch_size=24
        )
        for each in (given, FLOATS)
    ]
    found, expected = (fitness.score(task, members) for task in tasks)
    np.testing.assert_array_equal(found.loss, expected.loss)


@pytest.mark.parametrize("name", thinned(("bool", "int", "jax bool"), ("jax bool",)))
def test_a_network_is_trained_and_judged_as_with_floats(variables, split, name):
    given, network = formed(FORMS[name]), Classifier(NETWORK)
    np.testing.assert_array_equal(
        correct(network, (variables, given), split), correct(network, (variables, FLOATS), split)
    )
    recipe = Recipe(epochs=1, batch_size=24, learning_rate=0.01)
    chex.assert_trees_all_equal(
        *(train(KEY, network, variables, each, split, recipe) for each in (given, FLOATS))
    )


@pytest.mark.parametrize("name", ("bool", "int"))
def test_masks_of_weights_are_taken_in_any_type_too(variables, name):
    kernel = np.random.default_rng(0).random((3, 3, 4, 5)) < 0.5
    given = {"conv2/kernel": FORMS[name](kernel)}
    expected = masks.fold(variables, {"conv2/kernel": kernel.astype(np.float32)})
    chex.assert_trees_all_equal(masks.fold(variables, given), expected)
    chex.assert_trees_all_equal(compaction.compact(NETWORK, variables, given)[1], expected)


@pytest.mark.parametrize(
    ("given", "says"),
    (
        ({"conv1": np.array([0, 1, 2, 1])}, "values other than 0 and 1"),
        ({"conv1": np.array([0, 1, np.nan, 1])}, "values other than 0 and 1"),
        ({"conv1": np.array([0, 1, -1, 1])}, "values other than 0 and 1"),
        ({"conv1": np.zeros(4, bool)}, "keeps no filter"),
        ({"conv1": [1, 0, 1]}, r"shape \(3,\)"),
        ({"conv1": [[1, 0], [1]]}, "conv1 is no array"),
        ({"conv1": ["a", "b", "c", "d"]}, "conv1 is no array"),
        ({"conv1": "1011"}, "is a str"),
        ({"conv1": None}, "is a NoneType"),
        ({"conv1": 3}, "is a int"),
        ({"conv1": np.array(True)}, r"shape \(\)"),
    ),
)
def test_masks_that_are_none_are_refused(variables, given, says):
    with pytest.raises(InputError, match=says):
        masks.as_floats(NETWORK, given)


def test_lists_are_refused_in_a_sentence_where_networks_are_traced():
    with pytest.raises(InputError, match="mask 'conv1' is a list: give a 0/1 array"):
        masks.check_fit(NETWORK, {"conv1": [1, 0, 1, 1]})
