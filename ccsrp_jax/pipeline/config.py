"""Settings of the main job, as frozen dataclasses; `parse_config` reads them."""

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.attacks.registry import TRAINING_ATTACKS
from ccsrp_jax.coevolution.settings import PRESETS, Search
from ccsrp_jax.data.augmentation import Augmentation
from ccsrp_jax.data.division import SplitSettings
from ccsrp_jax.networks.neurons import LIF, Surrogate
from ccsrp_jax.networks.zoo import MODELS
from ccsrp_jax.pruning import METHODS
from ccsrp_jax.training.recipe import BaseRecipe, Recipe
from ccsrp_jax.utils.errors import InputError, shown, unknown
from ccsrp_jax.utils.fields import LARGEST_INTEGER, POSITIVE, SIZE, Limits, check_fields

COUNT = Limits(0, LARGEST_INTEGER)
SHARE = Limits(0, 1)
IMAGES = Limits(1, 2**31)


@dataclass(frozen=True)
class Training(BaseRecipe):
    """Training of the dense network, and fine-tuning of the pruned one after every round.

    Every field of `BaseRecipe` is a setting here too; those of fine-tuning replace `epochs` and
    `learning_rate` there, which has no `clean_epochs`, `eps_ramp`, `early_epochs` and
    `relu_epochs`, and keeps a whitening first layer.

    Attributes:
      adversarial: train and fine-tune on adversarial examples of radius `attack.eps`, made with
        batch norm in inference mode.
      attack: attack of training. `pgd` has `attack_steps` steps of 2.5 eps / steps; the others
        have one step: `rs-fgsm` of 1.25 eps from a random start (Wong et al., ICLR 2020), `n-fgsm`
        of eps from noise of 2 eps, not projected onto the ball (arXiv 2202.01181).
      attack_steps: number of steps of `pgd`; 1 ends in a corner of the ball almost always.
      checkpoint_epochs: number of epochs between the checkpoints of the dense network's training;
        0 saves none before its end.
      finetune_epochs: epochs of fine-tuning after every round.
      finetune_learning_rate: peak learning rate of fine-tuning.
      augmentation: augmentation of the training images; `auto` is the data set's default.
    """

    adversarial: bool = True
    clean_epochs: int = 3
    attack: Literal["pgd", "rs-fgsm", "n-fgsm"] = "pgd"
    attack_steps: int = 3
    checkpoint_epochs: int = 10
    finetune_epochs: int = 24
    finetune_learning_rate: float = 5e-3
    augmentation: Literal["auto", Augmentation] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = dict.fromkeys(("checkpoint_epochs", "finetune_epochs"), COUNT)
        check_fields(self, limits={"attack_steps": SIZE, **counts})

    def recipe(self, eps: float) -> Recipe:
        """The recipe of the dense network's training, with attacks of radius `eps`."""
        names = [each.name for each in dataclasses.fields(BaseRecipe)]
        settings = {name: getattr(self, name) for name in names if name != "adversarial"}
        make = TRAINING_ATTACKS[self.attack]
        attack = make(eps, self.attack_steps) if self.adversarial else None
        return Recipe(adversarial=attack, **settings)

    def finetune_recipe(self, eps: float) -> Recipe:
        """The recipe of fine-tuning, which is adversarial from its first epoch."""
        return dataclasses.replace(
            self.recipe(eps),
            epochs=self.finetune_epochs,
            learning_rate=self.finetune_learning_rate,
            clean_epochs=0,
            eps_ramp=0.0,
            first_layer="learned" if self.first_layer == "learned" else "frozen",
            early_epochs=0,
            relu_epochs=0,
        )


@dataclass(frozen=True)
class Attack:
    """The L-infinity attacks, in pixel units where images span [0, 1].

    Attributes:
      eps: radius in training, search and test; the default is one of the 16 gray levels of the
        digits images.
      search_steps: PGD steps for the adversarial examples that the search shares.
      test_steps: PGD steps of the attack that measures networks for the archive, on the search
        images.
      test_restarts: random starts of that attack.
      suite: attack suite for the dense and the chosen network on the test images: `quick`;
        `standard` or `thorough`, which take many times as long; or `pgd` only, for trial runs.
    """

    eps: float = 1 / 16
    search_steps: int = 10
    test_steps: int = 20
    test_restarts: int = 1
    suite: Literal["pgd", "quick", "standard", "thorough"] = "quick"

    def __post_init__(self) -> None:
        check_fields(
            self, limits=dict.fromkeys(("search_steps", "test_steps", "test_restarts"), SIZE)
        )


