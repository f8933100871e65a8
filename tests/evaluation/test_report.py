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

from kshot import Batch, Task, maml, models, objectives, sources
from kshot.evaluation.calibration import Calibration, Point
from kshot.evaluation.intervals import Interval
from kshot.evaluation.report import charts, run_charts, task_pictures
from kshot.evaluation.report.formatting import format_figure
from kshot.evaluation.report.report import to_json, write_report
from kshot.evaluation.report.verdict import best_baseline, verdict

HOSTILE = "<script>alert('x')</script> & \"quoted\""


def of(mean: float | None, ci95: float | None = 0.01, tasks: int = 100, metric: str = "accuracy") -> dict[str, Any]:
    return {metric: {"mean": mean, "ci95": ci95, "num_tasks": tasks}}


def round_entry(number: int, mean: float | None, action: str = "continue", **decision: Any) -> dict[str, Any]:
    return {
        "number": number,
        "step": 100 * number,
        "train_loss": 1 / number,
        "val": {} if mean is None else of(mean),
        "settings": {"outer_lr": 1e-3 if number < 3 else 3e-4, "clip": 10.0},
        "seconds": 60.0 * number,
        "checkpoint": f"round-{number:04d}",
        "diverged": "the loss is nan" if mean is None else None,
        "decision": {"action": action, "reason": f"reason {number}"} | decision,
    }


ROUNDS = [
    round_entry(1, 0.7),
    round_entry(2, 0.6, "change", settings={"outer_lr": 3e-4}),
    round_entry(3, None, "rollback", to_round=1),
    round_entry(4, 0.93, "stop", outcome="TARGET_MET"),
]
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
EVENTS = [{"kind": "train", "step": 10 * i, "loss": 1 / i} for i in range(1, 40)] + [{"kind": "resumed"}]


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


def test_report_json_is_strict_and_nan_is_null(tmp_path: Path) -> None:
    report = REPORT | {"test": of(math.nan, math.inf), "val": {"accuracy": Interval(0.9, math.nan, 1)}}
    page(tmp_path, report)

    def refuse(name: str) -> None:
        raise AssertionError(name)

    read = json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)
    assert read["test"]["accuracy"] == {"mean": None, "ci95": None, "num_tasks": 100}
    assert read["val"]["accuracy"] == {"mean": 0.9, "ci95": None, "num_tasks": 1}
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


def test_a_report_without_its_metric_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs its 'metric'"):
        write_report(tmp_path, {"name": "x"}, [], {})


# --- the figures ---


def texts(figure: Any) -> str:
    from matplotlib.text import Text

    figure.draw_without_rendering()
    return "\n".join(each.get_text() for each in figure.findobj(Text))


def test_rounds_chart_has_an_interval_a_round_and_a_mark_a_decision() -> None:
    figure = run_charts.rounds_chart(ROUNDS, "accuracy >= 0.9", baseline=("plain", Interval(0.5, 0.01, 100)))
    axes, strip = figure.axes
    (container,) = axes.containers
    assert len(container[2][0].get_segments()) == 3  # the diverged round has none
    assert [line.get_gid() for line in strip.lines] == ["continue", "change", "rollback", "stop"]
    (best,) = [each for each in axes.collections if each.get_gid() == "best"]
    assert best.get_offsets().tolist() == [[4, 0.93]]
    said = texts(figure)
    for words in (
        "target ≥ 0.9",
        "outer_lr 0.0003",
        "back to 1",
        "stop: target met",
        "diverged",
        "best baseline\nplain",
    ):
        assert words in said, words
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert [float(line.get_ydata()[0]) for line in dashed] == [0.5]


def test_a_baseline_far_off_does_not_squash_the_rounds() -> None:
    figure = run_charts.rounds_chart(ROUNDS, "accuracy >= 0.9", baseline=("far", Interval(9.0, 0.01, 100)))
    assert "↑ 9.000" in texts(figure)
    assert figure.axes[0].get_ylim()[1] < 2


@pytest.mark.parametrize("rounds", [[], [round_entry(1, None)], [round_entry(1, 0.5)], [{"number": 1}]])
def test_rounds_chart_takes_few_rounds(rounds: list[dict[str, Any]]) -> None:
    assert "round" in texts(run_charts.rounds_chart(rounds, "accuracy >= 0.9"))


def test_rounds_chart_takes_errors_over_decades_and_single_tasks() -> None:
    rounds = [{"number": i, "val": of(10.0**-i, 1.5 * 10.0**-i, metric="mse")} for i in range(5)]
    figure = run_charts.rounds_chart(rounds, "mse <= 0.001")
    assert "best: 0.000" in texts(figure)
    assert figure.axes[0].get_yscale() == "log"
    texts(run_charts.rounds_chart([{"number": 1, "val": of(0.5, None, 1)}], "accuracy >= 0.9"))


