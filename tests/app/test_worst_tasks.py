"""The worst tasks with their names and the examples that went wrong, for each kind of source."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import kshot
from kshot import Batch, Task, sources
from kshot.app.worst_tasks import described, with_examples, worst_tasks
from kshot.evaluation.report import worst_pictures
from kshot.evaluation.report.report import picture
from kshot.learners import SupportMean, nearest_centroid
from kshot.tasks.read_log import watched


def write(path, header: str, rows) -> str:
    path.write_text("\n".join([header, *rows]))
    return str(path)


@pytest.fixture
def grades(tmp_path):
    """30 schools, of which those with an odd number have pupils who differ much."""
    random = np.random.default_rng(0)
    rows = [
        f"school {s},{hours},{'north' if hours % 2 else 'south'},{50 + (10 if s % 2 else 0.1) * random.normal():.3f}"
        for s in range(30)
        for hours in range(12)
    ]
    path = write(tmp_path / "grades.csv", "school,hours,side,grade", rows)
    return sources.table(path, group="school", target="grade", shots=4, queries=4)


def worst_of(learner, source, metric: str, *, higher: bool = False, num_tasks: int = 40):
    evaluation = kshot.evaluate(learner, source, num_tasks=num_tasks, audit=False)
    found = worst_tasks(source, evaluation, metric, higher_is_better=higher)
    return evaluation, with_examples(found, learner, source, "test")


def test_rows_of_a_table_are_as_in_the_file_with_the_largest_errors_first(grades, tmp_path):
    evaluation, (first, *others) = worst_of(SupportMean(grades.objective), watched(grades), "mae")
    assert first.figure == max(evaluation.per_task["mae"])
    assert len(others) == 4
    (name,) = first.names
    assert int(name.removeprefix("school ")) % 2 == 1
    assert first.title == f"task {first.number}: {name}"
    header, rows, note = first.examples
    assert header == ["grade", "predicted", "hours", "side"]
    assert note == "Queries with the largest errors: 4 of 4."
    lines = [line.split(",") for line in (tmp_path / "grades.csv").read_text().splitlines()[1:]]
    file = {tuple(line[:3]): float(line[3]) for line in lines}
    errors = []
    for grade, predicted, hours, side in rows:
        assert file[name, hours, side] == pytest.approx(float(grade), abs=2e-3)
        errors.append(abs(float(grade) - float(predicted)))
    assert errors == sorted(errors, reverse=True)
    assert np.mean(errors) == pytest.approx(first.figure, abs=2e-3)
    assert json.dumps(first.to_json("mae"))
    assert [task.scored is None for task in others] == [False, False, True, True]


def test_texts_are_shown_with_the_names_of_their_classes(tmp_path):
    words = [f"word{number}" for number in range(40)]
    rows = [
        f'"{words[label]} {words[(label + k) % 40]} number {k}",label {label}' for label in range(12) for k in range(8)
    ]
    path = write(tmp_path / "texts.csv", "text,label", rows)
    source = sources.text(path, features="words", ways=3, shots=1, queries=5, split={"ratio": [0.5, 0.25, 0.25]})
    _, worst = worst_of(nearest_centroid(source.objective), source, "accuracy", higher=True)
    wrong = [task for task in worst if task.examples]
    assert wrong
    for task in wrong:
        assert task.examples.header == ["true", "predicted", "with probability", "text"]
        for true, predicted, _, text in task.examples.rows:
            assert {true, predicted} <= set(task.classes)
            assert true != predicted
            assert text.split()[0] == f"word{true.removeprefix('label ')}"


def test_items_are_shown_by_their_titles(tmp_path):
    random = np.random.default_rng(0)
    rows = [f"user {u},film {i},{random.integers(1, 6)}" for u in range(40) for i in random.permutation(30)[:12]]
    path = write(tmp_path / "ratings.csv", "user,item,rating", rows)
    source = sources.ratings(path, shots=4, queries=4)
    _, (first, *_) = worst_of(SupportMean(source.objective), source, "mae", num_tasks=6)
    assert first.examples.header == ["target", "predicted", "item"]
    user = first.names[0].removeprefix("user ")
    assert all(f"user {user},{item},{float(target):.0f}" in rows for target, _, item in first.examples.rows)


def test_examples_of_a_mixture_are_of_the_task_s_own_source(grades):
    other = grades.with_shots(3).with_shots(4)
    mixture = sources.mixture({"a": grades, "b": other})
    for index in range(3):
        query = mixture.task("test", index).query
        own = grades.task("test", index).query
        assert described(mixture, "test", index, query, [0, 1]) == described(grades, "test", index, own, [0, 1])


def test_equal_tasks_are_listed_once_and_figures_that_are_not_finite_first():
    source = sources.sinusoids(shots=3)
    evaluation = kshot.evaluate(SupportMean(source.objective), source, num_tasks=4, audit=False)
    evaluation.per_task["mse"][:] = [5.0, 1.0, float("nan"), 5.0]
    evaluation.episodes[3] = evaluation.episodes[0]
    found = worst_tasks(source, evaluation, "mse", higher_is_better=False)
    assert [task.number for task in found] == [2, 0, 1]
    assert found[0].title == "task 2"


def texts_in(figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_the_picture_of_wrong_images_names_both_classes():
    query = Batch.of(torch.rand(3, 1, 8, 8), torch.tensor([0, 1, 1]), ways=2)
    task = Task(Batch.of(torch.rand(2, 1, 8, 8), torch.tensor([0, 1]), ways=2), query)
    prediction = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    figure = worst_pictures.misclassified(task, prediction, ["rose", "aster"])
    assert texts_in(figure) == ["rose", "aster", "is aster\n✗ rose"]
    drawn = picture("worst_1", figure)
    assert drawn.uri.startswith("data:image/png")
    assert drawn.narrow.startswith("data:image/png")


def test_there_is_a_picture_for_series_and_curves_and_none_for_rows(grades):
    window = Batch.of(torch.rand(4, 10, 1), torch.rand(4, 3))
    options = {"names": [], "forecast": True}
    figure = worst_pictures.picture_of(Task(window, window), window.targets + 1, **options)
    assert len(figure.axes) == worst_pictures.MOST_WINDOWS
    curve = sources.sinusoids().task("test", 0)
    assert worst_pictures.picture_of(curve, curve.query.targets, [], forecast=False).axes
    row = grades.task("test", 0)
    assert worst_pictures.picture_of(row, row.query.targets, [], forecast=False) is None
