"""Settings of the main job: frozen dataclasses, read from a file, from flags, or both."""

import contextlib
import dataclasses
import io
import json
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.coevolution.settings import PRESETS, Search
from ccsrp_jax.networks.neurons import LIF, Surrogate
from ccsrp_jax.networks.zoo import MODELS
from ccsrp_jax.pruning import METHODS
from ccsrp_jax.training.trainer import Recipe
from ccsrp_jax.utils.errors import InputError, check_number, unknown


@dataclass(frozen=True)
class Training:
    """How the dense network is trained, and the pruned one fine-tuned after every round.

    Attributes:
      epochs: of the dense network.
      checkpoint_epochs: the dense network's training can be resumed from every so many epochs; 0
        trains it in one go.
      clean_epochs: how many of them, at the start, use clean images.
      finetune_epochs: after every round.
      batch_size: images a step.
      learning_rate: peak rate of the dense network's training.
      finetune_learning_rate: peak rate of fine-tuning.
      warmup: share of the steps in which the rate rises; a cosine then takes it to 0.
      weight_decay: on kernels only, decoupled for AdamW, in the gradient for SGD.
      optimizer: `adamw` or `sgd`.
      momentum: of SGD.
      clip_norm: longer gradients are cut to this length; 0 cuts none.
      loss: `ce`, cross-entropy of the mean output over time, or `tet`, temporal efficient
        training (Deng et al., ICLR 2022).
      tet_weight: of that loss's second term, which keeps outputs near the threshold.
      label_smoothing: share of the target spread over all classes.
      ema: decay of a moving average of the weights, which is then the result; 0 for none.
      precision: type that convolutions and dense layers compute in; all state is float32.
      remat: saves a GPU's memory for time in the backward pass: `none`; `time` keeps layers'
        outputs and spikes; `layers` keeps spikes alone.
      clean_weight: weight of the clean images' loss beside the adversarial one's.
      adversarial: train and fine-tune on PGD examples.
      attack_steps: steps of that PGD; 1 is FGSM from a random start.
      trades: beta of TRADES (Zhang et al., ICML 2019), clean loss + beta KL(clean || attacked);
        0 trains on the attacked images.
      trades_temperature: of that KL.
      orthogonal: beta of SNN-RAT's orthogonal weights, 0.004 in its scripts, which have no weight
        decay; 0 is off.
      sparse_gradient: weight of the sparse gradients' penalty (SR, ICML 2024); 0 is off.
      membrane: weight of the penalty on potentials near the threshold (MPD-SGR, AAAI 2026); 0
        is off.
      augmentation: `auto` takes what the data set calls for.
    """

    epochs: int = 20
    checkpoint_epochs: int = 10
    clean_epochs: int = 3
    finetune_epochs: int = 24
    batch_size: int = 128
    learning_rate: float = 5e-3
    finetune_learning_rate: float = 5e-3
    warmup: float = 0.1
    weight_decay: float = 1e-4
    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: float = 0.9
    clip_norm: float = 1.0
    loss: Literal["ce", "tet"] = "ce"
    tet_weight: float = 0.05
    label_smoothing: float = 0.0
    ema: float = 0.0
    precision: Literal["float32", "bfloat16"] = "float32"
    remat: Literal["none", "time", "layers"] = "none"
    clean_weight: float = 0.0
    adversarial: bool = True
    attack_steps: int = 3
    trades: float = 0.0
    trades_temperature: float = 1.0
    orthogonal: float = 0.0
    sparse_gradient: float = 0.0
    membrane: float = 0.0
    augmentation: Literal["auto", "none", "shift", "crop_flip", "crop_flip_cutout"] = "auto"


@dataclass(frozen=True)
class Attack:
    """The L-infinity attack, in pixel units where images span [0, 1].

    Attributes:
      eps: radius, in training, in the search and in the test; by default one of the 16
        grey levels that the digits are scanned in.
      search_steps: PGD steps of the shared adversarial set.
      test_steps: PGD steps when a network is measured for the archive, on the search images.
      test_restarts: random starts of that attack.
      suite: what attacks the dense and the chosen network on the test images: `quick`;
        `standard`, which takes many times as long; or `pgd` alone, for trials.
    """

    eps: float = 1 / 16
    search_steps: int = 10
    test_steps: int = 20
    test_restarts: int = 1
    suite: Literal["pgd", "quick", "standard"] = "quick"


