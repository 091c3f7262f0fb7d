"""Adversarial attacks in pixel space: FGSM, PGD, APGD, SA-PGD, Square, noise."""

from ccsrp_jax.attacks.apgd import APGD, SAPGD
from ccsrp_jax.attacks.base import Attack
from ccsrp_jax.attacks.pgd import PGD, Noise, fgsm
from ccsrp_jax.attacks.square import Square

__all__ = ["APGD", "PGD", "SAPGD", "Attack", "Noise", "Square", "fgsm"]
