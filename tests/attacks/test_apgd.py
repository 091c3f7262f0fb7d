"""APGD and SA-PGD: plain loops over one image, closed forms on linear classifiers, ball and box."""

import dataclasses
import itertools
import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import curved, curved_weights, linear
from hypothesis import given, settings
from hypothesis import strategies as st

from ccsrp_jax.attacks.adaptive import checkpoint_windows
from ccsrp_jax.attacks.apgd import APGD
from ccsrp_jax.attacks.losses import LOSSES
from ccsrp_jax.attacks.noise import Noise
from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.attacks.sapgd import SAPGD
from ccsrp_jax.attacks.threat_model import ThreatModel
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.gradients import AdaptiveSharpness
from ccsrp_jax.utils.errors import InputError

KEY = jax.random.key(0)
TARGETED = "dlr_targeted"
KINDS = tuple(
    APGD(loss=loss, norm=norm, targets=3) for loss in LOSSES for norm in ("linf", "l2")
) + tuple(SAPGD(loss=loss) for loss in ("ce", "dlr"))


def name(attack):
    return f"{type(attack).__name__}-{attack.loss}-{attack.norm}"


@pytest.fixture(scope="module")
def problem():
    """Images with pixels on and inside the borders of the box, their classes and weights."""
    rng = np.random.default_rng(0)
    images = np.clip(rng.uniform(-0.2, 1.2, (20, 4, 4, 1)), 0, 1).astype(np.float32)
    weights = curved_weights(rng, 16)
    return jnp.asarray(images), curved(weights, images).argmax(-1), weights


@pytest.fixture(scope="module")
def rough_problem(problem):
    """The same with a loss of more maxima."""
    images, _, (inner, outer) = problem
    weights = 5 * inner, outer
    return images, curved(weights, images).argmax(-1), weights


def broken(attack, problem, key):
    images, labels, weights = problem
    found = attack(curved, weights, images, labels, key)
    return np.asarray(curved(weights, found).argmax(-1) != labels)


def length(moved, norm):
    moved = np.asarray(moved).reshape(len(moved), -1)
    return np.abs(moved).max(-1) if norm == "linf" else np.sqrt((moved**2).sum(-1))


# Plain loops over one image: the paper's algorithm, with the roundings of AutoAttack.


def looker(loss, weights, label, target):
    """Loss, gradient and whether it is misclassified, of one image, in 64 bits."""
    inner, outer = (np.asarray(part, float) for part in weights)

    def look(x):
        hidden = np.tanh(x.ravel() @ inner)
        z = hidden @ outer
        order = np.argsort(z)[::-1]
        other = order[0] if order[0] != label else order[1]
        d = np.zeros(len(z))
        if loss == "ce":
            chance = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
            value, d = -np.log(chance[label]), chance.copy()
            d[label] -= 1
        elif loss == "margin":
            value = z[other] - z[label]
            d[other], d[label] = 1, -1
        else:
            to = other if loss == "dlr" else target
            below = order[2:3] if loss == "dlr" else order[2:4]
            scale = z[order[0]] - z[below].mean()
            value = (z[to] - z[label]) / scale
            d[to] += 1
            d[label] -= 1
            d[order[0]] -= value
            d[below] += value / len(below)
            d /= scale
        gradient = (inner @ ((outer @ d) * (1 - hidden**2))).reshape(x.shape)
        return value, gradient, order[0] != label

    return look


def into(x, image, eps, norm):
    if norm == "linf":
        x = np.minimum(np.maximum(x, image - eps), image + eps)
    else:
        x = image + (x - image) * min(1, eps / max(np.linalg.norm(x - image), 1e-12))
    return np.minimum(np.maximum(x, 0), 1)


def plain_checkpoints(steps):
    """Steps after which the step size may be halved."""
    window, at = max(int(0.22 * steps), 1), 0
    while (at := at + window) <= steps:
        yield at
        window = max(window - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))


