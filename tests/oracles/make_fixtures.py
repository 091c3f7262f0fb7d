"""Writes results of other libraries to tests/fixtures, for tests that run without them.

    make oracles; PYTHONPATH=experiments .venv/bin/python tests/oracles/make_fixtures.py

takes half a minute. `peers` is in experiments, which pytest has on its path but a script has not.
Every file has the inputs, the results and, under `versions`, the versions of the libraries.
`test_peers.py` checks that these libraries still give the same results.
"""

import itertools
import json
from importlib.metadata import version
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from peer_answers import (
    attack_by_foolbox,
    crowding_by_pymoo,
    lif_by_spikingjelly,
    macs_by_torch_pruning,
    params_by_torch_pruning,
    ranks_by_pymoo,
    synops_by_spikingjelly,
)
from published import PUBLISHED, neurons, plif_by_spikingjelly, published, sizes
from sklearn.datasets import load_digits

from ccsrp_jax.attacks.pgd import PGD, fgsm
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.neurons import LIF, SURROGATE_DERIVATIVES, Surrogate
from ccsrp_jax.networks.zoo import plain
from peers.torch_twin import random_network

FOLDER = Path(__file__).parents[1] / "fixtures"


def lif_spikingjelly() -> dict:
    """Every dialect, and every surrogate, on one random current at tau 2."""
    rng = np.random.default_rng(0)
    current = rng.normal(0.8, 2, (6, 12)).astype(np.float32)
    d_spikes, d_potentials = rng.normal(size=(2, 6, 12)).astype(np.float32)
    dialects = {
        f"{reset} detach={detach} decay={decay}": LIF(
            reset=reset, detach_reset=detach, decay_input=decay
        )
        for reset, detach, decay in itertools.product(
            ("hard", "soft"), (False, True), (False, True)
        )
    }
    shapes = {
        f"{name} {width}": Surrogate(name, width)
        for name, width in itertools.product(SURROGATE_DERIVATIVES, (0.5, 1.0, 2.0))
    }

    def ask(lif, shape):
        return lif_by_spikingjelly(current, lif, shape, d_spikes, d_potentials)

    spikes, potentials, gradients = zip(
        *(ask(lif, Surrogate()) for lif in dialects.values()), strict=True
    )
    return {
        "current": current,
        "d_spikes": d_spikes,
        "d_potentials": d_potentials,
        "dialect": {
            "name": np.array(list(dialects)),
            "spikes": np.stack(spikes) > 0,
            "potentials": np.stack(potentials),
            "gradient": np.stack(gradients),
        },
        "surrogate": {
            "name": np.array(list(shapes)),
            "gradient": np.stack([ask(LIF(), shape)[2] for shape in shapes.values()]),
        },
    }


def plif_spikingjelly() -> dict:
    """Learned leaks in every dialect, at three values, on one random current."""
    rng = np.random.default_rng(0)
    current = rng.normal(0.8, 2, (6, 12)).astype(np.float32)
    d_spikes = rng.normal(size=(6, 12)).astype(np.float32)
    dialects = list(
        itertools.product((1.2, 2.0, 5.0), ("hard", "soft"), (False, True), (False, True))
    )
    answers = [
        plif_by_spikingjelly(
            current,
            LIF(tau, 0.8, reset, decay_input=decay, detach_reset=detach, learned=True),
            Surrogate(),
            d_spikes,
        )
        for tau, reset, decay, detach in dialects
    ]
    spikes, gradients, leaks = zip(*answers, strict=True)
    names = [f"{t} {reset} decay={decay} detach={detach}" for t, reset, decay, detach in dialects]
    return {
        "current": current,
        "d_spikes": d_spikes,
        "name": np.array(names),
        "spikes": np.stack(spikes) > 0,
        "gradient": np.stack(gradients),
        "leak": np.array(leaks, np.float32),
    }


def models_torch() -> dict:
    """Parameters and MACs of torch modules written from the papers, on 32 x 32 x 3 images."""
    image, answer = (32, 32, 3), {}
    for name in PUBLISHED:
        parameters, macs = sizes(published(name, image, 10, neurons(LIF())), image)
        answer[name] = {"params": np.array(parameters), "macs": np.array(macs)}
    return answer


def attack_foolbox() -> dict:
    """PGD and FGSM against the predictions of a small network on digits."""
    architecture = plain((8, "A", 8, "A"), (8, 8, 1), 10)
    variables, classifier = random_network(0, architecture), Classifier(architecture)
    images = (load_digits().images[:12, :, :, None] / 16).astype(np.float32)
    labels = np.asarray(classifier((variables, None), jnp.asarray(images)).argmax(-1))
    attack = {"pgd": PGD(0.1, steps=10, random_start=False), "fgsm": fgsm(0.1)}
    return {
        "architecture": np.array(architecture.to_json()),
        "variables": variables,
        "images": images,
        "labels": labels,
        "adversarial": {
            name: attack_by_foolbox(classifier, variables, images, labels, how)
            for name, how in attack.items()
        },
    }


def cost_torch() -> dict:
    """MACs and parameters by Torch-Pruning, SynOps by SpikingJelly."""
    architecture = plain((6, "M", 6, "M"), (8, 8, 1), 10, dense=(12,))
    variables = random_network(0, architecture)
    images = (load_digits().images[:4, :, :, None] / 16).astype(np.float32)
    return {
        "architecture": np.array(architecture.to_json()),
        "variables": variables,
        "images": images,
        "macs": macs_by_torch_pruning(architecture, variables),
        "params": params_by_torch_pruning(architecture, variables),
        "synops": synops_by_spikingjelly(architecture, variables, images),
    }


def fronts_pymoo() -> dict:
    """Ranks and crowding of 16 points with three objectives, four sets without ties."""
    points = np.random.default_rng(0).normal(size=(4, 16, 3)).astype(np.float32)
    ranks = np.stack([ranks_by_pymoo(p) for p in points])
    crowding = [crowding_by_pymoo(p, r) for p, r in zip(points, ranks, strict=True)]
    return {"points": points, "ranks": ranks, "crowding": np.stack(crowding)}


# File name to what it holds, and whose versions go with it.
FIXTURES = {
    "lif_spikingjelly": (lif_spikingjelly, ("torch", "spikingjelly")),
    "plif_spikingjelly": (plif_spikingjelly, ("torch", "spikingjelly")),
    "models_torch": (models_torch, ("torch",)),
    "attack_foolbox": (attack_foolbox, ("jax", "foolbox")),
    "cost_torch": (cost_torch, ("torch", "spikingjelly", "torch-pruning")),
    "fronts_pymoo": (fronts_pymoo, ("pymoo",)),
}


if __name__ == "__main__":
    for file, (answer, peers) in FIXTURES.items():
        versions = json.dumps({peer: version(peer) for peer in peers})
        flat = flatten_dict(answer(), sep="/")
        np.savez_compressed(FOLDER / f"{file}.npz", **flat, versions=np.array(versions))
