"""Inline SVG of matplotlib's figures, whose text is text and whose colors are those of the page."""

import io
import re
from typing import NamedTuple
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.text import Text

from ccsrp_jax.reporting.figure_style import PAGE_COLORS

# Inches: of a panel. At 72 units an inch, text of 8.5 is readable where the panel fills a phone.
PANEL_WIDTH, PANEL_HEIGHT = 3.75, 2.9
SVG, LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")  # characters that XML does not have
SERIES = "series-"  # of gids: parts of a figure that belong together


class Panel(NamedTuple):
    """A part of a figure, for a page."""

    svg: Markup
    tall: bool = False


def panel_figure(height: float = PANEL_HEIGHT) -> Figure:
    """An empty figure with the size of a panel."""
    return Figure(figsize=(PANEL_WIDTH, height), layout="constrained")


def to_svg(figure: Figure, name: str, label: str) -> Markup:
    """The figure as an SVG element to be placed in a page.

    Colors of `PAGE_COLORS` become the page's variables. Artists whose gid is `series-N` get the
    class `m` and the attribute `data-m`, `series-N-plain` also the class `plain`.

    Args:
      figure: of `panel_figure`.
      name: unique in the page; identifiers in the element begin with it.
      label: what the figure says, with its numbers, for those who do not see it.
    """
    for text in figure.findobj(Text):
        text.set_path_effects([])  # they would make paths of the text; the page has a halo
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(CONTROL.sub("\N{REPLACEMENT CHARACTER}", buffer.getvalue()))
    for child in [c for c in root if c.tag.endswith("metadata")]:
        root.remove(child)
    for element in list(root.iter()):
        _simplify(element, name)
    root.attrib.clear()
    width, height = (72 * float(side) for side in figure.get_size_inches())
    root.attrib |= {"viewBox": f"0 0 {width:g} {height:g}", "role": "img", "aria-label": label}
    _drop_unused_ids(root)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _simplify(element: ElementTree.Element, name: str) -> None:
    """Removes what a page does not need, and shortens numbers."""
    element.tag = element.tag.removeprefix(SVG)
    element.tail = None
    for child in [c for c in element if c.tag == f"{SVG}style"]:
        element.remove(child)
    attributes = element.attrib
    if LINK in attributes:
        attributes["href"] = f"#{name}-{attributes.pop(LINK)[1:]}"
    if (gid := attributes.get("id", "")).startswith(SERIES):
        number, *plain = gid.removeprefix(SERIES).split("-")
        attributes |= {"class": " ".join(["m", *plain]), "data-m": number}
        del attributes["id"]
    elif gid:
        attributes["id"] = f"{name}-{gid}"
    for key, value in attributes.items():
        if key == "clip-path":
            attributes[key] = value.replace("url(#", f"url(#{name}-")
        elif key not in ("id", "href", "class", "data-m"):
            attributes[key] = _with_variables(_rounded(value))
    if element.tag == "text":
        attributes["class"] = "halo"
        attributes["style"] = re.sub(r"font-family:[^;]*;?", "", attributes.get("style", ""))
    elif element.text and not element.text.strip():
        element.text = None


def _rounded(text: str) -> str:
    return re.sub(r"\d+\.\d+", lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), text)


def _with_variables(text: str) -> str:
    return re.sub(
        r"#[0-9a-f]{6}\b",
        lambda found: f"var(--{PAGE_COLORS[found[0]]})" if found[0] in PAGE_COLORS else found[0],
        text,
    )


def _drop_unused_ids(root: ElementTree.Element) -> None:
    used = {each.get("href", "#")[1:] for each in root.iter()}
    used |= {each.get("clip-path", "url(#)")[5:-1] for each in root.iter()}
    for element in root.iter():
        if element.get("id") not in used:
            element.attrib.pop("id", None)
