"""Cooperative coevolution: one sub-population of masks per group, spliced once a round.

The algorithm is the best-supported reading of CCSRP (arXiv 2408.00794), whose full text
and code could not be had: three objectives, a sub-problem per layer with all others held
fixed, and one shared adversarial set made from mutated variants of the current network
are known of it; the loop, the bit-flip EA and its constants are those of its ancestor
CCEP (IJCAI 2022, released code); everything else is this library's choice and says so.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from evosax.algorithms.population_based.base import PopulationBasedAlgorithm
from jax.sharding import Mesh
from jaxtyping import Array

from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.coevolution import fitness, selection, strategies, subproblem
from ccsrp_jax.coevolution.settings import Search
from ccsrp_jax.data.splits import Split, to_unit_range
from ccsrp_jax.networks import masks as masking
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.masks import MaskTree
from ccsrp_jax.utils.errors import InputError


class Found(NamedTuple):
    """A group's result: the chosen mask, its objectives and what the search cost."""

    mask: np.ndarray
    objectives: np.ndarray  # (3,) minimised: clean, robust, MACs
    evaluations: int  # distinct masks scored
    best: list[float]  # lowest weighted sum so far, after each generation
    not_finite: int  # masks of which a logit was not finite
    scored: tuple[np.ndarray, np.ndarray]  # all masks, (N, n), and their objectives, (N, 3)
    harm: np.ndarray | None  # (n,) what removing each filter alone adds to the weighted sum


