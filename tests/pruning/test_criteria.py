"""Criteria against numpy, and allocations of a budget over layers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import busy, pruning_problem, tiny

from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.data.splits import Split, to_unit_range
from ccsrp_jax.networks import masks as masking
from ccsrp_jax.networks.architecture import groups
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.interval_bounds import ball, propagate
from ccsrp_jax.networks.spiking_network import SpikingNetwork
from ccsrp_jax.pruning import criteria
from ccsrp_jax.pruning.budget import Target
from ccsrp_jax.pruning.criteria import by_score, magnitude
from ccsrp_jax.pruning.problem import Callbacks, Passes, epochs_per_round
from ccsrp_jax.utils.errors import InputError

KEY = jax.random.key(2)
ALLOCATIONS = ("uniform", "global", "sensitivity")


@pytest.fixture(scope="module")
def problem(digits):
    return pruning_problem(digits)


@pytest.fixture(scope="module")
def residual(digits):
    architecture = tiny("resnet8")
    network = {"classifier": Classifier(architecture), "variables": busy(architecture, seed=1)}
    return pruning_problem(digits, **network)


@pytest.fixture
def trained(monkeypatch):
    """Replaces training by random new weights; records the masks of every training."""
    seen = []

    def finetune(key, problem, variables, masks, *, epochs=None):
        seen.append((epochs, {name: np.asarray(mask) for name, mask in masks.items()}))
        return busy(problem.architecture, seed=len(seen)), masks

    monkeypatch.setattr(criteria, "finetune", finetune)
    return seen


@pytest.fixture
def darkened(monkeypatch):
    """Replaces the attack by images of 0.9 times the brightness."""
    monkeypatch.setattr(PGD, "__call__", lambda self, f, params, x, y, key: 0.9 * x)


@pytest.fixture
def equal(monkeypatch):
    """Replaces sensitivity by 1 for all layers, without passes."""
    felt = lambda key, problem, *network: (dict.fromkeys(groups(problem.architecture), 1), Passes())  # noqa: E731
    monkeypatch.setattr(criteria, "sensitivity", felt)


def whole(problem):
    return masking.ones(problem.architecture)


def loss(problem, variables, masks, images, labels):
    logits = problem.classifier((variables, masks), images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def fixed(key, problem, variables, masks):
    """Scores that do not depend on the weights."""
    random = np.random.default_rng(7)
    scores = {name: random.uniform(size=n) for name, n in groups(problem.architecture).items()}
    scores["conv1"] += 0.4
    return scores, Passes(3, 2)


# ---- scores


def test_l1_is_the_mean_absolute_weight_over_all_layers_of_the_group(problem, residual):
    scores, passes = criteria.l1(KEY, problem, problem.variables, whole(problem))
    params = jax.device_get(problem.variables["params"])
    assert list(scores) == ["conv1", "conv2", "fc1"] and passes == Passes()
    for name, found in scores.items():
        kernel = params[name]["kernel"]
        expected = [np.mean(np.abs(kernel[..., i])) for i in range(kernel.shape[-1])]
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    scores, _ = criteria.l1(KEY, residual, residual.variables, whole(residual))
    params = jax.device_get(residual.variables["params"])
    assert scores.keys() == groups(residual.architecture).keys()
    for group, layers in (
        ("stem", ("stem", "stage1.block1.conv2")),
        ("stage2.block1.conv2", ("stage2.block1.conv2", "stage2.block1.shortcut")),
        ("stage3.block1.conv1", ("stage3.block1.conv1",)),
    ):
        means = [np.abs(params[layer]["kernel"]).mean((0, 1, 2)) for layer in layers]
        np.testing.assert_allclose(scores[group], sum(means) / len(means), rtol=1e-5)


def test_gamma_is_the_scale_of_batch_norm_and_1_without_one(problem, residual):
    variables = jax.tree.map(lambda x: -x, problem.variables)
    scores, passes = criteria.gamma(KEY, problem, variables, whole(problem))
    assert passes == Passes()
    for group, norm in (("conv1", "norm1"), ("conv2", "norm2")):
        expected = np.abs(np.asarray(variables["params"][norm]["scale"]))
        np.testing.assert_allclose(scores[group], expected, rtol=1e-6)
    np.testing.assert_array_equal(scores["fc1"], np.ones(10))
    scores, _ = criteria.gamma(KEY, residual, residual.variables, whole(residual))
    scale = lambda name: np.asarray(residual.variables["params"][name]["scale"])  # noqa: E731
    both = scale("stage3.block1.conv2.norm") + scale("stage3.block1.shortcut.norm")
    np.testing.assert_allclose(scores["stage3.block1.conv2"], both / 2, rtol=1e-6)


def test_spike_rates_are_means_of_the_activity_in_batches_of_any_size(problem):
    masks = masking.random(jax.random.key(1), problem.architecture, 0.7)
    look = jax.jit(lambda x: SpikingNetwork(problem.architecture).apply(*x, activity=True))
    images = to_unit_range(jnp.asarray(problem.search.images))
    _, active = look((problem.variables, images, masks))
    uneven = dataclasses.replace(problem, batch_size=12)  # 11, 11, and 10 with padding
    scores, passes = criteria.spike_rate(KEY, uneven, problem.variables, masks)
    assert passes == Passes(forward=32)
    for group, node in (("conv1", "lif1"), ("conv2", "lif2"), ("fc1", "fc1.lif")):
        spikes = np.asarray(active.spikes[node], np.float64)
        expected = spikes.mean(tuple(range(spikes.ndim - 1)))
        np.testing.assert_allclose(scores[group], expected, rtol=1e-5, atol=1e-7)
        assert group == "fc1" or np.ptp(expected) > 0.05


def test_stability_is_minus_the_share_of_undecided_neurons(problem):
    masks = masking.random(jax.random.key(1), problem.architecture, 0.7)
    images = to_unit_range(jnp.asarray(problem.search.images))
    eps = problem.attack.eps
    found = jax.jit(lambda x: propagate(problem.architecture, problem.variables, x, masks))(
        ball(images, eps)
    )
    uneven = dataclasses.replace(problem, batch_size=12)  # 11, 11, and 10 with padding
    scores, passes = criteria.stability(KEY, uneven, problem.variables, masks)
    assert passes == Passes(forward=64)
    for group, node in (("conv1", "lif1"), ("conv2", "lif2"), ("fc1", "fc1.lif")):
        low, high = (np.asarray(end, np.float64) for end in found.values[node])
        expected = -(low < high).mean(tuple(range(low.ndim - 1)))
        np.testing.assert_allclose(scores[group], expected, rtol=1e-5, atol=1e-7)
        assert np.ptp(expected) > 0.05
    attack = PGD(0.5, 2, norm="l2")
    with pytest.raises(InputError, match="stability is measured in an L-infinity ball"):
        criteria.stability(KEY, dataclasses.replace(problem, attack=attack), {}, {})


def test_taylor_sums_squared_gradients_of_each_image(problem, darkened):
    few = dataclasses.replace(
        problem, search=Split(*(part[:10] for part in problem.search)), batch_size=4
    )
    masks = masking.random(jax.random.key(1), problem.architecture, 0.8)
    scores, passes = criteria.taylor(KEY, few, problem.variables, masks)
    each = 2 + few.attack.gradients  # the image, its attacked version, and the attack's gradients
    assert passes == Passes(10 * each, 10 * each)
    gradients = jax.jit(jax.grad(lambda m, x, y: loss(few, few.variables, m, x, y)))
    total = {name: 0.0 for name in masks}
    for image, label in zip(*few.search, strict=True):
        image = to_unit_range(jnp.asarray(image[None]))
        for version in (image, 0.9 * image):
            for name, gradient in gradients(masks, version, jnp.asarray(label[None])).items():
                total[name] = total[name] + np.asarray(gradient, np.float64) ** 2
    for name, expected in total.items():
        np.testing.assert_allclose(scores[name], expected, rtol=1e-3, atol=1e-4 * expected.max())


# ---- allocation


def test_sensitivity_is_the_increase_of_the_attacked_loss_along_its_gradient(problem, darkened):
    images = 0.9 * to_unit_range(jnp.asarray(problem.search.images))
    labels, masks = jnp.asarray(problem.search.labels), whole(problem)

    def on_images(params):
        return loss(problem, problem.variables | {"params": params}, masks, images, labels)

    params, value = problem.variables["params"], jax.jit(on_images)
    gradients, base, rises = jax.jit(jax.grad(on_images))(params), value(params), {}
    for name in masks:
        weights, gradient = (np.asarray(tree[name]["kernel"]) for tree in (params, gradients))
        step = 0.05 * np.sqrt((weights**2).sum() / (gradient**2).sum()) * gradient
        rises[name] = float(value(params | {name: params[name] | {"kernel": weights + step}}))
        rises[name] -= float(base)
    mean = np.mean([max(rise, 0) for rise in rises.values()])
    found, passes = criteria.sensitivity(KEY, problem, problem.variables, masks)
    for name, rise in rises.items():
        assert found[name] == pytest.approx(min(max(rise / mean, 0.25), 4), rel=1e-3)
    assert len(set(found.values())) > 1
    both = 32 * (problem.attack.gradients + 1)
    assert passes == Passes(both + 3 * 32, both)


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("target", (Target("macs", 0.5), Target("params", 0.3)), ids=str)
def test_the_target_is_met_to_within_one_filter_in_the_order_of_scores(
    problem, trained, equal, allocation, target
):
    problem = dataclasses.replace(problem, target=target)
    found = by_score(KEY, problem, criterion=fixed, allocation=allocation)
    cost, (scores, _) = problem.cost(), fixed(KEY, problem, None, None)
    masking.check(problem.architecture, found.masks)
    assert found.search == Passes(3, 2)
    assert cost(found.masks) <= problem.limit()
    gone, kept, back = [], [], []
    for name, mask in found.masks.items():
        values, mask = scores[name], np.asarray(mask)
        assert values[mask == 1].min() > values[mask == 0].max(initial=-1)
        gone += [values[mask == 0]]
        kept += [values[mask == 1]]
        if (mask == 0).any():
            last = np.where(mask == 0, values, -1).argmax()  # of this group's removed filters
            back.append(cost(found.masks | {name: mask + (np.arange(len(mask)) == last)}))
    assert max(back) > problem.limit()
    lost = [1 - np.mean(np.asarray(mask)) for mask in found.masks.values()]
    if allocation == "global":
        assert np.concatenate(gone).max() < np.concatenate(kept).min()
        assert max(lost) > min(lost) + 0.2
    else:
        assert max(lost) - min(lost) <= 1 / 8 + 1e-6  # one filter of the smallest group


def test_a_sensitive_layer_keeps_more_filters(problem, trained, monkeypatch):
    kept = {}
    for sensitive in ("conv1", "conv2"):
        felt = {name: 2.0 if name == sensitive else 0.5 for name in groups(problem.architecture)}
        monkeypatch.setattr(criteria, "sensitivity", lambda *_, felt=felt: (felt, Passes(5, 4)))
        found = by_score(KEY, problem, criterion=fixed, allocation="sensitivity")
        assert found.search == Passes(8, 6)
        assert problem.cost()(found.masks) <= problem.limit()
        kept[sensitive] = {name: np.mean(np.asarray(mask)) for name, mask in found.masks.items()}
    for name, other in (("conv1", "conv2"), ("conv2", "conv1")):
        assert kept[name][name] > kept[name][other] + 0.25
        assert kept[name][name] > kept[other][name]
    lost = {name: 1 - share for name, share in kept["conv1"].items()}
    assert lost["conv2"] == pytest.approx(4 * lost["conv1"], abs=4 / 8)


# ---- rounds


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("measure", ("macs", "synops"))
def test_filters_removed_in_an_earlier_round_are_not_restored(
    problem, trained, equal, allocation, measure
):
    """Although scores and weights are random in every round."""
    problem = dataclasses.replace(problem, target=Target(measure, 0.4))
    found = by_score(KEY, problem, criterion=criteria.at_random, allocation=allocation, rounds=3)
    (_, first), (_, second), (_, third) = trained
    for earlier, later in ((first, second), (second, third)):
        assert all((later[name] <= earlier[name]).all() for name in earlier)
    for name, mask in found.masks.items():
        np.testing.assert_array_equal(mask, third[name])
    if measure == "macs":
        costs = [problem.cost()(masks) for masks in (first, second, third)]
        limits = [problem.limit(share) for share in (1 / 3, 2 / 3, 1)]
        assert limits[2] < limits[1] < limits[0]
        assert all(limit * 0.8 < cost <= limit for cost, limit in zip(costs, limits, strict=True))


def test_filters_are_not_restored_if_training_reduces_synops(problem, monkeypatch):
    problem, seen = dataclasses.replace(problem, target=Target("synops", 0.5)), []

    def finetune(key, problem, variables, masks, *, epochs=None):
        seen.append(masks)
        return jax.tree.map(lambda x: 0.5 * x, variables), masks  # almost no spikes

    monkeypatch.setattr(criteria, "finetune", finetune)
    by_score(KEY, problem, criterion=criteria.l1, rounds=2)
    first, second = seen
    assert sum(mask.sum() for mask in first.values()) < 30
    for name, mask in first.items():
        np.testing.assert_array_equal(second[name], mask)


@pytest.mark.parametrize("allocation", ("uniform", "sensitivity"))
def test_rounds_change_which_filters_are_removed_but_not_how_many(
    problem, trained, monkeypatch, allocation
):
    felt = {"conv1": 2.0, "conv2": 0.5, "fc1": 0.5}
    monkeypatch.setattr(criteria, "sensitivity", lambda *_: (felt, Passes()))
    at_once, in_rounds = (
        by_score(KEY, problem, criterion=criteria.at_random, allocation=allocation, rounds=rounds)
        for rounds in (1, 4)
    )
    for name, mask in at_once.masks.items():
        assert mask.sum() == in_rounds.masks[name].sum()


def test_epochs_are_divided_among_rounds():
    for given, expected in (
        ((10, 1), [10]),
        ((0, 1), [0]),
        ((10, 3), [3, 3, 4]),
        ((10, 3, 1), [1, 1, 8]),
        ((4, 4), [1, 1, 1, 1]),
        ((5, 2, 4), [4, 1]),
    ):
        assert epochs_per_round(*given) == expected
    for given in ((3, 4), (10, 0), (10, -1), (10, 3, 5), (10, 2, 0), (4, 2, 4)):
        with pytest.raises(InputError, match="rounds of pruning share"):
            epochs_per_round(*given)


def test_every_round_trains_its_share_of_the_recipe(problem):
    epochs = []
    problem = dataclasses.replace(problem, callbacks=Callbacks(on_epoch=epochs.append))
    found = by_score(KEY, problem, criterion=criteria.l1, rounds=2, early=1)
    assert [epoch.epoch for epoch in epochs] == [0, 0, 1, 2]
    assert problem.cost()(found.masks) <= problem.limit()
    for name, mask in found.masks.items():  # removed filters have no gradient after round 2
        kernels = (each["params"][name]["kernel"] for each in (found.variables, problem.variables))
        moved = np.abs(np.subtract(*kernels)).reshape(-1, len(mask)).max(0)
        assert moved[np.asarray(mask) == 1].min() > 0


# ---- single weights


@pytest.mark.parametrize("rounds", (1, 2))
def test_magnitude_keeps_the_largest_weights_of_all_layers(problem, trained, rounds):
    found = magnitude(KEY, problem, rounds=rounds)
    assert list(found.masks) == ["conv1/kernel", "conv2/kernel", "fc1/kernel"]
    assert found.search == Passes()
    limit = problem.limit(measure="params")
    assert limit - 1 < problem.cost("params")(found.masks) <= limit
    params = problem.variables["params"]
    if rounds == 2:  # the second ranks the weights that the first trained
        (epochs, first), (_, second) = trained
        assert epochs == 2 and all((second[name] <= first[name]).all() for name in first)
        early = problem.limit(1 / 2, "params")
        assert early - 1 < problem.cost("params")(first) <= early
        params = busy(problem.architecture, seed=1)["params"]
    else:
        first = {name: np.ones_like(mask) for name, mask in found.masks.items()}
    values, masks, had = (
        np.concatenate([np.ravel(each) for each in parts])
        for parts in (
            [np.abs(params[name.removesuffix("/kernel")]["kernel"]) for name in found.masks],
            found.masks.values(),
            [first[name] for name in found.masks],
        )
    )
    assert values[masks == 1].min() > values[(masks == 0) & (had == 1)].max()
