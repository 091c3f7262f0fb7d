"""SCA: activity and gradients of channels, and the limit of each event."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import pruning_problem

from ccsrp_jax.data.splits import to_unit_range
from ccsrp_jax.networks.spiking_network import SpikingNetwork
from ccsrp_jax.pruning.methods import sca as module
from ccsrp_jax.pruning.methods.sca import activity_and_gradients, sca
from ccsrp_jax.pruning.problem import Passes, kept
from ccsrp_jax.training.trainer import TrainState

KEY = jax.random.key(4)
NODES = {"conv1": "lif1", "conv2": "lif2", "fc1": "fc1.lif"}
PRUNED = {"conv1": [1, 5], "conv2": [0, 7, 8], "fc1": [2, 3, 9]}


@pytest.fixture(scope="module")
def problem(digits):
    problem = pruning_problem(digits, batch_size=24)  # two batches of 16
    params = problem.variables["params"]
    louder = {
        **params["fc1"],
        "bias": params["fc1"]["bias"] + 1.2,
    }  # without this it would be silent
    variables = {**problem.variables, "params": {**params, "fc1": louder}}
    return dataclasses.replace(problem, variables=variables)


@pytest.fixture(scope="module")
def masks(problem):
    whole = {"conv1": np.ones(8), "conv2": np.ones(12), "fc1": np.ones(10)}
    for name, places in PRUNED.items():
        whole[name][places] = 0
    return {name: mask.astype(np.float32) for name, mask in whole.items()}


@pytest.fixture(scope="module")
def measured(problem, masks):
    return activity_and_gradients(KEY, problem, problem.variables, masks)


def test_activity_is_the_mean_of_spikes_and_absolute_potentials(problem, masks, measured):
    network, images = (
        SpikingNetwork(problem.architecture),
        jnp.asarray(to_unit_range(problem.search.images)),
    )
    run = jax.jit(lambda v, x: network.apply(v, x, masks, activity=True)[1])
    active = run(problem.variables, images)
    for group, node in NODES.items():
        each = np.asarray(active.spikes[node]) + np.abs(active.potentials[node])
        expected = masks[group] * each.reshape(-1, each.shape[-1]).mean(0)
        np.testing.assert_allclose(measured[0][group], expected, rtol=1e-4)
        assert (measured[0][group][PRUNED[group]] == 0).all()
    assert measured[2] == Passes(32, 32)


def test_gradients_are_those_of_the_loss_for_gates_of_pruned_channels(problem, masks, measured):
    images, labels = jnp.asarray(to_unit_range(problem.search.images)), problem.search.labels

    @jax.jit
    def loss(gate):
        network = problem.variables, masks | {"fc1": gate}
        logits = problem.classifier(network, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    # nothing but the classifier reads fc1, so that its gates' loss is smooth
    step = 1e-2 * np.eye(10, dtype=np.float32)
    gradients = [(loss(masks["fc1"] + s) - loss(masks["fc1"] - s)) / 2e-2 for s in step]
    np.testing.assert_allclose(measured[1]["fc1"], gradients, atol=2e-4)
    assert np.abs(measured[1]["fc1"][PRUNED["fc1"]]).max() > 1e-3


def test_each_event_keeps_the_most_active_and_regrows_the_largest_gradients(problem, monkeypatch):
    record = []

    def untouched(key, _, variables, masks, *, adapt):
        state = TrainState(variables, None)
        for done in range(1, 5):
            before = masks
            state, masks = adapt(done, state, masks)
            record.append((before, masks))
        return variables, masks

    monkeypatch.setattr(module, "finetune", untouched)
    found = sca(KEY, problem, regrow=0.1, events=None, share=0.5)
    assert found.search == Passes(2 * 32, 2 * 32)
    assert record[1][1] is record[3][1]  # the last event is after half of the epochs
    cost = problem.cost()
    for share, (before, after) in zip((0.5, 1.0), record[:2], strict=True):
        activity, gradients, _ = activity_and_gradients(KEY, problem, problem.variables, before)
        limit, swaps = problem.limit(share), 3
        assert cost(after) <= limit
        top = {name: int(np.argmax(values)) for name, values in activity.items()}
        filters = sorted(
            ((i == top[name], value, name, i) for name in top for i, value in
             enumerate(activity[name])),
            reverse=True,
        )  # fmt: skip
        stay = {each[2:] for each in filters[: kept(after) - swaps]}
        steep = sorted(
            (each[2:] for each in filters if each[2:] not in stay),
            key=lambda each: -abs(gradients[each[0]][each[1]]),
        )
        expected = stay | set(steep[:swaps])
        assert expected == {(n, int(i)) for n in after for i in np.flatnonzero(after[n])}
        one_more = {name: np.array(mask) for name, mask in after.items()}
        name, i = filters[kept(after) - swaps][2:]
        name, i = (name, i) if (name, i) not in expected else steep[swaps]
        one_more[name][i] = 1
        assert cost(one_more) > limit


def test_the_target_is_met_and_training_continues_after_the_last_event(problem):
    found = sca(KEY, problem)
    assert problem.cost()(found.masks) <= problem.limit()
    assert found.search == Passes(2 * 32, 2 * 32)  # share 0.6 of 4 epochs: two events
    before, after = (v["params"]["conv2"]["kernel"] for v in (problem.variables, found.variables))
    assert not np.array_equal(before, after)