@dataclass(frozen=True)
class Config:
    """Train a spiking network, prune it by robust cooperative coevolution, shrink it, report.

    Settings of the loop are ours where no source is named: what CCSRP itself uses is not
    known, and its ancestor CCEP fine-tunes for 100 epochs in each of 20 rounds.

    Attributes:
      dataset: `digits`, a TFDS image-classification set (`cifar10`, `mnist`,
        `svhn_cropped`, ...), the path of an .npz with x_train, y_train, x_test, y_test, `nmnist`,
        or the path of an .npz with recordings of events (see `data.load`).
      data_dir: where TFDS sets lie prepared, or N-MNIST's folders Train and Test.
      model: `small` (for digits); `medium` or `resnet8` (28 to 34 pixels, on a CPU); `vgg11`,
        `vgg16`, `6conv2fc`, `resnet18`, `resnet19` or `sew_resnet18`.
      width: multiplies the numbers of filters of the model.
      norm: `bn`, or `tdbn`, threshold-dependent; by default the model's own.
      time_steps: T, steps that the network runs for an image, and frames of a recording.
      encoding: what the network sees of an image in each step: `direct`, the image; `poisson`,
        spikes drawn at its grey levels; `gaussian`, the image and noise. Recordings of events
        come as frames, a step each, and take none of them. What draws at random is slower to
        judge: 16 passes vote on an answer, and the suite averages 10 gradients or more, while
        PGD in training and on the search images draws once a step.
      noise: standard deviation of the `gaussian` encoding, in pixel units.
      dense: file of a trained network to begin with (`networks/round00.safetensors` of another
        run); model, width, norm, neuron and encoding are then its own, and nothing is trained.
      seed: of splits, weights, batches, attacks and search.
      search_fraction: share of the training images held out for everything that selects
        (CCEP: 0.2).
      train_images: use at most this many training images.
      search_images: use at most this many search images.
      test_images: use at most this many test images.
      method: `rounds` of the search that `preset` and `search` describe, or a method of
        `methods.METHODS`, such as `l1`, `hydra` or `sd-snn`; see
        experiments/compare_methods.py. It meets `target_macs`, or that share of the parameters if
        it removes single weights, and has all epochs of fine-tuning that the rounds would have.
      rounds: rounds of search and fine-tuning, at most.
      target_macs: stop after the round that leaves at most this share of the MACs.
      tolerance: of the archive's networks that lose at most this much accuracy and robust
        accuracy on the search images, the one with the fewest MACs is chosen.
      batch_size: images a call in scoring and evaluation.
      member_chunk: candidate masks a call on each device in scoring; by default what suits
        the device and fits into its memory.
      devices: how many of them share batches in training and candidates in scoring; by default
        all there are. JAX_NUM_CPU_DEVICES in the environment makes devices of a CPU's cores.
      latency_batch: images a forward pass when latency is measured.
      run_dir: where the run is written; by default a new runs/DATASET-MODEL-TIME, or with
        --resume the latest run there.
      tensorboard: also write the metrics for TensorBoard, under the run's directory.
      resume: continue the run from its last checkpoint.
      preset: `snes`, or `faithful` to the ancestor's search; the flags below change it.
      config: a TOML or JSON file with any of these settings; flags override it.
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
    resume: bool = False
    preset: str = "snes"
    config: str | None = None
    neuron: LIF = LIF()
    surrogate: Surrogate = Surrogate()
    training: Training = Training()
    attack: Attack = Attack()
    search: Search = PRESETS["snes"]

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise unknown("model", self.model, MODELS)
        if self.preset not in PRESETS:
            raise unknown("preset", self.preset, PRESETS)
        if self.method not in METHODS:
            raise unknown("method", self.method, METHODS)
        needs = f"method {self.method}" if self.method != "rounds" else None
        if self.search.splice == "price" and self.method == "rounds" and self.rounds:
            needs = "splice price"
        if needs and not (self.target_macs and self.rounds):
            raise InputError(f"{needs} needs a target: give target_macs and rounds above 0.")
        for name in ("time_steps", "batch_size", "member_chunk", "devices", "latency_batch"):
            value = getattr(self, name)
            check_number(name, 1 if value is None else value, 1)
        check_number("width", self.width, 0, above=True)
        check_number("noise", self.noise, 0)
        check_number("seed", self.seed, 0, 2**32 - 1)
        check_number("rounds", self.rounds, 0)
        check_number("target_macs", self.target_macs, 0, 1)
        check_number("tolerance", self.tolerance, 0, 1)
        check_number("attack_steps", self.training.attack_steps, 1)
        check_number("checkpoint_epochs", self.training.checkpoint_epochs, 0)
        check_number("finetune_epochs", self.training.finetune_epochs, 0)
        # building the library's own objects checks their values
        _ = self.recipe, self.finetune_recipe, self.search_attack, self.test_attack

    @property
    def recipe(self) -> Recipe:
        """Of the dense network's training."""
        t = self.training
        attack = PGD(self.attack.eps, t.attack_steps) if t.adversarial else None
        same = {each.name for each in dataclasses.fields(Recipe)} - {"adversarial"}
        return Recipe(adversarial=attack, **{name: getattr(t, name) for name in sorted(same)})

    @property
    def finetune_recipe(self) -> Recipe:
        """Of the fine-tuning after each round; adversarial from its first epoch."""
        t = self.training
        return dataclasses.replace(
            self.recipe,
            epochs=t.finetune_epochs,
            learning_rate=t.finetune_learning_rate,
            clean_epochs=0,
        )

    @property
    def search_attack(self) -> PGD:
        return PGD(self.attack.eps, self.attack.search_steps)

    @property
    def test_attack(self) -> PGD:
        return PGD(self.attack.eps, self.attack.test_steps, self.attack.test_restarts)


