"""Baselines on rows of numbers: the learner's contract, scikit-learn's values, and support sets that are degenerate."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

import kshot
from kshot.evaluation.baselines import of_fields
from kshot.learners.baselines.plain_table import (
    SMOOTHING,
    WIDE,
    NearestNeighbours,
    baselines,
    histogram_boosting,
    logistic_regression,
    random_forest,
)
from kshot.sources.tabular_prior import tabular_priors
from kshot.testing.learner_checks import learner_checks
from kshot.types import Batch

LEARNERS = {
    "logistic_regression": lambda: logistic_regression(1.0),
    "knn": lambda: NearestNeighbours(3),
    "random_forest": lambda: random_forest(20),
    "histogram_boosting": lambda: histogram_boosting(1),
}
CHECKS = [
    pytest.param(check, id=f"{name}: {check_name}")
    for name, make in LEARNERS.items()
    for check_name, check in learner_checks(lambda ways, make=make: make(), inputs=(4,))
]


@pytest.mark.parametrize("check", CHECKS)
def test_it_keeps_the_contract_of_learners(check):
    check()


def rows(seed=0, count=30, features=3, ways=3):
    random = np.random.default_rng(seed)
    labels = random.integers(ways, size=count)
    inputs = random.normal(size=(count, features)) + labels[:, None] * np.array([1.0, -0.5, 0.0])[:features]
    return torch.from_numpy(inputs).float(), torch.from_numpy(labels)


def standard(inputs, others):
    mean, std = inputs.double().mean(0), inputs.double().std(0, correction=0)
    return [((part.double() - mean) / std).numpy() for part in (inputs, others)]


def smoothed(probabilities):
    return (1 - SMOOTHING) * probabilities + SMOOTHING / probabilities.shape[1]


@pytest.mark.parametrize(
    ("learner", "model"),
    [
        (logistic_regression(0.3), LogisticRegression(C=0.3, tol=1e-8)),
        (NearestNeighbours(5), KNeighborsClassifier(5)),
    ],
)
def test_probabilities_are_those_of_scikit_learn(learner, model):
    inputs, labels = rows()
    query, _ = rows(1)
    train, test = standard(inputs, query)
    expected = smoothed(model.fit(train, labels).predict_proba(test))
    state = learner.adapt(Batch.of(inputs, labels, ways=3))
    np.testing.assert_allclose(learner.predict(state, query).softmax(1).numpy(), expected, atol=2e-3)


@pytest.mark.parametrize("name", ["logistic_regression", "histogram_boosting"])
def test_a_weight_of_two_is_a_row_twice(name):
    inputs, labels = rows()
    query, _ = rows(1)
    weight = torch.ones(30).index_fill(0, torch.arange(5), 2.0)
    once = Batch.of(inputs, labels, ways=3, weight=weight)
    twice = Batch.of(torch.cat([inputs, inputs[:5]]), torch.cat([labels, labels[:5]]), ways=3)
    plain = Batch.of(inputs, labels, ways=3)
    learner = LEARNERS[name]()
    weighted, doubled, without = (
        learner.predict(learner.adapt(each), query).softmax(1) for each in (once, twice, plain)
    )
    assert (weighted - doubled).abs().mean() < 0.2 * (weighted - without).abs().mean()


def test_neighbours_vote_by_their_weights():
    support = Batch.of([[-1.0], [1.0], [9.0]], [0, 1, 1], ways=2, weight=[2.0, 1.0, 1.0])
    learner = NearestNeighbours(2)
    probability = learner.predict(learner.adapt(support), torch.tensor([[0.0]])).softmax(1)[0, 0]
    assert probability == pytest.approx((1 - SMOOTHING) * 2 / 3 + SMOOTHING / 2)


@pytest.mark.parametrize("make", LEARNERS.values(), ids=LEARNERS)
def test_degenerate_support_sets_give_finite_predictions(make):
    inputs, labels = rows()
    one_class = Batch.of(inputs, torch.zeros_like(labels), ways=3)
    constant = Batch.of(torch.ones_like(inputs), labels, ways=3)
    one_row = Batch.of(inputs[:1], labels[:1], ways=3)
    huge = Batch.of(inputs * 1e12, labels, ways=3)
    for support in (one_class, constant, one_row, huge):
        probability = make().predict(make().adapt(support), inputs).softmax(1)
        assert torch.isfinite(probability).all()
        present = support.targets.sum(0) > 0
        assert (probability[:, ~present] == 0).all()
    assert (make().predict(make().adapt(one_class), inputs).argmax(1) == 0).all()


def test_each_method_beats_chance_on_tables_of_the_prior():
    source = tabular_priors(rows=40, features=6, classes=(2, 3))
    makers = baselines(source)
    assert list(makers) == list(LEARNERS)
    for name in makers:
        accuracy = kshot.evaluate(LEARNERS[name](), source, num_tasks=12, audit=False).metrics["accuracy"].mean
        assert accuracy > 0.6, name


def test_wide_rows_and_other_inputs_have_no_baselines():
    random = np.random.default_rng(0)
    examples = kshot.data.dataset.ArrayDataset(random.normal(size=(40, WIDE + 1)))
    classes = {"train": {f"class {number}": range(10 * number, 10 * number + 10) for number in range(4)}}
    source = kshot.tasks.ClassTasks(examples, classes, ways=2, shots=3, queries=2)
    assert baselines(source) == {}, "they are features"
    images = kshot.tasks.ClassTasks(np.zeros((40, 1, 4, 4), np.uint8), classes, ways=2, shots=3, queries=2)
    assert baselines(images) == {}
    assert list(of_fields(kshot.sources.sinusoids())) == ["gaussian_process"]
