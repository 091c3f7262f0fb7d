"""What a run's records say: ratios, intervals and the finding in words.

What a run did not record is nan as a number and a dash as text.
"""

import math
from typing import Any

Row = dict[str, Any]


DASH = "\N{EN DASH}"


def number(value: Any) -> float:
    """A finite number as it is, anything else as nan."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan


def ratio(network: Row, reference: Row, key: str) -> float:
    base = number(reference.get(key))
    return number(network.get(key)) / base if base else math.nan


def macs_left(archive: list[Row]) -> list[float]:
    """Percent of the first point's MACs, which is the dense network's."""
    return [100 * ratio(row, archive[0], "macs") for row in archive]


def round_name(row: Row) -> str:
    number = row.get("round")
    return "dense" if number == 0 else DASH if number is None else str(number)


def format_number(value: Any, pattern: str) -> str:
    """A number by a format specification, or a dash where there is none."""
    return format(value, pattern) if math.isfinite(number(value)) else DASH


def assessments(summary: Row) -> dict[str, Row]:
    """Records of robustness by network, dense first; none of runs that assessed none."""
    found = summary.get("robustness") or {}
    names = ("dense",) if summary.get("chosen_round") == 0 else ("dense", "pruned")
    return {name: found[name] for name in names if found.get(name)}


def test_attack(summary: Row) -> Row:
    """What the test images met: a suite of attacks, or one attack in runs without a suite."""
    return summary.get("attack") or {}


def search_attack(summary: Row) -> Row:
    """What the search images met: always one attack."""
    return summary.get("search_attack") or test_attack(summary)


def attack_text(attack: Row) -> str:
    """In short: PGD, linf, eps 0.1, 20 steps, ...; or quick suite of 7 attacks (linf, eps 0.1)."""
    name, words = str(attack.get("name") or DASH), []
    if attack.get("norm"):
        words.append(str(attack["norm"]))
    if attack.get("eps") is not None:
        words.append(f"eps {format_number(attack['eps'], '.4g')}")
    for key in ("steps", "restarts"):
        if attack.get(key) is not None:
            words.append(_counted(attack[key], key))
    if attack.get("attacks") is not None:
        return f"{name} of {_counted(attack['attacks'], 'attacks')} ({', '.join(words)})"
    return ", ".join([name.upper(), *words])


def _counted(count: int, things: str) -> str:
    return f"{count} {things if count != 1 else things[:-1]}"


def finding(summary: Row) -> str:
    """What the run found on the test images: first which figures to doubt, then all of them."""
    dense, pruned = summary.get("dense") or {}, summary.get("pruned") or {}
    where = f"{_doubts(summary)}On the {format_number(summary.get('test_images'), ',')} test images"
    names = {"accuracy": "accuracy", "robust_accuracy": "robust accuracy"}
    under = ""
    if assessments(summary):
        names["robust_accuracy"] = "worst-case robust accuracy"
        under = f" under the {attack_text(test_attack(summary))}"
    if not pruned or summary.get("chosen_round") == 0:
        has = [f"{name} {format_number(dense.get(key), '.3f')}" for key, name in names.items()]
        what = f"{' and '.join(has)}{under}"
        return f"{where} the dense network has {what}; no pruned one was chosen."
    has = [
        f"{name} {format_number(pruned.get(key), '.3f')} "
        f"(dense: {format_number(dense.get(key), '.3f')})"
        for key, name in names.items()
    ]
    costs = {"macs": "MACs", "params": "parameters", "latency_ms": "latency"}
    ratios = {name: ratio(pruned, dense, key) for key, name in costs.items()}
    parts = [f"{100 * r:.0f} % of the {name}" for name, r in ratios.items() if math.isfinite(r)]
    cost = ", with " + " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))
    return f"{where} the pruned network has {' and '.join(has)}{under}{cost if parts else ''}."


def _doubts(summary: Row) -> str:
    return "".join(
        f"The robust accuracy of the {name} network is unreliable: {'; '.join(record['reasons'])}. "
        for name, record in assessments(summary).items()
        if not record["reliable"]
    )
