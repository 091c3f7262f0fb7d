"""Ranks, crowding and orders against brute force and pymoo."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ccsrp_jax.coevolution.selection import crowding, front_ranks, nsga2, weighted_sum

# Few values, so that there are many ties and duplicates; one shape, so that it compiles once.
TIED = arrays(np.float32, (9, 3), elements=st.sampled_from((0.0, 1.0, 2.0, 3.5, np.inf)))
SIZES = [(1, 2), (2, 3), (3, 1), (12, 2), (25, 3)]


def brute_ranks(points):
    """Peels non-dominated fronts off, one comparison after the other."""
    ranks, left, rank = np.full(len(points), -1), set(range(len(points))), 0
    while left:
        front = [
            i
            for i in left
            if not any(
                (points[j] <= points[i]).all() and (points[j] < points[i]).any() for j in left
            )
        ]
        ranks[front] = rank
        left -= set(front)
        rank += 1
    return ranks


def brute_crowding(points):
    """Crowding distance in one front whose objectives all vary."""
    distance = np.zeros(len(points))
    for values in points.T.astype(np.float64):
        order = sorted(range(len(points)), key=lambda i: (values[i], i))
        distance[[order[0], order[-1]]] = np.inf
        for before, here, after in zip(order, order[1:], order[2:], strict=False):
            distance[here] += (values[after] - values[before]) / np.ptp(values)
    return distance


def draw(seed, size, ties):
    points = np.random.default_rng(seed).normal(size=size)
    return (points.round() if ties else points).astype(np.float32)


@settings(deadline=None, max_examples=200)
@given(points=TIED)
def test_ranks_equal_brute_force_with_ties_duplicates_and_infinities(points):
    np.testing.assert_array_equal(front_ranks(jnp.asarray(points)), brute_ranks(points))


@pytest.mark.parametrize("ties", (False, True))
@pytest.mark.parametrize("size", SIZES)
def test_ranks_and_crowding_equal_brute_force(size, ties):
    compared = 0
    for seed in range(20):
        points = draw(seed, size, ties)
        ranks = front_ranks(jnp.asarray(points))
        np.testing.assert_array_equal(ranks, brute_ranks(points))
        distance = np.asarray(crowding(jnp.asarray(points), ranks))
        for rank in range(int(ranks.max()) + 1):
            front = np.asarray(ranks) == rank
            if front.sum() <= 2:
                assert np.isinf(distance[front]).all()
            elif (np.ptp(points[front], axis=0) > 0).all():
                expected = brute_crowding(points[front])
                np.testing.assert_allclose(distance[front], expected, rtol=1e-4)
                compared += 1
    if size[0] > 9:
        assert compared > 10


def test_ranks_and_crowding_equal_pymoo():
    # See tests/oracles/make_fixtures.py.
    frozen = np.load(Path(__file__).parents[1] / "fixtures" / "fronts_pymoo.npz")
    for points, ranks, distance in zip(
        frozen["points"], frozen["ranks"], frozen["crowding"], strict=True
    ):
        ours = front_ranks(jnp.asarray(points))
        np.testing.assert_array_equal(ours, ranks)
        np.testing.assert_allclose(crowding(jnp.asarray(points), ours), distance, rtol=1e-4)


@pytest.mark.parametrize("infinite", (slice(None), slice(1, None)))
def test_crowding_is_not_nan_if_objectives_are_infinite(infinite):
    points = np.array([[0, 4, 1], [1, 3, 1], [2, 2, 1], [3, 1, 1]], np.float32)
    points[infinite, 2] = np.inf
    distance = crowding(jnp.asarray(points), jnp.zeros(4, jnp.int32))
    assert not np.isnan(distance).any()


def test_an_objective_that_is_constant_in_a_front_adds_nothing_to_crowding():
    points = np.array([[1, 3], [0, 4], [4, 0], [3, 1]], np.float32)
    constant = np.c_[points, np.ones(4, np.float32)]
    ranks = jnp.zeros(4, jnp.int32)
    np.testing.assert_allclose(
        crowding(jnp.asarray(constant), ranks), crowding(jnp.asarray(points), ranks)
    )


@pytest.mark.parametrize("ties", (False, True))
@pytest.mark.parametrize("size", SIZES)
def test_nsga2_orders_by_front_then_by_larger_crowding(size, ties):
    for seed in range(10):
        points = jnp.asarray(draw(seed, size, ties))
        ranks = front_ranks(points)
        distance = np.asarray(crowding(points, ranks))
        order = sorted(range(size[0]), key=lambda i: (ranks[i], -distance[i], i))
        places = np.empty(size[0])
        places[order] = np.arange(size[0])
        np.testing.assert_array_equal(nsga2(points), places)


def test_ranks_do_not_depend_on_the_order_of_rows():
    points = draw(0, (25, 3), ties=False)
    shuffle = np.random.default_rng(1).permutation(25)
    ours = np.asarray(nsga2(jnp.asarray(points)))
    infinite = np.isinf(crowding(jnp.asarray(points), front_ranks(jnp.asarray(points))))
    shuffled = np.asarray(nsga2(jnp.asarray(points[shuffle])))
    # Ends of a front tie at infinity; all others have one place.
    np.testing.assert_array_equal(ours[shuffle][~infinite[shuffle]], shuffled[~infinite[shuffle]])


def test_weighted_sum_uses_macs_only_to_break_ties():
    # One image of 10,000 more on clean accuracy outweighs all of the MACs.
    objectives = jnp.array([[0.1, 0.5, 0.0], [0.1, 0.5, 1.0], [0.0999, 0.5, 1.0]])
    assert np.argsort(weighted_sum(objectives)).tolist() == [2, 0, 1]


def test_weighted_sum_by_hand():
    objectives = jnp.array([[0.1, 0.4, 0.5], [0.3, 0.2, 0.25]])
    ours = weighted_sum(objectives, robust_weight=2.0, macs_weight=0.5)
    expected = [0.1 + 0.8 + 0.25, 0.3 + 0.4 + 0.125]
    np.testing.assert_allclose(ours, expected, atol=2e-5)
