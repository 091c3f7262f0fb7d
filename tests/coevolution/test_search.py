from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import busy, thinned

from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.coevolution import call_size, fitness, scoring, selection, task
from ccsrp_jax.coevolution import search as coevolution
from ccsrp_jax.coevolution.racing import rank_eliminated_last
from ccsrp_jax.coevolution.settings import Search
from ccsrp_jax.coevolution.shared_set import shared_adversarial_set
from ccsrp_jax.coevolution.strategies import keep_count
from ccsrp_jax.coevolution.subpopulation import search_group
from ccsrp_jax.data.splits import Split
from ccsrp_jax.networks import cost, masks, zoo
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.spiking_network import SpikingNetwork
from ccsrp_jax.robustness.accuracy import correct
from ccsrp_jax.utils.compilation import count_compilations
from ccsrp_jax.utils.errors import InputError

ATTACK = PGD(0.1, 2)


@pytest.fixture(scope="module")
def clean(digits):
    return Split(digits.search.images[:24], digits.search.labels[:24])


def search_round(network, clean, search, current=None, seed=0):
    architecture, variables = network
    current = current or masks.ones(architecture)
    return coevolution.search_round(
        jax.random.key(seed),
        Classifier(architecture),
        variables,
        current,
        clean,
        ATTACK,
        search,
        batch_size=24,
    )


SMALL = {"population": 3, "generations": 2, "keep_floor": 0.6}


@pytest.mark.parametrize(
    "search",
    [
        Search(**SMALL),
        Search(**SMALL, selection="nsga2"),
        Search(**SMALL, strategy="SNES", objective="loss"),
        Search(**SMALL, shared_set="per_layer"),
    ],
    ids=["faithful", "nsga2", "snes", "per layer"],
)
def test_a_round_prunes_every_group_within_its_floor(network, clean, search):
    architecture, _ = network
    current = masks.random(jax.random.key(1), architecture, 0.9)
    result = search_round(network, clean, search, current)
    for group, mask in result.masks.items():
        alive = np.asarray(current[group])
        assert (np.asarray(mask) <= alive).all()
        least = keep_count(int(alive.sum()), search.keep_floor) - (search.strategy == "BitFlip")
        assert max(least, 1) <= mask.sum() < alive.sum()


def test_groups_are_searched_in_the_network_at_the_start_of_the_round(network, clean):
    """The last group's objectives are those of a network in which only it was pruned."""
    architecture, variables = network
    result = search_round(network, clean, Search(**SMALL))
    found, whole = result.groups["conv3"], masks.ones(architecture)
    alone = whole | {"conv3": jax.numpy.asarray(found.mask)}
    params, classifier = (variables, alone), Classifier(architecture)
    error = 1 - correct(classifier, params, clean).mean()
    robust_error = 1 - correct(classifier, params, result.shared_sets["conv3"]).mean()
    left = sum(cost.macs(architecture, alone).values()) / sum(cost.macs(architecture).values())
    np.testing.assert_allclose(found.objectives, [error, robust_error, left], atol=1e-6)


def test_groups_that_cannot_be_pruned_do_not_change(network, clean):
    architecture, _ = network
    current = masks.ones(architecture)
    current["conv2"] = current["conv2"].at[1:].set(0.0)
    result = search_round(network, clean, Search(**SMALL), current)
    assert "conv2" not in result.groups
    chex.assert_trees_all_equal(result.masks["conv2"], current["conv2"])


def test_order_of_the_mask_tree_does_not_matter(clean):
    """A restored mask tree is sorted by name: conv10 comes before conv2."""
    architecture = zoo.plain((2,) * 11, (8, 8, 1), 10, time_steps=1)
    network = architecture, busy(architecture, seed=3)
    whole = masks.ones(architecture)
    found = [
        search_round(network, clean, Search(**SMALL), current).masks
        for current in (whole, {name: whole[name] for name in sorted(whole)})
    ]
    assert list(whole) != sorted(whole)
    chex.assert_trees_all_equal(*found)


def test_there_may_be_more_variants_than_images(network, digits):
    two = Split(digits.search.images[:2], digits.search.labels[:2])
    [shared] = search_round(network, two, Search(**SMALL)).distinct_sets()
    assert shared.images.shape == two.images.shape


def test_widths_are_multiples(network, clean):
    search = Search(**SMALL, strategy="SNES", multiple=2)
    result = search_round(network, clean, search)
    assert {name: int(mask.sum()) for name, mask in result.masks.items()} == {
        "conv1": 4,
        "conv2": 2,
        "conv3": 2,
    }


