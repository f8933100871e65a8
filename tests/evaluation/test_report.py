"""The report and its figures: what they claim, what they hold, and that they stand on their own."""

from __future__ import annotations

import base64
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from reports import EVENTS, ROUNDS, image_figure, of, round_entry

from kshot.evaluation.intervals import Interval
from kshot.evaluation.report import charts, run_charts
from kshot.evaluation.report import report as reporting
from kshot.evaluation.report.formatting import format_figure
from kshot.evaluation.report.report import picture, to_json, write_report
from kshot.evaluation.report.verdict import best_baseline, unlike, verdict

HOSTILE = "<script>alert('x')</script> & \"quoted\""


REPORT = {
    "kshot": "0.1.0",
    "name": "glyphs",
    "command": "kshot run glyphs --seed 0",
    "outcome": "TARGET_MET",
    "sentence": "The target is met on validation tasks.",
    "reason": "validation accuracy 0.93 meets it",
    "target": "accuracy >= 0.9",
    "metric": "accuracy",
    "higher_is_better": True,
    "rounds": ROUNDS,
    "best_round": 4,
    "val": of(0.93),
    "test": of(0.953, 0.004, 1000),
    "baselines": {"nearest centroid": of(0.743, 0.01, 1000), "from scratch": of(0.5, 0.01, 1000)},
    "baselines_about": {"nearest centroid": "The nearest class mean of the raw inputs."},
    "protocol": {
        "inductive": True,
        "episodes_sha256": "ab" * 32,
        "ways": 5,
        "shots": 1,
        "seed": 0,
        "num_test_tasks": 1000,
    },
    "environment": {"python": "3.12", "torch": {"version": "2.13"}},
    "timing": {"seconds": 240.0, "pretrain_seconds": 12.0, "adapt_ms": 1.5},
}
REPORT |= {
    "paired": {
        "nearest centroid": {"mean": 0.21, "ci95": 0.008, "num_tasks": 1000, "p": 0.0, "p_holm": 0.0},
        "from scratch": {"mean": 0.003, "ci95": 0.01, "num_tasks": 1000, "p": 0.4, "p_holm": 0.4},
    },
    "worst_tasks": [{"task": 17, "episode": "cd" * 8, "accuracy": 0.2}],
    "calibration": {
        "kind": "classes",
        "error": 0.031,
        "points": [{"expected": 0.9, "observed": 0.95, "share": 1.0}],
        "num_examples": 900,
        "nll": {"mean": 0.2, "ci95": 0.01, "num_tasks": 1000},
        "brier": {"mean": 0.1, "ci95": 0.01, "num_tasks": 1000},
    },
    "cost": {
        "num_parameters": 112_000,
        "state_size": 163,
        "state_bytes": 652,
        "adapt_flops": 324_096,
        "predict_flops": 1_618_560,
        "adapt_ms": {"median": 1.5, "p95": 2.5},
        "predict_ms": {"median": 1.0, "p95": 1.25},
    },
    "seeds": [],
}


