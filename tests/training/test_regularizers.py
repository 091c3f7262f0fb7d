"""Regularizers against numpy loops, closed forms of linear classifiers, and scipy's normal."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import busy, curved, curved_weights, linear
from scipy.stats import norm

from ccsrp_jax.networks import zoo
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.neurons import Surrogate
from ccsrp_jax.training.regularizers import (
    STEP,
    membrane_penalty,
    orthogonalize,
    sparse_gradient_penalty,
)

KEY = jax.random.key(0)

step = jax.jit(orthogonalize)
penalty_of = jax.jit(sparse_gradient_penalty, static_argnums=0)
mass_of = jax.jit(membrane_penalty, static_argnums=(1, 2))


def update_by_loops(kernel, beta, chosen=None):
    """(1 + beta) W - beta W W^T W, filter by filter in float64."""
    filters = [kernel[..., i].astype(np.float64) for i in range(kernel.shape[-1])]
    new = np.array(kernel, np.float64)
    for i in range(len(filters)) if chosen is None else chosen:
        pull = sum(
            (filters[i] * filters[j]).sum() * filters[j]
            for j in (range(len(filters)) if chosen is None else chosen)
        )
        new[..., i] = (1 + beta) * filters[i] - beta * pull
    return new


def drawn(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(0, 0.3, shape).astype(np.float32))


def rows_that_changed(before, after):
    return np.flatnonzero((np.asarray(before) != np.asarray(after)).any(0))


@pytest.mark.parametrize("shape", ((3, 3, 4, 7), (1, 1, 3, 220), (9, 5), (5, 199)))
def test_a_step_of_orthogonalisation_is_that_of_loops_over_the_filters(shape):
    kernel = drawn(0, *shape)
    new = step({"layer": {"kernel": kernel}}, 0.3, KEY)["layer"]["kernel"]
    np.testing.assert_allclose(new, update_by_loops(np.asarray(kernel), 0.3), atol=1e-4)
    assert jnp.abs(new - kernel).max() > 0.01


def test_orthogonalisation_touches_kernels_alone(network):
    _, variables = network
    params = {**variables["params"], "lif9": {"leak": jnp.ones(1)}}
    new = step(params, 0.1, KEY)
    assert jax.tree.structure(new) == jax.tree.structure(params)
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), params, new)
    for path, different in jax.tree_util.tree_leaves_with_path(changed):
        assert different == (path[-1].key == "kernel"), path


@pytest.mark.parametrize("shape", ((3, 3, 2, 6), (4, 7), (8, 3)))
def test_orthogonalised_again_and_again_all_singular_values_become_1(shape):
    params = {"layer": {"kernel": drawn(1, *shape)}}
    for _ in range(100):
        params = step(params, 0.3, KEY)
    values = np.linalg.svd(params["layer"]["kernel"].reshape(-1, shape[-1]), compute_uv=False)
    np.testing.assert_allclose(values, 1, atol=1e-4)


def test_filters_and_inputs_without_weights_stay_without():
    kernel = drawn(2, 3, 3, 5, 6).at[..., 2].set(0).at[:, :, 1].set(0)
    new = step({"conv": {"kernel": kernel}}, 0.3, KEY)["conv"]["kernel"]
    assert (new[..., 2] == 0).all() and (new[:, :, 1] == 0).all()
    kept = np.delete(np.delete(np.asarray(kernel), 2, -1), 1, 2)
    compact = step({"conv": {"kernel": jnp.asarray(kept)}}, 0.3, KEY)["conv"]["kernel"]
    np.testing.assert_allclose(np.delete(np.delete(new, 2, -1), 1, 2), compact, atol=1e-6)


def test_a_wide_dense_layer_changes_in_a_random_30_percent_of_its_rows():
    params = {name: {"kernel": drawn(3, 6, 205)} for name in ("fc1", "fc2")}
    new = step(params, 0.3, KEY)
    rows = {name: rows_that_changed(params[name]["kernel"], new[name]["kernel"]) for name in new}
    for name, chosen in rows.items():
        assert len(chosen) == 61
        expected = update_by_loops(np.asarray(params[name]["kernel"]), 0.3, chosen)
        np.testing.assert_allclose(new[name]["kernel"], expected, atol=1e-5)
    assert set(rows["fc1"]) != set(rows["fc2"])
    other = step(params, 0.3, jax.random.key(1))["fc1"]["kernel"]
    assert set(rows_that_changed(params["fc1"]["kernel"], other)) != set(rows["fc1"])
    backwards = dict(reversed(params.items()))
    again = orthogonalize(backwards, 0.3, KEY)["fc1"]["kernel"]
    np.testing.assert_allclose(again, new["fc1"]["kernel"], atol=1e-6)


def flat(params, images):
    """`conftest.linear` as the penalties call it."""
    variables, _ = params
    return linear(variables["params"], images)


def masked(params, images):
    variables, kept = params
    return linear(variables["params"] * kept["pixels"][:, None], images)


def bent(params, images):
    """`conftest.curved` as the penalties call it."""
    variables, _ = params
    return curved(variables["params"], images)


def noisy(params, images, *, key):
    return flat(params, images + jax.random.normal(key, images.shape))


noisy.stochastic = True


def closed_form(weights, images, labels):
    """SR's penalty on a linear classifier in float64, and how often the runner-up changes."""
    x = np.asarray(images, np.float64).reshape(len(images), -1)
    squares, changes = [], 0
    for each, label in zip(x, labels, strict=True):
        others = [k for k in range(weights.shape[1]) if k != label]
        rival = max(others, key=lambda k: each @ weights[:, k])
        lead = weights[:, label] - weights[:, rival]
        margins = each @ lead, each @ lead + STEP * np.abs(lead).sum()
        before, after = (1 / (1 + np.exp(-m)) for m in margins)
        squares.append(((after - before) / STEP) ** 2)
        changes += rival != max(others, key=lambda k: (each + STEP * np.sign(lead)) @ weights[:, k])
    return np.mean(squares), changes


