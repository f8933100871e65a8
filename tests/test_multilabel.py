import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import kshot
from kshot import Batch, Task, objectives
from kshot.types import SPLITS

objective = objectives.multilabel


def example(n: int = 40, labels: int = 5, *, seed: int = 0, ties: bool = False) -> tuple[torch.Tensor, Batch]:
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, labels, generator=random, dtype=torch.float64)
    if ties:
        logits = (2 * logits).round() / 2
    targets = (torch.rand(n, labels, generator=random) < 0.4).double()
    weight = torch.randint(0, 4, (n,), generator=random).double()
    return logits, Batch.of(torch.zeros(n, 1), targets, weight=weight)


def test_the_loss_equals_torch():
    logits, batch = example()
    each = nn.functional.binary_cross_entropy_with_logits(logits, batch.targets, reduction="none")
    expected = (each.mean(1) * batch.weight).sum() / batch.weight.sum()
    torch.testing.assert_close(objective.loss(logits, batch), expected)
    plain = batch._replace(weight=torch.ones_like(batch.weight))
    torch.testing.assert_close(
        objective.loss(logits, plain), nn.functional.binary_cross_entropy_with_logits(logits, batch.targets)
    )


def by_sklearn(logits: np.ndarray, targets: np.ndarray, weight: np.ndarray) -> dict[str, float]:
    """The metrics; labels without a positive example are left out of the mean average precision."""
    predicted, options = logits > 0, {"sample_weight": weight}
    exists = (weight @ targets) > 0
    return {
        "micro_f1": sklearn.f1_score(targets, predicted, average="micro", zero_division=1.0, **options),
        "macro_f1": sklearn.f1_score(targets, predicted, average="macro", zero_division=np.nan, **options),
        "mean_average_precision": sklearn.average_precision_score(targets[:, exists], logits[:, exists], **options),
        "label_ranking_average_precision": sklearn.label_ranking_average_precision_score(targets, logits, **options),
        "subset_accuracy": sklearn.accuracy_score(targets, predicted, **options),
        "hamming_loss": sklearn.hamming_loss(targets, predicted, **options),
    }


@pytest.mark.parametrize("ties", [False, True])
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(3, 30), labels=st.integers(2, 6))
def test_metrics_equal_scikit_learn(ties, seed, n, labels):
    logits, batch = example(n, labels, seed=seed, ties=ties)
    if not (batch.weight @ batch.targets).any():
        return  # scikit-learn has no value
    ours = objective.metrics(logits, batch)
    theirs = by_sklearn(logits.numpy(), batch.targets.numpy(), batch.weight.numpy())
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert float(ours[name]) == pytest.approx(value, abs=1e-12), name


def test_labels_that_occur_nowhere_do_not_count_as_errors():
    batch = Batch.of(torch.zeros(3, 1), torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.0]]))
    certain = objective.metrics(objective.as_prediction(batch.targets), batch)
    assert {name: float(value) for name, value in certain.items()} == {
        name: 0.0 if name == "hamming_loss" else 1.0 for name in certain
    }
    nothing = objective.metrics(-torch.ones(3, 3), batch._replace(targets=torch.zeros(3, 3)))
    assert all(value.isfinite() for value in nothing.values())


def test_padding_has_no_effect_and_the_loss_is_twice_differentiable_under_vmap():
    logits, batch = example()
    real = batch.rows(batch.weight > 0)
    for name, value in objective.metrics(logits, batch).items():
        torch.testing.assert_close(value, objective.metrics(logits[batch.weight > 0], real)[name])
    stacked = Batch(*(torch.stack([leaf, leaf.flip(0)]) for leaf in batch))
    twice = torch.vmap(objective.loss)(torch.stack([logits, logits.flip(0)]), stacked)
    torch.testing.assert_close(twice, objective.loss(logits, batch).expand(2))
    small = batch.rows(slice(3))
    start = logits[:3].clone().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda values: objective.loss(values, small), start)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.zeros(2, 3).long(), r"multi-hot \(n, labels\).* got int64 \(2, 3\); convert integers by targets.float"),
        (torch.zeros(2), r"multi-hot .* got float32 \(2,\)"),
    ],
)
def test_targets_of_another_shape_or_dtype(targets, message):
    with pytest.raises(ValueError, match=message):
        objective.check_targets(targets)


def learner(objective=objective) -> kshot.Learner:
    return kshot.maml(nn.Linear(2, 3), inner_lr=0.1, objective=objective)


def test_values_outside_0_to_1_are_refused():
    batch = Batch.of(torch.zeros(2, 2), torch.tensor([[0.0, 1.0, 1.0], [0.0, 3.0, 0.0]]))
    with pytest.raises(ValueError, match="row 1 has the value 3; multi-hot targets are 1 where"):
        learner().adapt(batch)
    learner().adapt(batch._replace(weight=torch.tensor([1.0, 0.0])))  # padding may hold anything


MULTI_HOT = Batch.of(torch.zeros(3, 2), torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [1.0, 0.0, 0.0]]))
SOFT = MULTI_HOT._replace(targets=torch.tensor([[0.5, 0.25, 0.25], [0.0, 0.3, 0.7], [1.0, 0.0, 0.0]]))


class Fixed(kshot.TaskSource):
    """A query set that is always the same."""

    objective, seed = objectives.classification, 0

    def __init__(self, query: Batch) -> None:
        self.query = query

    def task(self, split, index):
        return Task(SOFT, self.query)


