"""The figures of a report."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from reports import ROUNDS, image_task, of, round_entry

from kshot import Batch, Task, maml, models, objectives, sources
from kshot.evaluation.calibration import Calibration, Point
from kshot.evaluation.intervals import Interval
from kshot.evaluation.report import charts, plan_charts, run_charts, task_pictures
from kshot.evaluation.target import Target


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


def test_rounds_chart_draws_the_prediction_that_ended_the_run_beyond_its_rounds() -> None:
    coming = [[400, 0.75, 0.7, 0.8], [500, 0.78, 0.72, 0.84]]
    plain = {"action": "continue", "predicted": [[300, 0.7, 0.6, 0.8]]}
    stop = {"action": "stop", "outcome": "NOT_REACHABLE", "predicted": coming}
    rounds = [
        {"number": number, "step": 100 * number, "val": of(0.5 + 0.1 * number), "decision": decision}
        for number, decision in ((1, {"action": "continue"}), (2, plain), (3, stop))
    ]
    figure = run_charts.rounds_chart(rounds, "accuracy >= 0.95")
    axes, strip = figure.axes
    (dashed,) = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert dashed.get_xydata().tolist() == [[3, 0.8], [4, 0.75], [5, 0.78]]
    (band,) = [each for each in axes.collections if each.get_gid() == "predicted"]
    assert {0.7, 0.72, 0.8, 0.84} <= set(band.get_paths()[0].vertices[:, 1].tolist())
    assert strip.get_xlim()[1] == 5.6
    said = texts(figure)
    assert "predicted after\nround 3" in said
    assert "stop: not reachable" in said


def test_rounds_chart_draws_the_first_prediction_where_none_decided() -> None:
    decisions = [{"action": "continue", "predicted": [[2, mean, mean, mean]]} for mean in (0.6, 0.7)]
    rounds = [{"number": n, "step": n, "val": of(0.5), "decision": decision} for n, decision in enumerate(decisions, 1)]
    axes, _ = run_charts.rounds_chart(rounds, "accuracy >= 0.95").axes
    (dashed,) = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert dashed.get_xydata().tolist() == [[1, 0.5], [2, 0.6]]


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


def test_a_narrow_figure_has_its_panels_below_each_other_without_empty_ones():
    """Two tasks in a grid, of which one place may be empty, and an interval chart with long names."""
    from kshot.evaluation.report.narrow import NARROW, make_narrow
    from kshot.evaluation.report.task_pictures import Example, classification_examples

    example = Example(image_task(ways=6), None)
    figure = make_narrow(classification_examples([example] * 3))
    spots = [axes.get_subplotspec().get_geometry()[:2] for axes in figure.axes]
    assert spots == [(3, 1)] * 3
    assert figure.get_size_inches()[0] == pytest.approx(NARROW)
    chart = charts.baselines_chart(of(0.9), {"a baseline of a very long name": of(0.8)}, "accuracy")
    labels = [label.get_text() for label in make_narrow(chart).axes[0].get_yticklabels()]
    assert labels == ["a baseline of a\nvery long name\n0.800 ± 0.010", "learner\n0.900 ± 0.010"]
    assert not chart.axes[0].texts


def test_small_pictures_fill_rows_of_their_band_and_fewer_columns_on_a_phone():
    from kshot.evaluation.report.cells import DOWN, Cell, draw_cells
    from kshot.evaluation.report.narrow import NARROW, make_narrow

    cells = [Cell(torch.zeros(1, 4, 4), str(number), "black", "black") for number in range(9)]
    figure = draw_cells({"support": cells[:6], "wrong": cells[6:]})
    (axes,) = figure.axes

    def places() -> list[tuple[float, int]]:
        left_and_top = [(image.get_extent()[0], image.get_extent()[3]) for image in axes.images]
        assert left_and_top == [frame.get_xy() for frame in axes.patches]
        return [(left, round(top / DOWN)) for left, top in left_and_top]

    assert places() == [(0, 0), (1, 0), (2, 0), (3, 0), (4, 0), (0, 1), (0, 2), (1, 2), (2, 2)]
    make_narrow(figure)
    assert places() == [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1), (0, 2), (1, 2), (2, 2)]
    width, height = figure.get_size_inches()
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    assert width == pytest.approx(NARROW)
    assert height / width == pytest.approx((bottom - top) / (right - left))  # so that pixels are squares


def test_race_chart_dashes_what_was_expected_and_names_what_was_kept() -> None:
    def entrant(name: str, means: list[float], **more: Any) -> dict[str, Any]:
        course = [[10.0 * 3**place, Interval(mean, 0.02, 50)._asdict()] for place, mean in enumerate(means)]
        return {"name": name, "simple": False, "kept": False, "course": course, "expected": None} | more

    entrants = [
        entrant("maml", [0.5, 0.8], kept=True, expected=0.7),
        entrant("protonet", [0.6]),
        entrant("centroid", [0.4], simple=True),
    ]
    (axes,) = (figure := plan_charts.race_chart({"entrants": entrants}, Target("accuracy", True, 0.9))).axes
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert [list(line.get_ydata()) for line in dashed] == [[0.7, 0.7]]
    courses = {tuple(line.get_ydata()) for line in axes.lines}
    assert {(0.5, 0.8), (0.6,)} <= courses
    said = texts(figure)
    assert "maml (kept)" in said
    assert "centroid (simple)" in said


def test_the_table_of_a_choice_says_what_became_of_each_plan():
    def entrant(name, mean=None, **about):
        course = [] if mean is None else [[2.0, Interval(mean, 0.1, 20)._asdict()]]
        about = {"kept": False, "simple": False, "failure": "", "expected": None, "seconds": 2.0} | about
        return {"name": name, "course": course} | about

    entrants = [
        entrant("late"), entrant("unsuited", failure="its loss is not finite"), entrant("centroid", 0.7, simple=True),
        entrant("protonet", 0.8, kept=True), entrant("maml", 0.75),
    ]  # fmt: skip
    entrants[-1]["course"][0][1]["ci95"] = None  # NaN in JSON, as for a single unit
    choice = {"entrants": entrants, "reason": "kept", "metric": "accuracy", "minutes": 15.0}
    section = plan_charts.choice_section({"choice": choice, "higher_is_better": True}, [])
    assert section.table.rows[1].cells[1] == "0.750"
    assert [(row.cells[0], row.cells[-1], row.emphasis) for row in section.table.rows] == [
        ("protonet", "kept", "main"), ("maml", "", ""), ("centroid", "simple baseline", ""),
        ("late", "not tried, as the time was over", "muted"), ("unsuited", "its loss is not finite", "muted"),
    ]  # fmt: skip


@pytest.mark.parametrize("higher", [True, False])
def test_regret_is_the_mean_of_what_the_best_part_of_each_task_is_better_by(higher: bool) -> None:
    parts = {"a": [0.9, 0.5, 0.7], "b": [0.6, 0.8, 0.9], "c": [0.1, 0.2, 0.3]}
    ours = [0.8, 0.8, 1.0]
    if not higher:
        parts, ours = {name: [1 - each for each in values] for name, values in parts.items()}, [1 - x for x in ours]
    figure = plan_charts.regret_chart(ours, parts, "accuracy", higher_is_better=higher, learner="choice")
    *alone, level, mine = sorted(
        figure.axes[0].lines, key=lambda line: (line.get_linewidth() == 2, line.get_linestyle() == ":")
    )
    assert list(mine.get_ydata()) == pytest.approx([0.1, 0.05, 0.0])  # less error than all parts on the last task
    assert sorted(line.get_ydata()[-1] for line in alone) == pytest.approx([0.3 / 3, 0.5 / 3, 2.0 / 3])
    assert set(level.get_ydata()) == {0}
    assert "choice" in texts(figure)


def test_weights_chart_stacks_the_parts_of_each_task_and_sums_up_small_ones() -> None:
    figure = plan_charts.weights_chart({"a": [0.2, 1.0], "b": [0.8, 0.0]})
    heights = [area.get_paths()[0].get_extents() for area in figure.axes[0].collections]
    assert [end for each in heights for end in (each.y0, each.y1)] == pytest.approx([0, 1, 0.2, 1])
    said = texts(figure)
    assert "a: 0.60 in the mean" in said
    assert "b: 0.40 in the mean" in said
    many = {f"part_{number}": [0.1] for number in range(10)}
    assert "others: 0.50 in the mean" in texts(plan_charts.weights_chart(many))
