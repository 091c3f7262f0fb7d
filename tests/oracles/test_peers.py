"""Our answers beside those of SpikingJelly, foolbox, Torch-Pruning and pymoo, live."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from sklearn.datasets import load_digits

from ccsrp_jax.attacks.pgd import PGD, fgsm
from ccsrp_jax.coevolution import selection
from ccsrp_jax.networks import cost
from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.neurons import LIF, SURROGATE_DERIVATIVES, Surrogate, lif
from ccsrp_jax.networks.nodes import (
    Add,
    Concat,
    Conv,
    Dense,
    DepthwiseConv,
    Dropout,
    Flatten,
    GlobalPool,
    Norm,
    Pool,
    Spike,
)
from ccsrp_jax.networks.spiking_network import SpikingNetwork
from ccsrp_jax.networks.zoo import plain
from ccsrp_jax.reporting.comparison import hypervolume

torch = pytest.importorskip("torch")
for peer in ("spikingjelly.activation_based", "foolbox", "torch_pruning", "pymoo"):
    pytest.importorskip(peer)

from make_fixtures import FIXTURES, FOLDER
from peer_answers import (
    attack_by_foolbox,
    crowding_by_pymoo,
    hypervolume_by_pymoo,
    lif_by_spikingjelly,
    macs_by_torch_pruning,
    params_by_torch_pruning,
    ranks_by_pymoo,
    synops_by_spikingjelly,
)

from peers.torch_twin import Twin, nchw, random_network

pytestmark = pytest.mark.oracle

# Strided 5 x 5 and biased 1 x 1 convolutions, an addition of currents, and a hidden layer.
RESIDUAL = Architecture(
    (
        Conv("conv1", "image", 6),
        Norm("norm1", "conv1"),
        Spike("lif1", "norm1"),
        Conv("conv2", "lif1", 8, kernel=5, stride=2),
        Norm("norm2", "conv2"),
        Spike("lif2", "norm2"),
        Conv("conv3", "lif2", 8),
        Norm("norm3", "conv3"),
        Conv("short", "lif1", 8, kernel=1, stride=2, bias=True),
        Add("sum", "norm3", "short"),
        Spike("lif3", "sum"),
        Pool("pool", "lif3"),
        Flatten("flatten", "pool"),
        Dense("fc1", "flatten", 12),
        Spike("fc1.lif", "fc1"),
        Dense("classifier", "fc1.lif", 10),
    ),
    (8, 8, 1),
)
# Every layer after the first reads spikes as they are, so that SpikingJelly counts it.
BINARY = Architecture(
    (
        Conv("conv1", "image", 6, stride=2),
        Norm("norm1", "conv1"),
        Spike("lif1", "norm1"),
        Conv("conv2", "lif1", 5, kernel=5, stride=2),
        Norm("norm2", "conv2"),
        Spike("lif2", "norm2"),
        Conv("conv3", "lif2", 7, kernel=3, stride=1, bias=True),
        Spike("lif3", "conv3"),
        Conv("conv4", "lif3", 4, kernel=1, stride=3),
        Norm("norm4", "conv4"),
        Spike("lif4", "norm4"),
        Flatten("flatten", "lif4"),
        Dense("fc1", "flatten", 12),
        Spike("fc1.lif", "fc1"),
        Dense("classifier", "fc1.lif", 10),
    ),
    (16, 16, 1),
)
# Depthwise convolution, concatenation, global pooling and dropout.
SEPARABLE = Architecture(
    (
        Conv("conv1", "image", 6),
        Norm("norm1", "conv1"),
        Spike("lif1", "norm1"),
        DepthwiseConv("depthwise", "lif1", stride=2),
        Norm("norm2", "depthwise"),
        Spike("lif2", "norm2"),
        Conv("conv2", "lif1", 8, stride=2),
        Norm("norm3", "conv2"),
        Spike("lif3", "norm3"),
        Concat("concat", "lif2", ("lif3",)),
        Dropout("dropout", "concat"),
        GlobalPool("global", "dropout"),
        Flatten("flatten", "global"),
        Dense("classifier", "flatten", 10),
    ),
    (8, 8, 1),
)
NETWORKS = {
    "plain": plain((8, "A", 8, "A"), (8, 8, 1), 10),
    "max_pool": plain((8, "M", 8), (8, 8, 1), 10, dense=(12,)),
    "soft": plain((8, "A", 8), (8, 8, 1), 10, neuron=LIF(reset="soft", decay_input=False)),
    "residual": RESIDUAL,
    "binary": BINARY,
    "separable": SEPARABLE,
}


def digits(architecture: Architecture, count: int = 16) -> jax.Array:
    """Images of handwritten digits in [0, 1], as large as the network wants them."""
    images = (load_digits().images[:count, :, :, None] / 16).astype(np.float32)
    times = architecture.input_shape[0] // 8
    return jnp.asarray(images.repeat(times, 1).repeat(times, 2))


def compare_lif(neuron, surrogate):
    """Our outputs and current gradient less SpikingJelly's: three largest differences."""
    rng = np.random.default_rng(1)
    scale = neuron.tau if neuron.decay_input else 1
    current = (scale * rng.normal(0.4, 1, (6, 400))).astype(np.float32)
    d_spikes, d_potentials = rng.normal(size=(2, 6, 400)).astype(np.float32)
    theirs = lif_by_spikingjelly(current, neuron, surrogate, d_spikes, d_potentials)
    (spikes, potentials), vjp = jax.vjp(
        lambda x: lif(x, neuron, surrogate, 6), jnp.asarray(current)
    )
    (gradient,) = vjp((jnp.asarray(d_spikes), jnp.asarray(d_potentials)))
    assert 0.1 < theirs[0].mean() < 0.9
    ours = (spikes, potentials, gradient)
    return [np.abs(np.asarray(a) - b).max() for a, b in zip(ours, theirs, strict=True)]


