import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kshot import Batch, Task
from kshot.types import one_hot, stack, unstack


@given(st.lists(st.integers(0, 6), min_size=1, max_size=20))
def test_one_hot_rows_have_their_one_at_the_label(labels):
    rows = one_hot(torch.tensor(labels), 7)
    assert rows.sum(1).tolist() == [1.0] * len(labels)
    assert rows.argmax(1).tolist() == labels


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 1, 5, 2]), "label 5 in row 2 is outside the 3 classes 0 … 2"),
        (torch.tensor([0, -1]), "label -1 in row 1"),
        (torch.tensor([0.0, 1.0]), "must be integers"),
        (torch.tensor([[0], [1]]), r"shape \(n,\)"),
    ],
)
def test_labels_that_are_none(labels, message):
    with pytest.raises(ValueError, match=message):
        Batch.of(torch.zeros(len(labels), 2), labels, ways=3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": torch.tensor([[1.0], [float("nan")]])}, "inputs: 1 values are NaN .* first in row 1"),
        ({"targets": torch.tensor([[float("inf")], [0.0]])}, "targets: 1 values are NaN .* first in row 0"),
        ({"targets": torch.zeros(3, 1)}, r"same number of examples .* \[2, 3\]"),
        ({"weight": torch.ones(2, 1)}, r"weight must be \(2,\)"),
    ],
)
def test_batches_that_are_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        Batch.of(**({"inputs": torch.zeros(2, 1), "targets": torch.zeros(2, 1)} | arguments))


def test_stacking_and_cutting_are_inverse():
    make = lambda: Task(*(Batch.of(torch.randn(n, 2), torch.randn(n, 1)) for n in (3, 5)))  # noqa: E731
    tasks = [make() for _ in range(4)]
    for before, after in zip(tasks, unstack(stack(tasks)), strict=True):
        assert torch.equal(before.query.inputs, after.query.inputs)
        assert torch.equal(before.support.targets, after.support.targets)


def test_tasks_of_different_shapes_do_not_stack():
    tasks = [Task(*(Batch.of(torch.randn(n, 2), torch.randn(n, 1)) for n in (k, 5))) for k in (3, 4)]
    with pytest.raises(ValueError, match="pad with rows of weight 0"):
        stack(tasks)
