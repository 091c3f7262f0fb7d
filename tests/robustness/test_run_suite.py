"""Suites: what is run on what, what is left, the record that a suite goes on from."""

import dataclasses
import io
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import linear, thinned
from rich.console import Console

from ccsrp_jax.attacks.noise import Noise
from ccsrp_jax.attacks.pgd import PGD, fgsm
from ccsrp_jax.attacks.seeded_search import SeededSearch
from ccsrp_jax.attacks.square import Square
from ccsrp_jax.attacks.threat_model import ThreatModel
from ccsrp_jax.data.splits import Split
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.neurons import Surrogate, spike
from ccsrp_jax.robustness.accuracy import Evaluator, correct, predict
from ccsrp_jax.robustness.evaluation import evaluate
from ccsrp_jax.robustness.gradient_sources import GradientSource, gradient_sources
from ccsrp_jax.robustness.run_suite import attack_all
from ccsrp_jax.robustness.suite_record import settings_text
from ccsrp_jax.robustness.suites import (
    GRADIENT_PASSES,
    PRESETS,
    AttackSpec,
    build_suite,
    parse_attack,
    price,
)
from ccsrp_jax.utils.console import Terminal
from ccsrp_jax.utils.errors import InputError

KEY = jax.random.key(0)
EPS = 0.1
BALL = ThreatModel("linf", EPS)


@dataclasses.dataclass(frozen=True)
class Fixed:
    """An attack that moves the pixels of some rows by a given step, whatever the network."""

    step: float
    rows: tuple[int, ...] = (0, 1, 2, 3)

    def __call__(self, logits, params, images, labels, key):
        return jnp.clip(images.at[:, list(self.rows)].add(self.step), 0, 1)


@dataclasses.dataclass(frozen=True)
class Counting:
    """An attack that returns what it is given, and notes how many images that were."""

    seen: list = dataclasses.field(default_factory=list, hash=False, compare=False)
    gradients = 3

    def __call__(self, logits, params, images, labels, key):
        self.seen.append(len(images))
        return images


@pytest.fixture(scope="module")
def problem():
    """Images, labels of a linear classifier with some of them wrong, and its weights."""
    rng = np.random.default_rng(0)
    images = rng.uniform(0.2, 0.8, (50, 4, 4, 1)).astype(np.float32)
    weights = rng.normal(size=(16, 3)).astype(np.float32)
    labels = (images.reshape(50, 16) @ weights).argmax(-1)
    labels[:5] = (labels[:5] + 1) % 3
    return Split(images, labels), jnp.asarray(weights)


def left_of(weights, split, eps):
    """Which images no point of the ball moves, in closed form (inside the box)."""
    z = split.images.reshape(len(split.labels), -1) @ weights
    gap = z[np.arange(len(z)), split.labels][:, None] - z
    reach = np.abs(weights.T[split.labels][:, None] - weights.T[None]).sum(-1)
    rivals = np.arange(z.shape[1])[None] != split.labels[:, None]
    return np.where(rivals, gap - eps * reach, np.inf).min(-1) > 0


def run(problem, specs, batch_size=128, **options):
    split, weights = problem
    sources = options.pop("sources", {"own": GradientSource(linear, weights)})
    evaluator = Evaluator(linear, weights, split, batch_size)
    return attack_all(evaluator, specs, sources, KEY, threat=BALL, **options)


def test_worst_case_of_a_linear_classifier_is_the_closed_form(problem):
    split, weights = problem
    found = evaluate(linear, weights, split, eps=EPS, key=KEY, suite="quick", natural=())
    exact = left_of(np.asarray(weights), split, EPS)
    assert 0.1 < exact.mean() < 0.8
    np.testing.assert_array_equal(found.outcome.robust, exact)
    assert found.verdict.reliable, found.verdict.reasons
    assert found.outcome.clean[5:].all() and not found.outcome.clean[:5].any()