@pytest.fixture(scope="module")
def toy():
    """Weights and images of a linear classifier whose classes are close, and labels."""
    random = np.random.default_rng(4)
    weights = random.normal(0, 1, (16, 5))
    images = random.uniform(0.2, 0.8, (40, 4, 4, 1)).astype(np.float32)
    return weights, images, random.integers(0, 5, 40)


def test_the_penalty_on_gradients_is_the_closed_form_with_the_runner_up_held(toy):
    weights, images, labels = toy
    expected, changes = closed_form(weights, images, labels)
    assert changes > 0  # else nothing shows that it is held
    variables = {"params": jnp.asarray(weights, jnp.float32)}
    penalty = penalty_of(flat, variables, None, jnp.asarray(images), jnp.asarray(labels))
    np.testing.assert_allclose(penalty, expected, rtol=1e-3)


def test_the_penalty_on_gradients_differentiates_for_the_weights(toy):
    weights, images, labels = toy

    def penalty(weights):
        return sparse_gradient_penalty(
            flat, {"params": weights}, None, jnp.asarray(images), jnp.asarray(labels)
        )

    gradient = jax.jit(jax.grad(penalty))(jnp.asarray(weights, jnp.float32))
    direction = np.random.default_rng(5).normal(size=weights.shape)
    ahead, _ = closed_form(weights + 1e-6 * direction, images, labels)
    behind, _ = closed_form(weights - 1e-6 * direction, images, labels)
    np.testing.assert_allclose(jnp.vdot(gradient, direction), (ahead - behind) / 2e-6, rtol=1e-3)


def test_the_penalty_on_gradients_is_about_their_l1_norm_squared(images, digits):
    labels = jnp.asarray(digits.train.labels[:16])
    params = curved_weights(np.random.default_rng(6), 64, 10, scale=0.02)

    def share(x, label):
        z = curved(params, x[None])[0]
        rival = jnp.where(jnp.arange(10) == label, -jnp.inf, z).max()
        return jnp.exp(z[label]) / (jnp.exp(z[label]) + jnp.exp(rival))

    slopes = jax.jit(jax.vmap(jax.grad(share)))(images, labels)
    expected = (np.abs(slopes).sum((1, 2, 3)) ** 2).mean()
    penalty = penalty_of(bent, {"params": params}, None, images, labels)
    np.testing.assert_allclose(penalty, expected, rtol=0.02)


def test_masks_reach_the_classifier(toy):
    weights, images, labels = toy
    kept = np.arange(16) % 3 > 0
    variables = {"params": jnp.asarray(weights, jnp.float32)}
    masks = {"pixels": jnp.asarray(kept, jnp.float32)}
    penalty = penalty_of(masked, variables, masks, jnp.asarray(images), jnp.asarray(labels))
    expected, _ = closed_form(weights * kept[:, None], images, labels)
    np.testing.assert_allclose(penalty, expected, rtol=1e-3)


