"""Settings of `ccsrp compare`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ccsrp_jax.pruning import METHODS
from ccsrp_jax.pruning.ablations import ABLATIONS
from ccsrp_jax.pruning.budget import Target
from ccsrp_jax.robustness.suites import PRESETS
from ccsrp_jax.utils.errors import check_number, unknown

KNOWN = METHODS | ABLATIONS
SPLITS = ("train", "search", "test")


@dataclass(frozen=True)
class Settings:
    """Compare pruning methods on the dense network of a finished run of the main job.

    Attributes:
      run: directory of the run, from which data, network, fine-tuning recipe and attacks are
        taken. With --only-report it may be a directory with a methods.json.
      out: directory of the results; by default RUN/methods.
      methods: names of methods; by default all of the library's. There are also ablations, such
        as "ccsrp: even widths".
      targets: highest costs of pruned networks, as fractions of the dense network's.
      measure: measure of these costs: `macs`, `params` or `synops`. With `macs`, the targets of
        methods that remove single weights are in parameters, as these save no MACs.
      seeds: random seeds of the methods and their fine-tuning.
      epochs: total epochs of fine-tuning, the same for every method.
      learning_rate: peak learning rate of fine-tuning; by default the run's.
      suite: attacks on the test images: `quick`, `standard`, `thorough`, or `pgd` for trials.
      train_images: number of training images, the first ones; by default all.
      search_images: number of search images, the first ones; by default all.
      test_images: number of test images, the first ones; by default all.
      data_dir: folder with prepared TFDS sets.
      only_report: only make methods.json, curves.png and index.html of the existing cells.
    """

    run: Annotated[str, tyro.conf.Positional]
    out: str | None = None
    methods: tuple[str, ...] = tuple(METHODS)
    targets: tuple[float, ...] = (0.75, 0.5, 0.25)
    measure: str = "macs"
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int = 12
    learning_rate: float | None = None
    suite: str = "quick"
    train_images: int | None = None
    search_images: int | None = None
    test_images: int | None = None
    data_dir: str | None = None
    only_report: bool = False

    def __post_init__(self) -> None:
        for name in self.methods:
            if name not in KNOWN:
                raise unknown("method", name, KNOWN)
        for fraction in self.targets:
            Target(self.measure, fraction)
        for seed in self.seeds:
            check_number("seed", seed, 0, 2**31 - 1)
        check_number("epochs", self.epochs, 1)
        if self.suite not in PRESETS:
            raise unknown("suite", self.suite, PRESETS)

    @property
    def folder(self) -> Path:
        if self.only_report and not self.out and (Path(self.run) / "methods.json").exists():
            return Path(self.run)
        return Path(self.out) if self.out else Path(self.run) / "methods"

    @property
    def fixed(self) -> dict:
        """The settings that all cells of a directory share."""
        return {
            "measure": self.measure,
            "epochs": self.epochs,
            "learning_rate": self.learning_rate,
            "suite": self.suite,
            **{f"{name}_images": getattr(self, f"{name}_images") for name in SPLITS},
        }
