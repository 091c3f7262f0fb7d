"""Training settings, the optimizer, and the schedules of learning rate and moving average."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jax
import optax

from ccsrp_jax.attacks.one_step import NFGSM
from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.lowering import NORM_MOMENTUM
from ccsrp_jax.networks.nodes import Norm
from ccsrp_jax.utils.errors import InputError, shown
from ccsrp_jax.utils.fields import (
    LARGEST_INTEGER,
    POSITIVE,
    SIZE,
    Limits,
    check_fields,
    converted,
)

OptimizerName = Literal["adamw", "sgd"]
LIMITS = {
    "batch_size": Limits(1, LARGEST_INTEGER),
    **dict.fromkeys(("epochs", "clean_epochs", "lookahead"), Limits(0, LARGEST_INTEGER)),
    **dict.fromkeys(("early_epochs", "relu_epochs"), Limits(0, LARGEST_INTEGER)),
    "early_time_steps": SIZE,
    "relu_threshold": POSITIVE,
    **dict.fromkeys(("learning_rate", "trades_temperature"), POSITIVE),
    **dict.fromkeys(("weight_decay", "clip_norm", "trades"), Limits(0)),
    **dict.fromkeys(("orthogonal", "sparse_gradient", "membrane", "certified_eps"), Limits(0)),
    **dict.fromkeys(("warmup", "clean_weight", "momentum"), Limits(0, 1)),
    **dict.fromkeys(("label_smoothing", "tet_weight", "ema"), Limits(0, 1)),
    **dict.fromkeys(("certified", "certified_ramp", "eps_ramp"), Limits(0, 1)),
}

FORGOTTEN = 0.01  # share of its initial value in a moving average that is as good as none


@dataclass(frozen=True)
class BaseRecipe:
    """Training settings that `Recipe` shares with the flags and files of a run.

    `pipeline.config.Training` is the other subclass: there the attack is described by flags, and
    settings of fine-tuning are added. A setting declared here is a field of both.

    Attributes:
      epochs: passes over the training images.
      batch_size: images per step; an incomplete last batch of an epoch is dropped.
      learning_rate: peak learning rate, reached after a linear warm-up.
      schedule: how it then falls to 0: `cosine`, or `triangular` (linearly, as the cyclic rate
        of fast adversarial training, Wong et al., ICLR 2020, whose warm-up is half of the steps).
      warmup: fraction of the steps spent in the warm-up.
      weight_decay: applied to kernels only, not to biases, batch norm or learned leaks. AdamW
        decouples it from the gradient and scales it by the learning rate; SGD adds it to the
        gradient.
      adversarial: train on adversarial examples of the batch, made with batch norm in inference
        mode.
      clean_epochs: number of initial epochs that use clean images only.
      eps_ramp: fraction of the epochs, after the clean ones, over which the attack's radius rises
        linearly from 0.
      clean_weight: weight of the clean images' loss, from 0 to 1; the adversarial images' loss
        has the rest.
      optimizer: `adamw`, or `sgd` with momentum as in torch.optim.SGD. In Python also an optax
        transformation, such as `optax.adam(1e-3)`, whose updates are added to the weights as they
        are: the recipe's learning rate, momentum, decay and clipping are not used then.
      momentum: momentum of SGD.
      nesterov: whether SGD's momentum is Nesterov's, as in torch.optim.SGD.
      lookahead: steps after which the weights return half of their way to where they were then
        (Lookahead, Zhang et al., NeurIPS 2019, arXiv 1907.08610; 5 there), also after the last
        step; 0 disables it.
      clip_norm: maximum global norm of the gradient, clipped before weight decay; 0 disables
        clipping.
      label_smoothing: fraction of the target spread evenly over all classes.
      loss: `ce`, cross-entropy of the mean logits over time, or `tet`, temporal efficient training
        (Deng et al., ICLR 2022).
      tet_weight: weight of TET's second term, which keeps the logits near the threshold.
      ema: decay of an exponential moving average of weights and batch statistics, which training
        then returns; 0 disables it. Its bias towards the start is corrected as in Adam.
      precision: compute type of convolutions and dense layers, in the attack too; weights,
        optimizer moments, batch statistics and membrane potentials are float32.
      precise_bn: whether training ends by replacing the running statistics of batch norm by exact
        averages over batches (`networks.batch_statistics`): `auto`, if the steps are too few for
        them to have forgotten where they began; `on`; or `off`.
      remat: rematerialization in the backward pass, in the attack too, which saves a GPU's memory
        at the cost of time: `none` stores all activations; `time` stores the outputs of layers
        and the spikes; `layers` stores the spikes only. Has no effect on CPUs, where XLA merges
        the repeated computation.
      trades: beta of TRADES (Zhang et al., ICML 2019): clean loss + beta KL(clean || attacked),
        where the attack maximizes the KL; 0 trains on the adversarial images instead.
      trades_temperature: temperature of that KL.
      orthogonal: beta of the orthogonal weight regularization of SNN-RAT, applied after every
        step; 0.004 in its scripts, which have no weight decay; 0 disables it.
      sparse_gradient: weight of the sparse gradient penalty (SR, ICML 2024) on the images of the
        step; 0 disables it.
      membrane: weight of the penalty on membrane potentials within the surrogate's width of the
        threshold (MPD-SGR, AAAI 2026); 0 disables it.
      certified: weight of the certified loss, 1 - kappa of Gowal et al. (arXiv 1810.12715): the
        cross-entropy of the worst logits in the ball by interval bounds, see `certified_loss`. The
        other loss, on clean or adversarial images, has the rest; 0 disables it.
      certified_eps: L-infinity radius of that ball, in pixel units; 0 takes the attack's.
      certified_ramp: fraction of the epochs, after the clean ones, over which that radius and that
        weight rise linearly from 0.
      first_layer: `learned`; `frozen`, the first convolution keeps its kernel; or `whitened`, it
        is computed from the training images before the first epoch and then kept, see `whitening`.
      norm_scale: `learned`, or `frozen`: the scales of batch norm keep their values.
      early_epochs: number of first epochs in `early_time_steps` time steps.
      early_time_steps: time steps of these epochs; weights do not depend on them.
      relu_epochs: number of first epochs that train the ReLU network of the same weights, and
        attack it; it is then converted, see `conversion`. 0 trains the spiking network throughout.
      relu_threshold: firing thresholds at that conversion, as a fraction of the 99.7th percentile
        of a layer's activations; 0.3 in its source.
    """

    epochs: int = 20
    batch_size: int = 128
    learning_rate: float = 5e-3
    schedule: Literal["cosine", "triangular"] = "cosine"
    warmup: float = 0.1
    weight_decay: float = 1e-4
    adversarial: PGD | NFGSM | bool | None = None
    clean_epochs: int = 0
    eps_ramp: float = 0.0
    clean_weight: float = 0.0
    optimizer: Annotated[Any, OptimizerName] = "adamw"
    momentum: float = 0.9
    nesterov: bool = False
    lookahead: int = 0
    clip_norm: float = 1.0
    label_smoothing: float = 0.0
    loss: Literal["ce", "tet"] = "ce"
    tet_weight: float = 0.05
    ema: float = 0.0
    precision: Literal["float32", "bfloat16"] = "float32"
    precise_bn: Literal["auto", "on", "off"] = "auto"
    remat: Literal["none", "time", "layers"] = "none"
    trades: float = 0.0
    trades_temperature: float = 1.0
    orthogonal: float = 0.0
    sparse_gradient: float = 0.0
    membrane: float = 0.0
    certified: float = 0.0
    certified_eps: float = 0.0
    certified_ramp: float = 0.6
    first_layer: Literal["learned", "frozen", "whitened"] = "learned"
    norm_scale: Literal["learned", "frozen"] = "learned"
    early_epochs: int = 0
    early_time_steps: int = 1
    relu_epochs: int = 0
    relu_threshold: float = 0.3

    def __post_init__(self) -> None:
        check_fields(self, limits=LIMITS)
        if not isinstance(self.optimizer, optax.GradientTransformation):
            converted("optimizer", self.optimizer, OptimizerName)
        if self.ema == 1:
            raise InputError("ema 1 would never leave its start: give a decay below 1, say 0.999.")
        if self.trades and not self.adversarial:
            raise InputError(f"trades {self.trades} has no attack: train adversarially, or give 0.")
        if self.trades and self.clean_weight:
            raise InputError(
                f"clean_weight {self.clean_weight} has no meaning in TRADES, whose loss has a "
                "clean term of its own: give 0, or trades 0."
            )
        if self.certified and not (self.certified_eps or self.adversarial):
            raise InputError(
                f"certified {self.certified} has no radius: give certified_eps, or train "
                "adversarially."
            )
        if self.relu_epochs and (self.certified or self.membrane):
            raise InputError(
                f"relu_epochs {self.relu_epochs} do not go with the certified loss or the membrane "
                "penalty, which ReLU networks do not have: give 0 of the one or the others."
            )
        if self.relu_epochs and self.relu_epochs >= self.epochs:
            raise InputError(
                f"relu_epochs {self.relu_epochs} leave none of the {self.epochs} epochs to the "
                "spiking network: give fewer."
            )


@dataclass(frozen=True)
class Recipe(BaseRecipe):
    """How a network is trained or fine-tuned: the settings of `BaseRecipe` and the attack.

    Attributes:
      adversarial: the attack to train on; None trains on clean images. `attacks.fgsm(eps)` is
        single-step PGD from the image, `attacks.rs_fgsm(eps)` and `attacks.NFGSM(eps)` are the
        one-step attacks of fast adversarial training. `PGD(eps, 1)` ends in a corner of the ball
        almost always: its step of 2.5 eps is longer than the ball is wide.
    """

    adversarial: PGD | NFGSM | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.adversarial is None or callable(self.adversarial)):
            raise InputError(
                f"adversarial is {shown(self.adversarial)}: give an attack, such as PGD(), or None."
            )
        if self.trades and isinstance(self.adversarial, NFGSM):
            raise InputError(
                f"trades {self.trades} has an attack of its own with the steps of PGD, and N-FGSM "
                "has none in the ball: train on pgd or rs-fgsm, or give trades 0."
            )
        if self.eps_ramp and self.adversarial and not _has_radius(self.adversarial):
            raise InputError(
                f"eps_ramp {self.eps_ramp} needs an attack that is a dataclass with a field eps, "
                f"and {shown(self.adversarial)} is none: give such an attack, or 0."
            )

    def clean_share(self, epoch: int) -> float:
        """Weight of the clean images' loss in an epoch."""
        mixes = self.adversarial is not None and epoch >= self.clean_epochs and not self.trades
        return self.clean_weight if mixes else 1.0

    def attacks(self, epoch: int) -> bool:
        """Whether an epoch attacks its images."""
        if self.adversarial is None or epoch < self.clean_epochs:
            return False
        return bool(self.trades) or self.clean_weight < 1

    def attack_at(self, epochs: float | int) -> Any:
        """The attack after so many epochs, of which the last may be a fraction."""
        attack = self.adversarial
        if attack is None or not self.eps_ramp:
            return attack
        share = _ramp(epochs - self.clean_epochs, self.eps_ramp * self.epochs)
        return dataclasses.replace(attack, eps=attack.eps * share)

    def certifies(self, epoch: int) -> bool:
        """Whether an epoch has the certified loss."""
        return self.certified > 0 and epoch >= self.clean_epochs

    @property
    def certified_radius(self) -> float:
        """L-infinity radius of the certified loss after its ramp.

        Raises:
          InputError: it is to be that of an attack of another norm.
        """
        attack = self.adversarial
        if self.certified_eps or attack is None:
            return self.certified_eps
        if attack.norm != "linf":
            raise InputError(
                f"the attack's radius {attack.eps} is of norm {attack.norm}, and the certified "
                "loss needs one of linf: give certified_eps."
            )
        return attack.eps


