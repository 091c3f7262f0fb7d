import chex
import jax
import numpy as np
import pytest
from conftest import busy

from ccsrp_jax import coevolution, cost, masks, models
from ccsrp_jax.attacks import PGD
from ccsrp_jax.coevolution import Search
from ccsrp_jax.data import Split
from ccsrp_jax.evaluation import correct
from ccsrp_jax.evolution import floor_count
from ccsrp_jax.models import Classifier

ATTACK = PGD(0.1, 2)


@pytest.fixture(scope="module")
def clean(digits):
    return Split(digits.search.images[:24], digits.search.labels[:24])


def search_round(network, clean, search, current=None, seed=0):
    architecture, variables = network
    current = current or masks.ones(architecture)
    return coevolution.search_round(
        jax.random.key(seed),
        Classifier(architecture),
        variables,
        current,
        clean,
        ATTACK,
        search,
        batch_size=24,
    )


SMALL = {"population": 3, "generations": 2, "keep_floor": 0.6}


@pytest.mark.parametrize(
    "search",
    [
        Search(**SMALL),
        Search(**SMALL, selection="nsga2"),
        Search(**SMALL, strategy="SNES", objective="loss"),
        Search(**SMALL, shared_set="per_layer"),
    ],
    ids=["faithful", "nsga2", "snes", "per layer"],
)
def test_round_prunes_every_group_within_its_floor(network, clean, search):
    architecture, _ = network
    current = masks.random(jax.random.key(1), architecture, 0.9)
    result = search_round(network, clean, search, current)
    for group, mask in result.masks.items():
        alive = np.asarray(current[group])
        assert (np.asarray(mask) <= alive).all()
        least = floor_count(int(alive.sum()), search.keep_floor) - (search.strategy == "BitFlip")
        assert max(least, 1) <= mask.sum() < alive.sum()


def test_groups_are_searched_in_the_network_as_it_was(network, clean):
    """The last group's objectives are those of a network in which only it was pruned."""
    architecture, variables = network
    result = search_round(network, clean, Search(**SMALL))
    found, whole = result.found["conv3"], masks.ones(architecture)
    alone = whole | {"conv3": jax.numpy.asarray(found.mask)}
    params, classifier = (variables, alone), Classifier(architecture)
    error = 1 - correct(classifier, params, clean).mean()
    robust_error = 1 - correct(classifier, params, result.shared_sets["conv3"]).mean()
    left = sum(cost.macs(architecture, alone).values()) / sum(cost.macs(architecture).values())
    np.testing.assert_allclose(found.objectives, [error, robust_error, left], atol=1e-6)


def test_finished_groups_are_left_alone(network, clean):
    architecture, _ = network
    current = masks.ones(architecture)
    current["conv2"] = current["conv2"].at[1:].set(0.0)
    result = search_round(network, clean, Search(**SMALL), current)
    assert "conv2" not in result.found
    chex.assert_trees_all_equal(result.masks["conv2"], current["conv2"])


def test_order_of_the_mask_tree_does_not_matter(clean):
    """A restored mask tree is sorted by name: conv10 comes before conv2."""
    architecture = models.plain((2,) * 11, (8, 8, 1), 10, time_steps=1)
    network = architecture, busy(architecture, seed=3)
    whole = masks.ones(architecture)
    found = [
        search_round(network, clean, Search(**SMALL), current).masks
        for current in (whole, {name: whole[name] for name in sorted(whole)})
    ]
    assert list(whole) != sorted(whole)
    chex.assert_trees_all_equal(*found)


def test_more_variants_than_images(network, digits):
    two = Split(digits.search.images[:2], digits.search.labels[:2])
    [shared] = search_round(network, two, Search(**SMALL)).distinct_sets()
    assert shared.images.shape == two.images.shape


def test_multiples_hold(network, clean):
    search = Search(**SMALL, strategy="SNES", multiple=2)
    result = search_round(network, clean, search)
    assert {name: int(mask.sum()) for name, mask in result.masks.items()} == {
        "conv1": 4,
        "conv2": 2,
        "conv3": 2,
    }


@pytest.mark.parametrize("reading", ["pooled", "per_layer"])
def test_shared_set_lies_in_the_ball_and_is_adversarial(network, clean, reading):
    result = search_round(network, clean, Search(**SMALL, shared_set=reading))
    sets = result.distinct_sets()
    assert len(sets) == (1 if reading == "pooled" else 3)
    for shared in sets:
        gap = np.abs(shared.images - clean.images)
        assert 0.05 < gap.max() <= ATTACK.eps + 1e-6
        assert gap.reshape(len(gap), -1).max(-1).min() > 0  # every image was attacked
        assert shared.images.min() >= 0 and shared.images.max() <= 1
        np.testing.assert_array_equal(shared.labels, clean.labels)


def test_variants_shape_the_shared_set(network, clean):
    """Each variant attacks its own share: without variants the set differs."""
    architecture, variables = network
    arguments = (
        jax.random.key(0),
        Classifier(architecture),
        variables,
        masks.ones(architecture),
        clean,
        PGD(0.1, 2, random_start=False),
        Search(mutation_rate=0.5, keep_floor=0.2),
    )
    alone = coevolution.shared_adversarial_set(*arguments, [])
    varied = coevolution.shared_adversarial_set(*arguments, ["conv1", "conv2"])
    same = np.isclose(alone.images, varied.images).all((1, 2, 3))
    assert same[0::3].all()  # the share of the network itself
    assert not same[1::3].all() and not same[2::3].all()


def test_rounds_repeat_bit_for_bit(network, clean):
    first, second = (search_round(network, clean, Search(**SMALL), seed=7) for _ in range(2))
    chex.assert_trees_all_equal(first.masks, second.masks)
    chex.assert_trees_all_equal(first.found, second.found)
