"""Criticality: scores, the exchange of channels and weights, and the target."""

import dataclasses

import jax
import numpy as np
import pytest
from conftest import pruning_problem

from ccsrp_jax.data.splits import to_unit_range
from ccsrp_jax.networks.nodes import Norm
from ccsrp_jax.networks.spiking_network import SpikingNetwork
from ccsrp_jax.pruning.budget import Target, prune_to_budget
from ccsrp_jax.pruning.methods import criticality as module
from ccsrp_jax.pruning.methods.criticality import (
    channel_criticality,
    criticality,
    criticality_weights,
)
from ccsrp_jax.pruning.problem import Passes, kept
from ccsrp_jax.pruning.regrowth import event_epochs, prune_and_regrow
from ccsrp_jax.training.recipe import Recipe
from ccsrp_jax.training.trainer import TrainState
from ccsrp_jax.utils.errors import InputError

KEY = jax.random.key(3)
NODES = {"conv1": "lif1", "conv2": "lif2", "fc1": "fc1.lif"}


@pytest.fixture(scope="module")
def problem(digits):
    return pruning_problem(digits, batch_size=24)  # two batches of 16


@pytest.fixture(scope="module")
def untrained(problem):
    return dataclasses.replace(problem, recipe=Recipe(epochs=0))


@pytest.fixture(scope="module")
def potentials(problem):
    """Membrane potentials of all search images, (T, B, *features), in one call."""
    network, images = SpikingNetwork(problem.architecture), to_unit_range(problem.search.images)
    run = jax.jit(lambda v, x: network.apply(v, x, activity=True)[1].potentials)
    return {name: np.asarray(v) for name, v in run(problem.variables, images).items()}


def untouched(problem, record):
    """Replaces `finetune`: calls `adapt` after every epoch without training."""

    def finetune(key, _, variables, masks, *, adapt):
        state = TrainState(variables, None)
        for done in range(1, problem.recipe.epochs + 1):
            state, masks = adapt(done, state, masks)
            record.append((state.variables, masks))
        return state.variables, masks

    return finetune


@pytest.mark.parametrize("score", ("derivative", "step"))
def test_criticality_is_the_maximum_over_positions_of_the_mean_over_time(
    problem, potentials, score
):
    found, passes = channel_criticality(KEY, problem, problem.variables, {}, score)
    assert passes == Passes(forward=32)
    assert set(found) == set(NODES)
    for group, node in NODES.items():
        v = potentials[node]
        if score == "derivative":
            near = 1 / (1 + np.pi**2 * (v - 1) ** 2)
        else:  # as released, for a threshold of 0.5
            near = (np.tanh(3 * (v / 2 - 0.5)) + np.tanh(1.5)) / (2 * np.tanh(1.5))
        near = near.mean(0).reshape(32, -1, v.shape[-1]).max(1).mean(0)
        np.testing.assert_allclose(found[group], near, rtol=1e-5)


def brute_force(scales, near, cost, limit, growth):
    """With sets, from the dense network down to the first exchange within the limit."""
    filters = sorted((scales[g][i], g, i) for g in scales for i in range(len(scales[g])))
    best = {g: int(np.argmax(scales[g])) for g in scales}
    order = [(g, i) for _, g, i in filters if best[g] != i]
    for gone in range(len(order) + 1):
        swaps = int(growth * (len(filters) - gone))
        out = order[: gone + swaps]
        back = sorted(out, key=lambda each: -near[each[0]][each[1]])[:swaps]
        masks = {g: np.ones(len(scales[g])) for g in scales}
        for g, i in set(out) - set(back):
            masks[g][i] = 0
        if cost(masks) <= limit:
            return masks


