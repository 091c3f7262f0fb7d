"""Attack suites: which attacks are run, and which gradient sources they differentiate."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from ccsrp_jax.attacks.apgd import APGD
from ccsrp_jax.attacks.base import Attack
from ccsrp_jax.attacks.mifgsm import MIFGSM
from ccsrp_jax.attacks.noise import Noise
from ccsrp_jax.attacks.pgd import PGD, fgsm
from ccsrp_jax.attacks.rays import RayS
from ccsrp_jax.attacks.registry import named_attack
from ccsrp_jax.attacks.sapgd import SAPGD
from ccsrp_jax.attacks.seeded_search import SeededSearch
from ccsrp_jax.attacks.square import Square
from ccsrp_jax.attacks.threat_model import ThreatModel
from ccsrp_jax.robustness.gradient_sources import (
    BACKWARDS,
    OWN,
    RANDOM,
    RELU,
    TWINS,
    GradientSource,
    gradient_sources,
    is_transfer,
)
from ccsrp_jax.utils.errors import InputError, shown, unknown

__all__ = [
    "BACKWARDS",
    "EOT_SAMPLES",
    "PRESETS",
    "AttackSpec",
    "GradientSource",
    "build_suite",
    "gradient_sources",
    "parse_attack",
    "price",
]

Kind = Literal["noise", "white box", "transfer", "black box", "seeded"]
KINDS: tuple[Kind, ...] = get_args(Kind)  # in the order in which a suite runs them


@dataclass(frozen=True)
class AttackSpec:
    """One attack of a suite.

    Attributes:
      name: as it is reported.
      attack: see `attacks.base`; its `parts`, where it has them, are run one after another on
        the images that are left.
      source: name of the gradient source that it differentiates.
      run_on_all: run on all correctly classified images, as a reference, and not only on those
        that no attack has broken yet.
    """

    name: str
    attack: Attack
    source: str = OWN
    run_on_all: bool = False

    @property
    def kind(self) -> Kind:
        """The attack's own kind, or `transfer` if it differentiates another network."""
        kind: Kind | None = getattr(self.attack, "kind", None)
        if kind is None or kind == "white box":
            return "transfer" if is_transfer(self.source) else "white box"
        return kind


Sources = Mapping[str, GradientSource]
Preset = Callable[[ThreatModel, Sources, int], list[AttackSpec]]  # threat, sources, samples

# ATan is SpikingJelly's shape; the other shapes and the widths are those of the ensemble of
# Oezdenizci and Legenstein, TMLR 2024.
ENSEMBLE_WIDTHS = (0.25, 0.5, 2.0, 4.0)


def pgd(threat: ThreatModel, sources: Sources, samples: int) -> list[AttackSpec]:
    """PGD alone, as most papers report it: for quick trials, unreliable by itself."""
    return [_noise(threat), _reference(threat, samples, restarts=2)]


def quick(threat: ThreatModel, sources: Sources, samples: int) -> list[AttackSpec]:
    """A first estimate, in less than a minute on two cores for a small network."""
    eps, norm = threat.eps, threat.norm
    on_margin = _margin_attacks(threat, 25, sources, samples)[0]
    suite = [
        _noise(threat),
        _reference(threat, samples, restarts=2),
        on_margin,
        AttackSpec("APGD-CE 15", APGD(eps, 15, norm=norm, samples=samples), on_margin.source),
    ]
    if norm == "linf":
        suite.append(AttackSpec("Square 80", Square(eps, 80, samples=samples)))
    return suite + _transfers(threat, 10, (RELU,), sources, samples)


