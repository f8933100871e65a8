"""Figures by unit, their tables and chart, and the check of the data in the verdict."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
from reports import ROUNDS, of

from kshot.evaluation.by_class import ByClass, ClassFigure, Confusion
from kshot.evaluation.by_unit import by_unit, write_by_class, write_by_unit
from kshot.evaluation.intervals import BOUNDS, Interval, interval
from kshot.evaluation.per_task import Scores
from kshot.evaluation.report import breakdowns
from kshot.evaluation.report.conclusion import UNTRUSTED, conclude
from kshot.evaluation.report.report import write_report
from kshot.evaluation.report.verdict import trust_of, verdict_of
from kshot.evaluation.units import Units

UNITS = Units(np.array([0, 1, 2, 0, 1, 0]), "patient", ["Ann", "Bob", "Cid"])


def scores(values: list[float], units: Units | None = UNITS) -> Scores:
    return Scores([str(number) for number in range(len(values))], {"mae": values}, units and units.first(len(values)))


def test_units_are_worst_first_with_their_intervals_and_a_baseline_beside():
    ours, theirs = scores([1.0, 5.0, 3.0, 2.0, 7.0, 6.0]), scores([2.0, 4.0, 9.0, 4.0])
    found = by_unit(ours, "mae", {"mean": theirs}, higher_is_better=False)
    assert [(each.name, each.figure.mean, each.others["mean"]) for each in found] == [
        ("Bob", 6.0, 4.0),
        ("Ann", 3.0, 3.0),
        ("Cid", 3.0, 9.0),
    ]
    assert found[0].figure == interval([5.0, 7.0], bounds=BOUNDS["mae"])
    assert math.isnan(found[2].figure.ci95)
    best_last = by_unit(ours, "mae", {}, higher_is_better=True)
    assert [each.name for each in best_last] == ["Ann", "Cid", "Bob"]


def test_a_figure_that_is_not_finite_is_the_worst_and_classes_are_no_units():
    values = [1.0, 5.0, math.nan, 2.0, 7.0, 6.0]
    for higher in (True, False):
        assert by_unit(scores(values), "mae", {}, higher_is_better=higher)[0].name == "Cid"
    several = Units(np.zeros((6, 2), int), "class", ["a"])
    assert by_unit(scores(values, several), "mae", {}, higher_is_better=True) == []
    assert by_unit(scores(values, None), "mae", {}, higher_is_better=True) == []


def test_the_tables_have_every_unit_class_and_pair(tmp_path):
    found = by_unit(scores([1.0, 5.0, 3.0, 2.0, 7.0, 6.0]), "mae", {"mean": scores([2.0])}, higher_is_better=False)
    write_by_unit(tmp_path / "units.csv", found, "patient", "mae")
    rows = list(csv.DictReader((tmp_path / "units.csv").read_text().splitlines()))
    assert [row["patient"] for row in rows] == ["Bob", "Ann", "Cid"]
    assert [row["mae of mean"] for row in rows] == ["", "2.0", ""]
    assert rows[2]["mae low"] == ""
    classes = [ClassFigure("boa, large", Interval(0.5, 0.1, 4), 8, "asp")]
    write_by_class(tmp_path, ByClass(classes, [Confusion("boa, large", "asp", 4, 0.5)]))
    (row,) = csv.DictReader((tmp_path / "classes.csv").read_text().splitlines())
    assert (row["class"], row["recall"], row["recall low"]) == ("boa, large", "0.5", "0.4")
    (row,) = csv.DictReader((tmp_path / "confusions.csv").read_text().splitlines())
    assert row == {"true class": "boa, large", "predicted class": "asp", "times": "4", "share": "0.5"}


def test_the_chart_shows_the_worst_at_the_top():
    values = list(np.linspace(0, 1, 40))
    units = Units(np.arange(20).repeat(2), "patient", [f"patient {number}" for number in range(20)])
    found = by_unit(scores(values, units), "mae", {"mean": scores(values[::-1], units)}, higher_is_better=False)
    (axes,) = breakdowns.units_chart(found, "patient", "mae", higher_is_better=False, beside="mean").axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels[-1] == "patient 19"
    assert len(labels) == breakdowns.MOST_UNITS
    assert "The 15 worst of 20" in axes.get_title(loc="left")


REPORT = {
    "metric": "accuracy",
    "higher_is_better": True,
    "target": "accuracy >= 0.9",
    "outcome": "TARGET_MET",
    "rounds": ROUNDS,
    "test": of(0.95),
    "baselines": {"centroid": of(0.7)},
    "audits": [
        {"name": "finite", "question": "?", "finding": "Yes.", "result": "PASSED", "tolerance": None, "reason": ""}
    ],
    "trusted": True,
}
FINDINGS = {
    "looked_at": "A short check.",
    "findings": [{"severity": "error", "check": "two splits", "sentence": "9 test examples are in train."}],
}


def test_an_error_in_the_data_makes_a_figure_untrusted(tmp_path):
    assert conclude(REPORT).exit_code == 0
    assert trust_of(REPORT).sentence == "trusted: 1 of 1 audits passed"
    report = REPORT | {"data_check": FINDINGS}
    assert conclude(report).exit_code == UNTRUSTED
    assert trust_of(report).sentence == (
        "not trusted: the check of the data found errors (two splits); 1 of 1 audits passed"
    )
    assert "supports no claim; it failed: the check of the data (two splits)" in verdict_of(report)
    page = write_report(tmp_path, report, [], {}).read_text()
    assert "9 test examples are in train." in page
    assert "beats" not in page
    assert json.loads((tmp_path / "report.json").read_text())["trust"].startswith("not trusted")


def test_a_warning_in_the_data_is_told_and_changes_no_verdict(tmp_path):
    warning = {"severity": "warning", "check": "copies", "sentence": "A few are equal."}
    report = REPORT | {"data_check": FINDINGS | {"findings": [warning]}}
    assert conclude(report).exit_code == 0
    page = write_report(tmp_path, report, [], {}).read_text()
    assert "A few are equal." in page
    assert "not to be trusted" not in page


@pytest.mark.parametrize("count", [3, 20])
def test_a_confusion_matrix_has_a_row_for_each_class(count):
    names = [f"class {number:02}" for number in range(count)]
    classes = [ClassFigure(name, Interval(0.9, 0.01, 9), 9, names[0]) for name in names]
    figure = breakdowns.confusion_chart(ByClass(classes, [Confusion(names[1], names[0], 1, 0.1)]))
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == names
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts.count(".90") == count
    assert texts.count(".10") == 1
