"""A plain classifier of all training examples is beside learners where all splits have the same classes."""

import itertools

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_wine
from sklearn.ensemble import RandomForestClassifier

import kshot
from kshot import objectives
from kshot.data.dataset import ArrayDataset
from kshot.evaluation.baselines import Baseline, of_fields
from kshot.learners.baselines.known_classes import SMOOTHING, KnownClasses, baselines
from kshot.tasks.class_tasks import ClassTasks
from kshot.testing import learner_checks
from kshot.types import Batch

NAMES = {"supervised_logistic", "supervised_forest"}


class Fixed:
    """A classifier whose probabilities are its features."""

    def predict_proba(self, features):
        return features


@pytest.mark.parametrize("seed", range(4))
def test_labels_stand_for_the_classes_of_the_best_assignment(seed):
    random = np.random.default_rng(seed)
    inputs = torch.from_numpy(random.dirichlet(np.full(5, 0.4), 7))
    support = Batch.of(inputs, torch.from_numpy(random.permutation([0, 0, 0, 1, 1, 2, 2])), ways=3)
    support = support._replace(weight=torch.tensor([1, 1, 0.5, 1, 0, 2, 1.0]))
    learner = KnownClasses(lambda rows: rows.double().numpy(), Fixed(), objectives.classification)
    log_NK = ((1 - SMOOTHING) * inputs + SMOOTHING / 5).log()
    score = (support.targets * support.weight[:, None]).double().T @ log_NK
    best = max(itertools.permutations(range(5), 3), key=lambda chosen: float(score[range(3), chosen].sum()))
    state = learner.adapt(support)
    assert tuple(state["classes"].tolist()) == best
    torch.testing.assert_close(learner.predict(state, inputs), log_NK[:, best].float())


def test_a_class_without_examples_gets_no_probability():
    learner = KnownClasses(lambda rows: rows.double().numpy(), Fixed(), objectives.classification)
    inputs = torch.eye(3)
    state = learner.adapt(Batch.of(inputs[:2], torch.tensor([0, 2]), ways=3))
    assert learner.predict(state, inputs).softmax(1)[:, 1].max() == 0


def of_rows(inputs, labels, parts, **options):
    """Tasks of all classes, whose rows are split by position."""
    rows = {name: np.flatnonzero(labels == label) for label, name in enumerate(map(str, np.unique(labels)))}
    pools = {part: {name: each[start :: len(parts)] for name, each in rows.items()} for start, part in enumerate(parts)}
    return ClassTasks(inputs, pools, ways="all", queries=5, same_classes=True, **options)


def test_the_forest_is_that_of_scikit_learn_on_all_training_rows():
    data = load_wine()
    source = of_rows(ArrayDataset(data.data.astype(np.float32)), data.target, ("train", "val", "test"))
    found = of_fields(source)
    assert found.keys() >= NAMES
    learner = found["supervised_forest"]()[0]
    train = np.concatenate([np.flatnonzero(data.target == label)[::3] for label in range(3)])
    forest = RandomForestClassifier(200, random_state=0).fit(data.data[train].astype(np.float32), data.target[train])
    task = source.task("test", 0)
    state = learner.adapt(task.support)
    classes = state["classes"].numpy()[learner.predict(state, task.query.inputs).argmax(1)]
    assert (classes == forest.predict(task.query.inputs.numpy())).all()


def test_it_beats_comparing_examples_where_the_classes_are_known_and_is_kept_as_a_learner():
    data = load_digits()
    images = (data.images * 15.9).astype(np.uint8)[:, None]
    source = of_rows(images, data.target, ("train", "val", "test"))
    learner = Baseline("supervised_logistic", source.objective, num_val_tasks=5)
    learner.fit_to_training(source)
    accuracy = [
        kshot.evaluate(each, source, num_tasks=20, audit=False).metrics["accuracy"].mean
        for each in (learner, kshot.learners.nearest_centroid())
    ]
    assert accuracy[0] > 0.9
    assert accuracy[0] > accuracy[1] + 0.2


def test_large_images_are_averaged_and_modules_give_features():
    images = np.random.default_rng(0).integers(0, 256, (40, 1, 48, 64), np.uint8)
    source = of_rows(images, np.arange(40) % 2, ("train", "val", "test"), shots=1)
    assert baselines(source)["supervised_forest"]()[0].classifier.n_features_in_ == 32 * 32
    halves = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())
    assert baselines(source, halves)["supervised_forest"]()[0].classifier.n_features_in_ == 4


class Tokens:
    """Examples that are dicts, as of an encoder of texts."""

    def __len__(self):
        return 60

    def take(self, rows):
        ids = torch.from_numpy(np.asarray(rows)[..., None] % 3 + np.arange(4))
        return {"ids": ids, "mask": torch.ones_like(ids)}


class Sums(torch.nn.Module):
    def forward(self, ids, mask):
        return (ids * mask).sum(-1, keepdim=True).float()


def test_inputs_of_several_parts_go_through_a_module():
    source = of_rows(Tokens(), np.arange(60) % 3, ("train", "val", "test"), shots=1)
    assert baselines(source) == {}
    learner = baselines(source, Sums())["supervised_logistic"]()[-1]
    assert kshot.evaluate(learner, source, num_tasks=5, audit=False).metrics["accuracy"].mean == 1


def test_classes_that_training_has_not_have_no_such_baseline():
    rows = ArrayDataset(np.random.default_rng(0).normal(size=(120, 3)).astype(np.float32))
    pools = {"train": {str(c): range(20 * c, 20 * c + 20) for c in range(3)}}
    other = pools | {"test": {str(c): range(20 * c, 20 * c + 20) for c in range(3, 6)}}
    assert baselines(ClassTasks(rows, other, ways=2, shots=1, queries=2)) == {}
    assert baselines(ClassTasks(rows, other, ways=2, shots=1, queries=2, same_classes=True)) == {}
    assert baselines(kshot.sources.sinusoids()) == {}
    words = ClassTasks(ArrayDataset(np.ones((120, 3), np.int64)), pools, ways=2, shots=1, queries=2, same_classes=True)
    assert baselines(words) == {}


def test_it_keeps_the_contract_of_learners_and_reads_training_rows_alone():
    data = load_wine()
    source = of_rows(ArrayDataset(data.data.astype(np.float32)), data.target, ("train", "val", "test"))
    watched = kshot.tasks.watched(source)
    learner = baselines(watched)["supervised_forest"]()[0]
    assert {split for _, split in watched.reads} <= {"train"}
    for _, check in learner_checks(lambda ways: learner, inputs=(13,)):
        check()