PATHS = ("dataset", "data_dir", "dense", "run_dir", "config")
LIMITS = {
    **dict.fromkeys(("time_steps", "batch_size", "member_chunk", "devices", "latency_batch"), SIZE),
    **dict.fromkeys(("train_images", "search_images", "test_images"), IMAGES),
    **dict.fromkeys(("target_macs", "tolerance"), SHARE),
    "width": POSITIVE,
    "noise": Limits(0),
    "seed": Limits(0, 2**32 - 1),
    **dict.fromkeys(("rounds", "profile"), COUNT),
}


@dataclass(frozen=True)
class Config:
    """Train a spiking network, prune it by robust cooperative coevolution, compact it, report.

    Default settings of the loop are ours unless a source is named: the settings of CCSRP are not
    published, and CCEP, on which it is based, fine-tunes for 100 epochs in each of 20 rounds.

    Attributes:
      dataset: `digits`; a TFDS image classification set (`cifar10`, `mnist`, `svhn_cropped`, ...);
        the path of an .npz file with x_train, y_train, x_test, y_test; `nmnist`; or the path of
        an .npz file with event recordings (see `data.load`).
      data_dir: directory of prepared TFDS sets, or of N-MNIST's folders Train and Test.
      model: `small` (for digits); `medium`, `wide5` or `resnet8` (28 to 34 pixels, on a CPU);
        `vgg11`, `vgg16`, `6conv2fc`, `resnet18`, `resnet19` or `sew_resnet18`.
      width: factor on the model's numbers of filters.
      norm: `bn`, or `tdbn` (threshold-dependent batch norm); by default the model's own.
      time_steps: T, number of time steps per image, and number of frames per recording.
      encoding: input of each time step: `direct`, the image; `poisson`, spikes drawn with the gray
        levels as probabilities; `gaussian`, the image plus noise. Event recordings are encoded as
        frames, one per time step, and none of these applies. Random encodings are slower to
        evaluate: predictions are a vote of 16 passes and the suite averages 10 gradients or more,
        while PGD in training and on the search images draws once per step.
      noise: standard deviation of the `gaussian` encoding, in pixel units.
      dense: file of a trained network to start from (`networks/round00.safetensors` of another
        run); model, width, norm, neuron and encoding are taken from it, and no dense network is
        trained.
      seed: seed of splits, initial weights, batches, attacks and search.
      search_fraction: fraction of the training images held out for all selection (CCEP: 0.2).
      train_images: maximum number of training images.
      search_images: maximum number of search images.
      test_images: maximum number of test images.
      method: pruning method, a name in `pruning.METHODS`: `rounds`, the search that `preset` and
        `search` describe, or another one such as `l1`, `hydra` or `sd-snn` (compared by
        experiments/compare_methods.py). Another method prunes to `target_macs`, or to that
        fraction of the parameters if it removes single weights, and gets as many epochs of
        fine-tuning as all rounds together.
      rounds: maximum number of rounds of search and fine-tuning.
      target_macs: fraction of the dense network's MACs at or below which no further round is run.
      tolerance: the chosen network is the one with the fewest MACs among those of the archive that
        lose at most this much accuracy and robust accuracy on the search images.
      batch_size: images per call in scoring and evaluation.
      member_chunk: candidate masks per call and device in scoring; by default as many as are
        efficient on the device and fit into its memory.
      devices: number of devices over which training batches and search candidates are sharded; by
        default all. A CPU has one, or as many as the environment variable JAX_NUM_CPU_DEVICES
        says.
      latency_batch: images per forward pass in the latency measurement.
      run_dir: output directory; by default a new runs/DATASET-MODEL-TIME, or with --resume the
        latest run there.
      tensorboard: also write the metrics for TensorBoard, in the run's directory.
      profile: number of training steps of which a trace is written into the run's directory, for
        TensorBoard's or Perfetto's viewer; 0 writes none.
      resume: continue the run from its last checkpoint.
      preset: initial search settings, `snes` or `faithful` (the search of CCEP), which the flags
        of `search` change.
      config: TOML or JSON file with any of these settings; flags take precedence.
    """

    dataset: str = "digits"
    data_dir: str | None = None
    model: str = "small"
    width: float = 1.0
    norm: Literal["bn", "tdbn"] | None = None
    time_steps: int = 4
    encoding: Literal["direct", "poisson", "gaussian"] = "direct"
    noise: float = 0.1
    dense: str | None = None
    seed: int = 0
    search_fraction: float = 0.2
    train_images: int | None = None
    search_images: int | None = None
    test_images: int | None = None
    method: str = "rounds"
    rounds: int = 6
    target_macs: float = 0.45
    tolerance: float = 0.02
    batch_size: int = 256
    member_chunk: int | None = None
    devices: int | None = None
    latency_batch: int = 256
    run_dir: str | None = None
    tensorboard: bool = False
    profile: int = 0
    resume: bool = False
    preset: str = "snes"
    config: str | None = None
    neuron: LIF = LIF()
    surrogate: Surrogate = Surrogate()
    training: Training = Training()
    attack: Attack = Attack()
    search: Search = PRESETS["snes"]

    def __post_init__(self) -> None:
        for name in PATHS:
            if isinstance(getattr(self, name), os.PathLike):
                object.__setattr__(self, name, os.fspath(getattr(self, name)))
        check_fields(self, limits=LIMITS)
        check_not_empty(self, PATHS)
        for name, options in (("model", MODELS), ("preset", PRESETS), ("method", METHODS)):
            if getattr(self, name) not in options:
                raise unknown(name, getattr(self, name), options)
        needs = f"method {self.method}" if self.method != "rounds" else None
        if self.search.splice == "price" and self.method == "rounds" and self.rounds:
            needs = "splice price"
        if needs and not (self.target_macs and self.rounds):
            raise InputError(f"{needs} needs a target: give target_macs and rounds above 0.")
        # building the library's own objects checks their values
        _ = self.recipe, self.finetune_recipe, self.search_attack, self.test_attack, self.split

    @property
    def split(self) -> SplitSettings:
        """How the data set is divided."""
        limits = self.train_images, self.search_images, self.test_images
        return SplitSettings(self.seed, self.search_fraction, *limits)

    @property
    def recipe(self) -> Recipe:
        """How the dense network is trained."""
        return self.training.recipe(self.attack.eps)

    @property
    def finetune_recipe(self) -> Recipe:
        """How a pruned network is fine-tuned after each round."""
        return self.training.finetune_recipe(self.attack.eps)

    @property
    def search_attack(self) -> PGD:
        """The attack behind the adversarial examples that the search shares."""
        return PGD(self.attack.eps, self.attack.search_steps)

    @property
    def test_attack(self) -> PGD:
        """The attack that measures networks for the archive."""
        return PGD(self.attack.eps, self.attack.test_steps, self.attack.test_restarts)


