"""Errors by class against scikit-learn's, and by name where each task has classes of its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, recall_score

import kshot
from kshot import Batch
from kshot.evaluation.by_class import NEITHER, ByClassMeter
from kshot.evaluation.intervals import interval
from kshot.evaluation.units import Units
from kshot.tasks import ClassTasks
from kshot.tasks.frozen import episodes, freeze
from kshot.tasks.read_log import watched

NAMES = ["adder", "boa", "cobra", "asp"]


def labels(num_tasks: int, each: int, *, weighted: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True and predicted classes (T, n) of 4, mistaken for the next one in a quarter of the cases, and weights."""
    random = np.random.default_rng(0)
    true = random.integers(0, 4, (num_tasks, each))
    predicted = np.where(random.random(true.shape) < 0.25, (true + 1) % 4, true)
    weight = random.integers(0, 3, true.shape) if weighted else np.ones(true.shape)
    return true, predicted, weight


def meter_of(true: np.ndarray, predicted: np.ndarray, weight: np.ndarray) -> ByClassMeter:
    meter = ByClassMeter()
    for task in zip(true, predicted, weight):
        t, p, w = (torch.from_numpy(each) for each in task)
        query = Batch.of(torch.zeros(len(t), 1), t, ways=4)._replace(weight=w.float())
        meter.add(torch.eye(4)[p], query, NAMES)
    return meter


@pytest.mark.parametrize("weighted", [False, True])
def test_recall_and_confusions_are_those_of_scikit_learn(weighted):
    data = labels(30, 20, weighted=weighted)
    result = meter_of(*data).result()
    true, predicted, weight = (each.ravel() for each in data)
    recall = recall_score(true, predicted, average=None, sample_weight=weight)
    assert {each.name: each.recall.mean for each in result.classes} == pytest.approx(dict(zip(NAMES, recall)))
    assert [each.recall.mean for each in result.classes] == sorted(recall)
    names, shares = result.matrix()
    order = [NAMES.index(name) for name in names]
    expected = confusion_matrix(true, predicted, labels=order, normalize="true", sample_weight=weight)
    np.testing.assert_allclose(shares, expected)
    counts = confusion_matrix(true, predicted, sample_weight=weight)
    assert all(pair.times == counts[NAMES.index(pair.true), NAMES.index(pair.predicted)] for pair in result.confusions)
    assert sum(pair.times for pair in result.confusions) == counts.sum() - counts.trace()
    assert all(NAMES[(NAMES.index(each.name) + 1) % 4] == each.mistaken_for for each in result.classes)
    assert sum(each.num_queries for each in result.classes) == (weight > 0).sum()


def test_the_interval_of_a_recall_is_over_units():
    random = np.random.default_rng(1)
    easy = random.random(12) < 0.5  # units that are all right, and units that are half right
    true = np.zeros((60, 10), int)
    predicted = np.where(~np.repeat(easy, 5)[:, None] & (random.random(true.shape) < 0.5), 1, 0)
    meter = meter_of(true, predicted, np.ones(true.shape))
    units = Units(np.repeat(np.arange(12), 5), "patient")
    (alone,), (clustered,) = meter.result().classes, meter.result(units).classes
    means = (predicted == 0).mean(1)
    for figure, of in ((alone, None), (clustered, units)):
        expected = interval(list(means), of, bounds=(0, 1))
        assert (figure.recall.low, figure.recall.high) == pytest.approx((expected.low, expected.high))
    assert clustered.recall.ci95 > 1.3 * alone.recall.ci95
    assert clustered.recall.num_units == 12


def test_a_recall_of_1_has_an_interval_that_is_not_empty():
    true = np.zeros((7, 3), int)
    (figure,) = meter_of(true, true, np.ones(true.shape)).result().classes
    assert (figure.recall.mean, figure.recall.high, figure.mistaken_for) == (1, 1, "")
    assert figure.recall.low == pytest.approx(0.025 ** (1 / 7))