@pytest.mark.parametrize("decay", (False, True))
@pytest.mark.parametrize("detach", (False, True))
@pytest.mark.parametrize("reset", ("hard", "soft"))
def test_lif_equals_spikingjelly_in_every_dialect(reset, detach, decay):
    neuron = LIF(reset=reset, detach_reset=detach, decay_input=decay)
    spikes, potentials, gradient = compare_lif(neuron, Surrogate())
    assert spikes == potentials == 0  # tau 2 divides without rounding
    assert gradient < 1e-6


@pytest.mark.parametrize("tau, threshold", ((1.3, 0.7), (3.0, 1.0), (10.0, 0.5)))
@pytest.mark.parametrize("reset", ("hard", "soft"))
@pytest.mark.parametrize("decay", (False, True))
def test_lif_equals_spikingjelly_at_other_constants(tau, threshold, reset, decay):
    neuron = LIF(tau, threshold, reset, decay_input=decay)
    spikes, potentials, gradient = compare_lif(neuron, Surrogate())
    assert spikes == 0
    assert potentials < 2e-6  # a few units in the last place, by the order of operations
    assert gradient < 2e-5


@pytest.mark.parametrize("width", (0.5, 1.0, 2.0))
@pytest.mark.parametrize("name", SURROGATE_DERIVATIVES)
def test_surrogates_equal_spikingjelly(name, width):
    spikes, _, gradient = compare_lif(LIF(), Surrogate(name, width))
    assert spikes == 0
    assert gradient < 5e-6


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_equal_the_torch_twin(name):
    architecture = NETWORKS[name]
    variables, images = random_network(3, architecture), digits(architecture)
    ours, activity = SpikingNetwork(architecture).apply(variables, images, activity=True)
    assert all(0.01 < s.mean() < 0.9 for s in activity.spikes.values())
    theirs = Twin(architecture, variables)(nchw(images))
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ("plain", "soft", "residual", "binary"))
def test_input_gradients_equal_the_torch_twin(name):
    architecture, surrogate = NETWORKS[name], Surrogate("sigmoid", 2.0)
    variables, images = random_network(3, architecture), digits(architecture)
    classifier = Classifier(architecture, surrogate)
    ours = jax.grad(lambda x: (classifier((variables, None), x) ** 2).sum())(images)
    x = nchw(images).requires_grad_()
    (Twin(architecture, variables, surrogate)(x) ** 2).sum().backward()
    theirs = x.grad.permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize(
    "attack",
    (
        PGD(0.1, 10, random_start=False),
        fgsm(0.1),
        fgsm(8 / 255),
        PGD(0.5, 10, random_start=False, norm="l2"),
        fgsm(0.5, norm="l2"),
    ),
)
@pytest.mark.parametrize("name", ("plain", "residual"))
def test_adversarial_images_equal_foolbox(name, attack):
    architecture = NETWORKS[name]
    variables, classifier = random_network(3, architecture), Classifier(architecture)
    images = digits(architecture)
    labels = classifier((variables, None), images).argmax(-1)
    ours = attack(classifier, (variables, None), images, labels, jax.random.key(0))
    theirs = attack_by_foolbox(classifier, variables, images, labels, attack)
    moved = np.asarray(theirs - images)
    size = (
        np.abs(moved).max() if attack.norm == "linf" else np.sqrt((moved**2).sum((1, 2, 3))).max()
    )
    assert size > 0.7 * attack.eps
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-7 if attack.norm == "linf" else 1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_macs_and_parameters_equal_torch_pruning(name):
    architecture = NETWORKS[name]
    variables = random_network(3, architecture)
    assert cost.macs(architecture) == macs_by_torch_pruning(architecture, variables)
    ours = sum(cost.params(architecture).values())
    assert ours == params_by_torch_pruning(architecture, variables)


