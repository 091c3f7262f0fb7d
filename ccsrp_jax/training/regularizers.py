"""Regularisers that train spiking networks to be robust: of weights, gradients, potentials.

`orthogonalise` (RAT) moves the weights after an optimiser's step. `sparse_gradient` (SR) and
`membrane_mass` (MPD-SGR) are penalties, to be weighted and added to the loss.
"""

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm
from jaxtyping import Array, Float, Int

from ccsrp_jax.networks.classifier import ClassifierFn, key_kwargs
from ccsrp_jax.networks.masks import MaskTree

WIDE = 200  # outputs from which on a dense layer is orthogonalised in part


SHARE = 0.3  # of a wide dense layer's rows, how many


STEP = 0.01  # of the finite difference, in pixel units


NARROWEST = 0.01  # standard deviation of a channel at the least, in widths


def orthogonalise(params: dict, beta: Float[Array, ""] | float | int, key: Array) -> dict:
    """One step towards weights whose singular values are 1: W <- (1 + beta) W - beta W W^T W.

    W has a filter, or a dense layer's output, in each row. The step descends
    |W W^T - I|^2 / 4 at the rate beta. Of a dense layer with 200 outputs or more it takes a
    random 30 % of the rows, and those for all of W. Where all weights of a filter, or all
    that read an input, are 0, they stay so; weights that only a mask removes count like others.

    Args:
      params: of the network, by layer; only leaves called "kernel" change, each (k, k, in, out)
        or (in, out).
      beta: rate, 0.004 in the released scripts; singular values above the root of
        (2 + beta) / beta diverge.
      key: of the random rows.

    Returns:
      The new params.

    References:
      Ding, Bu, Yu, Huang and Liu, SNN-RAT: Robustness-enhanced Spiking Neural Network through
      Regularized Adversarial Training, NeurIPS 2022; the random rows are in its released code.
      Cisse et al., Parseval Networks, ICML 2017, for the step.
    """
    updated = {}
    # sorted, as under jit: which layer draws which rows depends on the order
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
    drawn = jax.random.permutation(key, outputs)[: int(SHARE * outputs)]
    return columns.at[:, drawn].set(_step(columns[:, drawn], beta))


def _step(columns, beta):
    return (1 + beta) * columns - beta * columns @ (columns.T @ columns)


def sparse_gradient(
    classifier: ClassifierFn,
    variables: dict,
    masks: MaskTree | None,
    images: Float[Array, "B H W C"],
    labels: Int[Array, "B"],
    *,
    key: Array | None = None,
) -> Float[Array, ""]:
    """SR's penalty: how fast the true class loses to its runner-up, squared, over the batch.

    With f = e^z_y / (e^z_y + e^z_r) for the true class y and the best other class r, it is
    the mean of d^2, d = (f(x + h sign grad f) - f(x)) / h with h = 0.01: a finite difference
    that stands for the L1 norm of f's gradient and asks for no second derivatives. The
    runner-up is that of x in both terms, and the sign is a constant. Where the step changes
    no spike, d and its gradient are 0.

    Here the network runs in evaluation mode, on images in [0, 1] that may leave the box by
    h; the code we follow runs it in training mode and takes h in units of standardised pixels.

    Args:
      classifier: called as `classifier((variables, masks), images)`; its surrogate gives the
        gradient for the images and that of the penalty. See `attacks` for what it may be.
      variables: of the network; the penalty can be differentiated for "params".
      masks: as for the network.
      images: where to take the penalty; clean, or adversarial.
      labels: true classes.
      key: for a stochastic classifier; both terms have the same draws.

    References:
      Liu et al., Enhancing Adversarial Robustness in SNNs with Sparse Gradients, ICML 2024; the
      finite difference as in the code of Wang et al., arXiv 2512.22522, a secondary source.
    """

    def confidence(params, x, rivals=None):
        z = classifier(params, x, **key_kwargs(classifier, key))
        if rivals is None:
            own = jax.nn.one_hot(labels, z.shape[-1], dtype=bool)
            rivals = jnp.where(own, -jnp.inf, z).argmax(-1)
        two = jnp.take_along_axis(z, jnp.stack([labels, rivals], -1), -1)
        return jax.nn.sigmoid(two[:, 0] - two[:, 1]), rivals

    def total(x):
        # stopped, so that nobody differentiates twice
        f, rivals = confidence(jax.lax.stop_gradient((variables, masks)), x)
        return f.sum(), rivals

    gradient, rivals = jax.grad(total, has_aux=True)(images)
    before, _ = confidence((variables, masks), images, rivals)
    after, _ = confidence((variables, masks), images + STEP * jnp.sign(gradient), rivals)
    return (((after - before) / STEP) ** 2).mean()


def membrane_mass(
    potentials: dict[str, Array], threshold: float | int, width: float | int
) -> Float[Array, ""]:
    """MPD-SGR's penalty: share of the membrane potentials that the surrogate reaches.

    Were a channel's distances from the threshold normal, with mean mu and standard deviation
    sigma, Phi((mu + width) / sigma) - Phi((mu - width) / sigma) of them would lie within
    `width` of it. The penalty is its mean over channels.

    The formula and its statistics of v - threshold by channel are from a secondary source. Ours
    are: moments over time, batch and positions, potentials before the reset, every layer
    counting alike whatever its channels, and a sigma of width / 100 at the least, without which
    a silent channel at the edge of the band would have an unbounded gradient. Channels of
    pruned filters count too.

    Args:
      potentials: by layer, each (T, B, *features) with channels last, before the reset, as in
        `network.Activity`.
      threshold: of the neurons.
      width: half the reach of the surrogate; that of a triangle is its `Surrogate.width`.

    Returns:
      The mean share, from 0 to 1.

    References:
      Jiang, Jiang, Yan and Tang, MPD-SGR: Robust Spiking Neural Networks with Membrane
      Potential Distribution-Driven Surrogate Gradient Regularization, AAAI 2026,
      arXiv 2511.12199.
    """
    shares = []
    for v in potentials.values():
        distance = v.reshape(-1, v.shape[-1]) - threshold
        mu = distance.mean(0)
        sigma = jnp.sqrt(jnp.maximum(distance.var(0), (NARROWEST * width) ** 2))
        shares.append((norm.cdf((mu + width) / sigma) - norm.cdf((mu - width) / sigma)).mean())
    return jnp.stack(shares).mean()
