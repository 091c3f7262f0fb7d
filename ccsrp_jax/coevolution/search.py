"""A round of cooperative coevolution: one sub-population of masks per group, spliced at the end.

The algorithm is the best-supported reading of CCSRP (arXiv 2408.00794), whose full text and code
were not available. Known of CCSRP: three objectives, one sub-problem per layer with all others
fixed, and one shared adversarial set made from mutated variants of the current network. From its
ancestor CCEP (IJCAI 2022, released code): the loop, the bit-flip EA and its constants. Everything
else is this library's choice and marked so.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.coevolution import fitness
from ccsrp_jax.coevolution.racing import rank_eliminated_last
from ccsrp_jax.coevolution.scoring import CertifiedBall
from ccsrp_jax.coevolution.settings import Search
from ccsrp_jax.coevolution.shared_set import shared_adversarial_sets
from ccsrp_jax.coevolution.subpopulation import GroupResult, OnGeneration, search_group
from ccsrp_jax.coevolution.subproblem import prepare_task
from ccsrp_jax.coevolution.task import Task
from ccsrp_jax.data.splits import Split
from ccsrp_jax.networks import masks as masking
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.inputs import checked_network
from ccsrp_jax.networks.masks import MaskTree
from ccsrp_jax.utils.aliases import keyword_aliases
from ccsrp_jax.utils.errors import InputError
from ccsrp_jax.utils.execution import Execution
from ccsrp_jax.utils.keys import checked_key


class RoundResult(NamedTuple):
    """The result of a round's search, before fine-tuning."""

    masks: MaskTree  # of all groups, spliced
    groups: dict[str, GroupResult]  # of the groups that were searched
    shared_sets: dict[str, Split]  # the adversarial set that each group was scored on, if any
    images: dict[str, int]  # by group: clean images that its masks were scored on, in total

    def distinct_sets(self) -> list[Split]:
        """The shared sets without repetition: one if pooled, one per group otherwise."""
        return list({id(split.images): split for split in self.shared_sets.values()}.values())


@dataclass(frozen=True)
class _Round:
    """What all groups of a round have in common."""

    classifier: Classifier
    variables: dict
    masks: MaskTree
    clean: Split
    attack: PGD
    search: Search
    execution: Execution


@keyword_aliases(report="on_generation", harm="importance", kept="keep_counts")
def search_round(
    key: Array,
    classifier: Classifier,
    variables: dict,
    masks: Mapping[str, Any],
    clean: Split,
    attack: PGD,
    search: Search,
    *,
    batch_size: int = 256,
    member_chunk: int | None = None,
    mesh: Mesh | None = None,
    on_generation: Callable[[str, int, float, int], None] = lambda *progress: None,
    importance: Mapping[str, Array | np.ndarray] | None = None,
    keep_counts: Mapping[str, int] | None = None,
) -> RoundResult:
    """Searches every group in the current network, then splices the chosen masks.

    All groups are searched in the network as it is at the start of the round.

    Args:
      key: for this round.
      classifier: the network, with the surrogate that the attack differentiates.
      variables, masks: the current network.
      clean: search images, held out of training.
      attack: makes the shared adversarial set.
      search: settings.
      batch_size: images per call of the scoring programs.
      member_chunk: members per call on each device, as in `make_task`.
      mesh: devices, as in `make_task`.
      on_generation: called after each generation with group, generation, lowest scalar value so
        far and number of masks scored. Formerly `report`.
      importance: of the filters of every group, as in `search_group`. Formerly `harm`.
      keep_counts: for every group the number of filters that candidates keep, as in
        `search_group`; groups that keep all are not searched. Formerly `kept`.

    Raises:
      InputError: the images, labels or key cannot be used, or as `search_group` and `make_task` do.
    """
    masks, clean = checked_network(classifier, variables, masks, clean)
    key_shared, key_search = jax.random.split(checked_key(key))
    # in the architecture's order, from which a restored mask tree may differ
    masks = {**masking.ones(classifier.architecture), **masks}
    groups = search.prunable(classifier.architecture, masks)
    if keep_counts is not None:
        groups = [group for group in groups if keep_counts[group] < int(masks[group].sum())]
    if not groups:  # nothing to search
        return RoundResult(masks, {}, {}, {})
    network = classifier, variables, masks
    shared_sets = shared_adversarial_sets(key_shared, *network, clean, attack, search, groups)
    execution = Execution(batch_size, member_chunk, mesh=mesh)
    this_round = _Round(*network, clean, attack, search, execution)
    results, images = {}, {}
    for number, group in enumerate(groups):
        results[group], images[group] = _search_in_round(
            this_round,
            jax.random.fold_in(key_search, number),
            jax.random.fold_in(key_search, 10**6 + number),
            group,
            shared_sets.get(group),
            on_generation=partial(on_generation, group),
            importance=None if importance is None else np.asarray(importance[group], np.float64),
            keep_count=None if keep_counts is None else keep_counts[group],
        )
    chosen = {group: jnp.asarray(result.mask) for group, result in results.items()}
    return RoundResult({**masks, **chosen}, results, shared_sets, images)


