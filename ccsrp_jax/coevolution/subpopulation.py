"""The search of one group: a sub-population of masks, evolved with all other groups fixed."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ccsrp_jax.coevolution import selection, strategies
from ccsrp_jax.coevolution.importance import genes_by_importance, removal_importance
from ccsrp_jax.coevolution.settings import Search
from ccsrp_jax.utils.aliases import keyword_aliases
from ccsrp_jax.utils.errors import InputError
from ccsrp_jax.utils.keys import checked_key

Evaluate = Callable[[np.ndarray], np.ndarray]  # (M, n) masks to (M, 3) objectives, minimized
OnGeneration = Callable[[int, float, int], None]  # generation, best scalar value, evaluations


class GroupResult(NamedTuple):
    """The result of one group's search: the chosen mask, its objectives and what was scored."""

    mask: np.ndarray  # (n,)
    objectives: np.ndarray  # (3,) clean, robust and MACs, minimized
    evaluations: int  # distinct masks scored
    best: list[float]  # lowest scalar value so far, after each generation
    not_finite: int  # masks with a non-finite logit
    scored_masks: np.ndarray  # (N, n) all distinct masks, in the order of scoring
    scored_objectives: np.ndarray  # (N, 3)
    importance: np.ndarray | None  # (n,) increase of the scalar value if a filter is removed alone


@dataclass(frozen=True)
class ScoredMasks:
    """Cache of the objectives of every distinct mask that a search has scored."""

    evaluate: Evaluate
    masks: dict[bytes, np.ndarray] = field(default_factory=dict)
    points: dict[bytes, np.ndarray] = field(default_factory=dict)

    def objectives(self, members: Float[np.ndarray, "M n"]) -> Float[np.ndarray, "M 3"]:
        """Objectives of masks; only those not in the cache are evaluated, each once."""
        names = [np.packbits(member > 0).tobytes() for member in members]
        new = {
            name: member
            for name, member in zip(names, members, strict=True)
            if name not in self.points
        }
        if new:
            self.masks.update(new)
            evaluated = self.evaluate(np.stack(list(new.values())))
            self.points.update(zip(new, evaluated, strict=True))
        return np.stack([self.points[name] for name in names])

    def all_masks(self) -> Float[np.ndarray, "N n"]:
        """All masks of the cache, in the order of scoring."""
        return np.stack(list(self.masks.values()))

    def all_objectives(self) -> Float[np.ndarray, "N 3"]:
        """Their objectives."""
        return np.stack(list(self.points.values()))


@dataclass(frozen=True)
class Subpopulation:
    """What stays the same during the search of one group.

    Attributes:
      current: (n,) 0/1, the group's current mask.
      search: settings.
      keep_counts: numbers of filters that candidates keep, used by generations in turn.
      algorithm, params: the strategy.
      scored: masks scored so far.
    """

    current: np.ndarray
    search: Search
    keep_counts: tuple[int, ...]
    algorithm: strategies.EvolutionaryAlgorithm
    params: Any
    scored: ScoredMasks

    @property
    def is_bit_flip(self) -> bool:
        """Whether genomes are masks, as CCEP's EA has them."""
        return self.search.is_bit_flip

    @property
    def has_parents(self) -> bool:
        """Whether the strategy keeps a population, and not a distribution only."""
        return not strategies.is_distribution_based(self.search.strategy)

    @property
    def min_kept(self) -> int:
        """Fewest filters that any generation keeps."""
        return min(self.keep_counts)

    def decode(self, genomes: Array, keep_count: int | None = None) -> Float[np.ndarray, "P n"]:
        """Masks of genomes; `keep_count` defaults to `min_kept`."""
        if self.is_bit_flip:
            return np.asarray(genomes)
        least = self.min_kept if keep_count is None else keep_count
        current = jnp.asarray(self.current)
        return np.asarray(strategies.decode(genomes, current, least, decoder=self.search.decoder))

    def fitness(self, points: Float[np.ndarray, "M 3"]) -> np.ndarray:
        """(M,) minimized: ranks among these points for `nsga2` and bit flips, else scalar values.

        Infinite values, which many strategies do not support, become the worst finite one plus 1.
        """
        if self.search.selection == "nsga2":
            with strategies.own_numerics():  # crowding distances may be infinite
                return np.asarray(selection.nsga2(jnp.asarray(points, jnp.float32)))
        own = callable(self.search.selection)
        values = self.search.selected(points) if own else self.search.scalarize(points)
        if self.is_bit_flip:  # ranked in float64, since float32 values would tie
            return np.unique(values, return_inverse=True)[1]
        known = values if own else self.search.scalarize(self.scored.all_objectives())
        worst = known[np.isfinite(known)].max(initial=0)
        return np.where(np.isfinite(values), values, worst + 1)