LISTS = ("levels",)  # settings that are lists


LATEST = "runs/latest"  # a link to the newest run


# What may differ between a run and its continuation: where things lie and run, not what is
# computed.
PLACES = ("data_dir", "run_dir", "resume", "config", "member_chunk", "devices", "tensorboard")


def settings(config: Config) -> dict:
    """The settings that fix a run's result, as JSON-able data."""
    fields = dataclasses.asdict(config)
    return {name: value for name, value in fields.items() if name not in PLACES}


def parse(args: Sequence[str] | None = None) -> Config:
    """The settings from flags, over those of `--config`, over those of `--preset`.

    A file's settings are read as flags that come before the others, so a file and the
    same flags give the same run; so are those of a run that is resumed.

    Raises:
      InputError: a value that cannot be used, or a file that cannot be read.
    """
    args = list(sys.argv[1:] if args is None else args)
    path = _last(args, "config")
    flags = (_flags(_read(Path(path))) if path else []) + args
    started = Path(_last(flags, "run-dir") or LATEST) / "config.json"
    if "--resume" in args and started.exists():
        flags = _flags(_read(started)) + flags
    preset = _last(flags, "preset") or Config.preset
    if preset not in PRESETS:
        raise unknown("preset", preset, PRESETS)
    default = Config(preset=preset, search=PRESETS[preset])
    return read_flags(Config, flags, default)


def read_flags(kind: type, flags: Sequence[str], default: Any = tyro.MISSING_NONPROP) -> Any:
    """A settings dataclass from flags.

    Raises:
      InputError: flags that cannot be used, in one sentence.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, default=default, args=list(flags))
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        raise InputError(_sentence(said.getvalue())) from None


def _sentence(framed: str) -> str:
    """What the flag parser's framed message says, in one line."""
    rows = [row.strip("\u2502 ") for row in framed.splitlines()]
    rows = [row for row in rows if row and row[0] not in "\u256d\u2570"]
    end = next((i for i, row in enumerate(rows) if row.startswith("\u2500")), len(rows))
    return " ".join(rows[:end]).rstrip(".") + ": see --help."


def _last(args: Sequence[str], name: str) -> str | None:
    """The value of `--name` where it comes last; both `--name value` and `--name=value`."""
    value = None
    for i, arg in enumerate(args):
        if arg == f"--{name}" and i + 1 < len(args):
            value = args[i + 1]
        elif arg.startswith(f"--{name}="):
            value = arg.partition("=")[2]
    return value


def _read(path: Path) -> dict:
    try:
        text = path.read_text()
        table = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise InputError(
            f"config file {path} cannot be read ({error.strerror}): give a TOML or JSON file."
        ) from error
    except ValueError as error:
        raise InputError(f"config file {path} is not valid ({error}): mend that line.") from error
    if not isinstance(table, dict):
        raise InputError(f"config file {path} holds no table of settings: give names and values.")
    return table


def _flags(table: dict, prefix: str = "") -> list[str]:
    """The flags that say what a settings file says."""
    flags = []
    for key, value in table.items():
        name = prefix + key.replace("_", "-")
        match value:
            case dict():
                flags += _flags(value, name + ".")
            case bool():
                flags.append(f"--{name}" if value else f"--{prefix}no-{key.replace('_', '-')}")
            case None | int() | float() | str():
                flags.append(f"--{name}={value}")
            case list() if key in LISTS:
                flags += [f"--{name}", *map(str, value)]
            case _:
                raise InputError(
                    f"setting {key} of the config file is {value!r}: give a number, a text, true "
                    "or false."
                )
    return flags
