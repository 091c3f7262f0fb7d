"""SD-SNN against a plain loop over single weights, and under a budget."""

import dataclasses
import math
from itertools import pairwise

import jax
import numpy as np
import pytest
from conftest import busy, pruning_problem

from ccsrp_jax.data.splits import Split
from ccsrp_jax.networks import masks as masking
from ccsrp_jax.networks import zoo
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.pruning.budget import Target
from ccsrp_jax.pruning.methods import sdsnn as module
from ccsrp_jax.pruning.methods.dendritic_spines import (
    SpineState,
    constrain,
    initial_spines,
    regenerate,
    update_ranges,
)
from ccsrp_jax.pruning.methods.sdsnn import connections, sdsnn, select_by_budget
from ccsrp_jax.pruning.problem import Callbacks, Passes, kept
from ccsrp_jax.training.recipe import Recipe
from ccsrp_jax.training.trainer import TrainState
from ccsrp_jax.utils.errors import InputError

KEY = jax.random.key(0)
START = {"conv": 30.0, "dense": 40.0}  # percent: high enough to prune a few of few neurons


@pytest.fixture(scope="module")
def problem(digits):
    return pruning_problem(digits)


def with_epochs(problem, epochs, **changes):
    recipe = dataclasses.replace(problem.recipe, epochs=epochs)
    return dataclasses.replace(problem, recipe=recipe, **changes)


@pytest.fixture
def recorded(monkeypatch):
    """Replaces training by random steps; records weights and masks after every epoch."""
    seen = []

    def finetune(key, problem, variables, masks, *, adapt):
        random, state = np.random.default_rng(5), TrainState(variables, None)
        for done in range(1, problem.recipe.epochs + 1):
            params = {
                name: layer | {"kernel": trained(random, layer["kernel"])}
                if "kernel" in layer
                else layer
                for name, layer in state.variables["params"].items()
            }
            state, masks = adapt(done, TrainState(variables | {"params": params}, None), masks)
            seen.append((jax.device_get(state.variables["params"]), dict(masks)))
        return state.variables, masks

    monkeypatch.setattr(module, "finetune", finetune)
    return seen


def trained(random, kernel):
    """Steps that are correlated over epochs, so that magnitudes rise and fall for several."""
    steps = random.normal(0.02, 0.12, np.shape(kernel))
    return (np.asarray(kernel) * random.choice([0.9, 1.15]) + steps).astype(np.float32)


class Weight:
    """One weight with its range, as described in the paper."""

    def __init__(self, value, top):
        self.value, self.high, self.low, self.mask = value, top, -top, 1
        self.above = self.below = False
        self.n_high = self.n_low = self.n_fall = 0
        self.s_high = self.s_low = 0.0

    def range(self, new, spines):
        above, below = new >= self.high, new <= self.low
        if above and self.above:
            self.n_high, self.s_high = self.n_high + 1, self.s_high + new - self.high
        else:
            self.n_high, self.s_high = 0, 0.0
        if below and self.below:
            self.n_low, self.s_low = self.n_low + 1, self.s_low + new - self.low
        else:
            self.n_low, self.s_low = 0, 0.0
        self.above, self.below = above, below
        if self.n_high >= spines:
            self.high += self.s_high / spines
            self.n_high, self.s_high = 0, 0.0
        if self.n_low >= spines:
            self.low += self.s_low / spines
            self.n_low, self.s_low = 0, 0.0
        self.n_fall = self.n_fall + 1 if abs(new) < abs(self.value) else 0
        if self.n_fall >= spines:
            self.high, self.low, self.n_fall = 0.75 * self.high, 0.75 * self.low, 0
        self.value = new


