"""RayS: closed forms on linear classifiers, decisions where logits are flat, and its budget."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccsrp_jax.attacks.apgd import APGD
from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.attacks.rays import RayS
from ccsrp_jax.attacks.seeded_search import SeededSearch
from ccsrp_jax.attacks.square import Square

KEY = jax.random.key(0)
IMAGES = 24
EPS = 0.24


def flat(weights, images):
    """One-hot answers of a linear classifier, and a gradient that points away from its boundary."""
    z = images.reshape(len(images), -1) @ weights
    answer = jax.nn.one_hot(z.argmax(-1), z.shape[-1])
    return answer + jax.lax.stop_gradient(z) - z


@dataclasses.dataclass(frozen=True)
class Flat:
    """`flat`, with counts of compilations and queries."""

    traces: list = dataclasses.field(default_factory=list, hash=False, compare=False)
    queries: list = dataclasses.field(default_factory=list, hash=False, compare=False)

    def __call__(self, weights, images):
        self.traces.append(images.shape)
        jax.debug.callback(lambda: self.queries.append(1))
        return flat(weights, images)


@pytest.fixture(scope="module")
def problem():
    """Images, their classes, weights of two classes, and each image's distance to the boundary."""
    rng = np.random.default_rng(0)
    images = rng.uniform(0.4, 0.6, (IMAGES, 4, 4, 1)).astype(np.float32)
    weights = rng.normal(size=(16, 2)).astype(np.float32)
    z = images.reshape(IMAGES, 16) @ weights
    distance = np.abs(z[:, 0] - z[:, 1]) / np.abs(weights[:, 0] - weights[:, 1]).sum()
    return jnp.asarray(images), jnp.asarray(z.argmax(-1)), jnp.asarray(weights), distance


def broken(attack, problem):
    images, labels, weights, _ = problem
    moved = attack(flat, weights, images, labels, KEY)
    assert np.abs(moved - images).max() <= attack.eps + 1e-6
    return np.asarray(flat(weights, moved).argmax(-1) != labels)


@pytest.mark.parametrize("quantile", (0.25, 0.6))
@pytest.mark.parametrize("random_start", (False, True))
def test_images_are_broken_from_their_distance_to_the_boundary_on(problem, quantile, random_start):
    distance = problem[-1]
    eps = float(np.quantile(distance, quantile))
    found = broken(RayS(eps, 1500, random_start=random_start), problem)
    assert not found[distance > eps].any()
    assert found[distance < eps / 1.15].all()


@pytest.mark.parametrize(
    "attack",
    (PGD(EPS, 10), APGD(EPS, 10, loss="margin"), Square(EPS, 200), SeededSearch(EPS, 200)),
    ids=lambda attack: type(attack).__name__,
)
def test_where_logits_are_flat_it_breaks_what_margins_and_gradients_leave(problem, attack):
    assert broken(RayS(EPS, 800), problem).sum() >= broken(attack, problem).sum() + 8


def test_the_network_is_compiled_once_and_queried_within_the_budget(problem):
    images, labels, weights, _ = problem
    counting = Flat()
    RayS(1e-5, 120)(counting, weights, images, labels, KEY)
    jax.effects_barrier()
    assert len(counting.traces) == 2  # for the number of classes, and to compile
    assert len(counting.queries) == RayS(budget=120).queries == 120
    stopped = Flat()
    RayS(0.9, 1000)(stopped, weights, images, labels, KEY)
    jax.effects_barrier()
    assert len(stopped.queries) < 120


def test_the_first_restart_begins_at_ones_and_the_others_anywhere():
    attack = RayS(0.1, 50, restarts=3)
    assert [part.random_start for part in attack.parts] == [False, True, True]
    assert attack.queries == sum(part.queries for part in attack.parts) == 150
