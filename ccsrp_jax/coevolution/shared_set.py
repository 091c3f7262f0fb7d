"""Adversarial search images shared by all candidates, from mutated variants of the network."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ccsrp_jax.attacks.base import unchecked
from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.coevolution import strategies
from ccsrp_jax.coevolution.settings import Search
from ccsrp_jax.data.splits import Split, to_unit_range
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.masks import MaskTree


def shared_adversarial_sets(
    key: Array,
    classifier: Classifier,
    variables: dict,
    masks: MaskTree,
    clean: Split,
    attack: PGD,
    search: Search,
    groups: Sequence[str],
) -> dict[str, Split]:
    """The adversarial set that each group's candidates are scored on, by `search.shared_set`.

    Args:
      groups: to be searched.
      key, classifier, variables, masks, clean, attack, search: as in `search_round`.

    Returns:
      By group: one set for all if `pooled`; a set of its own, from as many variants, if
      `per_layer`; nothing if candidates are attacked themselves (`search.white_box_steps`) or
      certified (`search.certified`).
    """

    def make(number: int, mutated: list[str]) -> Split:
        key_set = jax.random.fold_in(key, number)
        return shared_adversarial_set(
            key_set, classifier, variables, masks, clean, attack, search, mutated
        )

    if search.white_box_steps or search.certified:
        return {}
    if search.shared_set == "pooled":
        return dict.fromkeys(groups, make(0, list(groups)))
    return {group: make(i, [group] * len(groups)) for i, group in enumerate(groups)}


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
    """Adversarial versions of the search images.

    The images are divided equally among the current network and its mutated variants; each attacks
    its share.

    Args:
      key: of mutations and attacks.
      classifier, variables, masks: the current network.
      clean: search images.
      attack: made on the current network and its variants.
      search: settings of the mutation.
      mutated: one variant for each name, whose mask of that group is mutated once; a name may
        occur more than once.
    """
    key_mutate, key_attack = jax.random.split(key)
    total = len(clean.labels)
    # at most one network per image
    variants = [masks, *_mutants(key_mutate, masks, search, mutated)][:total]
    share = -(-total // len(variants))  # padded to equal shares, so that one program serves all
    images = np.empty((total, *clean.images.shape[1:]), np.float32)
    for number, variant in enumerate(variants):
        indices = np.arange(number, total, len(variants))
        padded = indices[np.arange(share) % len(indices)]
        adversarial = unchecked(attack)(
            classifier,
            (variables, variant),
            jnp.asarray(to_unit_range(jnp.asarray(clean.images[padded]))),
            jnp.asarray(clean.labels[padded]),
            jax.random.fold_in(key_attack, number),
        )
        images[indices] = np.asarray(adversarial)[: len(indices)]
    return Split(images, clean.labels)


def _mutants(key: Array, masks: MaskTree, search: Search, groups: list[str]) -> list[MaskTree]:
    """For each group named, the masks with that group's mutated once."""
    mutants = []
    for number, group in enumerate(groups):
        mask = masks[group]
        mutant = strategies.mutate(
            jax.random.fold_in(key, number),
            mask,
            mask,
            search.mutation_rate,
            strategies.bit_flip_keep_count(int(np.asarray(mask).sum()), search.keep_floor),
        )
        mutants.append({**masks, group: mutant})
    return mutants
