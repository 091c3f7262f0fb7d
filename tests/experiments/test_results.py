"""The committed results, and experiments/README.md, which is generated from them."""

import json
from pathlib import Path

import pytest
from conftest import experiment

from ccsrp_jax.networks import cost, serialization
from ccsrp_jax.pipeline.parse_config import parse
from ccsrp_jax.pruning import FILTER_METHODS, WEIGHT_METHODS
from ccsrp_jax.reporting.comparison import rank_over_networks
from ccsrp_jax.reporting.comparison_report import summarize

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
RESULTS, README = EXPERIMENTS / "results", EXPERIMENTS / "README.md"
# The methods that the committed tables compare. A method that is added later need not be in them.
COMPARED_FILTERS = {
    *("ccsrp", "ccsrp-priced", "ccsrp-faithful", "ccsrp-nsga2", "ccsrp-snes", "ccep", "random"),
    *("l1", "l1-rounds", "l1-global", "l1-sensitivity", "slimming", "slimming-uniform"),
    *("spike-rate", "taylor", "taylor-global", "criticality", "criticality-ablation", "sd-snn"),
    *("dpap", "sca", "hydra"),
}
COMPARED_WEIGHTS = {
    *("magnitude", "criticality-weights", "criticality-weights-ablation", "hydra-weights"),
    *("lottery", "u-ticket", "nm", "cyclical"),
}


@pytest.fixture(params=["digits", "cifar10"])
def summary(request) -> dict:
    return json.loads((RESULTS / request.param / "summary.json").read_text())


def test_results_name_their_device_and_versions(summary):
    assert summary["device"] and summary["versions"].keys() >= {"jax", "flax", "evosax", "python"}
    assert "upper bound" in summary["attack"]["caveat"]


def test_digits_run_reached_its_targets():
    summary = json.loads((RESULTS / "digits" / "summary.json").read_text())
    dense, pruned = summary["dense"], summary["pruned"]
    assert dense["accuracy"] >= 0.97
    assert pruned["accuracy"] >= dense["accuracy"] - 0.015
    for measure in ("pgd_accuracy", "robust_accuracy"):
        assert pruned[measure] >= dense[measure] - 0.02
    assert dense["reliable"] and pruned["reliable"]
    saved = 1 - pruned["macs"] / dense["macs"]
    assert saved >= 0.5
    assert 1 - pruned["latency_ms"] / dense["latency_ms"] >= 0.6 * saved
    assert summary["seconds"] <= 180


def test_certified_accuracy_is_below_the_worst_case():
    record = json.loads((RESULTS / "certified.json").read_text())
    assert record["data"] and record["device"]
    for found in record["data"].values():
        assert found["weight"] == max(found["weights"], key=lambda row: row["certified"])["weight"]
        best = max(found["criteria"], key=lambda row: row["certified"])
        assert found["criterion"] == best["criterion"]
        for row in (*found["weights"], *found["criteria"]):
            assert row["certified"] <= row["pgd"] <= row["accuracy"]
        for row in found["test"].values():
            assert row["certified"] <= row["robust_accuracy"] <= row["accuracy"]
            assert row["certified_and_broken"] == 0
            curve = [row["accuracy"], *row["certified_curve"].values(), row["certified"]]
            assert curve == sorted(curve, reverse=True)
        assert found["test"]["pruned"]["certified"] > 0.5


def test_the_standard_suite_is_no_weaker_than_autoattack():
    record = json.loads((RESULTS / "compare_autoattack.json").read_text())
    assert record["networks"] and record["versions"].keys() >= {"jax", "pyautoattack", "torch"}
    for network in record["networks"].values():
        assert network["images"] == 256
        assert network["largest_logit_difference"] < 1e-4
        assert network["largest_gradient_difference"] < 1e-3
        assert network["ours"] <= network["autoattack"] + 0.01
        assert network["ours"] < network["pgd_20"]


def test_scoring_beats_the_others_by_what_was_aimed_at():
    networks = json.loads((RESULTS / "population.json").read_text())["networks"]
    for name, peer in (("small", 3.5), ("vgg11", 1.5)):
        over = networks[name]["ours_over"]
        assert over["spikingjelly"] >= peer and over["unshared"] >= 1.7
        for group in networks[name]["groups"].values():  # they compute the same
            assert max(error for error, _ in group["error_and_loss_differ_by"].values()) == 0
    assert networks["vgg11"]["racing_over"]["spikingjelly"] >= 3


