from functools import partial
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import AT_REST, TINY, busy, enlarged, jit, thinned, tiny

from ccsrp_jax.networks import cost, masks, zoo
from ccsrp_jax.networks.architecture import Architecture, groups, shapes
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.gradients import Relu
from ccsrp_jax.networks.neurons import LIF, Surrogate, lif
from ccsrp_jax.networks.nodes import Conv, Dense, Norm, Pool, Spike
from ccsrp_jax.networks.spiking_network import SpikingNetwork
from ccsrp_jax.utils.errors import InputError


def step_by_step(architecture, variables, images):
    """The same network, one time step after the other and every layer in every step."""
    params, stats = variables["params"], variables["batch_stats"]
    tau, threshold = architecture.neuron.tau, architecture.neuron.threshold
    membrane, total = {}, 0.0
    for _ in range(architecture.time_steps):
        x = (images - jnp.array(architecture.mean)) / jnp.array(architecture.std)
        for node in architecture.nodes:
            name = node.name
            match node:
                case Conv():
                    dims = ("NHWC", "HWIO", "NHWC")
                    kernel = params[name]["kernel"]
                    x = jax.lax.conv_general_dilated(
                        x, kernel, (1, 1), "SAME", dimension_numbers=dims
                    )
                case Norm():
                    scale = params[name]["scale"] / jnp.sqrt(stats[name]["var"] + 1e-5)
                    x = (x - stats[name]["mean"]) * scale + params[name]["bias"]
                case Spike():
                    v = membrane.get(name, 0.0)
                    v = v + (x - v) / tau
                    x = (v >= threshold).astype(jnp.float32)
                    membrane[name] = v * (1 - x)
                case Pool(window=w):
                    b, h, _, c = x.shape
                    x = x.reshape(b, h // w, w, h // w, w, c).mean((2, 4))
                case Dense():
                    x = x @ params[name]["kernel"] + params[name]["bias"]
                case _:
                    x = x.reshape(x.shape[0], -1)
        total = total + x
    return total / architecture.time_steps


def test_folding_time_equals_stepping_through_it(network, images):
    architecture, variables = network
    run = jax.jit(partial(SpikingNetwork(architecture).apply, activity=True))
    logits, activity = run(variables, images)
    rates = {name: float(spikes.mean()) for name, spikes in activity.spikes.items()}
    assert all(0.01 < rate < 0.99 for rate in rates.values()), rates
    chex.assert_trees_all_close(logits, step_by_step(architecture, variables, images), atol=1e-5)


def test_first_convolution_runs_once_for_all_time_steps(network, images):
    architecture, variables = network
    batch, steps = images.shape[0], architecture.time_steps
    program = jax.make_jaxpr(SpikingNetwork(architecture).apply)(variables, images)
    convs = [e.outvars[0].aval.shape[0] for e in program.jaxpr.eqns if "conv" in e.primitive.name]
    assert convs == [batch, steps * batch, steps * batch]


@pytest.mark.parametrize("group", ["conv1", "conv2", "conv3"])
def test_population_of_one_group_equals_one_by_one(network, images, group):
    architecture, variables = network
    whole = masks.ones(architecture)
    population = jax.random.bernoulli(jax.random.key(1), 0.5, (4, *whole[group].shape))
    population = population.astype(jnp.float32)
    axes = {name: 0 if name == group else None for name in whole}
    apply = jax.jit(SpikingNetwork(architecture).apply)
    together = jax.vmap(apply, (None, None, axes))(variables, images, whole | {group: population})
    for logits, member in zip(together, population, strict=True):
        chex.assert_trees_all_close(logits, apply(variables, images, {group: member}), atol=1e-5)


def test_population_of_whole_mask_trees_equals_one_by_one(network, images):
    architecture, variables = network
    keys = jax.random.split(jax.random.key(2), 3)
    population = jax.vmap(lambda key: masks.random(key, architecture, 0.6))(keys)
    apply = jax.jit(SpikingNetwork(architecture).apply)
    together = jax.vmap(apply, (None, None, 0))(variables, images, population)
    for i, logits in enumerate(together):
        alone = apply(variables, images, jax.tree.map(lambda m, i=i: m[i], population))
        chex.assert_trees_all_close(logits, alone, atol=1e-5)


def test_missing_masks_keep_everything(network, images):
    architecture, variables = network
    apply = jax.jit(SpikingNetwork(architecture).apply)
    chex.assert_trees_all_equal(
        apply(variables, images), apply(variables, images, masks.ones(architecture))
    )


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        ({"conv9": jnp.ones(6)}, "unknown mask group 'conv9'.*conv1"),
        ({"conv2": jnp.ones(6)}, r"mask 'conv2' has shape \(6,\): expected \(5,\)"),
    ],
)
def test_masks_that_do_not_fit_are_refused(network, images, mask, says):
    architecture, variables = network
    with pytest.raises(InputError, match=says):
        SpikingNetwork(architecture).apply(variables, images, mask)