def test_a_target_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="a target reads 'METRIC >= NUMBER'"):
        run_charts.rounds_chart(ROUNDS, "as good as can be")


def test_learning_curve_keeps_the_later_event_of_a_step() -> None:
    events = [
        {"kind": "train", "step": 10, "loss": 5.0},
        {"kind": "train", "step": 20, "loss": 9.0},
        {"kind": "decision", "step": 15},
        {"kind": "train", "step": 20, "loss": 4.0},
    ]
    (axes,) = run_charts.learning_curve(events).axes
    (recorded,) = [line for line in axes.lines if line.get_gid() == "recorded"]
    assert recorded.get_xydata().tolist() == [[10, 5], [20, 4]]


def test_learning_curve_has_a_panel_a_kind_and_a_log_scale_where_the_range_asks() -> None:
    events = [{"kind": kind, "step": i, "loss": 1 / i} for kind in ("pretrain", "train") for i in range(1, 100)]
    figure = run_charts.learning_curve(events)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Pretraining loss", "Meta-training loss"]
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "log"]
    texts(figure)


def test_learning_curve_marks_what_is_not_finite() -> None:
    events = [{"kind": "train", "step": 1, "loss": 2.0}, {"kind": "train", "step": 2, "loss": None}]
    assert "not finite" in texts(run_charts.learning_curve(events))
    assert "no finite loss was recorded" in texts(run_charts.learning_curve([]))


def test_smoothing_keeps_a_straight_line() -> None:
    events = [{"kind": "train", "step": i, "loss": 10.0 + i} for i in range(200)]
    (axes,) = run_charts.learning_curve(events).axes
    (smooth,) = [line for line in axes.lines if line.get_gid() == "smooth"]
    assert smooth.get_ydata() == pytest.approx([10.0 + i for i in range(200)])


@pytest.mark.parametrize(("higher", "top"), [(True, "learner"), (False, "weak")])
def test_baselines_chart_has_an_interval_each_and_the_best_on_top(higher: bool, top: str) -> None:
    baselines = {"weak": of(0.5), "strong": of(0.8), "broken": of(None)}
    figure = charts.baselines_chart(of(0.9), baselines, "accuracy", higher_is_better=higher)
    (axes,) = figure.axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert len(axes.containers) == 3
    assert names[-1] == top
    assert names[0] == "broken"
    assert "not finite" in texts(figure)


def test_baselines_chart_without_test_or_baselines() -> None:
    texts(charts.baselines_chart(None, {"plain": of(0.5)}, "accuracy"))
    texts(charts.baselines_chart(of(0.5, None), {}, "accuracy"))
    assert "no figures" in texts(charts.baselines_chart(None, {}, "accuracy"))


def test_tasks_chart_shows_both_and_their_differences_on_common_tasks() -> None:
    spread, gap = charts.tasks_chart([0.8, 0.9, 1.0, 0.7], "accuracy", beside=("a_b", [0.6, 0.8, 0.7])).axes
    assert gap.get_title(loc="left") == "learner − a b: 0.200 ± 0.248"
    bars = sorted(patch.get_height() for container in gap.containers for patch in container)
    assert bars[-3:] == pytest.approx([1 / 3] * 3)
    assert [text.get_text() for text in spread.get_legend().get_texts()] == ["a b", "learner"]


@pytest.mark.parametrize("values", [[0.5, 0.5], [math.nan, 0.5], [math.nan], [1e-6, 10.0]])
@pytest.mark.parametrize("beside", [None, ("plain", [0.5]), ("plain", [math.inf])])
def test_tasks_chart_takes_equal_and_broken_figures(values: list[float], beside: Any) -> None:
    texts(charts.tasks_chart(values, "mse", beside=beside))


def test_shots_chart_names_each_number_of_shots_and_takes_errors_over_decades() -> None:
    points = [(count, Interval(10.0**-place, 0.1, 50)) for place, count in enumerate((1, 5, 20))]
    (axes,) = charts.shots_chart(points, "mse", higher_is_better=False).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "5", "20"]
    assert axes.get_yscale() == "log"
    texts(charts.shots_chart([(1, Interval(math.nan, math.nan, 1)), (2, Interval(0.5, math.nan, 1))], "accuracy"))