def check_not_empty(instance: Any, names: Sequence[str]) -> None:
    """Raises InputError for an empty text, which no path and no name is."""
    for name in names:
        if getattr(instance, name) == "":
            flag = f"--{name.replace('_', '-')}"
            raise InputError(
                f"{name} is empty, as a shell variable is that is not set: give {flag} a value, or "
                "leave it out."
            )


# Settings that say where data lie and how work is executed, and do not change the results. A
# resumed run may have others.
EXECUTION = (
    *("data_dir", "run_dir", "resume", "config", "member_chunk", "devices", "tensorboard"),
    "profile",
)


def settings(config: Config) -> dict:
    """The settings that determine a run's results, as JSON-compatible data.

    Raises:
      InputError: a part is one's own, which a file cannot hold.
    """
    parts = {
        "search.strategy": config.search.strategy,
        "search.selection": config.search.selection,
        "training.optimizer": config.training.optimizer,
    }
    for name, value in parts.items():
        if not isinstance(value, str):
            raise InputError(
                f"{name} is {shown(value)}, which the settings of a run cannot hold: give a name, "
                "or call the functions of the library."
            )
    fields = dataclasses.asdict(config)
    return {name: value for name, value in fields.items() if name not in EXECUTION}


def default_settings(preset: str | None) -> dict:
    """`settings` of a run with a preset and no other flags, as a file has them."""
    name = preset if preset in PRESETS else Config.preset
    return json.loads(json.dumps(settings(Config(preset=name, search=PRESETS[name]))))