def test_later_rounds_compile_nothing():
    record = json.loads((RESULTS / "compilation.json").read_text())
    for run in (record["first_run"], record["second_run"]):
        first, second = run["rounds"]
        assert first["scoring"] == first["prefixes"] == run["groups"]
        assert second["programs"] == 0
    assert (
        record["second_run"]["rounds"][0]["compile_seconds"]
        < 0.2 * (record["first_run"]["rounds"][0]["compile_seconds"])
    )


def test_a_run_stopped_at_any_of_a_hundred_points_ends_as_if_left_alone():
    campaign = json.loads((RESULTS / "kill_campaign.json").read_text())
    assert campaign["held"] == campaign["points"] >= 100
    assert campaign["inside_a_write"] >= 30


def test_the_readme_is_what_its_template_makes_of_the_results():
    assert experiment("make_readme").render() == README.read_text()


def test_the_main_readme_says_what_the_main_job_reached():
    text = (EXPERIMENTS.parent / "README.md").read_text()
    for name in ("digits", "cifar10"):
        summary = json.loads((RESULTS / name / "summary.json").read_text())
        for which in ("dense", "pruned"):
            found = summary[which]
            scores = (found["accuracy"], found["pgd_accuracy"], found["robust_accuracy"])
            cells = [*(f"{score:.3f}" for score in scores), f"{found['macs'] / 1e6:.2f} M"]
            assert " | ".join(cells) in text


def test_the_readme_says_what_the_benchmarks_found():
    text = README.read_text()
    networks = json.loads((RESULTS / "population.json").read_text())["networks"]
    for name, network in networks.items():
        cells = (network["ours_over"][way] for way in ("spikingjelly", "unshared", "vmap"))
        assert f"| {name} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |" in text
    race = networks["vgg11"]["racing_over"]
    told = f"{race['ours']:.1f} times as fast as in full, which is {race['spikingjelly']:.1f} times"
    assert told in " ".join(text.split())


def test_races_choose_as_the_full_evaluation_does():
    for row in json.loads((RESULTS / "racing.json").read_text())["rows"]:
        assert row["choice_differs"] <= 1 - row["confidence"]
        assert row["share_of_images"] < 1


def test_the_readme_says_how_fast_peers_are():
    text = README.read_text()
    record = json.loads((RESULTS / "throughput.json").read_text())
    peers = ("spikingjelly", "snntorch", "norse", "spyx")
    assert record["versions"].keys() >= {"jax", "torch", *peers}
    for name, network in record["networks"].items():
        form = "{:.0f}" if name == "small" else "{:.1f}"
        for task in ("forward", "training"):
            rates = (
                network["libraries"][way][task]["images_per_second"]
                for way in ("ours", "ours_dealt", *peers)
            )
            cells = " | ".join(form.format(rate) for rate in rates)
            assert f"| {name}, {network['batch']} | {task} | {cells} |" in text


def test_a_part_of_cifar10_was_pruned_to_half_of_its_macs():
    summary = json.loads((RESULTS / "cifar10" / "summary.json").read_text())
    assert summary["pruned"]["macs"] <= 0.5 * summary["dense"]["macs"]
    assert summary["pruned"]["robust_accuracy"] <= summary["pruned"]["pgd_accuracy"]
    assert summary["dense"]["reliable"] and summary["pruned"]["reliable"]


def test_methods_were_compared_at_equal_budgets():
    for path in sorted((RESULTS / "methods").glob("*/methods.json")):
        record = json.loads(path.read_text())
        cells, dense = record["cells"], record["dense"]
        assert record["device"] and record["versions"]["jax"] and record["finding"]
        assert len({cell["training"]["steps"] for cell in cells}) == 1
        for cell in cells:
            measure = "params" if cell["weights"] else record["settings"]["measure"]
            assert cell[measure] <= cell["target"] * dense[measure]
            if not cell["weights"]:  # a filter is a few percent, more in MNIST's narrow network
                least = 0.9 if record["dataset"] == "mnist" else 0.93
                assert cell[measure] >= least * cell["target"] * dense[measure]


@pytest.mark.parametrize(("name", "seeds"), [("digits", 3), ("mnist", 3), ("cifar10", 1)])
def test_the_comparisons_have_every_compared_method(name, seeds):
    record = json.loads((RESULTS / "methods" / name / "methods.json").read_text())
    found = {(cell["method"], cell["target"], cell["seed"]) for cell in record["cells"]}
    compared = COMPARED_FILTERS | COMPARED_WEIGHTS
    wanted = {(m, t, s) for m in compared for t in (0.5, 0.25) for s in range(seeds)}
    if name == "mnist":  # its classifier has a quarter of the weights, and stays whole
        wanted = {(m, t, s) for m, t, s in wanted if m in COMPARED_FILTERS or t == 0.5}
    elif name == "cifar10":  # one weight of eight, the fewest that N:M keeps, and the classifier
        wanted.remove(("nm", 0.25, 0))
    assert found >= wanted


