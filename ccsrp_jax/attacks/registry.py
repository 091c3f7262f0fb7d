"""Named attacks, for suites that are written as text.

To add an attack, write its class in a module of its own and add a line to `ATTACKS`.
`TRAINING_ATTACKS` are those that a run trains on.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ccsrp_jax.attacks.apgd import APGD
from ccsrp_jax.attacks.base import Attack, AttackKind
from ccsrp_jax.attacks.mifgsm import MIFGSM
from ccsrp_jax.attacks.noise import Noise
from ccsrp_jax.attacks.one_step import NFGSM, RS_FGSM_STEP, rs_fgsm
from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.attacks.rays import RayS
from ccsrp_jax.attacks.sapgd import SAPGD
from ccsrp_jax.attacks.seeded_search import SeededSearch
from ccsrp_jax.attacks.square import Square
from ccsrp_jax.attacks.threat_model import NORMS, Norm, ThreatModel
from ccsrp_jax.utils.errors import InputError, unknown


@dataclass(frozen=True)
class NamedAttack:
    """An attack class and the settings that its name stands for.

    Attributes:
      attack: a dataclass with a field `eps`, and `norm` and `samples` where it has these
        settings; its class attributes `kind` and `norms` are as in `attacks.base`.
      settings: further fields by name.
    """

    attack: type
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> AttackKind:
        """Whether it uses gradients, queries or neither."""
        return getattr(self.attack, "kind", "white box")

    @property
    def norms(self) -> tuple[Norm, ...]:
        """Norms that it supports."""
        return getattr(self.attack, "norms", NORMS)

    def build(self, threat: ThreatModel, samples: int = 1) -> Attack:
        """The attack in a ball; `samples` draws for the gradient of a stochastic network."""
        given = {"eps": threat.eps, "norm": threat.norm, "samples": samples}
        fields = {each.name for each in dataclasses.fields(self.attack)}
        given = {name: value for name, value in given.items() if name in fields}
        return self.attack(**given, **self.settings)


FGSM = {"steps": 1, "relative_step": 1.0}  # as `pgd.fgsm`

ATTACKS: dict[str, NamedAttack] = {
    "noise": NamedAttack(Noise),
    "fgsm": NamedAttack(PGD, FGSM | {"random_start": False}),
    "r-fgsm": NamedAttack(PGD, FGSM | {"random_start": True}),
    "rs-fgsm": NamedAttack(PGD, {"steps": 1, "relative_step": RS_FGSM_STEP}),
    "pgd": NamedAttack(PGD, {"steps": 20}),
    "pgd-100": NamedAttack(PGD, {"steps": 100}),
    "cw": NamedAttack(PGD, {"steps": 50, "loss": "margin"}),
    "apgd-ce": NamedAttack(APGD),
    "apgd-dlr": NamedAttack(APGD, {"loss": "dlr"}),
    "apgd-t": NamedAttack(APGD, {"loss": "dlr_targeted"}),
    "sa-pgd": NamedAttack(SAPGD),
    "mi-fgsm": NamedAttack(MIFGSM),
    "square": NamedAttack(Square),
    "rays": NamedAttack(RayS),
    "seeded-search": NamedAttack(SeededSearch, {"budget": 4000}),
}

# Attacks of training by name, from radius and number of steps; N-FGSM leaves the ball, and is
# therefore none of `ATTACKS`.
TRAINING_ATTACKS: dict[str, Callable[[float, int], PGD | NFGSM]] = {
    "pgd": PGD,
    "rs-fgsm": lambda eps, steps: rs_fgsm(eps),
    "n-fgsm": lambda eps, steps: NFGSM(eps),
}


def named_attack(name: str, norm: Norm) -> NamedAttack:
    """An entry of `ATTACKS`.

    Raises:
      InputError: an unknown attack, or one that does not support the norm.
    """
    if name not in ATTACKS:
        raise unknown("attack", name, ATTACKS)
    if norm not in ATTACKS[name].norms:
        raise InputError(f"attack {name} has no {norm} variant: leave it out or take linf.")
    return ATTACKS[name]
