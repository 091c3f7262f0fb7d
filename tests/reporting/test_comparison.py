"""Comparisons of methods against volumes by hand and scipy's own paired test."""

import json
import math

import numpy as np
import pytest
from conftest import experiment
from scipy import stats

from ccsrp_jax.reporting.comparison import (
    hypervolumes,
    objectives,
    paired_t_test,
    rank_over_networks,
    spread,
)
from ccsrp_jax.reporting.comparison_report import finding, summarize
from ccsrp_jax.utils.errors import InputError

DENSE = {"macs": 200.0, "params": 50, "synops": 8.0}


def cell(method, seed, target, accuracy, robust, macs, **costs):
    scores = {"accuracy": accuracy, "robust_accuracy": robust, "macs": macs}
    return {"method": method, "seed": seed, "target": target} | scores | costs


CELLS = [
    cell("a", 0, 0.5, 0.8, 0.5, 100.0),
    cell("a", 0, 0.2, 0.6, 0.4, 40.0),
    cell("a", 1, 0.5, 0.9, 0.3, 90.0),
    cell("a", 1, 0.2, 0.4, 0.5, 30.0),
    cell("b", 1, 0.2, 0.5, 0.5, 20.0),
    cell("b", 1, 0.5, 0.5, 0.5, 100.0),
]


def test_points_are_errors_and_the_share_of_the_dense_cost():
    cells = [cell("a", 0, 0.5, 0.8, 0.5, 100.0, params=20, synops=2.0)]
    for cost, share in (("macs", 0.5), ("params", 0.4), ("synops", 0.25)):
        np.testing.assert_allclose(objectives(cells, DENSE, cost), [[0.2, 0.5, share]], rtol=1e-6)
    assert objectives([], DENSE).shape == (0, 3)


def test_hypervolumes_are_those_by_hand_of_all_targets_of_a_method_and_seed():
    """The union of boxes from every network to an error of 1 at the dense cost."""
    found = hypervolumes(CELLS, DENSE)
    assert {method: list(seeds) for method, seeds in found.items()} == {"a": [0, 1], "b": [1]}
    first = 0.8 * 0.5 * 0.5 + 0.6 * 0.4 * 0.8 - 0.6 * 0.4 * 0.5
    second = 0.9 * 0.3 * 0.55 + 0.4 * 0.5 * 0.85 - 0.4 * 0.3 * 0.55
    assert found["a"][0] == pytest.approx(first, rel=1e-5)
    assert found["a"][1] == pytest.approx(second, rel=1e-5)
    assert found["b"][1] == pytest.approx(0.5 * 0.5 * 0.9, rel=1e-5)  # which dominates the other


def test_a_network_worse_than_none_adds_nothing():
    dear = [cell("a", 0, 0.5, 0.9, 0.9, 200.0), cell("a", 0, 0.2, 0.0, 0.5, 10.0)]
    assert hypervolumes(dear, DENSE) == {"a": {0: 0.0}}


def test_who_lacks_a_target_that_others_have_is_left_out():
    found = hypervolumes([*CELLS, cell("b", 0, 0.2, 1.0, 1.0, 1.0)], DENSE)
    assert list(found["b"]) == [1]
    found = hypervolumes([*CELLS, cell("c", 0, 0.1, 1.0, 1.0, 1.0)], DENSE)
    assert found == {}
    found = hypervolumes(CELLS[:-1], DENSE)
    assert found == {"a": hypervolumes(CELLS, DENSE)["a"]}


def test_spread_is_the_mean_and_the_samples_deviation():
    values = [0.2, 0.5, 0.3]
    mean = sum(values) / 3
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / 2)
    assert spread(iter(values)) == pytest.approx((mean, deviation, 3))


