"""What other libraries answer to the questions that this one answers."""

import dataclasses
import math
from functools import partial

import foolbox
import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch_pruning
from pymoo.indicators.hv import HV
from pymoo.operators.survival.rank_and_crowding.metrics import get_crowding_function
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting
from spikingjelly.activation_based.functional import lif_charge
from spikingjelly.activation_based.op_counter import DispatchCounterMode, SynOpCounter

from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.networks.architecture import Architecture, shapes
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.neurons import LIF, Surrogate
from ccsrp_jax.networks.nodes import Conv, Dense
from peers.torch_twin import Twin, lif_node, nchw, tensor


def lif_by_spikingjelly(
    current: np.ndarray, lif: LIF, shape: Surrogate, d_spikes: np.ndarray, d_potentials: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Spikes, potentials before the reset, and the gradient for the current (T, N).

    The gradient is of the outputs' sum weighted by `d_spikes` and `d_potentials`.
    """
    x = tensor(current).requires_grad_()
    node = lif_node(lif, shape)
    node.v = torch.zeros_like(x[0])
    spikes, potentials = [], []
    for step in x:
        charged = lif_charge(step, node.v, lif.tau, lif.decay_input, node.v_reset)
        potentials.append(charged)
        spikes.append(node(step))
    s, v = torch.stack(spikes), torch.stack(potentials)
    (s * tensor(d_spikes) + v * tensor(d_potentials)).sum().backward()
    return s.detach().numpy(), v.detach().numpy(), x.grad.numpy()


def attack_by_foolbox(
    classifier: Classifier, variables: dict, images: np.ndarray, labels: np.ndarray, attack: PGD
) -> np.ndarray:
    """Adversarial images of an attack from a fixed start; FGSM where it makes one step."""
    model = foolbox.JAXModel(jax.jit(partial(classifier, (variables, None))), bounds=(0, 1))
    kinds = {
        "linf": (foolbox.attacks.LinfFastGradientAttack, foolbox.attacks.LinfPGD),
        "l2": (foolbox.attacks.L2FastGradientAttack, foolbox.attacks.L2PGD),
    }
    once, many = kinds[attack.norm]
    if attack.steps == 1:
        peer = once(random_start=False)
    else:
        peer = many(abs_stepsize=attack.step_size, steps=attack.steps, random_start=False)
    criterion = foolbox.criteria.Misclassification(jnp.asarray(labels))
    return np.asarray(peer.run(model, jnp.asarray(images), criterion, epsilon=attack.eps))


def macs_by_torch_pruning(architecture: Architecture, variables: dict) -> dict[str, int]:
    """MACs by convolution and dense layer, one time step.

    Torch-Pruning adds one operation for every output with a bias, which is taken off, and
    counts batch norm as two for every input, which is left out.
    """
    one_step = dataclasses.replace(architecture, time_steps=1)
    twin = Twin(one_step, variables)
    h, w, c = architecture.input_shape
    _, _, operations, _ = torch_pruning.utils.count_ops_and_params(
        twin, torch.zeros(1, c, h, w), layer_wise=True
    )
    return {
        node.name: operations[twin.layer(node)]
        - getattr(node, "bias", False) * math.prod(shapes(architecture)[node.name])
        for node in architecture.nodes
        if node.has_kernel
    }


def params_by_torch_pruning(architecture: Architecture, variables: dict) -> int:
    """Trainable parameters of the network."""
    h, w, c = architecture.input_shape
    twin = Twin(architecture, variables)
    return torch_pruning.utils.count_ops_and_params(twin, torch.zeros(1, c, h, w))[1]


def synops_by_spikingjelly(
    architecture: Architecture, variables: dict, images: np.ndarray
) -> dict[str, float]:
    """SynOps by layer, mean over the images, 0 for the layer that reads the image.

    SpikingJelly counts layers with binary inputs only, so not those that read averages or
    sums of spikes.
    """
    twin, counter = Twin(architecture, variables), SynOpCounter()
    with torch.no_grad(), DispatchCounterMode([counter]):
        twin(nchw(images))
    counts = counter.get_counts()
    paths = {module: path for path, module in twin.named_modules()}
    return {
        node.name: sum(counts[f"Twin.{paths[twin.layer(node)]}"].values()) / len(images)
        for node in architecture.nodes
        if isinstance(node, Conv | Dense)
    }


def ranks_by_pymoo(objectives: np.ndarray) -> np.ndarray:
    """Index of each row's front."""
    return NonDominatedSorting().do(objectives, return_rank=True)[1]


def hypervolume_by_pymoo(points: np.ndarray, reference: np.ndarray) -> float:
    """Volume that the points dominate, up to the reference."""
    return float(HV(ref_point=reference)(points))


def crowding_by_pymoo(objectives: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Crowding distance within each front, summed over objectives (pymoo's is the mean)."""
    crowding = np.zeros(len(objectives))
    for rank in np.unique(ranks):
        front = ranks == rank
        crowding[front] = get_crowding_function("cd").do(objectives[front])
    return crowding * objectives.shape[1]