def standard(threat: ThreatModel, sources: Sources, samples: int) -> list[AttackSpec]:
    """For reported results: APGD at AutoAttack's budget through two gradients, an ensemble of
    surrogate gradients, and Square."""
    eps, norm = threat.eps, threat.norm
    main = [name for name in (OWN, "assg") if name in sources]
    apgd_ce = APGD(eps, 100, norm=norm, samples=samples)
    apgd_dlr = APGD(eps, 100, loss="dlr_targeted", targets=9, norm=norm, samples=samples)
    pgd_20 = PGD(eps, 20, norm=norm, samples=samples)
    on_margin = _margin_attacks(threat, 100, sources, samples)
    again = APGD(eps, 100, 2, loss="margin", norm=norm, samples=samples)
    suite = [
        _noise(threat),
        _reference(threat, samples),
        AttackSpec("FGSM", fgsm(eps, norm=norm, samples=samples)),
        AttackSpec("R-FGSM", fgsm(eps, random_start=True, norm=norm, samples=samples)),
        *on_margin,
        # restarts of this one break most for their price: experiments/results/attack_strength.json
        AttackSpec("APGD-margin 100 x 2", again, on_margin[0].source),
        *(AttackSpec("APGD-CE 100", apgd_ce, name) for name in main),
    ]
    if norm == "linf":
        suite.append(AttackSpec("SA-PGD 100", SAPGD(eps, 100, samples=samples), main[-1]))
    suite += [AttackSpec("PGD 20", pgd_20, name) for name in _ensemble(sources)]
    suite += [AttackSpec("APGD-DLR 100 x 9", apgd_dlr, name) for name in reversed(main)]
    suite += _transfers(threat, 40, TWINS, sources, samples)
    if norm == "linf":
        suite += _random_widths(threat, 10, sources, samples)
        suite.append(AttackSpec("Square 5000", Square(eps, samples=samples)))
        suite += _searches(threat, 1000, 4, samples)
    return suite


def thorough(threat: ThreatModel, sources: Sources, samples: int) -> list[AttackSpec]:
    """For figures that others will try to lower: `standard`, and several times its budget of
    the attacks that go on breaking images with more of it."""
    eps, norm = threat.eps, threat.norm
    suite = [
        spec for spec in standard(threat, sources, samples) if not spec.name.startswith(REPEATED)
    ]
    again = APGD(eps, 100, 5, loss="margin", norm=norm, samples=samples)
    names = {spec.source for spec in _margin_attacks(threat, 100, sources, samples)}
    suite += [AttackSpec("APGD-margin 100 x 5", again, name) for name in sorted(names)]
    if norm == "linf":
        suite += _random_widths(threat, 50, sources, samples)
        suite += _searches(threat, 2000, 10, samples)
    return suite


REPEATED = ("MI-FGSM", "RayS", "seeded search")  # which `thorough` runs at budgets of its own


def _noise(threat):
    return AttackSpec("noise", Noise(threat.eps, threat.norm), run_on_all=True)


def _reference(threat, samples, restarts=1):
    name = "PGD 20" if restarts == 1 else f"PGD 20 x {restarts}"
    attack = PGD(threat.eps, 20, restarts, norm=threat.norm, samples=samples)
    return AttackSpec(name, attack, run_on_all=True)


def _margin_attacks(threat, steps, sources, samples):
    """APGD on the margin, mostly through surrogates of half the usual width.

    The margin keeps its gradient where the softmax saturates: in
    experiments/results/compare_autoattack.json the first of these attacks breaks two thirds of
    the images that are broken after PGD on the cross-entropy.
    """
    wanted = ("atan:0.5", "sigmoid:0.5", "triangle:0.5", "atan:0.25", "assg")
    attack = APGD(threat.eps, steps, loss="margin", norm=threat.norm, samples=samples)
    names = [name for name in wanted if name in sources] or [OWN]
    return [AttackSpec(f"APGD-margin {steps}", attack, name) for name in names]


def _ensemble(sources):
    """Names of the surrogate gradients of the standard suite's ensemble."""
    names = [f"{name}:{width:g}" for name in ("atan", "triangle") for width in ENSEMBLE_WIDTHS]
    names += ["bptr", "rga", "hart", "hart:0.5", "straight"]
    return [name for name in names if name in sources]


