"""Wilson's interval against scipy."""

import pytest
from scipy.stats import binomtest

from ccsrp_jax.utils import stats


@pytest.mark.parametrize("count, images", [(0, 5), (5, 5), (252, 360), (1, 10000)])
def test_interval_is_wilsons(count, images):
    expected = binomtest(count, images).proportion_ci(method="wilson")
    assert stats.wilson_interval(count / images, float(images)) == pytest.approx(expected, abs=1e-5)