class Layer:
    """A layer of single weights, by (window, in, out)."""

    def __init__(self, kernel):
        self.shape = (math.prod(kernel.shape[:-2]), *kernel.shape[-2:])
        self.conv = kernel.ndim == 4
        top = float(kernel.max())
        self.weights = {
            place: Weight(float(value), top)
            for place, value in np.ndenumerate(kernel.reshape(self.shape))
        }
        _, i, o = self.shape
        self.waits = {(a, b): 0 for a in range(i) for b in range(o)}
        self.was = dict.fromkeys(self.waits, False)
        self.history, self.rate = set(), START["conv" if self.conv else "dense"]

    def learn(self, kernel, done, spines, release):
        for place, value in np.ndenumerate(kernel.reshape(self.shape)):
            weight = self.weights[place]
            if self.conv and release:
                weight.value = float(value)
            else:
                weight.range(float(value), spines)
            if done > spines:
                weight.value = min(max(weight.value, weight.low), weight.high)

    def regrow(self, event, spines, release):
        percentile = min(99, (65 if self.conv else 60) + 1.1**event)
        unit = {k: [self.weights[w, *k] for w in range(self.shape[0])] for k in self.waits}
        sums = {k: sum(w.value for w in weights) for k, weights in unit.items()}
        if not release:
            sums = {k: abs(value) for k, value in sums.items()}
        level = np.percentile(list(sums.values()), percentile)
        for k, weights in unit.items():
            candidate = weights[0].mask == 0 and sums[k] > level
            self.waits[k] = self.waits[k] + 1 if candidate and self.was[k] else 0
            self.was[k] = candidate
            if self.waits[k] > spines:
                self.waits[k], self.was[k] = 0, False
                for weight in weights:
                    weight.mask = 1

    def alive(self):
        least = min(20 if self.conv else 50, self.shape[0] * self.shape[1])
        kept = [0] * self.shape[2]
        for (_, _, o), weight in self.weights.items():
            kept[o] += weight.mask
        return sum(n >= least for n in kept)

    def prune(self):
        width = {place: w.high + abs(w.low) for place, w in self.weights.items()}
        least, most = min(width.values()), max(width.values())
        importance = [0.0] * self.shape[2]
        for (w, i, o), weight in self.weights.items():
            scaled = 0.5 if most == least else (width[w, i, o] - least) / (most - least)
            importance[o] += weight.mask * scaled
        order = sorted(range(self.shape[2]), key=lambda o: importance[o])
        for o in order[: int(self.shape[2] * self.rate / 100)]:
            if o not in self.history:
                self.history.add(o)
                for (_, _, out), weight in self.weights.items():
                    weight.mask *= out != o

    def close(self):
        for weight in self.weights.values():
            weight.value *= weight.mask

    def array(self, what, shape):
        return np.array([getattr(w, what) for w in self.weights.values()]).reshape(shape)


def by_loop(problem, epochs, spines, last, release):
    """All of SD-SNN with the paper's rates, weight by weight; weights and masks by epoch."""
    random, kernels = np.random.default_rng(5), {}
    for name, layer in problem.variables["params"].items():
        if "kernel" in layer:
            kernels[name] = np.asarray(layer["kernel"])
    names = ["conv1", "conv2", "fc1"]
    layers = {name: Layer(kernels[name]) for name in names}
    for done in range(1, epochs + 1):
        kernels = {
            name: trained(random, kernels[name])
            for name in problem.variables["params"]
            if name in kernels
        }
        if done > last:
            continue
        event = done - 2 * spines - 1
        for name in names:
            layers[name].learn(kernels[name], done, spines, release)
            if event >= 0:
                layers[name].regrow(event, spines, release)
        if event >= 0:
            alive = [max(layers[name].alive(), 1) for name in names]
            for name, own, behind in zip(names, alive, [*alive[1:], None], strict=True):
                if name == "fc1":
                    share = own / layers[name].shape[2]
                    layers[name].rate += 0.5 * math.exp(-event) * 512 * share / 10
                else:
                    layers[name].rate += math.exp(-event / 5) * own / behind
                layers[name].prune()
        for name in names:
            layers[name].close()
            kernels[name] = layers[name].array("value", kernels[name].shape).astype(np.float32)
        shapes = {name: kernels[name].shape for name in names}
        yield (
            {name: kernels[name] for name in names},
            {name: layers[name].array("mask", shapes[name]) for name in names},
        )


