"""Regularizers for robust training of spiking networks: of weights, gradients and potentials.

`orthogonalize` (SNN-RAT) changes the weights after an optimizer step. `sparse_gradient_penalty`
(SR) and `membrane_penalty` (MPD-SGR) are to be weighted and added to the loss.
"""

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm
from jaxtyping import Array, Float, Int

from ccsrp_jax.networks import masks as masking
from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.classifier import ClassifierFn, key_kwargs
from ccsrp_jax.networks.masks import MaskTree

WIDE = 200  # dense layers with this many outputs or more are orthogonalized in part
ROW_FRACTION = 0.3  # fraction of a wide dense layer's rows that one step changes
STEP = 0.01  # of the finite difference, in pixel units
MIN_SIGMA = 0.01  # minimum standard deviation of a channel's potentials, in surrogate widths


def orthogonalize(params: dict, beta: Float[Array, ""] | float | int, key: Array) -> dict:
    """One step towards orthogonal weights, W <- (1 + beta) W - beta W W^T W.

    Each row of W is a filter, or an output of a dense layer. The step descends
    |W W^T - I|^2 / 4 at the rate beta, and so moves all singular values towards 1. In a dense
    layer with 200 outputs or more, W is a random 30 % of the rows, and the others do not change.
    A filter, or an input, whose weights are all 0 keeps them; weights that are only masked
    take part like all others.

    Args:
      params: of the network, by layer; only leaves called "kernel" change, each (k, k, in, out)
        or (in, out).
      beta: rate, 0.004 in the released scripts; singular values above sqrt((2 + beta) / beta)
        diverge.
      key: for the random rows.

    Returns:
      The new params.

    References:
      Ding, Bu, Yu, Huang and Liu, SNN-RAT: Robustness-enhanced Spiking Neural Network through
      Regularized Adversarial Training, NeurIPS 2022; the random rows are in its released code.
      Cisse et al., Parseval Networks, ICML 2017, for the step.
    """
    updated = {}
    # sorted as under jit, because a layer's random rows depend on its position
    for number, (layer, leaves) in enumerate(sorted(params.items())):
        updated[layer] = leaves
        if "kernel" in leaves:
            new = _towards_orthogonal(leaves["kernel"], beta, jax.random.fold_in(key, number))
            updated[layer] = {**leaves, "kernel": new}
    return updated


def _towards_orthogonal(kernel, beta, key):
    outputs = kernel.shape[-1]
    columns = jnp.asarray(kernel).reshape(-1, outputs)  # W^T
    if kernel.ndim > 2 or outputs < WIDE:
        return _step(columns, beta).reshape(kernel.shape)
    drawn = jax.random.permutation(key, outputs)[: int(ROW_FRACTION * outputs)]
    return columns.at[:, drawn].set(_step(columns[:, drawn], beta))


def _step(columns, beta):
    return (1 + beta) * columns - beta * columns @ (columns.T @ columns)


