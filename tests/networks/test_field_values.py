"""Fields of nodes, neurons and architectures: refused in a sentence, or converted at entry."""

import dataclasses
import json
import math
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import busy

from ccsrp_jax.networks import serialization, zoo
from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.cuba_lif import CubaLIF
from ccsrp_jax.networks.gradients import AdaptiveSharpness, RateGradient
from ccsrp_jax.networks.lowering import register_node
from ccsrp_jax.networks.neurons import LIF, Surrogate
from ccsrp_jax.networks.node_base import RESERVED, Node
from ccsrp_jax.networks.nodes import (
    Add,
    Concat,
    Conv,
    Dense,
    DepthwiseConv,
    Dropout,
    Flatten,
    GlobalPool,
    Norm,
    Pool,
    Spike,
)
from ccsrp_jax.networks.spiking_network import SpikingNetwork
from ccsrp_jax.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("untyped")
HUGE = 10**400
SIZES = (0, -3, 2.5, math.nan, math.inf, HUGE, True, np.True_, "3", None, [3], 1 + 0j, {"a": 1})


def refused(make, says=None):
    with pytest.raises(InputError, match=says) as caught:
        make()
    text = str(caught.value)
    assert "\n" not in text and len(text) < 600


@pytest.mark.parametrize("value", SIZES, ids=lambda value: repr(value)[:12])
@pytest.mark.parametrize(
    "make",
    (
        lambda value: Conv("a", "image", value),
        lambda value: Conv("a", "image", 4, kernel=value),
        lambda value: Conv("a", "image", 4, stride=value),
        lambda value: DepthwiseConv("a", "image", kernel=value),
        lambda value: DepthwiseConv("a", "image", stride=value),
        lambda value: Dense("a", "image", value),
        lambda value: Pool("a", "image", window=value),
    ),
)
def test_a_size_is_a_positive_integer(make, value):
    refused(lambda: make(value), "node 'a': ")


@pytest.mark.parametrize(
    "value", (math.nan, math.inf, 1e300, "1", None, True, HUGE, [1.0]), ids=lambda x: repr(x)[:12]
)
@pytest.mark.parametrize(
    "make",
    (
        lambda value: Norm("a", "image", value),
        lambda value: Dropout("a", "image", value),
        lambda value: LIF(threshold=value),
        lambda value: CubaLIF(value),
        lambda value: CubaLIF(2.0, value),
        lambda value: Surrogate("atan", value),
    ),
)
def test_a_constant_is_a_finite_number(make, value):
    refused(lambda: make(value))


@pytest.mark.parametrize(
    ("make", "says"),
    (
        (lambda: LIF(tau=math.nan), "tau nan is below 1"),
        (lambda: LIF(tau="2"), "tau"),
        (lambda: LIF(tau=-math.inf), "tau -inf is below 1"),
        (lambda: LIF(threshold=1e-60), "threshold 1e-60 is out of range"),  # 0 in float32
        (lambda: LIF(threshold=-1), "threshold -1"),
        (lambda: LIF(reset="off"), "unknown LIF reset 'off'"),
        (lambda: LIF(reset=3), "unknown LIF reset"),
        (lambda: LIF(decay_input=1), "decay_input is 1: give True or False"),
        (lambda: LIF(learned="yes"), "learned is 'yes'"),
        (lambda: CubaLIF(tau_mem=math.inf), "tau_mem inf"),
        (lambda: CubaLIF(reset="none"), "unknown CubaLIF reset"),
        (lambda: Surrogate(3), "unknown surrogate '3'"),
        (lambda: RateGradient("bptt"), "unknown rate gradient rule 'bptt'.*did you mean bptr"),
        (lambda: RateGradient(["rga"]), "unknown rate gradient rule"),
        (lambda: AdaptiveSharpness("0.5"), "adaptive sharpness area is '0.5'"),
        (lambda: AdaptiveSharpness(math.nan), "area nan"),
        (lambda: AdaptiveSharpness(decay=None), "decay is None"),
        (lambda: Pool("p", "image", 2, "min"), "node 'p': unknown pool kind 'min'"),
        (lambda: Pool("p", "image", 2, ["max"]), "unknown pool kind"),
        (lambda: Conv("c", "image", 3, bias="no"), "conv bias is 'no'"),
        (lambda: Conv("c", 3, 3), "conv input is 3: give a string"),
        (lambda: Add("a", "image", None), "add other is None"),
        (lambda: Concat("a", "image", "image"), "concat others"),
        (lambda: Concat("a", "image", (1,)), "concat others is 1"),
        (lambda: Concat("a", "image", {"b": 1}), "concat others"),
        (lambda: Dropout("d", "image", -0.1), "dropout rate -0.1"),
    ),
)
def test_values_that_no_node_or_neuron_has_are_refused(make, says):
    refused(make, says)