@pytest.mark.parametrize("release", [False, True])
@pytest.mark.parametrize("spines", [1, 2])
def test_every_epoch_equals_a_loop_over_single_weights(
    digits, recorded, monkeypatch, spines, release
):
    monkeypatch.setattr(module, "START_RATE", START)
    architecture = zoo.plain((3, "A", 4), (4, 4, 1), 3, dense=(6,), time_steps=2)
    network = {"classifier": Classifier(architecture), "variables": busy(architecture, seed=1)}
    for name in ("train", "search"):
        images, labels = (part[:32] for part in getattr(digits, name))
        network[name] = Split(images[:, 2:6, 2:6], labels % 3)
    problem = with_epochs(pruning_problem(digits, **network), 16)
    found = sdsnn(KEY, problem, spines=spines, rates="paper", release=release)
    expected = list(by_loop(problem, 16, spines, 12, release))
    assert len(expected) == 12
    for (params, _), (kernels, _) in zip(recorded, expected, strict=False):
        for name, kernel in kernels.items():
            np.testing.assert_allclose(params[name]["kernel"], kernel, rtol=2e-5, atol=2e-5)
    for name, mask in expected[-1][1].items():
        np.testing.assert_array_equal(found.masks[masking.kernel(name)], mask)
        np.testing.assert_array_equal(found.masks[name], mask.any((*range(mask.ndim - 1),)))
        assert 0 < mask.mean() < 1  # some weights were pruned
    partly = [mask.reshape(-1, mask.shape[-1]).mean(0) for mask in expected[-1][1].values()]
    partly = np.concatenate(partly)
    assert spines > 1 or ((partly > 0) & (partly < 1)).any()  # regenerated kernels
    assert all(np.all(mask == 1) for _, masks in recorded[:11] for mask in masks.values())
    for _, masks in recorded[12:]:  # fixed masks
        for name, mask in masks.items():
            np.testing.assert_array_equal(mask, found.masks[name])


def test_ranges_shrink_by_a_quarter_after_s_decreases_and_grow_by_the_mean_excess():
    layer = initial_spines(np.array([[1.0], [-0.5], [0.8]], np.float32))
    np.testing.assert_array_equal(layer.reach, 1)
    for factor in (0.9, 0.8, 0.7):
        weights = np.array([[1.3], [-0.5 * factor], [0.8]], np.float32)
        layer = update_ranges(layer, weights, 3)._replace(weights=weights)
    np.testing.assert_allclose(layer.reach[:, :, 0], [[1, 0.75, 1], [1, 0.75, 1]])
    layer = update_ranges(layer, weights, 3)  # beyond for the fourth time, so the third in a row
    np.testing.assert_allclose(layer.reach[:, :, 0], [[1.3, 0.75, 1], [1, 0.75, 1]], rtol=1e-6)
    outside = np.array([[1.5], [-0.9], [0.7]], np.float32)
    clipped = constrain(layer, outside)
    np.testing.assert_allclose(clipped, [[1.3], [-0.75], [0.7]], rtol=1e-6)


def test_a_masked_kernel_is_regenerated_after_more_than_s_epochs_in_a_row():
    random = np.random.default_rng(0)
    weights = random.normal(size=(3, 3, 4, 5)).astype(np.float32)
    weights[..., 3] = 0.0
    weights[..., 2, 3], weights[..., 1, 3] = 2.0, -2.0
    layer = initial_spines(weights)
    layer.mask[..., 3] = 0
    epochs, signed = [], layer
    for _ in range(4):
        layer = regenerate(layer, weights, 80, 2)
        signed = regenerate(signed, weights, 80, 2, signed=True)
        epochs.append(layer.mask[..., 3].sum())
    assert epochs == [0, 0, 0, 18]  # the first does not count, and three do
    assert signed.mask[..., 3].sum() == 9 and np.all(signed.mask[..., 2, 3] == 1)


