"""Images attacked per second by PGD-20: ours, foolbox in JAX, torchattacks on SpikingJelly.

    make oracles; .venv/bin/pip install --no-deps torchattacks
    .venv/bin/python experiments/benchmarks/attack_speed.py

One network for 32 x 32 x 3 images (the plan 24, A, 48, A, 96, A of the main job's `medium`),
T = 4, the same random weights, random images, float32, the same number of threads. SpikingJelly
is at its best here: multi-step neurons, time folded into the batch, channels last, the first
convolution once for all steps, and no gradients for weights. foolbox is given a jitted
network. The three alternate; every figure is the median over rounds after one for warm-up. How
far the adversarial images agree is recorded too. Writes results/attack_speed.json.
"""

import os
from functools import partial

import foolbox
import jax
import jax.numpy as jnp
import numpy as np
import torch
import torchattacks

from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.neurons import Surrogate
from ccsrp_jax.networks.zoo import build
from common import machine, medians, parser, take_turns, write
from peers.torch_twin import FoldedTwin, nchw, random_network

EPS, STEPS = 8 / 255, 20


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--batch", type=int, default=128)
    flags.add_argument("--rounds", type=int, default=7)
    options = flags.parse_args()
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
    seconds = take_turns(runs, options.rounds)
    rates = {name: options.batch / median for name, median in medians(seconds).items()}
    record = {
        "what": f"PGD-{STEPS}, images per second, batch {options.batch}, medium network, T = 4",
        "images_per_second": rates,
        "ours_over": {name: rates["ours"] / rates[name] for name in rates},
        "seconds": seconds,
        "largest_logit_difference": float(difference),
        "share_of_equal_pixels": same,
        **machine("foolbox", "torch", "torchattacks", "spikingjelly"),
    }
    write(options.out, "attack_speed", record)
    for name, rate in rates.items():
        print(f"{name:<14}{rate:8.1f} images/s   ours / it {rates['ours'] / rate:.2f}")


if __name__ == "__main__":
    main()