def compiled_part(recipe: Recipe, epoch: int) -> Recipe:
    """The recipe with a fixed value for every setting that an epoch's compiled step does not read.

    As a static argument it gives training and fine-tuning the same program.
    """
    return dataclasses.replace(
        recipe,
        epochs=1,
        batch_size=1,
        learning_rate=1.0,
        schedule="cosine",
        warmup=0.0,
        adversarial=PGD(),
        clean_epochs=0,
        eps_ramp=0.0,
        clean_weight=0.0,
        precise_bn="auto",
        certified=float(recipe.certifies(epoch)),
        certified_eps=0.0,
        certified_ramp=0.0,
        first_layer="learned" if recipe.first_layer == "learned" else "frozen",
        early_epochs=0,
        early_time_steps=1,
        relu_epochs=0,
        relu_threshold=1.0,
    )


def optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """The update direction, before scaling by the learning rate (an argument of the step); one's
    own optimizer as it is."""
    if isinstance(recipe.optimizer, optax.GradientTransformation):
        return recipe.optimizer
    decay = optax.add_decayed_weights(recipe.weight_decay, mask=_kernels)
    if recipe.optimizer == "sgd":
        rule = (decay, optax.trace(recipe.momentum, nesterov=recipe.nesterov))
    else:
        rule = (optax.scale_by_adam(), decay)
    clip = optax.clip_by_global_norm(recipe.clip_norm) if recipe.clip_norm else optax.identity()
    return optax.chain(clip, *rule)


