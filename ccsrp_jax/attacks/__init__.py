"""Adversarial attacks in pixel space: by gradients, by queries, by decisions, and noise."""

from ccsrp_jax.attacks.apgd import APGD
from ccsrp_jax.attacks.base import Attack
from ccsrp_jax.attacks.mifgsm import MIFGSM
from ccsrp_jax.attacks.noise import Noise
from ccsrp_jax.attacks.one_step import NFGSM, rs_fgsm
from ccsrp_jax.attacks.pgd import PGD, fgsm
from ccsrp_jax.attacks.rays import RayS
from ccsrp_jax.attacks.registry import ATTACKS, NamedAttack
from ccsrp_jax.attacks.sapgd import SAPGD
from ccsrp_jax.attacks.seeded_search import SeededSearch
from ccsrp_jax.attacks.square import Square
from ccsrp_jax.attacks.threat_model import ThreatModel

__all__ = [
    "APGD",
    "ATTACKS",
    "MIFGSM",
    "NFGSM",
    "PGD",
    "SAPGD",
    "Attack",
    "NamedAttack",
    "Noise",
    "RayS",
    "SeededSearch",
    "Square",
    "ThreatModel",
    "fgsm",
    "rs_fgsm",
]