def test_compared_methods_keep_their_names_in_the_library():
    assert FILTER_METHODS.keys() >= COMPARED_FILTERS
    assert WEIGHT_METHODS.keys() >= COMPARED_WEIGHTS


def test_ccsrp_is_above_every_rival_on_every_seed_on_mnist():
    summary = summarize(json.loads((RESULTS / "methods" / "mnist" / "methods.json").read_text()))
    leads = {row["method"]: row["lead"] for row in summary["volumes"] if row["macs"]}
    assert leads.keys() >= COMPARED_FILTERS
    for name in COMPARED_FILTERS - {"ccsrp"}:
        assert leads[name].wins == leads[name].seeds >= 3
        assert leads[name].p < 0.05


def test_networks_of_comparisons_are_there_to_go_on_with():
    folders = sorted((RESULTS / "methods").glob("*/dense"))
    assert folders
    for folder in folders:
        record = json.loads((folder.parent / "methods.json").read_text())
        job = parse(["--config", str(folder / "config.json")])
        architecture, _ = serialization.load(folder / "networks" / "round00.safetensors")
        assert (job.dataset, job.model) == (record["dataset"], record["model"])
        assert sum(cost.macs(architecture).values()) == record["dense"]["macs"]


def test_the_readme_says_how_methods_rank_over_networks():
    text = " ".join(README.read_text().split())
    found = json.loads((RESULTS / "methods" / "networks.json").read_text())
    tables = [RESULTS / "methods" / name / "methods.json" for name in found["networks"]]
    assert set(tables) == set((RESULTS / "methods").glob("*/methods.json"))
    records = [json.loads(path.read_text()) for path in tables]
    for measure in ("macs", "synops"):
        standings = rank_over_networks(records, "ccsrp", measure)
        assert [row["method"] for row in found[measure]] == [s.method for s in standings]
        for row, standing in zip(found[measure], standings, strict=True):
            assert tuple(row["ranks"]) == standing.ranks
    ranks = {row["method"]: row["mean_rank"] for row in found["macs"]}
    listed = [f"`{name}` {ranks[name]:.1f}" for name in list(ranks)[:5]]
    assert ", ".join(listed) in text
    [own, *_] = [row for row in found["macs"] if row["method"] == "ccsrp"]
    rivals = [row for row in found["macs"] if row is not own]
    surely = [row for row in rivals if row["lead"] > 0 and row["p"] < 0.05]
    assert f"ahead of {len(surely)} of the {len(rivals)} by Wilcoxon's" in text


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_no_rival_is_above_ccsrp_beyond_chance(name):
    summary = summarize(json.loads((RESULTS / "methods" / name / "methods.json").read_text()))
    leads = [row["lead"] for row in summary["volumes"] if row["macs"]]
    assert not [lead for lead in leads if lead.difference < 0 and lead.p < 0.05]


def test_the_readme_says_what_the_standard_suite_left_of_pruned_networks():
    text = README.read_text()
    for name, reliable in (("ccsrp", True), ("slimming", False)):
        path = RESULTS / "methods" / "mnist" / f"standard-{name}.json"
        record = json.loads(path.read_text())
        low, high = record["intervals"]["robust_accuracy"]
        assert f"{record['robust_accuracy']:.3f} [{low:.3f}, {high:.3f}]" in text
        assert record["reliable"] is reliable and record["settings"]["suite"] == "standard"


def test_the_readme_says_what_methods_reached():
    text = README.read_text()
    start = text.index("### Methods that remove filters")
    lines = text[start : text.index("###", start + 1)].splitlines()
    said = {line.split("`")[1]: line.split(" | ")[1:10] for line in lines if line.startswith("| `")}
    for place, name in enumerate(("mnist", "digits", "cifar10")):
        summary = summarize(json.loads((RESULTS / "methods" / name / "methods.json").read_text()))
        volumes = {row["method"]: row["macs"] for row in summary["volumes"]}
        rows = {(row["method"], row["target"]): row for row in summary["rows"]}
        for method, cells in said.items():
            if method in volumes:
                *scores, volume = cells[3 * place : 3 * place + 3]
                for target, score in zip((0.5, 0.25), scores, strict=True):
                    row = rows[method, target]
                    means = row["accuracy"].mean, row["robust_accuracy"].mean
                    assert score == "{:.3f} / {:.3f}".format(*means)
                assert volume.split()[0] == f"{volumes[method].mean:.3f}"
    assert said.keys() == COMPARED_FILTERS
