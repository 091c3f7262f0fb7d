import dataclasses
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import busy, thinned

from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.coevolution import call_size, fitness, scoring, subproblem
from ccsrp_jax.coevolution.racing import Racing
from ccsrp_jax.coevolution.search import search_round
from ccsrp_jax.coevolution.settings import Search
from ccsrp_jax.data.splits import Split
from ccsrp_jax.networks import cost, masks, zoo
from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.batch_statistics import refreshed
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.neurons import LIF
from ccsrp_jax.networks.nodes import Add, Conv, Dense, Flatten, Norm, Spike
from ccsrp_jax.networks.spiking_network import SpikingNetwork
from ccsrp_jax.networks.stochastic_lif import StochasticLIF
from ccsrp_jax.robustness import certified_accuracy, predict
from ccsrp_jax.utils.compilation import count_compilations
from ccsrp_jax.utils.errors import InputError


@pytest.fixture(scope="module")
def splits(digits):
    clean = Split(digits.search.images[:20], digits.search.labels[:20])
    noise = np.random.default_rng(0).uniform(-0.2, 0.2, clean.images.shape)
    noisy = np.clip(clean.images + noise, 0, 1).astype(np.float32)
    return clean, Split(noisy, clean.labels)


def losses(architecture, variables, masks_, split):
    """Logits and each image's cross-entropy of one whole masked network."""
    apply = jax.jit(SpikingNetwork(architecture).apply)
    logits = np.asarray(apply(variables, split.images, masks_), np.float64)
    top = logits.max(-1, keepdims=True)
    log_sum = (top + np.log(np.exp(logits - top).sum(-1, keepdims=True)))[:, 0]
    return logits, log_sum - logits[np.arange(len(logits)), split.labels]


def naive(architecture, variables, masks_, split):
    """Error and cross-entropy of one whole masked network on all images at once."""
    logits, loss = losses(architecture, variables, masks_, split)
    return (logits.argmax(-1) != split.labels).mean(), loss.mean()


@pytest.fixture(scope="module")
def residual():
    """Two residual blocks: one group of four LIF layers' channels, and two inner groups."""
    nodes = [Conv("stem", "image", 4), Norm("stem.norm", "stem"), Spike("stem.lif", "stem.norm")]
    last = "stem.lif"
    for block in ("one", "two"):
        nodes += [
            Conv(f"{block}.inner", last, 3),
            Spike(f"{block}.inner.lif", f"{block}.inner"),
            Conv(f"{block}.outer", f"{block}.inner.lif", 4),
            Norm(f"{block}.norm", f"{block}.outer"),
            Add(f"{block}.add", f"{block}.norm", last),
            Spike(f"{block}.lif", f"{block}.add"),
        ]
        last = f"{block}.lif"
    nodes += [Flatten("flatten", last), Dense("classifier", "flatten", 10)]
    neuron = LIF(threshold=0.5)
    architecture = Architecture(tuple(nodes), (8, 8, 1), 2, neuron, (0.3,), (0.4,))
    return architecture, busy(architecture, seed=1)


@pytest.mark.parametrize(
    ("kind", "group"),
    thinned(
        [
            *(("network", "conv1"), ("network", "conv2"), ("network", "conv3")),
            *(("residual", "stem"), ("residual", "one.inner"), ("residual", "two.inner")),
        ],
        [("network", "conv2"), ("residual", "stem"), ("residual", "two.inner")],
    ),
)
@pytest.mark.parametrize(("batch", "chunk"), thinned([(20, 1), (8, 3)], [(8, 3)]))
def test_shared_prefix_scores_equal_naive_evaluation(request, splits, kind, group, batch, chunk):
    architecture, variables = request.getfixturevalue(kind)
    current = masks.random(jax.random.key(4), architecture, 0.8)
    n = current[group].shape[0]
    members = np.random.default_rng(1).integers(0, 2, (5, n)) * np.asarray(current[group])
    members[:, np.argmax(current[group])] = 1
    task = subproblem.make_task(
        *(Classifier(architecture), variables, current, group, *splits),
        batch_size=batch,
        member_chunk=chunk,
    )
    scores = fitness.score(task, members.astype(np.float32))
    dense = sum(cost.macs(architecture).values())
    for i, member in enumerate(members):
        whole = current | {group: jnp.asarray(member)}
        error, loss = naive(architecture, variables, whole, splits[0])
        robust_error, robust_loss = naive(architecture, variables, whole, splits[1])
        assert scores.error[i] == pytest.approx(error, abs=1e-9)
        assert scores.robust_error[i] == pytest.approx(robust_error, abs=1e-9)
        assert scores.loss[i] == pytest.approx(loss, rel=1e-5)
        assert scores.robust_loss[i] == pytest.approx(robust_loss, rel=1e-5)
        assert scores.macs[i] == pytest.approx(sum(cost.macs(architecture, whole).values()) / dense)


