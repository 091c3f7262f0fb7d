import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import busy, thinned
from workers import trainer
from workers.processes import finish, on_cpu, start

from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.data import augmentation
from ccsrp_jax.data.splits import Split
from ccsrp_jax.networks import compaction, masks, zoo
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.gradients import StraightThrough
from ccsrp_jax.networks.neurons import LIF
from ccsrp_jax.networks.spiking_network import SpikingNetwork
from ccsrp_jax.training import losses, recipe, regularizers
from ccsrp_jax.training import trainer as training
from ccsrp_jax.training.parallel import ParallelClassifier
from ccsrp_jax.training.recipe import learning_rate
from ccsrp_jax.training.trades import trades_attack
from ccsrp_jax.training.trainer import Recipe
from ccsrp_jax.utils import devices
from ccsrp_jax.utils.errors import InputError


@pytest.fixture(scope="module")
def split(digits):
    return Split(digits.train.images[:24], digits.train.labels[:24])


PLAIN = Recipe(epochs=1, batch_size=12)
ATTACKED = Recipe(epochs=3, batch_size=12, adversarial=PGD(0.1, 1), clean_epochs=2, ema=0.6)


def tiny(
    recipe: Recipe, split: Split, *, seed: int = 0, encoding: str = "direct", **options
) -> dict:
    """Trains the workers' network."""
    classifier = Classifier(dataclasses.replace(trainer.SMALL, encoding=encoding))
    variables = busy(trainer.SMALL, seed=0)
    return training.train(jax.random.key(seed), classifier, variables, {}, split, recipe, **options)


def test_the_record_of_an_epoch_comes_before_the_state_that_counts_on_it(split):
    seen = []
    tiny(
        dataclasses.replace(PLAIN, epochs=2),
        split,
        on_epoch=lambda record: seen.append(("record", record.epoch)),
        on_checkpoint=lambda done, state: seen.append(("state", done)),
    )
    assert seen == [("record", 0), ("state", 1), ("record", 1), ("state", 2)]


def test_one_batch_can_be_overfitted(network, split):
    architecture, variables = network
    recipe = Recipe(epochs=60, batch_size=24, learning_rate=0.02)
    record = []
    classifier = Classifier(architecture)
    trained = training.train(
        jax.random.key(0),
        classifier,
        variables,
        masks.ones(architecture),
        split,
        recipe,
        on_epoch=record.append,
    )
    assert record[-1].accuracy == pytest.approx(1.0) and record[-1].loss < 0.2 * record[0].loss
    for epoch in record:
        assert epoch.images_per_second * epoch.step_ms == pytest.approx(24e3)
    assert not np.allclose(
        trained["batch_stats"]["norm1"]["mean"], variables["batch_stats"]["norm1"]["mean"]
    )


@pytest.mark.parametrize(
    "changes",
    thinned([{}, {"adversarial": PGD(0.1, 2)}, {"orthogonal": 0.05}], [{"orthogonal": 0.05}]),
    ids=["clean", "adversarial", "orthogonal"],
)
def test_masked_network_trains_like_its_compact_twin(network, split, changes):
    architecture, variables = network
    mask = masks.random(jax.random.key(5), architecture, 0.6)
    recipe = Recipe(epochs=1, batch_size=12, weight_decay=1e-2, **changes)

    def trained(architecture, variables, mask):
        return training.train(
            jax.random.key(0), Classifier(architecture), variables, mask, split, recipe
        )

    masked = compaction.compact(architecture, trained(architecture, variables, mask), mask)[1]
    smaller, weights = compaction.compact(architecture, variables, mask)
    compact = trained(smaller, weights, masks.ones(smaller))
    chex.assert_trees_all_close(masked, compact, atol=2e-4)
    changed = jax.tree.map(lambda a, b: float(abs(a - b).max()), masked, weights)
    assert min(jax.tree.leaves(changed["params"])) > 1e-3


