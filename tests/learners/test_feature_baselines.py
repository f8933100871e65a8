"""Opponents on frozen features against scikit-learn and closed forms, and what they do with odd support sets."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

import kshot
from kshot import Batch, objectives
from kshot.data.dataset import ArrayDataset
from kshot.evaluation.evaluate import evaluate
from kshot.learners.baselines import feature_heads as heads
from kshot.learners.baselines import features as baselines
from kshot.tasks import ClassTasks
from kshot.testing import learner_checks


def feature_tasks(ways=3, shots=4, width=10, missing=False):
    """Tasks of 24 classes of normal features, whose first axes distinguish them."""
    random = np.random.default_rng(0)
    means = random.normal(size=(24, 1, width)) * np.linspace(2, 0.1, width)
    rows = (3 + means + random.normal(size=(24, 20, width))).astype(np.float32).reshape(480, width)
    if missing:
        rows[::7, 0] = np.nan
    names = {f"class {c}": range(20 * c, 20 * c + 20) for c in range(24)}
    cut = {"train": range(12), "val": range(12, 18), "test": range(18, 24)}
    classes = {split: {f"class {c}": names[f"class {c}"] for c in part} for split, part in cut.items()}
    return ClassTasks(ArrayDataset(rows), classes, ways=ways, shots=shots, queries=5)


def head_of(learner_head, kind="unit", width=10):
    return heads.Opponent(nn.Flatten(), heads.Prepared(learner_head, width, kind), objectives.classification)


def logits_of(learner, task):
    return learner.predict(learner.adapt(task.support), task.query.inputs).double().numpy()


def unit(batch):
    inputs = batch.inputs.double().numpy()
    return inputs / np.linalg.norm(inputs, axis=1, keepdims=True)


@pytest.mark.parametrize(("ways", "shots"), [(2, 3), (3, 1), (3, 8)])
def test_linear_opponents_are_those_of_scikit_learn(ways, shots):
    task = feature_tasks(ways, shots).task("test", 0)
    support, query, labels = unit(task.support), unit(task.query), task.support.targets.argmax(1).numpy()
    peers = {
        heads.LogisticRegression(10.0): LogisticRegression(C=10.0, tol=1e-10, max_iter=10_000),
        heads.RidgeClassifier(0.1): RidgeClassifier(alpha=0.1),
    }
    for head, peer in peers.items():
        score = peer.fit(support, labels).decision_function(query)
        if ways == 2:
            score = np.stack([-score, score] if isinstance(peer, RidgeClassifier) else [0 * score, score], 1)
        np.testing.assert_allclose(logits_of(head_of(head), task), score, atol=2e-3)


def test_the_nearest_neighbour_is_that_of_scikit_learn():
    task = feature_tasks().task("test", 1)
    labels = task.support.targets.argmax(1).numpy()
    for k in (1, 3):
        peer = KNeighborsClassifier(k, metric="cosine", weights=lambda far: 1 - far / 2)
        peer.fit(unit(task.support), labels)
        logits = logits_of(head_of(heads.Neighbours(k)), task)
        assert (logits.argmax(1) == peer.predict(unit(task.query))).all()


def test_many_classes_of_one_row_are_no_regression():
    support = Batch.of(torch.randn(40, 10), torch.arange(40), ways=40)
    for head in (heads.LogisticRegression(10.0), heads.RidgeClassifier(0.1)):
        learner = head_of(head)
        assert (learner.predict(learner.adapt(support), support.inputs).argmax(1) == torch.arange(40)).all()


def test_row_weights_are_those_of_repeated_rows():
    task = feature_tasks().task("test", 2)
    doubled = task._replace(support=Batch(*(torch.cat([leaf, leaf[:5]]) for leaf in task.support)))
    weight = torch.ones(12)
    weight[:5] = 2
    weighted = task._replace(support=task.support._replace(weight=weight))
    for head in (heads.LogisticRegression(1.0), heads.RidgeClassifier(1.0), heads.ClassMeans()):
        learner = head_of(head)
        np.testing.assert_allclose(logits_of(learner, weighted), logits_of(learner, doubled), atol=1e-3)


HEADS = {
    "class means": heads.ClassMeans,
    "logistic regression": lambda: heads.LogisticRegression(10.0),
    "ridge": lambda: heads.RidgeClassifier(0.1),
    "neighbours": lambda: heads.Neighbours(3),
}
CHECKS = {
    f"{name}, {check_name}": check
    for name, make in HEADS.items()
    for check_name, check in learner_checks(lambda ways, make=make: head_of(make(), width=6), inputs=(6,))
}


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS.keys())
def test_contract(check):
    check()


@pytest.mark.parametrize("make", HEADS.values(), ids=HEADS.keys())
@pytest.mark.parametrize("kind", ["unit", "centred", "standardised"])
def test_odd_support_sets_have_finite_predictions(make, kind):
    learner, query = head_of(make(), kind), torch.randn(4, 10)
    query[0, 0] = torch.nan
    cases = {
        "one row": Batch.of(torch.ones(1, 10), torch.tensor([1]), ways=3),
        "one class": Batch.of(torch.randn(3, 10), torch.tensor([1, 1, 1]), ways=3),
        "equal rows": Batch.of(torch.ones(4, 10), torch.tensor([0, 1, 1, 2]), ways=3),
        "rows of zeros": Batch.of(torch.zeros(4, 10), torch.tensor([0, 1, 1, 2]), ways=3),
        "large": Batch.of(1e12 * torch.randn(3, 10), torch.tensor([0, 1, 2]), ways=3),
    }
    for name, support in cases.items():
        assert torch.isfinite(learner.predict(learner.adapt(support), query)).all(), name


def test_all_opponents_fit_to_training_classes_and_beat_chance():
    source = kshot.tasks.watched(feature_tasks(missing=True))
    made = baselines.baselines(
        source, contrast=lambda model: kshot.pretrain(model, source, steps=3, objective="contrastive")
    )
    assert set(made) == {"class_mean_cosine", "logistic_regression", "ridge", "knn", "contrast_then_probe"}
    candidates = {name: make() for name, make in made.items()}
    assert {split for _, split in source.reads} == {"train"}
    for name, learners in candidates.items():
        best = max(
            evaluate(learner, source, split="val", num_tasks=10, audit=False).metrics["accuracy"].mean
            for learner in learners
        )
        assert best > 0.6, name


def test_a_temperature_is_the_one_with_the_lowest_loss_on_training_tasks():
    source = feature_tasks()
    learner = baselines.class_mean_candidates(source, nn.Flatten())[0]
    fitted = float(learner.scale)

    def loss(scale):
        learner.scale.fill_(scale)
        return np.mean([float(learner(source.task("train", index))) for index in range(heads.TASKS)])

    assert loss(fitted) < min(loss(1.3 * fitted), loss(fitted / 1.3))


def test_standardised_features_have_the_training_mean_and_deviation():
    source = feature_tasks()
    prepared = baselines.logistic_candidates(source, nn.Flatten())[-1].head
    assert prepared.kind == "standardised"
    rows = np.concatenate([*source.classes("train").values()])
    features = source.examples.take(rows)
    torch.testing.assert_close(prepared.centre, features.mean(0), atol=0.1, rtol=0)
    torch.testing.assert_close(prepared.deviation, features.std(0), atol=0, rtol=0.1)


def test_an_embedding_without_weights_to_train_gets_a_linear_map():
    source, seen = feature_tasks(), []
    frozen = nn.Linear(10, 4).requires_grad_(False)
    baselines.contrasted(source, frozen, seen.append)
    baselines.contrasted(source, nn.Linear(10, 4), seen.append)
    assert [sum(p.requires_grad for p in model.parameters()) for model in seen] == [1, 2]
    torch.testing.assert_close(seen[0](torch.ones(1, 10)), frozen(torch.ones(1, 10)))


def test_tasks_of_other_kinds_have_none_of_them():
    assert baselines.baselines(kshot.sources.sinusoids()) == {}
    assert baselines.pretrained_baselines(kshot.sources.sinusoids(), nn.Flatten()) == {}