@pytest.mark.parametrize(
    ("kind", "group"), [("network", "conv1"), ("residual", "stem"), ("residual", "one.inner")]
)
def test_refreshed_scores_equal_those_of_each_network_with_its_own_statistics(
    request, splits, kind, group
):
    architecture, variables = request.getfixturevalue(kind)
    current, (clean, adversarial) = masks.random(jax.random.key(4), architecture, 0.8), splits
    # in front of the gate the statistics are now those of the images, which no candidate changes
    variables = refreshed(architecture, variables, current, [clean.images])
    members = np.random.default_rng(1).integers(0, 2, (3, len(current[group])))
    members = (members * np.asarray(current[group])).astype(np.float32)
    members[:, np.argmax(current[group])] = 1
    task = subproblem.make_task(
        *(Classifier(architecture), variables, current, group, clean, adversarial),
        batch_size=20,
        member_chunk=2,
        refresh=True,
    )
    scores = fitness.score(task, members)
    for i, member in enumerate(members):
        whole = current | {group: jnp.asarray(member)}
        own = refreshed(architecture, variables, whole, [clean.images])
        error, loss = naive(architecture, own, whole, clean)
        robust_error, robust_loss = naive(architecture, own, whole, adversarial)
        assert scores.error[i] == pytest.approx(error, abs=1e-9)
        assert scores.robust_error[i] == pytest.approx(robust_error, abs=1e-9)
        assert scores.loss[i] == pytest.approx(loss, rel=1e-4)
        assert scores.robust_loss[i] == pytest.approx(robust_loss, rel=1e-4)
    raced = fitness.score(task, members, racing=Racing(confidence=0.99))
    finished = raced.images == 20
    np.testing.assert_array_equal(raced.loss[finished], scores.loss[finished])


def test_refreshed_statistics_are_of_all_batches_without_padding(network, splits):
    architecture, variables = network
    current = masks.ones(architecture)
    arguments = Classifier(architecture), variables, current, "conv1", *splits
    members, found = np.ones((1, len(current["conv1"])), np.float32), {}
    for size in (20, 10):
        task = subproblem.make_task(*arguments, batch_size=size, refresh=True)
        found[size] = fitness._refreshed(task, members).statistics
    first = ("norm2", "mean")  # of the first layer behind the gate, which has seen the same values
    np.testing.assert_allclose(found[20][first], found[10][first], rtol=1e-5, atol=1e-6)
    variance = ("norm2", "var")
    np.testing.assert_allclose(found[20][variance], found[10][variance], rtol=1e-4, atol=1e-6)
    assert ("norm1", "mean") not in found[20]


def test_refreshing_is_refused_where_candidates_share_no_images(small, splits):
    architecture, variables = small
    with pytest.raises(InputError, match="refresh_statistics"):
        Search(refresh_statistics=True, white_box_steps=2)
    with pytest.raises(InputError, match="refresh is of candidates"):
        subproblem.make_task(
            *(Classifier(architecture), variables, masks.ones(architecture)),
            *("conv1", splits[0], None),
            attack=PGD(0.1, 1),
            key=jax.random.key(0),
            refresh=True,
        )


def test_sets_of_different_sizes_are_refused(network, splits):
    architecture, variables = network
    clean, adversarial = splits
    fewer = Split(adversarial.images[:9], adversarial.labels[:9])
    with pytest.raises(InputError, match="9 images for 20 clean"):
        subproblem.make_task(
            Classifier(architecture), variables, masks.ones(architecture), "conv1", clean, fewer
        )


def test_the_stored_prefix_takes_one_byte_per_spike(network, splits):
    architecture, variables = network
    current = masks.ones(architecture)
    values = scoring.shared_prefix(
        architecture, "conv2", variables, current, jnp.asarray(splits[0].images)
    )
    assert {name: value.dtype for name, value in values.items()} == {"lif2": jnp.dtype("uint8")}


