import jax
import numpy as np
import pytest
from scipy import stats

from ccsrp_jax.coevolution import fitness, subproblem
from ccsrp_jax.coevolution.racing import Racing
from ccsrp_jax.data.splits import Split
from ccsrp_jax.networks import masks
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.utils.errors import InputError


def both(values):
    """Values of one set and kind as those of both sets and kinds."""
    return np.broadcast_to(values.astype(np.float32), (2, 2, *values.shape))


def survivors(race: Racing, values: np.ndarray, batch: int) -> np.ndarray:
    """Members that remain after a race on (2, 2, M, n) values, batch after batch."""
    total, running = values.shape[-1], np.arange(values.shape[2])
    looks = race.elimination_points(-(-total // batch), batch)
    for look in looks:
        seen = values[:, :, running, : look * batch]
        running = running[~race.eliminated(seen, np.ones(len(running)), total, len(looks))]
    return running


# Members that agree on most images, as masks of one network do; none is far better.
def errors(random, members, images):
    hard = random.uniform(size=(1, images))
    luck = random.uniform(size=(members, images))
    rate = 0.3 + 0.02 * random.uniform(size=(members, 1))
    return np.where(random.uniform(size=luck.shape) < 0.8, hard, luck) < rate


def exponential(random, members, images):
    hard = random.exponential(size=(1, images))
    factor = 1 + 0.02 * random.uniform(size=(members, 1))
    return factor * hard + 0.1 * random.exponential(size=(members, images))


def lognormal(random, members, images):
    """The largest of 1,000 is about 100 times the median."""
    hard, own = (random.lognormal(-1, 1.5, (count, images)) for count in (1, members))
    return 0.9 * hard + 0.1 * own


@pytest.mark.parametrize(("images", "batch"), [(100, 16), (300, 32), (1000, 100)])
@pytest.mark.parametrize("draw", [errors, exponential, lognormal])
def test_the_best_on_all_images_is_rarely_eliminated(draw, images, batch):
    random, races, lost, left = np.random.default_rng(0), 200, 0, 0
    race = Racing(confidence=0.95, objective="loss")
    for _ in range(races):
        values = draw(random, 6, images).astype(np.float32)
        stayed, means = survivors(race, both(values), batch), values.mean(-1, dtype=np.float64)
        lost += means[stayed].min() > means.min()
        left += len(stayed) / 6
    assert lost <= stats.binom.ppf(0.999, races, 0.05)
    assert left < 0.9 * races  # others are eliminated


def test_higher_confidence_eliminates_fewer():
    random = np.random.default_rng(1)
    values = [both(errors(random, 6, 300)) for _ in range(50)]
    left = [
        sum(len(survivors(Racing(confidence=level), each, 32)) for each in values)
        for level in (0.5, 0.95, 0.999, 1 - 1e-12)
    ]
    assert 50 <= left[0] < left[1] < left[2] < left[3] <= 300


@pytest.mark.parametrize("objective", ["accuracy", "loss"])
def test_clearly_worse_members_are_eliminated_at_the_first_point(objective):
    random = np.random.default_rng(2)
    wrong = random.uniform(size=(5, 100)) < np.array([[0.1], [0.1], [0.1], [0.8], [0.9]])
    beaten = Racing(objective=objective).eliminated(both(wrong)[..., :32], np.ones(5), 100, 2)
    np.testing.assert_array_equal(beaten, [False, False, False, True, True])


def test_only_the_chosen_objective_counts():
    """Worse by errors, better by losses."""
    random = np.random.default_rng(3)
    good, bad = (random.uniform(size=64) < rate for rate in (0.1, 0.9))
    values = both(np.stack([good, bad])).copy()
    values[:, 1] = np.stack([bad, good])
    for objective, expected in (("accuracy", [False, True]), ("loss", [True, False])):
        beaten = Racing(objective=objective).eliminated(values, np.ones(2), 128, 1)
        np.testing.assert_array_equal(beaten, expected)


def test_robust_values_and_macs_count_by_their_weights():
    random = np.random.default_rng(4)
    values = both(random.uniform(size=(1, 64)) < 0.5).repeat(2, axis=2)
    values[1, :, 1] += random.uniform(0.2, 0.4, 64)  # the second is worse on adversarial images
    beaten = [
        Racing(robust_weight=robust, macs_weight=macs).eliminated(
            values, np.array([1, 0.5]), 128, 1
        )
        for robust, macs in ((1.0, 0.0), (0.0, 0.0), (1.0, 1.0), (0.0, 1.0))
    ]
    # the last two differ on no image by anything but their MACs
    expected = [[False, True], [False, False], [True, False], [False, False]]
    np.testing.assert_array_equal(beaten, expected)


@pytest.mark.parametrize("macs_weight", [0.0, 0.3])
def test_members_that_differ_on_no_image_are_never_eliminated(macs_weight):
    """With any MACs: a constant difference has no variance from which to infer others."""
    random = np.random.default_rng(5)
    for count in (32, 64, 100):
        values = both(random.uniform(size=(1, count)) < 0.3).repeat(4, axis=2)
        values[1] = both(random.lognormal(size=(1, count)))[1]
        for objective in ("accuracy", "loss"):
            race = Racing(objective=objective, robust_weight=0.7, macs_weight=macs_weight)
            assert not race.eliminated(values, random.uniform(size=4), 1000, 1).any()


def test_non_finite_values_are_eliminated_at_the_first_point():
    """On either set, with any weights, even if all other values are the best."""
    random = np.random.default_rng(6)
    for place in np.ndindex(2, 1):
        values = both(random.uniform(size=(3, 32)) < 0.5).copy()
        values[:, :, 1] = 0
        values[(place[0], 1, 1, 20)] = np.inf
        for objective in ("accuracy", "loss"):
            for weight in (0.0, 1.0):
                race = Racing(objective=objective, robust_weight=weight)
                beaten = race.eliminated(values, np.ones(3), 64, 1)
                assert beaten[1] and not beaten.all()
    assert Racing().eliminated(np.full((2, 2, 3, 32), np.inf, np.float32), np.ones(3), 64, 1).all()


def test_with_all_images_seen_every_worse_member_is_eliminated():
    """With all images seen, every worse member is eliminated."""
    random = np.random.default_rng(7)
    values = random.uniform(size=(5, 64))
    beaten = Racing(objective="loss").eliminated(both(values), np.ones(5), 64, 1)
    np.testing.assert_array_equal(beaten, values.mean(-1) > values.mean(-1).min())


def test_elimination_points_are_where_the_odds_of_seen_to_unseen_double():
    assert Racing().elimination_points(28, 32) == [1, 2, 4, 6, 10, 15, 20, 23, 25, 27]
    assert Racing().elimination_points(10, 16) == [2, 3, 5, 7, 8]  # odds of 1/4, 1/2, 1, 2, 4
    assert Racing().elimination_points(257, 64)[:8] == [1, 2, 4, 8, 15, 29, 51, 86]
    for first in (2, 32, 33, 100):
        for batches in range(1, 40):
            for size in (1, 7, 32, 64):
                enough = next(n for n in range(1, 200) if n * size >= first)
                looks = Racing(first=first).elimination_points(batches, size)
                assert looks[:1] == [enough][: enough < batches]
                assert looks == sorted(set(looks)) and all(look < batches for look in looks)


@pytest.mark.parametrize(("first", "members"), [(2, 2), (32, 6), (500, 40)])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_elimination_begins_at_students_quantile(first, members, confidence):
    """Of scipy.stats, for one candidate whose mean difference lies just below or above it."""
    points, total = 3, 2 * first
    level = 1 - (1 - confidence) / ((members - 1) * points)
    limit = stats.t.ppf(level, first - 1) * np.sqrt((1 - first / total) / first)
    noise = np.random.default_rng(9).normal(size=first)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    for factor, out in ((1 - 1e-4, False), (1 + 1e-4, True)):
        values = np.zeros((members, first))
        values[1] = noise + factor * limit
        race = Racing(confidence=confidence, objective="loss", robust_weight=0.0)
        eliminated = race.eliminated(both(values), np.zeros(members), total, points)
        np.testing.assert_array_equal(eliminated, np.arange(members) == 1 if out else False)


@pytest.mark.parametrize("wrong", [{"confidence": 0.0}, {"confidence": 1.5}, {"first": 1}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match=str(*wrong.values())):
        Racing(**wrong)


# ---- races of masks


@pytest.fixture(scope="module")
def task(network, digits):
    """Labels are the predictions of the dense network, so that it is the best by far."""
    architecture, variables = network
    whole, classifier = masks.ones(architecture), Classifier(architecture)
    images = digits.search.images[:160]
    said = jax.jit(classifier)((variables, whole), images).argmax(-1)
    clean = Split(images, np.asarray(said, digits.search.labels.dtype))
    return subproblem.make_task(
        *(classifier, variables, whole, "conv2", clean, clean), batch_size=16, member_chunk=4
    )


def test_remaining_members_have_full_scores_and_others_those_of_the_first_images(task):
    members = np.ones((6, 5), np.float32)
    members[np.arange(1, 6), np.arange(5)] = 0
    full = fitness.score(task, members)
    raced = fitness.score(task, members, racing=Racing())
    dropped = raced.images < task.images
    assert 0 < dropped.sum() < 6 and not dropped[0]
    assert set(raced.images[dropped]) <= {32, 48, 80, 112, 128}
    np.testing.assert_array_equal(np.stack(raced)[:, ~dropped], np.stack(full)[:, ~dropped])
    for i in np.flatnonzero(dropped):
        seen = raced.images[i] // 16
        head = task._replace(clean=task.clean[:seen], adversarial=task.adversarial[:seen])
        alone = fitness.score(head, members[[i]])
        np.testing.assert_array_equal(np.stack(raced)[:, i], np.stack(alone)[:, 0])


def test_a_race_without_finite_members_ends_at_the_first_point(task):
    variables = jax.tree.map(lambda x: x, task.variables)
    variables["params"]["classifier"]["bias"] += np.inf
    scores = fitness.score(
        task._replace(variables=variables), np.ones((3, 5), np.float32), racing=Racing()
    )
    assert not scores.finite.any()
    assert (scores.images == 32).all()