@pytest.mark.parametrize("encoding", ("poisson", "gaussian"))
def test_a_stochastic_encoding_trains_and_follows_the_key(split, encoding):
    recipe = Recipe(epochs=1, batch_size=24, adversarial=PGD(0.1, 1))
    first, again, other = (tiny(recipe, split, seed=i, encoding=encoding) for i in (0, 0, 1))
    chex.assert_trees_all_equal(first, again)
    start = busy(trainer.SMALL, seed=0)
    kernels = [tree["params"]["conv1"]["kernel"] for tree in (first, other, start)]
    assert not np.allclose(*kernels[:2])
    assert not np.allclose(*kernels[::2])


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_weight_decay_leaves_batch_norm_biases_and_leaks_alone(optimizer):
    learned = zoo.plain((3, 3), (8, 8, 1), 10, time_steps=2, neuron=LIF(learned=True))
    shapes = jax.eval_shape(lambda key: zoo.init(key, learned), jax.random.key(0))["params"]
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
    rule = recipe.optimizer(Recipe(weight_decay=0.5, optimizer=optimizer))
    still = jax.tree.map(np.zeros_like, params)
    direction, _ = rule.update(still, rule.init(params), params)
    kinds = set()
    for path, value in jax.tree_util.tree_leaves_with_path(direction):
        kinds.add(path[-1].key)
        assert bool((value != 0).any()) == (path[-1].key == "kernel")
    assert kinds == {"kernel", "bias", "scale", "leak"}


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_sgd_steps_as_that_of_torch(clip_norm):
    random = np.random.default_rng(0)
    rule = recipe.optimizer(
        Recipe(optimizer="sgd", momentum=0.8, weight_decay=0.1, clip_norm=clip_norm)
    )
    w, b = random.normal(size=(3, 4)).astype(np.float32), np.ones(4, np.float32)
    params = {"w": w, "b": b}
    state, velocity = rule.init(params), None
    for _ in range(4):
        grads = {k: random.normal(size=v.shape).astype(np.float32) for k, v in params.items()}
        direction, state = rule.update(grads, state, params)
        params = jax.tree.map(lambda p, d: p - 0.1 * d, params, direction)
        length = np.sqrt(sum((g**2).sum() for g in grads.values()))
        assert length > 1.5
        g = {k: each / length if clip_norm else each for k, each in grads.items()}
        g["w"] = g["w"] + 0.1 * w
        velocity = g if velocity is None else {k: 0.8 * velocity[k] + g[k] for k in g}
        w, b = w - 0.1 * velocity["w"], b - 0.1 * velocity["b"]
        chex.assert_trees_all_close(params, {"w": w, "b": b}, rtol=1e-5)


def test_moving_average_is_a_weighted_mean_of_all_steps(split):
    seen = []
    average = tiny(
        dataclasses.replace(ATTACKED, epochs=4, clean_epochs=4, precise_bn="off"),
        Split(split.images[:12], split.labels[:12]),
        on_checkpoint=lambda done, state: seen.append(jax.device_get(state.variables)),
    )
    weights = 0.6 ** np.arange(4)[::-1]
    expected = jax.tree.map(lambda *steps: np.average(steps, 0, weights), *seen)
    chex.assert_trees_all_close(average, expected, atol=1e-6)
    kernels = [tree["params"]["conv2"]["kernel"] for tree in (average, seen[-1])]
    assert not np.allclose(*kernels)
    none = tiny(dataclasses.replace(ATTACKED, epochs=0), split)
    chex.assert_trees_all_equal(none, busy(trainer.SMALL, seed=0))


def test_resume_within_training_is_bit_identical(split):
    states, epochs = {}, []
    options = {"augmentation": "shift", "on_epoch": lambda epoch: epochs.append(epoch[:4])}

    def keep(done, state):
        states[done] = jax.device_get(state)  # as from a file

    whole = tiny(ATTACKED, split, on_checkpoint=keep, **options)
    for done in (1, 2, 3):
        again = tiny(ATTACKED, split, start=states[done], first_epoch=done, **options)
        chex.assert_trees_all_equal(again, whole)
    assert epochs[3:] == [*epochs[1:3], epochs[2]]


