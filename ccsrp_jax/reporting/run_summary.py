"""Quantities and sentences derived from the records of a run.

A value that the run did not record is nan as a number and a dash as text.
"""

import math
from typing import Any

from ccsrp_jax.utils.console import counted

Row = dict[str, Any]

DASH = "\N{EN DASH}"


def number(value: Any) -> float:
    """The value if it is a finite number, else nan."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan


def ratio(network: Row, reference: Row, key: str) -> float:
    """A quantity of a network as a share of that of another; nan if either is unknown."""
    base = number(reference.get(key))
    return number(network.get(key)) / base if base else math.nan


def remaining_macs(archive: list[Row]) -> list[float]:
    """MACs of each network, in percent of those of the first, the dense network."""
    return [100 * ratio(row, archive[0], "macs") for row in archive]


def round_name(row: Row) -> str:
    """How a network of the archive is labelled: by its round, or as dense."""
    number = row.get("round")
    return "dense" if number == 0 else DASH if number is None else str(number)


def chosen_first(archive: list[Row]) -> list[int]:
    """Indices of the archive, the chosen network first."""
    return sorted(range(len(archive)), key=lambda i: not archive[i].get("chosen"))


def format_number(value: Any, pattern: str) -> str:
    """A number in a format specification, or a dash if it is unknown."""
    return format(value, pattern) if math.isfinite(number(value)) else DASH


def robustness_records(summary: Row) -> dict[str, Row]:
    """Robustness records of the dense and the pruned network; empty if not evaluated."""
    found = summary.get("robustness") or {}
    names = ("dense",) if summary.get("chosen_round") == 0 else ("dense", "pruned")
    return {name: found[name] for name in names if found.get(name)}


def conclusion(record: Row) -> str:
    """What the audit says of a robust accuracy: `reliable`, `not established` or `unreliable`."""
    return record.get("conclusion") or ("reliable" if record["reliable"] else "unreliable")


def test_attack(summary: Row) -> Row:
    """The attack on the test images: a suite, or one attack if the run used no suite."""
    return summary.get("attack") or {}


def search_attack(summary: Row) -> Row:
    """The attack on the search images, which is always a single one."""
    return summary.get("search_attack") or test_attack(summary)


def attack_text(attack: Row) -> str:
    """Text as `PGD, linf, eps 0.1, 20 steps` or `quick suite of 7 attacks (linf, eps 0.1)`."""
    name, words = str(attack.get("name") or DASH), []
    if attack.get("norm"):
        words.append(str(attack["norm"]))
    if attack.get("eps") is not None:
        words.append(f"eps {format_number(attack['eps'], '.4g')}")
    for key in ("steps", "restarts"):
        if attack.get(key) is not None:
            words.append(counted(attack[key], key))
    if attack.get("attacks") is not None:
        return f"{name} of {counted(attack['attacks'], 'attacks')} ({', '.join(words)})"
    return ", ".join([name.upper(), *words])


def count_attacks(record: Row) -> int:
    """Number of attacks of a suite; noise is no attack."""
    return sum(row["kind"] != "noise" for row in record["attacks"])


def test_text(summary: Row) -> str:
    """`attack_text` of the attack on the test images, which counts those on each network.

    A pruned network meets more of them, by transfer from the dense one.
    """
    attack, records = test_attack(summary), robustness_records(summary)
    if not records:
        return attack_text(attack)
    counts = {name: count_attacks(record) for name, record in records.items()}
    first = next(iter(counts.values()))
    text = attack_text(attack | {"attacks": first})
    others = [f"{n} on the {name} network" for name, n in counts.items() if n != first]
    if not others:
        return text
    of = counted(first, "attacks")
    return text.replace(f" of {of}", f" of {', '.join([of, *others])}", 1)


def model_text(config: Row, summary: Row) -> str:
    """The model of a run. Earlier versions recorded a default where the network was loaded."""
    if config.get("dense") and "training" not in summary:
        return f"network of {str(config['dense']).rsplit('/', 1)[-1]}"
    name = summary.get("model")
    return DASH if name is None else str(name)


def finding(summary: Row) -> str:
    """The result on the test images in words, after any warning about unreliable values."""
    dense, pruned = summary.get("dense") or {}, summary.get("pruned") or {}
    images = format_number(summary.get("test_images"), ",")
    where = f"{_warnings(summary)}On the {images} test images"
    names = {"accuracy": "accuracy", "robust_accuracy": "robust accuracy"}
    under = ""
    if robustness_records(summary):
        names["robust_accuracy"] = "worst-case robust accuracy"
        under = f" under the {test_text(summary)}"
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


def _warnings(summary: Row) -> str:
    return "".join(
        f"The robust accuracy of the {name} network is {conclusion(record)}: "
        f"{'; '.join(record['reasons'])}. "
        for name, record in robustness_records(summary).items()
        if not record["reliable"]
    )