def plain_apgd(look, image, x, eps, steps, norm, rho=0.75):
    """Every point to look at and the step size to it, and the result."""
    value, gradient, wrong = look(x)
    best, best_value, best_gradient = x, value, gradient
    kept, losses, step_size = [(wrong, value, x)], [value], 2 * eps
    before, points, sizes = x, [], []
    last_check, last_value, last_halved = 0, value, True
    checks = list(plain_checkpoints(steps))
    for step in range(1, steps + 1):
        way = np.sign(gradient) if norm == "linf" else gradient / (np.linalg.norm(gradient) or 1)
        ahead = into(x + step_size * way, image, eps, norm)
        a = 1 if step == 1 else 0.75
        ahead = into(x + a * (ahead - x) + (1 - a) * (x - before), image, eps, norm)
        before, x = x, ahead
        points.append(x)
        sizes.append(step_size)
        value, gradient, wrong = look(x)
        losses.append(value)
        kept.append((wrong, value, x))
        if value > best_value:
            best, best_value, best_gradient = x, value, gradient
        if step in checks:
            rises = sum(losses[i] > losses[i - 1] for i in range(last_check + 1, step + 1))
            halve = rises <= rho * (step - last_check)
            halve = halve or (not last_halved and best_value <= last_value)
            if halve:
                step_size, x, gradient = step_size / 2, best, best_gradient
            last_check, last_value, last_halved = step, best_value, halve
    return np.array(points), np.array(sizes), max(kept, key=lambda each: each[:2])


def plain_sapgd(look, image, x, eps, steps):
    """The same of SA-PGD."""
    value, gradient, wrong = look(x)
    kept, points, sizes = [(wrong, value, x)], [], []
    m, v, step_size = 0, 0, eps
    checks = list(plain_checkpoints(steps))
    for step in range(1, steps + 1):
        m = 0.5 * m + gradient / (np.abs(gradient).mean() or 1)
        v = 0.8 * v + gradient**2 / ((gradient**2).mean() or 1)
        move = np.clip(step_size * m / np.maximum(np.sqrt(v), 1e-12), -step_size, step_size)
        x = into(x + move, image, eps, "linf")
        points.append(x)
        sizes.append(step_size)
        value, gradient, wrong = look(x)
        kept.append((wrong, value, x))
        if step in checks:
            step_size /= 2
    return np.array(points), np.array(sizes), max(kept, key=lambda each: each[:2])


@pytest.mark.parametrize("steps", (1, 2, 7, 20, 25, 50, 100, 101, 1000))
def test_checkpoints_come_where_a_plain_count_puts_them(steps):
    found = checkpoint_windows(steps)
    assert list(found) == list(plain_checkpoints(steps))
    assert np.cumsum(list(found.values())).tolist() == list(found)
    if steps == 100:
        assert list(found) == [22, 41, 57, 70, 80, 87, 93, 99]


def agreement(problem, attack, look_of, *, logits=curved, targets=None):
    """Images on which all points, step sizes and the result equal those of a plain loop.

    Both count in 64 bits, where little hangs on the order of sums. Others may differ only once
    the last bits decide, and how many do depends on the processor.
    """
    images, labels, weights = problem
    start = attack.threat.random_surface_point(jax.random.key(5), images)
    plain = plain_sapgd if isinstance(attack, SAPGD) else partial(plain_apgd, norm=attack.norm)
    if isinstance(attack, APGD):
        plain = partial(plain, rho=attack.rho)
    with jax.enable_x64(True):
        wide = partial(jax.tree.map, lambda a: jnp.asarray(a, jnp.float64))
        states = list(
            attack.path(logits, wide(weights), wide(images), labels, KEY, wide(start), targets)
        )
    assert len(states) == attack.steps + 1
    ours = np.stack([state.x for state in states[:-1]], 1)
    equal, all_sizes = [], []
    for i, image in enumerate(np.asarray(images, float)):
        look, seen = look_of(i), []

        def watched(x, look=look, seen=seen):
            seen.append(look(x))
            return seen[-1]

        points, sizes, (wrong, value, x) = plain(
            watched, image, np.asarray(start[i], float), attack.eps, attack.steps
        )
        worst = states[-1].worst
        apart = np.abs(ours[i] - points).reshape(attack.steps, -1).max(1) > 1e-9
        if isinstance(attack, APGD):
            apart |= ~np.isclose([state.step_size[i] for state in states[:-1]], sizes)
        same = not apart.any()
        same &= np.allclose(worst.loss[i], value) and worst.misclassified[i] == wrong
        same &= np.allclose(worst.images[i], x, rtol=0, atol=1e-9)
        assert same or last_bits_decide(seen) <= (apart.argmax() if apart.any() else attack.steps)
        equal.append(same)
        all_sizes.append(sizes)
    return np.array(equal), np.array(all_sizes)


