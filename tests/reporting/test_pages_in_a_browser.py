"""The pages in a headless Chromium: on a phone, in the dark, by keyboard, and checked by axe-core.

They are skipped without a browser; `make browser` installs what they need but Chromium itself.
"""

import shutil
from importlib import resources
from pathlib import Path

import pytest
from run_records import ASSESSED, ESTIMATED, write_run
from test_comparison_page import RESULTS, few_methods

from ccsrp_jax.pruning.descriptions import describe
from ccsrp_jax.reporting import comparison_report, run_report

sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra `browser`")
pytest.importorskip("axe_playwright_python", reason="needs the extra `browser`")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
if not CHROMIUM:
    pytest.skip("needs Chromium, as of Debian's package chromium", allow_module_level=True)

AXE = resources.files("axe_playwright_python").joinpath("axe.min.js").read_text("utf-8")
PAGES = ("run", "comparison")
OVERFLOWING = """() => [...document.querySelectorAll(".scroll")]
    .filter((box) => box.scrollWidth > box.clientWidth + 1).map((box) => box.ariaLabel)"""
# size on the screen of the smallest text of a drawing
SMALLEST = """() => Math.min(...[...document.querySelectorAll("svg text")].map((text) =>
    parseFloat(getComputedStyle(text).fontSize) * text.ownerSVGElement.getScreenCTM().a))"""


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        # no sandbox: it cannot be had as root, and the pages are our own
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder, record = tmp_path_factory.mktemp("pages"), few_methods()
    (folder / "run.html").write_text(run_report.page(write_run(folder, ASSESSED, ESTIMATED)))
    summary = comparison_report.summarize(record)
    methods = {row["method"]: describe(row["method"]) for row in summary["rows"]}
    text = comparison_report.page(record, summary, methods)
    (folder / "comparison.html").write_text(text)
    return {name: folder / f"{name}.html" for name in PAGES}


@pytest.fixture
def shown(browser, files):
    """Opens a page; at the end it must have asked for nothing else, and reported no error."""
    contexts, asked, errors = [], [], []

    def show(name, width=1280, scheme="light"):
        path = files.get(name, name)
        size = {"width": width, "height": 800}
        contexts.append(browser.new_context(viewport=size, color_scheme=scheme))
        contexts[-1].set_default_timeout(180_000)  # ms; machines can be busy
        page = contexts[-1].new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(path.as_uri())
        return page

    yield show
    for context in contexts:
        context.close()
    assert errors == [] and len(asked) == len(contexts)


@pytest.mark.parametrize("scheme", ("light", "dark"))
@pytest.mark.parametrize("width", (390, 1280))
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_no_violation(shown, name, width, scheme):
    page = shown(name, width, scheme)
    page.evaluate(AXE)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    assert [(rule["id"], rule["nodes"][0]["html"]) for rule in found["violations"]] == []


@pytest.mark.parametrize("name", PAGES)
def test_a_phone_shows_the_page_without_scrolling_sideways(shown, name):
    for width in (360, 390):
        page = shown(name, width)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(SMALLEST) >= 9.5
        wide = page.evaluate(OVERFLOWING)
        hints = [hint for hint in page.query_selector_all(".hint") if hint.is_visible()]
        assert wide and len(hints) == len(wide)


@pytest.mark.parametrize("name", (*PAGES, RESULTS / "digits" / "index.html"), ids=str)
def test_a_desktop_shows_all_columns(shown, name):
    page = shown(name, 1280)
    assert page.evaluate(OVERFLOWING) == []
    assert not any(hint.is_visible() for hint in page.query_selector_all(".hint"))


@pytest.mark.parametrize("name", PAGES)
def test_drawings_are_dark_where_the_page_is(shown, name):
    backgrounds, strokes, texts = [], [], []
    for scheme in ("light", "dark"):
        page = shown(name, scheme=scheme)
        of = "getComputedStyle(document.querySelector('{}')).{}"
        backgrounds.append(luminance(page.evaluate(of.format("body", "backgroundColor"))))
        texts.append(luminance(page.evaluate(of.format("svg text", "fill"))))
        script = """() => [...document.querySelectorAll('svg[role=img] [style*="--blue"]')]
            .map((line) => getComputedStyle(line).stroke).filter((color) => color !== "none")"""
        strokes.append(luminance(page.evaluate(script)[0]))
    assert backgrounds[0] > 0.9 and backgrounds[1] < 0.05
    for background, text, stroke in zip(backgrounds, texts, strokes, strict=True):
        assert contrast(background, text) >= 7 and contrast(background, stroke) >= 3


def luminance(color: str) -> float:
    """Relative luminance by WCAG 2 of a color such as `rgb(0, 114, 178)`."""
    levels = [int(part) / 255 for part in color[color.index("(") + 1 : -1].split(",")[:3]]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in levels]
    return sum(share * x for share, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(first: float, second: float) -> float:
    return (max(first, second) + 0.05) / (min(first, second) + 0.05)


def test_tables_sort_by_mouse_and_by_keyboard(shown):
    page = shown("run")
    table = page.locator("table.sortable", has_text="correct without an attack").first
    head = table.locator("th", has_text="Broken")

    def column(number: int) -> list[str]:
        return [row.split("\t")[number] for row in table.locator("tbody").inner_text().split("\n")]

    before = column(4)
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert column(4) == sorted(before, key=int, reverse=True) != before
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert column(4) == sorted(before, key=int)
    alone = table.locator("th", has_text="Alone")
    alone.locator("button").click()
    assert column(6) == ["0.930", "0.760", "–", "–", "–"]  # what was not measured is last
    assert head.get_attribute("aria-sort") is None
    table.locator("th button").first.click()
    assert column(0) == sorted(column(0), key=str.lower)


def test_a_method_stands_out_when_it_is_pointed_at_or_pressed(shown):
    page = shown("comparison")
    button = page.locator("button", has_text="sca").first
    number = button.get_attribute("data-method")
    opacity = "(mark) => getComputedStyle(document.querySelector(`.m[data-m='${mark}']`)).opacity"
    other = str((int(number) + 1) % 8)
    assert page.evaluate(opacity, number) == page.evaluate(opacity, other) == "1"
    button.hover()
    assert page.evaluate(opacity, number) == "1" and float(page.evaluate(opacity, other)) < 0.5
    page.mouse.move(0, 0)
    assert page.evaluate(opacity, other) == "1"
    button.focus()
    page.keyboard.press("Space")
    assert button.get_attribute("aria-pressed") == "true"
    page.locator("h1").click()
    assert float(page.evaluate(opacity, other)) < 0.5
    button.click()
    page.locator("h1").click()
    page.mouse.move(0, 0)
    assert button.get_attribute("aria-pressed") == "false"
    assert page.evaluate(opacity, other) == "1"


def test_links_of_the_contents_list_lead_there(shown):
    page = shown("run", 390)
    page.locator("nav a", has_text="Filters").click()
    box = page.locator("#filters").bounding_box()
    assert 0 <= box["y"] < 200
