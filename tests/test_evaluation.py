import pytest
import torch

import kshot
from kshot import objectives
from kshot.learners import SupportMean
from kshot.tasks import sinusoids


def test_figures_are_means_over_single_tasks():
    learner, source = SupportMean(objectives.mse), sinusoids()
    found = kshot.evaluate(learner, source, split="val", tasks=20)
    expected = [float(learner(source.task("val", index))) for index in range(20)]
    assert found.per_task["mse"] == pytest.approx(expected, rel=1e-5)
    assert found.metrics["mse"].mean == pytest.approx(sum(expected) / 20, rel=1e-5)
    assert found.split == "val"
    assert found.inductive


def test_the_hash_names_the_episodes():
    def sha(**options):
        arguments = {"split": "test", "tasks": 5} | options
        seed = arguments.pop("seed", 0)
        return kshot.evaluate(SupportMean(objectives.mse), sinusoids(seed=seed), **arguments).episodes_sha256

    assert sha() == sha()
    assert len({sha(), sha(tasks=6), sha(split="val"), sha(seed=1)}) == 4


def test_evaluating_leaves_the_learner_as_it_was():
    learner = kshot.maml(kshot.models.mlp(1, 1, [4]), inner_lr=0.1, objective=objectives.mse).train()
    before = {name: tensor.clone() for name, tensor in learner.state_dict().items()}
    kshot.evaluate(learner, sinusoids(), tasks=3)
    assert learner.training
    assert all(p.grad is None for p in learner.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in learner.state_dict().items())


def test_a_transductive_learner_is_called_one():
    model = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
    learner = kshot.maml(model, inner_lr=0.1, objective=objectives.mse, batchnorm="query")
    assert not kshot.evaluate(learner, sinusoids(), tasks=2).inductive


def test_no_tasks_is_refused():
    with pytest.raises(ValueError, match="at least one task, got 0"):
        kshot.evaluate(SupportMean(objectives.mse), sinusoids(), tasks=0)


def test_from_scratch_starts_from_other_weights_and_fine_tuning_from_the_given_ones():
    model = kshot.models.mlp(1, 1)
    given = model.head.weight.clone()
    scratch = kshot.from_scratch(model, inner_lr=0.1, objective=objectives.mse, seed=1)
    tuned = kshot.fine_tune(model, inner_lr=0.1, objective=objectives.mse)
    classes = kshot.fine_tune(kshot.models.mlp(1, 3), inner_lr=0.1)
    assert not torch.equal(scratch.model.head.weight, given)
    assert torch.equal(tuned.model.head.weight, given)
    assert not classes.model.head.weight.any()
    assert torch.equal(model.head.weight, given)
    assert torch.equal(scratch.model.head.weight, kshot.from_scratch(model, inner_lr=0.1, seed=1).model.head.weight)