@pytest.mark.parametrize("position", [3, 4, 7, 8])
def test_walk_in_two_parts_equals_one_walk(network, images, position):
    architecture, variables = network
    model = SpikingNetwork(architecture)
    start = model.apply(variables, images, method="encode")
    values, _ = model.apply(variables, start, end=position, method="walk")
    values, _ = model.apply(variables, values, begin=position, method="walk")
    logits = model.apply(variables, values, method="readout")
    chex.assert_trees_all_equal(logits, model.apply(variables, images))


def test_surrogate_at_apply_time_changes_gradients_only(network, images):
    architecture, variables = network

    def score(x, surrogate):
        return Classifier(architecture, surrogate)((variables, None), x)[:, 0].sum()

    pairs = [
        jax.jit(jax.value_and_grad(score), static_argnums=1)(images, surrogate)
        for surrogate in (Surrogate("atan", 1.0), Surrogate("atan", 0.5), Surrogate("triangle"))
    ]
    assert len({float(value) for value, _ in pairs}) == 1
    gradients = [np.asarray(gradient) for _, gradient in pairs]
    assert not np.allclose(gradients[0], gradients[1])
    assert not np.allclose(gradients[0], gradients[2])


def test_bfloat16_compute_keeps_float32_state_and_finite_gradients(images):
    architecture = zoo.plain((6, "M", 5), (8, 8, 1), 10, time_steps=8)
    variables = zoo.init(jax.random.key(0), architecture)
    model = SpikingNetwork(architecture, jnp.bfloat16)
    logits, activity = jax.jit(partial(model.apply, activity=True))(variables, images)
    assert logits.dtype == jnp.float32
    assert {v.dtype for v in activity.potentials.values()} == {jnp.dtype("float32")}
    assert {s.dtype for s in activity.spikes.values()} == {jnp.dtype("bfloat16")}
    assert {p.dtype for p in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    gradients = jax.jit(jax.grad(lambda v: model.apply(v, images).var()))(variables)
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(gradients))


