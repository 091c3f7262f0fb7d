"""The Square attack: closed forms on linear classifiers, ball and box, queries and schedule."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import curved, curved_weights, linear
from hypothesis import given, settings
from hypothesis import strategies as st

from ccsrp_jax.attacks.losses import margin
from ccsrp_jax.attacks.square import CHECK_EVERY, HALVINGS, Square
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.zoo import init, plain
from ccsrp_jax.utils.errors import InputError

KEY = jax.random.key(0)
# With so few pixels every square has a side of 1, whatever the budget: of one key, the squares
# of a small budget are then the first ones of a large budget.
NESTED = Square(0.1, p_init=0.001)


def problem(seed=0, shape=(12, 8, 8, 1), classes=5):
    """Images with pixels on the borders of the box, weights of `curved`, and its answers."""
    rng = np.random.default_rng(seed)
    images = jnp.asarray(np.clip(rng.uniform(-0.2, 1.2, shape), 0, 1).astype(np.float32))
    weights = curved_weights(rng, images[0].size, classes, scale=0.5)
    return images, curved(weights, images).argmax(-1), weights


@dataclasses.dataclass(frozen=True)
class Counting:
    """`curved`, with counts of compilations and queries."""

    traces: list
    queries: list

    def __hash__(self):
        return id(self)

    def __call__(self, weights, images):
        self.traces.append(images.shape)
        jax.debug.callback(lambda: self.queries.append(1))
        return curved(weights, images)


@settings(deadline=None, max_examples=25)
@given(
    eps=st.floats(0, 1, width=32),
    seed=st.integers(0, 99),
    budget=st.integers(1, 8),
    p_init=st.floats(1e-3, 1),
    bytes_=st.booleans(),
)
def test_adversarial_images_stay_in_ball_and_box(eps, seed, budget, p_init, bytes_):
    images, labels, weights = problem()
    if bytes_:
        images = (255 * images).astype(jnp.uint8)
    ours = Square(eps, budget, p_init)(curved, weights, images, labels, jax.random.key(seed))
    exact = images / jnp.float32(255) if bytes_ else images
    assert ours.dtype == jnp.float32 and ours.shape == images.shape
    assert ours.min() >= 0 and ours.max() <= 1
    assert np.abs(ours - exact).max() <= eps + 1e-6


@pytest.mark.parametrize("shape", ((1, 8, 8, 1), (3, 9, 12, 3), (2, 32, 32, 3)))
@pytest.mark.parametrize("restarts", (1, 2))
def test_every_size_of_image_is_attacked_in_its_ball(shape, restarts):
    images, labels, weights = problem(shape=shape)
    ours = Square(0.03, 40, restarts=restarts)(curved, weights, images, labels, KEY)
    assert ours.shape == shape and ours.min() >= 0 and ours.max() <= 1
    assert 0.029 < np.abs(ours - images).max() <= 0.03 + 1e-6


@pytest.mark.parametrize("restarts", (1, 3))
def test_a_ball_of_radius_zero_returns_the_image(restarts):
    images, labels, weights = problem()
    ours = Square(0.0, 30, restarts=restarts)(curved, weights, images, labels, KEY)
    np.testing.assert_array_equal(ours, images)


def test_a_network_of_one_class_is_never_broken():
    images, _, weights = problem(classes=1)
    ours = Square(0.1, 20)(curved, weights, images, jnp.zeros(12, jnp.int32), KEY)
    assert np.abs(ours - images).max() <= 0.1 + 1e-6


@pytest.mark.parametrize("shape", ((2, 8, 8, 1), (2, 9, 4, 3)))
def test_the_initial_image_has_stripes_within_ball_and_box(shape):
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.uniform(0.2, 0.8, shape).astype(np.float32))
    images = images.at[:, 0].set(0.0).at[:, 1].set(1.0)
    weights = jnp.zeros((images[0].size, 2))  # no square helps, so the initial image is the result
    moved = Square(0.1, 50)(linear, weights, images, jnp.zeros(2, jnp.int32), KEY) - images
    inside = np.asarray(moved[:, 2:])
    np.testing.assert_allclose(np.abs(inside), 0.1, atol=1e-6)
    assert (np.sign(inside) == np.sign(inside[:, :1])).all()  # a column has one sign
    signs = np.sign(inside[:, 0])  # (B, W, C)
    assert {-1, 1} == set(signs.ravel())
    np.testing.assert_allclose(moved[:, 0], np.where(signs > 0, 0.1, 0), atol=1e-6)
    np.testing.assert_allclose(moved[:, 1], np.where(signs < 0, -0.1, 0), atol=1e-6)
    again = Square(0.1, 1)(linear, weights, images, jnp.zeros(2, jnp.int32), KEY)
    np.testing.assert_array_equal(again - images, moved)


def test_stripe_signs_are_fair_and_independent_by_column_channel_and_image():
    weights = jnp.zeros((16 * 16 * 3, 2))
    images, labels = jnp.full((40, 16, 16, 3), 0.5), jnp.zeros(40, jnp.int32)
    moved = np.asarray(Square(0.1, 1)(linear, weights, images, labels, KEY)[:, 0] - 0.5)
    signs = np.sign(moved).reshape(40, -1)
    assert abs(signs.mean()) < 0.1  # 4.4 standard deviations
    for view in (signs, signs.T):
        assert len(np.unique(view, axis=0)) == len(view)


def test_shares_equal_the_published_table():
    # Of AutoAttack at 10,000 queries: up to which square, and p of the CIFAR-10 runs' 0.8.
    table = (
        (0, 10, 0.8),
        (11, 50, 0.4),
        (51, 200, 0.2),
        (201, 500, 0.1),
        (501, 1000, 0.05),
        (1001, 2000, 0.025),
        (2001, 4000, 0.0125),
        (4001, 6000, 0.00625),
        (6001, 8000, 0.003125),
        (8001, 9999, 0.0015625),
    )
    square = Square(budget=10_000)
    for first, last, share in table:
        for number in (first, (first + last) // 2, last):
            assert square.share(number) == share
    assert len(HALVINGS) == len(table) - 1


@pytest.mark.parametrize("budget", (1, 7, 100, 1000, 5000))
def test_the_schedule_is_rescaled_to_the_budget(budget):
    ours, whole = Square(budget=budget, p_init=0.3), Square(budget=10_000, p_init=0.3)
    for number in range(budget):
        assert ours.share(number) == whole.share(number * 10_000 // budget)


@pytest.mark.parametrize("shape", ((8, 8), (32, 32), (28, 28), (8, 30), (30, 8)))
def test_squares_have_the_area_of_their_share_where_the_image_is_large_enough(shape):
    square = Square(budget=1000)
    for number in range(999):
        side, area = square.side(number, *shape), square.share(number) * shape[0] * shape[1]
        assert 1 <= side <= min(shape)
        if 1 < side < min(shape):
            assert (side - 0.5) ** 2 <= area <= (side + 0.5) ** 2
        elif side == 1:
            assert area <= 1.5**2
    assert square.side(0, 8, 8) == 7 and square.side(998, 8, 8) == 1


@pytest.mark.parametrize("p_init, side", ((0.001, 1), (0.14, 3), (1.0, 8)))
def test_a_square_has_one_sign_per_channel_and_any_position(p_init, side):
    # Two queries are the stripes and one square, accepted where it lowers the margin.
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.uniform(0.3, 0.7, (400, 8, 8, 2)).astype(np.float32))
    weights = jnp.stack([jnp.zeros(128), jnp.ones(128) / 1e3], -1)
    bias = jnp.asarray([1.0, 0.0])  # keeps class 0 the prediction, so that no attack succeeds
    labels = jnp.zeros(400, jnp.int32)

    def shifted(parameters, x):
        return linear(parameters[0], x) + parameters[1]

    stripes, one = (
        np.asarray(Square(0.1, n, p_init)(shifted, (weights, bias), images, labels, KEY) - images)
        for n in (1, 2)
    )
    changed = np.abs(one - stripes) > 0.1
    tops, lefts, pairs = set(), set(), set()
    for before, after, where in zip(stripes, one, changed, strict=True):
        if not where.any():
            continue
        rows, columns = (np.flatnonzero(where.any((axis, 2))) for axis in (1, 0))
        assert max(np.ptp(rows), np.ptp(columns)) < side
        tops.add(rows[0]), lefts.add(columns[0])
        for channel in range(2):
            within = where[..., channel]
            if within.any():
                assert len(np.unique(np.sign(after[..., channel][within]))) == 1
        assert after.sum() > before.sum() - 1e-4
        pairs.add(tuple(np.sign(after[rows[0], columns[0]])))
    assert len(tops) > 1 or side == 8
    assert len(pairs) > 2  # every channel draws its own sign
    assert max(lefts) >= 8 - side and max(tops) >= 8 - side  # up to the last row and column


def test_further_queries_never_increase_the_margin_and_leave_broken_images_unchanged():
    images, labels, weights = problem(3)
    labels = labels.at[:2].set((labels[:2] + 1) % 5)  # misclassified from the start
    before, broken_before, gains = None, None, 0
    for budget in range(1, 40):
        attack = dataclasses.replace(NESTED, budget=budget)
        ours = attack(curved, weights, images, labels, KEY)
        logits = curved(weights, ours)
        gap, broken = np.asarray(margin(logits, labels)), np.asarray(logits.argmax(-1) != labels)
        if before is not None:
            assert (gap >= before[0] - 1e-6).all()
            assert broken[broken_before].all()
            np.testing.assert_array_equal(ours[broken_before], before[1][broken_before])
            gains += (gap > before[0] + 1e-4).sum()
        before, broken_before = (gap, ours), broken
    np.testing.assert_array_equal(ours[:2], images[:2])
    assert gains > 20
    assert 2 < broken.sum() < 12


def test_the_query_of_lower_margin_is_kept():
    # By hand: the stripes of a budget of 1, and squares that differ from image to image.
    images, labels, weights = problem(4)
    seen = [
        dataclasses.replace(NESTED, budget=budget)(curved, weights, images, labels, KEY)
        for budget in (1, 2)
    ]
    moved = np.abs(seen[1] - seen[0]).reshape(12, -1).max(-1) > 0
    gap = [np.asarray(margin(curved(weights, x), labels)) for x in seen]
    assert 0 < moved.sum() < 12
    assert (gap[1] > gap[0])[moved].all()


def test_it_reaches_the_worst_case_of_a_linear_classifier():
    images, _, _ = problem()
    rng = np.random.default_rng(1)
    weights = jnp.asarray(rng.normal(size=(64, 2)).astype(np.float32))
    # Labels that no image in the ball changes, so that the search uses its whole budget.
    bias = jnp.asarray([1e3, 0.0])
    labels = jnp.zeros(12, jnp.int32)
    towards = np.asarray(weights[:, 1] - weights[:, 0]).reshape(8, 8, 1)
    worst = np.clip(images + 0.1 * np.sign(towards), 0, 1)

    def biased(parameters, x):
        return linear(parameters[0], x) + parameters[1]

    def gain(x):
        return np.asarray(((x - images) * towards).sum((1, 2, 3)))

    start, many = (
        gain(Square(0.1, budget)(biased, (weights, bias), images, labels, KEY))
        for budget in (1, 1500)
    )
    full = gain(worst)
    assert (start < 0.5 * full).all()
    assert (many > 0.97 * full).all() and (many <= full + 1e-4).all()


def test_restarts_are_never_weaker_than_the_first_and_parts_are_the_restarts():
    # Keys are split alike for any number, so the restarts are nested.
    images, labels, weights = problem(5, (48, 4, 4, 1))
    attack = Square(0.06, 10, restarts=4)
    assert attack.parts == (Square(0.06, 10),) * 4
    assert (attack.queries, attack.gradients) == (40, 0)
    broken = [
        np.asarray(
            curved(
                weights,
                dataclasses.replace(attack, restarts=restarts)(
                    curved, weights, images, labels, KEY
                ),
            ).argmax(-1)
            != labels
        )
        for restarts in (1, 2, 4)
    ]
    for fewer, more in itertools.pairwise(broken):
        assert more[fewer].all()
    assert broken[0].sum() < broken[-1].sum() < 48


def test_images_are_determined_by_the_key():
    images, labels, weights = problem(3)
    once, again, other = (
        Square(0.03, 30)(curved, weights, images, labels, jax.random.key(seed))
        for seed in (4, 4, 5)
    )
    np.testing.assert_array_equal(once, again)
    assert (once != other).any()


def test_every_image_of_a_batch_has_squares_of_its_own():
    images, labels, weights = problem()
    same = jnp.repeat(images[:1], 6, 0)
    ours = Square(0.02, 30)(curved, weights, same, jnp.repeat(labels[:1], 6), KEY)
    assert len(np.unique(np.asarray(ours).reshape(6, -1), axis=0)) == 6


def test_the_network_is_compiled_once_and_queried_within_the_budget():
    images, labels, weights = problem()
    counting = Counting([], [])
    Square(1e-6, 130)(counting, weights, images, labels, KEY)  # never succeeds
    jax.effects_barrier()
    assert len(counting.traces) == 2  # for the number of classes, and to compile
    assert len(counting.queries) == Square(budget=130).queries + 1  # and one for the clean image


def test_the_search_ends_soon_after_every_image_is_broken():
    images, labels, weights = problem()
    counting = Counting([], [])
    ours = Square(0.1, 2000)(counting, weights, images, (labels + 1) % 5, KEY)
    jax.effects_barrier()
    np.testing.assert_array_equal(ours, images)
    assert len(counting.queries) == 2
    counting = Counting([], [])
    ours = Square(0.3, 2000)(counting, weights, images, labels, KEY)
    jax.effects_barrier()
    assert (curved(weights, ours).argmax(-1) != labels).all()
    assert 2 < len(counting.queries) <= 2 + 10 * CHECK_EVERY


def test_a_tie_for_the_true_class_is_not_yet_a_success():
    images, _, _ = problem()
    weights = jnp.zeros((64, 2)).at[0, 1].set(1.0)
    # Class 1 is level with class 0 wherever the first pixel is 0, and ahead where it is more.
    images = images.at[:, 0, 0].set(0.0)
    ours = Square(0.1, 300)(linear, weights, images, jnp.zeros(12, jnp.int32), KEY)
    assert (linear(weights, ours).argmax(-1) == 1).all()


def test_every_query_of_a_stochastic_network_has_its_own_key():
    architecture = dataclasses.replace(plain((4, "A"), (8, 8, 1), 5), encoding="poisson")
    params, classifier = (init(KEY, architecture), None), Classifier(architecture)
    images, labels, _ = problem()
    once, again = (Square(0.1, 10)(classifier, params, images, labels, KEY) for _ in range(2))
    np.testing.assert_array_equal(once, again)
    assert np.abs(once - images).max() <= 0.1 + 1e-6

    keys = []

    class Listening:
        stochastic = True

        def __call__(self, weights, x, *, key):
            jax.debug.callback(lambda k: keys.append(tuple(k.tolist())), jax.random.key_data(key))
            return curved(weights, x)

    _, labels, weights = problem()
    Square(1e-6, 20)(Listening(), weights, images, labels, KEY)
    jax.effects_barrier()
    assert len(keys) == len(set(keys)) == 21


@pytest.mark.parametrize(
    "make, message",
    (
        (lambda: Square(8.0), "eps 8.0 is outside"),
        (lambda: Square(budget=0), "budget 0 is out of range"),
        (lambda: Square(p_init=0.0), "p_init 0.0 is out of range"),
        (lambda: Square(p_init=1.5), "p_init 1.5 is out of range"),
        (lambda: Square(restarts=0), "restarts 0 is out of range"),
    ),
)
def test_impossible_attacks_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
