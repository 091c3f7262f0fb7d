"""N:M sparsity: N of every M weights along input channels are kept, chosen by gradient descent."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from ccsrp_jax.attacks.base import unchecked
from ccsrp_jax.networks.masks import MaskTree, masked_kernel
from ccsrp_jax.pruning.problem import Passes, Problem, Pruned, batches, finetune, weight_masks
from ccsrp_jax.training.parallel import training_network
from ccsrp_jax.utils.errors import InputError, check_number

PADDING_LOGIT = -1e9  # logit of the padding of an incomplete block


Pattern = dict[str, int]  # name of a weight mask -> N


def nm(
    key: Array,
    problem: Problem,
    *,
    m: int = 4,
    mixed: bool = False,
    epochs_share: float | int = 0.5,
    robust: float | int | None = None,
    rate: float = 0.1,
    temperature: float | int = 1.0,
    end_temperature: float | int = 0.1,
    prior: float | int = 1.0,
) -> Pruned:
    """Learns which N of M weights are kept, with frozen weights, and fine-tunes with that mask.

    A block has the weights of M consecutive input channels, at one position of the window and for
    one output channel, in every layer but the classifier. If M does not divide the number of input
    channels, the last block has r < M weights, of which ceil(r N / M) are kept. Each block has M
    logits. The search samples masks from them (see `sample`) and minimizes the loss with Adam;
    finally the weights with the N highest logits are kept.

    We do not have the paper's full text. From a summary: M logits per block, instead of one for
    each combination, and a differentiable top-k with Gumbel noise. Ours: frozen weights, whose
    absolute values initialize the logits (as in MaskLLM, Fang et al., NeurIPS 2024), the
    relaxation, all constants, and a search on search images in addition to the epochs of the
    budget, in which batch norm uses batch statistics and updates its running averages. The
    paper's distillation of eligibility traces into the logits is omitted.

    The target is met to within a step of N, which may be large: for M = 4, a quarter of all
    weights. With `mixed` (ours) it is met to within a step of one layer's N.

    Args:
      key: of samples, attacks and training.
      problem: the trained network and its budget, in `problem.weight_measure`.
      m: M.
      mixed: layers may have N or N - 1; the largest layers are the first to have N - 1.
      epochs_share: passes over the search images, as a share of the budget's epochs; at least 1.
      robust: weight of the loss on images attacked by `problem.attack`, where the clean loss has
        weight 1 - robust; by default 1 if the recipe trains adversarially, else 0.
      rate: Adam's learning rate for the logits.
      temperature, end_temperature: of the samples, at the start and at the end; linear between.
      prior: logits are initialized to this times |w| / (mean |w| of the block).

    Raises:
      InputError: 1:M costs more than the target, or a setting is out of range.

    References:
      Ye et al., Sparse by Rule: Probability-Based N:M Pruning for Spiking Neural Networks,
      arXiv 2511.12097. Xie and Ermon, Reparameterizable Subset Sampling via Continuous
      Relaxations, IJCAI 2019, for the relaxed top-k.
    """
    check_number("m", m, 2)
    for name, value in {"rate": rate, "end_temperature": end_temperature}.items():
        check_number(name, value, 0, above=True)
    check_number("epochs_share", epochs_share, 0)
    if robust is None:
        robust = float(problem.recipe.adversarial is not None)
    check_number("robust", robust, 0, 1)
    key_search, key_train = jax.random.split(key)
    variables, whole, measure = problem.variables, weight_masks(problem), problem.weight_measure
    problem.check_reachable(whole)
    cost, limit = problem.cost(measure), problem.limit(measure=measure)
    logits = {name: _initial_logits(masked_kernel(variables, name), m, prior) for name in whole}
    candidates = patterns(whole, m, mixed)

    def first_within_limit(start: int) -> tuple[int, MaskTree]:
        for number, pattern in enumerate(candidates[start:], start):
            masks = masks_from_logits(logits, whole, pattern, m)
            if cost(masks) <= limit:
                return number, masks
        raise InputError(
            f"a cost of {limit:g} cannot be reached: 1:{m} leaves {cost(masks):g}; raise the "
            "target, or m."
        )

    number, masks = first_within_limit(0)
    counts = keep_counts(whole, candidates[number], m)
    moments, search = optax.adam(rate).init(logits), Passes()
    steps = batches(problem) * max(1, round(epochs_share * problem.recipe.epochs))
    for step, (images, labels, real) in enumerate(steps):
        key_attack, key_sample = jax.random.split(jax.random.fold_in(key_search, step))
        parts = [(images, 1 - robust)] if robust < 1 else []
        if robust:
            params = variables, masks_from_logits(logits, whole, candidates[number], m)
            attack = unchecked(problem.attack)
            attacked = attack(problem.classifier, params, images, labels, key_attack)
            parts.append((attacked, robust))
        done = step / max(len(steps) - 1, 1)
        logits, moments, variables = _step(
            problem.classifier,
            m,
            (logits, moments, variables),
            counts,
            [part for part, _ in parts],
            [weight for _, weight in parts],
            labels,
            (rate, temperature + done * (end_temperature - temperature)),
            key_sample,
        )
        passes = real * (len(parts) + (problem.attack.gradients if robust else 0))
        search += Passes(passes, passes)
    _, masks = first_within_limit(number)  # SynOps depend on which weights stay
    variables, _ = finetune(key_train, problem, variables, masks)
    return Pruned(variables, masks, search)


@partial(jax.jit, static_argnums=1)
def _initial_logits(kernel, m, prior):
    """Logits in proportion to |w| relative to the block's mean."""
    size, real = blocks(jnp.abs(kernel), m, 0), blocks(jnp.ones(kernel.shape), m, 0)
    mean = size.sum(-1, keepdims=True) / real.sum(-1, keepdims=True) + 1e-12
    return jnp.where(real > 0, prior * size / mean, PADDING_LOGIT)


