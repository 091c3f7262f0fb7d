"""CCEP's bit-flip EA, as a strategy of evosax.

Importing this module loads evosax, which is slow and initializes JAX: `strategies` does so once a
strategy is made.
"""

import jax
import jax.numpy as jnp
from evosax.algorithms.population_based import base
from flax import struct
from jaxtyping import Array, ScalarLike

from ccsrp_jax.coevolution.strategies import mutate


@struct.dataclass
class BitFlipParams(base.Params):
    """Parameters of `BitFlip`."""

    mutation_rate: ScalarLike
    min_kept: ScalarLike  # a 1 becomes 0 only while at least this many filters are kept
    current: Array  # (n,) 0/1, the group's current mask: filters that may be kept


class BitFlip(base.PopulationBasedAlgorithm):
    """CCEP's EA for one layer: bit-wise mutation of uniformly chosen parents, (mu + lambda)
    survival.

    Genomes are 0/1 vectors. A mutation visits the bits in order. With the mutation rate, a 0
    becomes 1, and a 1 becomes 0 if at least `min_kept` filters are kept at that point; so a child
    may keep one filter fewer than `min_kept`. A child that keeps none is replaced by its parent.

    References:
      Shang et al., Neural Network Pruning by Cooperative Coevolution, IJCAI 2022
      (procedure and constants as in its released code).
    """

    @property
    def _default_params(self) -> BitFlipParams:
        return BitFlipParams(0.1, 1, jnp.ones(self.num_dims))

    def _init(self, key: Array, params: BitFlipParams) -> base.State:
        return base.State(
            population=jnp.ones((self.population_size, self.num_dims)),
            fitness=jnp.full((self.population_size,), jnp.inf),
            best_solution=jnp.ones(self.num_dims),
            best_fitness=jnp.inf,
            generation_counter=0,
        )

    def _ask(self, key: Array, state: base.State, params: BitFlipParams):
        key_parent, key_flip = jax.random.split(key)
        chosen = jax.random.randint(key_parent, (self.population_size,), 0, self.population_size)
        keys = jax.random.split(key_flip, self.population_size)
        mutate_all = jax.vmap(mutate, in_axes=(0, 0, None, None, None))
        children = mutate_all(
            keys, state.population[chosen], params.current, params.mutation_rate, params.min_kept
        )
        return children, state

    def _tell(self, key: Array, population, fitness, state: base.State, params):
        pool = jnp.concatenate([state.population, population])
        pool_fitness = jnp.concatenate([state.fitness, fitness])
        best = jnp.argsort(pool_fitness)[: self.population_size]  # stable: ties favor parents
        return state.replace(population=pool[best], fitness=pool_fitness[best])
