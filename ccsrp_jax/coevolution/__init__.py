"""Cooperative coevolution of filter masks: one sub-population per layer."""

from ccsrp_jax.coevolution.fitness import Scores, score
from ccsrp_jax.coevolution.racing import Racing
from ccsrp_jax.coevolution.search import search_group, search_round
from ccsrp_jax.coevolution.settings import PRESETS, Search
from ccsrp_jax.coevolution.subproblem import Task, make_task

__all__ = [
    "PRESETS",
    "Racing",
    "Scores",
    "Search",
    "Task",
    "make_task",
    "score",
    "search_group",
    "search_round",
]
