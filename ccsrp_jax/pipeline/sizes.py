"""Sizes in the settings of a run that cannot work, refused before anything is created.

What is estimated here is less than what is needed; a size that passes can still be too large.
"""

import math

from jax.sharding import Mesh

from ccsrp_jax.data.splits import Dataset
from ccsrp_jax.networks.architecture import Architecture, groups, shapes
from ccsrp_jax.pipeline.config import Config
from ccsrp_jax.training.batches import full_batch
from ccsrp_jax.utils import devices
from ccsrp_jax.utils.errors import InputError

BYTES = 4  # of a float
COPIES = 4  # of a population that a strategy holds: parents, children, and their masks


def check_sizes(
    config: Config, data: Dataset, architecture: Architecture, mesh: Mesh | None
) -> None:
    """Checks batches, the latency measurement and the population.

    Raises:
      InputError: a batch that cannot be sharded evenly, or a size that memory cannot hold.
    """
    trained = [] if config.dense else [config.recipe]
    in_rounds = config.method == "rounds" and config.rounds > 0  # others use one device
    if in_rounds:
        trained.append(config.finetune_recipe)
    for recipe in trained:
        devices.check_divisible(full_batch(recipe, len(data.train.labels)), mesh)
    free = devices.free_bytes(mesh)
    largest = max(math.prod(shape) for shape in shapes(architecture).values())
    _check_fits("latency_batch", config.latency_batch, BYTES * largest, free)
    if in_rounds:
        genes = max(groups(architecture).values(), default=0)
        _check_fits("population", config.search.population, COPIES * BYTES * genes, free)


def _check_fits(name: str, count: int, each: int, free: int) -> None:
    if count * each > free:
        raise InputError(
            f"{name} {count} needs more than {devices.format_gib(count * each)} of memory, and "
            f"{devices.format_gib(free)} are free: give {free // each} or less."
        )
