"""The page of a comparison: structure, contents, and what it says of every method."""

import json
from pathlib import Path

import pytest
from test_run_report import Page

from ccsrp_jax.pruning.descriptions import describe
from ccsrp_jax.reporting.comparison_report import page, summarize

RESULTS = Path(__file__).parents[2] / "experiments" / "results" / "methods"


def few_methods() -> dict:
    """The committed comparison on digits, of a few methods."""
    record = json.loads((RESULTS / "digits" / "methods.json").read_text())
    kept = ("ccsrp", "l1", "random", "slimming", "taylor", "sca", "dpap", "magnitude")
    return record | {"cells": [cell for cell in record["cells"] if cell["method"] in kept]}


@pytest.fixture(scope="module")
def found() -> tuple[dict, Page]:
    record = few_methods()
    summary = summarize(record)
    methods = {row["method"]: describe(row["method"]) for row in summary["rows"]}
    return summary, Page(page(record, summary, methods))


def test_the_page_has_one_main_part_and_a_contents_list(found):
    _, page = found
    names = [tag for tag, _ in page.tags]
    assert names.count("main") == names.count("h1") == names.count("nav") == 1
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    targets = {attrs["href"][1:] for tag, attrs in page.tags if tag == "a"}
    assert len(ids) == len(set(ids)) and targets <= set(ids)
    assert {attrs["id"] for tag, attrs in page.tags if tag == "h2"} <= targets
    assert ("meta", {"name": "color-scheme", "content": "light dark"}) in page.tags


def test_every_method_can_be_found_in_the_curves(found):
    summary, page = found
    methods = list(dict.fromkeys(row["method"] for row in summary["rows"]))
    buttons = [attrs for tag, attrs in page.tags if tag == "button"]
    assert [button["data-method"] for button in buttons] == [str(n) for n in range(len(methods))]
    assert all(button["aria-pressed"] == "false" for button in buttons)
    lines = {attrs["data-m"] for _, attrs in page.tags if "data-m" in attrs}
    assert lines == {button["data-method"] for button in buttons}
    weights = str(methods.index("magnitude"))
    panels = page.source.split('role="img"')[1:]
    assert [f'data-m="{weights}"' in panel for panel in panels] == [
        False,
        True,
    ] * 2  # no MACs saved


def test_curves_say_their_numbers(found):
    summary, page = found
    labels = [attrs["aria-label"] for _, attrs in page.tags if attrs.get("role") == "img"]
    assert len(labels) == 4 and labels[2].startswith("Robust accuracy against the remaining MACs")
    for row in summary["rows"]:
        if row["method"] == "ccsrp":
            expected = f"{row['robust_accuracy'].mean:.3f} at {100 * row['macs'].mean:.0f} %"
            assert expected in labels[2]


def test_every_method_has_its_line_and_source(found):
    summary, page = found
    for method in {row["method"] for row in summary["rows"]}:
        rows = [row for row in page.rows_of(method) if row[0] == method and len(row) == 3]
        text, source = describe(method)
        assert rows == [[method, text.replace("`", ""), source]]


def test_tables_of_numbers_can_be_sorted(found):
    _, page = found
    tables = [attrs.get("class") for tag, attrs in page.tags if tag == "table"]
    assert tables == ["sortable", "sortable", "text"]


def test_a_page_without_descriptions_has_no_links_to_them():
    record = few_methods()
    record["cells"] = [c for c in record["cells"] if c["method"] in ("ccsrp", "l1", "random")]
    text = page(record, summarize(record))
    assert "Methods and sources" not in text and "#method-" not in text


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*/index.html")), ids=lambda p: p.parent.name)
def test_committed_pages_are_of_this_form_and_light(path):
    found = Page(path.read_text("utf-8"))
    assert [tag for tag, _ in found.tags].count("main") == 1
    assert "Methods and sources" in found.words
    assert len(found.source.encode()) <= 600_000