def blocks(kernel: Float[Array, "*K I O"], m: int, fill: float | int) -> Float[Array, "*K O N M"]:
    """The kernel's weights in blocks of m input channels, the last padded with `fill`."""
    rows = jnp.moveaxis(kernel, -2, -1)
    padding = -rows.shape[-1] % m
    rows = jnp.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, padding)], constant_values=fill)
    return rows.reshape(*rows.shape[:-1], -1, m)


def unblock(values: Float[Array, "*K O N M"], channels: int) -> Float[Array, "*K I O"]:
    """The inverse of `blocks`."""
    rows = values.reshape(*values.shape[:-2], -1)[..., :channels]
    return jnp.moveaxis(rows, -1, -2)


def patterns(masks: MaskTree, m: int, mixed: bool) -> list[Pattern]:
    """Candidate N of all layers, from M everywhere down to 1 everywhere."""
    candidates = [dict.fromkeys(masks, m)]
    by_size = sorted(masks, key=lambda name: -masks[name].size)
    for n in range(m - 1, 0, -1):
        if mixed:
            for name in by_size[:-1]:
                candidates.append(candidates[-1] | {name: n})
        candidates.append(dict.fromkeys(masks, n))
    return candidates


def keep_counts(masks: MaskTree, pattern: Pattern, m: int) -> dict[str, Int[np.ndarray, "N"]]:
    """By name of a mask, how many weights of each block are kept."""
    counts = {}
    for name, n in pattern.items():
        channels = masks[name].shape[-2]
        sizes = np.minimum(channels - np.arange(0, channels, m), m)
        counts[name] = -(-sizes * n // m)
    return counts


def masks_from_logits(
    logits: dict[str, Array], masks: MaskTree, pattern: Pattern, m: int
) -> dict[str, Float[Array, "..."]]:
    """Masks of the highest logits in each block; of equal logits, the first are kept."""
    counts = keep_counts(masks, pattern, m)
    return {
        name: _mask(values, counts[name], masks[name].shape[-2]) for name, values in logits.items()
    }


@partial(jax.jit, static_argnums=2)
def _mask(values, counts, channels):
    return unblock(_top_k(values, counts), channels)


def _top_k(values, counts):
    rank = jnp.argsort(jnp.argsort(-values, axis=-1), axis=-1)
    return (rank < counts[:, None]).astype(jnp.float32)


def sample(
    key: Array,
    logits: Float[Array, "*K N M"],
    counts: Int[Array | np.ndarray, "N"],
    temperature: Float[Array, ""] | float | int,
) -> Float[Array, "*K N M"]:
    """Random 0/1 masks with `counts` ones per block: Gumbel top-k with a relaxed gradient.

    The ones are the highest of logits + Gumbel noise, which samples without replacement from the
    softmax of the logits. The gradient is that of the relaxed top-k: a sum of successive
    softmaxes, each with the mass of the ones before removed.
    """
    noisy = (logits + jax.random.gumbel(key, logits.shape)) / temperature
    hard, soft, remaining = _top_k(noisy, counts), jnp.zeros(logits.shape), noisy
    for drawn in range(logits.shape[-1]):
        share = jax.nn.softmax(remaining)
        soft += share * (drawn < counts)[:, None]
        remaining += jnp.log(jnp.maximum(1 - share, 1e-6))
    return soft + jax.lax.stop_gradient(hard - soft)


@partial(jax.jit, static_argnums=(0, 1))
def _step(classifier, m, state, counts, parts, weights, labels, rates, key):
    """One step of Adam on the logits, with one sample of masks for the batch."""
    logits, moments, variables = state
    (rate, temperature), batch = rates, len(labels)
    network, images = training_network(classifier.architecture), jnp.concatenate(parts)
    labels, weights = jnp.tile(labels, len(parts)), jnp.repeat(jnp.stack(weights), batch) / batch

    def loss(logits):
        masks = {}
        for number, name in enumerate(sorted(logits)):
            key_layer = jax.random.fold_in(key, number)
            kernel = masked_kernel(variables, name)
            drawn = sample(key_layer, logits[name], counts[name], temperature)
            masks[name] = unblock(drawn, kernel.shape[-2])
        z, updates = network.apply(
            variables,
            images,
            masks,
            surrogate=classifier.surrogate,
            train=True,
            mutable=["batch_stats"],
            key=key,
        )
        each = optax.softmax_cross_entropy_with_integer_labels(z, labels)
        return jnp.vdot(each, weights), updates

    gradient, updates = jax.grad(loss, has_aux=True)(logits)
    direction, moments = optax.adam(rate).update(gradient, moments)
    return optax.apply_updates(logits, direction), moments, {**variables, **updates}