@pytest.mark.parametrize("name", ("max_pool", "soft", "binary"))
def test_synops_equal_spikingjelly(name):
    # In `soft` only the classifier reads binary values, as the second convolution follows
    # average pooling.
    architecture = NETWORKS[name]
    variables, images = random_network(3, architecture), digits(architecture)
    ours = cost.synops(architecture, variables, images)
    theirs = synops_by_spikingjelly(architecture, variables, images)
    assert theirs.pop("conv1") == 0 and "conv1" not in ours
    if name == "soft":
        assert theirs.pop("conv2") == 0 and ours.pop("conv2") > 0
    assert all(theirs.values())
    assert ours == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize("ties", (False, True))
@pytest.mark.parametrize("size", (1, 2, 5, 40))
@pytest.mark.parametrize("objectives", (1, 2, 3))
def test_ranks_and_crowding_equal_pymoo(size, objectives, ties):
    rng = np.random.default_rng(size)
    for _ in range(5):
        points = rng.normal(size=(size, objectives)).astype(np.float32)
        if ties:
            points = points.round()
        ranks = selection.front_ranks(jnp.asarray(points))
        np.testing.assert_array_equal(ranks, ranks_by_pymoo(points))
        crowding = np.asarray(selection.crowding(jnp.asarray(points), ranks))
        theirs = crowding_by_pymoo(points, np.asarray(ranks))
        # Where an objective is constant in a front, pymoo has no ends and we have two.
        fronts = [np.asarray(ranks) == r for r in range(int(ranks.max()) + 1)]
        for front in fronts:
            if front.sum() <= 2 or (np.ptp(points[front], axis=0) > 0).all():
                np.testing.assert_allclose(crowding[front], theirs[front], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("column", (0, 2))
def test_ranks_with_infinite_objectives_equal_pymoo(column):
    # pymoo 0.6.2 misplaces some infinite rows, so it is asked with a large number instead.
    points = np.random.default_rng(0).integers(0, 4, (30, 3)).astype(np.float32)
    points[::2, column] = np.inf
    theirs = ranks_by_pymoo(np.where(np.isinf(points), 99, points))
    np.testing.assert_array_equal(selection.front_ranks(jnp.asarray(points)), theirs)


@pytest.mark.parametrize("ties", (False, True))
@pytest.mark.parametrize("size", (1, 2, 30, 200))
def test_hypervolumes_equal_pymoo(size, ties):
    rng = np.random.default_rng(size)
    reference = np.array([1.0, 2.0, 0.5], np.float32)
    for _ in range(5):
        points = rng.uniform(-0.3, 1.3, (size, 3)).astype(np.float32) * reference
        if ties:
            points = points.round(1)
        ours = hypervolume(jnp.asarray(points), jnp.asarray(reference))
        assert float(ours) == pytest.approx(hypervolume_by_pymoo(points, reference), rel=1e-5)


@pytest.mark.parametrize("file", FIXTURES)
def test_the_peers_still_answer_as_frozen(file):
    answer, _ = FIXTURES[file]
    with np.load(Path(FOLDER) / f"{file}.npz") as stored:
        fresh = flatten_dict(answer(), sep="/")
        assert {*stored.files} == {*fresh, "versions"}
        for name, value in fresh.items():
            if np.asarray(value).dtype.kind == "U":
                ours, theirs = value.tolist(), stored[name].tolist()
                if name == "architecture":  # later fields have defaults
                    ours, theirs = map(Architecture.from_json, (ours, theirs))
                assert ours == theirs
            else:
                np.testing.assert_allclose(stored[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
