"""Cyclical pruning: the cubic schedule in every cycle, and removed weights that come back."""

import dataclasses
from itertools import pairwise

import jax
import numpy as np
import pytest
from conftest import pruning_problem

from ccsrp_jax.pruning.budget import Target
from ccsrp_jax.pruning.methods import cyclical as module
from ccsrp_jax.pruning.methods.cyclical import cyclical, density
from ccsrp_jax.pruning.problem import Callbacks, epochs_per_round
from ccsrp_jax.training.trainer import TrainState
from ccsrp_jax.utils.errors import InputError

KEY = jax.random.key(7)
NAMES = ("conv1", "conv2", "fc1")


def lasting(problem, epochs):
    recipe = dataclasses.replace(problem.recipe, epochs=epochs)
    return dataclasses.replace(problem, recipe=recipe)


def kernels(variables):
    return {name: np.array(variables["params"][name]["kernel"]) for name in NAMES}


def retrained(monkeypatch):
    """Replaces training: all kernels, masked or not, are new after every epoch; each cycle is
    recorded as its first variables and the kernels and masks of its epochs, before the first too.
    """
    cycles = []

    def finetune(key, problem, variables, masks, *, epochs=None, adapt=None):
        rng = np.random.default_rng(len(cycles))
        cycles.append([(kernels(variables), masks)])
        for done in range(1, epochs + 1):
            variables = jax.tree.map(lambda p: rng.normal(size=p.shape).astype(p.dtype), variables)
            now = kernels(variables)
            state, masks = adapt(done, TrainState(variables, None), masks)
            variables = state.variables
            cycles[-1].append((now, masks))
        return variables, masks

    monkeypatch.setattr(module, "finetune", finetune)
    return cycles


def alive(masks):
    return {name: np.asarray(masks[f"{name}/kernel"]) > 0 for name in NAMES}


def test_the_schedule_is_cubic():
    found = [density(done, 4, 0.1) for done in range(6)]
    expected = [1, 0.1 + 0.9 * 27 / 64, 0.1 + 0.9 / 8, 0.1 + 0.9 / 64, 0.1, 0.1]
    assert found == pytest.approx(expected)
    assert density(0, 0, 0.3) == 0.3


def test_each_cycle_prunes_the_smallest_weights_down_to_the_target(digits, monkeypatch):
    cycles = retrained(monkeypatch)
    problem = lasting(pruning_problem(digits, target=Target("macs", 0.25)), 15)
    found = cyclical(KEY, problem, cycles=3, frozen=0.2)
    cost = problem.cost("params")
    assert [len(cycle) for cycle in cycles] == [6, 6, 6]
    for cycle in cycles:
        assert all(mask.all() for mask in alive(cycle[0][1]).values())
        for done in range(1, 5):
            (_, before), (now, after) = cycle[done - 1 : done + 1]
            left = {name: np.abs(now[name])[bits] for name, bits in alive(before).items()}
            left = np.sort(np.concatenate(list(left.values())))
            limit = (0.25 + 0.75 * (1 - done / 4) ** 3) * cost({})
            least = left[int(np.ceil(cost(before) - limit))]
            for name, bits in alive(after).items():
                expected = alive(before)[name] & (np.abs(now[name]) >= least)
                np.testing.assert_array_equal(bits, expected)
        for name, bits in alive(cycle[5][1]).items():  # the last epoch keeps the masks
            np.testing.assert_array_equal(bits, alive(cycle[4][1])[name])
    last = cycles[-1][5]
    for name in NAMES:
        np.testing.assert_array_equal(found.masks[f"{name}/kernel"], last[1][f"{name}/kernel"])
        np.testing.assert_array_equal(kernels(found.variables)[name], last[0][name])
    assert problem.limit(measure="params") - 1 < cost(found.masks)
    assert cost(found.masks) <= problem.limit(measure="params")


def test_removed_weights_are_restored_with_their_former_values(digits, monkeypatch):
    cycles = retrained(monkeypatch)
    problem = lasting(pruning_problem(digits), 8)
    cyclical(KEY, problem, cycles=2)
    first, start = cycles[0], cycles[1][0][0]
    for name in NAMES:
        expected = first[-1][0][name].copy()
        for (_, before), (now, after) in pairwise(first):
            goes = alive(before)[name] & ~alive(after)[name]
            expected[goes] = now[name][goes]
        assert not alive(first[-1][1])[name].all()
        np.testing.assert_array_equal(start[name], expected)


def test_cycles_fit_the_epochs(digits, monkeypatch):
    cycles = retrained(monkeypatch)
    problem = pruning_problem(digits)
    for epochs, expected in ((20, 3), (6, 3), (5, 2), (3, 1), (1, 1), (0, 1)):
        cycles.clear()
        found = cyclical(KEY, lasting(problem, epochs))
        assert [len(cycle) - 1 for cycle in cycles] == epochs_per_round(epochs, expected)
        assert problem.cost("params")(found.masks) <= problem.limit(measure="params")
        if epochs:  # its last epoch trains with fixed masks
            for name, bits in alive(cycles[-1][-2][1]).items():
                np.testing.assert_array_equal(bits, alive(found.masks)[name])
    with pytest.raises(InputError, match="rounds"):
        cyclical(KEY, problem, cycles=5)


def test_the_learning_rate_restarts_with_every_cycle(digits):
    epochs = []
    problem = pruning_problem(digits, callbacks=Callbacks(on_epoch=epochs.append))
    found = cyclical(KEY, problem, cycles=2)
    rates = [epoch.learning_rate for epoch in epochs]
    assert len(rates) == 4 and rates[0] > rates[1]
    assert rates[2:] == rates[:2]
    assert problem.cost("params")(found.masks) <= problem.limit(measure="params")
