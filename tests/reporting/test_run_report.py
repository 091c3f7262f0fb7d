"""The page of a run: its content, and what happens to a damaged run."""

import base64
import hashlib
import io
import json
import os
from html.parser import HTMLParser
from pathlib import Path
from unittest.mock import patch

import pytest
from matplotlib.image import imread
from run_records import (
    ARCHIVE,
    ASSESSED,
    ATTACK,
    DENSE,
    ESTIMATED,
    FIGURES,
    INPUTS,
    SUMMARY,
    write_run,
)
from scipy.stats import binomtest
from test_robustness_figure import QUICK, REASONS, record

from ccsrp_jax.pipeline.config import Config, settings
from ccsrp_jax.reporting import run_report
from ccsrp_jax.utils.errors import InputError

NO_PANELS = {"tradeoff": [], "robustness": [], "training": []}


class Page(HTMLParser):
    """Tags with their attributes, and the table cells' words; refuses unbalanced tags."""

    VOID = ("meta", "img", "link", "br", "input", "hr")

    def __init__(self, text: str):
        super().__init__()
        self.source = text
        self.tags, self.rows, self.text, self.open = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open
        self.rows = [[" ".join("".join(cell).split()) for cell in row] for row in self.rows]

    def row(self, start: str) -> list[str]:
        [row] = self.rows_of(start)
        return row

    def rows_of(self, start: str) -> list[list[str]]:
        return [row for row in self.rows if row[0].startswith(start)]

    @property
    def words(self) -> str:
        return " ".join("".join(self.text).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append([])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"style", "script"} & set(self.open):
            return
        self.text.append(data)
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1].append(data)


def page_of(run: Path) -> Page:
    """The page without its figures, which take seconds."""
    with patch("ccsrp_jax.reporting.run_panels.run_panels", return_value=NO_PANELS):
        return Page(run_report.page(run))


def drawn_page_of(run: Path) -> Page:
    return Page(run_report.page(run))


@pytest.fixture(scope="module")
def assessed(tmp_path_factory) -> Page:
    """The page of a run whose networks met a suite."""
    return drawn_page_of(write_run(tmp_path_factory.mktemp("assessed"), ASSESSED))


