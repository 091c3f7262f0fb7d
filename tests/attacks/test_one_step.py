"""RS-FGSM and N-FGSM against plain loops over their sources' rules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import linear

from ccsrp_jax.attacks import one_step
from ccsrp_jax.attacks.one_step import NFGSM, rs_fgsm
from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.attacks.registry import ATTACKS, TRAINING_ATTACKS
from ccsrp_jax.attacks.threat_model import ThreatModel
from ccsrp_jax.utils.errors import InputError

EPS = 0.1


@pytest.fixture(scope="module")
def problem():
    """Images in the middle of the box, and a linear classifier of two classes, whose gradient has
    the sign of the difference of its weights everywhere."""
    rng = np.random.default_rng(0)
    images = rng.uniform(0.4, 0.6, (40, 4, 4, 1)).astype(np.float32)
    labels = rng.integers(0, 2, 40)
    weights = rng.normal(size=(16, 2)).astype(np.float32)
    ascent = np.sign(weights[:, 1] - weights[:, 0]).reshape(4, 4, 1)
    return images, labels, weights, ascent * np.where(labels == 0, 1, -1)[:, None, None, None]


def moved(attack, images, labels, weights):
    found = attack(linear, jnp.asarray(weights), images, jnp.asarray(labels), jax.random.key(1))
    return np.asarray(found) - images


def test_n_fgsm_steps_by_eps_from_noise_of_two_eps_and_leaves_the_ball(problem):
    images, labels, weights, ascent = problem
    noise = moved(NFGSM(EPS), images, labels, weights) - EPS * ascent
    assert np.abs(noise).max() < 2 * EPS + 1e-6
    quartiles = np.quantile(noise / EPS, (0.25, 0.5, 0.75))
    np.testing.assert_allclose(quartiles, (-1, 0, 1), atol=0.2)
    assert np.abs(noise + EPS * ascent).max() > 2.5 * EPS


def test_n_fgsm_stays_in_the_box():
    images = np.zeros((8, 4, 4, 1), np.float32)
    found = moved(NFGSM(EPS), images, np.zeros(8, int), np.ones((16, 2), np.float32))
    assert found.min() == 0 and (found == 0).mean() > 0.3 and found.max() <= 2 * EPS


def test_rs_fgsm_steps_by_five_quarters_of_eps_from_a_point_of_the_ball(problem, monkeypatch):
    images, labels, weights, ascent = problem
    starts = []

    def random_point(self, key, images):
        starts.append(images + self.eps * jax.random.uniform(key, images.shape, minval=-1))
        return starts[-1]

    monkeypatch.setattr(ThreatModel, "random_point", random_point)
    found = moved(rs_fgsm(EPS), images, labels, weights)
    expected = np.clip(np.asarray(starts[0]) - images + 1.25 * EPS * ascent, -EPS, EPS)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_one_step_of_pgd_ends_in_a_corner_and_rs_fgsm_inside_the_ball(problem):
    images, labels, weights, _ = problem
    corner = np.abs(moved(PGD(EPS, 1), images, labels, weights))
    np.testing.assert_allclose(corner, EPS, atol=1e-6)
    inside = np.abs(moved(rs_fgsm(EPS), images, labels, weights)) < EPS - 1e-6
    # a start below -eps / 4 towards the corner does not reach it: 3/8 of the interval
    assert abs(inside.mean() - 0.375) < 0.06


def test_n_fgsm_is_for_training_only():
    assert "rs-fgsm" in ATTACKS and "n-fgsm" not in ATTACKS
    assert not any(named.attack is NFGSM for named in ATTACKS.values())
    assert TRAINING_ATTACKS["pgd"](EPS, 4) == PGD(EPS, 4)
    for name in ("rs-fgsm", "n-fgsm"):
        attack = TRAINING_ATTACKS[name](EPS, 4)
        assert (attack.eps, attack.steps, attack.gradients, attack.norm) == (EPS, 1, 1, "linf")


def test_a_curriculum_of_radii_compiles_n_fgsm_once(problem):
    images, labels, weights, _ = problem
    sizes = []
    for eps in (0.02, 0.04, 0.08):
        moved(NFGSM(eps), images, labels, weights)
        sizes.append((one_step._noisy._cache_size(), one_step._signed_step._cache_size()))
    assert len(set(sizes)) == 1


@pytest.mark.parametrize("settings", ({"eps": 2.0}, {"relative_noise": -1.0}, {"samples": 0}))
def test_impossible_settings_are_refused(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        NFGSM(**settings)
