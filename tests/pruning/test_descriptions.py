"""Every method has a line on what it does and where it comes from."""

import inspect
import re
from functools import partial

import pytest

from ccsrp_jax.pruning import METHODS
from ccsrp_jax.pruning.descriptions import DESCRIPTIONS, describe
from ccsrp_jax.pruning.registry import METHODS as REGISTRY


def docstrings(name: str) -> str:
    """Of a method, of the module of its function and of its criterion."""
    method, texts = METHODS[name], []
    while isinstance(method, partial):
        texts += [
            inspect.getdoc(method.keywords[k]) for k in ("criterion",) if k in method.keywords
        ]
        method = method.func
    return " ".join([inspect.getdoc(method), inspect.getmodule(method).__doc__, *texts])


def test_descriptions_are_those_of_the_registered_methods():
    assert DESCRIPTIONS.keys() == METHODS.keys()


@pytest.mark.parametrize("name", METHODS)
def test_a_line_says_what_a_method_does_and_its_source(name):
    text, source = describe(name)
    assert 20 < len(text) <= 130 and text.endswith(".") and "\n" not in text
    assert source and len(source) <= 130 and not source.endswith(".")
    assert set(re.findall(r"`([^`]*)`", text)) <= METHODS.keys() - {name}


@pytest.mark.parametrize("name", METHODS)
def test_the_source_is_that_of_the_docstring(name):
    """Its identifiers; CCSRP's and those of Module Robust Sensitivity stand in other modules."""
    elsewhere = {"2408.00794", "2410.15176"}
    cited = set(re.findall(r"\d{4}\.\d{5}", describe(name).source)) - elsewhere
    described = docstrings(name)
    if name.startswith(("hydra", "criticality")):  # a variant whose docstring refers to the other
        described += docstrings("hydra") + docstrings("criticality")
    assert all(number in described for number in cited)


def test_a_variant_is_described_by_its_method():
    text, source = describe("ccsrp: even widths")
    assert text == "`ccsrp` with one change: even widths." and source == describe("ccsrp").source


def test_a_method_from_outside_is_described_by_its_docstring(monkeypatch):
    def mine(key, problem):
        """Prunes what I say.

        References:
          Me, A Paper,
          2026.
        """

    monkeypatch.setitem(REGISTRY, "mine", partial(mine))
    monkeypatch.setitem(REGISTRY, "silent", lambda key, problem: None)
    assert describe("mine") == ("Prunes what I say.", "Me, A Paper, 2026.")
    assert describe("silent") == ("Not described.", "No source is stated.")