def last_bits_decide(seen):
    """The first step of which a plain loop cannot be sure: its loss is that of the step before or
    the best so far, within 1e-12, so whether it rose is chance, or it has no slope to follow."""
    values = [value for value, _, _ in seen]
    for step, (value, gradient, _) in enumerate(seen):
        earlier = [values[step - 1], max(values[:step])] if step else []
        if np.abs(gradient).max() <= 1e-9 or any(abs(value - v) <= 1e-12 for v in earlier):
            return step
    return len(seen)


@pytest.mark.parametrize(
    "attack",
    (
        APGD(0.1, 25),
        APGD(0.3, 20, rho=0.4),
        APGD(0.1, 25, loss="margin"),
        APGD(0.1, 25, loss="dlr"),
        APGD(0.1, 25, loss=TARGETED),
        APGD(0.3, 25, norm="l2"),
        APGD(0.9, 50, norm="l2"),
        APGD(0.3, 25, loss="dlr", norm="l2"),
        APGD(0.3, 25, loss=TARGETED, norm="l2"),
    ),
    ids=name,
)
def test_points_step_sizes_and_result_equal_a_plain_apgd_of_each_image(problem, attack):
    images, labels, weights = problem
    others = np.where(np.eye(5)[labels], -np.inf, curved(weights, images))
    targets = others.argmax(-1)

    def look_of(i):
        return looker(attack.loss, weights, labels[i], targets[i])

    equal, sizes = agreement(problem, attack, look_of, targets=jnp.asarray(targets))
    assert equal.mean() >= 0.75
    halvings = np.log2(2 * attack.eps / sizes)
    assert halvings[:, 0].max() == 0 and halvings[:, -1].max() >= 3
    assert len(np.unique(halvings, axis=0)) > 3  # every image at steps of its own


@pytest.mark.parametrize("attack", (SAPGD(0.1, 25), SAPGD(0.1, 20, loss="dlr")), ids=name)
def test_points_and_result_equal_a_plain_sapgd_of_each_image(problem, attack):
    _, labels, weights = problem
    equal, _ = agreement(problem, attack, lambda i: looker(attack.loss, weights, labels[i], None))
    assert equal.mean() >= 0.9


@dataclass(frozen=True)
class Turning:
    """The curved classifier; from the third look of an attack on, its gradient points back."""

    stateful = True

    def __call__(self, weights, images):
        return curved(weights, images)

    def initial_state(self, count):
        return 0

    def apply_stateful(self, weights, images, looks):
        z = curved(weights, images)
        return jnp.where(looks < 3, z, 2 * jax.lax.stop_gradient(z) - z), looks + 1


@pytest.mark.parametrize("attack", (APGD(0.1, 12), SAPGD(0.1, 12)), ids=name)
def test_the_surrogate_state_is_carried_from_iteration_to_iteration(problem, attack):
    _, labels, weights = problem

    def look_of(i):
        look, looks = looker(attack.loss, weights, labels[i], None), itertools.count()

        def turning(x):
            value, gradient, wrong = look(x)
            return value, gradient if next(looks) < 3 else -gradient, wrong

        return turning

    equal, _ = agreement(problem, attack, look_of, logits=Turning())
    assert equal.mean() >= 0.9