def test_broken_images_are_not_attacked_again(problem):
    counting = Counting()
    specs = [AttackSpec("fgsm", fgsm(EPS)), AttackSpec("count", counting)]
    outcome = run(problem, specs, batch_size=1)
    still = int((outcome.clean & (outcome.broken_by != 0)).sum())
    assert 0 < still < outcome.clean.sum()
    assert len(counting.seen) == still == outcome.results[1].attacked
    assert outcome.results[1].gradients == 3 * still


def test_references_are_run_on_every_correct_image(problem):
    noise = AttackSpec("noise", Noise(EPS), run_on_all=True)
    outcome = run(problem, [AttackSpec("fgsm", fgsm(EPS)), noise])
    assert outcome.results[1].attacked == outcome.clean.sum() == 45
    assert outcome.alone("noise") > outcome.robust_accuracy
    assert outcome.alone("fgsm") is None and outcome.reference is None
    assert outcome.results[1].broken == 0  # what noise broke, FGSM had broken before


def test_the_reference_is_white_box_and_may_be_zero(problem):
    all_of_it = dataclasses.replace(AttackSpec("pgd", PGD(1.0, 5)), run_on_all=True)
    noise = AttackSpec("noise", Noise(0.01), run_on_all=True)
    assert run(problem, [noise, AttackSpec("fgsm", fgsm(EPS)), all_of_it]).reference == 0.0


def test_worst_case_is_taken_sample_by_sample(problem):
    up = AttackSpec("up", Fixed(3 * EPS, (0,)), run_on_all=True)
    down = AttackSpec("down", Fixed(-3 * EPS, (2,)), run_on_all=True)
    outcome = run(problem, [up, down])
    single = [correct(linear, problem[1], problem[0], attack=e.attack, key=KEY) for e in (up, down)]
    np.testing.assert_array_equal(outcome.robust, outcome.clean & single[0] & single[1])
    assert outcome.robust_accuracy < min(outcome.alone("up"), outcome.alone("down"))
    first = np.where(outcome.clean & ~single[0], 0, np.where(outcome.clean & ~single[1], 1, -1))
    np.testing.assert_array_equal(outcome.broken_by, first)


@pytest.mark.parametrize("batch_size", (7, 16, 64))
def test_batching_changes_no_verdict(problem, batch_size):
    outcome = run(
        problem, [AttackSpec("pgd", PGD(EPS, 10, random_start=False))], batch_size=batch_size
    )
    exact = left_of(np.asarray(problem[1]), problem[0], EPS)
    np.testing.assert_array_equal(outcome.robust, exact)


def test_white_box_goes_first_and_black_box_last(problem):
    _, weights = problem
    sources = {"own": GradientSource(linear, weights), "twin": GradientSource(linear, weights)}
    mixed = [
        AttackSpec("search", SeededSearch(EPS, 10)),
        AttackSpec("square", Square(EPS, 10)),
        AttackSpec("twin", PGD(EPS, 2), "twin"),
        AttackSpec("pgd", PGD(EPS, 2)),
        AttackSpec("noise", Noise(EPS)),
    ]
    order = [spec.name for spec in build_suite(mixed, BALL, sources)]
    assert order == ["noise", "pgd", "twin", "square", "search"]


def test_a_transfer_is_made_on_the_other_network_and_judged_on_this_one(problem):
    split, weights = problem
    sources = {"own": GradientSource(linear, weights), "other": GradientSource(linear, -weights)}
    spec = AttackSpec("fgsm", fgsm(EPS), "other", run_on_all=True)
    outcome = run(problem, [spec], sources=sources)
    moved = fgsm(EPS)(linear, -weights, jnp.asarray(split.images), jnp.asarray(split.labels), KEY)
    hits = np.asarray(linear(weights, moved).argmax(-1)) == split.labels
    np.testing.assert_array_equal(outcome.robust, outcome.clean & hits)


