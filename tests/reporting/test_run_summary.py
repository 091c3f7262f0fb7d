"""The finding of a run in words."""

from run_records import ASSESSED, SUMMARY

from ccsrp_jax.reporting import run_summary


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
        "of 4 attacks (linf, eps 0.1), with 50 % of the MACs, 25 % of the parameters and 55 % of "
        "the latency."
    )
    kept = run_summary.finding(ASSESSED | {"chosen_round": 0})
    assert kept == (
        "On the 360 test images the dense network has accuracy 0.986 and worst-case robust "
        "accuracy 0.650 under the quick suite of 4 attacks (linf, eps 0.1); no pruned one was "
        "chosen."
    )


def test_finding_says_where_robustness_is_not_established():
    records = {
        name: record | {"reliable": False, "conclusion": "not established", "reasons": ["no width"]}
        for name, record in ASSESSED["robustness"].items()
        if isinstance(record, dict)
    }
    finding = run_summary.finding(ASSESSED | {"robustness": records})
    assert finding.startswith(
        "The robust accuracy of the dense network is not established: no width. "
    )
    old = {"reliable": True}, {"reliable": False}  # records of earlier versions
    assert [run_summary.conclusion(record) for record in old] == ["reliable", "unreliable"]