def test_a_budget_prunes_by_importance_at_the_layers_rates_and_revived_neurons_last():
    pruned = {"a": np.array([1, 1, 0, 0], bool), "b": np.zeros(4, bool)}
    alive = {"a": np.array([0, 1, 1, 1], bool), "b": np.ones(4, bool)}
    scores = {"a": np.array([0.0, 0.1, 3, 2]), "b": np.array([4.0, 1, 2, 3])}
    spine_state = SpineState({}, pruned, {})
    taken = []
    for limit in range(7, 1, -1):
        gone = select_by_budget(spine_state, scores, alive, {"a": 1.0, "b": 1.0}, kept, limit)
        taken.append({name + str(i) for name in gone for i in np.flatnonzero(gone[name])})
    new = [sorted(late - early) for early, late in pairwise(taken)]
    assert taken[0] == set() and new == [["b1"], ["a3"], ["b2"], ["a2"], ["b3"]]
    gone = select_by_budget(spine_state, scores, alive, {"a": 1.0, "b": 4.0}, kept, 4)
    assert gone["b"].tolist() == [False, True, True, True]


@pytest.mark.parametrize(
    "target", [Target("macs", 0.5), Target("params", 0.4), Target("synops", 0.6)], ids=str
)
def test_the_target_is_met_to_within_one_filter(problem, recorded, target):
    problem = with_epochs(problem, 8, target=target)
    found = sdsnn(KEY, problem)
    cost = problem.cost()
    assert cost(found.masks) <= problem.limit() and found.search == Passes()
    masking.check(problem.architecture, found.masks)
    back = []  # costs with one filter restored; one of these masks was the previous step
    for name in masking.ones(problem.architecture):
        for place in np.flatnonzero(np.asarray(found.masks[name]) == 0):
            weights = found.masks[masking.kernel(name)].copy()
            weights[..., place] = 1
            mask = found.masks[name].copy()
            mask[place] = 1
            again = found.masks | {name: mask, masking.kernel(name): weights}
            back.append(cost(again))
    assert max(back) > problem.limit()


def test_connections_are_counted_in_the_layers_that_own_the_weights(problem, recorded):
    masks = dict(masking.ones(problem.architecture))
    assert connections(problem, masks) == 0
    masks["conv2"] = np.r_[np.zeros(3), np.ones(9)].astype(np.float32)
    weights = np.ones((192, 10), np.float32)
    weights[:96] = 0
    masks["fc1/kernel"] = weights
    total = 9 * 8 + 9 * 8 * 12 + 192 * 10
    assert connections(problem, masks) == pytest.approx((9 * 8 * 3 + 960) / total)
    problem = with_epochs(problem, 8)
    found = sdsnn(KEY, problem, measure="connections")
    assert 0.5 <= connections(problem, found.masks) <= 0.5 + 192 / total
    dense, conv = (1 - found.masks[name].mean() for name in ("fc1", "conv2"))
    assert dense > 3 * conv  # the paper's rates


def test_it_trains_and_prunes_a_network_in_the_recipes_epochs(problem):
    epochs = []
    problem = dataclasses.replace(problem, callbacks=Callbacks(on_epoch=epochs.append))
    found = sdsnn(KEY, problem)
    assert len(epochs) == problem.recipe.epochs
    assert problem.cost()(found.masks) <= problem.limit()
    again = sdsnn(KEY, problem)
    for name, mask in found.masks.items():
        np.testing.assert_array_equal(mask, again.masks[name])
    for name in ("conv1", "conv2", "fc1"):
        kernel, mask = found.variables["params"][name]["kernel"], found.masks[f"{name}/kernel"]
        assert np.isfinite(kernel).all() and np.abs(kernel)[mask == 1].min() > 0


def test_settings_that_cannot_be_used_are_refused(problem):
    with pytest.raises(InputError, match="spines 0"):
        sdsnn(KEY, problem, spines=0)
    with pytest.raises(InputError, match="epochs of sdsnn"):
        sdsnn(KEY, dataclasses.replace(problem, recipe=Recipe(epochs=0)))