@pytest.mark.parametrize(
    "name",
    (
        *("", "a/b", "/", "conv1/kernel", "a\nb", "a\0", "\ud800", 3, None, "image\t"),
        *("walk", "dtype", "scope", "name", "setup", "__setattr__"),
    ),
)
def test_names_that_tensors_or_flax_cannot_have_are_refused(name):
    refused(lambda: Spike(name, "image"), "cannot be the name of a node")


def test_every_attribute_of_the_flax_module_is_reserved():
    assert {name for name in dir(SpikingNetwork) if name[:2] != "__"} <= RESERVED
    assert {field.name for field in dataclasses.fields(SpikingNetwork)} <= RESERVED
    assert hasattr(nn.Module, "init")


@dataclass(frozen=True)
class Careless(Node):
    """A kind from outside that checks nothing itself."""

    factor: float = 1.0
    times: int = 1

    def __post_init__(self) -> None:
        pass


register_node(Careless, lambda node, run, x: x * node.factor * node.times)


def network(*nodes: Node, shape=(8, 8, 2), **settings) -> Architecture:
    return Architecture(nodes, shape, **({"time_steps": 2} | settings))


def ending(node: Node, **settings) -> Architecture:
    head = (Flatten("flat", node.name), Dense("out", "flat", 3))
    return network(Conv("c", "image", 4), node, *head, **settings)


@pytest.mark.parametrize(
    ("make", "says"),
    (
        (lambda: ending(Careless("x", "c", factor=math.nan)), "node 'x': careless factor nan"),
        (lambda: ending(Careless("x", "c", times="2")), "node 'x': careless times"),
        (lambda: ending(Careless("x/y", "c")), "'x/y' cannot be the name"),
        (lambda: ending(Spike("c", "c")), "two nodes are called 'c'"),
        (lambda: ending(Pool("p", "c", 9)), "node 'p' has nothing left"),
        (lambda: network(Conv("c", "image", 4), Dense("out", "c", 3)), "put Flatten before it"),
        (lambda: network(Dense("out", "image", 3)), "put Flatten before it"),
        (
            lambda: network(
                Flatten("f", "image"), Conv("c", "f", 3), Flatten("g", "c"), Dense("out", "g", 2)
            ),
            r"needs \(H, W, C\)",
        ),
        (lambda: ending(Add("a", "c", "image")), "must have the same shape"),
        (lambda: network(*(Flatten("f", "image"), "Dense")), "not registered"),
        (lambda: Architecture(None, (8, 8, 1)), "nodes is None"),
        (lambda: Architecture("ab", (8, 8, 1)), "nodes is 'ab'"),
    ),
)
def test_nodes_that_do_not_fit_are_refused_by_the_architecture_itself(make, says):
    refused(make, says)


