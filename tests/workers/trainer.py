"""A few steps of training, to be run in a process of its own."""

import dataclasses

import jax
import numpy as np
from conftest import busy
from jax.sharding import Mesh

from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.data import datasets, splits
from ccsrp_jax.networks import masks, zoo
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.stochastic_lif import StochasticLIF
from ccsrp_jax.training import trainer
from ccsrp_jax.training.trainer import Recipe
from ccsrp_jax.utils import devices
from ccsrp_jax.utils.errors import InputError

SMALL = zoo.plain((4, "A", 4), (8, 8, 1), 10, time_steps=2, mean=(0.3,), std=(0.4,))
RECIPE = Recipe(1, 8, adversarial=PGD(0.1, 2), trades=2.0, membrane=0.1, remat="layers", ema=0.9)


def trained(mesh: Mesh | None, batch_size: int = 8) -> dict[str, np.ndarray]:
    """Weights and batch statistics by place."""
    architecture = dataclasses.replace(SMALL, encoding="poisson", neuron=StochasticLIF())
    variables = trainer.train(
        jax.random.key(0),
        Classifier(architecture),
        busy(architecture, seed=0),
        masks.random(jax.random.key(1), architecture, 0.9),
        splits.Split(*(part[:24] for part in datasets.load("digits").train)),
        dataclasses.replace(RECIPE, batch_size=batch_size),
        augmentation="crop_flip_cutout",
        mesh=mesh,
    )
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def save(out: str) -> None:
    """On all devices of this process; and what is said of a batch that cannot be dealt out."""
    mesh = devices.mesh()
    try:
        trained(mesh, batch_size=7)
    except InputError as error:
        refused = str(error)
    np.savez(out, devices=len(jax.devices()), refused=refused, **trained(mesh))