def _kernels(params):
    """Which leaves weight decay applies to: not biases, batch norm or learned leaks."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


def learning_rate(recipe: Recipe, progress: float) -> float:
    """Linear warm-up, then cosine or linear decay to 0.

    Args:
      recipe: for the peak, the warm-up and the schedule.
      progress: fraction of all steps that are done.
    """
    if progress < recipe.warmup:
        return recipe.learning_rate * progress / recipe.warmup
    after = (progress - recipe.warmup) / max(1 - recipe.warmup, 1e-9)
    if recipe.schedule == "triangular":
        return recipe.learning_rate * max(1 - after, 0.0)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * min(after, 1.0)))


def certified_share(recipe: Recipe, epochs: float) -> float:
    """Share of its final radius and weight that the certified loss has after so many epochs."""
    if not recipe.certified:
        return 0.0
    return _ramp(epochs - recipe.clean_epochs, recipe.certified_ramp * recipe.epochs)


def _ramp(since: float | int, length: float | int) -> float:
    """Share of a value that rises linearly from 0 over `length` epochs, after `since` of them."""
    if since <= 0:
        return 0.0
    return min(since / length, 1.0) if length else 1.0


def _has_radius(attack: Any) -> bool:
    return dataclasses.is_dataclass(attack) and hasattr(attack, "eps")


def corrected_decay(decay: float, step: int) -> float:
    """Decay of a moving average without bias, at step n = 1, 2, ...

    With it, the average after n steps is sum_i decay^(n-i) w_i / sum_i decay^(n-i), the average of
    Adam's bias correction.
    """
    return decay * (1 - decay ** (step - 1)) / (1 - decay**step)


def needs_precise_bn(recipe: Recipe, architecture: Architecture, steps: int) -> bool:
    """Whether training of so many steps ends by averaging statistics exactly."""
    if not steps or not any(isinstance(node, Norm) for node in architecture.nodes):
        return False
    remembers = NORM_MOMENTUM**steps > FORGOTTEN
    return recipe.precise_bn == "on" or (recipe.precise_bn == "auto" and remembers)


def synchronizes(recipe: Recipe, step: int, steps: int) -> bool:
    """Whether the slow weights of Lookahead move in a step of so many, counted from 0."""
    return bool(recipe.lookahead) and (not (step + 1) % recipe.lookahead or step + 1 == steps)
