"""The headline and the exit code of a run say the same, and what the test says."""

import pytest

from kshot.evaluation.report.conclusion import conclude

FAILED = [{"name": "purity", "result": "FAILED"}]


@pytest.mark.parametrize(
    ("outcome", "mean", "change", "code", "headline"),
    [
        ("TARGET_MET", 0.95, {}, 0, "target met"),
        ("TARGET_MET", 0.89, {}, 0, "target met"),  # the bound is inside the interval: the test does not contradict
        ("TARGET_MET", 0.80, {}, 1, "target missed on the test"),
        ("TARGET_MET", 0.95, {"audits": FAILED}, 3, "not to be trusted"),
        ("TARGET_MET", 0.95, {"trusted": False}, 3, "not to be trusted"),
        ("BUDGET_SPENT", 0.95, {}, 1, "budget spent"),
        ("DIVERGED", None, {}, 1, "diverged"),
    ],
)
def test_exit_code_and_headline(outcome, mean, change, code, headline):
    test = None if mean is None else {"accuracy": {"mean": mean, "ci95": 0.02, "num_tasks": 100}}
    report = {
        "metric": "accuracy",
        "target": "accuracy >= 0.9",
        "outcome": outcome,
        "sentence": "It ended.",
        "test": test,
    }
    found = conclude(report | change)
    assert (found.exit_code, found.headline) == (code, headline)
    assert ("missed on the test" in found.headline) == ("missed on the test tasks" in found.sentence)


def test_a_target_of_another_metric_than_the_headline_is_not_compared():
    test = {"mae": {"mean": 5.0, "ci95": 0.1, "num_tasks": 10}}
    report = {"metric": "mae", "target": "mse <= 1", "outcome": "TARGET_MET", "test": test}
    assert conclude(report).exit_code == 0