def test_a_share_counts_only_tasks_that_have_both_classes():
    meter = ByClassMeter()
    query = Batch.of(torch.zeros(2, 1), torch.tensor([0, 1]), ways=2)
    meter.add(torch.eye(2)[[1, 1]], query, ["boa", "cobra"])
    meter.add(torch.eye(2)[[0, 0]], query, ["boa", "asp"])
    meter.add(torch.full((2, 2), torch.nan), query, ["cobra", "asp"])
    result = meter.result()
    pairs = {(pair.true, pair.predicted): (pair.times, pair.share) for pair in result.confusions}
    assert pairs == {
        ("boa", "cobra"): (1, 1),
        ("asp", "boa"): (1, 1),
        ("cobra", NEITHER): (1, 0.5),
        ("asp", NEITHER): (1, 0.5),
    }
    recalls = {each.name: each.recall.mean for each in result.classes}
    assert recalls == {"boa": 0.5, "cobra": 0.5, "asp": 0}
    names, shares = result.matrix()
    assert names == ["asp", "boa", "cobra"]
    np.testing.assert_array_equal(shares, [[0, 1, 0], [0, 0.5, 1], [0, 0, 0.5]])
    meter.add(torch.eye(2), query, ["dace", "eel"])
    names, shares = meter.result().matrix()
    assert names[3:] == ["dace", "eel"]
    assert np.isnan(shares[:3, 3:]).all()
    np.testing.assert_array_equal(shares[3:, 3:], np.eye(2))


def coloured(ways: object = 3) -> ClassTasks:
    """Classes that are recognised by their constant inputs, named by them."""
    examples = np.repeat(np.arange(20, dtype=np.uint8), 8)[:, None, None, None].repeat(4, 2).repeat(4, 3)
    rows = {str(number): range(8 * number, 8 * number + 8) for number in range(20)}
    splits = {"train": list(rows)[:8], "val": list(rows)[8:12], "test": list(rows)[12:]}
    classes = {split: {name: rows[name] for name in names} for split, names in splits.items()}
    return ClassTasks(examples, classes, ways=ways, shots=1, queries=2)


def values(inputs: torch.Tensor) -> list[str]:
    return [str(round(255 * float(value))) for value in inputs[:, 0, 0, 0]]


def named_alike(source: kshot.TaskSource, split: str = "test", *, prefix: str = "") -> None:
    for index, names in enumerate(source.classes_of(split, range(6))):
        for batch in source.task(split, index):
            true = [names[column] for column in batch.targets.argmax(1)[batch.weight > 0]]
            assert true == [prefix + value for value in values(batch.inputs[batch.weight > 0])]


@pytest.mark.parametrize("ways", [3, (2, 4), "all"])
def test_class_names_are_in_the_order_of_the_targets(ways, tmp_path):
    source = coloured(ways)
    named_alike(source)
    named_alike(watched(source))
    named_alike(kshot.evaluation.shots.FewerShots(source, 1))
    freeze(source, tmp_path / "episodes", num_tasks=6)
    named_alike(episodes(tmp_path / "episodes"))


def test_class_names_of_a_mixture_tell_its_source():
    mixture = kshot.sources.mixture({"a": coloured(), "b": coloured()})
    for index, names in enumerate(mixture.classes_of("test", range(8))):
        prefix = f"{mixture.source_of('test', index)}: "
        query = mixture.task("test", index).query
        assert [names[c] for c in query.targets.argmax(1)] == [prefix + value for value in values(query.inputs)]


def test_example_rows_are_those_of_the_task():
    source = coloured((2, 4))
    for index in range(5):
        for batch, rows in zip(source.task("test", index), source.example_rows("test", index)):
            assert torch.equal(batch.inputs, source.examples.take(rows))
    assert torch.equal(source.task("train", 0).query.inputs, coloured((2, 4)).task("train", 0).query.inputs)


def test_an_evaluation_names_the_classes_it_confuses():
    source = coloured()
    result = kshot.evaluate(kshot.learners.nearest_centroid(source.objective), source, num_tasks=40, audit=False)
    assert {each.name for each in result.by_class.classes} == {str(number) for number in range(12, 20)}
    assert all(each.recall.mean == 1 for each in result.by_class.classes)
    assert result.by_class.confusions == []
    assert sum(each.num_queries for each in result.by_class.classes) == 40 * 3 * 2