@pytest.mark.parametrize("kind", ["classes", "bands"])
def test_reliability_chart_puts_a_point_where_it_was_observed(kind: Any) -> None:
    points = [Point(0.6, 0.5, 0.25), Point(0.9, 0.95, 0.75)]
    found = Calibration(kind, 0.0625, points, 100, Interval(0.5, 0.1, 10), None)
    figure = charts.reliability_chart(found)
    (dots,) = [each for each in figure.axes[0].collections if len(each.get_offsets()) == 2]
    assert dots.get_offsets().tolist() == [[0.6, 0.5], [0.9, 0.95]]
    assert "0.062, 100 queries" in texts(figure)


def image_task(ways: int = 3, shots: int = 1, queries: int = 2, channels: int = 1) -> Task:
    def batch(each: int) -> Batch:
        labels = torch.arange(ways).repeat(each)
        return Batch.of(torch.linspace(0, 1, len(labels) * channels * 64).view(-1, channels, 8, 8), labels, ways=ways)

    return Task(batch(shots), batch(queries))


def image_figure() -> Any:
    task = image_task()
    return task_pictures.classification_examples([task_pictures.Example(task, task.query.targets)])


def test_classification_examples_frame_right_and_wrong() -> None:
    task = image_task(channels=3)
    taken_for = torch.eye(3)[[0, 1, 0, 0, 1, 2]]  # the third image is of class 3, and taken for class 1
    figure = task_pictures.classification_examples([task_pictures.Example(task, taken_for)] * 2)
    for axes in figure.axes:
        assert len(axes.images) == 9
        frames = [patch.get_gid() for patch in axes.patches if patch.get_gid()]
        assert (frames.count("right"), frames.count("wrong")) == (5, 1)
    said = texts(figure)
    assert "task 1: 5 of 6 right" in said
    assert "✗ 1" in said


def test_classification_examples_leave_padding_out_and_cap_what_is_shown() -> None:
    task = image_task(ways=20, shots=5, queries=5)
    task = task._replace(query=task.query._replace(weight=(torch.arange(100) < 40).float()))
    figure = task_pictures.classification_examples([task_pictures.Example(task, task.query.targets)])
    assert "40 of 40 right, first 10 of 20 classes" in texts(figure)
    assert len(figure.axes[0].images) == 10 * 2 + 10 * 2


@pytest.mark.parametrize("shape", [(4, 2), (4, 2, 8, 8), (4, 8, 8)])
def test_classification_examples_refuse_what_is_no_image(shape: tuple[int, ...]) -> None:
    batch = Batch.of(torch.zeros(shape), torch.tensor([0, 1, 0, 1]), ways=2)
    with pytest.raises(ValueError, match=r"images must be \(n, 1 or 3, H, W\)"):
        task_pictures.classification_examples([task_pictures.Example(Task(batch, batch), batch.targets)])


def test_regression_examples_show_truth_points_and_each_number_of_steps() -> None:
    source = sources.sinusoids(queries=30)
    learner = maml(models.mlp(1, 1), inner_lr=0.01, objective=objectives.mse)
    chosen = [source.task("test", index) for index in range(2)]
    figure = task_pictures.regression_examples(learner, chosen)
    assert learner.training
    assert len(figure.axes) == 2
    for axes, task in zip(figure.axes, chosen):
        truth, points, *predicted = axes.lines
        assert truth.get_xdata().tolist() == sorted(task.query.inputs[:, 0].tolist())
        assert len(points.get_xdata()) == 10
        labels = [line.get_label() for line in predicted]
        state = learner.adapt(task.support, steps=5)
        error = objectives.mse.loss(learner.predict(state, task.query.inputs), task.query).item()
        assert [label.partition(",")[0] for label in labels] == ["0 steps", "1 step", "5 steps"]
        assert labels[2] == f"5 steps, mse {error:.3g}"
    texts(figure)


def test_regression_examples_refuse_more_dimensions() -> None:
    batch = Batch.of(torch.zeros(4, 2), torch.zeros(4, 1))
    with pytest.raises(ValueError, match=r"must be \(n, 1\)"):
        task_pictures.regression_examples(
            maml(models.mlp(2, 1), inner_lr=0.1, objective=objectives.mse), [Task(batch, batch)]
        )


@pytest.mark.parametrize(
    "draw", [task_pictures.classification_examples, lambda tasks: task_pictures.regression_examples(None, tasks)]
)
def test_no_examples_are_refused(draw: Any) -> None:
    with pytest.raises(ValueError, match="no example tasks"):
        draw([])


def test_importing_kshot_and_the_report_stays_light() -> None:
    code = "import sys, kshot, kshot.evaluation.report.report; print(*{'matplotlib', 'jinja2'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