def test_page_needs_nothing_outside_itself(assessed):
    page, text = assessed, assessed.source
    assert "http:" not in text and "https:" not in text
    assert text.count("url(") == text.count("url(#") and "@import" not in text
    assert not {"img", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert all(attrs["href"][0] == "#" for _, attrs in page.tags if "href" in attrs)
    assert [attrs for tag, attrs in page.tags if tag == "script"] == [{}]
    script = text[text.index("<script>") + 8 : text.index("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    [policy] = [attrs["content"] for tag, attrs in page.tags if "http-equiv" in attrs]
    assert policy == (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    )
    assert len(text.encode()) <= 600_000


def test_contents_list_leads_to_every_section(tmp_path, assessed):
    for page in (page_of(write_run(tmp_path)), assessed):
        ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
        assert len(ids) == len(set(ids))
        links = {attrs["href"][1:] for tag, attrs in page.tags if tag == "a"}
        sections = {attrs.get("id") for tag, attrs in page.tags if tag == "h2"}
        assert sections <= links <= set(ids)
        assert [tag for tag, _ in page.tags].count("main") == 1


def test_figures_are_drawings_that_say_their_numbers(assessed):
    page = assessed
    drawings = [attrs for tag, attrs in page.tags if tag == "svg" and attrs.get("role") == "img"]
    labels = [attrs["aria-label"] for attrs in drawings]
    assert len(labels) == 7 and all("viewbox" in attrs for attrs in drawings)
    assert "1, 50 % of the MACs: 0.690" in labels[1] and "dense 0.650, pruned 0.595" in labels[1]
    assert "PGD 20 0.750" in labels[2] and "worst case 0.595, unreliable" in labels[2]
    assert "0.1: 0.700" in labels[3] and "atan:2: 0.690" in labels[4]
    assert "fine-tuning 1: 0.700 to 0.300 in 2 epochs" in labels[5]
    assert {"chosen, test", "APGD-CE 25, assg"} <= {text.strip() for text in page.text}


def test_wide_tables_can_be_reached_and_scrolled(assessed):
    page = assessed
    names = [tag for tag, _ in page.tags]
    boxes = [attrs for _, attrs in page.tags if "scroll" in attrs.get("class", "").split()]
    assert len(boxes) == names.count("table") == names.count("caption")
    assert all(box["tabindex"] == "0" and box["aria-label"] for box in boxes)
    assert "scroll sideways" in page.words


def test_attacks_are_counted_on_each_network_without_noise(tmp_path):
    summary = json.loads(json.dumps(ASSESSED))
    transfer = summary["robustness"]["pruned"]["attacks"][3] | {"through": "dense"}
    summary["robustness"]["pruned"]["attacks"].append(transfer)
    summary["attack"]["attacks"] = 6  # as earlier versions counted
    words = page_of(write_run(tmp_path, summary)).words
    assert "quick suite of 4 attacks, 5 on the pruned network (linf, eps 0.1)" in words
    assert "6 attacks" not in words
    summary["robustness"] = {"suite": "pgd", "dense": record(QUICK[:2])}
    words = page_of(write_run(tmp_path, summary | {"chosen_round": 0})).words
    assert "suite of 1 attack (linf" in words and "1 attacks" not in words


def test_a_run_that_began_with_a_network_is_named_after_it(tmp_path):
    write_run(tmp_path)
    (tmp_path / "config.json").write_text(
        json.dumps(settings(Config(dense="some/net.safetensors")))
    )
    page = page_of(tmp_path)
    assert "digits, network of net.safetensors" in page.words
    assert "How the dense network was trained is not recorded" in page.words
    assert "digits, small" not in page.words
    named = SUMMARY | {"model": "net.safetensors (2 layers)", "training": {}}
    (tmp_path / "summary.json").write_text(json.dumps(named))
    assert "digits, net.safetensors (2 layers)" in page_of(tmp_path).words


def test_page_holds_the_numbers_of_the_run(tmp_path):
    page = page_of(write_run(tmp_path))
    text = page.words
    assert page.row("MACs")[1:] == ["1,234,568", "617,284", "0.500"]
    assert page.row("Parameters")[1:] == ["61,728", "15,432", "0.250"]
    assert page.row("Energy")[1:] == ["1,763.6", "881.8", "0.500"]
    assert page.row("Latency")[0].endswith("256 images")
    assert page.row("Latency")[1:] == ["10.00", "5.50", "0.550"]
    bounds = binomtest(252, 360).proportion_ci(method="wilson")
    assert page.row("Robust accuracy")[2] == f"0.700 {bounds.low:.3f}–{bounds.high:.3f}"
    assert page.row("1 (chosen)")[1:3] == ["617,284", "50.0"]
    assert page.row("1 (chosen)")[6:] == ["0.970", "0.690", "0.810", "conv1 17, conv2 31"]
    for words in (ATTACK["caveat"], "0.0125", "atan:1.0", "jax 0.10.2", '"population": 17'):
        assert words in text


def test_run_without_a_suite_speaks_of_none(tmp_path):
    page = Page(run_report.write(write_run(tmp_path)).read_text("utf-8"))
    for word in ("reliable", "suite", "worst case", "audit", "Gap", "PGD alone", "corruption"):
        assert word not in page.words
    assert "the attack is PGD, linf, eps 0.1, 20 steps, 2 restarts." in page.words
    assert not (tmp_path / "robustness.png").exists()


def test_verdict_stands_beside_the_robust_accuracy(assessed):
    page = assessed
    _, dense, pruned, change = page.row("Robust accuracy")
    assert dense.startswith("0.650 ") and dense.endswith("reliable") and "unrel" not in dense
    assert pruned.startswith("0.595 ") and pruned.endswith("unreliable") and change == "0.915"
    assert [cell[:5] for cell in page.row("Under PGD alone")[1:]] == ["0.760", "0.755", "0.993"]
    assert f"Robust accuracy of the pruned network: {'; '.join(REASONS)}." in page.words
    assert "dense network: none of 2 checks for masked gradients failed." in page.words
    caption = "robust accuracy is the worst case of the quick suite of 4 attacks (linf, eps 0.1)."
    assert caption in page.words and "A first opinion." in page.words


def test_tables_hold_every_attack_check_and_corruption(assessed):
    page = assessed
    for number, name in enumerate(("dense", "pruned")):
        data = ASSESSED["robustness"][name]
        for row in data["attacks"]:
            cells = page.rows_of(row["name"])[number]
            low, high = row["interval"]
            counts = [str(row["attacked"]), str(row["broken"])]
            left = f"{row['accuracy']:.3f} {low:.3f}–{high:.3f}"
            alone = "–" if row["alone"] is None else f"{row['alone']:.3f}"
            costs = [f"{row['gradients']:,}", f"{row['queries']:,}", "1.2"]
            assert cells[1:] == [row["through"], row["kind"], *counts, left, alone, *costs]
    assert page.rows_of("never rises with eps") == [["never rises with eps", "0", "0.02", "ok"]] * 2
    assert page.row(f"check 1 {REASONS[1]}")[1:] == ["0.9", "0.1", "failed"]
    corruption = page.row("gaussian noise 3")
    assert [cell[:5] for cell in corruption[1:]] == ["0.900", "0.900"]


def test_check_without_a_finite_figure_shows_it(tmp_path):
    summary = json.loads(json.dumps(ASSESSED))
    summary["robustness"]["dense"]["audit"]["checks"][1] |= {
        "figure": float("inf"),
        "passed": False,
    }
    page = page_of(write_run(tmp_path, summary))
    assert page.rows_of("inside ball and box")[0][1:] == ["inf", "1e-06", "failed"]


def test_gap_between_shared_and_white_box_accuracy_is_shown(tmp_path):
    page = page_of(write_run(tmp_path, archive=ESTIMATED))
    heads = page.row("Round")
    at = heads.index("Gap")
    assert heads[at - 2 :] == ["Shared transfer", "White box before tuning", "Gap", "Filters kept"]
    rows = [page.row(name)[at - 2 : at + 1] for name in ("dense", "1 (chosen)", "2")]
    assert rows == [["–"] * 3, ["0.810", "0.600", "+0.210"], ["0.760", "0.800", "-0.040"]]


def test_dense_network_alone_is_assessed_alone(tmp_path):
    page = page_of(write_run(tmp_path, ASSESSED | {"chosen_round": 0}))
    assert "Attacks on the dense network" in page.words
    assert "Attacks on the pruned network" not in page.words


def test_names_are_text_and_not_markup(tmp_path):
    name = '<script>alert("x")</script> & $\\frac$'
    archive = [row | {"kept": {name: 3}, "filters": {name: 4}} for row in ARCHIVE]
    summary = SUMMARY | {"dataset": name, "attack": ATTACK | {"caveat": name, "norm": "$x_"}}
    suite = [(name, name, "white box", 100, None)]
    assessed = {"suite": name, "dense": record(suite, [name]), "pruned": record(suite)}
    page = drawn_page_of(write_run(tmp_path, summary | {"robustness": assessed}, archive))
    assert page.rows_of(name)[0][1] == name
    assert [tag for tag, _ in page.tags].count("script") == 1  # the page's own
    assert name in page.row("1 (chosen)")[-1].replace("\xa0", " ")
    [title] = [text for text in page.text if text.startswith("Robust pruning") and name in text][:1]
    assert title.endswith(f"{name}, small")


def test_figures_are_pictures(tmp_path):
    run_report.write(write_run(tmp_path))
    for name in FIGURES:
        pixels = imread(io.BytesIO((tmp_path / name).read_bytes()), format="png")
        assert pixels.shape[1] == 1400 and pixels.shape[0] > 200
        assert pixels[..., :3].min() < 0.2 and (pixels[..., :3] == 1).mean() > 0.3


def test_archive_is_shown_in_the_order_of_its_rounds(tmp_path):
    page = page_of(write_run(tmp_path, archive=ARCHIVE[::-1]))
    assert page.row("2")[2] == "25.0"


def test_run_with_the_dense_network_only(tmp_path):
    archive = [ARCHIVE[0] | {"chosen": True}]
    summary = SUMMARY | {"pruned": None, "chosen_round": 0}
    page = drawn_page_of(write_run(tmp_path, summary, archive, metrics=[]))
    assert page.row("MACs")[1:] == ["1,234,568", "–", "–"]
    assert page.row("dense")[8] == "–"


def test_missing_values_show_as_dashes(tmp_path):
    blank = {key: None for key in DENSE} | {"macs": float("nan")}
    summary = {"dense": blank, "pruned": blank, "attack": None, "versions": None}
    archive = [{"round": 0}, {"round": 1, "kept": None, "macs": None, "chosen": True}]
    metrics = [{"stage": "train", "loss": None}]
    page = drawn_page_of(write_run(tmp_path, summary, archive, metrics))
    for name in ("Accuracy", "Robust accuracy", "MACs", "Energy", "Latency"):
        assert page.row(name)[1:] == ["–"] * 3
    assert page.row("1 (chosen)")[1:] == ["–"] * 9
    assert not {"None", "nan"} & set(" ".join(page.text).split())


@pytest.mark.parametrize("name", sorted(INPUTS))
def test_missing_or_damaged_file_is_named(tmp_path, name):
    write_run(tmp_path)
    whole = (tmp_path / name).read_text()
    for damaged in (whole[:-4], "[1]", "\x00"):
        (tmp_path / name).write_text(damaged)
        with pytest.raises(InputError, match=name):
            run_report.write(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match=f"{name} is missing"):
        run_report.write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == INPUTS - {name}


def test_archive_without_a_point_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"archive\.jsonl holds no trade-off point"):
        run_report.write(write_run(tmp_path, archive=[]))


def test_nothing_is_left_half_written(tmp_path, monkeypatch):
    path = run_report.write(write_run(tmp_path))
    assert path == tmp_path / "report.html"
    everything = INPUTS | FIGURES | {"report.html"}
    assert {path.name for path in tmp_path.iterdir()} == everything
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full_disk(file):
        os.truncate(file, os.fstat(file).st_size // 2)
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        run_report.write(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_same_run_gives_the_same_page(tmp_path):
    write_run(tmp_path)
    assert run_report.page(tmp_path) == run_report.page(tmp_path)
