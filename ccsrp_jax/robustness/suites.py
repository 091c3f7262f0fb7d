"""Attack suites: which attacks, and through which gradients."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from ccsrp_jax.attacks.apgd import APGD
from ccsrp_jax.attacks.base import Attack
from ccsrp_jax.attacks.noise import Noise
from ccsrp_jax.attacks.pgd import PGD, fgsm
from ccsrp_jax.attacks.sapgd import SAPGD
from ccsrp_jax.attacks.square import Square
from ccsrp_jax.attacks.threat_model import Norm
from ccsrp_jax.networks.classifier import ClassifierFn
from ccsrp_jax.networks.gradients import (
    AdaptiveSharpness,
    Backward,
    Hart,
    RateGradient,
    Relu,
    StraightThrough,
    Surrogate,
)
from ccsrp_jax.utils.errors import InputError, unknown

KINDS = ("noise", "white box", "transfer", "black box")  # in the order of a suite


class View(NamedTuple):
    """A classifier to differentiate: the network's own, or a stand-in for it."""

    logits: ClassifierFn
    params: Any


@dataclass(frozen=True)
class Entry:
    """One attack of a suite.

    Attributes:
      name: as it is reported.
      attack: see `attacks`; its `parts`, where it has them, are run one after another on
        the images that are left.
      through: name of the view that it differentiates.
      kind: `white box`, `transfer` (the view is another network), `black box` (no
        gradients) or `noise`.
      everywhere: run on all correctly classified images, as a reference.
    """

    name: str
    attack: Attack
    through: str = "own"
    kind: Literal["noise", "white box", "transfer", "black box"] = "white box"
    everywhere: bool = False


# ATan is SpikingJelly's shape; the others and the widths are those of the ensemble of
# Oezdenizci and Legenstein, TMLR 2024.
WIDTHS = (0.25, 0.5, 2.0, 4.0)


BACKWARDS: dict[str, Backward] = {
    "assg": AdaptiveSharpness(),
    "bptr": RateGradient("bptr"),
    "rga": RateGradient("rga"),
    "hart": Hart(),
    "hart:0.5": Hart(Surrogate("triangle", 0.5)),
    "hart:2": Hart(Surrogate("triangle", 2.0)),
    "straight": StraightThrough(),
    "relu": Relu(),
} | {
    f"{name}:{width:g}": Surrogate(name, width)
    for name in ("atan", "triangle", "rectangle", "sigmoid")
    for width in (0.25, 0.5, 1.0, 2.0, 4.0)
}


def views(logits: ClassifierFn, params: Any) -> dict[str, View]:
    """What attacks may differentiate: the network itself, `own`, and other backward passes.

    The others need a classifier with a method `with_backward`, like `network.Classifier`.
    """
    known = {"own": View(logits, params)}
    if hasattr(logits, "with_backward"):
        for name, backward in BACKWARDS.items():
            known[name] = View(logits.with_backward(backward), params)
    return known


def pgd(eps: float, available: Mapping[str, View], samples: int, norm: Norm) -> list[Entry]:
    """PGD alone, as most papers report it: for trials, and not to be believed by itself."""
    return [_noise(eps, norm), _reference(eps, samples, norm, restarts=2)]


def quick(eps: float, available: Mapping[str, View], samples: int, norm: Norm) -> list[Entry]:
    """A first opinion, in less than a minute on two cores for a small network."""
    margin = _margins(eps, 25, available, samples, norm)[0]
    entries = [
        _noise(eps, norm),
        _reference(eps, samples, norm, restarts=2),
        margin,
        Entry("APGD-CE 15", APGD(eps, 15, norm=norm, samples=samples), margin.through),
    ]
    if norm == "linf":
        entries.append(Entry("Square 80", Square(eps, 80, samples=samples), kind="black box"))
    return entries + _transfers(eps, 10, available, samples, norm)


def standard(eps: float, available: Mapping[str, View], samples: int, norm: Norm) -> list[Entry]:
    """The headline: APGD at AutoAttack's budget through two gradients, an ensemble, Square."""
    ours = [name for name in ("own", "assg") if name in available]
    ensemble = [
        f"{name}:{width:g}"
        for name in ("atan", "triangle")
        for width in WIDTHS
        if f"{name}:{width:g}" in available
    ] + [name for name in ("bptr", "rga", "hart", "hart:0.5", "straight") if name in available]
    entries = [
        _noise(eps, norm),
        _reference(eps, samples, norm),
        Entry("FGSM", fgsm(eps, norm=norm, samples=samples)),
        Entry("R-FGSM", fgsm(eps, random_start=True, norm=norm, samples=samples)),
        *_margins(eps, 100, available, samples, norm),
    ]
    entries += [
        Entry("APGD-CE 100", APGD(eps, 100, norm=norm, samples=samples), name) for name in ours
    ]
    if norm == "linf":
        entries.append(Entry("SA-PGD 100", SAPGD(eps, 100, samples=samples), ours[-1]))
    entries += [
        Entry("PGD 20", PGD(eps, 20, norm=norm, samples=samples), name) for name in ensemble
    ]
    entries += [
        Entry(
            "APGD-DLR 100 x 9",
            APGD(eps, 100, loss="dlr_targeted", targets=9, norm=norm, samples=samples),
            name,
        )
        for name in reversed(ours)
    ]
    entries += _transfers(eps, 40, available, samples, norm)
    if norm == "linf":
        entries.append(Entry("Square 5000", Square(eps, samples=samples), kind="black box"))
    return entries


