"""How a network is trained: the settings, the optimiser, and what changes from step to step."""

import math
from dataclasses import dataclass
from typing import Literal

import jax
import optax

from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.utils.errors import InputError, check_number, unknown

OPTIONS = {
    "optimizer": ("adamw", "sgd"),
    "loss": ("ce", "tet"),
    "precision": ("float32", "bfloat16"),
    "remat": ("none", "time", "layers"),
}


@dataclass(frozen=True)
class Recipe:
    """How a network is trained or fine-tuned.

    Attributes:
      epochs: passes over the training images.
      batch_size: images a step; what is left over in an epoch is dropped.
      learning_rate: at its peak; a cosine takes it to 0 after a linear warm-up.
      warmup: share of the steps spent warming up.
      weight_decay: of kernels only, for AdamW decoupled (but scaled by the learning rate), for
        SGD added to the gradient; biases, batch norm and learned leaks have none.
      adversarial: train on PGD examples of the batch, made with batch norm in inference
        mode; None trains on clean images. `attacks.fgsm(eps)` is such a PGD, of one step, and
        `PGD(eps, 1)` is FGSM from a random start.
      clean_epochs: of the epochs, how many at the start use clean images.
      clean_weight: weight of the clean images' loss beside the adversarial one's.
      optimizer: `adamw`, or `sgd` with momentum as torch.optim.SGD has it.
      momentum: of SGD.
      clip_norm: longer gradients, over all weights, are cut to this length, before weight
        decay is added; 0 cuts none.
      label_smoothing: share of the target spread over all classes, see `losses.cross_entropy`.
      loss: `ce`, of the mean logits over time, or `tet`, see `losses.tet`.
      tet_weight: of the second term of TET.
      ema: decay of a moving average of weights and batch statistics over the steps, which is
        then what training returns; 0 for none. Without bias, as Adam's: the start has no share.
      precision: type that convolutions and dense layers compute in, in the attack too;
        weights, moments, batch statistics and membranes stay float32.
      remat: what the backward pass finds in memory and what it computes anew, in the attack too:
        `none` is all in memory, `time` keeps layers' outputs and spikes, `layers` spikes alone.
        Of no use on CPUs, where XLA merges what is computed twice.
      trades: beta of TRADES, loss = clean loss + beta KL(clean || attacked), where the attack
        raises the KL; 0 trains on the attacked images instead. See `losses.divergence`.
      trades_temperature: of that KL.
      orthogonal: beta of `regularisers.orthogonalise` after every step (SNN-RAT, which then
        has no weight decay); 0 is off.
      sparse_gradient: weight of `regularisers.sparse_gradient`, on the images trained on.
      membrane: weight of `regularisers.membrane_mass`, with the width of the surrogate.
    """

    epochs: int = 20
    batch_size: int = 128
    learning_rate: float = 5e-3
    warmup: float = 0.1
    weight_decay: float = 1e-4
    adversarial: PGD | None = None
    clean_epochs: int = 0
    clean_weight: float = 0.0
    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: float = 0.9
    clip_norm: float = 1.0
    label_smoothing: float = 0.0
    loss: Literal["ce", "tet"] = "ce"
    tet_weight: float = 0.05
    ema: float = 0.0
    precision: Literal["float32", "bfloat16"] = "float32"
    remat: Literal["none", "time", "layers"] = "none"
    trades: float = 0.0
    trades_temperature: float = 1.0
    orthogonal: float = 0.0
    sparse_gradient: float = 0.0
    membrane: float = 0.0

    def __post_init__(self) -> None:
        check_number("batch_size", self.batch_size, 1)
        for name in ("learning_rate", "trades_temperature"):
            check_number(name, getattr(self, name), 0, above=True)
        for name in ("epochs", "weight_decay", "clean_epochs", "clip_norm", "trades"):
            check_number(name, getattr(self, name), 0)
        for name in ("orthogonal", "sparse_gradient", "membrane"):
            check_number(name, getattr(self, name), 0)
        for name in ("warmup", "clean_weight", "momentum", "label_smoothing", "tet_weight", "ema"):
            check_number(name, getattr(self, name), 0, 1)
        for name, options in OPTIONS.items():
            if getattr(self, name) not in options:
                raise unknown(name, getattr(self, name), options)
        if self.ema == 1:
            raise InputError("ema 1 would average nothing: give a decay below 1, such as 0.999.")
        if self.trades and self.adversarial is None:
            raise InputError(f"trades {self.trades} has no attack: train adversarially, or give 0.")
        if self.trades and self.clean_weight:
            raise InputError(
                f"clean_weight {self.clean_weight} has no meaning in TRADES, whose loss is the "
                "clean images': give 0, or trades 0."
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


def optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """What to step along, up to the learning rate, which the jitted step takes as an argument."""
    decay = optax.add_decayed_weights(recipe.weight_decay, mask=_kernels)
    if recipe.optimizer == "sgd":
        rule = (decay, optax.trace(recipe.momentum))
    else:
        rule = (optax.scale_by_adam(), decay)
    clip = optax.clip_by_global_norm(recipe.clip_norm) if recipe.clip_norm else optax.identity()
    return optax.chain(clip, *rule)


def _kernels(params):
    """Weight decay leaves biases, batch norm and learned leaks alone."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


def learning_rate(recipe: Recipe, progress: float) -> float:
    """Linear warm-up, then a cosine to 0; `progress` is the share of the steps done."""
    if progress < recipe.warmup:
        return recipe.learning_rate * progress / recipe.warmup
    after = (progress - recipe.warmup) / max(1 - recipe.warmup, 1e-9)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * min(after, 1.0)))


def keep_share(decay: float, step: int) -> float:
    """Of the old average in the new one, after step 1, 2, ...

    It makes the average sum_i decay^(n-i) w_i / sum_i decay^(n-i) over the steps so far.
    """
    return decay * (1 - decay ** (step - 1)) / (1 - decay**step)
