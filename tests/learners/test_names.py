"""Names of classes as support rows: the tasks, and the learners that read them, against formulas written out."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import kshot
from kshot import Batch
from kshot.data.dataset import ArrayDataset
from kshot.tasks import ClassTasks, with_names
from kshot.testing import check_source, learner_checks, make_task
from kshot.types import tree_map

WIDTH, CLASSES = 8, 12


def examples(shots: int | Sequence[int] = 1, ways: int | Sequence[int] = 3, seed: int = 0) -> ClassTasks:
    random = np.random.default_rng(seed)
    rows = np.repeat(random.normal(size=(CLASSES, WIDTH)), 20, 0) + 2 * random.normal(size=(20 * CLASSES, WIDTH)) + 3
    pools = {f"class {c}": range(20 * c, 20 * (c + 1)) for c in range(CLASSES)}
    parts = {"train": slice(0, 6), "val": slice(6, 9), "test": slice(9, 12)}
    classes = {split: dict([*pools.items()][part]) for split, part in parts.items()}
    return ClassTasks(ArrayDataset(rows.astype(np.float32)), classes, ways=ways, shots=shots, queries=5)


def names(seed: int = 0, noise: float = 0.5) -> dict[str, np.ndarray]:
    """Names near the centres of the classes, in another part of the space."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(CLASSES, WIDTH))
    return {f"class {c}": centres[c] + noise * random.normal(size=WIDTH) - 4 for c in range(CLASSES)}


def test_each_class_gets_its_name_as_a_marked_support_row():
    source, given = examples(shots=2), names()
    named = with_names(source, given)
    for index in range(5):
        plain, task = source.task("test", index), named.task("test", index)
        (classes,) = source.classes_of("test", [index])
        torch.testing.assert_close(task.support.inputs[:6, :-1], plain.support.inputs)
        expected = torch.from_numpy(np.stack([given[name] for name in classes])).float()
        torch.testing.assert_close(task.support.inputs[6:, :-1], expected)
        assert task.support.inputs[:, -1].tolist() == [0.0] * 6 + [1.0] * 3
        assert torch.equal(task.support.targets[6:], torch.eye(3))
        assert not task.query.inputs[:, -1].any()
        torch.testing.assert_close(task.query.inputs[:, :-1], plain.query.inputs)
    zero_shot = with_names(source, given, examples=False).task("test", 0)
    assert zero_shot.support.inputs[:, -1].tolist() == [1.0] * 3
    assert named.raw is source
    batch = named.pretraining_batch(0, 10)
    assert batch.inputs[:, -1].tolist() == [0.0] * 10 + [1.0] * 6
    assert torch.equal(batch.targets[10:], torch.eye(6))
    torch.testing.assert_close(batch.inputs[12, :-1], torch.from_numpy(given["class 2"]).float())


def test_tasks_of_fewer_classes_have_names_of_weight_0_and_a_class_may_have_several():
    source = examples(ways=[2, 3])
    given = {name: np.stack([row, row + 1]) for name, row in names().items()}
    named = with_names(source, given)
    sizes = set()
    for index in range(8):
        support = named.task("train", index).support
        (classes,) = source.classes_of("train", [index])
        sizes.add(len(classes))
        assert support.inputs.shape == (3 + 6, WIDTH + 1)
        assert support.weight[3:].tolist() == [1.0] * 2 * len(classes) + [0.0] * (6 - 2 * len(classes))
        assert torch.equal(support.targets[3:].argmax(1), torch.tensor([0, 0, 1, 1, 2, 2]))
    assert sizes == {2, 3}
    assert len(named.stack("train", range(4)).support.weight) == 4


def test_a_source_with_names_keeps_the_contract():
    check_source(with_names(examples(), names()))
    shifted = with_names(examples(), names()).with_shots(3)
    assert shifted.task("val", 0).support.inputs[:, -1].sum() == 3
    assert len(shifted.task("val", 0).support.weight) == 9 + 3


LEARNERS = {"named_means": kshot.learners.named_means, "tip_adapter": kshot.learners.tip_adapter}


def test_a_name_counts_as_so_many_examples():
    source = with_names(examples(shots=2), names())
    learner = kshot.learners.named_means(features=WIDTH + 1, strength=1.5, scale=3.0).double()
    kshot.training.fit_closed_form(learner, source)
    task = source.task("test", 0)
    rows, marks = task.support.inputs[:, :-1].double(), task.support.inputs[:, -1]
    centre, of_names = (learner.head.centres[number] for number in (0, 1))
    train = torch.from_numpy(np.stack([names()[f"class {c}"] for c in range(6)]))
    torch.testing.assert_close(of_names, train.mean(0), rtol=1e-5, atol=1e-5)
    z = F.normalize(rows - torch.where(marks[:, None] > 0, of_names, centre), dim=1)
    label = task.support.targets.argmax(1)
    means, strength = [], learner.head.log_strength.detach().exp()  # 1.5 but for the rounding of its logarithm
    for c in range(3):
        own = z[(label == c) & (marks == 0)]
        means.append((own.sum(0) + strength * z[(label == c) & (marks == 1)][0]) / (len(own) + strength))
    query = task.query.inputs[:, :-1].double() - centre
    expected = learner.head.log_scale.detach().exp() * F.cosine_similarity(query[:, None], torch.stack(means), dim=2)
    support = task.support._replace(inputs=task.support.inputs.double())
    found = learner.predict(learner.adapt(support), task.query.inputs.double())
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_tip_adapter_adds_the_votes_of_a_cache_to_the_scores_of_names():
    task = with_names(examples(shots=2), names()).task("test", 0)
    support, query = (tree_map(lambda leaf: leaf.double(), tuple(batch)) for batch in task)
    learner = kshot.learners.tip_adapter(features=WIDTH + 1, votes=0.7, sharpness=2.0, scale=3.0).double()
    votes, sharpness, scale = (
        getattr(learner.head, f"log_{name}").detach().exp() for name in ("votes", "sharpness", "scale")
    )
    z, q = (F.normalize(inputs[:, :-1], dim=1) for inputs in (support[0], query[0]))
    expected = scale * q @ z[6:].T
    for row, target in zip(z[:6], support[1][:6]):
        expected = expected + votes * (-sharpness * (1 - q @ row)).exp()[:, None] * target
    found = learner.predict(learner.adapt(Batch(*support)), query[0])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", LEARNERS)
