"""Seeded search: blocks, acceptance of equal margins, and what it finds where others stall."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import curved, curved_weights, linear

from ccsrp_jax.attacks.apgd import APGD
from ccsrp_jax.attacks.losses import margin
from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.attacks.queries import BestQuery
from ccsrp_jax.attacks.seeded_search import SeededSearch, propose_block
from ccsrp_jax.attacks.square import Square
from ccsrp_jax.attacks.threat_model import ThreatModel
from ccsrp_jax.utils.errors import InputError

KEY = jax.random.key(0)
EPS = 0.1


def plateau(state, images):
    """Class 1 only where the pixels of the first column are alternately up and down; a plateau
    of the same margin everywhere else, and a gradient that belongs to nothing."""
    column = images[:, :4, 0, 0] - 0.5
    found = (column * jnp.array([1, -1, 1, -1]) > 0.05).all(-1)
    decoy = images.sum((1, 2, 3))
    decoy -= jax.lax.stop_gradient(decoy)
    return jnp.stack([jnp.zeros_like(decoy), 2.0 * found - 1 + decoy], -1)


@pytest.fixture(scope="module")
def problem():
    """Images with pixels on the borders of the box, weights of `curved`, and its answers."""
    rng = np.random.default_rng(0)
    images = jnp.asarray(np.clip(rng.uniform(-0.2, 1.2, (12, 8, 8, 1)), 0, 1), jnp.float32)
    weights = curved_weights(rng, 64, scale=0.5)
    return images, curved(weights, images).argmax(-1), weights


@pytest.mark.parametrize(
    "attack, share",
    (
        (PGD(EPS, 20), 0),
        (APGD(EPS, 20, loss="margin"), 0),
        (Square(EPS, 1000), 0),
        (SeededSearch(EPS, 1000), 0.9),
    ),
)
def test_on_a_plateau_only_a_search_that_accepts_equal_margins_arrives(attack, share):
    images, labels = jnp.full((16, 8, 8, 1), 0.5), jnp.zeros(16, jnp.int32)
    start = PGD(EPS, 3)(plateau, None, images, labels, KEY)
    options = {"start": start} if isinstance(attack, SeededSearch) else {}
    moved = attack(plateau, None, images, labels, KEY, **options)
    broken = np.asarray(plateau(None, moved).argmax(-1) == 1).mean()
    assert broken >= share if share else broken == 0


@pytest.mark.parametrize("equal", (False, True))
def test_an_equal_margin_is_accepted_where_it_is_asked_for(equal):
    old, new = jnp.zeros((3, 2, 2, 1)), jnp.ones((3, 2, 2, 1))
    logits = jnp.array([[2.0, 1.0], [2.0, 1.0], [2.0, 1.5]])
    best = BestQuery(old, jnp.array([-1.0, -0.5, -1.0]), jnp.zeros(3, bool))
    after = best.update(new, logits, jnp.zeros(3, jnp.int32), stochastic=False, equal=equal)
    assert after.images[:, 0, 0, 0].tolist() == [float(equal), 0.0, 1.0]
    np.testing.assert_array_equal(after.margin, [-1.0, -0.5, -0.5])


def test_the_search_begins_at_the_start_and_never_lowers_the_margin(problem):
    images, labels, weights = problem
    outside = images + 0.03  # is projected
    before, gains = None, 0
    for budget in range(1, 24):
        ours = SeededSearch(0.02, budget)(curved, weights, images, labels, KEY, outside)
        logits = curved(weights, ours)
        gap, broken = np.asarray(margin(logits, labels)), np.asarray(logits.argmax(-1) != labels)
        if before is None:
            np.testing.assert_array_equal(ours, ThreatModel("linf", 0.02).project(outside, images))
        else:
            assert (gap >= before[0] - 1e-6)[~before[1]].all()
            np.testing.assert_array_equal(ours[before[1]], before[2][before[1]])
            gains += (gap > before[0] + 1e-4).sum()
        before = gap, broken, np.asarray(ours)
    assert gains > 20


def test_restarts_go_on_from_where_the_one_before_ended(problem):
    images, labels, weights = problem
    attack = SeededSearch(0.02, 20, restarts=3)
    assert attack.parts == (SeededSearch(0.02, 20),) * 3 and attack.queries == 60
    whole, x = attack(curved, weights, images, labels, KEY, images), images
    for key, part in zip(jax.random.split(KEY, 3), attack.parts, strict=True):
        x = part.run_once(curved, weights, images, labels, key, x)
    np.testing.assert_array_equal(whole, x)
    single = dataclasses.replace(attack, restarts=1)
    assert (single(curved, weights, images, labels, KEY, images) != whole).any()


def test_a_proposal_moves_one_rectangle_of_one_channel_or_all_to_the_faces():
    rng = np.random.default_rng(0)
    images = jnp.asarray(np.clip(rng.uniform(-0.3, 1.3, (400, 6, 5, 3)), 0, 1), jnp.float32)
    threat = ThreatModel("linf", EPS)
    lower, upper = np.maximum(images - EPS, 0), np.minimum(images + EPS, 1)
    start = jnp.asarray(lower + rng.integers(0, 2, images.shape) * (upper - lower), jnp.float32)
    moved = np.asarray(propose_block(KEY, images, start, threat))
    on_face = np.isclose(moved, lower, atol=1e-6) | np.isclose(moved, upper, atol=1e-6)
    assert on_face.all()
    changed = ~np.isclose(moved, start, atol=1e-6)
    sides, channels, turned = set(), set(), 0
    for where, after in zip(changed, moved - np.asarray(images) > 0, strict=True):
        if not where.any():
            continue
        rows, columns = (np.flatnonzero(where.any((axis, 2))) for axis in (1, 0))
        channels.add(tuple(np.flatnonzero(where.any((0, 1)))))
        sides.add((np.ptp(rows) + 1, np.ptp(columns) + 1))
        box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        own = where.any((0, 1))
        if where[box][..., own].all() and len({*after[box][..., own].ravel()}) == 2:
            turned += 1  # a whole block turned over: not set to one face
    assert {(0,), (1,), (2,)} < channels and (0, 1, 2) in channels
    assert (1, 1) in sides and max(side for side, _ in sides) == 6
    assert turned > 20
    # a block that turns over moves black pixels up, though they are at their lower face
    black = jnp.zeros((400, 4, 4, 1))
    up = np.asarray(propose_block(KEY, black, black, threat)).max((1, 2, 3)) > 0
    assert 0.6 < up.mean() < 0.9  # all that turn over, half of those that are set


def test_the_worst_case_of_a_linear_classifier_is_reached():
    rng = np.random.default_rng(1)
    images = jnp.asarray(np.clip(rng.uniform(-0.2, 1.2, (8, 8, 8, 1)), 0, 1), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(64, 2)), jnp.float32)
    towards = np.asarray(weights[:, 1] - weights[:, 0]).reshape(8, 8, 1)

    def biased(parameters, x):  # no image of the ball is misclassified
        return linear(parameters, x) + jnp.array([1e3, 0.0])

    worst = np.clip(images + EPS * np.sign(towards), 0, 1)
    ours = SeededSearch(EPS, 1500)(biased, weights, images, jnp.zeros(8, jnp.int32), KEY)
    gain, full = (np.asarray(((x - images) * towards).sum((1, 2, 3))) for x in (ours, worst))
    assert (gain > 0.9 * full).all() and (gain <= full + 1e-4).all()


def test_starts_of_another_shape_are_refused(problem):
    images, labels, weights = problem
    with pytest.raises(InputError, match=r"starts from images of shape \(11, 8, 8, 1\)"):
        SeededSearch(EPS, 2)(curved, weights, images, labels, KEY, images[1:])