def test_adaptive_sharpness_sees_every_iterate(network, images):
    architecture, variables = network
    classifier = Classifier(architecture, AdaptiveSharpness())
    params, labels = (variables, None), jnp.arange(16) % 10
    cross_entropy = LOSSES["ce"]

    @jax.jit
    def gradient(x, memory):
        def loss(x):
            logits, after = classifier.apply_stateful(params, x, memory)
            return cross_entropy(logits, labels, None).sum(), after

        return jax.grad(loss, has_aux=True)(x)

    x = ThreatModel("linf", 0.1).random_surface_point(KEY, images)
    memory, momentum, forgetful = classifier.initial_state(16), 0, 0
    for state in SAPGD(0.1, 4).path(classifier, params, images, labels, KEY, x):
        found, memory = gradient(x, memory)
        momentum = 0.5 * momentum + found / jnp.abs(found).mean((1, 2, 3), keepdims=True)
        np.testing.assert_allclose(state.momentum, momentum, rtol=1e-3, atol=1e-3)
        found, _ = gradient(x, classifier.initial_state(16))
        forgetful = 0.5 * forgetful + found / jnp.abs(found).mean((1, 2, 3), keepdims=True)
        x = state.x
    assert jnp.abs(momentum - forgetful).max() > 0.1


@pytest.mark.parametrize(
    "attack",
    (APGD(0.1, 10), APGD(0.1, 10, 3, loss="margin"), APGD(0.1, 10, loss="dlr"), SAPGD(0.1, 10)),
    ids=name,
)
def test_the_worst_case_of_a_linear_classifier_is_reached(problem, attack):
    images, _, _ = problem
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 20)
    weights = rng.normal(size=(16, 2)).astype(np.float32)
    # Two classes: every pixel moves towards the other class, as far as ball and box allow.
    sign = np.where(labels == 0, 1, -1)[:, None] * np.sign(weights[:, 1] - weights[:, 0])
    worst = np.clip(images + 0.1 * sign.reshape(images.shape), 0, 1)
    ours = attack(linear, *map(jnp.asarray, (weights, images, labels)), KEY)
    np.testing.assert_allclose(ours, worst, atol=1e-6)


@pytest.mark.parametrize("loss", ("ce", "margin"))
def test_in_l2_the_worst_case_of_a_linear_classifier_is_reached(loss):
    rng = np.random.default_rng(3)
    images = rng.uniform(0.3, 0.7, (20, 4, 4, 1)).astype(np.float32)
    labels, weights = rng.integers(0, 2, 20), rng.normal(size=(16, 2)).astype(np.float32)
    towards = np.where(labels == 0, 1, -1)[:, None] * (weights[:, 1] - weights[:, 0])
    worst = images + 0.2 * (towards / np.linalg.norm(towards[0])).reshape(images.shape)
    attack = APGD(0.2, 30, loss=loss, norm="l2")
    ours = attack(linear, *map(jnp.asarray, (weights, images, labels)), KEY)
    np.testing.assert_allclose(ours, worst, atol=1e-4)


@pytest.mark.parametrize("rank", (1, 2))
def test_a_target_is_a_wrong_class_by_its_rank_on_the_clean_image(problem, rank):
    images, _, _ = problem
    rng = np.random.default_rng(4)
    weights = rng.normal(size=(16, 3)).astype(np.float32)
    clean = np.asarray(images).reshape(20, 16) @ weights
    labels = rng.integers(0, 3, 20)  # of some images the top class, of some another
    others = np.where(np.eye(3)[labels], -np.inf, clean)
    target = np.argsort(-others)[:, rank - 1]
    sign = np.sign(weights[:, target] - weights[:, labels]).T.reshape(images.shape)
    worst = np.clip(images + 0.01 * sign, 0, 1)
    attack = APGD(0.01, 10, loss=TARGETED, targets=1, rank=rank)
    ours = attack(linear, *map(jnp.asarray, (weights, images, labels)), KEY)
    np.testing.assert_allclose(ours, worst, atol=1e-6)


