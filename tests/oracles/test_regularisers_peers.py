"""Regularisers on our networks beside the same ones written in torch, on their torch twins."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.neurons import Surrogate
from ccsrp_jax.networks.nodes import Conv, Dense
from ccsrp_jax.networks.zoo import plain
from ccsrp_jax.training.regularizers import orthogonalize, sparse_gradient_penalty

torch = pytest.importorskip("torch")
pytest.importorskip("spikingjelly.activation_based")

from peers.torch_twin import Twin, nchw, random_network

pytestmark = pytest.mark.oracle

ARCHITECTURE = plain((8, "A", 12, "A"), (8, 8, 1), 10, dense=(230,), time_steps=3)
WEIGHTED = [node for node in ARCHITECTURE.nodes if isinstance(node, Conv | Dense)]


@pytest.fixture(scope="module")
def variables():
    return random_network(0, ARCHITECTURE)


@pytest.fixture(scope="module")
def batch():
    digits = load_digits()
    return (digits.images[:24, :, :, None] / 16).astype(np.float32), digits.target[:24]


def as_torch(kernel):
    """A Flax kernel in torch's order of axes, as numpy."""
    return np.transpose(kernel, (3, 2, 0, 1) if kernel.ndim == 4 else (1, 0))


def penalty_by_torch(twin, images, labels):
    """SR's finite difference, through a softmax over the two classes."""
    x, labels = nchw(images).requires_grad_(), torch.from_numpy(labels)[:, None]
    logits = twin(x)
    rivals = logits.detach().scatter(1, labels, -torch.inf).argmax(1, keepdim=True)
    two = torch.cat([labels, rivals], 1)
    before = logits.gather(1, two).softmax(1)[:, 0]
    (gradient,) = torch.autograd.grad(before.sum(), x, retain_graph=True)
    after = twin(x.detach() + 0.01 * gradient.sign()).gather(1, two).softmax(1)[:, 0]
    return ((after - before) / 0.01).square().mean()


@pytest.mark.parametrize("name", ("atan", "triangle"))
def test_the_penalty_on_gradients_and_its_gradient_equal_torchs(variables, batch, name):
    images, labels = batch
    surrogate = Surrogate(name, 2.0)
    twin = Twin(ARCHITECTURE, variables, surrogate)
    theirs = penalty_by_torch(twin, images, labels)
    theirs.backward()

    def ours(params):
        whole = {**variables, "params": params}
        classifier = Classifier(ARCHITECTURE, surrogate)
        return sparse_gradient_penalty(
            classifier, whole, None, jnp.asarray(images), jnp.asarray(labels)
        )

    penalty, gradient = jax.jit(jax.value_and_grad(ours))(variables["params"])
    assert penalty > 1e-3
    assert float(penalty) == pytest.approx(theirs.item(), rel=1e-5)
    for node in WEIGHTED:
        slope = twin.layer(node).weight.grad.numpy()
        off = np.abs(as_torch(np.asarray(gradient[node.name]["kernel"])) - slope).max()
        assert off < 1e-5 * np.abs(slope).max(), node.name


def test_orthogonalised_weights_equal_torchs(variables):
    beta = 0.02
    params = variables["params"]
    new = orthogonalize(params, beta, jax.random.key(1))
    twin, counts = Twin(ARCHITECTURE, variables), []
    for node in WEIGHTED:
        before, after = (as_torch(np.asarray(p[node.name]["kernel"])) for p in (params, new))
        rows = np.flatnonzero((before != after).reshape(len(before), -1).any(1))
        weight = twin.layer(node).weight.detach().clone()
        w = weight[rows].flatten(1)
        weight[rows] = ((1 + beta) * w - beta * w @ w.T @ w).reshape(weight[rows].shape)
        np.testing.assert_allclose(after, weight.numpy(), rtol=1e-5, atol=1e-5)
        counts.append(len(rows))
    assert counts == [8, 12, 69, 10]  # 69 of the 230 rows of the wide layer
