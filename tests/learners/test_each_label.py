"""Heads of classes on multi-label tasks: each label by itself."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from torch import nn

import kshot
from kshot import Batch, objectives

LABELS, FEATURES = 3, 4
objective = objectives.multilabel


def task(n=30, *, seed=0):
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, FEATURES))
    y = (x @ random.normal(size=(FEATURES, LABELS)) + 0.5 * random.normal(size=(n, LABELS)) > 0.3).astype(float)
    weight = random.integers(0, 3, n).astype(float)
    return Batch.of(torch.from_numpy(x), torch.from_numpy(y), weight=torch.from_numpy(weight)), x, y, weight


def test_a_prototype_of_the_examples_with_a_label_and_one_of_those_without():
    support, x, y, weight = task()
    query = np.random.default_rng(1).normal(size=(5, FEATURES))
    learner = kshot.protonet(nn.Identity(), objective=objective)
    logits = learner.predict(learner.adapt(support), torch.from_numpy(query))
    for label in range(LABELS):
        true, false = (np.average(x, axis=0, weights=weight * share) for share in (y[:, label], 1 - y[:, label]))
        expected = ((query - false) ** 2).sum(1) - ((query - true) ** 2).sum(1)
        np.testing.assert_allclose(logits[:, label], expected, rtol=1e-10)


def test_ridge_is_that_of_scikit_learn_for_targets_of_1_and_minus_1():
    support, x, y, weight = task()
    learner = kshot.learners.r2d2(nn.Identity(), l2=0.7, scale=None, normalize=False, objective=objective).double()
    logits = learner.predict(learner.adapt(support), support.inputs).detach()
    wide = np.c_[x, np.ones(len(x))]
    fitted = Ridge(0.7, fit_intercept=False, tol=1e-12).fit(wide, 2 * y - 1, sample_weight=weight)
    np.testing.assert_allclose(logits, fitted.predict(wide), rtol=1e-6, atol=1e-8)


def test_logistic_regression_is_that_of_scikit_learn_at_half_the_penalty():
    """Two classes have weights w/2 and -w/2, whose squared length is half of that of w."""
    support, x, y, weight = task()
    options = {"l2": 1.0, "scale": None, "normalize": False, "objective": objective}
    learner = kshot.learners.logistic_regression(nn.Identity(), **options)
    logits = learner.double().predict(learner.adapt(support), support.inputs).detach()
    wide = np.c_[x, np.ones(len(x))]
    for label in range(LABELS):
        fitted = LogisticRegression(C=2.0, fit_intercept=False, tol=1e-10, max_iter=1000)
        fitted.fit(wide, y[:, label], sample_weight=weight)
        np.testing.assert_allclose(logits[:, label], fitted.decision_function(wide), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [kshot.protonet, kshot.learners.r2d2, kshot.learners.logistic_regression])
def test_a_label_of_all_or_none_of_the_examples_gets_the_log_odds(make):
    targets = torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, 0.0], [1.0, 0.0, 1.0]])
    support = Batch.of(torch.randn(3, FEATURES, generator=torch.Generator().manual_seed(0)), targets)
    learner = make(nn.Identity(), objective=objective)
    logits = learner.predict(learner.adapt(support), torch.zeros(2, FEATURES)).detach()
    expected = kshot.learners.SupportMean(objective).adapt(support)["mean"]
    torch.testing.assert_close(logits[:, :2], expected[:2].expand(2, 2))
    assert float(objective.loss(logits, Batch.of(torch.zeros(2, 1), torch.tensor([[0.0, 1.0, 1.0]] * 2)))) < 3


def test_an_extended_state_is_that_of_all_examples():
    support, *_ = task()
    learner = kshot.learners.r2d2(nn.Identity(), objective=objective).double()
    first, rest = support.rows(slice(12)), support.rows(slice(12, None))
    extended = learner.extend(learner.adapt(first, extendable=True), rest)
    torch.testing.assert_close(
        learner.predict(extended, support.inputs), learner.predict(learner.adapt(support), support.inputs)
    )