def _random_widths(threat, restarts, sources, samples):
    """MI-FGSM on the margin and towards every class, through surrogates of random widths."""
    if RANDOM not in sources:
        return []
    margin = MIFGSM(threat.eps, 40, restarts, samples=samples)
    targeted = MIFGSM(
        threat.eps, 40, max(restarts // 10, 1), loss="margin_targeted", samples=samples
    )
    return [
        AttackSpec(f"MI-FGSM 40 x {restarts}", margin, RANDOM),
        AttackSpec("MI-FGSM-T 40 x 9", targeted, RANDOM),
    ]


def _searches(threat, budget, rounds, samples):
    """A decision-based attack, then a search from the best perturbations so far."""
    decisions = RayS(threat.eps, budget, samples=samples)
    search = SeededSearch(threat.eps, budget, rounds, samples)
    return [
        AttackSpec(f"RayS {budget}", decisions),
        AttackSpec(f"seeded search {rounds} x {budget}", search),
    ]


def _transfers(threat, steps, twins, sources, samples):
    """PGD on networks of the same weights with smooth units, and on others that were given."""
    others = [name for name in sources if name != OWN and name not in BACKWARDS]
    attack = PGD(threat.eps, steps, norm=threat.norm, samples=samples)
    names = [name for name in twins if name in sources] + others
    return [AttackSpec(f"PGD {steps}", attack, name) for name in names]


PRESETS: dict[str, Preset] = {
    "pgd": pgd,
    "quick": quick,
    "standard": standard,
    "thorough": thorough,
}

# Draws over which a stochastic network's gradient is averaged (expectation over transformation).
EOT_SAMPLES = {"pgd": 10, "quick": 10, "standard": 20, "thorough": 20}


GRADIENT_PASSES = 3  # what a gradient costs, in forward passes: the backward pass is about two


class Price(NamedTuple):
    """What a suite computes for an image that none of its attacks breaks."""

    gradients: int
    queries: int

    @property
    def passes(self) -> int:
        """Both together, in forward passes."""
        return GRADIENT_PASSES * self.gradients + self.queries


def price(specs: Sequence[AttackSpec]) -> Price:
    """The price of a suite; attacks that declare no cost are not in it."""
    attacks = [spec.attack for spec in specs]
    return Price(
        *(sum(getattr(each, cost, 0) for each in attacks) for cost in ("gradients", "queries"))
    )


def parse_attack(text: str, threat: ThreatModel, samples: int = 1) -> AttackSpec:
    """The attack that `ATTACK` or `ATTACK:SOURCE` stands for, as in `apgd-ce:assg`.

    Args:
      text: a name of `attacks.ATTACKS`, and a gradient source, by default `own`.
      threat: the ball.
      samples: draws over which a stochastic network's gradient is averaged.

    Raises:
      InputError: an unknown attack, one that does not support the norm, or a gradient source
        for an attack that needs none.
    """
    name, _, source = text.partition(":")
    source = source or OWN
    named = named_attack(name, threat.norm)
    if named.kind != "white box" and source != OWN:
        raise InputError(f"attack {name} differentiates nothing: leave out {source!r}.")
    return AttackSpec(name, named.build(threat, samples), source, named.kind == "noise")


def build_suite(
    suite: str | Sequence[AttackSpec],
    threat: ThreatModel,
    sources: Sources,
    *,
    samples: int = 1,
) -> list[AttackSpec]:
    """The attacks of a preset or of a given list, in the order in which they are run.

    Args:
      suite: a name of `PRESETS`, or attacks.
      threat: the ball, for a preset.
      sources: the gradient sources there are.
      samples: for a preset, draws over which a stochastic network's gradient is averaged.

    Raises:
      InputError: an unknown preset or gradient source, or no attack at all.
    """
    if isinstance(suite, str):
        if suite not in PRESETS:
            raise unknown("suite preset", suite, PRESETS)
        specs = PRESETS[suite](threat, sources, samples)
    elif isinstance(suite, Iterable):
        specs = list(suite)
    else:
        raise InputError(f"the suite is {shown(suite)}: give a preset or a list of attacks.")
    if not specs:
        raise InputError("the suite holds no attack: give a preset or at least one attack.")
    for spec in specs:
        if not isinstance(spec, AttackSpec):
            raise InputError(
                f"the suite holds {shown(spec)}: give AttackSpec(name, attack), or for a name of "
                "`ATTACKS` parse_attack(name, threat)."
            )
        if spec.source not in sources:
            raise unknown(f"gradient source of the attack {spec.name!r}", spec.source, sources)
    return sorted(specs, key=lambda spec: KINDS.index(spec.kind))
