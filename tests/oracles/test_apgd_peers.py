"""APGD on a trained spiking network beside AutoAttack's own on its torch twin, live."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccsrp_jax.attacks.apgd import APGD
from ccsrp_jax.attacks.gradients import loss_and_gradient
from ccsrp_jax.data import datasets
from ccsrp_jax.data.splits import Split
from ccsrp_jax.networks import masks, zoo
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.neurons import Surrogate
from ccsrp_jax.robustness.accuracy import correct
from ccsrp_jax.training.trainer import Recipe, train

torch = pytest.importorskip("torch")
pytest.importorskip("spikingjelly.activation_based")
peers = pytest.importorskip("pyautoattack.autopgd_base")

from peers.torch_twin import Twin, nchw

pytestmark = pytest.mark.oracle

INIT, TRAIN = jax.random.split(jax.random.key(0))
RADII = {"linf": 0.06, "l2": 0.3}
ATTACKS = [
    APGD(eps, 25, loss=loss, targets=3, norm=norm)
    for norm, eps in RADII.items()
    for loss in ("ce", "dlr", "dlr_targeted")
]


def name(attack):
    return f"{attack.loss}-{attack.norm}"


@pytest.fixture(scope="module")
def trained():
    """A network trained on digits for seconds, its twin, and test images."""
    digits, surrogate = datasets.load("digits"), Surrogate(width=2.0)
    architecture = zoo.plain(
        (8, "A", 12, "A"), (8, 8, 1), 10, time_steps=3, mean=(0.3,), std=(0.4,)
    )
    classifier = Classifier(architecture, surrogate)
    split = Split(digits.train.images.repeat(3, 0), digits.train.labels.repeat(3))
    variables = zoo.init(INIT, architecture)
    variables = train(
        TRAIN,
        classifier,
        variables,
        masks.ones(architecture),
        split,
        Recipe(epochs=5, learning_rate=0.01),
    )
    test = Split(digits.test.images[:256], digits.test.labels[:256])
    twin = Twin(architecture, variables, surrogate).requires_grad_(False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # its layers are so small that more only wait for each other
    yield classifier, (variables, None), twin, test
    torch.set_num_threads(threads)


class FromStart:
    """Compares the first loss with that of the start, as the paper does.

    AutoAttack's code takes the last entry of a history that is still 0 there.
    """

    def check_oscillation(self, losses, step, window, *rest, **options):
        if step + 1 == window:
            losses = losses.clone()
            losses[-1] = self.first_loss
        return super().check_oscillation(losses, step, window, *rest, **options)


class Untargeted(FromStart, peers.APGDAttack):
    pass


class Targeted(FromStart, peers.APGDAttack_targeted):
    pass


def options_of(attack, seed=0):
    return {
        "n_iter": attack.steps,
        "norm": {"linf": "Linf", "l2": "L2"}[attack.norm],
        "n_restarts": attack.restarts,
        "eps": attack.eps,
        "seed": seed,
        "rho": attack.rho,
        "logger": logging.getLogger(__name__),
    }


def test_logits_of_the_trained_network_equal_its_twin(trained):
    classifier, params, twin, (images, labels) = trained
    ours, theirs = jax.jit(classifier)(params, images), twin(nchw(images)).numpy()
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    assert (theirs.argmax(-1) == labels).mean() > 0.85


@pytest.mark.parametrize("attack", ATTACKS, ids=name)
def test_from_the_same_start_the_same_images_break_and_losses_are_equal(trained, attack):
    classifier, params, twin, test = trained
    images, labels = map(jnp.asarray, test)
    clean = jax.jit(classifier)(params, images)
    targets = jnp.where(jax.nn.one_hot(labels, 10, dtype=bool), -jnp.inf, clean).argmax(-1)
    start = attack.threat.random_surface_point(jax.random.key(1), images)
    path = attack.path(classifier, params, images, labels, jax.random.key(2), start, targets)
    *_, ours = path

    if attack.loss == "dlr_targeted":
        peer = Targeted(twin, **options_of(attack))
        peer.y_target = torch.tensor(np.array(targets))
    else:
        peer = Untargeted(twin, loss=attack.loss, **options_of(attack))
    options = {"loss": attack.loss, "targets": targets}
    first = loss_and_gradient(classifier, params, start, labels, **options).loss
    peer.first_loss = torch.tensor(np.array(first))
    x, y = nchw(images), torch.tensor(np.array(labels)).long()
    peer.init_hyperparam(x)
    best, standing, loss, _ = peer.attack_single_run(x, y, x_init=nchw(start))

    standing = standing.numpy().astype(bool)
    assert 0.1 < standing.mean() < 0.8
    assert (standing == ~np.asarray(ours.worst.misclassified)).mean() >= 0.99
    # Once a label is third, the ratio is constant and its gradient is rounding error.
    settled = standing if attack.loss == "dlr" else np.ones_like(standing)
    equal = np.isclose(ours.best_loss, loss.detach().numpy(), rtol=1e-3, atol=1e-4)
    assert equal[settled].mean() >= 0.97
    best = best.detach().permute(0, 2, 3, 1).numpy()
    equal = np.isclose(ours.best, best, atol=1e-4).all((1, 2, 3))
    assert equal[settled].mean() >= 0.9


def test_robust_accuracies_equal_those_of_autoattack(trained):
    classifier, params, twin, test = trained
    x, y = nchw(test.images), torch.tensor(test.labels).long()
    gaps = {}
    for attack in ATTACKS:
        ours, theirs = [], []
        for seed in range(3):
            key = jax.random.key(seed)
            ours.append(correct(classifier, params, test, attack=attack, key=key, batch_size=256))
            if attack.loss == "dlr_targeted":
                peer = peers.APGDAttack_targeted(
                    twin, n_target_classes=attack.targets, **options_of(attack, seed)
                )
            else:
                peer = peers.APGDAttack(twin, loss=attack.loss, **options_of(attack, seed))
            found = peer.perturb(x, y).detach()
            theirs.append((twin(found).argmax(-1) == y).numpy())
        gaps[name(attack)] = np.mean(ours) - np.mean(theirs)
    assert max(map(abs, gaps.values())) <= 0.02, gaps
    assert np.mean(list(gaps.values())) <= 0.002, gaps
