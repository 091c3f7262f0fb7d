"""The interface of pruning methods: `Problem` (input), `Pruned` (result) and `finetune`.

A method is a function `(key, problem, **settings) -> Pruned`. It trains weights by `finetune`, for
at most the epochs of the problem's recipe. All other computation to decide what is pruned is its
search, and is counted in forward and backward passes.
"""

import dataclasses
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.data import batching
from ccsrp_jax.data.augmentation import Augmentation
from ccsrp_jax.data.splits import Split, to_unit_range
from ccsrp_jax.networks import masks as masking
from ccsrp_jax.networks.architecture import Architecture, kernel_shapes
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.cost import COST_IMAGES
from ccsrp_jax.networks.inputs import checked_inputs
from ccsrp_jax.networks.masks import MaskTree
from ccsrp_jax.pruning import budget
from ccsrp_jax.pruning.budget import Target
from ccsrp_jax.training.recipe import Recipe
from ccsrp_jax.training.trainer import Epoch, TrainState, train
from ccsrp_jax.utils.errors import InputError


class Passes(NamedTuple):
    """Forward and backward passes, in images, to decide what is pruned.

    A pass through a part of the network counts as one through the whole network.
    """

    forward: int = 0
    backward: int = 0

    def __add__(self, other: "Passes") -> "Passes":
        return Passes(*(a + b for a, b in zip(self, other, strict=True)))


@dataclass(frozen=True)
class Callbacks:
    """Functions that a method calls while it runs, for logs, progress bars and timing.

    Attributes:
      on_epoch: called after every epoch of training.
      on_step: called after every step of training.
      on_candidate: called with the loss of every candidate that is scored after training, and the
        number of filters that it keeps, by group.
      on_generation: called after every generation of a search, with the group, the generation, the
        best fitness and the number of evaluations.
      training_clock: context manager around every training, to time it.
      search_clock: context manager around the search of every round.
    """

    on_epoch: Callable[[Epoch], None] = lambda epoch: None
    on_step: Callable[[], None] = lambda: None
    on_candidate: Callable[[float, dict[str, int]], None] = lambda loss, kept: None
    on_generation: Callable[[str, int, float, int], None] = lambda *progress: None
    training_clock: Callable[[], AbstractContextManager] = nullcontext
    search_clock: Callable[[], AbstractContextManager] = nullcontext


@dataclass(frozen=True)
class Problem:
    """A trained network to prune, and the budget, which is the same for every method.

    Attributes:
      classifier: the network, with the surrogate gradient for training and attacks.
      variables: its trained weights.
      train: images for fine-tuning.
      search: images held out of training, for all decisions of what is pruned.
      target: highest cost of the pruned network.
      recipe: of fine-tuning; a method may train weights for at most its epochs.
      attack: on search images, for methods that measure robustness.
      augmentation: of the training images.
      batch_size: search images per call.
      member_chunk: candidate masks per call on each device, as in `coevolution.make_task`.
      mesh: devices that share batches in training and candidates in a search, for `ccsrp`.
      callbacks: called while a method runs.

    Raises:
      InputError: images, labels or variables that do not suit the network.
    """

    classifier: Classifier
    variables: dict
    train: Split
    search: Split
    target: Target
    recipe: Recipe
    attack: PGD
    augmentation: Augmentation = "none"
    batch_size: int = 256
    member_chunk: int | None = None
    mesh: Mesh | None = None
    callbacks: Callbacks = Callbacks()

    def __post_init__(self) -> None:
        for name in ("train", "search"):
            state = self.variables, None
            split = checked_inputs(self.classifier, state, getattr(self, name))
            object.__setattr__(self, name, split)

    @property
    def architecture(self) -> Architecture:
        return self.classifier.architecture

    def cost(self, measure: str | None = None, variables: dict | None = None) -> budget.Cost:
        """The cost of masks in a measure, by default the target's, as a function.

        SynOps are those of `variables`, by default the dense network's, on search images.
        """
        images = jnp.asarray(to_unit_range(jnp.asarray(self.search.images[:COST_IMAGES])))
        return budget.cost_of(
            self.architecture,
            measure or self.target.measure,
            self.variables if variables is None else variables,
            images,
            jax.random.key(0),
        )

    def limit(self, share: float | int = 1, measure: str | None = None) -> float:
        """The highest cost after a share of all pruning rounds.

        Each round multiplies the cost by the same factor, so that the last meets the target.
        """
        return self.target.fraction**share * self.cost(measure)(masking.ones(self.architecture))

    def check_reachable(
        self,
        dense: MaskTree,
        *,
        fixed: Collection[str] = (),
        cost_of: budget.Cost | None = None,
    ) -> None:
        """Checks that the target can be met at all; methods call it first.

        Args:
          dense: masks of ones of all that the method may remove: filters, by group, or weights.
          fixed: names of masks from which it removes nothing.
          cost_of: the cost of masks, if it is not the target's.

        Raises:
          InputError: as `budget.check_reachable`.
        """
        check_reachable(self.architecture, self.target, dense, fixed=fixed, cost_of=cost_of)

    @property
    def weight_measure(self) -> str:
        """The target's measure for methods that remove single weights; see `measure_of`."""
        return measure_of(self.target, weights=True)


