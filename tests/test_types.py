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


def windows(count: int = 5, length: int = 7, symbols: int = 4) -> tuple[torch.Tensor, Batch]:
    logits = torch.randn(count, length, symbols, dtype=torch.float64)
    targets = torch.randint(symbols, (count, length))
    targets[1, 3:] = -100
    return logits, Batch.of(torch.zeros(count, length), targets, weight=torch.rand(count, dtype=torch.float64))


def test_next_token_equals_torch():
    logits, batch = windows()
    each = nn.functional.cross_entropy(logits.mT, batch.targets, reduction="none")  # 0 where the target is ignored
    counted = (batch.targets >= 0) * batch.weight[:, None]
    expected = (each * batch.weight[:, None]).sum() / counted.sum()
    torch.testing.assert_close(objectives.next_token.loss(logits, batch), expected)
    bits = objectives.next_token.metrics(logits, batch)["bits_per_character"]
    torch.testing.assert_close(bits, expected / torch.log(torch.tensor(2.0, dtype=torch.float64)))


def test_bits_per_character_in_closed_form():
    _, batch = windows(symbols=8)
    bits = lambda logits: float(objectives.next_token.metrics(logits, batch)["bits_per_character"])  # noqa: E731
    assert bits(torch.zeros(5, 7, 8)) == pytest.approx(3)  # eight symbols, all equally likely
    sure = 1e3 * nn.functional.one_hot(batch.targets.clamp(min=0), 8).double()
    assert bits(sure) == 0
    # symbol 0 with p, the others alike: H = -f log p - (1 - f) log((1 - p) / 7), at its least where p = f
    counted = (batch.targets >= 0) * batch.weight[:, None]
    f = float((counted * (batch.targets == 0)).sum() / counted.sum())
    p = torch.tensor([f] + [(1 - f) / 7] * 7, dtype=torch.float64)
    entropy = -f * p[0].log2() - (1 - f) * p[1].log2()
    assert bits(p.log().expand(5, 7, 8)) == pytest.approx(float(entropy))


def test_padding_neither_counts_nor_pulls():
    logits, batch = windows()
    logits.requires_grad_()
    objectives.next_token.loss(logits, batch).backward()
    assert logits.grad[1, 3:].abs().max() == 0 < logits.grad[1, :3].abs().min()
    kept = batch._replace(weight=torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(
        objectives.next_token.loss(logits, kept), objectives.next_token.loss(logits[:2], kept.rows(slice(2)))
    )


def test_next_token_under_vmap_and_twice_differentiated():
    logits, batch = windows()
    loss = objectives.next_token.loss
    stacked = Batch(*(torch.stack([leaf, leaf.flip(0)]) for leaf in batch))
    twice = torch.func.vmap(loss)(torch.stack([logits, logits.flip(0)]), stacked)
    torch.testing.assert_close(twice, loss(logits, batch).expand(2))
    small = Batch(*(leaf[:2] for leaf in batch))
    start = logits[:2].clone().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda values: loss(values, small), start)


@pytest.mark.parametrize(
    ("shape", "targets"),
    [((2, 3, 4), torch.zeros(2, 4).long()), ((2, 3), torch.zeros(2, 3).long()), ((2, 3, 4), torch.zeros(2, 3))],
)
def test_next_token_names_the_shapes_it_needs(shape, targets):
    with pytest.raises(ValueError, match=r"need logits \(n, length, symbols\) for integer targets \(n, length\)"):
        objectives.next_token.loss(torch.zeros(shape), Batch.of(torch.zeros(2, 1), targets))
