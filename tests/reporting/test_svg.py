"""Drawings for pages: text is text, colors are the page's, and identifiers do not clash."""

import re

from matplotlib.figure import Figure

from ccsrp_jax.reporting.figure_style import BLUE, annotate, style_axes
from ccsrp_jax.reporting.svg import to_svg
from ccsrp_jax.reporting.templates import _read


def drawing(name: str = "first", text: str = "<b> & $\\frac$ x") -> str:
    figure = Figure(figsize=(2, 2))
    ax = figure.subplots()
    style_axes(ax, text)
    line, plain = ax.plot([0, 1], [1, 0.123456], BLUE, marker="o")[0], ax.plot([0, 1], [0, 1])[0]
    line.set_gid("series-3")
    plain.set_gid("series-4-plain")
    annotate(ax, "a note", (0.5, 0.5), (0, 3))
    return str(to_svg(figure, name, 'label "quoted"'))


def test_text_is_text_and_not_markup():
    svg = drawing()
    assert ">a note</text>" in svg and "&lt;b&gt; &amp; $\\frac$ x" in svg
    assert 'aria-label="label &quot;quoted&quot;"' in svg and 'role="img"' in svg
    assert "font-family" not in svg and "font-size: 8.5px" in svg


def test_colors_are_variables_that_the_page_has_for_light_and_for_dark():
    names = set(re.findall(r"var\(--([a-z]+)\)", drawing()))
    assert "blue" in names
    light, dark = re.findall(r":root \{(.*?)\}", _read("page.css"), re.DOTALL)
    used = set(re.findall(r"var\(--([a-z-]+)\)", _read("page.css"))) - {"share"}
    for scheme in (light, dark):
        assert names | used <= set(re.findall(r"--([a-z-]+):", scheme))


def test_series_are_marked_for_the_script():
    svg = drawing()
    assert svg.count('class="m" data-m="3"') == 1 and svg.count('class="m plain" data-m="4"') == 1


def test_identifiers_of_two_drawings_differ_and_are_all_used():
    ids = {name: set(re.findall(r' id="([^"]*)"', drawing(name))) for name in ("a", "b")}
    assert ids["a"] and not ids["a"] & ids["b"]
    used = re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', drawing("a"))
    assert {one or other for one, other in used} == ids["a"]


def test_numbers_are_short_and_not_changed():
    numbers = re.findall(r"\d+\.\d+", drawing())
    assert numbers and all(len(number.split(".")[1]) <= 2 for number in numbers)
    assert 'viewBox="0 0 144 144"' in drawing()
    assert "M 0 144  L 144 144  L 144 0  L 0 0" in drawing()