@pytest.mark.parametrize("objective", [objectives.classification, objectives.shared_classification])
@pytest.mark.parametrize("mode", ["loop", "vmap", "traced"])
def test_a_multi_hot_row_under_classification_is_refused_by_name(objective, mode):
    message = "row 1.* sums to 2, not 1: if an example may have several labels, use objectives.multilabel"
    with pytest.raises(ValueError, match=message):
        learner(objective).adapt(MULTI_HOT)
    with pytest.raises(ValueError, match=f"query set: targets: {message}"):
        kshot.evaluate(learner(objective), Fixed(MULTI_HOT), num_tasks=1)
    with pytest.raises(ValueError, match="query set: targets: row 1 of task 0 sums to 2"):
        kshot.fit(learner(objective), Fixed(MULTI_HOT), steps=1, mode=mode)
    kshot.fit(learner(objective), Fixed(SOFT), steps=1, mode=mode)
    learner(objective).adapt(SOFT)
    learner(objective).adapt(Batch(*(leaf.half().float() for leaf in SOFT)))
    learner(objective).adapt(MULTI_HOT._replace(weight=torch.tensor([1.0, 0.0, 1.0])))


@pytest.mark.parametrize(
    ("row", "message"),
    [([0.0, 0.0, 0.0], "sums to 0, not 1; give a row .* the weight 0"), ([2.0, -1.0, 0.0], "has values outside 0 … 1")],
)
def test_other_rows_that_are_no_distribution(row, message):
    with pytest.raises(ValueError, match=f"targets: row 0 {message}"):
        learner(objectives.classification).adapt(Batch.of(torch.zeros(1, 2), torch.tensor([row])))


def test_values_are_not_read_where_that_costs_or_fails():
    batch = MULTI_HOT._replace(targets=torch.ones(3, 3))
    stacked = Batch(*(leaf[None] for leaf in batch))
    model = learner(objectives.classification)
    torch.vmap(model.adapt)(stacked)
    meta = Batch(*(leaf.to("meta") for leaf in batch))
    model._check_support(meta)
    make_fx(lambda targets: (model._check_support(batch._replace(targets=targets)), targets)[1])(batch.targets)


@pytest.mark.parametrize(
    "make",
    [
        lambda embedding, **options: kshot.learners.plda(embedding, features=4, **options),
        lambda embedding, **options: kshot.learners.laplacian_shot(embedding, features=4, **options),
        lambda embedding, **options: kshot.learners.cnaps(embedding, embedding, film=["0"], task_dim=4, **options),
        lambda embedding, **options: kshot.learners.transductive_fine_tune(embedding, inner_lr=0.1, **options),
        lambda embedding, **options: kshot.learners.alpaca(embedding, features=4, prior=1.0, noise=0.1, **options),
    ],
)
def test_learners_that_need_one_class_for_each_example_refuse_it(make):
    with pytest.raises(
        ValueError, match="one class for each example, and multilabel .* as protonet, r2d2 .* such as maml"
    ):
        make(nn.Sequential(nn.Linear(2, 4)), objective=objective)


def test_fine_tuning_learns_what_independent_logistic_regressions_do():
    """Full-batch gradient descent on a linear model, to its minimum: one logistic regression for each label."""
    from sklearn.linear_model import LogisticRegression

    random = np.random.default_rng(0)
    x = random.normal(size=(60, 2))
    y = (x @ random.normal(size=(2, 3)) + random.normal(size=(60, 3)) > 0).astype(float)
    model = nn.Linear(2, 3).double()
    tuned = kshot.learners.fine_tune(model, inner_lr=3.0, steps=600, objective=objective)
    task = Batch.of(torch.from_numpy(x), torch.from_numpy(y), weight=torch.ones(60, dtype=torch.float64))
    params = tuned.adapt(task)["params"]
    for label in range(3):
        fitted = LogisticRegression(C=1e12, tol=1e-10, max_iter=1000).fit(x, y[:, label])
        np.testing.assert_allclose(params["weight"][label].detach(), fitted.coef_[0], rtol=1e-4)


def test_the_baseline_of_the_support_predicts_log_odds():
    batch = Batch.of(torch.zeros(3, 2), torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 1.0]]))
    mean = kshot.learners.SupportMean(objective)
    logits = mean.predict(mean.adapt(batch), torch.zeros(1, 2))
    torch.testing.assert_close(logits.sigmoid(), torch.tensor([[1.5 / 4, 3.5 / 4]]))


def test_it_is_named_in_files():
    assert objectives.from_name("multilabel") == objective
    assert objectives.name_of(objective) == "multilabel"
    assert not objective.task_specific_classes
    assert not objective.classifies


def test_evaluation_with_audits_and_meta_training_on_tasks_of_labels():
    class Labels(kshot.TaskSource):
        objective, seed = objectives.multilabel, 0

        def task(self, split, index):
            return kshot.testing.make_task(
                objective, ways=3, shots=4, queries=6, inputs=(5,), seed=1000 * SPLITS.index(split) + index
            )

    model = kshot.maml(nn.Linear(5, 3), inner_lr=0.5, steps=5, objective=objective)
    before = kshot.evaluate(model, Labels(), split="val", num_tasks=40)
    kshot.fit(model, Labels(), steps=20, mode="vmap", outer_lr=1e-2)
    assert before.trusted
    assert before.metrics["micro_f1"].mean > 0.6