@pytest.mark.parametrize("growth", (0.05, 0.3))
def test_channels_of_small_gamma_are_exchanged_for_critical_ones(untrained, growth):
    near, _ = channel_criticality(KEY, untrained, untrained.variables, {})
    params = untrained.variables["params"]
    scales = {f"conv{n}": np.abs(params[f"norm{n}"]["scale"]) for n in (1, 2)}
    known, weights = np.concatenate(list(scales.values())), np.abs(params["fc1"]["kernel"])
    places = np.argsort(np.argsort(weights.mean(0)))
    scales["fc1"] = np.quantile(known, (places + 0.5) / 10)
    found = criticality(KEY, untrained, growth=growth)
    expected = brute_force(scales, near, untrained.cost(), untrained.limit(), growth)
    plain = prune_to_budget(scales, untrained.cost(), untrained.limit())
    for name, mask in expected.items():
        np.testing.assert_array_equal(found.masks[name], mask)
    assert any((found.masks[name] != plain[name]).any() for name in plain)
    assert found.search == Passes(forward=32)
    ablation = criticality(KEY, untrained, growth=growth, regenerate=False)
    assert ablation.search == Passes()
    for name, mask in plain.items():
        np.testing.assert_array_equal(ablation.masks[name], mask)


def test_slimming_shrinks_gamma_by_the_sum_of_learning_rates(problem):
    recipe = Recipe(epochs=4, batch_size=32, learning_rate=0.1, warmup=0.5)
    problem = dataclasses.replace(problem, recipe=recipe)
    state, _ = module.proximal_step(problem, 2, 0.8, 1, TrainState(problem.variables, None), {})
    # two steps an epoch, of four: at 1/8 and 3/8 of the schedule, whose first half warms up
    by = 0.8 * 0.1 * (0.25 + 0.75)
    for node in problem.architecture.nodes:
        if isinstance(node, Norm):
            before = np.asarray(problem.variables["params"][node.name]["scale"])
            after = np.asarray(state.variables["params"][node.name]["scale"])
            np.testing.assert_allclose(after, before - by, rtol=1e-5)


def test_regrown_weights_are_those_of_critical_channels_and_start_from_0(problem, monkeypatch):
    record = []
    monkeypatch.setattr(module, "finetune", untouched(problem, record))
    found = criticality_weights(KEY, problem, ratio=0.25, prune_share=0.5)
    (variables, first), (_, last) = record[:2]
    assert found.search == Passes(forward=2 * 32)
    assert record[3][1] is last  # no event in the second half of the epochs
    cost, dense = problem.cost("params"), problem.cost("params")({})
    assert cost(last) == int(0.5 * dense)
    # the cubic schedule's first of two events
    assert cost(first) == int((1 - 0.5 * (1 - 0.5**3)) * dense)

    near, _ = channel_criticality(KEY, problem, problem.variables, {})
    sizes = {n: np.abs(problem.variables["params"][n.split("/")[0]]["kernel"]) for n in first}
    whole = sum(mask.size for mask in first.values())
    budget = kept(first)
    bar = np.sort(np.concatenate([s.ravel() for s in sizes.values()]))[whole - budget]
    np.testing.assert_array_equal(first["classifier/kernel"], sizes["classifier/kernel"] >= bar)
    others = {name: s for name, s in sizes.items() if name != "classifier/kernel"}
    left = budget - int(np.sum(first["classifier/kernel"]))
    swaps = int(0.25 * left)
    values = np.sort(np.concatenate([s.ravel() for s in others.values()]))[::-1]
    bar, back, gone = values[left - swaps - 1], [], []
    for name, size in others.items():
        layer = name.split("/")[0]
        kernel = np.asarray(variables["params"][layer]["kernel"])
        regrown = (np.asarray(first[name]) == 1) & (size < bar)
        assert (np.asarray(first[name])[size >= bar] == 1).all()
        assert (kernel[regrown] == 0).all()
        np.testing.assert_array_equal(np.abs(kernel[size >= bar]), size[size >= bar])
        c = np.broadcast_to(near[layer], size.shape)
        back += list(zip(c[regrown], size[regrown], strict=True))
        out = np.asarray(first[name]) == 0
        gone += list(zip(c[out], size[out], strict=True))
    assert len(back) == swaps
    assert min(back) > max(gone)  # by criticality, then by magnitude