@keyword_aliases(report="on_generation", harm="importance", kept="keep_count")
def search_group(
    key: Array,
    current: np.ndarray,
    evaluate: Evaluate,
    search: Search,
    on_generation: OnGeneration = lambda generation, best, evaluations: None,
    *,
    importance: np.ndarray | None = None,
    keep_count: int | None = None,
) -> GroupResult:
    """Evolves one group's mask.

    Args:
      key: for this group and round.
      current: (n,) 0/1, the group's current mask.
      evaluate: (M, n) masks to (M, 3) objectives, minimized; called with distinct new masks.
      search: settings.
      on_generation: called after each generation with its number, the lowest scalar value so far
        and the number of masks scored.
      importance: (n,) of the filters, if known, from which evosax strategies with the decoder
        `topk` start; it takes the place of `search.single_removals`. Formerly `harm`.
      keep_count: number of filters that every candidate of such a strategy keeps, in place of
        `search.keep_floor` and `search.levels`. Formerly `kept`.

    Returns:
      The best of all scored masks that remove a filter (as in CCEP, the current mask itself is not
      eligible); with `nsga2`, the one of the first front with the lowest scalar value.

    Raises:
      InputError: every mask had a non-finite logit, or the strategy cannot keep a given number
        of filters.
    """
    group = _make_subpopulation(np.asarray(current, np.float32), evaluate, search, keep_count)
    scored, counts = group.scored, group.keep_counts
    keys = jax.random.split(checked_key(key), 5)
    key_init, key_state, key_loop, key_noise, key_spare = keys
    if group.has_parents:
        state = _init_population(group, key_init, key_noise, key_state)
    else:
        state, importance = _init_distribution(group, key_state, importance)
    with strategies.own_numerics():
        state = strategies.strip_weak_types(state)
    best = []
    for generation in range(search.generations):
        key_generation = jax.random.fold_in(key_loop, generation)
        state = _evolve(group, key_generation, state, counts[generation % len(counts)])
        best.append(float(search.scalarize(scored.all_objectives()).min()))
        on_generation(generation, best[-1], len(scored.points))
    _ensure_removal(group, key_spare)
    winner = _choose(group)
    masks, points = scored.all_masks(), scored.all_objectives()
    return GroupResult(
        mask=masks[winner],
        objectives=points[winner],
        evaluations=len(points),
        best=best,
        not_finite=int((~np.isfinite(points).all(-1)).sum()),
        scored_masks=masks,
        scored_objectives=points,
        importance=importance,
    )


def _make_subpopulation(
    current: Float[np.ndarray, "n"], evaluate: Evaluate, search: Search, keep_count: int | None
) -> Subpopulation:
    if keep_count is not None and (search.is_bit_flip or search.decoder != "topk"):
        raise InputError(
            f"strategy {search.strategy} with decoder {search.decoder} cannot keep a given number "
            "of filters: use an evosax strategy, such as SNES, with decoder topk."
        )
    filters = int(current.sum())
    if keep_count is None:
        shares = search.levels or (search.keep_floor,)
        counts = [strategies.keep_count(filters, s, search.width_multiple) for s in shares]
    else:
        counts = [keep_count]
    algorithm = strategies.make_strategy(search.strategy, search.population, len(current))
    with strategies.own_numerics():
        params = algorithm.default_params
    if search.is_bit_flip:
        params = params.replace(
            mutation_rate=search.mutation_rate,
            min_kept=strategies.bit_flip_keep_count(filters, search.keep_floor),
            current=jnp.asarray(current),
        )
    return Subpopulation(current, search, tuple(counts), algorithm, params, ScoredMasks(evaluate))