def test_loss_is_the_weighted_sum_of_its_terms(split):
    architecture, record = trainer.SMALL, []
    classifier = Classifier(architecture)
    recipe = Recipe(
        epochs=1,
        batch_size=24,
        loss="tet",
        tet_weight=0.2,
        label_smoothing=0.1,
        membrane=0.3,
        sparse_gradient=0.01,
    )
    tiny(recipe, split, on_epoch=record.append)

    @jax.jit
    def terms(variables, images, labels):
        (logits, active), _ = SpikingNetwork(architecture).apply(
            *(variables, images),
            **{"train": True, "activity": True, "per_step": True, "mutable": ["batch_stats"]},
        )
        threshold, width = architecture.neuron.threshold, classifier.surrogate.width
        return jnp.stack(
            [
                losses.tet(logits, labels, threshold, 0.2, 0.1).mean(),
                0.3 * regularizers.membrane_penalty(active.potentials, threshold, width),
                0.01
                * regularizers.sparse_gradient_penalty(classifier, variables, {}, images, labels),
            ]
        )

    expected = terms(busy(architecture, seed=0), split.images, split.labels)
    assert float(expected.min()) > 1e-4
    assert record[0].loss == pytest.approx(float(expected.sum()), rel=1e-5)


def test_orthogonal_weights_take_their_step_after_the_optimiser(split):
    recipe = Recipe(epochs=1, batch_size=24, learning_rate=1e-12, orthogonal=0.1)
    trained, before = tiny(recipe, split), busy(trainer.SMALL, seed=0)["params"]
    expected = regularizers.orthogonalize(before, 0.1, jax.random.key(9))
    assert not np.allclose(expected["conv2"]["kernel"], before["conv2"]["kernel"], atol=1e-3)
    chex.assert_trees_all_close(trained["params"], expected, atol=1e-6)


def test_half_precision_keeps_all_state_in_float32_and_gradients_finite(split):
    architecture = zoo.plain((4, 4), (8, 8, 1), 10, time_steps=8, mean=(0.3,), std=(0.4,))
    variables, kept, record = busy(architecture, seed=0), [], []
    recipe = Recipe(epochs=3, batch_size=24, precision="bfloat16", ema=0.9)
    training.train(
        *(jax.random.key(0), Classifier(architecture), variables, {}, split, recipe),
        on_checkpoint=lambda done, state: kept.append(jax.device_get(state)),
        on_epoch=record.append,
    )
    for leaf in jax.tree.leaves(kept[-1]):
        assert leaf.dtype == np.float32 or leaf.shape == ()  # but for the count of steps
        assert np.isfinite(leaf).all()
    moments = jax.tree.leaves(kept[0].moments)
    assert all(abs(leaf).max() > 0 for leaf in moments)
    whole, _ = SpikingNetwork(architecture).apply(
        *(variables, jnp.asarray(split.images)), train=True, mutable=["batch_stats"]
    )
    labels = jnp.asarray(split.labels)
    assert record[0].loss == pytest.approx(
        float(losses.cross_entropy(whole[None], labels).mean()), rel=0.1
    )


def test_half_precision_is_that_of_convolutions_and_dense_layers():
    variables, images = busy(trainer.SMALL, seed=0), jnp.zeros((2, 8, 8, 1))

    def types(dtype):
        parallel = ParallelClassifier(trainer.SMALL, dtype=dtype)
        program = jax.make_jaxpr(parallel)((variables, {}), images)
        return {
            eqn.outvars[0].aval.dtype.name
            for eqn in program.eqns
            if eqn.primitive.name in ("conv_general_dilated", "dot_general")
        }

    assert types(jnp.float32) == {"float32"}
    assert types(jnp.bfloat16) == {"bfloat16"}


def test_less_in_memory_gives_the_same_step(split):
    found = tiny(dataclasses.replace(PLAIN, remat="layers"), split)
    chex.assert_trees_all_close(found, tiny(PLAIN, split), atol=1e-5)


@pytest.mark.parametrize("steps", [3, 6])
def test_gradient_keeps_in_memory_what_remat_says(steps):
    """Counted in values of a layer in a step; all else that is kept is as large as weights."""
    depth, batch = 3, 512
    architecture = zoo.plain((4,) * depth, (8, 8, 1), 10, time_steps=steps)
    variables, images = busy(architecture, seed=0), jnp.zeros((batch, 8, 8, 1))

    def kept(remat):
        def forward(params):
            parallel = ParallelClassifier(architecture, remat=remat)
            return parallel.forward({**variables, "params": params}, {}, images, None, train=True)[
                0
            ]

        pulled = jax.eval_shape(lambda params: jax.vjp(forward, params)[1], variables["params"])
        return devices.nbytes(pulled) / (4 * batch * 8 * 8 * 4)

    # the images have a fourth of a layer's channels; the first layer's output has one step
    assert kept("layers") == pytest.approx(depth * steps + 0.25, abs=0.1)
    assert kept("time") == pytest.approx(depth * steps + (depth - 1) * steps + 1.25, abs=0.1)
    assert kept("none") > 2 * kept("time")


