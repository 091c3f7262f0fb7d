"""State dicts become variables; wrong ones end in one sentence. PyTorch itself: tests/oracles."""

import dataclasses

import numpy as np
import pytest
from conftest import busy, jit, tiny

from ccsrp_jax.exchange.from_torch import from_torch
from ccsrp_jax.networks.neurons import LIF
from ccsrp_jax.networks.spiking_network import SpikingNetwork
from ccsrp_jax.utils.errors import InputError

ARCHITECTURE = tiny("small", neuron=LIF(learned=True))


def state_dict(architecture, variables):
    """As torch has it: channels first, flattened features too."""
    found = {}
    for number, node in enumerate(architecture.nodes):
        weights = variables["params"].get(node.name, {})
        if "kernel" in weights and weights["kernel"].ndim == 4:
            found[f"{number}.weight"] = np.transpose(weights["kernel"], (3, 2, 0, 1))
        elif "kernel" in weights:
            features, classes = weights["kernel"].shape
            kernel = np.reshape(weights["kernel"], (2, 2, features // 4, classes))
            kernel = np.moveaxis(kernel, 2, 0).reshape(features, classes)
            found |= {f"{number}.weight": kernel.T, f"{number}.bias": weights["bias"]}
        elif "scale" in weights:
            moments = variables["batch_stats"][node.name]
            found |= {f"{number}.weight": weights["scale"], f"{number}.bias": weights["bias"]}
            found[f"{number}.running_mean"] = moments["mean"]
            found[f"{number}.running_var"] = moments["var"]
            found[f"{number}.num_batches_tracked"] = np.array(3)
        elif "leak" in weights:
            found[f"{number}.w"] = weights["leak"][0]
    return found


@pytest.fixture(scope="module")
def source():
    variables = busy(ARCHITECTURE, 0)
    return variables, state_dict(ARCHITECTURE, variables)


def test_weights_come_back(source):
    variables, given = source
    found = from_torch(ARCHITECTURE, given)
    for collection, nodes in variables.items():
        for name, leaves in nodes.items():
            for key, value in leaves.items():
                np.testing.assert_array_equal(found[collection][name][key], value)


def test_fused_batch_normalization(source, images):
    variables, given = source
    folded, last = {}, None
    for key, value in given.items():
        number, name = key.split(".")
        if f"{number}.running_var" not in given:
            folded[key] = np.asarray(value)
            last = number if name == "weight" else last
        elif name == "weight":
            scale = value / np.sqrt(given[f"{number}.running_var"] + 1e-5)
            shift = given[f"{number}.bias"] - given[f"{number}.running_mean"] * scale
            folded[f"{last}.weight"] = folded[f"{last}.weight"] * np.reshape(scale, (-1, 1, 1, 1))
            folded[f"{last}.bias"] = np.asarray(shift)
    assert len(folded) < len(given)
    run = jit(SpikingNetwork(ARCHITECTURE).apply)
    expected = run(variables, images[:8])
    found = run(from_torch(ARCHITECTURE, folded), images[:8])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def changed(given, **changes):
    given = {**given, **{key.replace("_", ".", 1): value for key, value in changes.items()}}
    return {key: value for key, value in given.items() if value is not None}


def test_wrong_state_dicts_end_in_one_sentence(source):
    _, given = source
    first = given["0.weight"]
    norm = next(key for key in given if key.endswith("running_mean"))
    classifier = f"{len(ARCHITECTURE.nodes) - 1}"
    cases = {
        "2 of the kind convolution": {k: v for k, v in given.items() if k != "0.weight"},
        "4 of the kind convolution": {**given, "more.weight": first},
        "lacks \\('running_mean'\\)": {k: v for k, v in given.items() if k != norm},
        "not finite": {**given, "0.weight": first * np.nan},
        "params/conv1/kernel.*shape": {**given, "0.weight": first[:, :, :2]},
        "no tensor": {**given, "0.weight": "weights"},
        "bias for 'conv1', and the architecture none": {**given, "0.bias": first[:, 0, 0, 0]},
        "no bias for 'classifier'": {k: v for k, v in given.items() if k != f"{classifier}.bias"},
        "layers of neurons": {**given, "more.w": np.float32(0)},
        "no leaks": {k: v for k, v in given.items() if not k.endswith(".w")},
        "no known kind": {**given, "0.weight_g": first},
        "threshold of neurons '2'": {**given, "2.threshold": np.float32(0.3)},
    }
    for why, wrong in cases.items():
        with pytest.raises(InputError, match=why):
            from_torch(ARCHITECTURE, wrong)


def test_fixed_leaks_must_be_those_of_the_architecture(source):
    _, given = source
    fixed = dataclasses.replace(ARCHITECTURE, neuron=LIF(3.0))
    with pytest.raises(InputError, match="leak 1 / tau"):
        from_torch(fixed, given)


def test_layers_by_name(source):
    variables, given = source
    nodes = [node for node in ARCHITECTURE.nodes if node.name in variables["params"]]
    layers = {node.name: str(ARCHITECTURE.nodes.index(node)) for node in nodes if not node.spiking}
    shuffled = dict(reversed(given.items()))
    kept = {k: v for k, v in shuffled.items() if not k.endswith(".w")}
    kept |= {k: v for k, v in given.items() if k.endswith(".w")}
    found = from_torch(ARCHITECTURE, kept, names=layers)
    np.testing.assert_array_equal(found["params"]["conv2"]["kernel"], given_kernel(variables))
    with pytest.raises(InputError, match="lack these nodes"):
        from_torch(ARCHITECTURE, kept, names={})
    with pytest.raises(InputError, match="lacks these layers"):
        from_torch(ARCHITECTURE, kept, names={**layers, "conv1": "absent"})


def given_kernel(variables):
    return variables["params"]["conv2"]["kernel"]
