"""What every attack breaks for how many gradients and queries, on networks of several neurons.

    python experiments/attack_strength.py
    python experiments/attack_strength.py --only soft --images 64 --attacks seeded rays

Adversarially trained digits networks (two that are committed; soft reset, a residual PLIF network,
and a dense one with a long memory are trained first) are attacked on images of the search split,
never on test images. A base of PGD-20 and of APGD on the margin leaves the images that are hard.
Each attack is then run on these alone, part by part (restarts, targets, a thousand queries), which
gives a curve of broken images against its budget; "only" counts those that no other attack breaks.
Attacks that go on from the best perturbations have those of the base. Writes
results/attack_strength.json after every network; the committed file has the dense one, with 96
images.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from benchmarks.common import RESULTS, machine, parser, write
from ccsrp_jax.attacks.apgd import APGD
from ccsrp_jax.attacks.mifgsm import MIFGSM
from ccsrp_jax.attacks.pgd import PGD, fgsm
from ccsrp_jax.attacks.rays import RayS
from ccsrp_jax.attacks.sapgd import SAPGD
from ccsrp_jax.attacks.seeded_search import SeededSearch
from ccsrp_jax.attacks.square import Square
from ccsrp_jax.attacks.threat_model import ThreatModel
from ccsrp_jax.data import datasets
from ccsrp_jax.data.splits import Split
from ccsrp_jax.networks import serialization, zoo
from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.neurons import LIF
from ccsrp_jax.networks.nodes import IMAGE, Dense, Flatten, Spike
from ccsrp_jax.robustness.accuracy import Evaluator
from ccsrp_jax.robustness.gradient_sources import GradientSource, gradient_sources
from ccsrp_jax.robustness.outcome import Outcome
from ccsrp_jax.robustness.run_suite import attack_all, run_attack
from ccsrp_jax.robustness.suites import AttackSpec
from ccsrp_jax.training import trainer
from ccsrp_jax.utils.console import Terminal

SHAPE, CLASSES = (8, 8, 1), 10
KEY = jax.random.key(7)


def soft(**settings) -> Architecture:
    """Soft reset, and currents that are not divided by tau."""
    neuron = LIF(reset="soft", decay_input=False)
    return zoo.plain((16, "A", 32, "A"), SHAPE, CLASSES, neuron=neuron, **settings)


def plif(**settings) -> Architecture:
    """A residual network with learned leaks."""
    stages, neuron = ((16, 1, 1), (32, 1, 2)), LIF(learned=True)
    return zoo.residual(stages, SHAPE, CLASSES, stem=16, neuron=neuron, **settings)


def dense(**settings) -> Architecture:
    """Dense layers only, with a membrane that forgets slowly."""
    nodes = (
        Flatten("flatten", IMAGE),
        Dense("fc1", "flatten", 128),
        Spike("lif1", "fc1"),
        Dense("fc2", "lif1", 64),
        Spike("lif2", "fc2"),
        Dense("classifier", "lif2", CLASSES),
    )
    neuron = LIF(tau=8.0, decay_input=False)
    return Architecture(nodes, SHAPE, neuron=neuron, time_steps=8, **settings)


# by name: a builder, or the file of a network and the seed of its split; and eps
NETWORKS: dict[str, tuple[Callable[..., Architecture] | tuple[Path, int], float]] = {
    "digits-1": ((RESULTS / "methods/digits-1/dense/networks/round00.safetensors", 1), 1 / 16),
    "digits-2": ((RESULTS / "methods/digits-2/dense/networks/round00.safetensors", 2), 1 / 16),
    "soft": (soft, 0.1),
    "plif": (plif, 0.1),
    "dense": (dense, 0.1),
}


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--only", choices=NETWORKS, nargs="+", default=list(NETWORKS))
    flags.add_argument("--images", type=int, default=144)
    flags.add_argument("--attacks", nargs="+", default=[""], help="words in their names")
    flags.add_argument("--networks", type=Path, help="folder where trained networks are kept")
    options = flags.parse_args()
    path = options.out / "attack_strength.json"
    done = json.loads(path.read_text())["networks"] if path.exists() else {}
    for name in options.only:
        done[name] = measure(name, options)
        write(options.out, "attack_strength", {"networks": done, **machine()})


def measure(name: str, options: argparse.Namespace) -> dict:
    """The base, and every attack on the images that it leaves."""
    source, split = network(name, options)
    threat, terminal = ThreatModel("linf", NETWORKS[name][1]), Terminal()
    evaluator = Evaluator(*source, split)
    sources = gradient_sources(*source)
    base = attack_all(evaluator, base_attacks(threat), sources, KEY, threat=threat)
    hard = int(base.robust.sum())
    terminal.line(f"{name}: clean {base.accuracy:.3f}, the base leaves {hard} of {len(base.clean)}")
    rows, left = [], []
    for spec in candidates(threat):
        if not any(word in f"{spec.name} {spec.source}".lower() for word in options.attacks):
            continue
        started = time.perf_counter()
        points, robust = curve(evaluator, spec, sources, base)
        left.append(robust)
        rows.append({"name": spec.name, "through": spec.source, "kind": spec.kind, "curve": points})
        gradients, queries, broken = points[-1]
        terminal.line(
            f"  {spec.name} {spec.source}: {broken} for {gradients} gradients, {queries} queries; "
            f"{time.perf_counter() - started:.0f} s"
        )
    kept = np.stack(left)
    for row, own in zip(rows, kept, strict=True):
        others = base.robust & (kept.sum(0) - own >= len(kept) - 1)
        row |= {"broken": int((base.robust & ~own).sum()), "only": int((others & ~own).sum())}
    return {
        "eps": threat.eps,
        "images": len(base.clean),
        "clean": int(base.clean.sum()),
        "hard": hard,
        "broken_by_any": int((base.robust & ~kept.all(0)).sum()),
        "attacks": rows,
    }


def network(name: str, options: argparse.Namespace) -> tuple[GradientSource, Split]:
    """An adversarially trained network, and images of its search split."""
    made, eps = NETWORKS[name]
    if isinstance(made, tuple):
        path, seed = made
        data = datasets.load("digits", seed=seed, search_images=options.images)
        architecture, variables = serialization.load(path)
        return GradientSource(Classifier(architecture), (variables, None)), data.search
    data = datasets.load("digits", search_images=options.images)
    kept = options.networks and options.networks / f"{name}.safetensors"
    if kept and kept.exists():
        architecture, variables = serialization.load(kept)
    else:
        architecture = made(mean=data.mean, std=data.std)
        variables = trainer.train(
            jax.random.key(1),
            Classifier(architecture),
            zoo.init(jax.random.key(0), architecture),
            {},
            data.train,
            trainer.Recipe(epochs=15, adversarial=PGD(eps, 3), clean_epochs=3),
        )
        if kept:
            kept.parent.mkdir(parents=True, exist_ok=True)
            serialization.save(kept, architecture, variables)
    return GradientSource(Classifier(architecture), (variables, None)), data.search


def base_attacks(threat: ThreatModel) -> list[AttackSpec]:
    """PGD-20, and the gradient attack that breaks most; a query of the search keeps the best."""
    return [
        AttackSpec("PGD 20", PGD(threat.eps, 20)),
        AttackSpec("APGD-margin 100", APGD(threat.eps, 100, loss="margin"), "atan:0.5"),
        AttackSpec("start", SeededSearch(threat.eps, 1)),
    ]


def candidates(threat: ThreatModel) -> list[AttackSpec]:
    """Every attack that a preset has, or might have."""
    eps, spec = threat.eps, AttackSpec
    margin, ce = APGD(eps, 100, loss="margin"), APGD(eps, 100)
    targeted = APGD(eps, 100, loss="dlr_targeted")
    shapes = [f"{shape}:{width:g}" for shape in ("atan", "triangle") for width in (0.25, 0.5, 2, 4)]
    rates = ["bptr", "rga", "hart", "hart:0.5", "straight"]
    mi = MIFGSM(eps, 40, 10)
    return [
        spec("FGSM", fgsm(eps)),
        spec("R-FGSM", fgsm(eps, random_start=True)),
        *(
            spec("APGD-margin 100", dataclasses.replace(margin, restarts=3), name)
            for name in ("atan:0.5", "sigmoid:0.5", "triangle:0.5", "atan:0.25", "assg", "random")
        ),
        *(spec("APGD-CE 100", ce, name) for name in ("own", "assg")),
        spec("SA-PGD 100", SAPGD(eps, 100), "assg"),
        *(spec("PGD 20", PGD(eps, 20), name) for name in (*shapes, *rates)),
        *(spec("APGD-DLR 100 x 9", targeted, name) for name in ("own", "assg")),
        *(spec("MI-FGSM 40 x 10", mi, name) for name in ("random", "atan:0.25")),
        spec("MI-FGSM-T 40 x 9", MIFGSM(eps, 40, loss="margin_targeted"), "random"),
        *(spec("PGD 40", PGD(eps, 40), name) for name in ("relu", "soft")),
        spec("Square 5000", Square(eps)),
        spec("RayS 2000", RayS(eps, 2000)),
        spec("seeded search 4 x 1000", SeededSearch(eps, 1000, 4)),
    ]


def curve(
    evaluator: Evaluator, spec: AttackSpec, sources: dict[str, GradientSource], base: Outcome
) -> tuple[list[tuple[int, int, int]], np.ndarray]:
    """(gradients, queries, broken images) after every part, and which images are left."""
    points, outcome, parts = [], base, getattr(spec.attack, "parts", (spec.attack,))
    for number, part in enumerate(parts):
        one = dataclasses.replace(spec, attack=part)
        key = jax.random.fold_in(KEY, number)
        attempt = run_attack(evaluator, one, sources, outcome, key, None)
        outcome = outcome.after(one, attempt)
        new = outcome.results[len(base.results) :]
        gradients, queries = sum(r.gradients for r in new), sum(r.queries for r in new)
        points.append((gradients, queries, int((base.robust & ~outcome.robust).sum())))
    return points, outcome.robust


if __name__ == "__main__":
    main()