def test_steps_out_of_the_ball_are_measured(problem):
    assert run(problem, [AttackSpec("far", Fixed(EPS + 0.05))]).max_violation == pytest.approx(
        0.05, abs=1e-6
    )
    assert run(problem, [AttackSpec("near", Fixed(EPS))]).max_violation < 1e-6


def test_a_suite_goes_on_after_its_last_attack(problem, tmp_path):
    record = tmp_path / "suite.json"
    specs = [
        AttackSpec("noise", Noise(EPS), run_on_all=True),
        AttackSpec("pgd", PGD(EPS, 5)),
        AttackSpec("square", Square(EPS, 20)),
    ]
    whole = run(problem, specs, record=record)

    class Stop(Exception):
        pass

    def refuse(*args):
        raise Stop

    class Broken(Square):
        __call__ = refuse

    Broken.__qualname__ = "Square"  # for the record, the same suite

    record.unlink()
    with pytest.raises(Stop):
        stopped = dataclasses.replace(specs[2], attack=Broken(EPS, 20))
        run(problem, [*specs[:2], stopped], record=record)
    assert len(json.loads(record.read_text())["rows"]) == 2
    again = run(problem, specs, record=record)
    np.testing.assert_array_equal(again.broken_by, whole.broken_by)
    # all but the seconds
    assert [row[:-1] for row in again.results] == [row[:-1] for row in whole.results]
    finished = run(problem, [*specs[:2], stopped], record=record)  # nothing is left to run
    assert finished.results == again.results


@dataclasses.dataclass(frozen=True)
class Onward:
    """Moves what it starts from by a step in the first row, and notes what that was."""

    step: float
    seen: list = dataclasses.field(default_factory=list, hash=False, compare=False, repr=False)
    kind = "seeded"
    takes_start = True

    def __call__(self, logits, params, images, labels, key, start=None):
        self.seen.append(None if start is None else np.asarray(start))
        return jnp.clip((images if start is None else start).at[:, 0].add(self.step), 0, 1)


def test_a_seeded_attack_starts_from_the_largest_margin_of_all_attacks_before(problem):
    split, weights = problem
    first, second = Onward(0.0), Onward(0.01)
    others = [Fixed(0.02), Fixed(-0.02), Fixed(0.01, (1,))]
    specs = [AttackSpec(f"fixed {n}", attack) for n, attack in enumerate(others)]
    specs += [AttackSpec("first", first), AttackSpec("second", second)]
    outcome = run(problem, specs)
    moved = np.stack(
        [attack(None, None, jnp.asarray(split.images), None, None) for attack in others]
    )
    z = moved.reshape(3, 50, 16) @ np.asarray(weights)
    own = np.eye(3, dtype=bool)[split.labels]
    margins = np.where(own, -np.inf, z).max(-1) - np.where(own, z, -np.inf).max(-1)
    best = moved[margins.argmax(0), np.arange(50)]
    left = outcome.clean & ~(margins.max(0) > 0)
    assert 10 < left.sum() < 50 and len(set(margins.argmax(0)[left])) > 1
    assert len(first.seen) == len(second.seen) == 1
    count = min(len(first.seen[0]), left.sum())  # the rest fills the batch
    np.testing.assert_allclose(first.seen[0][:count], best[left], atol=1e-6)
    gained = outcome.best.margins[left] >= margins.max(0)[left] - 1e-6
    assert gained.all() and (outcome.best.margins[left] > margins.max(0)[left] + 1e-4).any()


def test_without_an_attack_before_it_a_seeded_attack_has_no_start(problem):
    alone = Onward(0.01)
    run(problem, [AttackSpec("alone", alone)])
    assert alone.seen == [None]


