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

from ccsrp_jax.attacks import PGD
from ccsrp_jax.coevolution import PRESETS, Search
from ccsrp_jax.errors import InputError, check_number, unknown
from ccsrp_jax.models import MODELS
from ccsrp_jax.neurons import LIF, Surrogate
from ccsrp_jax.training import Recipe


@dataclass(frozen=True)
class Training:
    """How the dense network is trained, and the pruned one fine-tuned after every round.

    Attributes:
      epochs: of the dense network.
      clean_epochs: how many of them, at the start, use clean images.
      finetune_epochs: after every round.
      batch_size: images a step.
      learning_rate: peak rate of the dense network's training.
      finetune_learning_rate: peak rate of fine-tuning.
      weight_decay: decoupled, on kernels only.
      clean_weight: weight of the clean images' loss beside the adversarial one's.
      adversarial: train and fine-tune on PGD examples.
      attack_steps: steps of that PGD.
      augmentation: `auto` takes what the data set calls for.
    """

    epochs: int = 20
    clean_epochs: int = 3
    finetune_epochs: int = 24
    batch_size: int = 128
    learning_rate: float = 5e-3
    finetune_learning_rate: float = 5e-3
    weight_decay: float = 1e-4
    clean_weight: float = 0.0
    adversarial: bool = True
    attack_steps: int = 3
    augmentation: Literal["auto", "none", "shift", "crop_flip"] = "auto"


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
        `svhn_cropped`, ...), or the path of an .npz with x_train, y_train, x_test, y_test.
      data_dir: where TFDS sets lie prepared.
      model: `small` (for digits), `medium` (28 or 32 pixels, on a CPU), `vgg11` or `vgg16`.
      time_steps: T, steps that the network runs for an image.
      seed: of splits, weights, batches, attacks and search.
      search_fraction: share of the training images held out for everything that selects
        (CCEP: 0.2).
      train_images: use at most this many training images.
      search_images: use at most this many search images.
      test_images: use at most this many test images.
      rounds: rounds of search and fine-tuning, at most.
      target_macs: stop after the round that leaves at most this share of the MACs.
      tolerance: of the archive's networks that lose at most this much accuracy and robust
        accuracy on the search images, the one with the fewest MACs is chosen.
      batch_size: images a call in scoring and evaluation.
      member_chunk: candidate masks a call on each device in scoring; by default what suits
        the device and fits into its memory.
      devices: how many of them score candidates; by default all there are.
      latency_batch: images a forward pass when latency is measured.
      run_dir: where the run is written; by default a new runs/DATASET-MODEL-TIME, or with
        --resume the latest run there.
      resume: continue the run from its last checkpoint.
      preset: `snes`, or `faithful` to the ancestor's search; the flags below change it.
      config: a TOML or JSON file with any of these settings; flags override it.
    """

    dataset: str = "digits"
    data_dir: str | None = None
    model: str = "small"
    time_steps: int = 4
    seed: int = 0
    search_fraction: float = 0.2
    train_images: int | None = None
    search_images: int | None = None
    test_images: int | None = None
    rounds: int = 6
    target_macs: float = 0.45
    tolerance: float = 0.02
    batch_size: int = 256
    member_chunk: int | None = None
    devices: int | None = None
    latency_batch: int = 256
    run_dir: str | None = None
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
        for name in ("time_steps", "batch_size", "member_chunk", "devices", "latency_batch"):
            value = getattr(self, name)
            check_number(name, 1 if value is None else value, 1)
        check_number("seed", self.seed, 0, 2**32 - 1)
        check_number("rounds", self.rounds, 0)
        check_number("target_macs", self.target_macs, 0, 1)
        check_number("tolerance", self.tolerance, 0, 1)
        check_number("attack_steps", self.training.attack_steps, 1)
        check_number("finetune_epochs", self.training.finetune_epochs, 0)
        # building the library's own objects checks their values
        _ = self.recipe, self.finetune_recipe, self.search_attack, self.test_attack

    @property
    def recipe(self) -> Recipe:
        """Of the dense network's training."""
        t = self.training
        attack = PGD(self.attack.eps, t.attack_steps) if t.adversarial else None
        return Recipe(
            epochs=t.epochs,
            batch_size=t.batch_size,
            learning_rate=t.learning_rate,
            weight_decay=t.weight_decay,
            adversarial=attack,
            clean_epochs=t.clean_epochs,
            clean_weight=t.clean_weight,
        )

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


LATEST = "runs/latest"  # a link to the newest run

# What may differ between a run and its continuation: where things lie and run, not what is
# computed.
PLACES = ("data_dir", "run_dir", "resume", "config", "member_chunk", "devices")


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
            case _:
                raise InputError(
                    f"setting {key} of the config file is {value!r}: give a number, a text, true "
                    "or false."
                )
    return flags