def measure_of(target: Target, *, weights: bool) -> str:
    """The target's measure; parameters instead of MACs for methods that remove single weights,
    as these save no MACs on dense hardware."""
    return "params" if weights and target.measure == "macs" else target.measure


def check_reachable(
    architecture: Architecture,
    target: Target,
    dense: MaskTree,
    *,
    fixed: Collection[str] = (),
    cost_of: budget.Cost | None = None,
) -> None:
    """`Problem.check_reachable` where there is no trained network yet."""
    measure = measure_of(target, weights=all(name.endswith(masking.KERNEL) for name in dense))
    if measure == "synops":  # they depend on which filters or weights are kept
        cost_of = None
    elif cost_of is None:
        cost_of = budget.cost_of(architecture, measure)
    unit = budget.UNITS[measure]
    budget.check_reachable(dense, cost_of, target.fraction, unit=unit, fixed=fixed)


class Pruned(NamedTuple):
    """The result of a method.

    Attributes:
      variables: weights after the last training.
      masks: of filters, by group, or of weights, by `masks.kernel`.
      search: passes in addition to training.
    """

    variables: dict
    masks: MaskTree
    search: Passes = Passes()


@contextmanager
def timed(seconds: list[float]) -> Iterator[None]:
    """Appends the seconds spent in the context, for `Callbacks.training_clock`."""
    began = time.perf_counter()
    yield
    seconds.append(time.perf_counter() - began)


Adapt = Callable[[int, TrainState, MaskTree], tuple[TrainState, MaskTree]]


def finetune(
    key: Array,
    problem: Problem,
    variables: dict,
    masks: MaskTree,
    *,
    epochs: int | None = None,
    adapt: Adapt | None = None,
) -> tuple[dict, MaskTree]:
    """Trains a masked network with the problem's recipe; returns its weights and final masks.

    Args:
      key: of this training.
      problem, variables, masks: the network.
      epochs: by default all of the recipe; the learning rate's schedule covers these.
      adapt: changes state and masks after every epoch, as in `training.train`.
    """
    last = masks

    def follow(done: int, state: TrainState, masks: MaskTree) -> tuple[TrainState, MaskTree]:
        nonlocal last
        assert adapt is not None
        state, last = adapt(done, state, masks)
        return state, last

    recipe = problem.recipe
    if epochs is not None:
        recipe = dataclasses.replace(recipe, epochs=epochs)
    callbacks = problem.callbacks
    with callbacks.training_clock():
        variables = train(
            key,
            problem.classifier,
            variables,
            masks,
            problem.train,
            recipe,
            augmentation=problem.augmentation,
            on_epoch=callbacks.on_epoch,
            on_step=callbacks.on_step,
            adapt=follow if adapt else None,
            mesh=problem.mesh,
        )
    return variables, last


def epochs_per_round(epochs: int, rounds: int, early: int | None = None) -> list[int]:
    """Epochs of fine-tuning after each round, which sum to `epochs`.

    Args:
      epochs: total.
      rounds: number of pruning rounds.
      early: epochs after every round but the last; by default equal shares, rounded down.

    Raises:
      InputError: there are fewer epochs than rounds.
    """
    each = epochs // max(rounds, 1) if early is None else early
    if rounds < 1 or (rounds > 1 and not 0 < each * (rounds - 1) < epochs):
        raise InputError(
            f"{rounds} rounds of pruning share {epochs} epochs of fine-tuning: give rounds from 1 "
            "to the epochs, and at least one epoch to each."
        )
    return [each] * (rounds - 1) + [epochs - each * (rounds - 1)]


def weight_masks(problem: Problem) -> MaskTree:
    """Masks that keep all weights of every layer but the classifier."""
    return kernel_masks(problem.architecture, classifier=False)


def kernel_masks(architecture: Architecture, *, classifier: bool = True) -> MaskTree:
    """Masks that keep all weights, of every layer or of all but the classifier."""
    layers = list(kernel_shapes(architecture).items())
    if not classifier:
        layers = layers[:-1]
    return {masking.kernel(name): jnp.ones(shape) for name, shape in layers}


def batches(problem: Problem) -> list[tuple[Array, Array, int]]:
    """Batches of search images in [0, 1], labels, and how many of them are not padding."""
    return list(batching.padded_batches(problem.search, problem.batch_size))


def kept(masks: MaskTree) -> int:
    """Number of filters and weights that masks keep."""
    return int(sum(np.sum(np.asarray(mask)) for mask in masks.values()))
