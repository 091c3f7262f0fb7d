"""How to add an attack: a class outside the library, run through a suite and under a name."""

import dataclasses
import json
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import linear

import ccsrp_jax as cc
from ccsrp_jax.attacks import ATTACKS, NamedAttack, ThreatModel
from ccsrp_jax.robustness import AttackSpec, parse_attack

KEY = jax.random.key(0)
EPS = 0.1


@dataclass(frozen=True)
class Darken:
    """Makes every pixel darker by eps: an attack that asks the network nothing."""

    kind: ClassVar[str] = "black box"
    norms: ClassVar[tuple[str, ...]] = ("linf",)
    queries: ClassVar[int] = 0
    gradients: ClassVar[int] = 0

    eps: float

    def __call__(self, classifier, network_state, images, labels, key):
        return jnp.clip(images - self.eps, 0, 1)


@dataclass(frozen=True)
class SignStep:
    """One signed gradient step, as a user may write it, that declares nothing about itself."""

    eps: float
    samples: int = 1

    def __call__(self, classifier, network_state, images, labels, key):
        def loss(x):
            logits = classifier(network_state, x)
            return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1).sum()

        return jnp.clip(images + self.eps * jnp.sign(jax.grad(loss)(images)), 0, 1)


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    images = rng.uniform(0.2, 0.8, (50, 4, 4, 1)).astype(np.float32)
    weights = jnp.asarray(rng.normal(size=(16, 3)).astype(np.float32))
    labels = np.asarray(linear(weights, images).argmax(-1), np.int32)
    return weights, cc.Split(images, labels)


def test_an_attack_from_outside_runs_in_a_suite_in_its_place(problem):
    weights, split = problem
    suite = [AttackSpec("darken", Darken(EPS)), AttackSpec("sign step", SignStep(EPS))]
    options = {"eps": EPS, "key": KEY, "natural": (), "audit_images": 16}
    found = cc.evaluate(linear, weights, split, suite=suite, **options)
    survived = [
        np.asarray(linear(weights, attack(linear, weights, *split, KEY)).argmax(-1)) == split.labels
        for attack in (Darken(EPS), SignStep(EPS))
    ]
    np.testing.assert_array_equal(found.outcome.robust, survived[0] & survived[1])
    assert 0 < found.outcome.robust_accuracy < 1
    assert found.outcome.max_violation < 1e-6
    white_box, black_box = json.loads(json.dumps(found.record()))["attacks"]
    assert (white_box["name"], white_box["kind"], white_box["through"]) == (
        "sign step",
        "white box",
        "own",
    )
    assert (black_box["name"], black_box["kind"]) == ("darken", "black box")


def test_a_line_in_the_registry_gives_an_attack_a_name(problem, monkeypatch):
    monkeypatch.setitem(ATTACKS, "darken", NamedAttack(Darken))
    monkeypatch.setitem(ATTACKS, "sign-step", NamedAttack(SignStep))
    ball = ThreatModel("linf", EPS)
    darken, step = parse_attack("darken", ball), parse_attack("sign-step:twin", ball, samples=5)
    assert darken == AttackSpec("darken", Darken(EPS))
    assert step == AttackSpec("sign-step", SignStep(EPS, samples=5), "twin")
    assert (darken.kind, step.kind) == ("black box", "transfer")
    with pytest.raises(cc.InputError, match="darken differentiates nothing"):
        parse_attack("darken:relu", ball)
    with pytest.raises(cc.InputError, match="darken has no l2 variant"):
        parse_attack("darken", ThreatModel("l2", EPS))
    weights, split = problem
    options = {"eps": EPS, "key": KEY, "natural": (), "audit_images": 16}
    found = cc.evaluate(linear, weights, split, suite=[darken], **options)
    assert found.outcome.results[0].attacked == 50


def test_every_named_attack_declares_a_kind_and_norms_that_it_can_be_built_for():
    for name, named in ATTACKS.items():
        assert named.kind in ("noise", "white box", "black box", "seeded")
        for norm in ("linf", "l2"):
            if norm in named.norms:
                attack = named.build(ThreatModel(norm, 0.25), samples=3)
                assert (attack.eps, attack.norm) == (0.25, norm)
                fields = {field.name for field in dataclasses.fields(attack)}
                assert "samples" not in fields or attack.samples == 3
            else:
                with pytest.raises(cc.InputError, match=f"{name} has no {norm} variant"):
                    parse_attack(name, ThreatModel(norm, 0.25))
