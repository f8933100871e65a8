"""Fewer shots of the same tasks, and the curve over them."""

import pytest
import torch

import kshot
from kshot import Batch, Task, objectives
from kshot.evaluation.shots import FewerShots, over_shots
from kshot.tasks.source import TaskSource


class Given(TaskSource):
    """One task, whatever is asked for."""

    def __init__(self, support: Batch, objective=objectives.classification) -> None:
        self.given, self.objective, self.seed = Task(support, support), objective, 0

    def task(self, split, index):
        return self.given


def test_the_last_of_each_class_are_kept_in_their_order():
    labels = torch.tensor([0, 1, 0, 1, 1, 0])
    source = Given(Batch.of(torch.arange(6.0)[:, None], labels, ways=2))
    support, query = FewerShots(source, 2).task("test", 0)
    assert support.inputs.flatten().tolist() == [2, 3, 4, 5]
    assert support.weight.tolist() == [1, 1, 1, 1]
    assert torch.equal(query.inputs, source.given.query.inputs)


def test_the_last_rows_are_kept_where_classes_are_shared_or_there_are_none():
    x = torch.arange(6.0)[:, None]
    numbers = Given(Batch.of(x, x), objectives.mse)
    assert FewerShots(numbers, 2).task("test", 0).support.inputs.flatten().tolist() == [4, 5]
    shared = Given(Batch.of(x, torch.tensor([0, 0, 1, 1, 1, 1]), ways=2), objectives.shared_classification)
    assert FewerShots(shared, 3).task("test", 0).support.inputs.flatten().tolist() == [3, 4, 5]


def test_a_task_with_less_than_that_ends_in_padding():
    weight = torch.tensor([1.0, 1, 1, 0, 0, 0])
    batch = Batch.of(torch.arange(6.0)[:, None], torch.tensor([0, 1, 1, 0, 0, 0]), ways=2, weight=weight)
    support = FewerShots(Given(batch), 2).task("test", 0).support
    assert support.weight.tolist() == [1, 1, 1, 0]
    assert support.inputs[:3].flatten().tolist() == [0, 1, 2]


@pytest.mark.parametrize(("ways", "shots"), [(3, 4), ([2, 3], [1, 4])])
def test_tasks_that_are_drawn_stack_and_keep_their_queries(ways, shots):
    source = kshot.sources.glyphs(ways=ways, shots=shots, queries=2)
    fewer = FewerShots(source, 2)
    whole, cut = source.stack("test", range(4)), fewer.stack("test", range(4))
    assert cut.support.weight.shape == (4, 6)
    assert torch.equal(cut.query.inputs, whole.query.inputs)
    for t in range(4):
        own = (whole.support.targets[t] * whole.support.weight[t][:, None]).sum(0)
        kept = (cut.support.targets[t] * cut.support.weight[t][:, None]).sum(0)
        assert torch.equal(kept, own.clamp(max=2))


def test_the_curve_is_the_figure_of_each_number_on_the_same_queries():
    source = kshot.sources.sinusoids(shots=10)
    learner = kshot.learners.SupportMean(source.objective)
    found = over_shots(learner, source, [1, 10], split="val", num_tasks=30)
    assert [each.shots for each in found] == [1, 10]
    whole = kshot.evaluate(learner, source, split="val", num_tasks=30).metrics["mse"]
    assert found[1].metrics["mse"][:3] == pytest.approx(whole[:3], rel=1e-5)
    last = [source.task("val", index) for index in range(30)]
    errors = [float((task.query.targets - task.support.targets[-1]).square().mean()) for task in last]
    assert found[0].metrics["mse"].mean == pytest.approx(sum(errors) / 30, rel=1e-5)


def test_no_shots_are_refused():
    with pytest.raises(ValueError, match="at least one shot, got shots=0"):
        FewerShots(kshot.sources.sinusoids(), 0)
