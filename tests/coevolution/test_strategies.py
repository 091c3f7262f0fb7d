import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import thinned

from ccsrp_jax.coevolution import strategies
from ccsrp_jax.coevolution.settings import Search
from ccsrp_jax.coevolution.subpopulation import search_group
from ccsrp_jax.utils.errors import InputError


def current_mask(n: int, removed: int) -> jnp.ndarray:
    return jnp.ones(n).at[jnp.arange(removed) * 2].set(0.0)


def reference_mutation(parent, current, flips, least):
    """CCEP's mutation, bit by bit, for given draws."""
    child, kept = list(parent), sum(parent)
    for i, flip in enumerate(flips):
        if flip and child[i] == 0:
            child[i] = current[i]
            kept += current[i]
        elif flip and kept >= least:
            child[i] = 0
            kept -= 1
    return child if any(child) else list(parent)


@pytest.mark.parametrize("least", [1, 8, 14, 16])
def test_mutation_equals_that_of_ccep(least):
    current = current_mask(20, 4)
    mutate = jax.jit(strategies.mutate)
    for seed in range(60):
        key_parent, key = jax.random.split(jax.random.key(seed))
        parent = jax.random.bernoulli(key_parent, 0.8, (20,)) * current
        child = np.asarray(mutate(key, parent, current, 0.4, least))
        flips = np.asarray(jax.random.bernoulli(key, 0.4, (20,)))
        expected = reference_mutation(np.asarray(parent), np.asarray(current), flips, least)
        np.testing.assert_array_equal(child, expected)
        assert child.sum() >= min(least - 1, parent.sum())  # one below the floor at the most


def test_mutation_rate_is_the_chance_of_a_flip():
    parent = jnp.tile(jnp.array([1.0, 0.0]), 50)
    keys = jax.random.split(jax.random.key(1), 400)
    mutate = jax.vmap(strategies.mutate, (0, None, None, None, None))
    flips = (mutate(keys, parent, jnp.ones(100), 0.1, 1) != parent).mean()
    assert flips == pytest.approx(0.1, abs=0.005)


def test_the_first_population_contains_the_current_mask_and_respects_the_floor():
    current = current_mask(20, 4)
    first = np.asarray(strategies.initial_masks(jax.random.key(0), current, 0.3, 12, size=50))
    chex.assert_trees_all_equal(first[0], np.asarray(current))
    assert (first <= np.asarray(current)).all()
    assert first[1:].sum(-1).min() == 12


@pytest.mark.parametrize(
    ("current", "floor", "multiple", "least"),
    [
        *((10, 0.9, 1, 9), (10, 1.0, 1, 9), (8, 0.95, 1, 7), (2, 0.9, 1, 1), (1, 0.5, 1, 1)),
        *((24, 0.85, 4, 20), (48, 0.85, 4, 40), (20, 0.99, 4, 16), (6, 0.9, 4, 4)),
    ],
)
def test_the_floor_allows_a_removal_but_never_of_the_last_filter(current, floor, multiple, least):
    assert strategies.keep_count(current, floor, multiple) == least


@pytest.mark.parametrize("decoder", ["threshold", "topk"])
def test_decoded_masks_respect_floor_and_dead_filters(decoder):
    current = current_mask(12, 3)
    genomes = jax.random.normal(jax.random.key(2), (64, 12)) * 3
    genomes = genomes.at[0].set(-1.0)
    decoded = np.asarray(strategies.decode(genomes, current, 6, decoder=decoder))
    assert (decoded <= np.asarray(current)).all()
    counts = decoded.sum(-1)
    assert counts.min() == 6
    if decoder == "topk":
        assert counts.max() == 6
    for genome, mask in zip(np.asarray(genomes), decoded, strict=True):
        living = np.asarray(current) > 0
        assert genome[mask > 0].min() >= genome[living & (mask == 0)].max(initial=-np.inf)
        if decoder == "threshold":
            assert mask[living & (genome > 0)].all()


def test_bit_flip_survivors_are_the_best_of_parents_and_children():
    algorithm = strategies.make_strategy("BitFlip", 5, 16)
    params = algorithm.default_params.replace(min_kept=2, current=jnp.ones(16))
    target = np.random.default_rng(0).integers(0, 2, 16)

    def fitness(population):
        return jnp.asarray(np.abs(np.asarray(population) - target).sum(-1), jnp.float32)

    start = strategies.initial_masks(jax.random.key(0), jnp.ones(16), 0.7, 2, size=5)
    state = strategies.strip_weak_types(
        algorithm.init(jax.random.key(1), start, fitness(start), params)
    )
    for generation in range(20):
        parents = np.asarray(state.fitness)
        population, state = algorithm.ask(jax.random.key(generation), state, params)
        values = fitness(population)
        state, _ = algorithm.tell(jax.random.key(0), population, values, state, params)
        expected = np.sort(np.concatenate([parents, np.asarray(values)]))[:5]
        chex.assert_trees_all_equal(np.asarray(state.fitness), expected)
        chex.assert_trees_all_equal(fitness(state.population), state.fitness)


