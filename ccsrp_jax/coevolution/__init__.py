"""Cooperative coevolution of filter masks: one sub-population per layer."""

from ccsrp_jax.coevolution.fitness import Scores, score
from ccsrp_jax.coevolution.racing import Racing
from ccsrp_jax.coevolution.search import RoundResult, search_round
from ccsrp_jax.coevolution.settings import PRESETS, Search
from ccsrp_jax.coevolution.subpopulation import GroupResult, search_group
from ccsrp_jax.coevolution.subproblem import make_task
from ccsrp_jax.coevolution.task import Task

__all__ = [
    "PRESETS",
    "GroupResult",
    "Racing",
    "RoundResult",
    "Scores",
    "Search",
    "Task",
    "make_task",
    "score",
    "search_group",
    "search_round",
]