@pytest.mark.parametrize("reading", ["pooled", "per_layer"])
def test_shared_set_lies_in_the_ball_and_is_adversarial(network, clean, reading):
    result = search_round(network, clean, Search(**SMALL, shared_set=reading))
    sets = result.distinct_sets()
    assert len(sets) == (1 if reading == "pooled" else 3)
    for shared in sets:
        gap = np.abs(shared.images - clean.images)
        assert 0.05 < gap.max() <= ATTACK.eps + 1e-6
        assert gap.reshape(len(gap), -1).max(-1).min() > 0  # every image was attacked
        assert shared.images.min() >= 0 and shared.images.max() <= 1
        np.testing.assert_array_equal(shared.labels, clean.labels)


def test_variants_change_the_shared_set(network, clean):
    """Each variant attacks its own share: without variants the set differs."""
    architecture, variables = network
    arguments = (
        jax.random.key(0),
        Classifier(architecture),
        variables,
        masks.ones(architecture),
        clean,
        PGD(0.1, 2, random_start=False),
        Search(mutation_rate=0.5, keep_floor=0.2),
    )
    alone = shared_adversarial_set(*arguments, [])
    varied = shared_adversarial_set(*arguments, ["conv1", "conv2"])
    same = np.isclose(alone.images, varied.images).all((1, 2, 3))
    assert same[0::3].all()  # the share of the network itself
    assert not same[1::3].all() and not same[2::3].all()


def test_rounds_repeat_bit_for_bit(network, clean):
    first, second = (search_round(network, clean, Search(**SMALL), seed=7) for _ in range(2))
    chex.assert_trees_all_equal(first.masks, second.masks)
    chex.assert_trees_all_equal(first.groups, second.groups)


# ---- compilations


def test_a_second_round_compiles_nothing(clean, monkeypatch):
    """The programs of all groups serve another key and other masks; the first round compiles
    the two scoring programs once per group, and traces them as often."""
    architecture = zoo.plain((6, "A", 5, 4, 7), (8, 8, 1), 10, time_steps=2)
    network, groups = (architecture, busy(architecture, seed=4)), 4
    for name, names in (("shared_prefix", ()), ("score_members", ("mesh",))):
        traced = chex.assert_max_traces(getattr(scoring, name).__wrapped__, groups)
        program = jax.jit(traced, static_argnums=(0, 1), static_argnames=names)
        for module in (fitness, task, call_size):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, program)
    with count_compilations() as compiled:
        spliced = search_round(network, clean, Search(**SMALL)).masks
    assert compiled.count("shared_prefix") == compiled.count("score_members") == groups
    with count_compilations() as compiled:
        again = search_round(network, clean, Search(**SMALL), spliced, seed=1).masks
    assert compiled.programs == []
    assert all(again[name].sum() < spliced[name].sum() for name in again)


# ---- races


@pytest.fixture(scope="module")
def agreed(network, digits):
    """Images labeled with the dense network's predictions, so that no mask is as good."""
    architecture, variables = network
    images = digits.search.images[:192]
    said = jax.jit(Classifier(architecture))((variables, masks.ones(architecture)), images)
    return Split(images, np.asarray(said.argmax(-1), digits.search.labels.dtype))


@pytest.fixture
def scored(monkeypatch):
    """By group and mask, the number of images that it was scored on, in order."""
    seen, score = {}, fitness.score

    def record(task, members, **options):
        scores = score(task, members, **options)
        for member, images in zip(members, scores.images, strict=True):
            seen[task.group, member.tobytes()] = images
        return scores

    monkeypatch.setattr(fitness, "score", record)
    return seen


@pytest.mark.parametrize("strategy", thinned(["BitFlip", "SNES"], ["SNES"]))
def test_a_race_uses_fewer_images_and_never_chooses_an_eliminated_mask(
    network, agreed, scored, strategy
):
    """Even if the unpruned network, which may not be chosen, is better than all others."""
    architecture, variables = network
    options = {"population": 6, "generations": 1, "keep_floor": 0.9, "strategy": strategy}

    def search(seed: int, racing: bool) -> coevolution.RoundResult:
        scored.clear()
        return coevolution.search_round(
            jax.random.key(seed),
            Classifier(architecture),
            variables,
            masks.ones(architecture),
            agreed,
            ATTACK,
            Search(**options, racing=racing),
            batch_size=32,
        )

    whole = search(0, racing=False)
    assert set(scored.values()) == {192}
    for seed in range(6):
        raced = search(seed, racing=True)
        assert sum(raced.images.values()) == sum(scored.values())
        for group, result in raced.groups.items():
            assert scored[group, result.mask.tobytes()] == 192
            least = keep_count(len(result.mask), 0.9) - (strategy == "BitFlip")
            assert max(least, 1) <= result.mask.sum() < len(result.mask)
        if seed == 0:
            assert sum(raced.images.values()) < sum(whole.images.values())


