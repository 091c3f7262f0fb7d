"""Subpackages import in one direction only."""

import ast
from pathlib import Path

import pytest

LIBRARY = Path(__file__).parents[1] / "ccsrp_jax"
# A package may import those of lower levels, and itself; `reporting` needs `utils` only.
LEVELS = {
    **{"utils": 0, "data": 1, "networks": 2, "attacks": 3},
    **dict.fromkeys(("training", "robustness", "coevolution"), 4),
    **{"pruning": 5, "reporting": 5, "exchange": 5, "pipeline": 6},
    **{"api": 6, "commands": 7, "cli": 8},
}


def imported(path: Path) -> set[str]:
    """Subpackages that a module of the library imports, anywhere in it."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    names += [each.name for node in nodes if isinstance(node, ast.Import) for each in node.names]
    whole = [
        f"ccsrp_jax.{each.name}"
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module == "ccsrp_jax"
        for each in node.names
    ]
    return {name.split(".")[1] for name in names + whole if name.startswith("ccsrp_jax.")}


@pytest.mark.parametrize("package", LEVELS)
def test_a_package_imports_those_below_it_only(package):
    folder = LIBRARY / package
    for path in folder.rglob("*.py") if folder.is_dir() else [folder.with_suffix(".py")]:
        allowed = {name for name, level in LEVELS.items() if level < LEVELS[package]}
        allowed = {"utils"} if package == "reporting" else allowed
        assert imported(path) <= {package} | allowed, path


def test_every_folder_has_its_level():
    found = {path.stem for path in LIBRARY.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert found - {"__init__", "__pycache__"} == LEVELS.keys()