def test_without_examples_the_nearest_name_is_chosen(kind):
    source = with_names(examples(), names(), examples=False)
    learner = LEARNERS[kind](features=WIDTH + 1)
    task = source.task("test", 1)
    expected = F.cosine_similarity(task.query.inputs[:, None, :-1], task.support.inputs[:, :-1], dim=2)
    found = learner.predict(learner.adapt(task.support), task.query.inputs)
    torch.testing.assert_close(found, 10 * expected)
    assert kshot.evaluate(learner, source, num_tasks=16).trusted


@pytest.mark.parametrize("kind", LEARNERS)
def test_a_class_can_be_added_by_its_name_alone(kind):
    task = with_names(examples(), names()).task("test", 0)
    order = torch.tensor([row for row in range(6) if int(task.support.targets[row].argmax()) < 2] + [5])
    first = task.support.rows(order[:-1])
    first = first._replace(targets=first.targets[:, :2])
    learner = LEARNERS[kind](features=WIDTH + 1)
    state = learner.extend(learner.adapt(first, extendable=True), task.support.rows(order[-1:]))
    expected = learner.predict(learner.adapt(task.support.rows(order)), task.query.inputs)
    torch.testing.assert_close(learner.predict(state, task.query.inputs), expected)


@pytest.mark.parametrize("kind", LEARNERS)
def test_names_help_and_their_share_is_learned(kind):
    source = with_names(examples(shots=[1, 5]), names(noise=0.1))
    learner = LEARNERS[kind](features=WIDTH + 1)
    kshot.training.fit_closed_form(learner, source)
    losses = kshot.fit(learner, source, steps=30, tasks_per_step=8, outer_lr=0.1)
    assert np.mean(losses[-10:]) < np.mean(losses[:10])
    means = kshot.learners.simpleshot(nn.Flatten(), features=WIDTH)
    kshot.training.fit_closed_form(means, examples())
    plain = kshot.evaluate(means, examples(), num_tasks=60, audit=False)
    ours = kshot.evaluate(learner, source.with_shots(1), num_tasks=60, audit=False)
    difference = kshot.evaluation.paired_difference(ours, plain, "accuracy")
    assert difference.mean > 0.04


def marked_task(ways=3, shots=2, seed=0, dtype=torch.float32):
    """A task of which the first support row of each class is its name."""
    task = make_task(kshot.objectives.classification, ways, shots + 1, seed=seed, dtype=dtype)
    label = task.support.targets.argmax(1)
    first = torch.stack([(label == c).nonzero()[0, 0] for c in range(ways)])
    marks = torch.zeros(len(label), dtype=dtype).index_fill(0, first, 1.0)

    def with_marks(batch: Batch, marks: torch.Tensor) -> Batch:
        return batch._replace(inputs=torch.cat([batch.inputs.flatten(1), marks[:, None]], 1))

    return kshot.Task(
        with_marks(task.support, marks), with_marks(task.query, torch.zeros(len(task.query.weight), dtype=dtype))
    )


CHECKS = {
    f"{kind}, {name}": check
    for kind, make in LEARNERS.items()
    for name, check in learner_checks(
        lambda ways, make=make: make(features=65),
        make_task=marked_task,
    )
}


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS.keys())
def test_contract(check):
    check()


def test_what_lacks_names_says_so():
    learner = kshot.learners.named_means(features=WIDTH + 1)
    task = examples().task("test", 0)
    with pytest.raises(ValueError, match=r"takes 9 columns, the last of which marks names; got 8: take a source with"):
        learner.adapt(task.support)
    given = names()
    with pytest.raises(
        ValueError, match=r"must have the shape of an example, \(8,\), or several rows of it, got \(3,\)"
    ):
        with_names(examples(), given | {"class 0": np.zeros(3)})
    with pytest.raises(ValueError, match=r"the same number of rows, got \[1, 2\]"):
        with_names(examples(), given | {"class 0": np.zeros((2, WIDTH))})
    del given["class 3"]
    with pytest.raises(ValueError, match="class 'class 3' has no inputs"):
        with_names(examples(), given).pretraining_batch(0, 4)
    with pytest.raises(ValueError, match="names need tasks whose classes have names"):
        with_names(kshot.sources.sinusoids(), given)
    with pytest.raises(ValueError, match=r"names need inputs \(n, D\), the features of an encoder"):
        with_names(kshot.sources.glyphs(), given)