def _margins(eps, steps, available, samples, norm):
    """On the margin, through surrogates half as wide as the usual ones.

    The margin keeps its slope where the softmax saturates: in
    experiments/results/compare_autoattack.json the first of these breaks two thirds of what
    falls after PGD on the cross-entropy.
    """
    wanted = ("atan:0.5", "sigmoid:0.5", "triangle:0.5", "atan:0.25", "assg")
    attack = APGD(eps, steps, loss="margin", norm=norm, samples=samples)
    names = [name for name in wanted if name in available] or ["own"]
    return [Entry(f"APGD-margin {steps}", attack, name) for name in names]


def _noise(eps, norm):
    return Entry("noise", Noise(eps, norm), kind="noise", everywhere=True)


def _reference(eps, samples, norm, restarts=1):
    name = "PGD 20" if restarts == 1 else f"PGD 20 x {restarts}"
    return Entry(name, PGD(eps, 20, restarts, norm=norm, samples=samples), everywhere=True)


def _transfers(eps, steps, available, samples, norm):
    """From the ReLU network and from every other network that was given."""
    others = [name for name in available if name != "own" and name not in BACKWARDS]
    attack = PGD(eps, steps, norm=norm, samples=samples)
    return [
        Entry(f"PGD {steps}", attack, name, "transfer")
        for name in [name for name in ("relu",) if name in available] + others
    ]


PRESETS = {"pgd": pgd, "quick": quick, "standard": standard}


EOT = {"pgd": 10, "quick": 10, "standard": 20}  # draws of a stochastic network's gradient


# What a list of one's own may name: (eps, samples, norm) -> attack
ATTACKS = {
    "noise": lambda eps, samples, norm: Noise(eps, norm),
    "fgsm": lambda eps, samples, norm: fgsm(eps, norm=norm, samples=samples),
    "r-fgsm": lambda eps, samples, norm: fgsm(eps, random_start=True, norm=norm, samples=samples),
    "pgd": lambda eps, samples, norm: PGD(eps, 20, norm=norm, samples=samples),
    "pgd-100": lambda eps, samples, norm: PGD(eps, 100, norm=norm, samples=samples),
    "cw": lambda eps, samples, norm: PGD(eps, 50, loss="margin", norm=norm, samples=samples),
    "apgd-ce": lambda eps, samples, norm: APGD(eps, norm=norm, samples=samples),
    "apgd-dlr": lambda eps, samples, norm: APGD(eps, loss="dlr", norm=norm, samples=samples),
    "apgd-t": lambda eps, samples, norm: APGD(eps, loss="dlr_targeted", norm=norm, samples=samples),
    "sa-pgd": lambda eps, samples, norm: SAPGD(eps, samples=samples),
    "square": lambda eps, samples, norm: Square(eps, samples=samples),
}


LINF_ONLY = ("sa-pgd", "square")


def named(text: str, eps: float, samples: int = 1, norm: Norm = "linf") -> Entry:
    """The entry that `ATTACK` or `ATTACK:VIEW` stands for, as in `apgd-ce:assg`.

    Raises:
      InputError: an attack that does not exist, or not in this norm.
    """
    name, _, through = text.partition(":")
    if name not in ATTACKS:
        raise unknown("attack", name, ATTACKS)
    if norm != "linf" and name in LINF_ONLY:
        raise InputError(f"attack {name} has no {norm} variant: leave it out or take linf.")
    kind, through = (
        {"square": "black box", "noise": "noise"}.get(name, "white box"),
        through or "own",
    )
    if kind != "white box" and through != "own":
        raise InputError(f"attack {name} differentiates nothing: leave out {through!r}.")
    if through == "relu" or through not in ("own", *BACKWARDS):
        kind = "transfer"
    return Entry(name, ATTACKS[name](eps, samples, norm), through, kind, name == "noise")


def entries_of(
    wanted: str | Sequence[Entry],
    eps: float,
    available: Mapping[str, View],
    *,
    samples: int = 1,
    norm: Norm = "linf",
) -> list[Entry]:
    """A preset's attacks, or one's own, in the order in which they are run.

    Raises:
      InputError: a preset or a view that does not exist, or no attack at all.
    """
    if isinstance(wanted, str):
        if wanted not in PRESETS:
            raise unknown("suite preset", wanted, PRESETS)
        entries = PRESETS[wanted](eps, available, samples, norm)
    else:
        entries = list(wanted)
    if not entries:
        raise InputError("the suite holds no attack: give a preset or at least one entry.")
    for entry in entries:
        if entry.through not in available:
            raise unknown(f"view of the attack {entry.name!r}", entry.through, available)
    return sorted(entries, key=lambda entry: KINDS.index(entry.kind))
