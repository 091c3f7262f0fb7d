"""Trained in SpikingJelly, pruned here to half of its MACs, and run in SpikingJelly again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

nir = pytest.importorskip("nir")
torch = pytest.importorskip("torch")
pytest.importorskip("nirtorch")
pytest.importorskip("spikingjelly")

from spikingjelly.activation_based import functional, layer, neuron, nir_exchange, surrogate
from torch import nn

import ccsrp_jax as cc
from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.exchange.from_nir import from_nir
from ccsrp_jax.exchange.to_nir import export_nir
from ccsrp_jax.networks.counts import macs
from ccsrp_jax.pruning.budget import Target
from ccsrp_jax.pruning.problem import Problem
from ccsrp_jax.pruning.registry import METHODS
from ccsrp_jax.training.recipe import Recipe

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]
STEPS, DT = 4, 1e-4


def trained_in_spikingjelly(images, labels):
    """A convolutional network for the digits."""
    torch.manual_seed(0)

    def lif():
        return neuron.LIFNode(surrogate_function=surrogate.ATan(), detach_reset=True)

    net = nn.Sequential(
        *(layer.Conv2d(1, 16, 3, padding=1), lif(), layer.AvgPool2d(2)),
        *(layer.Conv2d(16, 32, 3, padding=1), lif(), layer.AvgPool2d(2)),
        *(layer.Flatten(), layer.Linear(128, 10)),
    )
    with torch.no_grad():
        net[0].weight.mul_(3)
        net[3].weight.mul_(3)
    adam = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(12):
        for part in torch.randperm(len(images)).split(64):
            functional.reset_net(net)
            logits = torch.stack([net(images[part]) for _ in range(STEPS)]).mean(0)
            loss = nn.functional.cross_entropy(logits, labels[part])
            adam.zero_grad()
            loss.backward()
            adam.step()
    functional.reset_net(net)
    return net.eval()


def accuracy_in_spikingjelly(path, images, labels):
    net, state, total = nir_exchange.import_from_nir(nir.read(path), dt=DT), None, 0
    with torch.no_grad():
        for _ in range(STEPS):
            logits, state = net(images, state)
            total = total + logits
    return (total.argmax(1) == labels).numpy()


def channels_first(split):
    images = np.moveaxis(np.asarray(split.images, np.float32), -1, 1)
    return torch.from_numpy(images.copy()), torch.from_numpy(np.array(split.labels)).long()


def test_there_and_back(digits, tmp_path):
    net = trained_in_spikingjelly(*channels_first(digits.train))
    test = channels_first(digits.test)
    nir_exchange.export_to_nir(net, test[0][:1], save_path=tmp_path / "dense.nir", dt=DT)
    architecture, variables = from_nir(tmp_path / "dense.nir", time_steps=STEPS)
    classifier = cc.Classifier(architecture)
    dense = np.asarray(cc.correct(classifier, (variables, None), digits.test))
    there = accuracy_in_spikingjelly(tmp_path / "dense.nir", *test)
    np.testing.assert_array_equal(dense, there)
    assert dense.mean() > 0.9

    variables = {**jax.tree.map(jnp.asarray, variables), "batch_stats": {}}
    problem = Problem(
        classifier,
        variables,
        digits.train,
        digits.search,
        Target("macs", 0.5),
        Recipe(epochs=8, batch_size=64, learning_rate=2e-3),
        PGD(0.05, 3),
    )
    pruned = METHODS["rounds"](jax.random.key(0), problem)
    smaller, weights = cc.compact(architecture, pruned.variables, pruned.masks)
    share = sum(macs(smaller).values()) / sum(macs(architecture).values())
    ours = np.asarray(cc.correct(cc.Classifier(smaller), (weights, None), digits.test))
    report = export_nir((smaller, weights), tmp_path / "pruned.nir", digits.test.images[:32], dt=DT)
    again = accuracy_in_spikingjelly(tmp_path / "pruned.nir", *test)
    print(
        f"dense {dense.mean():.4f}, pruned here {ours.mean():.4f}, in SpikingJelly "
        f"{again.mean():.4f}, MACs {share:.3f}; {report.sentence}"
    )
    assert share <= 0.5
    np.testing.assert_array_equal(ours, again)
    assert ours.mean() > dense.mean() - 0.1