def test_members_with_non_finite_logits_score_worst(network, splits):
    architecture, variables = network
    current = masks.ones(architecture)
    kernel = variables["params"]["classifier"]["kernel"]
    # features of filter 0 of the last layer: keeping that filter makes logits infinite
    poisoned = kernel.at[:: current["conv3"].shape[0]].set(jnp.inf)
    params = variables["params"] | {"classifier": {"bias": jnp.zeros(10), "kernel": poisoned}}
    members = np.array([[1, 1, 1, 1], [1, 0, 0, 1]], np.float32)
    task = subproblem.make_task(
        Classifier(architecture), variables | {"params": params}, current, "conv3", *splits
    )
    scores = fitness.score(task, members)
    assert (scores.error == 1).all() and np.isinf(scores.loss).all()
    assert not scores.finite.any() and np.isinf(scores.objectives("accuracy")).all()


def test_populations_of_all_sizes_share_one_program(network, splits):
    architecture, variables = network
    current = masks.ones(architecture)
    task = subproblem.make_task(
        *(Classifier(architecture), variables, current, "conv2", *splits), member_chunk=2
    )
    random = np.random.default_rng(2)
    with count_compilations() as compiled:
        for size in (3, 5, 8):
            members = random.integers(0, 2, (size, 5)).astype(np.float32)
            fitness.score(task, members)
    assert not compiled.count("score_members")  # `make_task` has compiled it


def test_order_of_members_does_not_matter(network, splits):
    architecture, variables = network
    current = masks.ones(architecture)
    task = subproblem.make_task(Classifier(architecture), variables, current, "conv1", *splits)
    members = np.random.default_rng(3).integers(0, 2, (4, 6)).astype(np.float32)
    members[:, 0] = 1
    forward, backward = fitness.score(task, members), fitness.score(task, members[::-1])
    chex.assert_trees_all_equal(forward, jax.tree.map(lambda x: x[::-1], backward))


# ---- memory


def task_within(network, splits, limit, group="conv1", **options):
    """A task on 20 images in one batch, with a memory limit in bytes."""
    architecture, variables = network
    options = {"batch_size": 20} | options
    current = masks.ones(architecture)
    return subproblem.make_task(
        *(Classifier(architecture), variables, current, group, *splits),
        memory_limit=limit,
        **options,
    )


def advised(refused) -> int:
    """The number that the end of an error message advises."""
    message = str(refused.value)
    assert message.endswith(".") and "\n" not in message
    return int(re.search(r": use (?:a batch_size of )?(\d+) or less\.$", message)[1])


def test_a_chunk_that_does_not_fit_is_refused_with_the_largest_that_does(network, splits):
    for limit, group in ((150_000, "conv1"), (300_000, "conv2")):
        with pytest.raises(InputError, match="member_chunk 64") as refused:
            task_within(network, splits, limit, group, member_chunk=64)
        most = advised(refused)
        assert 1 < most < 64
        assert task_within(network, splits, limit, group, member_chunk=most).member_chunk == most
        with pytest.raises(InputError):
            task_within(network, splits, limit, group, member_chunk=most + 1)
        # the same is the default
        assert task_within(network, splits, limit, group, population=99).member_chunk == most


