"""Settings of a round's search, and the presets that name them."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

import numpy as np
from jaxtyping import Float

from ccsrp_jax.coevolution import selection, strategies
from ccsrp_jax.coevolution.racing import Racing
from ccsrp_jax.networks.architecture import Architecture, coupled, groups
from ccsrp_jax.networks.masks import MaskTree
from ccsrp_jax.utils.errors import InputError, shown, unknown
from ccsrp_jax.utils.fields import LARGEST_INTEGER, SIZE, Limits, check_fields

Objective = Literal["accuracy", "loss", "change"]
SelectionName = Literal["weighted_sum", "nsga2"]
SELECTIONS = get_args(SelectionName)
SharedSet = Literal["pooled", "per_layer"]
Splice = Literal["winners", "price"]

# Strategies that compare fitness values of different generations, which ranks do not allow.
USE_EARLIER_FITNESS = ("PSO", "HillClimbing", "GradientlessDescent", "SimulatedAnnealing")


SHARE = Limits(0, 1, above=True)
LIMITS = {
    "population": Limits(high=LARGEST_INTEGER),
    **dict.fromkeys(("generations", "multiple"), SIZE),
    **dict.fromkeys(("keep_floor", "mutation_rate", "init_keep", "levels"), SHARE),
    **dict.fromkeys(("robust_weight", "macs_weight"), Limits(0)),
    "white_box_steps": Limits(0, LARGEST_INTEGER),
}


@dataclass(frozen=True)
class Search:
    """Settings of a round's search; the defaults are the preset `faithful`.

    The source of each setting is marked: (CCEP) the ancestor's released code, (CCSRP) known of the
    method, (ours) chosen here because no source states it.

    Attributes:
      strategy: `BitFlip` (CCEP) or the name of any evosax algorithm (ours). In Python also a
        class or an instance of one, which are used as any other evosax algorithm.
      population: members of a sub-population (CCEP: 5).
      generations: generations per group and round (CCEP: 10).
      keep_floor: share of a group's filters that a round keeps at least (CCEP: 0.9). As in CCEP,
        bit flips may keep one filter fewer. At least one filter may always be removed.
      mutation_rate: probability that `BitFlip` flips a bit, also in the variants that the shared
        adversarial set is made from (CCEP: 0.1; its use for the variants is ours).
      init_keep: probability of a 1 in the first population (CCEP: 0.95).
      decoder: how genomes of evosax strategies become masks (ours); see `strategies.decode`. With
        `topk` all candidates of a group keep the same number of filters, so MACs do not tell
        them apart and the floor alone sets the pace.
      multiple: `topk` rounds the floor down to a multiple of this many filters, and does not prune
        groups that have no more (ours: convolutions are slow with odd numbers of channels). Small
        groups then lose more than the floor says.
      objective: `accuracy` (CCEP); `loss`, which has fewer ties; or `change`, the mean over images
        of the absolute difference from the current network's loss: it measures what fine-tuning
        has to repair and does not reward gains on the search images (both ours).
      selection: `weighted_sum` with ties to fewer MACs, or `nsga2` (both ours). In Python also a
        function from objectives (N, 3), all minimized, clean, robust and MACs, to (N,) values, of
        which the smallest is the best; they are compared among the N candidates only.
      robust_weight: weight of the robust objective relative to the clean one (ours).
      macs_weight: weight of the share of MACs left; with 0, MACs only break ties (CCEP).
      shared_set: `pooled`, every variant attacks its share of the search images, or
        `per_layer`, a group's set is made from variants mutated in that group (two readings
        of what is known of CCSRP).
      white_box_steps: if above 0, every candidate is attacked itself, with this many PGD steps, in
        place of the shared set (ours). A candidate then costs 2 to 3 passes of the whole network
        per step instead of a part of one pass.
      certified: the robust objective is of interval bounds in the attack's L-infinity ball: a
        candidate's error is 1 - its certified accuracy, its loss that of the worst logits (ours).
        There is no shared set; a candidate costs two passes of the whole network.
      refresh_statistics: score every candidate with the statistics of batch norm that it has
        itself on the clean search images, in place of the current network's (ours; Li et al.,
        EagleEye, ECCV 2020). A candidate then takes three passes of what follows the group's gate
        in place of two.
      residual_streams: also prune groups coupled by additions, all layers that write into a
        residual stream at once (ours); CCEP does not prune them.
      racing: eliminate candidates that are significantly worse before they have seen all
        search images (ours); see `racing.Racing`.
      racing_confidence: `Racing.confidence`.
      single_removals: first score the removal of every single filter, and start an evosax
        strategy from the order of these scores (ours).
      levels: shares of a group's filters that the generations of an evosax strategy keep, in
        turn, in place of `keep_floor` (ours). Needs a strategy that compares candidates of
        one generation only.
      splice: `winners`, every group's best mask (CCEP), or `price`, masks chosen jointly to meet a
        budget (ours; see `pruning.splicing`).

    Raises:
      InputError: a value out of range, or settings that do not go together.
    """

    strategy: Annotated[Any, str] = "BitFlip"
    population: int = 5
    generations: int = 10
    keep_floor: float = 0.9
    mutation_rate: float = 0.1
    init_keep: float = 0.95
    decoder: strategies.Decoder = "topk"
    multiple: int = 1
    objective: Objective = "accuracy"
    selection: Annotated[Any, SelectionName] = "weighted_sum"
    robust_weight: float = 1.0
    macs_weight: float = 0.0
    shared_set: SharedSet = "pooled"
    white_box_steps: int = 0
    certified: bool = False
    refresh_statistics: bool = False
    residual_streams: bool = False
    racing: bool = False
    racing_confidence: float = 0.95
    single_removals: bool = False
    levels: tuple[float, ...] = ()
    splice: Splice = "winners"

    def __post_init__(self) -> None:
        check_fields(self, limits=LIMITS)
        strategies.check_strategy(self.strategy)
        if not callable(self.selection) and self.selection not in SELECTIONS:
            raise unknown("selection", self.selection, SELECTIONS)
        if self.population < 2:
            raise InputError(
                f"population {self.population} is too small to search: give 2 or more members."
            )
        if self.refresh_statistics and (self.white_box_steps or self.certified):
            raise InputError(
                "refresh_statistics is of candidates that share their adversarial images: leave it "
                "out with white_box_steps or certified."
            )
        self._check_strategy()
        self._check_racing()
        if self.white_box_steps and self.certified:
            raise InputError(
                f"white_box_steps {self.white_box_steps} and certified are two robust objectives: "
                "choose one."
            )

    def _check_strategy(self) -> None:
        name = self.strategy
        if not isinstance(name, str):
            name = strategies.strategy_class(name).__name__
        if self.selects_by_rank and name in USE_EARLIER_FITNESS:
            raise InputError(
                f"strategy {name} compares ranks of different generations: use it with "
                "selection weighted_sum, or choose another strategy for nsga2."
            )
        ordered = self.decoder == "topk" and strategies.is_distribution_based(self.strategy)
        if (self.levels or self.single_removals) and not ordered:
            raise InputError(
                f"levels and single_removals need decoder topk and a strategy without parents, not "
                f"{name} with {self.decoder}: use SNES, for instance, or leave them out."
            )

    def _check_racing(self) -> None:
        _ = self.racing_rule  # checks the confidence and the weights
        if self.racing and self.objective == "change":
            raise InputError("racing compares accuracies or losses: use another objective.")
        if self.racing and self.selects_by_rank:
            raise InputError(
                "racing compares candidates by one value: use it with selection weighted_sum."
            )

    @property
    def racing_rule(self) -> Racing:
        """How races of this search eliminate candidates."""
        return Racing(
            confidence=self.racing_confidence,
            objective="loss" if self.objective == "change" else self.objective,  # never raced
            robust_weight=self.robust_weight,
            macs_weight=self.macs_weight,
        )

    @property
    def selects_by_rank(self) -> bool:
        """Whether candidates' values hold among those of one call only."""
        return self.selection != "weighted_sum"

    @property
    def is_bit_flip(self) -> bool:
        """Whether genomes are masks, as CCEP's EA has them."""
        return self.strategy == "BitFlip"

    @property
    def width_multiple(self) -> int:
        """Groups are pruned to multiples of this many filters: `multiple` where it applies."""
        return self.multiple if not self.is_bit_flip and self.decoder == "topk" else 1

    def scalarize(self, points: Float[np.ndarray, "M 3"]) -> Float[np.ndarray, "M"]:
        """Weighted sums of objectives; infinite where an objective is, whatever its weight."""
        values, finite = np.full(len(points), np.inf), np.isfinite(points).all(-1)
        values[finite] = selection.weighted_sum(
            points[finite], self.robust_weight, self.macs_weight
        )
        return values

    def selected(self, points: Float[np.ndarray, "M 3"]) -> Float[np.ndarray, "M"]:
        """Values of one's own selection, to be minimized.

        Raises:
          InputError: it returned something else.
        """
        values = np.asarray(self.selection(points), np.float64)
        if values.shape != (len(points),) or np.isnan(values).any():
            raise InputError(
                f"selection returned {shown(values)} for {len(points)} candidates: return one "
                "number for each."
            )
        return values

    def prunable(self, architecture: Architecture, masks: MaskTree) -> list[str]:
        """Groups that may be pruned and still have filters to remove, in the order of `masks`."""
        widths = groups(architecture)
        excluded = frozenset() if self.residual_streams else coupled(architecture)
        return [
            name
            for name, mask in masks.items()
            if name in widths and name not in excluded and mask.sum() > self.width_multiple
        ]


# `faithful` is CCSRP's search as far as it is known, with CCEP's constants; the settings of the
# others are ours.
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
