"""Records of a small pruning run."""

import json
from pathlib import Path

from test_robustness_figure import QUICK, REASONS, record

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
        "attacks": 4,
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
