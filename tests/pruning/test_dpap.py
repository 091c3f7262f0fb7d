"""DPAP: traces, BCM and survival against loops, and permanent pruning."""

import dataclasses
import math
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import jit, pruning_problem

from ccsrp_jax.data.splits import Split, to_unit_range
from ccsrp_jax.networks import masks as masking
from ccsrp_jax.networks.spiking_network import SpikingNetwork
from ccsrp_jax.pruning.budget import Target
from ccsrp_jax.pruning.methods import dpap as module
from ccsrp_jax.pruning.methods.dpap import dpap, links, removal_scores, survival_change, trace
from ccsrp_jax.pruning.problem import Callbacks, Passes
from ccsrp_jax.training.recipe import Recipe
from ccsrp_jax.training.trainer import TrainState
from ccsrp_jax.utils.errors import InputError

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def problem(digits):
    """A problem whose hidden dense layer fires, with three time steps."""
    search = Split(*(part[:31] for part in digits.search))  # the last batch is padded
    problem = pruning_problem(digits, batch_size=20, search=search)
    architecture = dataclasses.replace(problem.architecture, time_steps=3)
    params = dict(problem.variables["params"])
    params["fc1"] = params["fc1"] | {"kernel": 4 * params["fc1"]["kernel"]}
    return dataclasses.replace(
        problem,
        classifier=dataclasses.replace(problem.classifier, architecture=architecture),
        variables=problem.variables | {"params": params},
    )


@pytest.fixture
def still(monkeypatch):
    """Replaces training by none; records the masks of every epoch."""
    seen = []

    def finetune(key, problem, variables, masks, *, adapt):
        for done in range(1, problem.recipe.epochs + 1):
            state, masks = adapt(done, TrainState(variables, None), masks)
            seen.append(dict(masks))
        return state.variables, masks

    monkeypatch.setattr(module, "finetune", finetune)
    return seen


def with_epochs(problem, epochs, **changes):
    recipe = dataclasses.replace(problem.recipe, epochs=epochs)
    return dataclasses.replace(problem, recipe=recipe, **changes)


def test_a_trace_halves_every_step_and_is_divided_by_the_steps():
    random = np.random.default_rng(0)
    values = random.random((3, 2, 4, 4, 5)).astype(np.float32)
    held = np.zeros((2, 4, 4, 5))
    for step in values:
        held = 0.5 * held + step
    values = jnp.asarray(values)
    np.testing.assert_allclose(trace(values, 3), held.sum((1, 2)) / 3, rtol=1e-5)
    constant = jnp.broadcast_to(values[:1], values.shape)
    np.testing.assert_allclose(trace(values[:1], 3), trace(constant, 3), rtol=1e-5)
    np.testing.assert_allclose(trace(values[..., 0, 0, :], 3), held[:, 0, 0] / 3, rtol=1e-5)


def test_links_name_the_inputs_and_the_neurons_of_layers(problem):
    found = {name: tuple(link) for name, link in links(problem.architecture).items()}
    assert found == {
        "conv1": ("conv", "conv1", "image", "lif1"),
        "conv2": ("conv", "conv2", "pool1", "lif2"),
        "fc1": ("dense", "fc1", "flatten", "fc1.lif"),
    }


def test_survival_increases_from_a_share_of_the_upper_quartile_on():
    scores = np.array([0.0, 1, 2, 3, 4, 5, 6, 7, 8])  # the upper quartile is 6
    conv, dense = survival_change(scores, "conv"), survival_change(scores, "dense")
    np.testing.assert_allclose(
        conv[[0, 1, 2, 6, 8]], [-0.65, 1 / 3 - 0.65, 5 + 2 / 3 - 0.65, 6.35, 6.35]
    )
    np.testing.assert_allclose(dense[[0, 3, 5, 6, 8]], [-1.5, -0.5, 2 + 5 / 3 - 1.5, 2.5, 2.5])
    np.testing.assert_allclose(survival_change(np.full(4, 0.3), "dense"), 2.5)  # no reason to prune


def by_loop(problem, events, epochs):
    """Survival after every event, of neurons and dense synapses, while nothing is pruned."""
    names = {"conv1": "lif1", "conv2": "lif2", "fc1": "fc1.lif"}
    sources = {"conv1": "image", "conv2": "pool1", "fc1": "flatten"}
    network, variables = SpikingNetwork(problem.architecture), problem.variables

    @jit
    def run(images):
        values = network.apply(variables, images, method="encode")
        keep = sorted({*names.values(), *sources.values()} - {"image"})
        rest, _ = network.apply(variables, values, keep=keep, method="walk")
        return values | rest

    def held(values, b):
        total = 0
        for t in range(3):
            total = 0.5 * total + np.asarray(values[t % len(values), b], np.float64)
        return (total.sum((0, 1)) if total.ndim == 3 else total) / 3

    bcm, sums, survival = {}, dict.fromkeys(names, 0.0), {}
    count, scale, expected = 0, epochs / 300, []
    for event in range(events):
        for start in range(0, 31, 16):
            values = run(to_unit_range(problem.search.images[start : start + 16]))
            fresh, before = dict(sums), max(count, 1)
            real = min(16, 31 - start)
            for b in range(real):
                for name in names:
                    pre, post = held(values[sources[name]], b), held(values[names[name]], b)
                    theta = sums[name] / before
                    bcm[name] = bcm.get(name, 0) + np.outer(pre, post * (post - theta))
                    fresh[name] = fresh[name] + post
            sums, count = fresh, count + real
        scores = {}
        for name in names:
            own, active = bcm[name].sum(0), sums[name]
            scaled = [(x - x.min()) / (x.max() - x.min()) for x in (own, active)]
            scores[name] = scaled[0] * scaled[1]
        for name, score in (scores | {"fc1/kernel": bcm["fc1"]}).items():
            lower, bonus, period = (0.65, 5, 12) if "conv" in name else (1.5, 2, 13)
            top = np.percentile(score, 75)
            delta = 2 * np.clip((score - score.min()) / (top - score.min()), 0, 1) - lower
            delta = np.where(delta > 0, delta + bonus, delta)
            slows = math.exp(-math.floor(event / (period * scale)))
            survival[name] = survival.get(name, 10 * scale) * 0.999 ** (1 / scale) + delta * slows
        expected.append({name: np.array(value) for name, value in survival.items()})
    return expected


