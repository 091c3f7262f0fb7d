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


def interval(share: float, count: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a share that `count` images showed; nan where unknown.

    It says what another draw of as many test images could show for the same network; two
    networks that saw the same images differ more surely than their intervals suggest.
    """
    if not (math.isfinite(share + count) and count > 0):
        return math.nan, math.nan
    z2 = 1.96**2 / count
    centre = (share + z2 / 2) / (1 + z2)
    half = math.sqrt(z2 * (share * (1 - share) + z2 / 4)) / (1 + z2)
    return centre - half, centre + half


def attack_text(attack: Row) -> str:
    """An attack in short: PGD, linf, eps 0.1, 20 steps, 2 restarts, ..."""
    words = [str(attack.get("name") or DASH).upper()]
    if attack.get("norm"):
        words.append(str(attack["norm"]))
    if attack.get("eps") is not None:
        words.append(f"eps {format_number(attack['eps'], '.4g')}")
    for key in ("steps", "restarts"):
        if attack.get(key) is not None:
            words.append(f"{attack[key]} {key if attack[key] != 1 else key[:-1]}")
    return ", ".join(words)


def finding(summary: Row) -> str:
    """What the run found on the test images, as one sentence of numbers."""
    dense, pruned = summary.get("dense") or {}, summary.get("pruned") or {}
    where = f"On the {format_number(summary.get('test_images'), ',')} test images"
    names = {"accuracy": "accuracy", "robust_accuracy": "robust accuracy"}
    if not pruned or summary.get("chosen_round") == 0:
        has = [f"{name} {format_number(dense.get(key), '.3f')}" for key, name in names.items()]
        return f"{where} the dense network has {' and '.join(has)}; no pruned one was chosen."
    has = [
        f"{name} {format_number(pruned.get(key), '.3f')} "
        f"(dense: {format_number(dense.get(key), '.3f')})"
        for key, name in names.items()
    ]
    costs = {"macs": "MACs", "params": "parameters", "latency_ms": "latency"}
    ratios = {name: ratio(pruned, dense, key) for key, name in costs.items()}
    parts = [f"{100 * r:.0f} % of the {name}" for name, r in ratios.items() if math.isfinite(r)]
    cost = ", with " + " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))
    return f"{where} the pruned network has {' and '.join(has)}{cost if parts else ''}."
