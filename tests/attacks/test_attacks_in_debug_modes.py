"""Attacks under `JAX_DEBUG_NANS`, `JAX_DEBUG_INFS` and `JAX_ENABLE_X64`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import linear, thinned

from ccsrp_jax.attacks.apgd import APGD
from ccsrp_jax.attacks.noise import Noise
from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.attacks.sapgd import SAPGD
from ccsrp_jax.attacks.square import Square

ATTACKS = {
    "pgd with restarts": PGD(0.1, 2, restarts=2),
    "pgd l2": PGD(0.5, 2, norm="l2", loss="margin"),
    "apgd": APGD(0.1, 3),
    "apgd targeted": APGD(0.1, 2, loss="dlr_targeted", targets=2),
    "sa-pgd": SAPGD(0.1, 3),
    "square": Square(0.1, 4, restarts=2),
    "noise": Noise(0.1),
}


@pytest.mark.parametrize("name", thinned(ATTACKS, ("pgd l2", "apgd targeted", "square")))
def test_attacks_run_in_every_mode(name):
    random = np.random.default_rng(0)
    images = jnp.asarray(random.random((4, 3, 5, 1)), jnp.float32)
    weights = jnp.asarray(random.normal(size=(15, 4)), jnp.float32)
    labels = linear(weights, images).argmax(-1).astype(jnp.int32)
    arguments = linear, weights, images, labels, jax.random.key(0)
    expected = ATTACKS[name](*arguments)
    with jax.debug_nans(True), jax.debug_infs(True):
        found = ATTACKS[name](*arguments)
        with jax.enable_x64(True):  # random signs are others there
            wide = ATTACKS[name](*arguments)
    np.testing.assert_array_equal(found, expected)
    assert wide.dtype == jnp.float32
    assert ATTACKS[name].threat.length(wide - images).max() <= ATTACKS[name].eps + 1e-6
