"""Images attacked a second by PGD-20: ours, foolbox in JAX, torchattacks on SpikingJelly.

    make oracles; .venv/bin/pip install --no-deps torchattacks
    .venv/bin/python experiments/benchmarks/attack_speed.py

One network for 32 x 32 x 3 images (the plan 24, A, 48, A, 96, A of the main job's `medium`),
T = 4, the same random weights, random images, float32, the same number of threads. SpikingJelly
is at its best here: multi-step neurons, time folded into the batch, channels last, the first
convolution once for all steps, and no gradients for weights. foolbox is given a jitted
network. The three take turns; every figure is the median over rounds after one for warm-up.
That the adversarial images agree is checked first. Writes results/attack_speed.json.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import foolbox
import jax
import jax.numpy as jnp
import numpy as np
import torch
import torchattacks

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "oracles"))
from twin import FoldedTwin, nchw, random_network

from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.neurons import Surrogate
from ccsrp_jax.networks.zoo import build

EPS, STEPS = 8 / 255, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=ROOT / "experiments" / "results")
    options = parser.parse_args()
    torch.set_num_threads(os.cpu_count())
    architecture = build("medium", (32, 32, 3), 10, mean=(0.5,) * 3, std=(0.25,) * 3)
    variables, surrogate = random_network(0, architecture), Surrogate()
    classifier, params = Classifier(architecture, surrogate), (variables, None)
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.uniform(size=(options.batch, 32, 32, 3)).astype(np.float32))
    labels = jax.jit(classifier)(params, images).argmax(-1)
    twin = FoldedTwin(architecture, variables, surrogate).to(memory_format=torch.channels_last)
    torch_images = nchw(images).to(memory_format=torch.channels_last)
    torch_labels = torch.from_numpy(np.array(labels)).long()
    attack = PGD(EPS, STEPS, random_start=False)

    def ours():
        return attack(classifier, params, images, labels, jax.random.key(0)).block_until_ready()

    model = foolbox.JAXModel(jax.jit(partial(classifier, params)), bounds=(0, 1))
    peer = foolbox.attacks.LinfPGD(abs_stepsize=attack.step_size, steps=STEPS, random_start=False)

    def by_foolbox():
        criterion = foolbox.criteria.Misclassification(labels)
        return peer.run(model, images, criterion, epsilon=EPS).block_until_ready()

    torch_attack = torchattacks.PGD(
        twin, eps=EPS, alpha=attack.step_size, steps=STEPS, random_start=False
    )

    def by_torchattacks():
        return torch_attack(torch_images, torch_labels)

    runs = {"ours": ours, "foolbox": by_foolbox, "torchattacks": by_torchattacks}
    found = {name: run() for name, run in runs.items()}  # compiles and warms up
    logits = jax.jit(classifier)(params, images)
    with torch.no_grad():
        difference = np.abs(np.asarray(logits) - twin(torch_images).numpy()).max()
    images_of = {
        "foolbox": np.asarray(found["foolbox"]),
        "torchattacks": found["torchattacks"].permute(0, 2, 3, 1).numpy(),
    }
    same = {
        name: float((np.abs(np.asarray(found["ours"]) - other) < 1e-6).mean())
        for name, other in images_of.items()
    }
    seconds = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    rates = {name: options.batch / statistics.median(times) for name, times in seconds.items()}
    packages = ("jax", "foolbox", "torch", "torchattacks", "spikingjelly")
    record = {
        "what": f"PGD-{STEPS}, images a second, batch {options.batch}, medium network, T = 4",
        "images_per_second": rates,
        "ours_over": {name: rates["ours"] / rates[name] for name in rates},
        "seconds": seconds,
        "largest_logit_difference": float(difference),
        "share_of_equal_pixels": same,
        "threads": os.cpu_count(),
        "device": platform.processor() or platform.machine(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "attack_speed.json").write_text(json.dumps(record, indent=1) + "\n")
    for name, rate in rates.items():
        print(f"{name:<14}{rate:8.1f} images/s   ours / it {rates['ours'] / rate:.2f}")


if __name__ == "__main__":
    main()
