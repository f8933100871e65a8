"""States that take in further examples and classes, without the old examples."""

import pytest
import torch
from torch import nn
from zoo import ZOO

import kshot
from kshot import Batch, Task
from kshot.learners import HeadLearner
from kshot.training.checkpoint import load_state, save_state
from kshot.types import tree_leaves, tree_map

FACTORIES = {
    "protonet": lambda: kshot.protonet(nn.Flatten()),
    "cosine": lambda: kshot.protonet(nn.Flatten(), distance="cosine"),
    "simpleshot": lambda: kshot.learners.simpleshot(nn.Flatten(), features=6),
    "plda": lambda: kshot.learners.plda(nn.Flatten(), features=6),
    "r2d2": lambda: kshot.learners.r2d2(nn.Flatten(), l2=0.5),
    "r2d2, as in the paper": lambda: kshot.learners.r2d2(nn.Flatten(), l2=0.5, normalize=False),
    "probe": lambda: kshot.learners.probe(nn.Flatten(), features=6),
    "logistic": lambda: kshot.learners.logistic_regression(nn.Flatten(), l2=0.5),
    "svm": lambda: kshot.learners.metaoptnet(nn.Flatten(), l2=0.5),
    "matching": lambda: kshot.learners.matching_net(nn.Flatten()),
    "feat": lambda: kshot.learners.feat(nn.Flatten(), features=6).eval(),
}


def batch(labels: list[int], ways: int, seed: int) -> Batch:
    random = torch.Generator().manual_seed(seed)
    numbers = torch.tensor(labels)
    centres = 3 * torch.randn(5, 6, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    made = Batch.of(centres[numbers] + torch.randn(len(labels), 6, generator=random), numbers, ways=ways)
    return Batch(*(leaf.double() for leaf in made))


def together(*parts: Batch) -> Batch:
    ways = max(part.targets.shape[1] for part in parts)
    wide = [part._replace(targets=nn.functional.pad(part.targets, (0, ways - part.targets.shape[1]))) for part in parts]
    return Batch(*(torch.cat(leaves) for leaves in zip(*wide)))


@pytest.mark.parametrize("make", FACTORIES.values(), ids=FACTORIES.keys())
def test_extending_is_adapting_to_all_at_once(make, tmp_path):
    learner = make().double()
    first, second = batch([0, 1, 2, 0], 3, 1), batch([3, 0, 4, 3, 3], 5, 2)  # new classes, and more of an old one
    second = second._replace(weight=torch.tensor([1.0, 1, 1, 1, 0]).double())
    query = batch([0, 1, 2, 3, 4] * 3, 5, 3).inputs
    with torch.no_grad():
        state = learner.adapt(first, extendable=True)
        before = tree_map(torch.clone, state["memory"])
        save_state(tmp_path / "state.safetensors", state, {})
        extended = learner.extend(load_state(tmp_path / "state.safetensors")[0], second)
        learner.extend(state, second)
        whole = learner.adapt(together(first, second), extendable=True)
        twice = learner.extend(extended, batch([4, 1], 5, 4))
        thrice = learner.adapt(together(first, second, batch([4, 1], 5, 4)))
        for one, other in ((extended, whole), (twice, thrice)):
            torch.testing.assert_close(learner.predict(one, query), learner.predict(other, query), rtol=1e-7, atol=1e-9)
    assert all(map(torch.equal, tree_leaves(state["memory"]), tree_leaves(before)))
    assert torch.equal(extended["present"], torch.ones(5, dtype=torch.bool))


# 6 are the reference
@pytest.mark.parametrize(("name", "least"), [("protonet", 3 * 7 + 6), ("plda", 3 * 7), ("r2d2", 7 * 7 + 3 * 7 + 6)])
def test_sums_do_not_grow_with_the_examples(name, least):
    learner = FACTORIES[name]().double()
    sizes = {
        sum(leaf.numel() for leaf in learner.adapt(batch([0, 1, 2] * count, 3, 1), extendable=True)["memory"].values())
        for count in (1, 20)
    }
    assert sizes == {least}


def test_what_cannot_be_extended_is_said():
    learner, first = kshot.protonet(nn.Flatten()).double(), batch([0, 1, 2], 3, 1)
    with pytest.raises(ValueError, match=r"has no memory to extend: make it by adapt\(support, extendable=True\)"):
        learner.extend(learner.adapt(first), first)
    with pytest.raises(ValueError, match="has 3 classes but the targets have 2 columns"):
        learner.extend(learner.adapt(first, extendable=True), batch([0, 1], 2, 1))
    maml = kshot.maml(nn.Linear(6, 3), inner_lr=0.1)
    with pytest.raises(ValueError, match="GradientLearner cannot be extended: adapt anew"):
        maml.extend({}, first)


def test_every_head_learner_of_the_zoo_extends():
    """With BatchNorm on the first support's statistics it still gives finite scores to all classes."""
    from zoo import make_task

    task: Task = make_task(ZOO["protonet"], 3)
    for name, row in ZOO.items():
        learner = row.make(4)
        if not isinstance(learner, HeadLearner) or not row.classes:
            continue
        more = task.support._replace(
            targets=nn.functional.one_hot(torch.full((len(task.support.weight),), 3), 4).float()
        )
        with torch.no_grad():
            state = learner.eval().extend(learner.adapt(task.support, extendable=True), more)
            logits = learner.predict(state, task.query.inputs)
        assert logits.shape == (len(task.query.weight), 4), name
        assert torch.isfinite(logits).all(), name
