import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kshot import Batch, Task, objectives
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
        ({"inputs": torch.tensor([[1.0], [float("nan")]])}, "inputs hold 1 values .* first in row 1"),
        ({"targets": torch.tensor([[float("inf")], [0.0]])}, "targets hold 1 values .* first in row 0"),
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


def test_objectives_equal_torch():
    logits, labels, weight = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2]), torch.rand(6)
    batch = Batch.of(torch.zeros(6, 1), labels, ways=3, weight=weight)
    expected = (nn.functional.cross_entropy(logits, labels, reduction="none") * weight).sum() / weight.sum()
    torch.testing.assert_close(objectives.classification.loss(logits, batch), expected)
    hit = (logits.argmax(1) == labels).float()
    torch.testing.assert_close(
        objectives.classification.metrics(logits, batch)["accuracy"], (hit * weight).sum() / weight.sum()
    )
    even = Batch.of(torch.zeros(6, 1), torch.randn(6, 2))
    torch.testing.assert_close(
        objectives.mse.loss(logits[:, :2], even), nn.functional.mse_loss(logits[:, :2], even.targets)
    )


@pytest.mark.parametrize("objective", [objectives.mse, objectives.classification])
def test_a_prediction_of_another_shape_is_refused(objective):
    batch = Batch.of(torch.zeros(4, 1), torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"predicts \(4, 1\) but the targets are \(4, 2\)"):
        objective.loss(torch.zeros(4, 1), batch)
