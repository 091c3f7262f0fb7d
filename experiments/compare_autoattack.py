"""Is our suite as strong as AutoAttack? Both on the same adversarially trained networks.

    make oracles; .venv/bin/python experiments/compare_autoattack.py --data-dir DIR

Networks of different size (two for digits, MNIST, CIFAR-10; sized for two cores) are trained on
PGD examples, for a minute each. On 256 test images of each, our `standard` suite, plain PGD-20
through the training surrogate, and AutoAttack's standard version (APGD-CE, targeted APGD-DLR,
targeted FAB, Square with 5000 queries) on a torch twin of the same weights, whose logits and
input gradients are those of the network (checked first). Writes results/compare_autoattack.json
after every network. On the digits PGD-20 leaves 0.875, AutoAttack 0.738, ours 0.633; on the tiny
network 0.621, 0.383, 0.301; on MNIST 0.695, 0.570, 0.504. CIFAR-10 has not been through it. Some
minutes a network, of which AutoAttack takes three quarters; the committed seconds were taken while
the machine had other work.
"""

import argparse
import json
import os
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch
from pyautoattack import AutoAttack

from benchmarks.common import machine, parser, write
from ccsrp_jax.attacks.gradients import loss_and_gradient
from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.data import datasets, splits
from ccsrp_jax.networks import zoo
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.robustness.evaluation import evaluate
from ccsrp_jax.training import trainer
from ccsrp_jax.utils.console import Terminal
from peers.torch_twin import FoldedTwin, nchw

# name, of which the first word is the data set: plan, eps, training images, epochs
NETWORKS = {
    "digits tiny": ((8, "A", 16, "A"), 0.1, None, 20),
    "digits": ((24, 48, "A", 48, "A"), 0.1, None, 20),
    "mnist": ((6, "A", 12, "A"), 0.1, 4000, 5),
    "cifar10": ((8, "A", 16, "A", 32, "A"), 4 / 255, 3000, 5),
}
IMAGES = 256


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--data-dir", help="where TFDS sets lie prepared")
    flags.add_argument("--only", choices=NETWORKS, nargs="+", default=list(NETWORKS))
    flags.add_argument("--images", type=int, default=IMAGES)
    options = flags.parse_args()
    torch.set_num_threads(os.cpu_count())
    path = options.out / "compare_autoattack.json"
    done = json.loads(path.read_text())["networks"] if path.exists() else {}
    for name in options.only:
        done[name] = compare(name, options)
        record = {"networks": done, **machine("pyautoattack", "torch", "spikingjelly")}
        write(options.out, "compare_autoattack", record)


def compare(name: str, options: argparse.Namespace) -> dict:
    """Trains one network and attacks it both ways."""
    plan, eps, train_images, epochs = NETWORKS[name]
    loaded = datasets.load(
        name.split()[0],
        data_dir=options.data_dir,
        train_images=train_images,
        test_images=options.images,
    )
    architecture = zoo.plain(
        plan, loaded.train.images.shape[1:], loaded.classes, mean=loaded.mean, std=loaded.std
    )
    classifier = Classifier(architecture)
    started = time.perf_counter()
    variables = trainer.train(
        jax.random.key(1),
        classifier,
        zoo.init(jax.random.key(0), architecture),
        {},
        loaded.train,
        trainer.Recipe(epochs=epochs, adversarial=PGD(eps, 3), clean_epochs=3),
        augmentation=loaded.augmentation,
    )
    trained = time.perf_counter() - started
    params, test, terminal = (variables, None), loaded.test, Terminal()
    started = time.perf_counter()
    ours = evaluate(
        classifier,
        params,
        test,
        eps=eps,
        key=jax.random.key(2),
        suite="standard",
        natural=(),
        terminal=terminal,
    )
    ours_seconds = time.perf_counter() - started
    terminal.line(f"{name}: {ours.headline}; {ours_seconds:.0f} s")

    twin = FoldedTwin(architecture, variables)
    images = np.asarray(splits.to_unit_range(jnp.asarray(test.images)))
    theirs_in, labels = nchw(images), torch.from_numpy(np.array(test.labels)).long()
    logits = np.asarray(jax.jit(classifier)(params, jnp.asarray(images)))
    with torch.no_grad():
        difference = float(np.abs(logits - twin(theirs_in).numpy()).max())
    batch = jnp.asarray(images), jnp.asarray(test.labels)
    slope_ours = loss_and_gradient(classifier, params, *batch).gradient
    leaf = theirs_in.clone().requires_grad_()
    torch.nn.functional.cross_entropy(twin(leaf), labels, reduction="sum").backward()
    slope_theirs = leaf.grad.permute(0, 2, 3, 1).numpy()
    gap = float(np.abs(slope_ours - slope_theirs).max() / np.abs(slope_theirs).max())
    if difference > 1e-4 or gap > 1e-3:  # a twin that is easier to attack would flatter us
        raise SystemExit(f"the twin of {name} differs: logits {difference:g}, gradients {gap:g}")
    started = time.perf_counter()
    attack = AutoAttack(twin, norm="Linf", eps=eps, version="standard", device="cpu", seed=0)
    adversarial, _ = attack.run_standard_evaluation(theirs_in, labels, batch_size=128)
    theirs_seconds = time.perf_counter() - started
    with torch.no_grad():
        hits = np.concatenate(
            [twin(part).argmax(-1).numpy() for part in adversarial.split(128)]
        ) == np.asarray(test.labels)
    theirs = float(hits.mean())
    terminal.line(f"{name}: AutoAttack {theirs:.3f}; {theirs_seconds:.0f} s")
    outcome = ours.outcome
    return {
        "plan": plan,
        "eps": eps,
        "images": len(test.labels),
        "training_seconds": trained,
        "clean": outcome.accuracy,
        "pgd_20": outcome.alone("PGD 20"),
        "ours": outcome.robust_accuracy,
        "autoattack": theirs,
        "ours_above_autoattack": outcome.robust_accuracy - theirs,
        "ours_below_pgd_20": outcome.alone("PGD 20") - outcome.robust_accuracy,
        "broken_only_by_ours": float((hits & ~outcome.robust).mean()),
        "broken_only_by_autoattack": float((outcome.robust & ~hits).mean()),
        "largest_logit_difference": difference,
        "largest_gradient_difference": gap,  # beside the largest gradient
        "ours_seconds": ours_seconds,
        "autoattack_seconds": theirs_seconds,
        "headline": ours.headline,
        "attacks": [result.record() for result in outcome.results],
        "checks": [check._asdict() for check in ours.verdict.checks],
    }


if __name__ == "__main__":
    main()