def test_strategies_compile_ask_and_tell_once():
    algorithm = strategies.make_strategy("SNES", 6, 9)
    params = algorithm.default_params
    state = strategies.strip_weak_types(algorithm.init(jax.random.key(0), jnp.zeros(9), params))
    before = type(algorithm).tell._cache_size()
    for generation in range(3):
        population, state = algorithm.ask(jax.random.key(generation), state, params)
        state, _ = algorithm.tell(jax.random.key(0), population, population[:, 0], state, params)
    assert type(algorithm).tell._cache_size() - before == 1


# ---- a whole search against brute force


def separable(values, interactions):
    """Objectives of masks whose best is known by enumeration; minimized."""

    def evaluate(members: np.ndarray) -> np.ndarray:
        clean = -(members @ values) - np.einsum("mi,ij,mj->m", members, interactions, members)
        return np.stack([clean, 0.5 * clean, members.mean(-1)], -1)

    return evaluate


@pytest.mark.parametrize(
    ("strategy", "selection"),
    thinned(
        [
            ("BitFlip", "weighted_sum"),
            ("BitFlip", "nsga2"),
            ("SNES", "weighted_sum"),
            ("Sep_CMA_ES", "weighted_sum"),
            ("DifferentialEvolution", "nsga2"),
        ],
        [("BitFlip", "nsga2"), ("SNES", "weighted_sum")],
    ),
)
def test_search_finds_a_mask_close_to_the_optimum(strategy, selection):
    n, least = 10, 6
    random = np.random.default_rng(5)
    evaluate = separable(random.normal(size=n), 0.1 * random.normal(size=(n, n)))
    every = np.array(list(itertools.product((0, 1), repeat=n)), np.float32)
    every = every[every.sum(-1) == least]
    totals = evaluate(every)[:, :2].sum(-1)
    search = Search(
        strategy=strategy,
        population=8,
        generations=25,
        keep_floor=0.6,
        objective="loss",
        selection=selection,
        macs_weight=3.0,  # so that bit flips reach the floor, too
    )
    found = search_group(jax.random.key(0), np.ones(n), evaluate, search)
    reached = found.objectives[:2].sum()
    assert (totals <= reached + 1e-6).mean() < 0.05  # among the best 5 % of all at the floor


def test_ties_go_to_fewer_macs_however_small_the_difference():
    """Fitness 0.7 and MACs that differ by 1e-5 of the network: float32 would call it a tie."""

    def evaluate(members):
        flat = np.full(len(members), 0.7)
        return np.stack([flat, 0 * flat, 0.9 + 1e-5 * members.sum(-1)], -1)

    search = Search(population=4, generations=30, keep_floor=0.4)
    found = search_group(jax.random.key(0), np.ones(10), evaluate, search)
    assert found.mask.sum() == 3  # one below the floor, as bit flips allow


def test_random_search_is_available_as_a_baseline():
    def evaluate(members):
        return np.stack([-members @ np.arange(8.0), np.zeros(len(members)), members.mean(-1)], -1)

    search = Search(strategy="RandomSearch", generations=4, keep_floor=0.5)
    found = search_group(jax.random.key(0), np.ones(8), evaluate, search)
    assert found.mask.sum() == 4


def test_every_distinct_mask_is_scored_once():
    scored = []

    def evaluate(members):
        scored.extend(member.tobytes() for member in members)
        return np.stack([members[:, 0], members[:, 1], members.mean(-1)], -1)

    found = search_group(jax.random.key(0), np.ones(6), evaluate, Search(generations=15))
    assert len(scored) == len(set(scored)) == found.evaluations


@pytest.mark.parametrize("strategy", ["BitFlip", "SNES"])
def test_the_unpruned_mask_is_refused(strategy):
    def all_ones_is_best(members):
        return np.stack([-members.sum(-1), -members.sum(-1), members.mean(-1)], -1)

    search = Search(strategy=strategy, decoder="threshold", mutation_rate=1e-6, init_keep=1.0)
    found = search_group(jax.random.key(0), np.ones(7), all_ones_is_best, search)
    assert found.mask.sum() == 6


def test_same_key_same_search():
    random = np.random.default_rng(6)
    evaluate = separable(random.normal(size=8), np.zeros((8, 8)))
    runs = [search_group(jax.random.key(3), np.ones(8), evaluate, Search()) for _ in range(2)]
    chex.assert_trees_all_equal(*runs)
    other = search_group(jax.random.key(4), np.ones(8), evaluate, Search())
    assert other.best != runs[0].best


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy": "SNESS"}, "unknown strategy 'SNESS'.*SNES"),
        ({"population": 1}, "population 1"),
        ({"population": 0}, "population 0"),
        ({"keep_floor": 0.0}, "keep_floor 0.0"),
        ({"keep_floor": 1.2}, "keep_floor 1.2"),
        ({"generations": 0}, "generations 0"),
        ({"mutation_rate": 0.0}, "mutation_rate 0.0"),
        ({"robust_weight": float("nan")}, "robust_weight nan"),
        ({"macs_weight": -1.0, "objective": "change"}, "macs_weight -1.0"),
        ({"racing_confidence": 0.0}, "racing confidence 0.0"),
        ({"racing": True, "objective": "change"}, "racing compares accuracies or losses"),
        ({"strategy": "PSO", "selection": "nsga2"}, "PSO.*weighted_sum"),
    ],
)
def test_unusable_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Search(**settings)
