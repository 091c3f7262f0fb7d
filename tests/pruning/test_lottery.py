"""Lottery tickets: global magnitude pruning with rewinding; u-Tickets: balanced workload."""

import jax
import numpy as np
import pytest
from conftest import pruning_problem

from ccsrp_jax.networks import masks
from ccsrp_jax.pruning.budget import Target
from ccsrp_jax.pruning.methods import lottery as tickets
from ccsrp_jax.pruning.methods.lottery import balance, lottery, u_ticket, utilization
from ccsrp_jax.pruning.problem import Callbacks, Passes
from ccsrp_jax.training.recipe import Recipe
from ccsrp_jax.utils.errors import InputError

KEY = jax.random.key(5)


def work(mask, grouping, n_pe):
    """By group, the part of the mask of each element."""
    *_, inputs, outputs = mask.shape
    if grouping == "sata":
        filters = [mask[..., f] for f in range(outputs)]
        return [filters[i : i + n_pe] for i in range(0, outputs, n_pe)]
    return [
        [mask[..., i, f] for i in np.array_split(np.arange(inputs), min(n_pe, inputs))]
        for f in range(outputs)
    ]


def retrained(monkeypatch):
    """Replaces training by random new kernels at every call; records the calls."""
    calls = []

    def finetune(key, problem, variables, masks, *, epochs=None, adapt=None):
        rng = np.random.default_rng(len(calls))
        trained = jax.tree.map(lambda p: rng.normal(size=p.shape).astype(p.dtype), variables)
        calls.append({"from": variables, "masks": masks, "epochs": epochs, "trained": trained})
        return trained, masks

    monkeypatch.setattr(tickets, "finetune", finetune)
    return calls


def test_utilization_of_known_loads():
    def of(*loads):
        mask = np.zeros((3, 3, 4, len(loads)))
        for f, load in enumerate(loads):
            mask[..., f].flat[:load] = 1
        return utilization(mask, n_pe=len(loads))

    assert of(7, 7, 7) == pytest.approx(1)
    assert of(0, 9, 0, 0) == pytest.approx(0)
    assert of(3, 1) == pytest.approx(1 / 3)
    assert of(4, 2, 3) == pytest.approx(1 - 1 / 4 * 3 / 2)
    assert of(0, 0) == of(5) == 1  # no work, or one element


@pytest.mark.parametrize("n_pe", (4, 16))
@pytest.mark.parametrize("grouping", ("sata", "systolic"))
def test_utilization_and_balance_agree_with_explicit_counts(grouping, n_pe):
    rng = np.random.default_rng(0)
    before = (rng.random((3, 3, 32, 36)) < rng.random((32, 36)) ** 2).astype(np.float32)
    draws = [rng.random(before.shape).astype(np.float32) for _ in range(2)]
    after = balance(before, draws[0], grouping=grouping, n_pe=n_pe)
    use = []
    for group, evened in zip(*(work(m, grouping, n_pe) for m in (before, after)), strict=True):
        loads = np.array([part.sum() for part in group])
        n, mean = len(loads), loads.mean()
        use.append(1 - (loads.max() - mean) / loads.max() * n / (n - 1))
        for part, new in zip(group, evened, strict=True):
            assert new.sum() == np.ceil(mean)
            come, go = ((new > part).sum(), (part > new).sum())
            assert come == 0 or go == 0
    assert utilization(before, grouping=grouping, n_pe=n_pe) == pytest.approx(np.mean(use))
    assert np.mean(use) < 0.9
    assert utilization(after, grouping=grouping, n_pe=n_pe) == 1
    assert (balance(before, draws[1], grouping=grouping, n_pe=n_pe) != after).any()


def test_an_element_gets_no_more_weights_than_its_part_has():
    mask = np.ones((1, 1, 5, 1), np.float32)  # two elements, with 3 inputs and 2
    np.testing.assert_array_equal(balance(mask, 0 * mask, grouping="systolic", n_pe=2), mask)
    mask[0, 0, 0] = 0
    evened = balance(mask, 0 * mask, grouping="systolic", n_pe=2)
    np.testing.assert_array_equal(evened, mask)  # 2 each
    with pytest.raises(InputError, match="n_pe"):
        balance(mask, 0 * mask, n_pe=0)


