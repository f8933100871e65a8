"""Copies of learners and objectives by pickle, copy.deepcopy and torch.save predict what the originals do."""

import copy
import io
import pickle

import pytest
import torch
from zoo import ZOO, make_task

import kshot
from kshot import objectives
from kshot.types import tree_leaves


def saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES = {"pickle": lambda value: pickle.loads(pickle.dumps(value)), "deepcopy": copy.deepcopy, "torch.save": saved}


def predict(learner, task):
    torch.manual_seed(0)
    return tree_leaves(learner.predict(learner.adapt(task.support), task.query.inputs))


@pytest.mark.parametrize("name", ZOO)
def test_copies_of_every_learner_predict_the_same_and_share_nothing(name):
    learner, task = ZOO[name].make(3).eval(), make_task(ZOO[name])
    before = predict(learner, task)
    for how, copied in COPIES.items():
        other = copied(learner)
        assert other.objective == learner.objective, how
        assert all(map(torch.equal, predict(other, task), before)), how
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
    assert all(map(torch.equal, predict(learner, task), before))


@pytest.mark.parametrize("name", ["maml", "maml, regression", "protonet", "learned optimizer, lstm"])
@pytest.mark.parametrize("mode", ["loop", "vmap"])
def test_a_trained_learner_is_copied_too_and_trains_on_as_the_original(name, mode):
    row = ZOO[name]

    class Fixed(kshot.TaskSource):
        objective, seed = row.objective, 0

        def task(self, split, index):
            return make_task(row, seed=index)

    learner = row.make(3)
    kshot.fit(learner, Fixed(), steps=2, mode=mode)
    copies = [learner, *(copied(learner) for copied in COPIES.values())]
    losses = [kshot.fit(each, Fixed(), steps=2, mode=mode) for each in copies]
    assert all(each == losses[0] for each in losses)


ALL = [
    objectives.mse,
    objectives.gaussian,
    objectives.classification,
    objectives.shared_classification,
    objectives.multilabel,
    objectives.segmentation,
    objectives.next_token,
    objectives.next_token_of([1, 2]),
    objectives.in_units([2.0], ["price"]),
    objectives.forecast(2),
    objectives.rating(3.0, 1.0, 1.0, 5.0, like=4.0),
    objectives.levels([1, 2, 3], 2.0, 1.0, like=3),
]


@pytest.mark.parametrize("objective", ALL, ids=lambda objective: objective.name)
@pytest.mark.parametrize("how", COPIES)
def test_copies_of_every_objective_are_equal_to_it(how, objective):
    other = COPIES[how](objective)
    assert other == objective
    assert objectives.name_of(other) == objectives.name_of(objective)


def test_these_are_all_objectives():
    assert {objective.name.split(" ")[0] for objective in ALL} == set(objectives._OBJECTIVES)
