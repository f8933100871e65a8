"""Heads where digits are scarce: features far from the origin, narrow types, and points without a derivative."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from features import features, support_of
from sklearn.linear_model import Ridge
from sklearn.neighbors import NearestCentroid
from torch import nn
from zoo import ZOO, make_task

import kshot
from kshot import Batch, Task, objectives
from kshot.inner import convex
from kshot.inner.precision import widest_float
from kshot.learners.amortised.cnaps import Mahalanobis
from kshot.learners.gradient.gradient_learner import GradientLearner
from kshot.learners.heads.distances import cosine, euclidean, unit
from kshot.learners.heads.head_learner import HeadLearner
from kshot.types import tree_map

FAR = pytest.mark.parametrize("offset", [0.0, 1e2, 1e4, 1e5])
ROWS = pytest.mark.parametrize("rows", [15, 60])  # fewer and more than the 16 features


def far(rows, offset):
    """Features (n, 16) in float32, the same rounded numbers in float64, targets and labels."""
    feat, target, labels = features(rows, 16, 5)
    narrow = (feat + offset).float()
    return narrow, narrow.double(), target, labels


def predicted(learner, feat, target, query):
    learner.eval().to(feat.dtype)
    prediction = learner.predict(learner.adapt(support_of(feat, target.to(feat.dtype))), query)
    return (torch.cat(list(prediction.values()), 1) if isinstance(prediction, dict) else prediction).detach().double()


@FAR
@ROWS
def test_prototypes_far_from_the_origin_are_those_of_scikit_learn(offset, rows):
    feat, wide, target, labels = far(rows, offset)
    query, wide_query, _, _ = far(60, offset)
    centroids = NearestCentroid().fit(wide, labels).centroids_
    distance = np.square(wide_query.numpy()[:, None] - centroids).sum(2)
    for learner in (kshot.learners.nearest_centroid(), kshot.protonet(nn.Flatten())):
        np.testing.assert_allclose(-predicted(learner, feat, target, query), distance, rtol=1e-6, atol=3e-5)


@FAR
@ROWS
def test_a_ridge_far_from_the_origin_is_that_of_scikit_learn(offset, rows):
    feat, wide, target, _ = far(rows, offset)
    query, wide_query, _, _ = far(60, offset)
    peer = Ridge(1.0, fit_intercept=False, solver="svd")  # the intercept is penalised
    peer.fit(F.pad(wide, (0, 1), value=1.0), target)
    found = predicted(kshot.learners.r2d2(nn.Flatten(), scale=None, normalize=False), feat, target, query)
    np.testing.assert_allclose(found, peer.predict(F.pad(wide_query, (0, 1), value=1.0)), atol=2e-5)


def objective_of(name, weight, bias, feat, target, l2):
    """What the two classifiers minimise, with the intercept at the origin."""
    score = feat @ weight.mT + bias
    if name == "logistic":
        loss = -(target * score.log_softmax(-1)).sum(-1)
    else:
        loss = (score + 1 - target - (score * target).sum(-1, keepdim=True)).amax(-1)
    return loss.sum(-1) + l2 / 2 * (weight.square().sum((-1, -2)) + bias.square().sum((-1, -2)))


@pytest.mark.parametrize("l2", [0.01, 1.0, 10.0])
@pytest.mark.parametrize("name", ["logistic", "svm"])
@FAR
@ROWS
def test_convex_classifiers_far_from_the_origin_are_at_the_minimum(name, offset, rows, l2):
    """No change of the weights lowers the objective, the intercept following so that scores stay near."""
    _, feat, target, _ = far(rows, offset)
    plain = partial(kshot.learners.logistic_regression, normalize=False)
    make = {"logistic": plain, "svm": kshot.learners.metaoptnet}[name]
    state = make(nn.Flatten(), l2=l2).double().adapt(support_of(feat, target))["head"]
    weight, reference = state["weight"].detach(), state["reference"]
    bias = (state["bias"] - weight @ reference).detach()[None]
    random = torch.Generator().manual_seed(1)
    d_weight, d_bias = (torch.randn(400, 5, size, generator=random, dtype=torch.float64) for size in (16, 1))
    lowest = objective_of(name, weight, bias, feat, target, l2)
    for step in (1e-2, 1e-4):
        bias_there = bias + step * (d_bias - d_weight @ reference[:, None]).mT
        there = objective_of(name, weight + step * d_weight, bias_there, feat, target, l2)
        assert float((lowest - there).max()) <= 1e-8 * float(lowest)
    if name == "logistic":
        leaves = weight.requires_grad_(), bias.requires_grad_()
        grads = torch.autograd.grad(objective_of(name, *leaves, feat, target, l2), leaves)
        assert max(float(grad.abs().max()) for grad in grads) <= 1e-6 * (1 + offset)  # the strength is a float32


HEADS = {
    "svm": lambda: kshot.learners.metaoptnet(nn.Flatten()),
    "logistic": lambda: kshot.learners.logistic_regression(nn.Flatten()),
    "r2d2": lambda: kshot.learners.r2d2(nn.Flatten()),
    "mahalanobis": lambda: HeadLearner(nn.Flatten(), Mahalanobis(), objectives.classification),
    "alpaca": lambda: kshot.learners.alpaca(nn.Identity(), features=16),
    "frn": lambda: kshot.learners.frn(nn.Flatten()),
    "prior-fitted": lambda: kshot.learners.prior_fitted(cell_width=8, width=16, heads=2),
}


@pytest.mark.parametrize(("name", "atol"), [*[(name, 2e-5) for name in [*HEADS][:4]], ("frn", 2e-3)])
@pytest.mark.parametrize("offset", [1e2, 1e3])
def test_float32_is_as_good_as_float64_far_from_the_origin(name, atol, offset):
    feat, wide, target, _ = far(15, offset)
    query, wide_query, _, _ = far(40, offset)
    torch.manual_seed(0)
    learner = HEADS[name]()
    found, expected = predicted(learner, feat, target, query), predicted(learner, wide, target, wide_query)
    torch.testing.assert_close(found, expected, atol=atol, rtol=1e-5)


@pytest.mark.parametrize("name", ["svm", "logistic", "mahalanobis"])
@ROWS
def test_float32_is_as_good_as_float64_very_far_from_the_origin(name, rows):
    feat, wide, target, _ = far(rows, 1e5)
    query, wide_query, _, _ = far(40, 1e5)
    learner = HEADS[name]()
    found, expected = predicted(learner, feat, target, query), predicted(learner, wide, target, wide_query)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


def test_a_year_among_a_users_features_leaves_the_variance_exact():
    year = torch.tensor([[1999.0], [2003.0], [2008.0]])
    ratings, query = torch.tensor([[3.0], [4.0], [2.0]]), torch.tensor([[2001.0], [2020.0]])
    learner = kshot.learners.alpaca(nn.Identity(), features=1)
    found = learner.predict(learner.adapt(Batch.of(year, ratings)), query)
    phi, new = (F.pad(each.double(), (0, 1), value=1.0) for each in (year, query))
    covariance = torch.linalg.inv(torch.eye(2).double() / 0.35**2 + phi.T @ phi)
    variance = ((new @ covariance) * new).sum(1, keepdim=True)
    torch.testing.assert_close(found["std"].double(), (variance + 1).sqrt(), rtol=1e-5, atol=0)


def test_a_feature_that_varies_little_next_to_its_size_is_not_taken_for_constant():
    table = 1e5 + torch.tensor([[0.0, 7.0], [1.0, 7.0], [3.0, 7.0], [4.0, 7.0]])
    state = kshot.learners.prior_fitted(cell_width=8, width=16, heads=2).adapt(
        Batch.of(table, torch.tensor([0, 0, 1, 1]), ways=2)
    )
    assert (state["scale"] > 0).tolist() == [True, False]


@pytest.mark.parametrize("name", ["protonet", "r2d2", "simpleshot", "plda"])
def test_states_with_different_references_are_merged_exactly(name):
    feat, target, _ = features(12, 5, 3)
    feat = feat + 30 * torch.arange(12).double()[:, None]
    make = {
        "protonet": lambda: kshot.protonet(nn.Flatten()),
        "r2d2": lambda: kshot.learners.r2d2(nn.Flatten()),
        "simpleshot": lambda: kshot.learners.simpleshot(nn.Flatten(), features=5),
        "plda": lambda: kshot.learners.plda(nn.Flatten(), features=5),
    }[name]
    learner = make().double()
    first = learner.adapt(support_of(feat[:6], target[:6]), extendable=True)
    extended = learner.extend(first, support_of(feat[6:], target[6:]))
    expected = learner.predict(learner.adapt(support_of(feat, target)), feat)
    torch.testing.assert_close(learner.predict(extended, feat), expected)


DTYPES = pytest.mark.parametrize(
    ("dtype", "rtol"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2), (torch.float16, 5e-3)], ids=str
)
ROWS_WITH_HEADS = [name for name, row in ZOO.items() if not isinstance(row.make(3), GradientLearner)]
# Adam's epsilon, 1e-8, is 0 in float16, also in torch.optim; a text has no inputs to convert; windows of a series that
# are rounded to bfloat16 no longer agree where they overlap, so that the history is cut there
NOT_CONVERTED = ("dynamic", "melu", "transductive fine-tuning", "forecast ensemble")


def in_type(task, dtype):
    """Inputs in a type; targets and weights stay float32."""
    return Task(*(b._replace(inputs=tree_map(lambda leaf: leaf.to(dtype), b.inputs)) for b in task))


def outcome(learner, task):
    """The prediction and the meta-gradient."""
    prediction = learner.predict(learner.adapt(task.support), task.query.inputs)
    loss = learner(task)
    params = [p for p in learner.parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss, params, allow_unused=True) if params else []
    flat = torch.cat([g.double().flatten() for g in grads if g is not None] or [torch.zeros(1).double()])
    return prediction["mean"] if isinstance(prediction, dict) else prediction, flat


@pytest.mark.parametrize("name", [name for name in ROWS_WITH_HEADS if not name.startswith(NOT_CONVERTED)])
@DTYPES
def test_learners_predict_in_every_type_what_they_do_in_float64(name, dtype, rtol):
    if name == "p>m>f" and dtype == torch.float16:
        pytest.skip("Adam's epsilon is 0 in float16, as in torch.optim")
    row = ZOO[name]
    torch.manual_seed(0)
    learner = row.make(3).eval().to(dtype)  # parameters are rounded first: what is compared is the arithmetic
    task = in_type(make_task(row), dtype)
    found, gradient = outcome(learner, task)
    expected, wide_gradient = outcome(copy.deepcopy(learner).double(), in_type(task, torch.float64))
    assert found.dtype.itemsize >= dtype.itemsize
    shown = expected > -1e30  # not that of absent classes
    torch.testing.assert_close(
        found.double()[shown], expected.double()[shown], rtol=0, atol=rtol * float(expected[shown].detach().abs().max())
    )
    if not name.startswith("relation"):  # its ReLUs have kinks
        assert float((gradient - wide_gradient).norm()) <= 5 * rtol * float(wide_gradient.norm()) + 1e-12


@pytest.mark.parametrize("name", ["protonet", "r2d2", "metaoptnet, svm", "logistic regression", "plda", "matching net"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_narrow_types_run_under_vmap(name, dtype):
    row = ZOO[name]
    torch.manual_seed(0)
    learner = row.make(3).eval().to(dtype)
    tasks = [in_type(make_task(row, seed=seed), dtype) for seed in range(2)]
    losses = torch.func.vmap(learner, randomness="different")(kshot.types.stack(tasks))
    expected = torch.stack([learner(task) for task in tasks])
    torch.testing.assert_close(losses, expected, rtol=2e-2 if dtype == torch.bfloat16 else 1e-7, atol=1e-7)


def test_an_embedding_in_bfloat16_does_not_round_the_distances():
    """Squared distances in the thousands, which bfloat16 would round to multiples of 16."""
    feat, target, _ = features(12, 200, 3)
    feat, query = (4 * feat).bfloat16(), (4 * features(30, 200, 3)[0]).bfloat16()
    prediction = kshot.protonet(nn.Flatten()).predict(
        kshot.protonet(nn.Flatten()).adapt(support_of(feat, target)), query
    )
    means = (target / target.sum(0)).T @ feat.double()
    expected = -(query.double()[:, None] - means).square().sum(2)
    assert prediction.dtype == torch.float32
    torch.testing.assert_close(prediction.double(), expected, rtol=1e-5, atol=0)


def test_autocast_does_not_round_the_operands_of_a_head():
    feat, target, _ = features(12, 20, 3)
    support = support_of((feat + 50).float(), target.float())
    for make in (kshot.protonet, kshot.learners.r2d2, kshot.learners.logistic_regression):
        learner = make(nn.Flatten())
        expected = learner.predict(learner.adapt(support), support.inputs)
        with torch.autocast("cpu", torch.bfloat16):
            found = learner.predict(learner.adapt(support), support.inputs)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_convex_problems_are_solved_in_float32_where_there_is_no_float64(monkeypatch):
    assert widest_float("mps") == torch.float32
    assert widest_float(torch.device("cuda", 0)) == widest_float("cpu") == torch.float64
    feat, target, _ = features(15, 16, 5)
    support = support_of(feat.float(), target.float())
    for make in (kshot.learners.logistic_regression, kshot.learners.metaoptnet):
        learner = make(nn.Flatten())
        expected = learner.predict(learner.adapt(support), support.inputs)
        with monkeypatch.context() as patch:
            for module in (convex, kshot.learners.heads.closed_form):
                patch.setattr(module, "widest_float", lambda device: widest_float("mps"))
            found = learner.predict(learner.adapt(support), support.inputs)
        assert not torch.equal(found, expected)
        torch.testing.assert_close(found, expected, rtol=0, atol=5e-3)


def test_rows_of_zeros_and_equal_points_have_finite_derivatives_of_two_orders():
    rows = torch.zeros(3, 4, dtype=torch.float64)
    rows[1:] = 1.0
    rows.requires_grad_()
    for function in (unit, lambda x: cosine(x, x), lambda x: euclidean(x, x)):
        (first,) = torch.autograd.grad(function(rows).square().sum() + function(rows).sum(), rows, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), rows)
        assert torch.isfinite(first).all()
        assert torch.isfinite(second).all()
    torch.testing.assert_close(cosine(rows, rows)[0], torch.zeros(3, dtype=torch.float64))


SUPPORTS = {
    "equal rows": (torch.ones(4, 6), [0, 0, 1, 1], [1, 1, 1, 1]),
    "rows of zeros": (torch.zeros(4, 6), [0, 0, 1, 1], [1, 1, 1, 1]),
    "one class": (torch.randn(4, 6), [0, 0, 0, 0], [1, 1, 1, 1]),
    "one example": (torch.randn(1, 6), [1], [1]),
    "all weights zero but one": (torch.randn(4, 6), [0, 0, 1, 1], [0, 0, 1, 0]),
}
PLAIN = {
    "protonet": kshot.protonet,
    "protonet, cosine": lambda e: kshot.protonet(e, distance="cosine"),
    "r2d2": kshot.learners.r2d2,
    "svm": kshot.learners.metaoptnet,
    "logistic": kshot.learners.logistic_regression,
    "matching": kshot.learners.matching_net,
    "simpleshot": lambda e: kshot.learners.simpleshot(e, features=6),
    "plda": lambda e: kshot.learners.plda(e, features=6),
    "laplacian": lambda e: kshot.learners.laplacian_shot(e, features=6),
    "tim": lambda e: kshot.learners.tim(e, steps=10),
    "bd-cspn": kshot.learners.bd_cspn,
    "pt-map": lambda e: kshot.learners.pt_map(e, steps=5),
    "feat": lambda e: kshot.learners.feat(e, features=6),
    "frn": kshot.learners.frn,
    "deep-bdc": kshot.learners.deep_bdc,
    "caml": lambda e: kshot.learners.caml(e, features=6, width=8),
    "relation": lambda e: kshot.learners.relation_net(e, features=6),
    "baseline++": lambda e: kshot.learners.baseline_pp(e, inner_lr=0.1, steps=3),
    "mahalanobis": lambda e: HeadLearner(e, Mahalanobis(), objectives.classification),
}


@pytest.mark.parametrize("case", SUPPORTS)
@pytest.mark.parametrize("name", PLAIN)
def test_degenerate_support_sets_have_finite_predictions_and_derivatives(case, name):
    rows, labels, weight = SUPPORTS[case]
    embedding = nn.Linear(6, 6, bias=False)
    nn.init.eye_(embedding.weight)
    learner = PLAIN[name](embedding)
    support = Batch.of(rows, torch.tensor(labels), ways=2, weight=torch.tensor(weight).float())
    prediction = learner.predict(learner.adapt(support), rows)
    assert torch.isfinite(prediction).all()
    learner(Task(support, support)).backward()
    assert all(torch.isfinite(p.grad).all() for p in learner.parameters() if p.grad is not None)


def test_rows_of_weight_zero_have_no_share_however_large_the_scale():
    feat = torch.tensor([[1.0, 0.0], [-1.0, 0.1], [-1.0, -0.1]])
    learner = kshot.learners.matching_net(nn.Flatten(), scale=100.0)
    support = Batch.of(feat, torch.tensor([0, 1, 1]), ways=2, weight=torch.tensor([0.0, 1.0, 1.0]))
    assert learner.predict(learner.adapt(support), feat[:1]).softmax(1)[0, 1].item() == 1
