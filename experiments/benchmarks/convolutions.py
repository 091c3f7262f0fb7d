"""Rates of single convolutions and their gradients, as XLA and as torch compute them."""

import statistics
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ccsrp_jax.networks.architecture import Architecture, shapes
from ccsrp_jax.networks.cost import layer_macs
from ccsrp_jax.networks.nodes import IMAGE, Conv
from common import CPU, take_turns


def xla_passes(node: Conv, *arrays: np.ndarray) -> dict:
    """A convolution of x with a kernel and its gradients at y, as our network computes them."""
    pad, order = [(node.kernel // 2, node.kernel // 2)] * 2, ("NHWC", "HWIO", "NHWC")
    strides, (x, kernel, y) = (node.stride, node.stride), map(jnp.asarray, arrays)

    def forward(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, strides, pad, dimension_numbers=order)

    def to_input(x, kernel, y):
        return jax.vjp(lambda x: forward(x, kernel), x)[1](y)

    def to_weights(x, kernel, y):
        return jax.vjp(lambda kernel: forward(x, kernel), kernel)[1](y)

    return {
        "forward": partial(jax.jit(forward), x, kernel),
        "input gradient": partial(jax.jit(to_input), x, kernel, y),
        "weight gradient": partial(jax.jit(to_weights), x, kernel, y),
    }


def torch_passes(node: Conv, x: np.ndarray, kernel: np.ndarray, y: np.ndarray) -> dict:
    """The same in torch, channels last."""
    import torch

    def last(array, *order):
        array = torch.from_numpy(array).permute(order).to("cpu" if CPU else "cuda")
        return array.contiguous(memory_format=torch.channels_last)

    x, kernel, y = last(x, 0, 3, 1, 2), last(kernel, 3, 2, 0, 1), last(y, 0, 3, 1, 2)
    stride, pad = [node.stride] * 2, [node.kernel // 2] * 2

    def timed(run):
        def call():
            result = run()
            if not CPU:
                torch.cuda.synchronize()
            return result

        return call

    def gradient(*wanted):
        how = (None, stride, pad, [1, 1], False, [0, 0], 1, wanted)
        return timed(lambda: torch.ops.aten.convolution_backward(y, x, kernel, *how))

    return {
        "forward": timed(lambda: torch.nn.functional.conv2d(x, kernel, None, stride, pad)),
        "input gradient": gradient(True, False, False),
        "weight gradient": gradient(False, True, False),
    }


def convolutions(architecture: Architecture, batch: int, repeats: int, torch_too: bool) -> dict:
    """GMAC/s of the three heaviest convolutions that see spikes, by layer, library and pass."""
    macs, width = layer_macs(architecture), shapes(architecture)
    heavy = [node for node in architecture.nodes if isinstance(node, Conv) and node.input != IMAGE]
    heavy = sorted(heavy, key=lambda node: -macs[node.name])[:3]
    images, random = batch * architecture.time_steps, np.random.default_rng(0)
    runs = {}
    for node in heavy:
        x, y = ((images, *width[name]) for name in (node.input, node.name))
        kernel = (node.kernel, node.kernel, x[-1], node.width)
        arrays = [random.standard_normal(shape, np.float32) for shape in (x, kernel, y)]
        for library, passes in {"XLA": xla_passes, "torch": torch_passes}.items():
            if library == "XLA" or torch_too:
                for name, run in passes(node, *arrays).items():
                    runs[node.name, library, name] = run
    found = {}
    for (layer, library, name), seconds in take_turns(runs, repeats).items():
        rate = batch * macs[layer] / statistics.median(seconds) / 1e9
        found.setdefault(layer, {}).setdefault(library, {})[name] = rate
    return found