def test_bfloat16_gradients_through_sums_of_spikes_and_learned_leaks_are_finite(images):
    architecture = tiny("resnet8", time_steps=8, spikes_add=True, neuron=LIF(learned=True))
    variables, model = busy(architecture, seed=0), SpikingNetwork(architecture, jnp.bfloat16)

    def loss(params):
        every = {**variables, "params": params}
        logits, updates = model.apply(every, images, train=True, mutable=["batch_stats"])
        return logits.var(), updates

    gradients, updates = jit(jax.grad(loss, has_aux=True))(variables["params"])
    for leaf in jax.tree.leaves((gradients, updates)):
        assert leaf.dtype == jnp.float32 and bool(jnp.isfinite(leaf).all())
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("name", thinned(TINY, ("small", "medium", "resnet8")))
def test_every_model_learns_a_batch_by_heart(digits, name):
    architecture = tiny(name)
    images, labels = digits.train.images[:6], digits.train.labels[:6]
    images, network = enlarged(jnp.asarray(images), architecture), SpikingNetwork(architecture)
    adam = optax.adam(1e-2)

    def loss(params, stats):
        variables = {"params": params, "batch_stats": stats}
        logits, updates = network.apply(variables, images, train=True, mutable=["batch_stats"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), (updates["batch_stats"], (logits.argmax(-1) == labels).mean())

    @jit
    def step(params, stats, moments):
        gradient, (stats, accuracy) = jax.grad(loss, has_aux=True)(params, stats)
        updates, moments = adam.update(gradient, moments)
        return optax.apply_updates(params, updates), stats, moments, accuracy

    variables, hits = busy(architecture, 0, AT_REST), []
    state = variables["params"], variables["batch_stats"], adam.init(variables["params"])
    while len(hits) < 150 and max(hits, default=0) < 1:
        *state, accuracy = step(*state)
        hits.append(float(accuracy))
    assert hits[0] < 0.6 and hits[-1] == 1


# ---- encodings, neurons and norms


def test_each_step_sees_its_frame(images):
    """Frame t is the t-th C / T channels, and no step sees a later one."""
    settings = {"time_steps": 3, "encoding": "frames", "mean": (0.1, 0.2), "std": (0.4, 0.5)}
    architecture = zoo.plain((4, "A", 3), (8, 8, 6), 10, **settings)
    frames = jax.random.uniform(jax.random.key(0), (5, 8, 8, 6))
    network, variables = SpikingNetwork(architecture), busy(architecture, seed=1)
    assert variables["params"]["conv1"]["kernel"].shape == (3, 3, 2, 4)
    seen = network.apply(variables, frames, method="encode")["image"]
    for t in range(3):
        expected = (frames[..., 2 * t : 2 * t + 2] - np.array([0.1, 0.2])) / np.array([0.4, 0.5])
        np.testing.assert_allclose(seen[t], expected, rtol=1e-5, atol=1e-6)
    run = jax.jit(partial(network.apply, per_step=True))
    before, after = run(variables, frames), run(variables, frames.at[..., 4:].set(0.0))
    chex.assert_trees_all_equal(before[:2], after[:2])
    assert (before[2] != after[2]).any()


def test_equal_frames_are_the_direct_encoding(images):
    direct = zoo.plain((4, "A", 3), (8, 8, 1), 10, time_steps=3)
    frames = zoo.plain((4, "A", 3), (8, 8, 3), 10, time_steps=3, encoding="frames")
    variables = busy(direct, seed=1)
    same = SpikingNetwork(frames).apply(variables, images.repeat(3, -1))
    chex.assert_trees_all_close(same, SpikingNetwork(direct).apply(variables, images), atol=1e-6)


def test_logits_of_every_step_average_to_the_logits(network, images):
    architecture, variables = network
    model = SpikingNetwork(architecture)
    steps = model.apply(variables, images, per_step=True)
    assert steps.shape == (3, 16, 10) and np.ptp(steps, axis=0).max() > 0.1
    chex.assert_trees_all_close(steps.mean(0), model.apply(variables, images), atol=1e-6)
    constant = model.apply(variables, images, per_step=True, surrogate=Relu())
    assert constant.shape == steps.shape


def test_a_learned_leak_starts_as_the_given_tau(images):
    given = zoo.plain((6, "A", 5), (8, 8, 1), 10, neuron=LIF(3.0))
    learned = zoo.plain((6, "A", 5), (8, 8, 1), 10, neuron=LIF(3.0, learned=True))
    leaks = {
        name: layer
        for name, layer in zoo.init(jax.random.key(0), learned)["params"].items()
        if "leak" in layer
    }
    assert set(leaks) == {"lif1", "lif2"}
    variables = busy(given, seed=1)
    apply = jax.jit(lambda a, v: SpikingNetwork(a).apply(v, images), static_argnums=0)

    def logits(leaks):
        return apply(learned, variables | {"params": variables["params"] | leaks})

    chex.assert_trees_all_close(logits(leaks), apply(given, variables), atol=1e-5)
    assert np.abs(logits(leaks) - logits(leaks | {"lif1": {"leak": jnp.ones(1)}})).max() > 0.01


@pytest.mark.parametrize("spikes_add", (False, True))
def test_threshold_dependent_norms_start_at_the_threshold(spikes_add):
    """Over the root of 2 where currents add (arXiv 2011.05280)."""
    options = {"norm": "tdbn", "neuron": LIF(threshold=0.6), "spikes_add": spikes_add}
    architecture = zoo.build("resnet8", (8, 8, 1), 10, **options)
    for node in architecture.nodes:
        if isinstance(node, Norm):
            adds = not spikes_add and node.name.endswith(("conv2.norm", "shortcut.norm"))
            assert node.scale == pytest.approx(0.6 / 2**0.5 if adds else 0.6)


def test_the_scale_of_a_norm_is_where_training_starts():
    architecture = zoo.plain((4,), (4, 4, 1), 10, norm="tdbn", neuron=LIF(threshold=0.6))
    params = zoo.init(jax.random.key(0), architecture)["params"]["norm1"]
    np.testing.assert_allclose(params["scale"], 0.6, rtol=1e-6)
    np.testing.assert_allclose(params["bias"], 0)


def test_description_survives_json():
    architecture = zoo.plain(
        *((3, "M", 2), (9, 8, 6), 7),
        dense=(5,),
        norm="tdbn",
        neuron=LIF(tau=3.0, threshold=0.3, reset="soft", learned=True),
        std=(1.0,) * 3,
        time_steps=2,
        encoding="frames",
    )
    assert Architecture.from_json(architecture.to_json()) == architecture


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: zoo.build("smal", (8, 8, 1), 10), "did you mean small"),
        (lambda: zoo.plain((4, "A", "A", "A", "A"), (8, 8, 1), 10), "nothing left"),
        (lambda: zoo.plain((), (8, 8, 1), 10), "at least one layer"),
        (lambda: zoo.plain((4, "X"), (8, 8, 1), 10), "unknown step of the model plan 'X'"),
        (lambda: zoo.plain((4,), (8, 8, 1), 10, time_steps=0), "time_steps 0"),
        (lambda: lif(jnp.zeros((2, 3)), LIF(), Surrogate(), 4), "2 steps for 4"),
        (lambda: zoo.plain((0,), (8, 8, 1), 10), "at least one layer"),
        (lambda: Surrogate("atn"), "did you mean atan"),
        (lambda: Surrogate("atan", 0.0), "width 0.0"),
        (lambda: LIF(tau=0.5), "tau 0.5"),
        (lambda: LIF(threshold=0.0), "threshold 0.0"),
        (lambda: zoo.plain((4,), (8, 8, 1), 10, norm="tdbm"), "did you mean tdbn"),
        (
            lambda: zoo.plain((4,), (8, 8, 3), 10, time_steps=2, encoding="frames"),
            "3 channels are not divisible into 2 frames",
        ),
        (lambda: zoo.build("resnet8", (8, 8, 1), 10, width=-1), "model width -1"),
    ],
)
def test_unusable_networks_are_refused(make, says):
    with pytest.raises(InputError, match=says):
        make()


