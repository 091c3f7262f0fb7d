"""Final evaluation of the dense and the chosen network on the test set."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ccsrp_jax.attacks.base import SHORT_PGD_CAVEAT
from ccsrp_jax.attacks.pgd import PGD
from ccsrp_jax.data.splits import Dataset, to_unit_range
from ccsrp_jax.networks import cost, serialization
from ccsrp_jax.networks.architecture import Architecture
from ccsrp_jax.networks.classifier import Classifier
from ccsrp_jax.networks.cost import costs
from ccsrp_jax.pipeline.config import Config
from ccsrp_jax.reporting.run_summary import count_attacks
from ccsrp_jax.robustness.evaluation import evaluate
from ccsrp_jax.robustness.gradient_sources import GradientSource
from ccsrp_jax.utils.console import Terminal
from ccsrp_jax.utils.devices import is_out_of_memory, machine
from ccsrp_jax.utils.errors import InputError

SUITE_CAVEAT = {
    "pgd": SHORT_PGD_CAVEAT,
    "quick": "An upper bound on robust accuracy and a first opinion: the standard suite can "
    "break more images.",
    "standard": "An upper bound on robust accuracy: more restarts and queries, as in the thorough "
    "suite, or an attack yet unknown can break more images.",
    "thorough": "An upper bound on robust accuracy: an attack yet unknown can break more images.",
}


def measure(
    config: Config,
    data: Dataset,
    networks: dict[str, Path],
    key: Array,
    folder: Path,
    terminal: Terminal,
) -> dict:
    """Robustness, costs and latency of saved networks on the test images.

    Adversarial images of the dense network are tried on the others too (transfer).

    Args:
      config: settings of the run.
      data: its data.
      networks: files of the networks, by name.
      key: of the attacks and of stochastic encodings.
      folder: where each network's suite is recorded as it goes.
      terminal: for progress.

    Returns:
      The part of the run's summary that follows from the test images.
    """
    loaded = {name: serialization.load(path) for name, path in networks.items()}
    key_costs, key_latency = jax.random.split(jax.random.fold_in(key, 10**6))
    robustness, measured = {}, {}
    for name, (architecture, variables) in loaded.items():
        terminal.line(f"{name:<9} {config.attack.suite} suite on the test images")
        others = {} if name == "dense" else {"dense": _gradient_source(config, loaded["dense"])}
        found = evaluate(
            *_gradient_source(config, loaded[name]),
            data.test,
            eps=config.attack.eps,
            key=key,
            suite=config.attack.suite,
            natural=(),
            others=others,
            record=folder / f"suite-{name}.json",
            terminal=terminal,
        )
        robustness[name] = found.record()
        measured[name] = {
            "accuracy": found.outcome.accuracy,
            "robust_accuracy": found.outcome.robust_accuracy,
            "pgd_accuracy": found.outcome.reference,
            "reliable": found.verdict.reliable,
            **costs(architecture, variables, None, data.test, key_costs),
        }
    latencies = _latencies(config, data, loaded, key_latency)
    for name, latency in latencies.items():
        measured[name]["latency_ms"] = latency
    return {
        **_attack_records(config, attacks=count_attacks(robustness["dense"])),
        **measured,
        "robustness": {"suite": config.attack.suite, **robustness},
        "latency_batch": config.latency_batch,
        "test_images": len(data.test.labels),
        "footnote": data.record["footnote"],
        **machine(),
    }


Network = tuple[Architecture, dict]


def _gradient_source(config: Config, network: Network) -> GradientSource:
    """A compact network as attacks see it, with the surrogate gradient of the settings."""
    architecture, variables = network
    return GradientSource(Classifier(architecture, config.surrogate), (variables, None))


def _latencies(
    config: Config, data: Dataset, networks: dict[str, Network], key: Array
) -> dict[str, float]:
    """Milliseconds a batch of test images, by network.

    Raises:
      InputError: the batch does not fit into memory.
    """
    passes = [
        (Classifier(architecture), (variables, None))
        for architecture, variables in networks.values()
    ]
    try:
        fill = np.arange(config.latency_batch) % len(data.test.labels)
        images = to_unit_range(jnp.asarray(data.test.images[fill]))
        latencies = cost.latency_ms(passes, images, key=key)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(
            f"latency_batch {config.latency_batch} does not fit into memory: go on with --resume "
            "and a smaller --latency-batch."
        ) from error
    return dict(zip(networks, latencies, strict=True))


def _attack_records(config: Config, attacks: int) -> dict:
    """What the summary says of the suite, and of the attack of the archive."""
    surrogate = f"{config.surrogate.name}:{config.surrogate.width}"
    return {
        "attack": {
            "name": f"{config.attack.suite} suite",
            "norm": "linf",
            "eps": config.attack.eps,
            "attacks": attacks,
            "surrogate": surrogate,
            "caveat": SUITE_CAVEAT[config.attack.suite],
        },
        "search_attack": pgd_record(config.test_attack) | {"surrogate": surrogate},
    }


def pgd_record(attack: PGD) -> dict:
    """What the summary says of the attack that the archive was measured with."""
    return {
        "name": "pgd",
        "norm": attack.norm,
        "eps": attack.eps,
        "steps": attack.steps,
        "restarts": attack.restarts,
        "step_size": attack.step_size,
        "caveat": SHORT_PGD_CAVEAT,
    }


def show(terminal: Terminal, summary: dict, page: Path) -> None:
    """Prints a table of the dense and the pruned network, and where the report is."""
    dense, pruned, attack = summary["dense"], summary["pruned"], summary["attack"]
    batch = summary["latency_batch"]
    names = {
        "accuracy": ("test accuracy", "{:.3f}"),
        "pgd_accuracy": (f"under PGD-20 alone, eps {attack['eps']:.4g}", "{:.3f}"),
        "robust_accuracy": (f"worst case of the {attack['name']}", "{:.3f}"),
        "macs": ("MACs", "{:,.0f}"),
        "params": ("parameters", "{:,.0f}"),
        "synops": ("SynOps an image", "{:,.0f}"),
        "energy_nj": ("energy, nJ an image", "{:,.1f}"),
        "latency_ms": (f"latency, ms a batch of {batch}", "{:.2f}"),
    }
    rows = []
    for name, (label, form) in names.items():
        before, after = dense[name], pruned[name]
        if "accuracy" in name:
            change = f"{after - before:+.3f}"
        else:
            change = f"{after / before:.1%}" if before else "-"
        rows.append([label, form.format(before), form.format(after), change])
    title = f"{summary['dataset']}, {summary['model']}, {summary['test_images']} test images"
    terminal.table(title, ["", "dense", "pruned", "pruned / dense"], rows)
    for name in ("dense", "pruned"):
        terminal.line(f"{name}: {summary['robustness'][name]['headline']}")
    terminal.line(f"{summary['seconds']:.0f} s; report: {page}")