def hollow(weights, images):
    """Of class 0 and of high loss where bright; of class 1 and of lower loss where dark."""
    t = images.mean((1, 2, 3))
    return jnp.stack([0 * t, 0.01 - 0.02 * t, -3 + 2.98 * t], -1)


@pytest.mark.parametrize("attack", (APGD(0.5, 20), SAPGD(0.5, 20)), ids=name)
def test_an_iterate_that_was_misclassified_is_kept_for_a_lower_loss(attack):
    images, labels = jnp.full((40, 1, 1, 1), 0.5), jnp.zeros(40, jnp.int32)
    # One pixel: a start is black, of class 1, or white, and every step leads to white.
    found = attack(hollow, None, images, labels, KEY)
    wrong = hollow(None, found).argmax(-1) != labels
    assert 5 < wrong.sum() < 35
    np.testing.assert_array_equal(found[wrong], 0)
    np.testing.assert_array_equal(found[~wrong], 1)


@settings(deadline=None, max_examples=20)
@given(
    attack=st.sampled_from(KINDS),
    eps=st.floats(0, 1, width=32),
    steps=st.integers(1, 9),
    shape=st.sampled_from(((1, 3), (7, 1), (20, 5))),
    seed=st.integers(0, 99),
)
def test_adversarial_images_stay_in_ball_and_box(problem, attack, eps, steps, shape, seed):
    (size, classes), (images, labels, (inner, outer)) = shape, problem
    images, labels, weights = images[:size], labels[:size] % classes, (inner, outer[:, :classes])
    attack = dataclasses.replace(attack, eps=eps, steps=steps)
    ours = attack(curved, weights, images, labels, jax.random.key(seed))
    assert ours.dtype == images.dtype and ours.shape == images.shape
    assert jnp.isfinite(ours).all() and ours.min() >= 0 and ours.max() <= 1
    assert length(ours - images, attack.norm).max() <= eps + 1e-6


@pytest.mark.parametrize("attack", KINDS, ids=name)
def test_a_ball_of_radius_zero_returns_the_image(problem, attack):
    images, labels, weights = problem
    attack = dataclasses.replace(attack, eps=0.0, steps=5, restarts=2)
    np.testing.assert_array_equal(attack(curved, weights, images, labels, KEY), images)


@pytest.mark.parametrize("attack", (APGD(0.1, 3), APGD(0.1, 3, norm="l2"), SAPGD(0.1, 3)), ids=name)
def test_without_a_gradient_nothing_moves(problem, attack):
    images, labels, _ = problem
    for state in attack.path(linear, jnp.zeros((16, 5)), images, labels, KEY, images):
        np.testing.assert_allclose(state.x, images, atol=1e-6)


@pytest.mark.parametrize("attack", (APGD(0.1, 5), SAPGD(0.1, 5)), ids=name)
def test_bytes_and_floats_are_the_same_images(problem, attack):
    images, labels, weights = problem
    pixels = jnp.round(images * 255).astype(jnp.uint8)
    from_bytes, from_floats = (
        attack(curved, weights, given, labels, KEY)
        for given in (pixels, pixels.astype(jnp.float32) / 255)
    )
    np.testing.assert_array_equal(from_bytes, from_floats)


@pytest.mark.parametrize("norm", ("linf", "l2"))
def test_starts_touch_the_ball_in_every_direction(norm):
    inside = jnp.full((300, 4, 4, 1), 0.5)
    threat = ThreatModel(norm, 0.25)
    moved = threat.random_surface_point(KEY, inside) - 0.5
    np.testing.assert_allclose(length(moved, norm), 0.25, rtol=1e-5)
    mean = np.asarray(moved).mean(0)
    assert np.abs(mean).max() < 5 * np.asarray(moved).std() / math.sqrt(300)
    edge = threat.random_surface_point(KEY, jnp.zeros((300, 4, 4, 1)))
    assert edge.min() == 0 and 0.3 < (edge > 0).mean() < 0.7


