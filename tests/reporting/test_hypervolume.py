"""The hypervolume against closed forms, inclusion and exclusion, and Monte Carlo."""

from itertools import combinations

import jax.numpy as jnp
import numpy as np
import pytest

from ccsrp_jax.reporting.comparison import hypervolume

REFERENCE = jnp.ones(3)


def measure(points, reference=REFERENCE):
    return float(hypervolume(jnp.asarray(points, jnp.float32), reference))


def inclusion_exclusion(points, reference):
    """The volume of a union of boxes, from those of all intersections."""
    total = 0.0
    for size in range(1, len(points) + 1):
        for chosen in combinations(points, size):
            sides = np.clip(reference - np.max(chosen, 0), 0, None)
            total += (-1) ** (size + 1) * sides.prod()
    return total


def test_one_point_dominates_its_box():
    assert measure([[0.5, 0.25, 0.2]]) == pytest.approx(0.5 * 0.75 * 0.8)
    assert measure([[-1.0, 0.0, 2.0]], jnp.array([1.0, 2.0, 3.0])) == pytest.approx(4.0)


@pytest.mark.parametrize("seed", range(10))
def test_it_equals_inclusion_and_exclusion(seed):
    rng = np.random.default_rng(seed)
    points = rng.uniform(-0.2, 1.2, (9, 3)).round(1)  # ties, and points beyond the reference
    assert measure(points) == pytest.approx(inclusion_exclusion(points, np.ones(3)), abs=1e-5)


def test_it_agrees_with_monte_carlo():
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 1, (60, 3))
    drawn = rng.uniform(0, 1, (200_000, 1, 3))
    share = np.concatenate([(part >= points).all(-1).any(-1) for part in np.split(drawn, 20)])
    assert measure(points) == pytest.approx(share.mean(), abs=5 * share.std() / 200_000**0.5)


def test_points_that_dominate_nothing_new_add_nothing():
    front = np.array([[0.1, 0.8, 0.5], [0.6, 0.2, 0.4], [0.3, 0.3, 0.9]])
    more = np.concatenate([front, front + 0.05, [[0.0, 0.0, 1.0], [2.0, 0.0, 0.0]]])
    assert measure(more) == pytest.approx(measure(front))
    assert measure(np.concatenate([front, [[0.2, 0.2, 0.2]]])) > measure(front) + 0.1