def test_attack_of_trades_raises_the_divergence_more_than_noise(network, images):
    architecture, variables = network
    classifier, params = Classifier(architecture), (variables, {})
    key, attack = jax.random.key(0), PGD(0.1, 5)
    attacked = trades_attack(classifier, params, images, attack, key)
    noisy = attack.threat.random_point(key, images)
    outputs = jax.jit(classifier)
    clean = outputs(params, images)
    by_attack, by_noise = (
        losses.divergence(clean[None], outputs(params, x)[None]) for x in (attacked, noisy)
    )
    assert float(by_attack.mean()) > 2 * float(by_noise.mean()) > 0
    assert float(abs(attacked - images).max()) <= 0.1 + 1e-6
    assert float(attacked.min()) >= 0 and float(attacked.max()) <= 1


TRADES = dataclasses.replace(PLAIN, adversarial=PGD(0.2, 1), trades=20.0)


def test_trades_pulls_outputs_together(split):
    classifier, key, images = Classifier(trainer.SMALL), jax.random.key(0), split.images

    def apart(recipe):
        params = tiny(dataclasses.replace(recipe, epochs=8), split), {}
        attacked = trades_attack(classifier, params, jnp.asarray(images), PGD(0.2, 3), key)
        clean, other = (jax.jit(classifier)(params, x) for x in (images, attacked))
        return float(losses.divergence(clean[None], other[None]).mean())

    assert apart(TRADES) < 0.5 * apart(PLAIN)


def test_trades_of_no_radius_is_training_on_clean_images(split):
    found = tiny(dataclasses.replace(TRADES, adversarial=PGD(0.0, 1)), split)
    chex.assert_trees_all_close(found, tiny(PLAIN, split), atol=1e-5)


def test_four_devices_train_as_one(tmp_path):
    out = str(tmp_path / "out.npz")
    worker = start(f"from workers import trainer; trainer.save({out!r})", forced=4)
    try:
        alone = on_cpu(trainer.trained)
    finally:
        finish([worker])
    with np.load(out) as found:
        assert found["devices"] == 4
        assert "7 images" in str(found["refused"]) and "4 devices" in str(found["refused"])
        for name, expected in alone.items():
            np.testing.assert_allclose(found[name], expected, atol=1e-5, err_msg=name)


def test_attack_in_training_leaves_batch_statistics_alone(split):
    attacked = dataclasses.replace(PLAIN, adversarial=PGD(0.0, 3), clean_weight=0.0)
    chex.assert_trees_all_close(tiny(attacked, split), tiny(PLAIN, split), atol=1e-6)


def test_same_key_same_weights(split):
    first, again, other = (tiny(ATTACKED, split, seed=i, augmentation="shift") for i in (0, 0, 1))
    chex.assert_trees_all_equal(first, again)
    kernels = [tree["params"]["conv1"]["kernel"] for tree in (first, other)]
    assert not np.allclose(*kernels)


def test_rate_warms_up_to_its_peak_and_falls_to_zero():
    recipe = Recipe(learning_rate=0.1, warmup=0.2)
    assert learning_rate(recipe, 0.1) == pytest.approx(0.05)
    assert learning_rate(recipe, 0.2) == pytest.approx(0.1)
    assert learning_rate(recipe, 0.6) == pytest.approx(0.05)
    assert learning_rate(recipe, 1.0) == pytest.approx(0.0)


def test_rate_of_the_average_starts_at_nothing():
    assert recipe.corrected_decay(0.999, 1) == 0
    assert recipe.corrected_decay(0.999, 10**6) == pytest.approx(0.999)
    assert recipe.corrected_decay(0.0, 7) == 0


@pytest.mark.parametrize("kind", ["none", "shift", "crop_flip"])
def test_augmentation_moves_whole_images_within_its_reach(kind, images):
    marked = jnp.zeros((64, 16, 16, 1)).at[:, 6, 5, 0].set(1.0)
    moved = np.asarray(augmentation.augment(jax.random.key(0), marked, kind=kind))
    assert (moved.sum((1, 2, 3)) == 1).all()
    rows, columns = (np.unique(axis) for axis in np.nonzero(moved[..., 0])[1:])
    reach = 0 if kind == "none" else 2
    assert (rows.min(), rows.max()) == (6 - reach, 6 + reach)
    mirror = 15 - 5 if kind == "crop_flip" else 5
    assert (columns.min(), columns.max()) == (5 - reach, mirror + reach)