@pytest.mark.parametrize("norm, eps", (("linf", 0.1), ("l2", 0.3)))
def test_apgd_breaks_no_fewer_images_than_pgd_of_as_many_steps(rough_problem, norm, eps):
    keys = jax.random.split(KEY, 12)
    pgd, ours = (
        np.mean([broken(attack, rough_problem, key) for key in keys])
        for attack in (PGD(eps, 20, norm=norm), APGD(eps, 20, norm=norm))
    )
    assert 0.2 < pgd < 0.5
    assert ours >= pgd


@pytest.mark.parametrize(
    "fewer, more",
    (
        (APGD(0.1, 4), APGD(0.1, 4, 6)),
        (SAPGD(0.1, 4), SAPGD(0.1, 4, 6)),
        (APGD(0.1, 4, loss=TARGETED, targets=1), APGD(0.1, 4, loss=TARGETED, targets=3)),
        (APGD(0.1, 4, 2, loss=TARGETED, targets=2), APGD(0.1, 4, 2, loss=TARGETED, targets=4)),
    ),
    ids=name,
)
def test_more_restarts_and_targets_only_add_broken_images(rough_problem, fewer, more):
    keys = [jax.random.key(seed) for seed in range(6)]
    few, many = (np.array([broken(a, rough_problem, key) for key in keys]) for a in (fewer, more))
    assert (many >= few).all() and many.sum() > few.sum()


@pytest.mark.parametrize("attack", (APGD(0.05, 4, 3), SAPGD(0.05, 4, 3)), ids=name)
def test_parts_are_single_runs_that_make_up_the_whole(problem, attack):
    assert attack.parts == (dataclasses.replace(attack, restarts=1),) * 3
    check_whole(problem, attack)


def test_parts_of_a_targeted_attack_have_one_target_each(problem):
    attack = APGD(0.05, 4, 2, loss=TARGETED, targets=3)
    assert [part.rank for part in attack.parts] == [1, 1, 2, 2, 3, 3]
    assert all(part.restarts == part.targets == 1 for part in attack.parts)
    assert all(part.parts == (part,) for part in attack.parts)
    check_whole(problem, attack)


def check_whole(problem, attack):
    """What the whole breaks is what its parts break, each with the key that it has there."""
    images, labels, weights = problem
    keys = jax.random.split(KEY, len(attack.parts))
    found = [
        part.run_once(curved, weights, images, labels, key)
        for part, key in zip(attack.parts, keys, strict=True)
    ]
    wrong = [np.asarray(curved(weights, x).argmax(-1) != labels) for x in found]
    np.testing.assert_array_equal(broken(attack, problem, KEY), np.any(wrong, 0))
    first = attack.parts[0](curved, weights, images, labels, KEY)
    np.testing.assert_array_equal(first, found[0])


def test_targets_that_a_classifier_has_not_are_left_out(problem):
    images, labels, weights = problem
    attack = APGD(0.05, 4, loss=TARGETED)
    all_, nine = (
        dataclasses.replace(attack, targets=count)(curved, weights, images, labels, KEY)
        for count in (4, 9)
    )
    np.testing.assert_array_equal(all_, nine)
    void = attack.parts[4](curved, weights, images, labels, KEY)
    np.testing.assert_array_equal(void, images)


@pytest.mark.parametrize(
    "attack",
    (
        PGD(0.1, 4, 2, samples=3),
        Noise(0.1),
        APGD(0.1, 4, 2, samples=3),
        APGD(0.1, 4, 2, loss=TARGETED, targets=3, samples=3),
        SAPGD(0.1, 4, 2, samples=3),
    ),
    ids=lambda attack: type(attack).__name__,
)
def test_gradients_are_as_many_as_are_evaluated(problem, attack):
    images, labels, weights = problem
    evaluated = []

    @jax.custom_vjp
    def counted(logits):
        return logits

    def backward(_, gradient):
        jax.debug.callback(lambda: evaluated.append(1))
        return (gradient,)

    counted.defvjp(lambda logits: (logits, None), backward)

    class Counting:
        """The curved classifier; it counts its backward passes, and every draw is one."""

        stochastic = True

        def __call__(self, weights, images, *, key):
            return counted(curved(weights, images))

    attack(Counting(), weights, images, labels, KEY)
    jax.effects_barrier()
    assert attack.gradients == len(evaluated) and attack.queries == 0
    if isinstance(attack, APGD | SAPGD):
        assert attack.gradients == sum(part.gradients for part in attack.parts)


