"""The report of a run: its page, its figures, and what happens to a damaged run."""

import base64
import io
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.image import imread
from scipy.stats import binomtest
from test_robustness_figure import QUICK, REASONS, record

from ccsrp_jax.reporting import run_report, run_summary
from ccsrp_jax.reporting.figure_style import INK
from ccsrp_jax.reporting.run_figures import filters_figure, training_figure
from ccsrp_jax.reporting.tradeoff_figure import tradeoff_figure
from ccsrp_jax.utils import stats
from ccsrp_jax.utils.errors import InputError

DENSE = {
    "accuracy": 0.986,
    "robust_accuracy": 0.711,
    "macs": 1234568,
    "params": 61728,
    "synops": 1604937.2,
    "energy_nj": 1763.64,
    "latency_ms": 10.0,
}
PRUNED = {
    "accuracy": 0.981,
    "robust_accuracy": 0.7,
    "macs": 617284,
    "params": 15432,
    "synops": 802468.6,
    "energy_nj": 881.82,
    "latency_ms": 5.5,
}
ATTACK = {
    "name": "pgd",
    "norm": "linf",
    "eps": 0.1,
    "steps": 20,
    "restarts": 2,
    "step_size": 0.0125,
    "surrogate": "atan:1.0",
    "caveat": "A surrogate gradient may miss adversarial images that exist.",
}
SUMMARY = {
    "dataset": "digits",
    "model": "small",
    "time_steps": 4,
    "seed": 0,
    "seconds": 912.3,
    "attack": ATTACK,
    "dense": DENSE,
    "pruned": PRUNED,
    "latency_batch": 256,
    "test_images": 360,
    "chosen_round": 1,
    "run_dir": "runs/digits",
    "versions": {"jax": "0.10.2"},
    "device": "cpu",
}
FILTERS = {"conv1": 24, "conv2": 48}


def point(number, kept, macs, accuracy, robust, shared, chosen=False):
    return {
        "round": number,
        "kept": dict(zip(FILTERS, kept, strict=True)),
        "filters": FILTERS,
        "macs": macs,
        "params": macs // 20,
        "synops": 1.3 * macs,
        "energy_nj": macs / 700,
        "accuracy": accuracy,
        "robust_accuracy": robust,
        "shared_accuracy": shared,
        "chosen": chosen,
    }


ARCHIVE = [
    point(0, (24, 48), 1234568, 0.98, 0.72, None),
    point(1, (17, 31), 617284, 0.97, 0.69, 0.81, chosen=True),
    point(2, (11, 19), 308642, 0.93, 0.58, 0.76),
]
METRICS = [
    {"stage": "train", "epoch": 0, "loss": 1.5, "accuracy": 0.4, "learning_rate": 0.01},
    {"stage": "train", "epoch": 1, "loss": 0.5, "accuracy": 0.8},
    {"stage": "search", "round": 1, "group": "conv1", "generation": 0, "best_fitness": 0.4},
    {"stage": "finetune", "round": 1, "epoch": 0, "loss": 0.7, "accuracy": 0.7},
    {"stage": "finetune", "round": 1, "epoch": 1, "loss": 0.3, "accuracy": 0.9},
    {"stage": "round", "round": 1, "seconds": 3.0, "evaluations": 40},
    {"stage": "finetune", "round": 2, "epoch": 0, "loss": 0.6, "accuracy": 0.6, "odd": [1]},
    {"stage": "of another version", "loss": 99},
]


def write_run(folder: Path, summary=SUMMARY, archive=ARCHIVE, metrics=METRICS) -> Path:
    (folder / "config.json").write_text(json.dumps({"search": {"population": 17}}))
    (folder / "summary.json").write_text(json.dumps(summary))
    for name, rows in (("metrics", metrics), ("archive", archive)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


# A run whose networks met a suite of attacks.
ASSESSED = SUMMARY | {
    "dense": DENSE | {"robust_accuracy": 0.65, "pgd_accuracy": 0.76},
    "pruned": PRUNED | {"robust_accuracy": 0.595, "pgd_accuracy": 0.755},
    "attack": {
        "name": "quick suite",
        "norm": "linf",
        "eps": 0.1,
        "attacks": 5,
        "surrogate": "atan:1.0",
        "caveat": "A first opinion.",
    },
    "search_attack": ATTACK,
    "robustness": {
        "suite": "quick",
        "dense": record(),
        "pruned": record([*QUICK[:4], (*QUICK[4][:3], 119, None)], REASONS),
    },
}
ESTIMATED = [
    row | {"white_box_accuracy": white_box, "shared_gap": gap}
    for row, white_box, gap in zip(ARCHIVE, (None, 0.6, 0.8), (None, 0.21, -0.04), strict=True)
]


INPUTS = {"config.json", "summary.json", "metrics.jsonl", "archive.jsonl"}
FIGURES = {"tradeoff.png", "filters.png", "training.png"}


class Page(HTMLParser):
    """Tags with their attributes, and the table cells' words; refuses unbalanced tags."""

    VOID = ("meta", "img", "link", "br", "input", "hr")

    def __init__(self, text: str):
        super().__init__()
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
        self.text.append(data)
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1].append(data)