def test_pairs_are_tested_as_scipy_does_on_the_seeds_of_both():
    random = np.random.default_rng(0)
    for _ in range(5):
        first, second = random.normal(0.5, 0.1, 6), random.normal(0.45, 0.1, 6)
        one = dict(enumerate(first)) | {9: 100.0}
        other = {seed: second[seed] for seed in (4, 2, 0, 5, 1, 3)} | {8: -100.0}
        found, told = paired_t_test(one, other), stats.ttest_rel(first, second)
        assert found.p == pytest.approx(told.pvalue, rel=1e-9) and 0 < found.p < 1
        assert found.difference == pytest.approx(np.mean(first) - np.mean(second))
        assert found.deviation == pytest.approx(np.std(first - second, ddof=1))
        assert found.wins == sum(a > b for a, b in zip(first, second, strict=True))
        back = paired_t_test(other, one)
        assert (back.difference, back.p) == pytest.approx((-found.difference, found.p))
        assert back.wins == 6 - found.wins


def test_a_single_seed_tells_no_spread_and_no_test():
    assert spread([0.4])[::2] == (0.4, 1) and math.isnan(spread([0.4]).deviation)
    found = paired_t_test({3: 0.5, 4: 1.0}, {3: 0.25, 5: 0.0})
    assert (found.difference, found.wins, found.seeds) == (0.25, 1, 1)
    assert math.isnan(found.deviation) and math.isnan(found.p)
    none = paired_t_test({1: 0.5}, {2: 0.5})
    assert math.isnan(none.difference) and math.isnan(none.p) and none.wins == none.seeds == 0


def test_equal_differences_are_no_test():
    found = paired_t_test({0: 0.5, 1: 0.75}, {0: 0.25, 1: 0.5})
    assert (found.difference, found.deviation, found.wins) == (0.25, 0.0, 2)
    assert math.isnan(found.p)


RESULTS = {"ccsrp": (0.9, 0.91, 0.92), "l1": (0.8, 0.82, 0.81), "random": (0.91, 0.88, 0.93)}


def compared(seeds):
    """A record of one target at half of the MACs, where the volume is half the robust accuracy."""
    common = {"weights": False, "pgd_accuracy": 0.5, "params": 5, "synops": 4.0}
    common |= {
        kind: {"forward": 1, "backward": 1, "seconds": 1.0} for kind in ("search", "training")
    }
    cells = [
        cell(method, seed, 0.5, 1.0, robust[seed], 100.0, **common)
        for method, robust in RESULTS.items()
        for seed in range(seeds)
    ]
    return {"cells": cells, "dense": DENSE}


def test_the_finding_names_the_strongest_rival_and_what_chance_leaves_of_the_lead():
    text = finding(summarize(compared(3)))
    p = stats.ttest_rel(RESULTS["ccsrp"], RESULTS["random"]).pvalue
    assert "above 2 of 2 rivals" in text and "strongest rival is random with 0.4533" in text
    assert "lead is +0.0017 on average" in text and "1 of 3 seeds" in text
    assert (
        f"(p = {p:.2g})" in text
        and "at 5 %, rivals significantly below it: 1, significantly above it: 0." in text
    )


def test_the_finding_counts_rivals_above_the_default_and_takes_ablations_for_none():
    record = compared(3)
    for row in record["cells"]:
        row["method"] = {"ccsrp": "l1", "l1": "ccsrp", "random": "ccsrp: wider"}[row["method"]]
    text = finding(summarize(record))
    assert "above 0 of 1 rivals" in text and "strongest rival is l1" in text
    assert "significantly below it: 0, significantly above it: 1." in text
    record["cells"] = [row for row in record["cells"] if row["method"] != "l1"]
    assert finding(summarize(record)).startswith("The default method and a rival")


def test_a_finding_of_one_seed_says_that_it_cannot_tell_chance():
    text = finding(summarize(compared(1)))
    assert "lead is -0.0050. With one seed" in text and "nan" not in text