def test_survival_equals_that_of_a_loop_over_images(problem, still, monkeypatch):
    problem = with_epochs(problem, 60, target=Target("macs", 1.0))  # nothing has to be pruned
    found = []
    monkeypatch.setattr(
        module, "removal_scores", lambda survival, masks: found.append(dict(survival)) or survival
    )
    dpap(KEY, problem, rest=0.9)
    expected = by_loop(problem, 6, 60)
    assert len(found) == 6  # epochs 1 to 6
    for mine, theirs in zip(found, expected, strict=True):
        for name, values in theirs.items():
            np.testing.assert_allclose(mine[name], values, rtol=1e-3, atol=2e-3)
    assert any((values < 0).any() for values in expected[-1].values())


def test_survival_below_zero_prunes_permanently_but_not_below_the_target(problem, still):
    problem = with_epochs(problem, 24)
    found = dpap(KEY, problem)
    assert found.search == Passes(forward=18 * 31)
    for early, late in pairwise(still):
        for name in early:
            assert np.all(np.asarray(late[name]) <= np.asarray(early[name]))
    for name, mask in still[-7].items():  # the last quarter trains with fixed masks
        np.testing.assert_array_equal(mask, found.masks[name])
    masking.check(problem.architecture, found.masks)
    assert 0.1 < found.masks["fc1/kernel"].mean() < 1
    loose = dpap(KEY, dataclasses.replace(problem, target=Target("macs", 0.9)))
    assert 0.8 < problem.cost()(loose.masks) / problem.limit(0.0) <= 0.9


def test_surviving_neurons_are_pruned_at_the_last_event_only(problem, still):
    found = dpap(KEY, with_epochs(problem, 8), survival=1e9)
    assert all(np.all(np.asarray(mask) == 1) for masks in still[:5] for mask in masks.values())
    assert problem.cost()(found.masks) <= problem.limit()
    assert found.masks["fc1/kernel"].all() and 0.2 < found.masks["fc1"].mean() < 0.9


def test_removal_starts_with_masked_then_negative_survival_and_ends_with_synapses():
    survival = {
        "a": np.array([-2.0, 5, 3, 9]),
        "b": np.array([700.0, -1, 800]),
        "c/kernel": np.array([[-3.0, 0.5]]),
    }
    masks = {"a": np.array([1, 1, 0, 1]), "b": np.ones(3), "c/kernel": np.ones((1, 2))}
    ranked = removal_scores(survival, masks)
    flat = [(value, name, i) for name, row in ranked.items() for i, value in enumerate(row.ravel())]
    last = ["a3", "b2", "c/kernel1"]
    assert [f"{name}{i}" for _, name, i in sorted(flat)][:4] == ["a2", "c/kernel0", "a0", "b1"]
    assert sorted(f"{name}{i}" for _, name, i in sorted(flat)[-3:]) == last


@pytest.mark.parametrize(
    "target", [Target("macs", 0.5), Target("params", 0.4), Target("synops", 0.6)], ids=str
)
@pytest.mark.parametrize("synapses", [False, True])
def test_the_target_is_met_to_within_one_filter(problem, still, target, synapses):
    problem = with_epochs(problem, 8, target=target)
    found = dpap(KEY, problem, synapses=synapses)
    cost = problem.cost()
    assert cost(found.masks) <= problem.limit()
    assert (masking.kernel("fc1") in found.masks) == synapses
    back = []
    for name in masking.ones(problem.architecture):
        for place in np.flatnonzero(np.asarray(found.masks[name]) == 0):
            mask = np.array(found.masks[name])
            mask[place] = 1
            back.append(cost(found.masks | {name: mask}))
    if synapses and target.measure != "macs":
        step = found.masks["fc1/kernel"].size / 100
        assert max([*back, cost(found.masks) + step]) > problem.limit()
    else:
        assert max(back) > problem.limit()


def test_it_trains_and_prunes_a_network_in_the_recipes_epochs(problem):
    epochs = []
    problem = dataclasses.replace(problem, callbacks=Callbacks(on_epoch=epochs.append))
    found = dpap(KEY, problem)
    assert len(epochs) == problem.recipe.epochs
    assert problem.cost()(found.masks) <= problem.limit()


def test_settings_that_cannot_be_used_are_refused(problem):
    with pytest.raises(InputError, match="survival 0"):
        dpap(KEY, problem, survival=0.0)
    with pytest.raises(InputError, match="epochs of dpap"):
        dpap(KEY, dataclasses.replace(problem, recipe=Recipe(epochs=0)))