def test_cutout_blackens_a_square_of_half_the_side_around_any_pixel():
    images = jnp.ones((400, 16, 16, 1))
    before, after = (
        np.asarray(augmentation.augment(jax.random.key(0), images, kind=kind))
        for kind in ("crop_flip", "crop_flip_cutout")
    )
    holes = ((before == 1) & (after == 0))[..., 0]  # padding is black before
    assert ((after == before)[..., 0] | holes).all()
    for hole in holes:
        rows, columns = hole.any(1), hole.any(0)
        assert (hole == np.outer(rows, columns)).all()
        for band in (rows, columns):
            assert 1 <= band.sum() <= 8 and np.diff(band.nonzero()[0]).max(initial=1) == 1
    assert holes.sum((1, 2)).max() == 64  # nearly all images have theirs to themselves
    assert holes.any(0).all()
    assert len(np.unique(holes, axis=0)) > 100


def test_diverged_training_is_reported(network, split):
    architecture, variables = network
    broken = jax.tree.map(lambda x: x * jnp.inf, variables)
    with pytest.raises(InputError, match="learning rate"):
        training.train(
            jax.random.key(0),
            Classifier(architecture),
            broken,
            masks.ones(architecture),
            split,
            Recipe(epochs=1, batch_size=24),
        )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optimizer": "adam"}, "optimizer 'adam'"),
        ({"loss": "mse"}, "loss 'mse'"),
        ({"precision": "float16"}, "precision 'float16'"),
        ({"remat": "all"}, "remat 'all'"),
        ({"ema": 1.0}, "ema 1"),
        ({"ema": -0.1}, "ema -0.1"),
        ({"momentum": 1.5}, "momentum 1.5"),
        ({"clip_norm": -1.0}, "clip_norm -1"),
        ({"label_smoothing": 2.0}, "label_smoothing 2"),
        ({"tet_weight": float("nan")}, "tet_weight nan"),
        ({"trades": 6.0}, "trades 6.0 has no attack"),
        ({"trades": 6.0, "adversarial": PGD(), "clean_weight": 0.5}, "clean_weight 0.5"),
        ({"trades_temperature": 0.0}, "trades_temperature 0"),
        ({"orthogonal": -1.0}, "orthogonal -1"),
        ({"sparse_gradient": -1.0}, "sparse_gradient -1"),
        ({"membrane": -1.0}, "membrane -1"),
        ({"certified": 1.5}, "certified 1.5"),
        ({"certified": 0.5}, "certified 0.5 has no radius"),
        ({"certified_eps": -0.1}, "certified_eps -0.1"),
        ({"certified_ramp": 2.0}, "certified_ramp 2"),
    ],
)
def test_a_recipe_that_cannot_be_used_is_refused_in_a_sentence(changes, said):
    made = Recipe()
    for name, value in changes.items():
        object.__setattr__(made, name, value)  # past the tests' type checker
    with pytest.raises(InputError) as refused:
        made.__post_init__()
    message = str(refused.value)
    assert said in message and message.endswith((".", "?")) and "\n" not in message


def test_membrane_penalty_needs_a_surrogate_with_a_width(network, split):
    architecture, variables = network
    odd = Classifier(architecture, StraightThrough())
    with pytest.raises(InputError, match="membrane"):
        training.train(jax.random.key(0), odd, variables, {}, split, Recipe(membrane=0.1))


def test_an_optimizer_of_ones_own_is_applied_as_it_is(split):
    start = busy(trainer.SMALL, seed=0)["params"]["conv1"]["kernel"]

    def change(rate):
        own = Recipe(epochs=1, batch_size=24, learning_rate=1.0, optimizer=optax.sgd(rate))
        return np.asarray(tiny(own, split)["params"]["conv1"]["kernel"]) - start

    none, small, double = (change(rate) for rate in (0.0, 1e-4, 2e-4))
    np.testing.assert_array_equal(none, 0)  # the recipe's rate is not used
    np.testing.assert_allclose(double, 2 * small, rtol=0.05, atol=1e-6)
    assert np.abs(small).max() > 1e-5