def test_eliminated_members_rank_behind_all_others():
    """Strictly, for any means over the images that they have seen."""
    random = np.random.default_rng(0)
    for trial in range(200):
        values = random.uniform(size=(5, 6)) * 10 ** random.uniform(-3, 2)
        images = np.where(random.uniform(size=6) < 0.6, 32, 256)
        values[2, random.uniform(size=6) < 0.1] = np.inf
        images[trial % 6], values[:, trial % 6] = 256, values[:, 0].clip(max=9)
        for robust_weight, macs_weight in ((1.0, 0.0), (0.0, 0.3), (0.7, 0.0)):
            search = Search(
                racing=True,
                objective=("accuracy", "loss")[trial % 2],
                robust_weight=robust_weight,
                macs_weight=macs_weight,
            )
            scores, out = fitness.Scores(*values, images, *values[2:4]), images < 256
            points = scores.objectives(search.objective)
            points = rank_eliminated_last(points, out, search.scalarize)
            finite = np.isfinite(points).all(-1)
            weighed = selection.weighted_sum(points[finite], robust_weight, macs_weight)
            worst = weighed[~out[finite]].max()
            assert (weighed[out[finite]] > worst).all()


# ---- non-finite logits


def overflowing(network, current, images):
    """Variables with which spikes of one filter of conv3 make logits infinite; and its index."""
    architecture, variables = network
    look = jax.jit(partial(SpikingNetwork(architecture).apply, activity=True))
    _, active = look(variables, images, current)
    filter = int(active.spikes["lif3"].sum((0, 1, 2, 3)).argmax())
    kernel = variables["params"]["classifier"]["kernel"]
    huge = kernel.at[filter :: len(current["conv3"])].set(3e38)  # two of them overflow
    params = variables["params"] | {"classifier": {"bias": jnp.zeros(10), "kernel": huge}}
    return variables | {"params": params}, filter


@pytest.mark.parametrize("strategy", ["BitFlip", "SNES"])
def test_masks_without_finite_logits_are_counted_and_never_chosen(network, clean, scored, strategy):
    architecture, _ = network
    current = masks.ones(architecture)
    for name in ("conv1", "conv2"):  # to search conv3 only
        current[name] = current[name].at[1:].set(0.0)
    variables, filter = overflowing(network, current, clean.images)
    search = Search(
        population=4, generations=3, keep_floor=0.5, strategy=strategy, robust_weight=0.0
    )
    found = search_round((architecture, variables), clean, search, current).groups["conv3"]
    kept = [bool(np.frombuffer(mask, np.float32)[filter]) for _, mask in scored]
    assert 0 < sum(kept) < len(kept) == found.evaluations
    assert found.not_finite == sum(kept)
    assert found.mask[filter] == 0 and np.isfinite(found.objectives).all()
    assert np.isfinite(found.best[-1])


def test_a_network_without_finite_logits_is_refused(network, clean):
    architecture, variables = network
    broken = jax.tree.map(lambda x: x, variables)
    broken["params"]["classifier"]["bias"] = jnp.full(10, jnp.nan)
    with pytest.raises(InputError, match="no candidate mask gave finite logits"):
        search_round((architecture, broken), clean, Search(**SMALL))


@pytest.mark.parametrize("strategy", ["BitFlip", "SNES", "ARS", "PSO"])
@pytest.mark.parametrize("robust_weight", [0.0, 1.0])
def test_a_search_continues_after_non_finite_objectives(strategy, robust_weight):
    """The state of some strategies becomes non-finite after a non-finite fitness."""
    drawn = []

    def evaluate(members):
        points = np.stack([members.mean(-1)] * 3, axis=-1)
        points[members.sum(-1) % 2 == 1] = np.inf
        return points

    found = search_group(
        jax.random.key(0),
        np.ones(12),
        evaluate,
        Search(*(strategy, 4, 12, 0.5), decoder="threshold", robust_weight=robust_weight),
        lambda generation, best, evaluations: drawn.append(evaluations),
    )
    assert found.not_finite > 0 and found.mask.sum() % 2 == 0
    assert drawn[11] > drawn[7] > drawn[3]


def test_groups_whose_given_width_is_full_are_not_searched(network, clean):
    architecture, variables = network
    whole = masks.ones(architecture)
    kept = {name: len(mask) - (name == "conv2") for name, mask in whole.items()}
    found = coevolution.search_round(
        *(jax.random.key(0), Classifier(architecture), variables, whole, clean, ATTACK),
        Search(strategy="SNES", population=4, generations=2, keep_floor=0.5),
        keep_counts=kept,
    )
    assert list(found.groups) == ["conv2"]
    assert {name: int(mask.sum()) for name, mask in found.masks.items()} == kept
    scored = found.groups["conv2"].scored_masks
    assert (scored.sum(-1) == kept["conv2"]).all()


@pytest.mark.parametrize("options", [{}, {"strategy": "SNES", "decoder": "threshold"}])
def test_given_widths_need_a_decoder_that_keeps_them(options):
    with pytest.raises(InputError, match="use an evosax strategy, such as SNES, with decoder topk"):
        search_group(
            jax.random.key(0), np.ones(4), lambda members: members, Search(**options), keep_count=2
        )