def test_both_terms_of_the_penalty_have_the_same_draws(toy):
    weights, images, labels = toy
    moved = images + np.asarray(jax.random.normal(KEY, images.shape))
    variables = {"params": jnp.asarray(weights, jnp.float32)}
    penalty = penalty_of(noisy, variables, None, jnp.asarray(images), jnp.asarray(labels), key=KEY)
    np.testing.assert_allclose(penalty, closed_form(weights, moved, labels)[0], rtol=1e-3)


@pytest.fixture(scope="module")
def tiny():
    architecture = zoo.plain((8, "A"), (8, 8, 1), 10, mean=(0.3,), std=(0.4,))
    return architecture, busy(architecture, seed=0)


def test_descent_on_a_spiking_network_lowers_the_penalty(tiny, images, digits):
    architecture, variables = tiny
    labels = jnp.asarray(digits.train.labels[:16])
    classifier = Classifier(architecture, Surrogate(width=2.0))

    @jax.jit
    def look(params):
        return jax.value_and_grad(
            lambda p: sparse_gradient_penalty(
                classifier, {**variables, "params": p}, None, images, labels
            )
        )(params)

    params = variables["params"]
    start, gradient = look(params)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert all(
        jnp.abs(layer["kernel"]).max() > 0 for layer in gradient.values() if "kernel" in layer
    )
    for _ in range(10):
        _, gradient = look(params)
        rate = 0.05 / optax.tree.norm(gradient)
        params = optax.apply_updates(params, optax.tree.scale(-rate, gradient))
    assert look(params)[0] < 0.3 * start


def mass_by_scipy(potentials, threshold, width):
    layers = []
    for v in potentials.values():
        channels = np.moveaxis(np.asarray(v, np.float64), -1, 0).reshape(v.shape[-1], -1)
        layers.append([])
        for values in channels - threshold:
            near = norm(values.mean(), values.std())
            layers[-1].append(near.cdf(width) - near.cdf(-width))
    return np.mean([np.mean(layer) for layer in layers])


def test_the_mass_of_potentials_is_scipys_by_layer_and_channel():
    random = np.random.default_rng(8)
    potentials = {  # lopsided, as potentials are, and of unlike channels
        f"lif{c}": random.gamma(2, random.uniform(0.1, 1, c), (3, 5, *space, c)).astype(np.float32)
        for c, space in ((6, (4, 4)), (3, (2, 2)), (8, ()))
    }
    leaves = {name: jnp.asarray(v) for name, v in potentials.items()}
    for threshold, width in ((1.0, 0.5), (0.4, 1.0)):
        expected = mass_by_scipy(potentials, threshold, width)
        assert 0.1 < expected < 0.95
        assert mass_of(leaves, threshold, width) == pytest.approx(expected, rel=1e-4)


def test_the_mass_of_gaussian_potentials_is_how_many_lie_near_the_threshold():
    random = np.random.default_rng(7)
    mu, sigma = np.array([0.2, 1.1, 1.5]), np.array([0.5, 0.3, 2.0])
    v = random.normal(mu, sigma, (4, 100, 10, 10, 3)).astype(np.float32)
    share = (np.abs(v - 1.0) < 0.6).mean()  # equal counts, so that of all is the channels' mean
    assert mass_of({"lif": jnp.asarray(v)}, 1.0, 0.6) == pytest.approx(share, abs=0.005)


def test_descent_on_the_mass_moves_potentials_away_from_the_threshold():
    noise = np.random.default_rng(9).normal(0, 0.4, (3, 20, 3))
    v = (noise + np.array([0.6, 1.0, 1.3])).astype(
        np.float32
    )  # below, about and above the threshold
    near = (np.abs(v - 1) < 0.5).mean((0, 1))
    slope = jax.jit(jax.grad(lambda v: membrane_penalty({"lif": v}, 1.0, 0.5)))
    for _ in range(30):
        v = v - 5 * np.asarray(slope(v))
    assert ((np.abs(v - 1) < 0.5).mean((0, 1)) < 0.7 * near).all()


def test_silent_channels_have_a_bounded_gradient():
    v = np.zeros((3, 20, 4), np.float32) + np.array([0, 1, -4, 2], np.float32)
    mass = jax.jit(jax.value_and_grad(lambda v: membrane_penalty({"lif": v}, 1.0, 1.0)))
    value, slope = mass(jnp.asarray(v))
    assert value == pytest.approx((0.5 + 1 + 0 + 0.5) / 4, abs=1e-5)  # edge, threshold, far, edge
    slopes = np.asarray(slope).sum((0, 1))
    assert np.isfinite(slopes).all()
    assert np.abs(slopes).max() < 11  # of a step over width / 100, for 4 channels
