"""A small population's scores and a round's search, to be run in a process of their own."""

from unittest import mock

import jax
import numpy as np
import psutil
from conftest import busy
from jax.sharding import Mesh

from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.coevolution import fitness, search
from ccsrp_jax.coevolution.racing import Racing
from ccsrp_jax.coevolution.settings import Search
from ccsrp_jax.coevolution.subproblem import make_task
from ccsrp_jax.data import datasets, splits
from ccsrp_jax.networks import masks, zoo
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.utils import devices

ARCHITECTURE = zoo.plain((4, "A", 4), (8, 8, 1), 10, time_steps=2, mean=(0.3,), std=(0.4,))
ATTACK = PGD(0.1, 1)


def small_splits() -> tuple[splits.Split, splits.Split]:
    """Clean images, and noisy ones in the place of a shared adversarial set."""
    clean = splits.Split(*(part[:20] for part in datasets.load("digits").search))
    noise = np.random.default_rng(0).uniform(-0.2, 0.2, clean.images.shape)
    return clean, splits.Split((clean.images + noise).clip(0, 1).astype(np.float32), clean.labels)


def scores(mesh: Mesh | None) -> dict[str, np.ndarray]:
    """By way and population, the fields of `Scores`."""
    clean, noisy = small_splits()
    ways = {
        "shared": (noisy, {"member_chunk": 2}),
        "single": (noisy, {"member_chunk": 1}),
        "white": (None, {"member_chunk": 2, "attack": ATTACK, "key": jax.random.key(3)}),
    }
    members = np.random.default_rng(1).integers(0, 2, (8, 4)).astype(np.float32)
    members[:, 0] = 1
    found = {}
    for way, (adversarial, options) in ways.items():
        task = make_task(
            Classifier(ARCHITECTURE),
            busy(ARCHITECTURE, seed=0),
            masks.random(jax.random.key(1), ARCHITECTURE, 0.9),
            "conv1",
            clean,
            adversarial,
            batch_size=8,
            mesh=mesh,
            **options,
        )
        for population in (8, 6, 3):
            found[f"{way} {population}"] = np.stack(fitness.score(task, members[:population]))
        racing = Racing(confidence=0.5, first=8, objective="loss")
        found[f"{way} race"] = np.stack(fitness.score(task, members, racing=racing))
    return found


def search_round(mesh: Mesh | None) -> dict[str, np.ndarray]:
    """Masks and objectives by group."""
    found = search.search_round(
        jax.random.key(0),
        Classifier(ARCHITECTURE),
        busy(ARCHITECTURE, seed=0),
        masks.ones(ARCHITECTURE),
        small_splits()[0],
        ATTACK,
        Search(population=3, generations=2, keep_floor=0.6),
        batch_size=8,
        mesh=mesh,
    )
    chosen = {f"mask of {group}": np.asarray(mask) for group, mask in found.masks.items()}
    return chosen | {f"{group}": result.objectives for group, result in found.groups.items()}


def save_scores(out: str) -> None:
    """On all devices of this process; and how many of 8 rows are dealt to each."""
    mesh = devices.mesh()
    placed = devices.put(mesh, np.arange(8), sharded=True)
    shares = [len(shard.data) for shard in placed.addressable_shards]
    np.savez(out, devices=len(jax.devices()), shares=shares, **scores(mesh))


def save_round(out: str, process: int) -> None:
    """Together with another process; and what both make of their free memory."""
    mesh = devices.mesh()
    results = search_round(mesh)
    free = mock.Mock(available=(process + 5) << 30)
    with mock.patch.object(psutil, "virtual_memory", return_value=free):
        results["free bytes"] = np.array(devices.free_bytes(mesh))
    np.savez(out, devices=len(jax.devices()), **results)
