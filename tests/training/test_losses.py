import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import rel_entr, softmax

from ccsrp_jax.training import losses

RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(0, 2, (4, 6, 5)).astype(np.float32)  # T, B, K
OTHER = RANDOM.normal(0, 2, (4, 6, 5)).astype(np.float32)
LABELS = RANDOM.integers(0, 5, 6).astype(np.int32)


def test_label_smoothing_is_that_of_optax():
    targets = optax.smooth_labels(jax.nn.one_hot(LABELS, 5), 0.3)
    expected = optax.softmax_cross_entropy(LOGITS.mean(0), targets)
    found = losses.cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABELS), 0.3)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_cross_entropy_is_that_of_the_mean_over_time():
    expected = -np.log(softmax(LOGITS.mean(0), -1)[np.arange(6), LABELS])
    found = losses.cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABELS))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("weight", [0.0, 0.05, 1.0])
def test_tet_equals_its_formula_step_by_step(weight):
    threshold = 0.7
    expected = np.zeros(6)
    for b, label in enumerate(LABELS):
        for z in LOGITS[:, b]:
            expected[b] += (1 - weight) * -np.log(softmax(z)[label]) / 4
            expected[b] += weight * sum((each - threshold) ** 2 for each in z) / 5 / 4
    found = losses.tet(jnp.asarray(LOGITS), jnp.asarray(LABELS), threshold, weight)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_tet_smooths_every_step():
    steps = [losses.cross_entropy(jnp.asarray(z[None]), jnp.asarray(LABELS), 0.2) for z in LOGITS]
    found = losses.tet(jnp.asarray(LOGITS), jnp.asarray(LABELS), 1.0, 0.0, 0.2)
    np.testing.assert_allclose(found, np.mean(steps, 0), rtol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_divergence_is_the_relative_entropy_from_the_clean_output(temperature):
    p, q = (softmax(z.mean(0) / temperature, -1) for z in (LOGITS, OTHER))
    expected = temperature**2 * rel_entr(p, q).sum(-1)
    found = losses.divergence(jnp.asarray(LOGITS), jnp.asarray(OTHER), temperature)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert losses.divergence(jnp.asarray(LOGITS), jnp.asarray(LOGITS)).max() == 0


def test_divergence_pulls_on_both_outputs():
    both = jax.grad(lambda a, b: losses.divergence(a, b).sum(), (0, 1))(LOGITS, OTHER)
    assert all(float(abs(each).max()) > 1e-3 for each in both)
