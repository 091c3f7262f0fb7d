"""N:M sparsity: of every M input channels' weights N stay, and which is learned with gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from ccsrp_jax.networks.masks import KERNEL, MaskTree
from ccsrp_jax.pruning.problem import Passes, Problem, Pruned, batches, finetune, weight_masks
from ccsrp_jax.training.parallel import training_network
from ccsrp_jax.utils.errors import InputError, check_number

NOTHING = -1e9  # logit of the places that fill up a short block


Pattern = dict[str, int]  # by weight mask, N


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
    """Learns which N of M weights stay, with weights frozen, and fine-tunes with that mask.

    A block is the weights of M consecutive input channels at one position of the window and for
    one output channel, in every layer but the classifier; input channels that are left over are
    a block of r < M, of which ceil(r N / M) stay. Each block has M logits. In the search they
    are sampled, see `sample`, and descend the loss by Adam; in the end the N highest stay.

    The paper's full text was not to be had. From a summary: M logits a block, in place of one for
    each of the combinations, and a differentiable top-k of the Gumbel kind. Ours: frozen
    weights and their absolute values as the logits' start (as MaskLLM has them, Fang et al.,
    NeurIPS 2024), the relaxation, the search on search images beside the budget, where batch norm
    uses the batch and goes on averaging, and all constants. The paper's distillation of
    eligibility traces into the logits is left out.

    The target is met to within one N, which may be far: of 4, a quarter of all weights. `mixed`
    (ours) meets it to within one layer's N.

    Args:
      key: of samples, attacks and training.
      problem: see `problem`; the target is `problem.weight_measure`.
      m: M.
      mixed: layers may have N or N - 1; the largest are the first to have the lower.
      epochs_share: passes over the search images, as a share of the budget's epochs; at least 1.
      robust: weight of the loss on images from `problem.attack`, beside the clean loss; by
        default 1 where the recipe trains adversarially and else 0, as the task's loss is.
      rate: of Adam, for the logits.
      temperature, end_temperature: of the samples, at the start and the end, linear between.
      prior: the logits start at this times |w| over the block's mean |w|.

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
    cost, limit = problem.cost(measure), problem.limit(measure=measure)
    logits = {
        name: _start(variables["params"][name.removesuffix(KERNEL)]["kernel"], m, prior)
        for name in whole
    }
    choices = patterns(whole, m, mixed)

    def first_fit(start: int) -> tuple[int, MaskTree]:
        for number, choice in enumerate(choices[start:], start):
            masks = learned(logits, whole, choice, m)
            if cost(masks) <= limit:
                return number, masks
        raise InputError(
            f"a cost of {limit:g} cannot be reached: 1:{m} leaves {cost(masks):g}; raise the "
            "target, or m."
        )

    number, masks = first_fit(0)
    shares = quotas(whole, choices[number], m)
    moments, search = optax.adam(rate).init(logits), Passes()
    steps = batches(problem) * max(1, round(epochs_share * problem.recipe.epochs))
    for step, (images, labels, real) in enumerate(steps):
        key_attack, key_sample = jax.random.split(jax.random.fold_in(key_search, step))
        parts = [(images, 1 - robust)] if robust < 1 else []
        if robust:
            params = variables, learned(logits, whole, choices[number], m)
            attacked = problem.attack(problem.classifier, params, images, labels, key_attack)
            parts.append((attacked, robust))
        done = step / max(len(steps) - 1, 1)
        logits, moments, variables = _step(
            problem.classifier,
            m,
            (logits, moments, variables),
            shares,
            [part for part, _ in parts],
            [share for _, share in parts],
            labels,
            (rate, temperature + done * (end_temperature - temperature)),
            key_sample,
        )
        passes = real * (len(parts) + (problem.attack.gradients if robust else 0))
        search += Passes(passes, passes)
    _, masks = first_fit(number)  # SynOps depend on which weights stay
    variables, _ = finetune(key_train, problem, variables, masks)
    return Pruned(variables, masks, search)


@partial(jax.jit, static_argnums=1)
def _start(kernel, m, prior):
    """Logits from magnitudes, relative to the block's mean."""
    size, real = blocks(jnp.abs(kernel), m, 0), blocks(jnp.ones(kernel.shape), m, 0)
    mean = size.sum(-1, keepdims=True) / real.sum(-1, keepdims=True) + 1e-12
    return jnp.where(real > 0, prior * size / mean, NOTHING)


