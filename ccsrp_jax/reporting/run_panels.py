"""Figures of a run's page, as panels that are readable on a phone, and their numbers in words."""

from ccsrp_jax.reporting.figure_style import INK, style_axes
from ccsrp_jax.reporting.robustness_figure import (
    HEADER_LINE,
    ROW_HEIGHT,
    attacks_by_key,
    plot_eps,
    plot_suite,
    plot_widths,
    suite_rows,
    tries_widths,
)
from ccsrp_jax.reporting.run_figures import draw_training, epochs_by_stage, label_stages
from ccsrp_jax.reporting.run_summary import (
    Row,
    conclusion,
    format_number,
    remaining_macs,
    robustness_records,
    round_name,
)
from ccsrp_jax.reporting.svg import PANEL_HEIGHT, Panel, panel_figure, to_svg
from ccsrp_jax.reporting.tradeoff_figure import KEYS, draw_accuracy, label_macs, label_rounds


def tradeoff_panels(archive: list[Row], summary: Row) -> list[Panel]:
    """Accuracy and robust accuracy against the remaining MACs."""
    panels = []
    for key in KEYS:
        figure = panel_figure()
        ax = figure.subplots()
        draw_accuracy(ax, archive, summary, key)
        label_rounds(ax, archive)
        label_macs(ax)
        label = _tradeoff_text(archive, summary, key)
        panels.append(Panel(to_svg(figure, f"tradeoff-{key.replace('_', '-')}", label)))
    return panels


def _tradeoff_text(archive: list[Row], summary: Row, key: str) -> str:
    name = key.replace("_", " ")
    points = [
        f"{round_name(row)}, {format_number(macs, '.0f')} % of the MACs: "
        f"{format_number(row.get(key), '.3f')}"
        for row, macs in zip(archive, remaining_macs(archive), strict=True)
    ]
    tested = [
        f"{network} {format_number((summary.get(network) or {}).get(key), '.3f')}"
        for network in ("dense", "pruned")
    ]
    return (
        f"{name.capitalize()} against the remaining MACs. Search images, by round: "
        f"{'; '.join(points)}. Test images: {', '.join(tested)}."
    )


def robustness_panels(records: dict[str, Row]) -> list[Panel]:
    """The suite's attacks, and the sweeps of the audit over eps and surrogate gradients."""
    attacks = {name: attacks_by_key(record) for name, record in records.items()}
    rows = suite_rows(attacks)
    figure = panel_figure(max(2 * PANEL_HEIGHT, ROW_HEIGHT * rows.borders[-1] + 5 * HEADER_LINE))
    ax = figure.subplots()
    ax.locator_params(axis="x", nbins=5)
    plot_suite(ax, records, attacks, rows)
    panels = [Panel(to_svg(figure, "suite", _suite_text(records)), tall=True)]
    sweeps = [("eps", plot_eps, "eps_curve", "against eps")]
    if tries_widths(records):
        sweeps.append(("widths", plot_widths, "width_curve", "with other surrogate gradients"))
    for name, plot, key, what in sweeps:
        figure = panel_figure()
        plot(figure.subplots(), records)
        panels.append(Panel(to_svg(figure, name, _sweep_text(records, key, what))))
    return panels


def _suite_text(records: dict[str, Row]) -> str:
    parts = []
    for name, record in records.items():
        after = [f"{row['name']} {row['accuracy']:.3f}" for row in record["attacks"]]
        parts.append(
            f"{name} network: {record['accuracy']:.3f} without an attack; {', '.join(after)}; "
            f"worst case {record['robust_accuracy']:.3f}, {conclusion(record)}"
        )
    return f"Accuracy after each attack and those above it. {'. '.join(parts)}."


def _sweep_text(records: dict[str, Row], key: str, what: str) -> str:
    parts = []
    for name, record in records.items():
        points = [
            f"{format_number(at, '.4g') if key == 'eps_curve' else at}: {share:.3f}"
            for at, share in record["audit"][key]
        ]
        parts.append(f"{name} network: {', '.join(points)}")
    return f"Accuracy under short attacks {what}. {'. '.join(parts)}."


def training_panels(metrics: list[Row]) -> list[Panel]:
    """Loss and accuracy over all epochs."""
    panels = []
    for key in ("loss", "accuracy"):
        figure = panel_figure()
        ax = figure.subplots()
        draw_training(ax, metrics, key)
        style_axes(ax, "Loss" if key == "loss" else "Accuracy on training images")
        label_stages(ax, metrics)
        ax.set_xlabel("epochs: training, then rounds (numbers)", color=INK, fontsize=9)
        panels.append(Panel(to_svg(figure, f"training-{key}", _training_text(metrics, key))))
    return panels


def _training_text(metrics: list[Row], key: str) -> str:
    parts = [
        f"{name if name == 'training' else f'fine-tuning {name}'}: "
        f"{format_number(rows[0].get(key), '.3f')} to {format_number(rows[-1].get(key), '.3f')} "
        f"in {len(rows)} epochs"
        for name, _, rows in epochs_by_stage(metrics)
    ]
    return f"{key.capitalize()} of training, first to last epoch. {'; '.join(parts) or 'None'}."


def run_panels(archive: list[Row], summary: Row, metrics: list[Row]) -> dict[str, list[Panel]]:
    """All panels of a run's page, by figure."""
    records = robustness_records(summary)
    return {
        "tradeoff": tradeoff_panels(archive, summary),
        "robustness": robustness_panels(records) if records else [],
        "training": training_panels(metrics),
    }