def page_of(run: Path) -> Page:
    return Page(run_report.write(run).read_text("utf-8"))


def test_page_needs_nothing_outside_itself(tmp_path):
    text = run_report.write(write_run(tmp_path, ASSESSED, ESTIMATED)).read_text("utf-8")
    page = Page(text)
    assert "http:" not in text and "https:" not in text and "url(" not in text
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not [attrs for _, attrs in page.tags if "href" in attrs]
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert all(attrs["alt"] for attrs in images)
    embedded = [attrs["src"].removeprefix("data:image/png;base64,") for attrs in images]
    files = ("tradeoff.png", "robustness.png", "filters.png", "training.png")
    assert [base64.b64decode(data, validate=True) for data in embedded] == [
        (tmp_path / name).read_bytes() for name in files
    ]


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


def test_finding_says_what_pruning_kept_and_saved():
    assert run_summary.finding(SUMMARY) == (
        "On the 360 test images the pruned network has accuracy 0.981 (dense: 0.986) and robust "
        "accuracy 0.700 (dense: 0.711), with 50 % of the MACs, 25 % of the parameters and 55 % "
        "of the latency."
    )
    unmeasured = SUMMARY | {"pruned": {"accuracy": 0.981, "macs": 617284}}
    assert run_summary.finding(unmeasured).endswith("– (dense: 0.711), with 50 % of the MACs.")
    assert "no pruned one was chosen" in run_summary.finding(SUMMARY | {"chosen_round": 0})


def test_finding_says_first_which_robust_accuracy_is_unreliable():
    assert run_summary.finding(ASSESSED) == (
        "The robust accuracy of the pruned network is unreliable: larger balls seem safer; more "
        "steps break fewer images. On the 360 test images the pruned network has accuracy 0.981 "
        "(dense: 0.986) and worst-case robust accuracy 0.595 (dense: 0.650) under the quick suite "
        "of 5 attacks (linf, eps 0.1), with 50 % of the MACs, 25 % of the parameters and 55 % of "
        "the latency."
    )
    kept = run_summary.finding(ASSESSED | {"chosen_round": 0})
    assert kept == (
        "On the 360 test images the dense network has accuracy 0.986 and worst-case robust "
        "accuracy 0.650 under the quick suite of 5 attacks (linf, eps 0.1); no pruned one was "
        "chosen."
    )


def test_run_without_a_suite_speaks_of_none(tmp_path):
    page = page_of(write_run(tmp_path))
    for word in ("reliable", "suite", "worst case", "audit", "Gap", "PGD alone", "corruption"):
        assert word not in page.words
    assert "the attack is PGD, linf, eps 0.1, 20 steps, 2 restarts." in page.words
    assert not (tmp_path / "robustness.png").exists()


def test_verdict_stands_beside_the_robust_accuracy(tmp_path):
    page = page_of(write_run(tmp_path, ASSESSED))
    _, dense, pruned, change = page.row("Robust accuracy")
    assert dense.startswith("0.650 ") and dense.endswith("reliable") and "unrel" not in dense
    assert pruned.startswith("0.595 ") and pruned.endswith("unreliable") and change == "0.915"
    assert [cell[:5] for cell in page.row("Under PGD alone")[1:]] == ["0.760", "0.755", "0.993"]
    assert f"Robust accuracy of the pruned network: {'; '.join(REASONS)}." in page.words
    assert "dense network: none of 2 checks for masked gradients failed." in page.words
    caption = "robust accuracy is the worst case of the quick suite of 5 attacks (linf, eps 0.1)."
    assert caption in page.words and "A first opinion." in page.words


def test_tables_hold_every_attack_check_and_corruption(tmp_path):
    page = page_of(write_run(tmp_path, ASSESSED))
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


@pytest.mark.parametrize("count, images", [(0, 5), (5, 5), (252, 360), (1, 10000)])
def test_interval_is_wilsons(count, images):
    expected = binomtest(count, images).proportion_ci(method="wilson")
    assert stats.wilson_interval(count / images, float(images)) == pytest.approx(expected, abs=1e-5)


def test_names_are_text_and_not_markup(tmp_path):
    name = '<script>alert("x")</script> & $\\frac$'
    archive = [row | {"kept": {name: 3}, "filters": {name: 4}} for row in ARCHIVE]
    summary = SUMMARY | {"dataset": name, "attack": ATTACK | {"caveat": name, "norm": "$x_"}}
    suite = [(name, name, "white box", 100, None)]
    assessed = {"suite": name, "dense": record(suite, [name]), "pruned": record(suite)}
    page = page_of(write_run(tmp_path, summary | {"robustness": assessed}, archive))
    assert page.rows_of(name)[0][1] == name
    assert "script" not in {tag for tag, _ in page.tags}
    assert name in page.row("1 (chosen)")[-1].replace("\xa0", " ")
    [title] = [text for text in page.text if text.startswith("Robust pruning") and name in text][:1]
    assert title.endswith(f"{name}, small")