def test_without_regeneration_as_many_weights_are_removed_by_magnitude(problem, monkeypatch):
    record, plain = [], []
    monkeypatch.setattr(module, "finetune", untouched(problem, record))
    criticality_weights(KEY, problem, score="step")
    monkeypatch.setattr(module, "finetune", untouched(problem, plain))
    found = criticality_weights(KEY, problem, regenerate=False)
    assert found.search == Passes()
    for (_, with_it), (_, without) in zip(record, plain, strict=True):
        assert kept(with_it) == kept(without)
    sizes = {n: np.abs(problem.variables["params"][n.split("/")[0]]["kernel"]) for n in found.masks}
    lowest = min(sizes[n][np.asarray(mask) == 1].min() for n, mask in found.masks.items())
    assert all((sizes[n][np.asarray(mask) == 0] < lowest).all() for n, mask in found.masks.items())


def test_trained_with_either_method_the_target_is_met(problem):
    weights = criticality_weights(KEY, problem)
    assert weights.search == Passes(forward=2 * 32)
    assert problem.cost("params")(weights.masks) == int(problem.limit(measure="params"))
    channels = criticality(KEY, problem, slimming=0.5, score="step")
    assert problem.cost()(channels.masks) <= problem.limit()
    before, after = (v["params"]["conv2"]["kernel"] for v in (problem.variables, weights.variables))
    assert not np.array_equal(before, after)


@pytest.mark.parametrize("growth", (0.0, 0.4))
def test_regrowth_meets_a_limit_to_within_one_and_empties_no_group(growth):
    rng = np.random.default_rng(5)
    for limit in (3, 4, 11, 20):
        scores = {"a": rng.integers(0, 4, 12), "b": rng.integers(-5, -3, 8), "c": np.zeros(1)}
        revival = {name: rng.integers(0, 3, len(s)) for name, s in scores.items()}
        masks, stayed = prune_and_regrow(
            scores, revival, kept, limit, lambda n: int(growth * n), rng
        )
        assert kept(masks) == limit
        assert all(mask.any() for mask in masks.values())
        back = {name: masks[name] - stayed[name] for name in masks}
        assert all((part >= 0).all() for part in back.values())
        assert kept(back) == min(int(growth * limit), limit - 3)


def test_regrowth_keeps_as_many_as_fit_if_the_exchanged_filters_differ_in_cost():
    rng = np.random.default_rng(6)
    for price in (1, 40):  # filters of `a` cost less or more than those of `b`
        scores = {"a": rng.uniform(0, 1, 60), "b": rng.uniform(0.5, 1.5, 60)}
        revival = {"a": rng.uniform(2, 3, 60), "b": rng.uniform(0, 1, 60)}

        def cost(masks, price=price):
            return price * masks["a"].sum() + 6 * masks["b"].sum()

        for limit in (100, 300, 301):
            settings = scores, revival, cost, limit, lambda n: int(0.5 * n), rng
            found = prune_and_regrow(*settings).masks
            more = prune_and_regrow(scores, revival, kept, kept(found) + 1, *settings[4:]).masks
            assert cost(found) <= limit < cost(more)


def test_events_are_evenly_spaced_and_end_in_time():
    assert event_epochs(10, 0.4) == [1, 2, 3, 4]
    assert event_epochs(10, 0.4, 2) == [2, 4]
    assert event_epochs(10, 0.5, 9) == [1, 2, 3, 4, 5]
    assert event_epochs(3, 0.0) == [1]
    with pytest.raises(InputError, match="epochs, of a method that prunes during training, 0"):
        event_epochs(0, 0.5)


def test_settings_out_of_range_are_refused(problem):
    with pytest.raises(InputError, match="did you mean derivative"):
        module.check_score("derivativ")
    with pytest.raises(InputError, match="growth 2"):
        criticality(KEY, problem, growth=2)
    with pytest.raises(InputError, match="cannot be reached"):
        hard = dataclasses.replace(problem, target=Target("params", 0.001))
        criticality_weights(KEY, hard)