@pytest.mark.parametrize(
    ("settings", "says"),
    (
        ({"shape": (8, 8)}, "input_shape is .*give 3 values"),
        ({"shape": (8, 8, 0)}, "input_shape 0"),
        ({"shape": (8, -8, 1)}, "input_shape -8"),
        ({"shape": (8, 8.5, 1)}, "input_shape is 8.5"),
        ({"shape": "881"}, "input_shape is '881'"),
        ({"shape": 8}, "input_shape is 8"),
        ({"shape": (8, 8, HUGE)}, "input_shape"),
        ({"time_steps": 0}, "time_steps 0"),
        ({"time_steps": 2.0}, "time_steps is 2.0: give an integer"),
        ({"time_steps": 10**9}, "time_steps 1000000000"),
        ({"mean": ()}, "mean .*has 0 values for 2 channels"),
        ({"mean": (0.5,) * 3}, "mean .*has 3 values for 2 channels"),
        ({"std": (0.5,) * 4}, "std .*has 4 values"),
        ({"std": (0.5, 0.0)}, "std 0.0"),
        ({"std": (1e-300,)}, "std 1e-300"),
        ({"std": (-0.5,)}, "std -0.5"),
        ({"mean": (math.nan,)}, "mean nan"),
        ({"mean": np.full(2, np.inf)}, "mean inf"),
        ({"mean": ("0.5",)}, "mean is '0.5'"),
        ({"mean": "0.5"}, "mean is '0.5'"),
        ({"noise": -0.1}, "noise -0.1"),
        ({"noise": math.nan}, "noise nan"),
        ({"encoding": "pois"}, "unknown encoding 'pois'.*did you mean poisson"),
        ({"encoding": 1}, "unknown encoding"),
        ({"encoding": "frames", "time_steps": 3}, "not divisible into 3 frames"),
        ({"encoding": "frames", "mean": (0.1, 0.2)}, "mean .*2 values for 1 channels"),
        ({"neuron": "LIF"}, "not registered"),
        ({"neuron": None}, "not registered"),
    ),
)
def test_values_that_no_architecture_has_are_refused(settings, says):
    refused(lambda: ending(Spike("s", "c"), **settings), says)


def test_networks_beyond_any_memory_are_refused_before_they_are_made():
    refused(lambda: zoo.build("small", (8, 8, 1), 10, width=1e5), "weights, most of them in 'conv")
    refused(lambda: zoo.build("small", (8, 8, 1), 10, width=1e20), "conv width")
    refused(lambda: zoo.build("small", (8, 8, 1), 10**12), "dense width")


@pytest.mark.parametrize(
    ("make", "says"),
    (
        (lambda: zoo.plain("AA", (8, 8, 1), 10), "model plan 'AA'"),
        (lambda: zoo.plain(3, (8, 8, 1), 10), "model plan 3"),
        (lambda: zoo.plain((4.5,), (8, 8, 1), 10), "model plan is 4.5"),
        (lambda: zoo.plain((4,), (8, 8, 1), 10, width="2"), "model width is '2'"),
        (lambda: zoo.plain((True,), (8, 8, 1), 10), "model plan is True"),
        (lambda: zoo.plain((4,), (8, 8, 1), 10, dense=(0,)), "dense 0"),
        (lambda: zoo.residual([(4, 1)], (8, 8, 1), 10, stem=4), "stages"),
        (lambda: zoo.residual([(4, 1, 0)], (8, 8, 1), 10, stem=4), "stages 0"),
        (lambda: zoo.residual([(4, 1, 1)], (8, 8), 10, stem=4), "input_shape"),
        (lambda: zoo.residual([(4, 1, 1)], (8, 8, 1), 10, stem=0), "stem 0"),
    ),
)
def test_values_that_no_builder_takes_are_refused(make, says):
    refused(make, says)


NUMBERS = (np.int64, np.int32, np.uint8, np.int8, lambda n: np.array(n), lambda n: jnp.int32(n))