def _search_in_round(
    this_round: _Round,
    key: Array,
    key_scoring: Array,
    group: str,
    shared: Split | None,
    *,
    on_generation: OnGeneration,
    importance: np.ndarray | None,
    keep_count: int | None,
) -> tuple[GroupResult, int]:
    """One group's result, and the number of clean images that its masks were scored on."""
    task, images = _scoring_task(this_round, key_scoring, group, shared), []

    def evaluate(members: np.ndarray) -> np.ndarray:
        points, count = _objectives(task, members, this_round.search)
        images.append(count)
        return points

    result = search_group(
        key,
        np.asarray(this_round.masks[group]),
        evaluate,
        this_round.search,
        on_generation,
        importance=importance,
        keep_count=keep_count,
    )
    return result, sum(images)


def _scoring_task(this_round: _Round, key: Array, group: str, shared: Split | None) -> Task:
    """The sub-problem of a group; for a race its images are in random order."""
    search, clean, attack = this_round.search, this_round.clean, None
    key_task, key_order = jax.random.split(key)
    if search.certified:
        attack = _ball(this_round.attack)
    elif search.white_box_steps:
        attack = replace(this_round.attack, steps=search.white_box_steps)
    if search.racing:
        order = np.asarray(jax.random.permutation(key_order, len(clean.labels)))
        clean, shared = _reordered(clean, order), shared and _reordered(shared, order)
    task = prepare_task(
        this_round.classifier,
        this_round.variables,
        this_round.masks,
        group,
        clean,
        shared,
        this_round.execution,
        population=search.population,
        attack=attack,
        refresh=search.refresh_statistics,
        key=key_task,
    )
    return fitness.with_reference(task) if search.objective == "change" else task


def _ball(attack: PGD) -> CertifiedBall:
    """The ball of an attack.

    Raises:
      InputError: it is not of L-infinity.
    """
    if attack.norm != "linf":
        raise InputError(
            f"the attack's norm is {attack.norm}, and certificates are of an L-infinity ball: give "
            "an attack of norm linf, or search without `certified`."
        )
    return CertifiedBall(attack.eps)


def _reordered(split: Split, order: np.ndarray) -> Split:
    return Split(split.images[order], split.labels[order])


def _objectives(task: Task, members: np.ndarray, search: Search) -> tuple[np.ndarray, int]:
    """(M, 3) objectives of masks, minimized, and the number of images that were scored.

    The current mask, which is never chosen, takes no part in a race of the others.
    """
    points, images = np.empty((len(members), 3)), 0
    pruned = members.sum(-1) < np.asarray(task.masks[task.group]).sum()
    parts = (pruned, ~pruned) if search.racing else (np.ones_like(pruned),)
    for part in parts:
        if not part.any():
            continue
        racing = search.racing_rule if search.racing else None
        scores = fitness.score(task, members[part], racing=racing)
        images += int(scores.images.sum())
        eliminated = scores.images < task.images
        objectives = scores.objectives(search.objective)
        points[part] = rank_eliminated_last(objectives, eliminated, search.scalarize)
    return points, images