def shared_adversarial_set(
    key: Array,
    classifier: Classifier,
    variables: dict,
    masks: MaskTree,
    clean: Split,
    attack: PGD,
    search: Search,
    mutated: list[str],
) -> Split:
    """Adversarial versions of the search images, the same for all candidates.

    The images are dealt out to the current network and to one variant for every name in
    `mutated`, whose mask of that group is mutated once; each variant attacks its share.

    Args:
      mutated: groups to mutate, one variant each; a name may come more than once.
    """
    key_mutate, key_attack = jax.random.split(key)
    variants = [masks]
    for number, group in enumerate(mutated):
        key_variant = jax.random.fold_in(key_mutate, number)
        alive = masks[group]
        least = _least_kept(np.asarray(alive), search.keep_floor)
        child = strategies.mutate(key_variant, alive, alive, search.mutation_rate, least)
        variants.append(masks | {group: child})
    total = len(clean.labels)
    variants = variants[:total]  # each gets an image at least
    share = -(-total // len(variants))  # equal shares, so that one program serves all
    images = np.empty((total, *clean.images.shape[1:]), np.float32)
    for number, variant in enumerate(variants):
        places = np.arange(number, total, len(variants))
        fill = places[np.arange(share) % len(places)]
        adversarial = attack(
            classifier,
            (variables, variant),
            to_unit_range(jnp.asarray(clean.images[fill])),
            jnp.asarray(clean.labels[fill]),
            jax.random.fold_in(key_attack, number),
        )
        images[places] = np.asarray(adversarial)[: len(places)]
    return Split(images, clean.labels)


def _least_kept(alive: np.ndarray, keep_floor: float) -> int:
    """The ancestor's floor: a mutation clears a bit only while this many are kept."""
    return math.ceil(keep_floor * int(alive.sum()) - 1e-9)


def search_group(
    key: Array,
    alive: np.ndarray,
    evaluate: Callable[[np.ndarray], np.ndarray],
    search: Search,
    report: Callable[[int, float, int], None] = lambda generation, best, evaluations: None,
    *,
    harm: np.ndarray | None = None,
    kept: int | None = None,
) -> Found:
    """Evolves one group's mask.

    Args:
      key: for this group and round.
      alive: (n,) 0/1, the group's current mask.
      evaluate: (M, n) masks to (M, 3) objectives, minimised; called on distinct new masks.
      search: settings.
      report: called after each generation.
      harm: (n,) of removing each filter, as far as it is known, for evosax strategies with the
        decoder `topk` to start from; in place of `single_removals`.
      kept: filters that every candidate of such a strategy keeps, in place of `keep_floor` and
        `levels`.

    Returns:
      The best mask ever scored that removes a filter: the unpruned one is refused, as in
      CCEP. With `nsga2` it is the best weighted sum of the first front.

    Raises:
      InputError: no mask gave logits that are all finite.
    """
    alive = np.asarray(alive, np.float32)
    seen: dict[bytes, np.ndarray] = {}
    masks: dict[bytes, np.ndarray] = {}

    def objectives(members: np.ndarray) -> np.ndarray:
        names = [np.packbits(member > 0).tobytes() for member in members]
        new = {
            name: member for name, member in zip(names, members, strict=True) if name not in seen
        }
        if new:
            masks.update(new)
            seen.update(zip(new, evaluate(np.stack(list(new.values()))), strict=True))
        return np.stack([seen[name] for name in names])

    def scalar(points: np.ndarray) -> np.ndarray:
        if search.selection == "nsga2":
            return np.asarray(selection.nsga2(jnp.asarray(points, jnp.float32)))
        if bit_flip:  # places in float64: as float32 values, small ties would be lost
            return np.unique(weigh(points), return_inverse=True)[1]
        values, known = weigh(points), weigh(np.stack(list(seen.values())))
        worst = known[np.isfinite(known)].max(initial=0)  # many strategies end on an infinity
        return np.where(np.isfinite(values), values, worst + 1)

    if kept is not None and (search.strategy == "BitFlip" or search.decoder != "topk"):
        raise InputError(
            f"strategy {search.strategy} with decoder {search.decoder} cannot keep a given number "
            "of filters: use an evosax strategy, such as SNES, with decoder topk."
        )
    weigh = search.weigh
    n = len(alive)
    levels = search.levels or (search.keep_floor,)
    counts = [strategies.floor_count(int(alive.sum()), level, search.step) for level in levels]
    counts = counts if kept is None else [kept]
    least = min(counts)
    bit_flip = search.strategy == "BitFlip"
    algorithm = strategies.strategy(search.strategy, search.population, n)
    params = algorithm.default_params
    if bit_flip:
        params = params.replace(
            mutation_rate=search.mutation_rate,
            least=_least_kept(alive, search.keep_floor),
            alive=jnp.asarray(alive),
        )

    def decode(genomes: Array, kept: int = least) -> np.ndarray:
        if bit_flip:
            return np.asarray(genomes)
        decoded = strategies.decode(genomes, jnp.asarray(alive), kept, decoder=search.decoder)
        return np.asarray(decoded)

    key_init, key_state, key_loop, key_noise, key_spare = jax.random.split(key, 5)
    start = strategies.initial_masks(
        key_init, jnp.asarray(alive), search.init_keep, least, size=search.population
    )
    has_parents = isinstance(algorithm, PopulationBasedAlgorithm)
    if has_parents:
        if not bit_flip:  # genes around 0 that decode to the first masks' order
            start = start - 0.5 + 0.1 * jax.random.normal(key_noise, start.shape)
        first = jnp.asarray(scalar(objectives(decode(start))), jnp.float32)
        state = algorithm.init(key_state, start, first, params)
    else:
        # topk looks at the order of genes only; threshold starts where most are kept
        mean = jnp.full(n, 1.0 if search.decoder == "threshold" else 0.0)
        if harm is None and search.single_removals:
            harm = _harm(alive, lambda members: weigh(objectives(members)))
        if harm is not None:
            mean = _start(alive, harm)
            for kept in counts:  # the order itself, before it is varied
                objectives(decode(mean[None], kept))
        state = algorithm.init(key_state, mean, params)
    state = strategies.strong(state)

    best = []
    for generation in range(search.generations):
        key_ask, key_tell = jax.random.split(jax.random.fold_in(key_loop, generation))
        population, state = algorithm.ask(key_ask, state, params)
        points = objectives(decode(population, counts[generation % len(counts)]))
        if bit_flip or (has_parents and search.selection == "nsga2"):
            # a place is only meaningful among those it was given with: rank parents anew
            parents = objectives(decode(algorithm.get_population(state)))
            order = scalar(np.concatenate([parents, points]))
            state = state.replace(
                fitness=jnp.asarray(order[: len(parents)], jnp.float32),
                best_fitness=jnp.asarray(jnp.inf, jnp.float32),
            )
            values = order[len(parents) :]
        else:
            values = scalar(points)
        state, _ = algorithm.tell(
            key_tell, population, jnp.asarray(values, jnp.float32), state, params
        )
        best.append(float(weigh(np.stack(list(seen.values()))).min()))
        report(generation, best[-1], len(seen))

    if all(mask.sum() == alive.sum() for mask in masks.values()):
        dropped = alive.copy()  # nothing but the unpruned mask was drawn: let one filter go
        which = int(jax.random.randint(key_spare, (), 0, int(alive.sum())))
        dropped[np.flatnonzero(alive)[which]] = 0
        objectives(dropped[None])
    finite = {name: bool(np.isfinite(point).all()) for name, point in seen.items()}
    candidates = [name for name, mask in masks.items() if mask.sum() < alive.sum() and finite[name]]
    if not candidates:
        raise InputError(
            "no candidate mask gave finite logits: look for values that are not finite in the "
            "network's variables, or train with a lower learning rate."
        )
    points = np.stack([seen[name] for name in candidates])
    preference = weigh(points)
    if search.selection == "nsga2":
        ranks = np.asarray(selection.front_ranks(jnp.asarray(points, jnp.float32)))
        preference = np.where(ranks == 0, preference, np.inf)
    winner = candidates[int(np.argmin(preference))]
    not_finite = len(finite) - sum(finite.values())
    scored = np.stack(list(masks.values())), np.stack([seen[name] for name in masks])
    return Found(masks[winner], seen[winner], len(seen), best, not_finite, scored, harm)


def _harm(alive: np.ndarray, weighed: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """By filter, what its removal alone adds to the weighted sum; 0 for those that are gone."""
    places = np.flatnonzero(alive)
    singles = np.repeat(alive[None], len(places), axis=0)
    singles[np.arange(len(places)), places] = 0
    if len(places) == 1:  # the last filter stays
        return np.zeros_like(alive)
    values = weighed(np.concatenate([alive[None], singles]))
    worst = np.where(np.isfinite(values), values, np.nanmax(np.where(np.isinf(values), 0, values)))
    harm = np.zeros_like(alive)
    harm[places] = worst[1:] - worst[0]
    return harm


def _start(alive: np.ndarray, harm: np.ndarray) -> Array:
    """Genes in the order of harm, as far apart as two standard normal draws twice over, so that
    a strategy's first steps, of length 1, vary that order but do not forget it."""
    places = np.flatnonzero(alive)
    rank = np.argsort(np.argsort(harm[places], kind="stable"), kind="stable")
    genes = np.zeros(len(alive), np.float32)
    genes[places] = 2 * jax.scipy.stats.norm.ppf((rank + 0.5) / len(places))
    return jnp.asarray(genes)


class Round(NamedTuple):
    """What a round's searches found, before fine-tuning."""

    masks: MaskTree
    found: dict[str, Found]  # by group; without groups too small to lose a filter
    shared_sets: dict[str, Split]  # the adversarial set that each group was scored on, if any
    images: dict[str, int]  # clean images that each group's masks were scored on, all together

    def distinct_sets(self) -> list[Split]:
        """The shared sets, each once: one if pooled, one a group otherwise."""
        return list({id(split.images): split for split in self.shared_sets.values()}.values())


def search_round(
    key: Array,
    classifier: Classifier,
    variables: dict,
    masks: MaskTree,
    clean: Split,
    attack: PGD,
    search: Search,
    *,
    batch_size: int = 256,
    member_chunk: int | None = None,
    mesh: Mesh | None = None,
    report: Callable[[str, int, float, int], None] = lambda *progress: None,
    harm: Mapping[str, np.ndarray] | None = None,
    kept: Mapping[str, int] | None = None,
) -> Round:
    """Searches every group in the current network, then splices all masks at once.

    Groups do not see each other's results within a round.

    Args:
      key: for this round.
      classifier: the network and the surrogate that the attack goes through.
      variables, masks: the current network.
      clean: search images, held out of training.
      attack: makes the shared adversarial set.
      search: settings.
      batch_size: images a call of the scoring programs.
      member_chunk: candidates a call, as in `tasks.make_task`.
      mesh: devices, likewise.
      report: called with group, generation, best fitness and number of evaluations.
      harm: by group, of removing each filter, as in `search_group`.
      kept: by group, filters that candidates keep, likewise; groups that are to lose none are
        not searched.
    """
    key_shared, key_search = jax.random.split(key)
    # in the architecture's order, which a restored mask tree may not be in
    masks = masking.ones(classifier.architecture) | dict(masks)
    prunable = search.prunable(classifier.architecture, masks)
    if kept is not None:
        prunable = [group for group in prunable if kept[group] < int(masks[group].sum())]

    def shared(number: int, mutated: list[str]) -> Split:
        key_set = jax.random.fold_in(key_shared, number)
        return shared_adversarial_set(
            key_set, classifier, variables, masks, clean, attack, search, mutated
        )

    if search.white_box_steps:
        shared_sets = {}
    elif search.shared_set == "pooled":
        pooled = shared(0, prunable)
        shared_sets = dict.fromkeys(prunable, pooled)
    else:
        variants = len(prunable)  # as many as the pooled reading has
        shared_sets = {g: shared(i, [g] * variants) for i, g in enumerate(prunable)}

    found, images = {}, dict.fromkeys(prunable, 0)
    race = search.race if search.racing else None
    for number, group in enumerate(prunable):
        key_group = jax.random.fold_in(key_search, number)
        key_task, key_order = jax.random.split(jax.random.fold_in(key_search, 10**6 + number))
        white_box = search.white_box_steps and replace(attack, steps=search.white_box_steps)
        splits = clean, shared_sets.get(group)
        if race:  # a head of the images then says something about all of them
            order = np.asarray(jax.random.permutation(key_order, len(clean.labels)))
            splits = [split and Split(*(part[order] for part in split)) for split in splits]
        task = subproblem.make_task(
            classifier,
            variables,
            masks,
            group,
            *splits,
            batch_size=batch_size,
            population=search.population,
            member_chunk=member_chunk,
            mesh=mesh,
            attack=white_box or None,
            key=key_task,
        )
        if search.objective == "change":
            task = fitness.refer(task)

        def evaluate(members: np.ndarray, task: subproblem.Task = task) -> np.ndarray:
            points = np.empty((len(members), 3))
            pruned = members.sum(-1) < np.asarray(masks[task.group]).sum()
            # the unpruned mask is never chosen, and must not beat those that may be
            for part in (pruned, ~pruned) if race else (np.ones_like(pruned),):
                if part.any():
                    scores = fitness.score(task, members[part], racing=race)
                    images[task.group] += int(scores.images.sum())
                    points[part] = _behind(scores, task.images, search)
            return points

        found[group] = search_group(
            key_group,
            np.asarray(masks[group]),
            evaluate,
            search,
            partial(report, group),
            harm=harm and np.asarray(harm[group], np.float64),
            kept=kept and kept[group],
        )
    spliced = masks | {group: jnp.asarray(result.mask) for group, result in found.items()}
    return Round(spliced, found, shared_sets, images)


def _behind(scores: fitness.Scores, total: int, search: Search) -> np.ndarray:
    """Objectives, those of members that dropped out raised above the worst that did not: their
    means over fewer images must not put them in front of what beat them."""
    points, out = scores.objectives(search.objective), scores.images < total
    value = search.weigh(points)
    stayed = value[~out & np.isfinite(value)]
    if stayed.size:
        raised = stayed.max() + 1e-9 - value[out]  # above: an equal one could be chosen
        points[out, 0] += np.maximum(raised, 0)
    return points
