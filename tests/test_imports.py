"""What importing the library loads: nothing that is slow and not needed yet."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import ccsrp_jax
from ccsrp_jax.coevolution import strategies

SLOW = (
    *("scipy.stats", "scipy.special", "scipy.ndimage", "matplotlib", "orbax", "jinja2", "sklearn"),
    *("tensorflow_datasets", "tensorflow", "array_record", "tyro", "evosax", "PIL", "tensorboardX"),
)
ROOT = Path(__file__).parents[1]


def loaded(code: str) -> set[str]:
    """Names of the modules that a new process has after running `code`, and of JAX's backends."""
    code += """
import json, sys
bridge = sys.modules.get("jax._src.xla_bridge")
backends = bridge._backends if bridge else ()
print(json.dumps([*sys.modules, *(f"backend {name}" for name in backends)]))
"""
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(json.loads(run.stdout.splitlines()[-1]))


def test_importing_the_library_loads_no_other():
    modules = loaded("import ccsrp_jax")
    assert not modules & {"jax", "flax", "numpy", "ccsrp_jax.api", *SLOW}


def test_its_names_load_nothing_that_is_needed_later_and_start_no_backend():
    modules = loaded("from ccsrp_jax import Search, load_data, evaluate; Search('SNES')")
    assert {"jax", "flax", "ccsrp_jax.coevolution.search"} <= modules
    assert not modules & {*SLOW, "backend cpu"}
    assert "backend cpu" in loaded("import jax; jax.devices()")  # so that this tells


def test_every_name_is_there_and_listed():
    everything = {}
    exec("from ccsrp_jax import *", everything)
    assert set(ccsrp_jax.__all__) <= everything.keys() and len(ccsrp_jax.__all__) > 50
    assert {*ccsrp_jax.__all__, *ccsrp_jax.SUBPACKAGES} <= set(dir(ccsrp_jax))
    assert all(getattr(ccsrp_jax, name) is not None for name in dir(ccsrp_jax))
    assert not hasattr(ccsrp_jax, "nothing") and not hasattr(ccsrp_jax, "_nothing")


def test_type_checkers_see_every_subpackage():
    folders = {path.parent.name for path in (ROOT / "ccsrp_jax").glob("*/__init__.py")}
    nodes = ast.walk(ast.parse((ROOT / "ccsrp_jax" / "__init__.py").read_text()))
    seen = {
        each.name
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module == "ccsrp_jax"
        for each in node.names
    }
    assert seen == set(ccsrp_jax.SUBPACKAGES) == folders - {"commands"}


def test_what_is_known_of_strategies_before_evosax_is_loaded_is_what_it_says():
    from evosax.algorithms.population_based.base import PopulationBasedAlgorithm

    for name, from_distribution in strategies.KNOWN.items():
        kind = strategies.STRATEGIES[name]
        assert issubclass(kind, PopulationBasedAlgorithm) is not from_distribution
