"""Searches under `JAX_DEBUG_NANS`, `JAX_DEBUG_INFS` and `JAX_ENABLE_X64`."""

import contextlib

import jax
import numpy as np
import pytest

from ccsrp_jax.coevolution.settings import PRESETS, Search
from ccsrp_jax.coevolution.subpopulation import search_group

MODES = {
    "nans": jax.debug_nans,
    "infs": jax.debug_infs,
    "x64": jax.enable_x64,
}
WORTH = np.random.default_rng(0).uniform(0.1, 1, 12)
# of each kind of state: distributions, covariances, learned ones, populations
STRATEGIES = ("SNES", "CMA_ES", "EvoTF_ES", "LES", "DiffusionEvolution", "PSO", "BitFlip")


def evaluate(members):
    """What is lost with the filters that are removed, and the filters that are kept."""
    lost = (1 - members) @ WORTH
    return np.stack([lost, lost, members.mean(-1)], -1)


def found(search):
    return search_group(jax.random.key(0), np.ones(12, np.float32), evaluate, search)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_find_the_same_in_every_mode(name):
    expected = found(PRESETS[name])
    for mode in MODES.values():
        with mode(True):
            result = found(PRESETS[name])
        np.testing.assert_array_equal(result.mask, expected.mask)
        np.testing.assert_allclose(result.objectives, expected.objectives, rtol=1e-6)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_strategies_run_in_all_modes_at_once(strategy):
    search = Search(strategy=strategy, population=8, generations=2, keep_floor=0.5)
    with contextlib.ExitStack() as stack:
        for mode in MODES.values():
            stack.enter_context(mode(True))
        result = found(search)
    assert 0 < result.mask.sum() < 12


def test_ranks_with_infinite_distances_are_no_error():
    search = Search(strategy="SNES", population=8, generations=2, selection="nsga2")
    with jax.debug_infs(True), jax.debug_nans(True):
        assert found(search).mask.sum() < 12
