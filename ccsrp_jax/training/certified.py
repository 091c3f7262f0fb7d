"""The certified loss: cross-entropy of the worst logits that an L-infinity ball can have."""

import jax
from jaxtyping import Array, Float, Int

from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.interval_bounds import worst_margins
from ccsrp_jax.networks.masks import MaskTree
from ccsrp_jax.networks.neurons import Surrogate
from ccsrp_jax.training import losses


def certified_loss(
    classifier: Classifier,
    variables: dict,
    masks: MaskTree | None,
    images: Float[Array, "B H W C"],
    labels: Int[Array, "B"],
    eps: Float[Array, ""] | float,
) -> Float[Array, "B"]:
    """An upper bound of every image's cross-entropy in its ball, up to rounding.

    The worst logits are the upper bounds of z_k - z_y over all classes k, 0 for the label y. Both
    ends of a spike's interval have the surrogate's derivative; no gradient flows through resets.

    Ours: batch norm has its running statistics, as in evaluation and in attacks, so that it is the
    evaluated network that is bounded; dropout is left out; all is float32.

    Args:
      classifier: the network, with a `Surrogate`.
      variables, masks: its state; differentiable with respect to "params".
      images: clean, in [0, 1].
      labels: y.
      eps: radius in pixel units.

    References:
      Liang, Xu, Hu, Deng and Xie, Toward Robust Spiking Neural Network Against Adversarial
      Perturbation, NeurIPS 2022 (S-IBP); Gowal et al., arXiv 1810.12715, for the schedules of the
      radius and the weight.
    """
    architecture, surrogate = classifier.architecture, classifier.surrogate
    assert isinstance(surrogate, Surrogate)  # the trainer refuses others
    margins = worst_margins(
        *(architecture, variables, images, labels, eps, masks),
        unit=0.0,
        surrogate=surrogate,
        split_kernel_gradient=jax.default_backend() == "cpu",
    )
    return losses.cross_entropy(margins[None], labels)
