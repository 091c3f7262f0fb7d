"""Deep networks, learned leaks and threshold-dependent norms beside SpikingJelly's, live."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from ccsrp_jax.networks import cost, zoo
from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.neuron_layer import NeuronLayer
from ccsrp_jax.networks.neurons import LIF, Surrogate, lif
from ccsrp_jax.networks.nodes import Dense, Flatten, Norm
from ccsrp_jax.networks.spiking_network import SpikingNetwork

torch = pytest.importorskip("torch")
pytest.importorskip("spikingjelly.activation_based")

from published import (
    PUBLISHED,
    load,
    logits,
    neurons,
    plif_by_spikingjelly,
    published,
    sizes,
)
from spikingjelly.activation_based.layer import ThresholdDependentBatchNorm2d

from peers.torch_twin import nchw, random_network, tensor

pytestmark = pytest.mark.oracle

CIFAR = (32, 32, 3)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("learned", (False, True))
def test_parameters_and_macs_equal_modules_written_from_the_papers(name, learned):
    neuron = LIF(learned=learned)
    architecture = zoo.build(name, CIFAR, 10, neuron=neuron)
    parameters, macs = sizes(published(name, CIFAR, 10, neurons(neuron)), CIFAR)
    assert sum(cost.params(architecture).values()) == parameters
    assert list(cost.macs(architecture).values()) == macs


@pytest.mark.parametrize("neuron", (LIF(threshold=0.5), LIF(3.0, 0.5, "soft", learned=True)))
@pytest.mark.parametrize("name", PUBLISHED)
def test_logits_equal_modules_written_from_the_papers(name, neuron):
    digits = (load_digits().images[:8, :, :, None] / 16).astype(np.float32)
    images = digits.repeat(4, 1).repeat(4, 2)
    width = 1 / 4 if name == "resnet8" else 1 / 16
    architecture = zoo.build(
        *(name, (32, 32, 1), 10), width=width, neuron=neuron, mean=(0.0,), std=(1.0,)
    )
    variables = random_network(2, architecture)
    apply = jax.jit(lambda v, x: SpikingNetwork(architecture).apply(v, x, activity=True))
    ours, activity = apply(variables, images)
    # every layer spikes, so every layer matters
    assert all(0.01 < spikes.mean() < 0.99 for spikes in activity.spikes.values())
    # whoever comes this close to the threshold fires by the order of float sums
    margins = [
        np.abs(v - neuron.threshold).min((0, *range(2, v.ndim)))
        for v in activity.potentials.values()
    ]
    clear = np.min(margins, axis=0) > 1e-6
    assert clear.sum() >= 4
    theirs = published(name, (32, 32, 1), 10, neurons(neuron), width)
    load(theirs, architecture, variables)
    with torch.no_grad():
        expected = logits(theirs, architecture.time_steps, nchw(images)).numpy()
    assert np.ptp(expected, axis=0).max() > 0.1
    np.testing.assert_allclose(ours[clear], expected[clear], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("reset", ("hard", "soft"))
@pytest.mark.parametrize("decay", (False, True))
@pytest.mark.parametrize("detach", (False, True))
@pytest.mark.parametrize("tau", (1.2, 2.0, 5.0))
def test_learned_leaks_equal_spikingjelly(reset, decay, detach, tau):
    neuron = LIF(tau, 0.8, reset, decay_input=decay, detach_reset=detach, learned=True)
    rng = np.random.default_rng(1)
    current = ((tau if decay else 1) * rng.normal(0.4, 1, (6, 50))).astype(np.float32)
    d_spikes = rng.normal(size=(6, 50)).astype(np.float32)
    theirs = plif_by_spikingjelly(current, neuron, Surrogate(), d_spikes)
    assert 0.1 < theirs[0].mean() < 0.9 and abs(theirs[2]) > 0.1
    layer = NeuronLayer(neuron)
    variables = layer.init(jax.random.key(0), 1)

    def run(x, variables):
        return lif(x, neuron, Surrogate(), 6, layer.apply(variables, 1).leak)[0]

    spikes, vjp = jax.vjp(run, jnp.asarray(current), variables)
    d_current, d_variables = vjp(jnp.asarray(d_spikes))
    np.testing.assert_array_equal(spikes, theirs[0])
    np.testing.assert_allclose(d_current, theirs[1], atol=1e-5)
    np.testing.assert_allclose(d_variables["params"]["leak"], theirs[2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("norm", "alpha"), (("stem.norm", 1.0), ("stage1.block1.conv2.norm", 2**-0.5))
)
def test_threshold_dependent_norms_equal_spikingjelly_in_training(norm, alpha):
    """Statistics over time too; torch's running variance is n / (n - 1) of ours."""
    threshold, steps, shape = 0.6, 3, (5, 4, 4, 2)
    built = zoo.build("resnet8", (8, 8, 1), 10, norm="tdbn", neuron=LIF(threshold=threshold))
    [scale] = [node.scale for node in built.nodes if node.name == norm]
    nodes = (Norm("norm", "image", scale), Flatten("flatten", "norm"))
    architecture = Architecture(
        (*nodes, Dense("classifier", "flatten", 10)),
        (4, 4, steps * 2),
        steps,
        mean=(0.0,),
        std=(1.0,),
        encoding="frames",
    )
    network, rng = SpikingNetwork(architecture), np.random.default_rng(0)
    variables = zoo.init(jax.random.key(0), architecture)
    x, d_out = rng.normal(1, 2, (2, steps, *shape)).astype(np.float32)

    def run(x):
        frames = jnp.moveaxis(x, 0, 3).reshape(*shape[:3], -1)
        start = network.apply(variables, frames, method="encode")
        (values, _), updates = network.apply(
            *(variables, start),
            **{"train": True, "keep": ["norm"], "mutable": ["batch_stats"], "method": "walk"},
        )
        return values["norm"], updates["batch_stats"]["norm"]

    ours, vjp, updates = jax.vjp(run, jnp.asarray(x), has_aux=True)
    layer = ThresholdDependentBatchNorm2d(alpha, threshold, 2)
    # (T, B, H, W, C) to SpikingJelly's (T, B, C, H, W)
    channels_first = (0, 1, 4, 2, 3)
    y = tensor(x).permute(channels_first).requires_grad_()
    theirs = layer(y)
    theirs.backward(tensor(d_out).permute(channels_first))
    back = (0, 1, 3, 4, 2)
    np.testing.assert_allclose(ours, theirs.detach().permute(back).numpy(), atol=1e-5)
    np.testing.assert_allclose(vjp(jnp.asarray(d_out))[0], y.grad.permute(back), atol=1e-5)
    np.testing.assert_allclose(updates["mean"], layer.running_mean, atol=1e-6)
    n = x[..., 0].size
    variance = 0.9 + (layer.running_var.numpy() - 0.9) * (n - 1) / n
    np.testing.assert_allclose(updates["var"], variance, rtol=1e-5)
