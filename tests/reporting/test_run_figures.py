"""Figures of a run draw what the records say."""

import pytest
from run_records import ARCHIVE, ASSESSED, DENSE, FILTERS, METRICS, PRUNED, SUMMARY

from ccsrp_jax.reporting.figure_style import INK
from ccsrp_jax.reporting.run_figures import filters_figure, training_figure
from ccsrp_jax.reporting.tradeoff_figure import tradeoff_figure


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
            "stars: worst case of the quick suite of 4 attacks (linf, eps 0.1)",
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