def test_vgg16_is_the_ancestors():
    """13 convolutions of 313 million MACs on CIFAR-10, and one hidden layer."""
    by_layer = cost.macs(zoo.build("vgg16", (32, 32, 3), 10))
    convs = [n for name, n in by_layer.items() if name.startswith("conv")]
    assert len(convs) == 13 and sum(convs) == 313_196_544
    assert (by_layer["fc1"], by_layer["classifier"]) == (512 * 512, 512 * 10)


PUBLISHED = dict(np.load(Path(__file__).parents[1] / "fixtures" / "models_torch.npz"))


@pytest.mark.parametrize("name", [key.split("/")[0] for key in PUBLISHED if "params" in key])
def test_sizes_equal_torch_modules_written_from_the_papers(name):
    """See tests/oracles/published.py."""
    architecture = zoo.build(name, (32, 32, 3), 10)
    assert sum(cost.params(architecture).values()) == PUBLISHED[f"{name}/params"]
    assert list(cost.macs(architecture).values()) == PUBLISHED[f"{name}/macs"].tolist()


def test_width_multiplies_every_layer():
    whole = groups(zoo.build("vgg11", (32, 32, 3), 10))
    half = groups(zoo.build("vgg11", (32, 32, 3), 10, width=0.5))
    assert half == {name: n // 2 for name, n in whole.items()}
    assert set(groups(zoo.build("small", (8, 8, 1), 10, width=1e-3)).values()) == {1}
    with pytest.raises(InputError, match="model width"):
        zoo.build("small", (8, 8, 1), 10, width=0)


def test_wide5_has_a_first_stride_of_two_and_ends_in_a_global_average():
    architecture = zoo.build("wide5", (32, 32, 3), 10)
    found = shapes(architecture)
    sides = [found[f"conv{i}"][0] for i in range(1, 6)]
    assert sides == [16, 16, 8, 8, 4]
    assert found["pool3"] == (1, 1, 256)
    macs = {1: 16**2 * 27 * 48, 2: 16**2 * 9 * 48 * 96, 3: 8**2 * 9 * 96 * 192}
    macs |= {4: 8**2 * 9 * 192 * 192, 5: 4**2 * 9 * 192 * 256}
    assert sum(cost.macs(architecture).values()) == sum(macs.values()) + 256 * 10
