"""Training rows and their groups."""

import numpy as np
import torch

import kshot
from kshot import objectives
from kshot.data.dataset import ArrayDataset
from kshot.learners.baselines.pool import float_rows, training_rows, unwatched
from kshot.tasks import GroupTasks
from kshot.tasks.read_log import watched


def source(sizes=(4, 6, 5), **options):
    ends = np.cumsum(sizes)
    groups = {f"g{number}": range(end - size, end) for number, (size, end) in enumerate(zip(sizes, ends))}
    examples = ArrayDataset((np.arange(2.0 * ends[-1]).reshape(-1, 2), np.arange(1.0 * ends[-1])[:, None]))
    return GroupTasks(examples, {"train": groups}, objective=objectives.mse, shots=2, queries=1, **options)


def test_rows_come_with_their_group():
    rows = training_rows(source())
    assert rows.group.tolist() == [0] * 4 + [1] * 6 + [2] * 5
    assert rows.targets[:, 0].tolist() == list(range(15))
    assert rows.num_groups == 3
    part = rows.only([2, 0])
    assert part.group.tolist() == [0] * 4 + [1] * 5
    assert part.targets[:, 0].tolist() == [0, 1, 2, 3, 10, 11, 12, 13, 14]


def test_at_most_about_the_given_rows_are_taken_in_whole_groups():
    rows = training_rows(source([10] * 20), max_rows=55)
    assert len(rows.group) == 50
    assert np.bincount(rows.group).tolist() == [10] * 5
    assert len(training_rows(source([10] * 20), max_rows=3).group) == 10


def test_a_log_of_reads_is_passed_over():
    inner = source()
    assert unwatched(watched(watched(inner))) is inner
    assert training_rows(watched(inner)).num_groups == 3


def test_without_groups_each_training_task_is_one():
    rows = training_rows(kshot.sources.sinusoids(), num_tasks=3)
    assert rows.num_groups == 3
    assert len(rows.inputs) == len(rows.group)


def test_float_rows_are_told_from_other_inputs():
    assert float_rows(source())
    assert float_rows(kshot.sources.sinusoids())
    images = ArrayDataset((np.zeros((9, 1, 4, 4)), np.zeros((9, 1))))
    groups = {"train": {"a": range(9)}}
    assert not float_rows(GroupTasks(images, groups, objective=objectives.mse, shots=2, queries=2))
    integers = ArrayDataset((np.zeros((9, 4), np.int64), np.zeros((9, 1))))
    assert not float_rows(GroupTasks(integers, groups, objective=objectives.mse, shots=2, queries=2))
    assert torch.is_tensor(training_rows(source()).inputs)