def test_figures_are_pictures(tmp_path):
    run_report.write(write_run(tmp_path))
    for name in FIGURES:
        pixels = imread(io.BytesIO((tmp_path / name).read_bytes()), format="png")
        assert pixels.shape[1] == 1400 and pixels.shape[0] > 200
        assert pixels[..., :3].min() < 0.2 and (pixels[..., :3] == 1).mean() > 0.3


def lines_of(ax) -> list[tuple[list[float], list[float]]]:
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in ax.get_lines()]


def test_tradeoff_figure_draws_the_archive_and_the_test_results():
    top, bottom = tradeoff_figure(ARCHIVE, SUMMARY).axes
    left = pytest.approx([100, 50, 25])
    assert (left, [0.98, 0.97, 0.93]) in lines_of(top)
    assert (left, [0.72, 0.69, 0.58]) in lines_of(bottom)
    assert ([left.expected[1]], [0.69]) in lines_of(bottom), "ring around the chosen point"
    assert any(x == left and y[1:] == [0.81, 0.76] for x, y in lines_of(bottom))
    for ax, key in ((top, "accuracy"), (bottom, "robust_accuracy")):
        stars = [line for line in ax.get_lines() if line.get_marker() == "*"]
        assert [line.get_ydata()[0] for line in stars] == [DENSE[key], PRUNED[key]]
        assert [line.get_xdata()[0] for line in stars] == pytest.approx([100, 50])


def test_tradeoff_figure_names_the_attack_of_the_line_and_that_of_the_stars():
    for summary, title in (
        (SUMMARY, "Robust accuracy: PGD, linf, eps 0.1, 20 steps, 2 restarts"),
        (
            ASSESSED,
            "Robust accuracy; line: PGD, linf, eps 0.1, 20 steps, 2 restarts;\n"
            "stars: worst case of the quick suite of 5 attacks (linf, eps 0.1)",
        ),
    ):
        _, bottom = tradeoff_figure(ARCHIVE, summary).axes
        assert bottom.get_title("left") == title


def test_tradeoff_figure_marks_unreliable_stars():
    top, bottom = tradeoff_figure(ARCHIVE, ASSESSED).axes
    faces = {
        ax: [line.get_markerfacecolor() for line in ax.get_lines() if line.get_marker() == "*"]
        for ax in (top, bottom)
    }
    assert faces == {top: [INK] * 2, bottom: [INK, "w"]}
    words = [text.get_text() for text in bottom.texts]
    assert words == ["dense, test\n0.650", "chosen, test\n0.595 unreliable"]
    assert not any("unreliable" in text.get_text() for text in top.texts)


def test_filters_figure_writes_the_kept_filters():
    [ax] = filters_figure(ARCHIVE).axes
    cells = {(*text.get_position(), text.get_text()) for text in ax.texts}
    for column, row in enumerate(ARCHIVE):
        for line, name in enumerate(FILTERS):
            assert (column, line, str(row["kept"][name])) in cells
    assert [label.get_text() for label in ax.get_yticklabels()] == ["conv1 (24)", "conv2 (48)"]


def test_training_figure_counts_epochs_on_through_fine_tuning():
    top, bottom = training_figure(METRICS).axes
    assert lines_of(top) == [
        ([1, 2], [1.5, 0.5]),
        ([3, 4], [0.7, 0.3]),
        ([2.5, 2.5], [0, 1]),
        ([5], [0.6]),
        ([4.5, 4.5], [0, 1]),
    ]
    assert ([1, 2], [0.4, 0.8]) in lines_of(bottom)
    assert {"training", "1", "2"} <= {text.get_text() for text in top.texts}


def test_archive_is_shown_in_the_order_of_its_rounds(tmp_path):
    page = page_of(write_run(tmp_path, archive=ARCHIVE[::-1]))
    assert page.row("2")[2] == "25.0"


def test_run_with_the_dense_network_only(tmp_path):
    archive = [ARCHIVE[0] | {"chosen": True}]
    summary = SUMMARY | {"pruned": None, "chosen_round": 0}
    page = page_of(write_run(tmp_path, summary, archive, metrics=[]))
    assert page.row("MACs")[1:] == ["1,234,568", "–", "–"]
    assert page.row("dense")[8] == "–"


def test_missing_values_show_as_dashes(tmp_path):
    blank = {key: None for key in DENSE} | {"macs": float("nan")}
    summary = {"dense": blank, "pruned": blank, "attack": None, "versions": None}
    archive = [{"round": 0}, {"round": 1, "kept": None, "macs": None, "chosen": True}]
    page = page_of(write_run(tmp_path, summary, archive, [{"stage": "train", "loss": None}]))
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

    def full_disk(self, data):
        with open(self, "wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="no space"):
        run_report.write(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_same_run_gives_the_same_page(tmp_path):
    write_run(tmp_path)
    assert run_report.write(tmp_path).read_bytes() == run_report.write(tmp_path).read_bytes()