@pytest.mark.parametrize("number", NUMBERS)
def test_integers_of_any_type_become_pythons(number):
    nodes = (
        *(Conv("c", "image", number(3), number(3), number(1)), Spike("s", "c")),
        *(DepthwiseConv("d", "s", number(3)), Pool("p", "d", number(2)), Flatten("f", "p")),
        Dense("out", "f", number(3)),
    )
    made = network(*nodes, shape=[number(8), number(8), number(2)], time_steps=number(2))
    same = network(
        *(Conv("c", "image", 3, 3, 1), Spike("s", "c"), DepthwiseConv("d", "s", 3)),
        *(Pool("p", "d", 2), Flatten("f", "p"), Dense("out", "f", 3)),
    )
    assert made == same and hash(made) == hash(same)
    assert made.to_json() == same.to_json()
    assert type(made.classes) is int and type(made.input_shape) is tuple


def test_moments_are_taken_as_arrays_lists_and_numbers():
    mean, std = np.array([0.25, 0.5], np.float32), np.array([0.5, 0.75], np.float32)
    forms = [
        *((mean, std), (mean.tolist(), std.tolist()), (tuple(mean), tuple(std))),
        *((jnp.asarray(mean), jnp.asarray(std)), (mean.astype(np.float16), std.astype("f8"))),
    ]
    made = [ending(Spike("s", "c"), mean=a, std=b) for a, b in forms]
    assert len(set(made)) == 1 and made[0].mean == (0.25, 0.5)
    assert len({architecture.to_json() for architecture in made}) == 1
    assert ending(Spike("s", "c"), mean=0.25, std=np.float32(0.5)).std == (0.5,)


def test_constants_of_numpy_and_names_of_numpy_become_pythons():
    neuron = LIF(np.float32(2), np.float64(0.5), np.str_("soft"), np.True_)
    assert json.loads(ending(Spike(np.str_("s"), "c"), neuron=neuron).to_json())["neuron"] == {
        **{"tau": 2.0, "threshold": 0.5, "reset": "soft", "decay_input": True},
        **{"detach_reset": False, "learned": False},
    }
    assert type(neuron.tau) is float and type(neuron.decay_input) is bool
    assert LIF(math.inf, decay_input=False).tau == math.inf
    assert Concat("a", "image", ["b", "c"]).inputs == ("image", "b", "c")
    assert type(Surrogate("atan", np.float32(0.5)).width) is float


def test_builders_take_numbers_of_numpy():
    width = np.array([1, 1, 0, 1]).sum()  # filters that a mask keeps
    made = zoo.plain((width, "A", np.int32(4)), np.array([8, 8, 1]), np.int64(10), dense=[width])
    assert made == zoo.plain((3, "A", 4), (8, 8, 1), 10, dense=(3,))
    stages = np.array([[4, 1, 1], [8, 1, 2]])
    small = zoo.residual(stages, [8, 8, 1], 10, stem=np.int8(4), width=np.float32(1))
    assert small == zoo.residual(((4, 1, 1), (8, 1, 2)), (8, 8, 1), 10, stem=4)


def test_a_network_of_numpys_numbers_is_saved_under_a_path_as_str(tmp_path):
    width = np.array([1, 1, 1, 0]).sum()
    architecture = zoo.plain((width,), [8, 8, 1], np.int64(10), mean=np.float32([0.5]))
    variables = busy(architecture, seed=0)
    serialization.save(str(tmp_path / "n"), architecture, variables)
    again, read = serialization.load(str(tmp_path / "n"))
    assert again == architecture
    jax.tree.map(np.testing.assert_array_equal, read, variables)


def test_numbers_are_those_of_before():
    """Descriptions of sound networks have not changed."""
    text = zoo.plain((3,), (8, 8, 1), 10, std=(0.25,)).to_json()
    assert json.loads(text)["nodes"][:2] == [
        {"op": "Conv", "name": "conv1", "input": "image", "width": 3}
        | {"kernel": 3, "stride": 1, "bias": False},
        {"op": "Norm", "name": "norm1", "input": "conv1", "scale": 1.0},
    ]
    head = (GlobalPool("g", "image"), Flatten("f", "g"), Dense("out", "f", 3))
    assert Architecture.from_json(network(*head).to_json()) == network(*head)