def _init_population(group: Subpopulation, key_init: Array, key_noise: Array, key_state: Array):
    """State of a strategy with parents: random masks, scored."""
    search = group.search
    genomes = strategies.initial_masks(
        key_init,
        jnp.asarray(group.current),
        search.init_keep,
        group.min_kept,
        size=search.population,
    )
    if not group.is_bit_flip:  # genes around 0 whose order is that of the masks' bits
        genomes = genomes - 0.5 + 0.1 * jax.random.normal(key_noise, genomes.shape)
    fitness = group.fitness(group.scored.objectives(group.decode(genomes)))
    genomes, fitness = (jnp.asarray(each, jnp.float32) for each in (genomes, fitness))
    with strategies.own_numerics():
        return group.algorithm.init(key_state, genomes, fitness, group.params)


def _init_distribution(
    group: Subpopulation, key_state: Array, importance: np.ndarray | None
) -> tuple[Any, np.ndarray | None]:
    """State of a strategy without parents, and the importance that its mean starts from, if any."""
    search = group.search
    # topk uses only the order of genes; with threshold, most filters are to be kept at first
    mean = jnp.full(len(group.current), 1.0 if search.decoder == "threshold" else 0.0)
    if importance is None and search.single_removals:
        importance = removal_importance(
            group.current, lambda masks: search.scalarize(group.scored.objectives(masks))
        )
    if importance is not None:
        mean = genes_by_importance(group.current, importance)
        for count in group.keep_counts:  # the order itself, before it is varied
            group.scored.objectives(group.decode(mean[None], count))
    mean = jnp.asarray(mean, jnp.float32)
    with strategies.own_numerics():
        return group.algorithm.init(key_state, mean, group.params), importance


def _evolve(group: Subpopulation, key: Array, state: Any, keep_count: int) -> Any:
    """The strategy's state after one generation."""
    key_ask, key_tell = jax.random.split(key)
    algorithm: Any = group.algorithm
    by_rank = group.search.selects_by_rank or group.is_bit_flip
    with strategies.own_numerics():
        genomes, state = algorithm.ask(key_ask, state, group.params)
    points = group.scored.objectives(group.decode(genomes, keep_count))
    if by_rank and group.has_parents:
        # ranks hold among the points they were given for only: rank parents and children together
        parents = group.scored.objectives(group.decode(algorithm.get_population(state)))
        ranks = group.fitness(np.concatenate([parents, points]))
        state = state.replace(
            fitness=jnp.asarray(ranks[: len(parents)], jnp.float32),
            best_fitness=np.float32(np.inf),
        )
        fitness = ranks[len(parents) :]
    else:
        fitness = group.fitness(points)
    fitness = jnp.asarray(fitness, jnp.float32)
    with strategies.own_numerics():
        state, _ = algorithm.tell(key_tell, genomes, fitness, state, group.params)
    return state


def _ensure_removal(group: Subpopulation, key: Array) -> None:
    """If no scored mask removes a filter, scores one that removes a filter at random."""
    filters = int(group.current.sum())
    if any(mask.sum() != filters for mask in group.scored.masks.values()):
        return
    mask = group.current.copy()
    mask[np.flatnonzero(mask)[int(jax.random.randint(key, (), 0, filters))]] = 0
    group.scored.objectives(mask[None])


def _choose(group: Subpopulation) -> int:
    """Index of the best mask among those that remove a filter and have finite objectives."""
    masks, points = group.scored.all_masks(), group.scored.all_objectives()
    eligible = (masks.sum(-1) < group.current.sum()) & np.isfinite(points).all(-1)
    if not eligible.any():
        raise InputError(
            "no candidate mask gave finite logits: look for values that are not finite in the "
            "network's variables, or train with a lower learning rate."
        )
    indices = np.flatnonzero(eligible)
    own = callable(group.search.selection)
    values = (group.search.selected if own else group.search.scalarize)(points[indices])
    if group.search.selection == "nsga2":
        with strategies.own_numerics():
            ranks = selection.front_ranks(jnp.asarray(points[indices], jnp.float32))
        values = np.where(np.asarray(ranks) == 0, values, np.inf)
    return int(indices[np.argmin(values)])