def sparse_gradient_penalty(
    classifier: ClassifierFn,
    variables: dict,
    masks: MaskTree | None,
    images: Float[Array, "B H W C"],
    labels: Int[Array, "B"],
    *,
    key: Array | None = None,
) -> Float[Array, ""]:
    """SR's penalty on the L1 norm of the confidence's gradient with respect to the image.

    With the confidence f = e^z_y / (e^z_y + e^z_r) of the true class y against the best other
    class r, the penalty is the mean over the batch of d^2, d = (f(x + h sign grad f) - f(x)) / h,
    h = 0.01: a finite difference for the L1 norm of f's gradient, without second derivatives. The
    class r is that of x in both terms, and no gradient flows through the sign. If the step changes
    no spike, d and its gradient are 0.

    Ours: the network runs in evaluation mode on images in [0, 1], which may leave that range by h;
    the code we follow runs it in training mode and takes h in units of standardized pixels.

    Args:
      classifier: called as `classifier((variables, masks), images)`, see `networks.classifier`;
        its surrogate is used both for grad f and for the gradient of the penalty.
      variables: of the network; the penalty is differentiable with respect to "params".
      masks: of the network.
      images: clean or adversarial.
      labels: true classes.
      key: for a stochastic classifier; both terms use the same draws.

    References:
      Liu et al., Enhancing Adversarial Robustness in SNNs with Sparse Gradients, ICML 2024; the
      finite difference as in the code of Wang et al., arXiv 2512.22522, a secondary source.
    """

    def confidence(network_state, x, rivals=None):
        z = classifier(network_state, x, **key_kwargs(classifier, key))
        if rivals is None:
            own = jax.nn.one_hot(labels, z.shape[-1], dtype=bool)
            rivals = jnp.where(own, -jnp.inf, z).argmax(-1)
        two = jnp.take_along_axis(z, jnp.stack([labels, rivals], -1), -1)
        return jax.nn.sigmoid(two[:, 0] - two[:, 1]), rivals

    def total(x):
        # no second derivatives: the sign of this gradient is a constant
        f, rivals = confidence(jax.lax.stop_gradient((variables, masks)), x)
        return f.sum(), rivals

    gradient, rivals = jax.grad(total, has_aux=True)(images)
    before, _ = confidence((variables, masks), images, rivals)
    after, _ = confidence((variables, masks), images + STEP * jnp.sign(gradient), rivals)
    return (((after - before) / STEP) ** 2).mean()


def membrane_penalty(
    potentials: dict[str, Array], threshold: float | int, width: float | int
) -> Float[Array, ""]:
    """MPD-SGR's penalty: fraction of membrane potentials at which the surrogate is not 0.

    If a channel's distances v - threshold are normal with mean mu and standard deviation sigma,
    the fraction within `width` of the threshold is
    Phi((mu + width) / sigma) - Phi((mu - width) / sigma). The penalty is its mean over channels.

    The formula and the statistics of v - threshold per channel are from a secondary source. Ours:
    statistics are over time, batch and positions; potentials are those before the reset; all
    layers have the same weight, whatever their number of channels; and sigma is at least
    width / 100, because the gradient of a silent channel at distance `width` would be unbounded
    otherwise. Channels of pruned filters are included.

    Args:
      potentials: by layer, each (T, B, *features) with channels last, before the reset, as in
        `spiking_network.Activity`.
      threshold: of the neurons.
      width: half the support of the surrogate; for a triangle, its `Surrogate.width`.

    Returns:
      The mean fraction, from 0 to 1.

    References:
      Jiang, Jiang, Yan and Tang, MPD-SGR: Robust Spiking Neural Networks with Membrane
      Potential Distribution-Driven Surrogate Gradient Regularization, AAAI 2026,
      arXiv 2511.12199.
    """
    shares = []
    for v in potentials.values():
        distance = v.reshape(-1, v.shape[-1]) - threshold
        mu = distance.mean(0)
        sigma = jnp.sqrt(jnp.maximum(distance.var(0), (MIN_SIGMA * width) ** 2))
        shares.append((norm.cdf((mu + width) / sigma) - norm.cdf((mu - width) / sigma)).mean())
    return jnp.stack(shares).mean()


def zero_pruned_kernels(architecture: Architecture, variables: dict, masks: MaskTree) -> dict:
    """The same masked network with all kernel entries of removed filters and inputs set to 0.

    `orthogonalize` combines filters, and removed ones must not take part; as no gradient reaches
    these weights, they stay 0.
    """
    kept = masking.kept_channels(architecture, masks)
    params = dict(masking.fold(variables, masks)["params"])
    for node in architecture.nodes:
        if node.has_kernel:
            kernel = params[node.name]["kernel"]
            if "kernel" in node.input_axis:
                kernel = kernel * kept[node.input][:, None]
            kernel = kernel * kept[node.name]
            params[node.name] = {**params[node.name], "kernel": kernel}
    return {**variables, "params": params}
