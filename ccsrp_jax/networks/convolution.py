"""Convolutions and matrix products with masked kernels, arranged for XLA's fast paths on CPUs."""

from functools import partial

import jax
import jax.numpy as jnp


def masked_dot(x, kernel, *args, mask, **options):
    """`lax.dot_general` with a 0/1 mask (or None) multiplied into the kernel."""
    kernel = kernel if mask is None else kernel * mask.astype(kernel.dtype)
    return jax.lax.dot_general(x, kernel, *args, **options)


def aligned_conv(x, kernel, *args, mask, split_gradient, **options):
    """`lax.conv_general_dilated` with a 0/1 mask (or None) multiplied into the kernel.

    On CPUs XLA's convolution takes twice the time where the number of input channels is no
    multiple of 4, which is common in pruned networks: they are padded with zeros. Depthwise
    convolutions have one input channel per filter and are left as they are.

    Args:
      x, kernel, args, options: as for `lax.conv_general_dilated`.
      mask: of the kernel.
      split_gradient: compute the kernel's gradient as a sum over parts of the batch. On CPUs
        XLA takes up to five times as long where it sums over many positions at once.
    """
    kernel = kernel if mask is None else kernel * mask.astype(kernel.dtype)
    depthwise = options.get("feature_group_count", 1) > 1
    spare = -x.shape[-1] % 4 if x.shape[-1] > 2 and not depthwise else 0
    if spare:
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, spare)])
        kernel = jnp.pad(kernel, [(0, 0), (0, 0), (0, spare), (0, 0)])

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, *args, **options)

    parts = _parts(x.shape) if split_gradient and not depthwise else 1
    return convolve(x, kernel) if parts == 1 else _in_parts(convolve, parts)(x, kernel)


def _parts(shape: tuple[int, ...]) -> int:
    """Number of parts of a batch: as many as leave 2048 positions in each, up to 16."""
    images, height, width, _ = shape
    most = min(16, images * height * width // 2048)
    return max((n for n in range(1, most + 1) if images % n == 0), default=1)


def _in_parts(convolve, parts):
    """The same function; its gradient for the kernel is a sum over parts of the batch."""

    def backward(saved, slope):
        x, kernel = saved
        [x_slope] = jax.vjp(lambda x: convolve(x, kernel), x)[1](slope)
        pairs = zip(jnp.split(x, parts), jnp.split(slope, parts), strict=True)
        sums = [jax.vjp(partial(convolve, part), kernel)[1](each)[0] for part, each in pairs]
        return x_slope, sum(sums)

    run = jax.custom_vjp(convolve)
    run.defvjp(lambda x, kernel: (convolve(x, kernel), (x, kernel)), backward)
    return run
