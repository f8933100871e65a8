"""`Learner.adapt` checks its support set against the objective, for every learner in the same way."""

import pytest
import torch
from zoo import ZOO, make_task

import kshot
from kshot import Batch, Learner, objectives
from kshot.types import stack

ROWS = pytest.mark.parametrize("row", ZOO.values(), ids=ZOO.keys())
CLASSIFIERS = pytest.mark.parametrize(
    "row", [row for row in ZOO.values() if row.classes], ids=[name for name, row in ZOO.items() if row.classes]
)


@CLASSIFIERS
def test_class_ids_are_refused(row):
    learner, support = row.make(3), make_task(row).support
    ids = Batch.of(support.inputs, support.targets.argmax(1))
    message = r"targets must be one-hot \(n, ways\), got int64 \(6,\); pass class ids through one_hot\(\) or Batch.of"
    with pytest.raises(ValueError, match=message):
        learner.adapt(ids)
    with pytest.raises(ValueError, match=r"got int64 \(6, 3\)"):
        learner.adapt(support._replace(targets=support.targets.long()))


@ROWS
def test_rows_that_disagree_and_stacks_of_tasks_are_refused(row):
    learner, support = row.make(3), make_task(row).support
    fewer = {"inputs": support.inputs[1:], "targets": support.targets[1:]}
    for name, leaf in fewer.items():
        with pytest.raises(ValueError, match=f"{name} of a support set must have one row for each of its 6 weights"):
            learner.adapt(support._replace(**{name: leaf}))
    with pytest.raises(ValueError, match="weight of a support set must be floating point"):
        learner.adapt(stack([make_task(row), make_task(row)]).support)


def test_further_examples_and_trajectories_are_checked_too():
    support = Batch.of(torch.eye(2), torch.tensor([0, 1]), ways=2)
    ids = Batch.of(torch.eye(2), torch.tensor([0, 1]))
    learner = kshot.protonet(torch.nn.Flatten())
    with pytest.raises(ValueError, match="targets must be one-hot"):
        learner.extend(learner.adapt(support, extendable=True), ids)
    with pytest.raises(ValueError, match="targets must be one-hot"):
        kshot.maml(torch.nn.Linear(2, 2), inner_lr=0.1).trajectory(ids)


@pytest.mark.parametrize(
    ("objective", "targets", "message"),
    [
        (
            objectives.mse,
            torch.zeros(5),
            r"floating-point numbers \(n, ...\) with at least two axes, got .*float32 \(5,\)",
        ),
        (objectives.gaussian, torch.zeros(5, 1).long(), r"got torch.int64 \(5, 1\)"),
        (objectives.forecast(), torch.zeros(5), "floating-point numbers"),
        (objectives.next_token, torch.zeros(5, 2), r"integer targets \(n, length\), got torch.float32 \(5, 2\)"),
        (objectives.shared_classification, torch.zeros(5).long(), "must be one-hot"),
        (objectives.levels([1, 2], 1.5, 0.5, 2), torch.zeros(5).long(), "must be one-hot"),
    ],
)
def test_each_objective_declares_the_targets_that_it_takes(objective, targets, message):
    with pytest.raises(ValueError, match=message):
        objective.check_targets(targets)


def test_an_objective_without_a_check_takes_any_targets():
    class Count(Learner):
        def _adapt(self, support):
            return {"rows": support.weight.sum()}

        def predict(self, state, inputs):
            return state["rows"].expand(len(inputs))

    learner = Count(objectives.Objective(lambda prediction, batch: prediction.sum(), lambda prediction, batch: {}))
    support = Batch.of(torch.zeros(3, 2), {"a": torch.zeros(3), "b": torch.ones(3, 4).bool()})
    assert learner.adapt(support)["rows"] == 3
    with pytest.raises(TypeError):
        learner.adapt(support, unknown=1)