def test_every_round_prunes_the_smallest_weights_and_rewinds(digits, monkeypatch):
    problem, calls = pruning_problem(digits), retrained(monkeypatch)
    found = lottery(KEY, problem, rounds=2)
    assert [call["epochs"] for call in calls] == [1, 1, 2]
    assert all(call["from"] is problem.variables for call in calls)
    assert found.variables is calls[2]["trained"] and found.search == Passes()
    cost = problem.cost("params")
    dense = cost(calls[0]["masks"])
    assert dense == cost({})
    for number in (1, 2):
        before, after, trained = (
            calls[number - 1]["masks"],
            calls[number]["masks"],
            calls[number - 1]["trained"]["params"],
        )
        assert set(after) == {"conv1/kernel", "conv2/kernel", "fc1/kernel"}
        sizes = {n: np.abs(trained[n.removesuffix("/kernel")]["kernel"]) for n in after}
        left = np.sort(np.concatenate([sizes[n][np.asarray(before[n]) > 0] for n in after]))
        gone = int(np.ceil(cost(before) - dense * 0.5 ** (number / 2)))
        for name, mask in after.items():
            expected = (np.asarray(before[name]) > 0) & (sizes[name] >= left[gone])
            np.testing.assert_array_equal(np.asarray(mask) > 0, expected)


def test_the_default_rounds_remove_a_quarter_each_if_there_are_enough_epochs(digits, monkeypatch):
    calls = retrained(monkeypatch)
    epochs = []
    for total, fraction in ((40, 0.1), (40, 0.5), (4, 0.1), (1, 0.5), (0, 0.5)):
        calls.clear()
        recipe = Recipe(epochs=total, batch_size=32)
        problem = pruning_problem(digits, target=Target("params", fraction), recipe=recipe)
        lottery(KEY, problem)
        epochs.append([call["epochs"] for call in calls])
        assert sum(epochs[-1]) == total
    assert [len(each) - 1 for each in epochs] == [9, 3, 2, 1, 1]
    assert [each[-1] for each in epochs] == [20, 20, 2, 1, 0]
    with pytest.raises(InputError, match="rounds"):
        lottery(KEY, problem, rounds=3)


@pytest.mark.parametrize("grouping", ("sata", "systolic"))
def test_u_tickets_meet_the_target_with_balanced_work(digits, monkeypatch, grouping):
    target = Target("macs", 0.3)  # counts as parameters, as single weights save no MACs
    problem, calls = pruning_problem(digits, target=target), retrained(monkeypatch)
    u_ticket(KEY, problem, rounds=2, grouping=grouping, n_pe=4)
    cost = problem.cost("params")
    for number in (1, 2):
        found, trained = calls[number]["masks"], calls[number - 1]["trained"]["params"]
        masks.check(problem.architecture, found)
        assert utilization(found["conv2/kernel"], grouping=grouping, n_pe=4) == 1
        limit = problem.limit(number / 2, "params")
        assert limit - 12 <= cost(found) <= limit  # a removal changes a group by its elements
        # layers that are not balanced are pruned by magnitude only, with one threshold
        before, sizes = calls[number - 1]["masks"], {}
        for name in ("conv1/kernel", "fc1/kernel"):
            size = np.abs(trained[name.removesuffix("/kernel")]["kernel"])
            sizes[name] = size[np.asarray(before[name]) > 0], found[name][before[name] > 0] > 0
        kept = min(size[alive].min() for size, alive in sizes.values())
        assert all(size[~alive].max() < kept for size, alive in sizes.values())
    assert utilization(found["conv1/kernel"], n_pe=4) < 1


def test_structured_tickets_remove_filters(digits, monkeypatch):
    problem, calls = pruning_problem(digits), retrained(monkeypatch)
    found = lottery(KEY, problem, rounds=2, structured=True)
    masks.check(problem.architecture, found.masks)
    assert problem.cost()(found.masks) <= problem.limit()
    trained = calls[0]["trained"]["params"]
    means = {n: np.abs(trained[n]["kernel"]).mean((0, 1, 2)) for n in ("conv1", "conv2")}
    removed = [means[n][np.asarray(calls[1]["masks"][n]) == 0] for n in means]
    survive = [means[n][np.asarray(calls[1]["masks"][n]) == 1] for n in means]
    assert max(r.max() for r in removed if len(r)) < min(s.min() for s in survive)


def test_a_u_ticket_is_trained_with_its_masks(digits):
    epochs = []
    problem = pruning_problem(digits, callbacks=Callbacks(on_epoch=epochs.append))
    found = u_ticket(KEY, problem, n_pe=4)
    assert len(epochs) == 4
    assert problem.cost("params")(found.masks) <= problem.limit(measure="params")
    kernel, start = (v["params"]["conv2"]["kernel"] for v in (found.variables, problem.variables))
    gone = np.asarray(found.masks["conv2/kernel"]) == 0
    # removed weights were rewound and have no gradient, only weight decay of 1e-4
    np.testing.assert_allclose(kernel[gone], start[gone], rtol=1e-4)
    assert np.abs(kernel - start)[~gone].mean() > 1e-3
