"""Settings of a round's search, and the presets that name them."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from ccsrp_jax.coevolution import selection, strategies
from ccsrp_jax.coevolution.racing import Racing
from ccsrp_jax.networks.architecture import Architecture, coupled, groups
from ccsrp_jax.networks.masks import MaskTree
from ccsrp_jax.utils.errors import InputError, check_number, unknown

CHOICES = {
    "decoder": ("threshold", "topk"),
    "objective": ("accuracy", "loss", "change"),
    "selection": ("weighted_sum", "nsga2"),
    "shared_set": ("pooled", "per_layer"),
    "splice": ("winners", "price"),
}


# They hold on to a best fitness of earlier generations, which an order by ranks has not.
REMEMBERING = ("PSO", "HillClimbing", "GradientlessDescent", "SimulatedAnnealing")


@dataclass(frozen=True)
class Search:
    """Settings of a round's search; the defaults are the preset `faithful`.

    Where each comes from is marked: (CCEP) the ancestor's released code, (CCSRP) known of
    the method, (ours) chosen here because no source tells.

    Attributes:
      strategy: `BitFlip` (CCEP) or the name of any evosax algorithm (ours).
      population: members of a sub-population (CCEP: 5).
      generations: a group's generations in a round (CCEP: 10).
      keep_floor: share of a group's filters that a round keeps at least (CCEP: 0.9). As
        there, bit flips may end one filter below; at least one filter may always go.
      mutation_rate: of a bit, for `BitFlip` and for the variants that the shared
        adversarial set is made from (CCEP: 0.1; its use for the variants ours).
      init_keep: probability of a 1 in the first population (CCEP: 0.95).
      decoder: genomes to masks for evosax strategies (ours); see `evolution.decode`. With
        `topk` all candidates of a group keep equally many filters, so MACs do not tell
        them apart and the floor alone sets the pace.
      multiple: `topk` rounds the floor down to a multiple of this many filters, and leaves
        a group alone that has no more (ours: convolutions are slow on odd numbers of
        channels). Small groups lose more than the floor says.
      objective: `accuracy` (CCEP); `loss`, which ties less often; or `change`, the mean over
        images of how far the loss is from that of the current network, up or down: what
        fine-tuning has to mend, and not what search images happen to gain (both ours).
      selection: `weighted_sum` with ties to fewer MACs, or `nsga2` (both ours).
      robust_weight: weight of the robust objective beside the clean one (ours).
      macs_weight: weight of the share of MACs left; 0 leaves MACs to break ties (CCEP).
      shared_set: `pooled`, every variant attacks its part of the search images, or
        `per_layer`, a group's set comes from variants mutated in that group (two readings
        of what is known of CCSRP).
      white_box_steps: if above 0, every candidate is attacked itself with so many PGD steps,
        in place of the shared set (ours). A candidate then costs 2 or 3 times as many passes of
        the whole network as there are steps, and not a part of one.
      residual_streams: also prune groups that additions couple, all layers that write into a
        residual stream at once (ours); CCEP leaves them alone.
      racing: candidates that are beaten beyond chance drop out before they have seen all
        search images (ours); see `racing.Racing`.
      racing_confidence: that the best candidate of a race stays in it.
      single_removals: first score the removal of every single filter, and start an evosax
        strategy from the order of their harm (ours).
      levels: shares of a group's filters that the generations of an evosax strategy keep, by
        turns, in place of `keep_floor` (ours). Only for strategies that compare candidates of
        one generation alone.
      splice: `winners`, every group's best mask (CCEP), or `price`, see `priced` (ours).
    """

    strategy: str = "BitFlip"
    population: int = 5
    generations: int = 10
    keep_floor: float = 0.9
    mutation_rate: float = 0.1
    init_keep: float = 0.95
    decoder: strategies.Decoder = "topk"
    multiple: int = 1
    objective: Literal["accuracy", "loss", "change"] = "accuracy"
    selection: Literal["weighted_sum", "nsga2"] = "weighted_sum"
    robust_weight: float = 1.0
    macs_weight: float = 0.0
    shared_set: Literal["pooled", "per_layer"] = "pooled"
    white_box_steps: int = 0
    residual_streams: bool = False
    racing: bool = False
    racing_confidence: float = 0.95
    single_removals: bool = False
    levels: tuple[float, ...] = ()
    splice: Literal["winners", "price"] = "winners"

    def __post_init__(self) -> None:
        if self.strategy not in strategies.strategies():
            raise unknown("strategy", self.strategy, strategies.strategies())
        if self.population < 2:
            raise InputError(
                f"population {self.population} is too small to search: give 2 or more members."
            )
        for name, options in CHOICES.items():
            if getattr(self, name) not in options:
                raise unknown(name, getattr(self, name), options)
        if self.selection == "nsga2" and self.strategy in REMEMBERING:
            raise InputError(
                f"strategy {self.strategy} compares ranks of different generations: use it with "
                "selection weighted_sum, or choose another strategy for nsga2."
            )
        check_number("generations", self.generations, 1)
        check_number("multiple", self.multiple, 1)
        for name in ("keep_floor", "mutation_rate", "init_keep"):
            check_number(name, getattr(self, name), 0, 1, above=True)
        for level in self.levels:
            check_number("each of levels", level, 0, 1, above=True)
        orders = self.decoder == "topk" and strategies.is_distribution(self.strategy)
        if (self.levels or self.single_removals) and not orders:
            raise InputError(
                f"levels and single_removals need decoder topk and a strategy without parents: "
                f"{self.strategy} with {self.decoder} is none; use SNES, say, or leave them out."
            )
        check_number("white_box_steps", self.white_box_steps, 0)
        if self.objective != "change":
            _ = self.race  # checks its values
        if self.racing and self.objective == "change":
            raise InputError("racing compares accuracies or losses: use another objective.")
        if self.racing and self.selection == "nsga2":
            raise InputError(
                "racing compares candidates by one value: use it with selection weighted_sum."
            )

    @property
    def race(self) -> Racing:
        """When a candidate is out, if there are races."""
        return Racing(
            confidence=self.racing_confidence,
            objective=self.objective,
            robust_weight=self.robust_weight,
            macs_weight=self.macs_weight,
        )

    @property
    def step(self) -> int:
        """Filters are removed down to a multiple of this many."""
        return self.multiple if self.strategy != "BitFlip" and self.decoder == "topk" else 1

    def weigh(self, points: Float[np.ndarray, "M 3"]) -> Float[np.ndarray, "M"]:
        """Weighted sums of objectives; infinite where those are, whatever the weights."""
        values, finite = np.full(len(points), np.inf), np.isfinite(points).all(-1)
        values[finite] = selection.weighted_sum(
            points[finite], self.robust_weight, self.macs_weight
        )
        return values

    def prunable(self, architecture: Architecture, masks: MaskTree) -> list[str]:
        """Groups that may lose a filter, and can, in the order of `masks`."""
        widths = groups(architecture)
        kept = frozenset() if self.residual_streams else coupled(architecture)
        return [
            name
            for name, mask in masks.items()
            if name in widths and name not in kept and mask.sum() > self.step
        ]


# By name: the ancestor's search as far as it is known, and the one that `make run` uses,
# whose every setting is ours.
PRESETS = {
    "faithful": Search(),
    "snes": Search(
        strategy="SNES",
        population=8,
        generations=8,
        keep_floor=0.85,
        multiple=4,
        objective="loss",
        residual_streams=True,
    ),
    "priced": Search(
        strategy="SNES",
        population=8,
        generations=12,
        levels=(0.95, 0.85, 0.7, 0.5),
        single_removals=True,
        splice="price",
        objective="loss",
        residual_streams=True,
    ),
}