@dataclass(frozen=True)
class Shaky:
    """A linear classifier whose every pass weighs the pixels anew."""

    stochastic = True

    def __call__(self, weights, images, *, key):
        return linear(weights, images * (1 + 4 * jax.random.normal(key, images.shape)))


@pytest.mark.parametrize(
    "attack", (APGD(0.1, 6), APGD(0.1, 6, loss=TARGETED, targets=1), SAPGD(0.1, 6))
)
def test_draws_of_a_stochastic_classifier_are_averaged_and_follow_the_key(problem, attack):
    images, _, _ = problem
    rng = np.random.default_rng(3)
    weights, labels = rng.normal(size=(16, 2)).astype(np.float32), rng.integers(0, 2, 20)
    towards = np.where(labels == 0, 1, -1)[:, None] * (weights[:, 1] - weights[:, 0])

    def gain(samples, seed):
        many = dataclasses.replace(attack, samples=samples)
        found = many(Shaky(), jnp.asarray(weights), images, labels, jax.random.key(seed))
        return ((found - images).reshape(20, 16) * towards).sum(-1)

    labels = jnp.asarray(labels)
    np.testing.assert_array_equal(gain(1, 7), gain(1, 7))
    assert (gain(1, 7) != gain(1, 8)).any()
    assert gain(12, 7).mean() > 1.2 * gain(1, 7).mean()


def test_every_look_at_a_stochastic_classifier_draws_anew(problem):
    images, labels, _ = problem
    weights = jnp.asarray(np.random.default_rng(3).normal(size=(16, 2)), jnp.float32)
    path = SAPGD(0.1, 1, loss="dlr").path(Shaky(), weights, images, labels % 2, KEY, images)
    first, second = (state.momentum for state in path)
    assert jnp.abs(second - 1.5 * first).max() > 0.1  # the same draw's gradient again


@pytest.mark.parametrize("attack", (APGD(loss=TARGETED, targets=2, norm="l2"), SAPGD()), ids=name)
def test_an_outer_jit_gives_the_same_images(problem, attack):
    images, labels, weights = problem
    attack = dataclasses.replace(attack, eps=0.1, steps=3)
    np.testing.assert_allclose(
        jax.jit(attack, static_argnums=0)(curved, weights, images, labels, KEY),
        attack(curved, weights, images, labels, KEY),
        atol=1e-5,
    )


@pytest.mark.parametrize("attack", (APGD(0.1, 10), SAPGD(0.1, 10)), ids=name)
def test_steps_and_radii_share_their_programs(problem, attack, caplog):
    images, labels, weights = problem
    other = dataclasses.replace(attack, eps=0.2, steps=23, loss="dlr")
    attack(curved, weights, images, labels, KEY)
    with jax.log_compiles():
        other(curved, weights, images, labels, KEY)
        assert "Compiling" not in caplog.text
        other(curved, weights, images[:3], labels[:3], KEY)
        assert "Compiling" in caplog.text


@pytest.mark.parametrize(
    "make, message",
    (
        (lambda: APGD(8.0), "eps 8.0 is outside"),
        (lambda: APGD(steps=0), "steps 0"),
        (lambda: APGD(restarts=0), "restarts 0"),
        (lambda: APGD(samples=0), "samples 0"),
        (lambda: APGD(targets=0), "targets 0"),
        (lambda: APGD(rank=0), "rank 0"),
        (lambda: APGD(rho=1.5), "rho 1.5"),
        (lambda: SAPGD(-0.1), "eps -0.1 is outside"),
        (lambda: SAPGD(steps=0), "steps 0"),
    ),
)
def test_impossible_attacks_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