@pytest.mark.parametrize(
    ("limit", "group"),
    [(20_000, "conv1"), (40_000, "conv1"), (20_000, "conv2")],
)
def test_a_batch_that_does_not_fit_is_refused_with_one_that_does(network, splits, limit, group):
    with pytest.raises(InputError, match="on 20 images") as refused:
        task_within(network, splits, limit, group)
    most = advised(refused)
    assert 1 < most < 20
    assert task_within(network, splits, limit, group, batch_size=most).member_chunk >= 1
    larger = next(n for n in range(most + 1, 21) if -(-20 // n) < -(-20 // most))  # fewer batches
    with pytest.raises(InputError):
        task_within(network, splits, limit, group, batch_size=larger)


def test_no_batch_size_is_advised_if_one_image_does_not_fit(network, splits):
    with pytest.raises(InputError, match=r"use a smaller network\.$"):
        task_within(network, splits, 1000)
    for limit in (0, -5):
        with pytest.raises(InputError, match=f"memory_limit {limit} is out of range"):
            task_within(network, splits, limit)


def test_prefixes_are_stored_in_half_of_the_memory_and_do_not_change_scores(network, splits):
    """The prefix of conv1: T = 3 steps, one byte for each of 6 x 8 x 8 neurons, two sets."""
    held = 2 * 20 * 3 * 6 * 8 * 8
    members = np.random.default_rng(4).integers(0, 2, (5, 6)).astype(np.float32)
    both = [task_within(network, splits, 2 * held + short, batch_size=4) for short in (0, -1)]
    for task, kept in zip(both, (True, False), strict=True):
        assert all((batch.prefix is not None) == kept for batch in task.clean + task.adversarial)
    whole, again = (fitness.score(task, members) for task in both)
    chex.assert_trees_all_equal(whole, again)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="an accelerator takes as many as fit")
def test_the_default_chunk_on_a_cpu_follows_from_its_macs(network, splits):
    """After conv2's gate, in T = 3 steps: 16 pixels of conv3's 3 x 3 x 5 x 4, the classifier."""
    member = 20 * 3 * (16 * 9 * 5 * 4 + 64 * 10)
    most = int(call_size.CALL_MACS["cpu"] / member)
    assert 8 < most < 200
    for population, expected in ((8, 8), (200, most)):
        task = task_within(network, splits, 10**9, "conv2", population=population)
        assert task.member_chunk == expected


# ---- white-box attacks on candidates, and stochastic networks


@pytest.fixture(scope="module")
def small():
    architecture = zoo.plain((4, "A", 3), (8, 8, 1), 10, time_steps=2, mean=(0.3,), std=(0.4,))
    return architecture, busy(architecture, seed=2)


ATTACK = PGD(0.15, 2)
RANDOM = {
    "poisson": {"encoding": "poisson"},
    "gaussian": {"encoding": "gaussian"},
    "neurons": {"neuron": StochasticLIF()},
}
MEMBERS = np.array([[1, 1, 1, 1], [1, 0, 1, 1], [0, 1, 1, 0], [1, 0, 0, 0]], np.float32)


def each_alone(task, members):
    """Errors of every member, clean and under its own attack, by one whole network at a time."""
    logits = jax.jit(task.classifier.__call__)
    found = np.zeros((2, len(members)))
    for i, member in enumerate(members):
        params = task.variables, task.masks | {task.group: jnp.asarray(member)}
        for images, labels, real, key, _ in task.clean:
            adversarial = task.attack(task.classifier, params, images, labels, key)
            options = {"key": key} if task.classifier.stochastic else {}
            for row, x in enumerate((images, adversarial)):
                wrong = logits(params, x, **options).argmax(-1) != labels
                found[row, i] += wrong[:real].sum()
    return found / task.images


@pytest.mark.parametrize("encoding", thinned(["direct", "gaussian"], ["gaussian"]))
def test_white_box_scores_equal_an_attack_on_each_network(small, splits, encoding):
    architecture, variables = small
    architecture = dataclasses.replace(architecture, encoding=encoding)
    current = masks.ones(architecture) | {"conv2": jnp.array([1.0, 0.0, 1.0])}
    both = [
        subproblem.make_task(
            *(Classifier(architecture), variables, current, "conv1", splits[0], None),
            batch_size=8,
            member_chunk=chunk,
            attack=ATTACK,
            key=jax.random.key(6),
        )
        for chunk in (1, 3)
    ]
    alone, together = (fitness.score(task, MEMBERS) for task in both)
    expected = each_alone(both[0], MEMBERS)
    np.testing.assert_allclose([alone.error, alone.robust_error], expected, atol=1e-9)
    assert (alone.robust_loss > alone.loss).all()  # the attack is effective
    chex.assert_trees_all_close(together, alone, rtol=1e-4)


def test_certified_scores_are_the_certified_accuracy_of_each_network(small, splits):
    architecture, variables = small
    current = masks.ones(architecture) | {"conv2": jnp.array([1.0, 0.0, 1.0])}
    predicted = predict(Classifier(architecture), (variables, current), splits[0].images)
    split = Split(splits[0].images, np.asarray(predicted))
    task = subproblem.make_task(
        *(Classifier(architecture), variables, current, "conv1", split, None),
        batch_size=8,
        member_chunk=2,
        attack=scoring.CertifiedBall(0.001),
        key=jax.random.key(6),
    )
    scores = fitness.score(task, MEMBERS)
    for i, member in enumerate(MEMBERS):
        state = variables, current | {"conv1": jnp.asarray(member)}
        safe = certified_accuracy(Classifier(architecture), state, split, 0.001, batch_size=8)
        assert scores.robust_error[i] == pytest.approx(1 - safe)
    assert (scores.robust_loss > scores.loss).all()
    assert 0 < scores.robust_error.min() < 1 and (scores.robust_error >= scores.error).all()


def test_a_certified_search_needs_an_attack_in_linf_and_no_other_robust_objective(small, splits):
    architecture, variables = small
    network = (Classifier(architecture), variables, masks.ones(architecture), splits[0])
    attack = PGD(0.5, 2, norm="l2")
    with pytest.raises(InputError, match="the attack's norm is l2, and certificates are of"):
        search_round(jax.random.key(0), *network, attack, Search(certified=True))
    with pytest.raises(InputError, match="two robust objectives: choose one"):
        Search(certified=True, white_box_steps=2)


def test_the_advised_batch_size_fits_a_white_box_attack(small, splits):
    options = {"attack": ATTACK, "key": jax.random.key(0)}
    with pytest.raises(InputError) as refused:
        task_within(small, (splits[0], None), 60_000, **options)
    most = advised(refused)
    assert most > 1
    task_within(small, (splits[0], None), 60_000, batch_size=most, **options)


def test_scoring_needs_a_shared_set_or_an_attack_with_a_key(small, splits):
    architecture, variables = small
    clean, adversarial = splits
    network = (Classifier(architecture), variables, masks.ones(architecture), "conv1", clean)
    with pytest.raises(InputError, match="give a key"):
        subproblem.make_task(*network, None, attack=ATTACK)
    for shared, attack in ((None, None), (adversarial, ATTACK)):
        with pytest.raises(InputError, match="give one of them"):
            subproblem.make_task(*network, shared, attack=attack, key=jax.random.key(0))


@pytest.mark.parametrize("random", thinned([*RANDOM, "poisson neurons"], ["poisson neurons"]))
def test_candidates_of_a_stochastic_network_see_the_same_draws(small, splits, random):
    changes = dict(pair for kind in random.split() for pair in RANDOM[kind].items())
    architecture = dataclasses.replace(small[0], **changes)
    variables = busy(architecture, seed=2)
    classifier, current = Classifier(architecture), masks.ones(architecture)
    network = (classifier, variables, current, "conv1", *splits)
    twice = np.concatenate([MEMBERS, MEMBERS[::-1]])
    with pytest.raises(InputError, match=r"^attacks and stochastic networks .*: give a key\.$"):
        subproblem.make_task(*network)
    both = [
        subproblem.make_task(*network, batch_size=8, member_chunk=3, key=jax.random.key(seed))
        for seed in (0, 0, 1)
    ]
    scores, again, other = (fitness.score(task, twice) for task in both)
    chex.assert_trees_all_equal(scores, again)
    chex.assert_trees_all_equal(scores, jax.tree.map(lambda x: x[::-1], scores))
    assert (other.loss != scores.loss).any()
    logits = jax.jit(classifier.__call__)
    for member, error in zip(MEMBERS, scores.robust_error[:4], strict=True):
        params = variables, current | {"conv1": jnp.asarray(member)}
        wrong = [
            (logits(params, images, key=key).argmax(-1) != labels)[:real]
            for images, labels, real, key, _ in both[0].adversarial
        ]
        assert error == pytest.approx(np.concatenate(wrong).mean(), abs=1e-9)


def test_change_is_the_mean_distance_from_the_current_masks_losses(network, splits):
    architecture, variables = network
    current = masks.random(jax.random.key(4), architecture, 0.8)
    members = np.repeat(np.asarray(current["conv2"])[None], 3, axis=0)
    members[1, np.flatnonzero(members[1])[0]] = 0
    members[2, np.flatnonzero(members[2])[:2]] = 0
    task = subproblem.make_task(
        *(Classifier(architecture), variables, current, "conv2", *splits), batch_size=8
    )
    scores = fitness.score(fitness.with_reference(task), members)
    for split, found in zip(splits, (scores.change, scores.robust_change), strict=True):
        each = np.array(
            [losses(architecture, variables, current | {"conv2": m}, split)[1] for m in members]
        )
        np.testing.assert_allclose(found, np.abs(each - each[0]).mean(1), atol=1e-5)
    assert scores.change[0] == 0 and scores.change[2] > 0
    np.testing.assert_array_equal(scores.objectives("change")[:, 0], scores.change)
