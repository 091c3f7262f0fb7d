"""Network files: what does not fit itself is refused in a sentence, when saved and when loaded."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import busy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from ccsrp_jax.networks import serialization, zoo
from ccsrp_jax.networks.cuba_lif import CubaLIF
from ccsrp_jax.networks.neurons import LIF
from ccsrp_jax.utils.errors import InputError

ARCHITECTURE = zoo.plain((4, "A", 6), (8, 8, 1), 10, time_steps=2, neuron=LIF(learned=True))
VARIABLES = busy(ARCHITECTURE, seed=0)
pytestmark = pytest.mark.usefixtures("untyped")
CONV1 = "params/conv1/kernel"
DEEP = "[" * 5000 + "]" * 5000


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "net.safetensors"
    serialization.save(path, ARCHITECTURE, VARIABLES)
    return path


def description(path) -> dict:
    with safe_open(path, framework="numpy") as file:
        return json.loads(file.metadata()["architecture"])


def rewrite(path, tensors=None, described=None, **metadata) -> None:
    """The file as another program would write it, without a digest."""
    described = description(path) if described is None else described
    text = described if isinstance(described, str) else json.dumps(described)
    tensors = load_file(path) if tensors is None else tensors
    save_file(tensors, path, {"architecture": text} | metadata)


def refused(path, says=None):
    with pytest.raises(InputError, match=says) as caught:
        serialization.load(path)
    text = str(caught.value)
    assert "net.safetensors" in text and "\n" not in text and len(text) < 700


@pytest.mark.parametrize(
    ("change", "says"),
    (
        (lambda t: {}, "lacks the tensors .* and .* more"),
        (lambda t: {"x": np.zeros(2, np.float32)}, "lacks the tensors"),
        (lambda t: {k: v for k, v in t.items() if k != "params/conv2/kernel"}, "params/conv2/kern"),
        (lambda t: {k: v for k, v in t.items() if k[0] == "p"}, "batch_stats/norm1/mean"),
        (lambda t: {k: v for k, v in t.items() if "leak" not in k}, "params/lif1/leak"),
        (lambda t: {k.replace("/", "."): v for k, v in t.items()}, "lacks the tensors"),
        (lambda t: t | {"params/more": np.zeros(2, np.float32)}, "beside those .* params/more"),
        (
            lambda t: t | {"params/conv1/kernel": t["params/conv1/kernel"][..., :2]},
            r"\(3, 3, 1, 2\)",
        ),
        (lambda t: t | {"params/conv1/kernel": t["params/conv1/kernel"].ravel()}, r"\(36,\)"),
        (lambda t: t | {"params/lif1/leak": np.ones((1, 1), np.float32)}, r"shape \(1, 1\)"),
        (lambda t: t | {"params/norm1/scale": np.zeros((0,), np.float32)}, r"shape \(0,\)"),
        (lambda t: t | {"params/norm1/scale": np.ones(4)}, "type float64"),
        (lambda t: t | {"params/norm1/scale": np.ones(4, np.float16)}, "type float16"),
        (lambda t: t | {"params/norm1/scale": np.ones(4, np.int32)}, "type int32"),
        (lambda t: t | {"params/norm1/scale": np.ones(4, bool)}, "type bool"),
        (lambda t: t | {"params/norm1/bias": np.float32([0, 1, np.nan, 0])}, "not finite"),
        (lambda t: t | {"params/classifier/bias": np.full(10, np.inf, "f")}, "not finite"),
        (lambda t: t | {"batch_stats/norm1/mean": np.full(4, -np.inf, "f")}, "not finite"),
        (lambda t: t | {"batch_stats/norm2/var": np.float32([1, 1, -0.1, 1, 1, 1])}, "negative"),
    ),
)
def test_tensors_that_are_not_those_of_the_description_are_refused(path, change, says):
    tensors = {k: np.ascontiguousarray(v) for k, v in change(load_file(path)).items()}
    rewrite(path, tensors)
    refused(path, says)


def changed(field, value, node=None):
    def change(a):
        (a if node is None else a["nodes"][node])[field] = value
        return a

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    (
        (changed("width", 0, 0), "width 0"),
        (changed("width", -3, 0), "width -3"),
        (changed("width", 10**399, 0), "out of range"),
        (changed("width", 4.0, 0), "give an integer"),
        (changed("width", "4", 0), "give an integer"),
        (changed("width", None, 0), "give an integer"),
        (changed("width", [4], 0), "give an integer"),
        (changed("width", True, 0), "give an integer"),
        (changed("width", 5, 0), "needs"),
        (changed("kernel", 0, 0), "kernel 0"),
        (changed("kernel", 5, 0), "needs"),
        (changed("stride", 0, 0), "stride 0"),
        (changed("bias", 1, 0), "True or False"),
        (changed("bias", True, 0), "lacks the tensors params/conv1/bias"),
        (changed("name", "a/b", 0), "cannot be the name"),
        (changed("name", "other", 0), "unknown input"),
        (changed("name", ["conv1"], 0), "cannot be the name"),
        (changed("input", "imag", 0), "unknown input"),
        (changed("input", {"a": 1}, 0), "give a string"),
        (changed("op", "Lambda", 0), "not registered"),
        (changed("op", ["Conv"], 0), "not registered"),
        (changed("op", {"a": 1}, 0), "not registered"),
        (changed("depth", 3, 0), "unknown field of node 'conv1' 'depth'"),
        (changed("scale", float("nan"), 1), "norm scale nan"),
        (changed("scale", float("inf"), 1), "norm scale inf"),
        (changed("kind", "median", 3), "unknown pool kind 'median'"),
        (changed("window", 10**9, 3), "window"),
        (changed("nodes", {}), "nodes"),
        (changed("nodes", []), "the last node"),
        (changed("nodes", [[]]), "description of a node"),
        (changed("nodes", ["Conv"]), "description of a node"),
        (changed("nodes", None), "nodes"),
        (changed("neuron", None), "description of the neuron"),
        (changed("neuron", []), "description of the neuron"),
        (changed("neuron", {"kind": 3}), "not registered"),
        (changed("neuron", {"kind": ["LIF"]}), "not registered"),
        (changed("neuron", {"tau": 2, "tua": 2}), "did you mean tau"),
        (changed("neuron", {"tau": float("nan")}), "tau nan"),
        (changed("neuron", {"threshold": 0}), "threshold 0"),
        (changed("neuron", {"alpha": 0.5, "kind": "CubaLIF"}), "unknown field"),
        (changed("input_shape", [8, 8]), "input_shape"),
        (changed("input_shape", {"a": 8}), "input_shape"),
        (changed("input_shape", [8, 8, 2]), "needs"),
        (changed("input_shape", None), "input_shape"),
        (changed("time_steps", 10**12), "time_steps"),
        (changed("time_steps", "2"), "time_steps"),
        (changed("mean", [[0.5]]), "mean"),
        (changed("mean", [0.5, 0.5]), "mean"),
        (changed("mean", {}), "mean"),
        (changed("std", [0]), "std 0"),
        (changed("encoding", ["direct"]), "unknown encoding"),
        (changed("more", 1), "unknown field of the network 'more'"),
        (lambda a: {k: v for k, v in a.items() if k != "input_shape"}, "no input_shape"),
        (lambda a: {k: v for k, v in a.items() if k != "nodes"}, "nodes"),
        (lambda a: {k: v for k, v in a.items() if k != "neuron"}, "neuron"),
        (lambda a: [], "JSON object"),
        (lambda a: "null", "JSON object"),
        (lambda a: "", "no JSON"),
        (lambda a: "{", "no JSON"),
        (lambda a: "9" * 5000, "no JSON"),
        (lambda a: DEEP, "no JSON"),
        (lambda a: json.dumps(a).replace("[8, 8, 1]", "[" * 400 + "]" * 400), "input_shape"),
        (lambda a: json.dumps(a | {"mean": 0}).replace('"mean": 0', f'"mean": {DEEP}'), "no JSON"),
    ),
)
def test_descriptions_that_are_none_are_refused(path, change, says):
    rewrite(path, described=change(description(path)))
    refused(path, says)


@pytest.mark.parametrize("text", ("", "[]", "3", "{", DEEP))
def test_a_provenance_that_is_none_is_refused(path, text):
    rewrite(path, provenance=text)
    refused(path, "what it was trained on")


def test_what_is_no_file_of_this_library_is_refused(tmp_path):
    path = tmp_path / "net.safetensors"
    refused(path, "not a readable network file")
    path.mkdir()
    refused(path, "not a readable network file")
    path.rmdir()
    for content in (b"", b"hello", b"\0" * 8, b"\xff" * 64, b"\x10" + b"\0" * 7 + b"{" * 16):
        path.write_bytes(content)
        refused(path, "not a readable network file")
    save_file({"a": np.zeros(2, np.float32)}, path)
    refused(path, "no description of a network")
    save_file({"a": np.zeros(2, np.float32)}, path, {"format": "pt"})
    refused(path, "no description of a network")
    for bad in (f"{path}\0", "\ud800"):
        with pytest.raises(InputError):
            serialization.load(bad)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_a_damaged_file_loads_as_it_was_saved_or_not_at_all(path, data):
    """One byte changed, or a piece cut out or put in, anywhere."""
    serialization.save(path, ARCHITECTURE, VARIABLES, {"seed": 3})
    content = bytearray(path.read_bytes())
    header = int.from_bytes(content[:8], "little") + 8
    end = data.draw(st.sampled_from((header, len(content))))  # the header is the smaller part
    at = data.draw(st.integers(0, end - 1))
    match data.draw(st.sampled_from(("flip", "cut", "insert"))):
        case "flip":
            content[at] ^= 1 << data.draw(st.integers(0, 7))
        case "cut":
            del content[at : at + data.draw(st.integers(1, 200))]
        case _:
            content[at:at] = data.draw(st.binary(min_size=1, max_size=20))
    path.write_bytes(content)
    try:
        found = serialization.load_with_provenance(path)
    except InputError as error:
        assert "\n" not in str(error)
        return
    assert found.architecture == ARCHITECTURE
    chex.assert_trees_all_equal(found.variables, VARIABLES)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
)
ARRAYS = st.builds(
    np.full,
    st.lists(st.integers(0, 5), max_size=4).map(tuple),
    st.floats(width=16),
    st.sampled_from((np.float32, np.float32, np.float64, np.float16)),
)


def replaced(data, tree):
    """The tree with one of its values drawn anew, left out, or under another name."""
    tree = dict(tree) if isinstance(tree, dict) else list(tree)
    key = data.draw(st.sampled_from(sorted(tree) if isinstance(tree, dict) else range(len(tree))))
    if isinstance(tree[key], (dict, list)) and tree[key] and data.draw(st.integers(0, 3)):
        tree[key] = replaced(data, tree[key])
        return tree
    match data.draw(st.sampled_from(("value", "value", "gone", "renamed"))):
        case "value":
            near = [tree[key]] * isinstance(tree[key], (int, float))
            steps = st.sampled_from([n * 2 for n in near] + [n + 1 for n in near] + [-1, 0, 1])
            tree[key] = data.draw(JSON | steps)
        case "renamed" if isinstance(tree, dict):
            tree[data.draw(st.text(max_size=6))] = tree.pop(key)
        case _:
            del tree[key]
    return tree


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_a_file_that_was_changed_loads_as_what_it_says_or_not_at_all(path, data):
    """Without a digest, as other programs write them: tensors, description and provenance."""
    serialization.save(path, ARCHITECTURE, VARIABLES, {"seed": 3})
    tensors, described = load_file(path), description(path)
    name = data.draw(st.sampled_from(sorted(tensors)))
    match data.draw(st.sampled_from(("array", "number", "renamed", "gone", "description"))):
        case "array":
            tensors[name] = data.draw(ARRAYS)
        case "number":
            tensors[name] = np.array(tensors[name])
            place = data.draw(st.integers(0, tensors[name].size - 1))
            tensors[name].flat[place] = data.draw(st.floats(width=32))
        case "renamed":
            tensors[data.draw(st.text(max_size=9))] = tensors.pop(name)
        case "gone":
            del tensors[name]
        case _:
            described = replaced(data, described)
    rewrite(path, tensors, described)
    try:
        found = serialization.load_with_provenance(path)
    except InputError as error:
        assert "\n" not in str(error)
        return
    leaves = jax.tree.leaves(found.variables)
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    assert all((each["var"] >= 0).all() for each in found.variables["batch_stats"].values())
    assert sorted(a.tobytes() for a in map(np.asarray, leaves)) == sorted(
        a.tobytes() for a in tensors.values()
    )
    serialization.save(path, *found)  # what loads can be saved, and loads as the same
    again = serialization.load_with_provenance(path)
    assert again.architecture == found.architecture
    chex.assert_trees_all_equal(again.variables, found.variables)


@pytest.mark.parametrize("bit", range(0, 32, 5))
def test_a_flipped_bit_of_a_weight_is_noticed(path, bit):
    content = bytearray(path.read_bytes())
    content[-4 * 60 + bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    refused(path)


def test_files_of_before_without_digest_and_provenance_load(path):
    rewrite(path)
    architecture, variables, provenance = serialization.load_with_provenance(path)
    assert architecture == ARCHITECTURE and provenance is None
    chex.assert_trees_all_equal(variables, VARIABLES)


def test_what_a_network_was_trained_on_is_read_back(path):
    origin = {"dataset": "digits", "seed": 3, "digests": ["a", "b"]}
    serialization.save(path, ARCHITECTURE, VARIABLES, origin)
    assert serialization.load_with_provenance(path).provenance == origin
    assert serialization.load(path)[0] == ARCHITECTURE


def without(variables, collection, layer, name=None):
    """A copy of the variables in which a layer, or one array of it, is missing."""
    layers = {k: dict(v) for k, v in variables[collection].items()}
    if name is None:
        del layers[layer]
    else:
        del layers[layer][name]
    return variables | {collection: layers}


@pytest.mark.parametrize(
    ("make", "says"),
    (
        (lambda v: {}, "lacks the tensors"),
        (lambda v: v | {"batch_stats": {}}, "lacks the tensors batch_stats"),
        (lambda v: without(v, "params", "conv2"), "params/conv2/kernel"),
        (lambda v: without(v, "params", "norm1", "bias"), "params/norm1/bias"),
        (lambda v: v | {"opt": {"step": jnp.zeros(())}}, "opt/step"),
        (lambda v: jax.tree.map(lambda a: a * jnp.nan, v), "not finite"),
        (lambda v: jax.tree.map(lambda a: -jnp.abs(a), v), "negative variance"),
        (lambda v: jax.tree.map(lambda a: a[None], v), "shape"),
        (lambda v: jax.tree.map(lambda a: a.astype(jnp.int32), v), "type int32"),
    ),
)
def test_what_could_not_be_loaded_is_not_saved(tmp_path, make, says):
    path = tmp_path / "net.safetensors"
    path.write_text("before")
    with pytest.raises(InputError, match=says):
        serialization.save(path, ARCHITECTURE, make(VARIABLES))
    assert path.read_text() == "before" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("dtype", (np.float64, np.float16, jnp.bfloat16))
def test_weights_of_other_float_types_are_saved_as_float32(tmp_path, dtype):
    given = jax.tree.map(lambda a: np.asarray(a).astype(dtype), VARIABLES)
    serialization.save(tmp_path / "n", ARCHITECTURE, given)
    _, read = serialization.load(tmp_path / "n")
    chex.assert_trees_all_equal(read, jax.tree.map(lambda a: a.astype(np.float32), given))


@pytest.mark.parametrize(
    "architecture",
    (
        zoo.plain((3, "M"), (8, 6, 8), 7, time_steps=4, encoding="frames", dense=(5,)),
        zoo.residual(((3, 1, 2),), (8, 12, 3), 4, stem=2, time_steps=3, neuron=CubaLIF()),
        zoo.plain((3,), (5, 5, 1), 2, neuron=LIF(np.inf, decay_input=False)),
    ),
    ids=("frames", "residual", "integrate and fire"),
)
def test_every_sound_network_reads_back(tmp_path, architecture):
    variables = busy(architecture, seed=1)
    serialization.save(tmp_path / "n", architecture, variables)
    again, read = serialization.load(tmp_path / "n")
    assert again == architecture
    chex.assert_trees_all_equal(read, variables)


def test_the_same_network_gives_the_same_bytes(tmp_path):
    architecture = zoo.plain((4,), (8, 8, 1), 10, time_steps=2)
    variables, paths = busy(architecture, seed=0), [tmp_path / f"{n}.safetensors" for n in range(9)]
    for path in paths:
        serialization.save(path, architecture, variables, {"name": "ä", "seed": 0})
    assert len({path.read_bytes() for path in paths}) == 1
    assert serialization.load_with_provenance(paths[0]).provenance == {"name": "ä", "seed": 0}


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("origin", ("text", [1], {"seed": object()}, {"seed": {1, 2}}))
def test_a_provenance_that_is_no_json_object_is_refused_before_writing(tmp_path, origin):
    architecture = zoo.plain((2,), (4, 4, 1), 2)
    variables = zoo.init(jax.random.key(0), architecture)
    with pytest.raises(InputError, match="is no JSON object"):
        serialization.save(tmp_path / "net", architecture, variables, origin)
    with pytest.raises(InputError, match="names no file"):
        serialization.save("", architecture, variables)
    with pytest.raises(InputError, match="lacks the tensors"):
        serialization.save(tmp_path / "net", architecture, {1: variables["params"]})
    assert not list(tmp_path.iterdir())
    serialization.save(
        tmp_path / "net", architecture, variables, {"seed": np.int64(3), "kept": np.arange(2)}
    )
    assert serialization.load_with_provenance(tmp_path / "net").provenance == {
        "seed": 3,
        "kept": [0, 1],
    }