def test_a_suite_with_a_seeded_attack_goes_on_from_its_record(problem, tmp_path):
    record = tmp_path / "suite.json"
    specs = [
        AttackSpec("pgd", PGD(EPS / 4, 5)),
        AttackSpec("search", SeededSearch(EPS / 2, 8, 2)),
        AttackSpec("again", SeededSearch(EPS, 8)),
    ]
    whole = run(problem, specs, record=record)
    for stop in (1, 2):
        record.unlink()
        failing = dataclasses.replace(specs[stop], attack=Fails(specs[stop].attack))
        with pytest.raises(KeyboardInterrupt):
            run(problem, [*specs[:stop], failing, *specs[stop + 1 :]], record=record)
        again = run(problem, specs, record=record)
        np.testing.assert_array_equal(again.best.images, whole.best.images)
        np.testing.assert_array_equal(again.best.margins, whole.best.margins)
        assert [row[:-1] for row in again.results] == [row[:-1] for row in whole.results]


class Fails:
    """Stops a suite; for the record the attack that it stands for."""

    def __init__(self, attack):
        self.attack, self.takes_start, self.kind = attack, True, "seeded"

    def __repr__(self):
        return repr(self.attack)

    def __call__(self, *args, **options):
        raise KeyboardInterrupt


def test_the_price_of_a_suite_is_known_before_it_and_never_exceeded(problem):
    sources = {"own": GradientSource(linear, problem[1])}
    prices = [price(build_suite(name, BALL, sources)) for name in ("pgd", "quick", "standard")]
    assert [each.passes for each in prices] == sorted(each.passes for each in prices)
    assert price(build_suite("thorough", BALL, sources)).passes > 2 * prices[-1].passes
    specs = [AttackSpec("pgd", PGD(EPS, 3, 2)), AttackSpec("square", Square(EPS, 7))]
    assert price(specs) == (6, 7) and price(specs).passes == 6 * GRADIENT_PASSES + 7
    console = Console(file=io.StringIO(), soft_wrap=True)
    outcome = run(problem, specs, terminal=Terminal(console))
    said = console.file.getvalue()
    assert "6 gradients and 7 queries" in said.split("\n")[0]
    assert sum(row.gradients for row in outcome.results) <= 6 * 50
    assert sum(row.queries for row in outcome.results) <= 7 * 50


@pytest.mark.parametrize("change", ("images", "weights", "suite", "source", "batch", "damage"))
def test_a_record_of_something_else_is_refused(problem, tmp_path, change):
    record, (split, weights) = tmp_path / "suite.json", problem
    specs = [AttackSpec("fgsm", fgsm(EPS), "twin")]
    options = {"sources": {"twin": GradientSource(linear, weights)}, "record": record}
    run(problem, specs, **options)
    if change == "images":
        split = Split(split.images[::-1].copy(), split.labels[::-1].copy())
    elif change == "weights":
        weights = weights + 1
    elif change == "suite":
        specs = [AttackSpec("fgsm", fgsm(EPS / 2), "twin")]
    elif change == "source":
        options["sources"] = {"twin": GradientSource(linear, 2 * weights)}
    elif change == "batch":
        options["batch_size"] = 5
    else:
        record.write_text(record.read_text()[:-20])
    with pytest.raises(InputError, match=r"suite\.json is (of another|damaged)"):
        run((split, weights), specs, **options)


def test_a_record_names_classifiers_alike_in_every_process(problem):
    assert settings_text((linear, Counting(), AttackSpec("a", Fixed(0.1)))) == str(
        ["conftest.linear", repr(Counting()), settings_text(AttackSpec("a", Fixed(0.1)))]
    )


def test_copies_that_fill_a_batch_do_not_count(problem):
    # An attack that moves only the images after the third: of one image, none but copies.
    class Later:
        def __call__(self, logits, params, images, labels, key):
            return images.at[3:].set(1 - images[3:])

    split, weights = problem
    single = Split(split.images[5:6], split.labels[5:6])
    assert not run((single, weights), [AttackSpec("later", Later())]).results[0].broken
    three = Split(split.images[5:8], split.labels[5:8])
    assert not run((three, weights), [AttackSpec("later", Later())], batch_size=8).results[0].broken