def test_a_rival_is_compared_on_the_seeds_that_both_have():
    record = compared(3)
    record["cells"] = [c for c in record["cells"] if c["method"] != "random" or c["seed"] < 2]
    text = finding(summarize(record))
    assert "lead is +0.0050 on average" in text and "1 of 2 seeds" in text


def network(**volumes):
    """A comparison in which a method's seeds have these hypervolumes, at one target."""
    cells = [
        cell(method, seed, 0.5, 1.0, volume, 0.0, synops=0.0, weights=False)
        for method, seeds in volumes.items()
        for seed, volume in enumerate(seeds)
    ]
    return {"dense": DENSE, "cells": cells}


NETWORKS = [
    network(ccsrp=[0.6, 0.8], a=[0.5, 0.6], b=[0.1], only_here=[0.9]),
    network(ccsrp=[0.4], a=[0.5, 0.7], b=[0.2]),
    network(ccsrp=[0.5], a=[0.25], b=[0.5]),
    network(ccsrp=[0.9], a=[0.6], b=[0.1]),
]


def test_a_network_counts_once_with_the_mean_of_its_seeds():
    found = {standing.method: standing for standing in rank_over_networks(NETWORKS, "ccsrp")}
    assert found["ccsrp"].ranks == (1, 2, 1.5, 1) and found["ccsrp"].behind == 0
    assert found["a"].ranks == (2, 1, 3, 2) and found["b"].ranks == (3, 3, 1.5, 3)
    assert [s.method for s in rank_over_networks(NETWORKS, "ccsrp")] == ["ccsrp", "a", "b"]
    for method, values in (("a", [0.55, 0.6, 0.25, 0.6]), ("b", [0.1, 0.2, 0.5, 0.1])):
        gaps = np.subtract([0.7, 0.4, 0.5, 0.9], values)
        assert found[method].behind == (gaps > 1e-6).sum()
        assert found[method].lead == pytest.approx(gaps.mean(), rel=1e-5)
    assert math.isnan(found["ccsrp"].p)
    # of the 16 signs that four gaps can have, 3 have no more below than the 2nd smallest
    assert found["a"].p == pytest.approx(2 * 3 / 16)


def test_weights_methods_and_single_networks_are_not_ranked():
    with pytest.raises(InputError, match="1 networks share the methods ccsrp, a, b"):
        rank_over_networks(NETWORKS[:1], "ccsrp")
    with pytest.raises(InputError, match="that share 'ccsrp'"):
        rank_over_networks([network(a=[0.1], b=[0.2])] * 2, "ccsrp")
    masked = [dict(cell, method="weights", weights=True) for cell in NETWORKS[0]["cells"][:2]]
    more = [{**record, "cells": record["cells"] + masked} for record in NETWORKS]
    assert "weights" not in {standing.method for standing in rank_over_networks(more, "ccsrp")}


def test_the_script_ranks_tables_of_networks(tmp_path, capsys):
    script, tables = experiment("rank_methods"), []
    for number, record in enumerate(NETWORKS):
        tables.append(tmp_path / f"network{number}" / "methods.json")
        tables[-1].parent.mkdir()
        tables[-1].write_text(json.dumps(record))
    out = tmp_path / "networks.json"
    assert script.main([*map(str, tables), "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["networks"] == ["network0", "network1", "network2", "network3"]
    expected = [standing._asdict() for standing in rank_over_networks(NETWORKS, "ccsrp")]
    assert [row["ranks"] for row in found["macs"]] == [list(row["ranks"]) for row in expected]
    assert found["macs"][1]["p"] == expected[1]["p"] and found["macs"][0]["p"] is None
    assert script.main([str(tmp_path / "methods.json"), "--out", str(out)]) == 2
    assert script.main([str(tables[0])]) == 2
    said = capsys.readouterr().err
    assert "there is no" in said and "give tables of two networks" in said
    tables[0].write_text("{}")
    assert script.main([*map(str, tables), "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert "is no table of methods" in said and "Traceback" not in said
