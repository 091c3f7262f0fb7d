"""Residual streams: their groups, what a search may prune of them, and how it is scored."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import busy, thinned

from ccsrp_jax.coevolution import fitness, subproblem
from ccsrp_jax.coevolution.settings import PRESETS, Search
from ccsrp_jax.data.splits import Split
from ccsrp_jax.networks import cost, masks, zoo
from ccsrp_jax.networks.architecture import coupled, group_of, groups, shapes
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.nodes import Add, Spike

RESNET8 = {
    "stem": 16,
    "stage1.block1.conv1": 16,
    "stage2.block1.conv1": 32,
    "stage2.block1.conv2": 32,
    "stage3.block1.conv1": 64,
    "stage3.block1.conv2": 64,
}
INNER = [f"stage{i}.block{j}.conv1" for i in (1, 2, 3, 4) for j in (1, 2)]


@pytest.mark.parametrize("spikes_add", (False, True))
def test_all_that_writes_into_a_stage_is_one_group(spikes_add):
    architecture = zoo.build("resnet8", (8, 8, 1), 10, spikes_add=spikes_add)
    assert groups(architecture) == RESNET8
    assert coupled(architecture) == {"stem", "stage2.block1.conv2", "stage3.block1.conv2"}
    member = group_of(architecture)
    for stage, stream in ((1, "stem"), (2, "stage2.block1.conv2"), (3, "stage3.block1.conv2")):
        written = {f"stage{stage}.block1.{layer}" for layer in ("conv2", "add")}
        written |= {f"stage{stage}.block1.shortcut"} if stage > 1 else {"stem"}
        assert {member[name] for name in written} == {stream}


@pytest.mark.parametrize("name", ("resnet18", "sew_resnet18"))
def test_resnet18_has_a_stream_a_stage_and_a_group_a_block(name):
    architecture = zoo.build(name, (32, 32, 3), 10)
    streams = {"stem", *(f"stage{i}.block1.conv2" for i in (2, 3, 4))}
    assert coupled(architecture) == streams
    assert set(groups(architecture)) == streams | set(INNER)


def test_a_shortcut_frees_the_stem_of_resnet19():
    """Its first stage is wider than its stem; the hidden layer is a group too."""
    architecture = zoo.build("resnet19", (32, 32, 3), 10)
    streams = {f"stage{i}.block1.conv2" for i in (1, 2, 3)}
    inner = {f"stage{i}.block{j}.conv1" for i in (1, 2) for j in (1, 2, 3)}
    inner |= {"stage3.block1.conv1", "stage3.block2.conv1", "stem", "fc1"}
    assert coupled(architecture) == streams
    assert set(groups(architecture)) == streams | inner


@pytest.mark.parametrize("spikes_add", (False, True))
def test_spikes_or_currents_add(spikes_add):
    architecture = zoo.build("resnet8", (8, 8, 1), 10, spikes_add=spikes_add)
    nodes = {node.name: node for node in architecture.nodes}
    for node in architecture.nodes:
        if isinstance(node, Add):
            fires = [isinstance(nodes[name], Spike) for name in (node.input, node.other)]
            spikes_before = node.name == "stage1.block1.add"  # its shortcut is the stem's spikes
            assert fires == ([True, True] if spikes_add else [False, spikes_before])
    assert shapes(architecture)["stage3.block1.add"] == (2, 2, 64)
    assert shapes(architecture)["flatten"] == (64,)


def test_a_search_leaves_streams_alone_unless_told_otherwise():
    architecture = zoo.build("resnet8", (8, 8, 1), 10)
    whole = masks.ones(architecture)
    inner = [f"stage{i}.block1.conv1" for i in (1, 2, 3)]
    assert Search().prunable(architecture, whole) == inner
    assert Search(residual_streams=True).prunable(architecture, whole) == list(RESNET8)
    assert not PRESETS["faithful"].residual_streams and PRESETS["snes"].residual_streams
    weights = {masks.kernel("stem"): jnp.ones((3, 3, 1, 16))}  # are no group
    done = {"stage2.block1.conv1": jnp.arange(32) == 0}  # no filter to lose
    left = Search().prunable(architecture, whole | weights | done)
    assert left == [name for name in inner if name not in done]


@pytest.mark.parametrize("spikes_add", thinned((False, True), (True,)))
@pytest.mark.parametrize("group", ("stem", "stage2.block1.conv2"))
def test_scores_of_a_stream_equal_naive_evaluation(digits, spikes_add, group):
    architecture = zoo.build(
        "resnet8", (8, 8, 1), 10, width=0.25, spikes_add=spikes_add, time_steps=2
    )
    variables, classifier = busy(architecture, seed=5), Classifier(architecture)
    clean = Split(digits.search.images[:12], digits.search.labels[:12])
    dark = Split(clean.images * np.float32(0.5), clean.labels)
    current = masks.random(jax.random.key(1), architecture, 0.8)
    alive = np.asarray(current[group])
    members = np.random.default_rng(0).integers(0, 2, (3, len(alive))) * alive
    members[:, alive.argmax()] = 1
    task = subproblem.make_task(classifier, variables, current, group, clean, dark, member_chunk=2)
    scores = fitness.score(task, members.astype(np.float32))
    logits, dense = jax.jit(classifier.__call__), sum(cost.macs(architecture).values())
    for i, member in enumerate(members):
        whole = current | {group: jnp.asarray(member, jnp.float32)}
        for split, error, loss in (
            (clean, scores.error[i], scores.loss[i]),
            (dark, scores.robust_error[i], scores.robust_loss[i]),
        ):
            out = logits((variables, whole), split.images)
            losses = optax.softmax_cross_entropy_with_integer_labels(out, split.labels)
            wrong = np.asarray(out.argmax(-1)) != split.labels
            assert error == pytest.approx(wrong.mean(), abs=1e-6)
            assert loss == pytest.approx(float(losses.mean()), rel=1e-5)
        assert scores.macs[i] == pytest.approx(sum(cost.macs(architecture, whole).values()) / dense)
    assert np.ptp(scores.loss) > 0.01  # the members differ


def published(parameters: dict[str, int]) -> float:
    """Parameters in millions, to two digits."""
    return round(sum(parameters.values()) / 1e6, 2)


def test_sizes_are_the_published_ones():
    """On 32 x 32 images of 10 classes: the CIFAR ResNet-18's, tdBN's ResNet-19's."""
    for name in ("resnet18", "sew_resnet18"):
        architecture = zoo.build(name, (32, 32, 3), 10)
        assert sum(cost.params(architecture).values()) == 11_173_962
        assert sum(cost.macs(architecture).values()) == 555_422_720
    assert published(cost.params(zoo.build("resnet19", (32, 32, 3), 10))) == 12.63