def blocks(kernel: Float[Array, "*K I O"], m: int, fill: float | int) -> Float[Array, "*K O N M"]:
    """The kernel's weights by blocks of input channels, the last filled up."""
    rows = jnp.moveaxis(kernel, -2, -1)
    spare = -rows.shape[-1] % m
    rows = jnp.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, spare)], constant_values=fill)
    return rows.reshape(*rows.shape[:-1], -1, m)


def unblocked(values: Float[Array, "*K O N M"], channels: int) -> Float[Array, "*K I O"]:
    """The reverse of `blocks`."""
    rows = values.reshape(*values.shape[:-2], -1)[..., :channels]
    return jnp.moveaxis(rows, -1, -2)


def patterns(masks: MaskTree, m: int, mixed: bool) -> list[Pattern]:
    """Every layer's N, from M for all to 1 for all."""
    found, largest = [dict.fromkeys(masks, m)], sorted(masks, key=lambda name: -masks[name].size)
    for n in range(m - 1, 0, -1):
        if mixed:
            for name in largest[:-1]:
                found.append(found[-1] | {name: n})
        found.append(dict.fromkeys(masks, n))
    return found


def quotas(masks: MaskTree, pattern: Pattern, m: int) -> dict[str, Int[np.ndarray, "N"]]:
    """By layer, how many weights of every block stay."""
    found = {}
    for name, n in pattern.items():
        channels = masks[name].shape[-2]
        sizes = np.minimum(channels - np.arange(0, channels, m), m)
        found[name] = -(-sizes * n // m)
    return found


def learned(
    logits: dict[str, Array], masks: MaskTree, pattern: Pattern, m: int
) -> dict[str, Float[Array, "..."]]:
    """Masks of the highest logits of every block; of equal ones the first."""
    shares = quotas(masks, pattern, m)
    return {
        name: _mask(values, shares[name], masks[name].shape[-2]) for name, values in logits.items()
    }


@partial(jax.jit, static_argnums=2)
def _mask(values, quota, channels):
    return unblocked(_highest(values, quota), channels)


def _highest(values, quota):
    rank = jnp.argsort(jnp.argsort(-values, axis=-1), axis=-1)
    return (rank < quota[:, None]).astype(jnp.float32)


def sample(
    key: Array,
    logits: Float[Array, "*K N M"],
    quota: Int[Array | np.ndarray, "N"],
    temperature: Float[Array, ""] | float | int,
) -> Float[Array, "*K N M"]:
    """Random 0/1 with `quota` ones a block, drawn without replacement by the logits' softmax.

    They are the highest of logits and Gumbel noise. Their gradient is that of a relaxed top-k: a
    sum of softmaxes, each without what those before have taken.
    """
    noisy = (logits + jax.random.gumbel(key, logits.shape)) / temperature
    hard, soft, left = _highest(noisy, quota), jnp.zeros(logits.shape), noisy
    for taken in range(logits.shape[-1]):
        share = jax.nn.softmax(left)
        soft += share * (taken < quota)[:, None]
        left += jnp.log(jnp.maximum(1 - share, 1e-6))
    return soft + jax.lax.stop_gradient(hard - soft)


@partial(jax.jit, static_argnums=(0, 1))
def _step(classifier, m, state, shares, parts, weights, labels, rates, key):
    """One step of Adam on the logits, for one sample of masks a batch."""
    logits, moments, variables = state
    (rate, temperature), batch = rates, len(labels)
    network, images = training_network(classifier.architecture), jnp.concatenate(parts)
    labels, weights = jnp.tile(labels, len(parts)), jnp.repeat(jnp.stack(weights), batch) / batch

    def loss(logits):
        masks = {}
        for number, name in enumerate(sorted(logits)):
            key_layer = jax.random.fold_in(key, number)
            kernel = variables["params"][name.removesuffix(KERNEL)]["kernel"]
            drawn = sample(key_layer, logits[name], shares[name], temperature)
            masks[name] = unblocked(drawn, kernel.shape[-2])
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

    slopes, updates = jax.grad(loss, has_aux=True)(logits)
    direction, moments = optax.adam(rate).update(slopes, moments)
    return optax.apply_updates(logits, direction), moments, {**variables, **updates}
