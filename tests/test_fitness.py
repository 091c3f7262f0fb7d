import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import busy

from ccsrp_jax import cost, fitness, masks, sharing
from ccsrp_jax.architecture import Add, Architecture, Conv, Dense, Flatten, Norm, Spike
from ccsrp_jax.compiles import counting
from ccsrp_jax.data import Split
from ccsrp_jax.models import Classifier, SpikingNetwork
from ccsrp_jax.neurons import LIF


@pytest.fixture(scope="module")
def splits(digits):
    clean = Split(digits.search.images[:20], digits.search.labels[:20])
    noise = np.random.default_rng(0).uniform(-0.2, 0.2, clean.images.shape)
    noisy = np.clip(clean.images + noise, 0, 1).astype(np.float32)
    return clean, Split(noisy, clean.labels)


def naive(architecture, variables, masks_, split):
    """Error and cross-entropy of one whole masked network on all images at once."""
    apply = jax.jit(SpikingNetwork(architecture).apply)
    logits = np.asarray(apply(variables, split.images, masks_), np.float64)
    top = logits.max(-1, keepdims=True)
    log_sum = (top + np.log(np.exp(logits - top).sum(-1, keepdims=True)))[:, 0]
    loss = log_sum - logits[np.arange(len(logits)), split.labels]
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
    [
        *(("network", "conv1"), ("network", "conv2"), ("network", "conv3")),
        *(("residual", "stem"), ("residual", "one.inner"), ("residual", "two.inner")),
    ],
)
@pytest.mark.parametrize(("batch", "chunk"), [(20, 1), (8, 3)])
def test_shared_prefix_scores_equal_naive_evaluation(request, splits, kind, group, batch, chunk):
    architecture, variables = request.getfixturevalue(kind)
    current = masks.random(jax.random.key(4), architecture, 0.8)
    n = current[group].shape[0]
    members = np.random.default_rng(1).integers(0, 2, (5, n)) * np.asarray(current[group])
    members[:, np.argmax(current[group])] = 1
    task = fitness.make_task(
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


def test_stored_prefix_is_a_byte_a_spike(network, splits):
    architecture, variables = network
    current = masks.ones(architecture)
    values = sharing.shared_prefix(
        architecture, "conv2", variables, current, jnp.asarray(splits[0].images)
    )
    assert {name: value.dtype for name, value in values.items()} == {"lif2": jnp.dtype("uint8")}


def test_members_that_are_not_finite_score_worst(network, splits):
    architecture, variables = network
    current = masks.ones(architecture)
    kernel = variables["params"]["classifier"]["kernel"]
    # features of filter 0 of the last layer: keeping that filter makes logits infinite
    poisoned = kernel.at[:: current["conv3"].shape[0]].set(jnp.inf)
    params = variables["params"] | {"classifier": {"bias": jnp.zeros(10), "kernel": poisoned}}
    members = np.array([[1, 1, 1, 1], [1, 0, 0, 1]], np.float32)
    task = fitness.make_task(
        Classifier(architecture), variables | {"params": params}, current, "conv3", *splits
    )
    scores = fitness.score(task, members)
    assert (scores.error == 1).all() and np.isinf(scores.loss).all()
    assert not scores.finite.any() and np.isinf(scores.objectives("accuracy")).all()


def test_population_of_any_size_compiles_once(network, splits):
    architecture, variables = network
    current = masks.ones(architecture)
    task = fitness.make_task(
        *(Classifier(architecture), variables, current, "conv2", *splits), member_chunk=2
    )
    random = np.random.default_rng(2)
    with counting() as compiled:
        for size in (3, 5, 8):
            members = random.integers(0, 2, (size, 5)).astype(np.float32)
            fitness.score(task, members)
    assert not compiled.named("score_members")  # nor any at all: `make_task` has compiled it


def test_order_of_members_does_not_matter(network, splits):
    architecture, variables = network
    current = masks.ones(architecture)
    task = fitness.make_task(Classifier(architecture), variables, current, "conv1", *splits)
    members = np.random.default_rng(3).integers(0, 2, (4, 6)).astype(np.float32)
    members[:, 0] = 1
    forward, backward = fitness.score(task, members), fitness.score(task, members[::-1])
    chex.assert_trees_all_equal(forward, jax.tree.map(lambda x: x[::-1], backward))
