"""Convolutions and products with masked kernels, as XLA computes them fast on CPUs."""

from functools import partial

import jax
import jax.numpy as jnp


def _masked_dot(x, kernel, *args, mask, **options):
    kernel = kernel if mask is None else kernel * mask.astype(kernel.dtype)
    return jax.lax.dot_general(x, kernel, *args, **options)


def _aligned_conv(x, kernel, *args, mask, train, **options):
    """Convolution with its input channels filled up with zeros to a multiple of 4.

    XLA's convolution on CPUs takes twice the time where they are not, as they seldom are
    once a network is pruned. Its gradient for the kernel takes up to five times as long where
    it sums over many positions at once: in training it is the sum of those of parts of a batch.
    """
    kernel = kernel if mask is None else kernel * mask.astype(kernel.dtype)
    spare = -x.shape[-1] % 4 if x.shape[-1] > 2 else 0
    if spare:
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, spare)])
        kernel = jnp.pad(kernel, [(0, 0), (0, 0), (0, spare), (0, 0)])

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, *args, **options)

    parts = _parts(x.shape) if train and jax.default_backend() == "cpu" else 1
    return convolve(x, kernel) if parts == 1 else _in_parts(convolve, parts)(x, kernel)


def _parts(shape: tuple[int, ...]) -> int:
    """Into how many a batch is cut: as many as leave 2048 positions each, up to 16."""
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