@pytest.mark.parametrize(
    "case",
    thinned(("bytes", "one image", "none correct", "all broken", "l2"), ("one image", "l2")),
)
def test_odd_images_and_labels_are_evaluated(problem, case):
    split, weights = problem
    options = {"eps": EPS, "norm": "linf"}
    if case == "bytes":
        split = Split((255 * split.images).astype(np.uint8), split.labels.astype(np.uint8))
    elif case == "one image":
        split = Split(split.images[5:6], split.labels[5:6])
    elif case == "none correct":
        split = Split(split.images[:5], split.labels[:5])
    elif case == "all broken":
        options["eps"] = 1.0
    else:
        options = {"eps": 0.5, "norm": "l2"}
    found = evaluate(linear, weights, split, key=KEY, suite="quick", natural=(), **options)
    assert found.outcome.robust_accuracy <= found.outcome.accuracy
    assert (found.outcome.accuracy == 0) == (case == "none correct")
    if case in ("none correct", "all broken"):
        assert found.outcome.robust_accuracy == 0
    few = "so few images show too little" in found.verdict.reasons
    assert few == (case in ("one image", "none correct"))
    json.loads(json.dumps(found.record(), allow_nan=False))


@pytest.mark.parametrize(
    "text, kind",
    (
        ("apgd-t:own", "white box"),
        ("pgd:assg", "white box"),
        ("pgd:relu", "transfer"),
        ("pgd:twin", "transfer"),
        ("square", "black box"),
        ("square:own", "black box"),
        ("noise", "noise"),
    ),
)
def test_names_stand_for_attacks_of_their_kind(text, kind):
    assert parse_attack(text, BALL).kind == kind


@pytest.mark.parametrize(
    "make, message",
    (
        (lambda s, w: evaluate(linear, w, s, eps=0.1, key=KEY, suite="fast"), "preset 'fast'"),
        (lambda s, w: evaluate(linear, w, s, eps=0.1, key=KEY, suite=[]), "no attack"),
        (lambda s, w: evaluate(linear, w, s, eps=3.0, key=KEY), "eps 3.0"),
        (
            lambda s, w: evaluate(
                linear, w, Split(s.images * 255, s.labels), eps=0.1, key=KEY, suite="pgd"
            ),
            "images span",
        ),
        (
            lambda s, w: evaluate(
                linear, w, Split(s.images, s.labels + 1), eps=0.1, key=KEY, suite="pgd"
            ),
            "labels span 1 to 3, but the network has 3 classes",
        ),
        (
            lambda s, w: evaluate(
                linear, w, Split(s.images[:0], s.labels[:0]), eps=0.1, key=KEY, suite="pgd"
            ),
            "no images",
        ),
        (
            lambda s, w: build_suite(
                [parse_attack("pgd:asg", BALL)],
                BALL,
                {"own": GradientSource(linear, w), "assg": None},
            ),
            "source of the attack 'pgd' 'asg': expected one of assg, own; did you mean assg",
        ),
        (lambda s, w: parse_attack("apgd", BALL), "attack 'apgd'"),
        (lambda s, w: parse_attack("noise:relu", BALL), "noise differentiates nothing"),
        (
            lambda s, w: evaluate(
                linear, w, s, eps=0.1, key=KEY, others={"own": GradientSource(linear, w)}
            ),
            "called 'own', which is a gradient source",
        ),
        (
            lambda s, w: evaluate(linear, w, s, eps=0.1, key=KEY, natural=[("rain", 3)]),
            "corruption 'rain'",
        ),
        (lambda s, w: evaluate(linear, w, s, eps=0.1, key=KEY, batch_size=0), "batch_size 0"),
        (lambda s, w: evaluate(linear, w[:, :1], s, eps=0.1, key=KEY), "1 class"),
        (
            lambda s, w: evaluate(linear, w, Split(s.images, s.labels[:9]), eps=0.1, key=KEY),
            "do not go together",
        ),
        (lambda s, w: parse_attack("square", ThreatModel("l2", 0.1)), "no l2 variant"),
    ),
)
def test_what_cannot_be_run_is_refused(problem, make, message):
    with pytest.raises(InputError, match=message):
        make(*problem)