@pytest.fixture(autouse=True)
def _every_chart_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only the first of each name, as in other tests."""
    monkeypatch.setattr(reporting, "picture", picture)


def all_figures(report: dict[str, Any] = REPORT) -> dict[str, Any]:
    return {
        "learning_curve": run_charts.learning_curve(EVENTS),
        "rounds": run_charts.rounds_chart(
            report["rounds"], report["target"], baseline=best_baseline(report["baselines"], "accuracy", True)
        ),
        "baselines": charts.baselines_chart(report["test"], report["baselines"], "accuracy"),
    }


def page(folder: Path, report: dict[str, Any], drawn: dict[str, Any] | None = None) -> str:
    return write_report(folder, report, EVENTS, drawn or {}).read_text()


# --- what is claimed ---


@pytest.mark.parametrize(
    ("test", "baseline", "higher", "claim"),
    [
        (of(0.95), of(0.70), True, "beats the best baseline without meta-learning by 0.250"),
        (of(0.95), of(0.94), True, "the simple baseline is as good here"),
        (of(0.95), of(0.93), True, "the simple baseline is as good here"),  # touching is not apart
        (of(0.70), of(0.95), True, "is worse than the best baseline without meta-learning by 0.250"),
        (of(0.70), of(0.95), False, "beats the best baseline"),
        (of(0.95), of(0.70), False, "is worse than"),
        (of(0.95, None), of(0.70), True, "too few tasks"),
        (of(0.95, math.nan, 1), of(0.70), True, "too few tasks"),
        (of(None), of(0.70), True, "no finite accuracy"),
        (of(0.95), of(math.nan), True, "no baseline gave a finite figure"),
        (of(0.95), {}, True, "no baseline gave a finite figure"),
        (None, of(0.70), True, "no test figure"),
        ({}, of(0.70), True, "no test figure"),
    ],
)
def test_verdict_goes_by_the_intervals(test: Any, baseline: Any, higher: bool, claim: str) -> None:
    assert claim in verdict(test, {"plain": baseline}, "accuracy", higher).lower()


@pytest.mark.parametrize(
    ("ours", "higher", "p", "claim"),
    [
        (0.40, False, 0.01, "beats the best baseline without meta-learning by 0.300 (0.200 to 0.600)"),
        (0.40, False, 0.30, "the difference of 0.300 (0.200 to 0.600)"),
        (0.40, True, 0.01, "is worse than the best baseline without meta-learning by 0.300 (0.200 to 0.600)"),
    ],
)
def test_the_interval_of_the_verdict_is_mirrored_with_its_difference(ours, higher, p, claim):
    paired = {"mean": -0.3, "ci95": 0.2, "shift": -0.1, "num_tasks": 50, "p_holm": p}  # -0.6 to -0.2
    assert claim in verdict(of(ours), {"plain": of(0.70)}, "accuracy", higher, {"plain": paired})


def test_verdict_without_baselines_claims_nothing() -> None:
    assert "not known" in verdict(of(0.95), {}, "accuracy", True)
    assert "not known" in verdict(of(0.95), None, "accuracy", True)


def test_verdict_compares_with_the_best_baseline() -> None:
    baselines = {"weak": of(0.5), "strong": of(0.9), "broken": of(None)}
    assert "(strong)" in verdict(of(0.95), baselines, "accuracy", True)
    assert "(weak)" in verdict(of(0.1), baselines, "accuracy", False)


@pytest.mark.parametrize(
    ("figure", "text"),
    [
        (Interval(0.9531, 0.0042, 9), "0.953 ± 0.004"),
        (Interval(3.3721, 0.7602, 9), "3.372 ± 0.760"),
        (Interval(0.953125, 0.00042, 9), "0.9531 ± 0.0004"),
        (Interval(1234.56, 7.0, 9), "1234.6 ± 7.0"),
        (Interval(0.5, math.nan, 1), "0.500"),
        (Interval(1.0, 0.0, 9), "1.000 ± 0.000"),
        (Interval(0.0, 0.0, 9), "0.000 ± 0.000"),
        (Interval(math.nan, math.nan, 9), "not finite"),
    ],
)
def test_figures_are_written_with_the_digits_that_count(figure: Interval, text: str) -> None:
    assert format_figure(figure) == text


# --- the page ---


def test_headline_verdict_and_protocol_are_on_the_page(tmp_path: Path) -> None:
    html = page(tmp_path, REPORT, all_figures())
    for text in (
        "target met",
        "0.953 ± 0.004",
        "(1000 tasks, 1 seed)",
        "best baseline: nearest centroid",
        "beats the best baseline without meta-learning by 0.210",
        "also holds on the test tasks",
        "Inductive",
        "round 4, selected on validation tasks",
        "ab" * 32,
        "from a checkpoint once",
        "+0.210 ± 0.008",
        "+0.003 ± 0.010, not significant",
        "0.200, episode cdcdcdcdcdcdcdcd",
        "expected calibration error",
        "0.200 ± 0.010",
        "163 (652 B)",
        "1.5 ms, 95 % below 2.5 ms",
        "1.62 M",
        "4 min 0 s",
        "kshot run glyphs --seed 0",
        *(f"Reason {number}" for number in (1, 2, 3, 4)),
    ):
        assert text in html, text


def test_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    drawn = all_figures() | {"classification_examples": image_figure()}
    html = page(tmp_path, REPORT, drawn)
    assert "http://" not in html
    assert "https://" not in html
    assert "<script" not in html
    assert not re.search(r"<link|@import|url\(", html)
    sources = re.findall(r'\b(?:src|href)="([^"]{30})', html)
    assert len(sources) == len(drawn) == html.count("src=")
    assert sum(source.startswith("data:image/svg+xml;base64,") for source in sources) == 3
    assert sum(source.startswith("data:image/png;base64,") for source in sources) == 1


def test_a_report_over_seeds_has_both_intervals_and_a_line_a_seed(tmp_path: Path) -> None:
    pooled = {"mean": 0.95, "ci95": 0.02, "num_seeds": 3, "ci95_tasks": 0.004, "num_tasks": 1000}
    seeds = [
        {"seed": seed, "test": of(0.94 + seed / 100), "best_round": 2, "outcome": "TARGET_MET", "seconds": 60.0}
        for seed in range(3)
    ]
    html = page(tmp_path, REPORT | {"test": {"accuracy": pooled}, "seeds": seeds, "rounds": [], "best_round": None})
    for text in (
        "0.950 ± 0.020",
        "3 seeds; ± 0.004 over 1000 tasks within a seed",
        "with 95 % intervals over seeds",
        "0.960 ± 0.010",
        "One checkpoint for each seed, no ensemble",
    ):
        assert text in html, text
    assert "Rounds and decisions" not in html


def test_bands_are_told_by_their_coverage(tmp_path: Path) -> None:
    points = [{"expected": level, "observed": level - 0.1, "share": 0.1} for level in (0.5, 0.95)]
    bands = {"kind": "bands", "error": 0.1, "points": points, "num_examples": 9, "nll": None, "brier": None}
    html = page(tmp_path, REPORT | {"calibration": bands})
    assert "targets within the 95% band" in html
    assert "85.0%" in html


def test_figures_name_no_outside_resource(tmp_path: Path) -> None:
    html = page(tmp_path, REPORT, all_figures())
    for found in re.findall(r"svg\+xml;base64,([^\"]+)", html):
        svg = base64.b64decode(found).decode()
        assert not re.search(r'href="(?!#)', svg)


def test_what_a_user_wrote_is_escaped(tmp_path: Path) -> None:
    report = REPORT | {
        "name": HOSTILE,
        "command": HOSTILE,
        "sentence": HOSTILE,
        "reason": HOSTILE,
        "baselines": {HOSTILE: of(0.5)},
        "baselines_about": {HOSTILE: HOSTILE},
        "protocol": {"source": HOSTILE, HOSTILE: 1},
        "environment": {HOSTILE: HOSTILE},
        "rounds": [round_entry(1, 0.5, HOSTILE) | {"settings": {HOSTILE: HOSTILE}}],
    }
    html = page(tmp_path, report, {HOSTILE: run_charts.learning_curve(EVENTS)})
    assert "<script" not in html
    assert '"quoted"' not in html
    assert html.count("&lt;script&gt;") >= 10


def test_intervals_are_over_units_unless_each_task_has_all_of_them(tmp_path: Path) -> None:
    protocol = {"unit": "class", "test_units": 2}
    assert "intervals over the 2 classes of the tasks" in page(tmp_path, REPORT | {"protocol": protocol})
    html = page(tmp_path, REPORT | {"protocol": protocol | {"same_units_in_all_tasks": True}})
    assert "intervals over tasks. All tasks are of the same 2 classes: the figures say nothing about others." in html


def test_report_json_is_strict_and_nan_is_null(tmp_path: Path) -> None:
    report = REPORT | {"test": of(math.nan, math.inf), "val": {"accuracy": Interval(0.9, math.nan, 1)}}
    page(tmp_path, report)

    def refuse(name: str) -> None:
        raise AssertionError(name)

    read = json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)
    rest = {"shift": 0.0, "num_units": None, "unit": "task"}
    assert read["test"]["accuracy"] == {"mean": None, "ci95": None, "num_tasks": 100}
    assert read["val"]["accuracy"] == {"mean": 0.9, "ci95": None, "num_tasks": 1} | rest
    assert read["rounds"] == ROUNDS


def test_numbers_of_numpy_and_torch_become_numbers() -> None:
    values = {"a": torch.tensor(0.5), "b": torch.tensor(2), "c": (1, math.nan), "d": Path("x"), 3: True}
    assert to_json(values) == {"a": 0.5, "b": 2, "c": [1, None], "d": "x", "3": True}


def test_files_are_written_whole_and_again(tmp_path: Path) -> None:
    page(tmp_path / "new" / "folder", REPORT)
    page(tmp_path / "new" / "folder", REPORT | {"name": "second"})
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == ["report.html", "report.json"]
    assert "second" in (tmp_path / "new" / "folder" / "report.html").read_text()


def test_equal_reports_are_equal_bytes(tmp_path: Path) -> None:
    assert page(tmp_path / "a", REPORT, all_figures()) == page(tmp_path / "b", REPORT, all_figures())


@pytest.mark.parametrize("missing", [name for name in REPORT if name != "metric"])
@pytest.mark.parametrize("how", ["absent", "null"])
def test_a_missing_part_does_not_break_the_page(tmp_path: Path, missing: str, how: str) -> None:
    report = {name: value for name, value in REPORT.items() if name != missing}
    assert "</html>" in page(tmp_path, report | ({missing: None} if how == "null" else {}))


def test_a_run_that_diverged_at_once(tmp_path: Path) -> None:
    rounds = [round_entry(1, None, "stop", outcome="DIVERGED") | {"train_loss": math.nan}]
    report = REPORT | {"outcome": "DIVERGED", "rounds": rounds, "best_round": None, "val": None, "test": None}
    html = page(tmp_path, report, all_figures(report))
    assert "no round gave a usable checkpoint" in html
    assert "No round gave a usable checkpoint. The test tasks were not used." in html
    assert "nan" not in re.sub(r"base64,[^\"]*", "", html).replace("the loss is nan", "")


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("accuracy >= 0.9", "also holds on the test tasks"),
        ("accuracy >= 0.95", "is open"),
        ("accuracy >= 0.99", "misses the target"),
        ("accuracy <= 0.96", "also holds on the test tasks"),
        ("accuracy <= 0.9", "misses the target"),
    ],
)
def test_page_says_whether_the_test_figure_keeps_the_promise(tmp_path: Path, target: str, sentence: str) -> None:
    assert sentence in page(tmp_path, REPORT | {"target": target})


def test_transductive_is_said(tmp_path: Path) -> None:
    assert "Transductive" in page(tmp_path, REPORT | {"protocol": {"inductive": False, "seed": 0}})


@pytest.mark.parametrize("ours", ["inductive", "causal", "transductive"])
def test_a_comparison_of_unlike_learners_says_so(tmp_path: Path, ours: str) -> None:
    protocol = {"inductive": ours == "inductive", "inference": ours, "seed": 0}
    inference = {"learner": ours, "nearest centroid": "inductive", "from scratch": "transductive"}
    report = REPORT | {"protocol": protocol, "inference": inference}
    text = page(tmp_path, report)
    assert f"{ours.capitalize()}: " in text
    assert ("This comparison is not of like with like" in text) == (ours != "inductive")
    assert ("Like with like is the comparison with from scratch" in text) == (ours == "transductive")
    assert (f"· {ours}" in text) == (ours != "inductive")
    turned = report | {"inference": inference | {"nearest centroid": "transductive"}}
    assert ("not of like with like" in " ".join(unlike(turned))) == (ours != "transductive")


def test_an_ensemble_is_called_one(tmp_path: Path) -> None:
    text = page(tmp_path, REPORT | {"protocol": REPORT["protocol"] | {"ensemble": 5}})
    assert "One checkpoint, an ensemble of 5: that of round 4" in text
    assert "· ensemble of 5" in text
    assert "no ensemble" in page(tmp_path, REPORT)


def test_trust_is_given_with_its_reasons(tmp_path: Path) -> None:
    audit = {"question": "?", "figure": None, "tolerance": None, "reason": ""}
    audits = [audit | {"name": f"a{n}", "result": "PASSED", "finding": "Good."} for n in range(12)]
    audits += [audit | {"name": f"i{n}", "result": "IDLE", "finding": "Nothing was recorded."} for n in range(4)]
    text = page(tmp_path, REPORT | {"audits": audits, "trusted": True})
    sentence = "trusted: 12 of 16 audits passed, 4 idle: i0, i1, i2, i3 (nothing was recorded)"
    assert f"Audits: {sentence}." in text
    assert json.loads((tmp_path / "report.json").read_text())["trust"] == sentence
    mostly_idle = page(tmp_path, REPORT | {"audits": audits[9:], "trusted": False})
    assert "not trusted: 3 of 7 audits passed, 4 idle" in mostly_idle
    assert "not to be trusted and supports no claim" in mostly_idle
    assert "beats the best baseline" not in mostly_idle


def test_the_number_of_runs_that_were_tried_is_given(tmp_path: Path) -> None:
    counts = {"runs": 7, "tested": 5, "seeds": 3, "task_seeds": 1, "configurations": 4}
    text = page(tmp_path, REPORT | {"tried": counts})
    assert "one of 7 runs on these data in the folder (3 seeds, 1 task seed, 4 configurations)" in text
    assert "5 of the others have a test figure" in text
    assert "runs on these data" not in page(tmp_path, REPORT | {"tried": counts | {"runs": 1, "tested": 0}})


def test_a_report_without_its_metric_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs its 'metric'"):
        write_report(tmp_path, {"name": "x"}, [], {})


def test_importing_kshot_and_the_report_stays_light() -> None:
    code = "import sys, kshot, kshot.evaluation.report.report; print(*{'matplotlib', 'jinja2'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_a_picture_that_cannot_be_drawn_costs_the_report_nothing_else(tmp_path: Path, caplog) -> None:
    from matplotlib.figure import Figure

    good, bad = Figure(), Figure()
    good.subplots().plot([1, 2])
    bad.subplots().set_title("$\\frac{$", loc="left")
    report = {"metric": "mse", "rounds": []}
    page = write_report(tmp_path, report, [], {"learning_curve": good, "rounds": bad}).read_text()
    assert "image/svg+xml" in page
    (failure,) = json.loads((tmp_path / "report.json").read_text())["failures"]
    assert failure["what"] == "the picture rounds"
    assert "the picture rounds" in page