def test_presets_name_gradient_sources_that_a_spiking_classifier_has(network):
    architecture, variables = network
    sources = gradient_sources(Classifier(architecture), (variables, None))
    for norm in ("linf", "l2"):
        for preset in PRESETS:
            specs = build_suite(preset, ThreatModel(norm, 0.05), sources)
            assert all(spec.attack.eps == 0.05 for spec in specs)
            titles = [(spec.name, spec.source) for spec in specs]
            assert len(set(titles)) == len(titles)


def test_a_spiking_network_under_a_suite_of_ones_own(network, digits):
    architecture, variables = network
    classifier = Classifier(architecture)
    labels = correct_labels(classifier, variables, digits.test.images[:12])
    split = Split(digits.test.images[:12], labels)
    specs = [parse_attack(text, BALL) for text in ("noise", "fgsm", "pgd:assg", "fgsm:relu")]
    found = evaluate(
        classifier, (variables, None), split, eps=0.1, key=KEY, suite=specs, audit_images=8
    )
    assert found.outcome.accuracy == 1
    assert [row.kind for row in found.outcome.results] == [
        "noise",
        "white box",
        "white box",
        "transfer",
    ]
    assert found.outcome.max_violation < 1e-6
    record = json.loads(json.dumps(found.record()))
    assert record["robust_accuracy"] == found.outcome.robust_accuracy
    assert record["gradients"] == sum(row["gradients"] for row in record["attacks"]) > 0


class Dropping(nn.Module):
    """A spiking classifier that this library did not make, with dropout at test time."""

    @nn.compact
    def __call__(self, images):
        v = nn.Dense(24)(images.reshape(images.shape[0], -1))
        s = spike(v - 0.5, Surrogate("sigmoid", 2.0))
        return nn.Dense(3)(nn.Dropout(0.3, deterministic=False)(s))


@dataclasses.dataclass(frozen=True)
class DroppingClassifier:
    stochastic = True

    def __call__(self, params, images, *, key):
        return Dropping().apply(params, images, rngs={"dropout": key})


def test_any_flax_classifier_can_be_evaluated_with_expectation_and_votes(problem):
    split, _ = problem
    keys = {"params": KEY, "dropout": KEY}
    params = Dropping().init(keys, jnp.asarray(split.images))
    logits = DroppingClassifier()
    votes = predict(logits, params, jnp.asarray(split.images), key=KEY, votes=200)
    judged = Split(split.images, np.asarray(votes))
    found = evaluate(
        logits, params, judged, eps=EPS, key=KEY, suite="pgd", samples=10, votes=50, natural=()
    )
    assert found.outcome.accuracy > 0.9  # two majorities differ where votes are close
    assert found.outcome.robust_accuracy < found.outcome.accuracy
    single = evaluate(
        logits, params, judged, eps=EPS, key=KEY, suite="pgd", samples=1, votes=50, natural=()
    )
    assert single.headline.startswith("unreliable: the network draws at random")
    own = [AttackSpec("fgsm", fgsm(EPS))]
    listed = evaluate(logits, params, judged, eps=EPS, key=KEY, suite=own, votes=10, natural=())
    assert listed.headline.startswith("unreliable: the network draws at random")
    reference = [row for row in found.outcome.results if row.name == "PGD 20 x 2"]
    # the second restart is run on those that the first one left
    images, rest = divmod(reference[0].gradients, 20 * 10)
    assert rest == 0 and 1 < images / reference[0].attacked < 2


def correct_labels(classifier, variables, images):
    logits = jax.jit(classifier)((variables, None), jnp.asarray(images))
    return np.asarray(logits.argmax(-1))
