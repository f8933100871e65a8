"""Heads on features against scikit-learn, closed forms and their papers' formulas."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from features import features, support_of
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import NearestCentroid
from sklearn.svm import LinearSVC
from torch import nn

import kshot
from kshot import Batch, objectives
from kshot.data.dataset import ArrayDataset
from kshot.inner.convex import Intercept, crammer_singer, logistic
from kshot.learners.heads.closed_form import solve_ridge
from kshot.tasks import ClassTasks
from kshot.training.closed_form import fit_feature_statistics


def test_a_distance_of_ones_own_may_be_a_module_that_learns():
    distance = nn.Bilinear(4, 4, 1).double()

    def pairwise(feat, proto):
        return distance(feat[:, None].expand(-1, len(proto), -1), proto.expand(len(feat), -1, -1).contiguous())[..., 0]

    feat, target, _ = features(6, 4, 3)
    learner = kshot.protonet(nn.Flatten(), distance=pairwise)
    logits = learner.predict(learner.adapt(support_of(feat, target)), feat)
    proto = torch.stack([feat[target[:, c] > 0].mean(0) for c in range(3)])
    torch.testing.assert_close(logits, torch.stack([distance(feat, p.expand_as(feat))[:, 0] for p in proto], 1))

    class Learned(nn.Module):
        def __init__(self):
            super().__init__()
            self.bilinear = distance

        forward = staticmethod(pairwise)

    assert len(list(kshot.protonet(nn.Flatten(), distance=Learned()).parameters())) == 2


@pytest.mark.parametrize(("rows", "width"), [(5, 12), (12, 5)])
def test_ridge_is_that_of_scikit_learn_with_fewer_rows_than_features_and_with_more(rows, width):
    feat, target, _ = features(rows, width, 3)
    weight = torch.rand(rows, dtype=torch.float64)
    root = weight.sqrt()[:, None]
    found = solve_ridge(root * feat, root * target, torch.tensor(0.7).double())
    peer = Ridge(0.7, fit_intercept=False, solver="cholesky").fit(feat, target, weight)
    torch.testing.assert_close(found, torch.from_numpy(peer.coef_.T))


def test_r2d2_regresses_with_an_intercept_and_a_scale():
    feat, target, _ = features(7, 4, 3)
    learner = kshot.learners.r2d2(nn.Flatten(), l2=0.3, scale=2.0, normalize=False).double()
    wide = F.pad(feat, (0, 1), value=1.0)
    expected = 2 * wide @ torch.linalg.solve(wide.T @ wide + 0.3 * torch.eye(5).double(), wide.T @ target)
    found = learner.predict(learner.adapt(support_of(feat, target)), feat)
    torch.testing.assert_close(found, expected)
    assert sorted(name for name, _ in learner.named_parameters()) == ["head.log_l2", "head.log_scale"]


def with_intercept(state):
    """Weights and the intercept at the origin (C, D + 1) of a linear head."""
    intercept = state["bias"] - state["weight"] @ state["reference"]
    return torch.cat([state["weight"], intercept[:, None]], 1).detach()


SHAPES = pytest.mark.parametrize(
    ("rows", "width", "ways", "l2"), [(15, 40, 5, 10.0), (40, 4, 3, 0.1), (10, 8, 5, 1e-2)]
)


@SHAPES
def test_logistic_regression_is_that_of_scikit_learn(rows, width, ways, l2):
    feat, target, labels = features(rows, width, ways)
    weight = 0.2 + torch.rand(rows, dtype=torch.float64)
    learner = kshot.learners.logistic_regression(nn.Flatten(), l2=l2, scale=None, normalize=False).double()
    state = learner.adapt(support_of(feat, target, weight))["head"]
    wide = F.pad(feat, (0, 1), value=1.0)
    peer = LogisticRegression(C=1 / l2, fit_intercept=False, tol=1e-10, max_iter=10_000).fit(wide, labels, weight)
    found = with_intercept(state)
    torch.testing.assert_close(found, torch.from_numpy(peer.coef_), rtol=1e-5, atol=1e-6)


@SHAPES
def test_the_support_vector_machine_is_that_of_scikit_learn(rows, width, ways, l2):
    feat, target, labels = features(rows, width, ways)
    state = kshot.learners.metaoptnet(nn.Flatten(), l2=l2).double().adapt(support_of(feat, target))["head"]
    wide = F.pad(feat, (0, 1), value=1.0)
    peer = LinearSVC(C=1 / l2, multi_class="crammer_singer", fit_intercept=False, tol=1e-10, max_iter=200_000)
    found = with_intercept(state)
    torch.testing.assert_close(found, torch.from_numpy(peer.fit(wide, labels).coef_), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("solve", [logistic, crammer_singer])
@SHAPES
def test_solutions_have_the_derivative_of_the_solution(solve, rows, width, ways, l2):
    feat, target, _ = features(rows, width, ways)
    weight = 0.2 + torch.rand(rows, dtype=torch.float64)
    weight[1] = 0.0

    def weights(feat, l2):
        intercept = Intercept(1 + feat[:, 0], 1 + feat[:, 1].square().sum())
        found = solve(feat @ feat.mT, intercept, target, weight, torch.ones(ways).bool(), l2, steps=20)
        return found[0].mT @ feat, found[1]

    assert torch.autograd.gradcheck(
        weights, (feat.requires_grad_(), torch.tensor(l2).double().requires_grad_()), fast_mode=True, rtol=1e-3
    )


@pytest.mark.parametrize("solve", [logistic, crammer_singer])
def test_steps_taken_lead_to_the_minimum_from_far(solve):
    """Features of a norm of hundreds and hardly any penalty, where undamped Newton steps go astray."""
    feat, target, _ = features(12, 30, 4)
    wide = 30 * feat
    one = torch.ones(12).double()
    problem = wide @ wide.mT, Intercept(one, torch.tensor(1e9)), target, one, torch.ones(4).bool(), torch.tensor(0.01)
    ends = [solve(*problem, steps=steps) for steps in (20, 60)]
    torch.testing.assert_close(*ends, rtol=1e-6, atol=1e-9)


def spread_of(feat, weight):
    """The root of the mean squared distance from the mean."""
    return float(np.average(((feat - np.average(feat, 0, weight)) ** 2).sum(1), weights=weight) ** 0.5)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_penalties_are_relative_to_the_spread_of_features(size):
    feat, target, _ = features(12, 30, 3)
    weight = torch.rand(12, generator=torch.Generator().manual_seed(1)).double() + 0.1
    spread = spread_of(feat.numpy(), weight.numpy())
    wide, labels = F.pad(feat / spread, (0, 1), value=1.0), target.argmax(1)
    support = support_of(size * feat, target)._replace(weight=weight)
    peer = LogisticRegression(C=1 / 0.2, fit_intercept=False, tol=1e-10, max_iter=10_000).fit(wide, labels, weight)
    learner = kshot.learners.logistic_regression(nn.Flatten(), l2=0.2, scale=3.0).double()
    found = learner.predict(learner.adapt(support), size * feat).detach()
    torch.testing.assert_close(found, torch.from_numpy(3 * peer.decision_function(wide)), atol=1e-4, rtol=1e-4)
    ridge = Ridge(0.2, fit_intercept=False, solver="cholesky").fit(wide, target, weight)
    learner = kshot.learners.r2d2(nn.Flatten(), l2=0.2, scale=3.0).double()
    found = learner.predict(learner.adapt(support), size * feat).detach()
    torch.testing.assert_close(found, torch.from_numpy(3 * ridge.predict(wide)), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("make", [kshot.learners.logistic_regression, kshot.learners.r2d2])
def test_support_rows_that_are_all_equal_have_no_spread_to_divide_by(make):
    learner, rows = make(nn.Flatten()), torch.full((3, 2), 0.1)
    support = Batch.of(rows, torch.tensor([0, 1, 1]), ways=2)
    logits = learner.predict(learner.adapt(support), torch.tensor([[0.1, 0.1], [5.0, -7.0]])).detach()
    assert logits.abs().max() < 100
    assert logits[0].argmax() == 1


def test_the_probe_is_the_sum_of_plda_and_of_a_logistic_regression_with_its_prior():
    source = tasks_of_features()
    plda = kshot.learners.plda(nn.Flatten(), features=6, scale=0.04).double()
    probe = kshot.learners.probe(nn.Flatten(), features=6, l2=0.3).double()
    for learner in (plda, probe):
        fit_feature_statistics(learner, source, batches=64)
    support, query = (batch._replace(inputs=batch.inputs.double()) for batch in source.task("test", 0))
    # The prior from scratch: the model of two examples of one class, by the covariances of the training classes.
    axes, spread, centre = plda.head.axes, plda.head.spread, plda.head.centre
    parts = torch.cat([source.pretraining_batch(step, 128).inputs for step in range(64)]).double() - centre
    metric = axes @ torch.diag(spread / (1 + 2 * spread)) @ axes.T
    sizes = parts.square().sum(1).mean(), ((parts @ metric) * parts).sum(1).mean()
    root = torch.linalg.cholesky(torch.eye(6).double() / sizes[0] + metric / sizes[1])
    rows = [(batch.inputs - centre) @ root for batch in (support, query)]
    spread_of_rows = spread_of(rows[0].numpy(), support.weight.numpy())
    wide = [F.pad(row / spread_of_rows, (0, 1), value=1.0) for row in rows]
    peer = LogisticRegression(C=1 / 0.3, fit_intercept=False, tol=1e-10, max_iter=10_000)
    peer.fit(wide[0], support.targets.argmax(1))
    expected = plda.predict(plda.adapt(support), query.inputs) + 2 * torch.from_numpy(peer.decision_function(wide[1]))
    found = probe.predict(probe.adapt(support), query.inputs)
    torch.testing.assert_close(found.detach(), expected.detach(), atol=2e-3, rtol=1e-3)


def tasks_of_features():
    """Tasks of 30 classes in 6 dimensions, of which the first distinguish them."""
    random = np.random.default_rng(1)
    rows = random.normal(size=(30, 1, 6)) * np.linspace(2, 0.2, 6) + random.normal(size=(30, 20, 6))
    names = {split: {f"{split} {c}": range(20 * c, 20 * c + 20) for c in range(*part)} for split, part in
             {"train": (0, 15), "val": (15, 22), "test": (22, 30)}.items()}  # fmt: skip
    return ClassTasks(ArrayDataset(rows.astype(np.float32).reshape(600, 6)), names, ways=4, shots=3, queries=5)


def test_metaoptnet_with_a_ridge_is_r2d2_with_a_ridge_that_is_not_learned():
    feat, target, _ = features(8, 5, 3)
    learner = kshot.learners.metaoptnet(nn.Flatten(), base="ridge", scale=2.0).double()
    peer = kshot.learners.r2d2(nn.Flatten(), l2=50.0, scale=2.0, normalize=False).double()
    torch.testing.assert_close(*(each.predict(each.adapt(support_of(feat, target)), feat) for each in (learner, peer)))
    assert [name for name, p in learner.named_parameters() if p.requires_grad] == ["head.log_scale"]


def test_shared_classes_keep_a_score_from_ridge_and_none_from_prototypes():
    feat, target, _ = features(6, 4, 2)
    support = support_of(feat, F.pad(target, (0, 1)))
    ridge = kshot.learners.r2d2(nn.Flatten(), objective=objectives.shared_classification).double()
    assert (ridge.predict(ridge.adapt(support), feat).softmax(1)[:, 2] > 0).all()
    proto = kshot.protonet(nn.Flatten(), objective=objectives.shared_classification)
    assert (proto.predict(proto.adapt(support), feat).softmax(1)[:, 2] == 0).all()


def test_simpleshot_is_the_nearest_centroid_of_centred_unit_features():
    feat, target, labels = features(12, 6, 3)
    query, _, _ = features(30, 6, 3, seed=0)
    learner = kshot.learners.simpleshot(nn.Flatten(), features=6).double()
    learner.head.centre.copy_(feat.mean(0) + 1)
    found = learner.predict(learner.adapt(support_of(feat, target)), query)
    made = [F.normalize(each - learner.head.centre, dim=1) for each in (feat, query)]
    peer = NearestCentroid().fit(made[0], labels)
    assert (found.argmax(1).numpy() == peer.predict(made[1])).all()
    centroids = torch.from_numpy(peer.centroids_)
    torch.testing.assert_close(found, -10 * torch.cdist(made[1], centroids).square())


def test_the_centre_is_the_mean_of_training_features_and_is_kept_in_a_checkpoint():
    tasks = kshot.sources.sinusoids()
    learner = kshot.learners.simpleshot(nn.Linear(1, 3), features=3).train()
    fit_feature_statistics(learner, tasks, batches=2, batch=40)
    seen = torch.cat([tasks.pretraining_batch(step, 40).inputs for step in range(2)])
    torch.testing.assert_close(learner.head.centre, learner.embedding(seen).mean(0).detach())
    assert "head.centre" in learner.state_dict()
    assert learner.training


@pytest.mark.parametrize(("rows", "ways"), [(4, 2), (24, 2)])
def test_frn_rebuilds_each_query_map_from_all_maps_of_a_class(rows, ways):
    """By either form: with fewer vectors in all than channels, and with more."""
    maps = torch.randn(rows, 17, 2, 2, dtype=torch.float64)
    labels = torch.arange(rows) % ways
    learner = kshot.learners.frn(nn.Identity()).double()
    nn.init.constant_(learner.head.log_scale, math.log(3.0))
    nn.init.constant_(learner.head.alpha, 0.4)
    nn.init.constant_(learner.head.beta, -0.2)
    query = torch.randn(3, 17, 2, 2, dtype=torch.float64)
    found = learner.predict(learner.adapt(support_of(maps, F.one_hot(labels).double())), query)
    for c in range(ways):
        own = maps[labels == c].flatten(2).transpose(1, 2).flatten(0, 1) / 17**0.5  # (k r, d)
        l2 = len(own) / 17 * math.exp(0.4) + 1e-6
        for m in range(3):
            q = query[m].flatten(1).T / 17**0.5
            peer = Ridge(float(l2), fit_intercept=False, solver="cholesky").fit(own.T, q.T)
            rebuilt = math.exp(-0.2) * torch.from_numpy(peer.coef_) @ own
            torch.testing.assert_close(found[m, c], -3 * (q - rebuilt).square().sum() / 4, rtol=1e-9, atol=1e-9)


def test_frn_starts_from_the_constants_of_its_authors():
    head = kshot.learners.frn(nn.Identity()).head
    assert [float(p.detach()) for p in (head.log_scale.exp(), head.alpha.exp(), head.beta.exp())] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("metric", ["inner", "euclidean"])
def test_deep_bdc_compares_centred_distances_of_channels(metric):
    maps = torch.randn(9, 5, 2, 3, dtype=torch.float64) + 7
    labels = torch.arange(6) % 3
    learner = kshot.learners.deep_bdc(nn.Identity(), metric=metric, temperature=1.7).double()
    found = learner.predict(learner.adapt(support_of(maps[:6], F.one_hot(labels).double())), maps[6:])
    temperature = float(learner.head.log_temperature.detach().exp())

    def triangle(image):
        rows, distances = image.reshape(5, 6).numpy(), np.empty((5, 5))
        for k in range(5):
            for m in range(5):
                distances[k, m] = math.sqrt(temperature / 12 * ((rows[k] - rows[m]) ** 2).sum() + 1e-5)
        centring = np.eye(5) - 1 / 5
        return (centring @ distances @ centring)[np.triu_indices(5)]

    triangles = np.stack([triangle(image) for image in maps])
    for c in range(3):
        mean = triangles[:6][labels.numpy() == c].mean(0)
        for m in range(3):
            query = triangles[6 + m]
            expected = query @ mean if metric == "inner" else -((query - mean) ** 2).sum()
            assert float(found[m, c].detach()) == pytest.approx(expected, rel=1e-10)


def test_metaoptnet_of_its_authors_is_twice_the_ridge():
    """Their quadratic program, min a (K + 50 I) a / 2 - 2 y a for each class, against `scale=2`."""
    feat, target, _ = features(8, 5, 3)
    wide = F.pad(feat, (0, 1), value=1.0)
    kernel = wide @ wide.T
    theirs = kernel @ torch.linalg.solve(kernel + 50 * torch.eye(8).double(), 2 * target)
    learner = kshot.learners.metaoptnet(nn.Flatten(), base="ridge", scale=2.0).double()
    torch.testing.assert_close(learner.predict(learner.adapt(support_of(feat, target)), feat), theirs)


def test_r2d2_of_its_authors_divides_by_the_number_of_rows():
    """Their features and targets are divided by the root of it, so that their penalty of 0.3 is 0.3 N here."""
    feat, target, _ = features(7, 4, 3)
    wide = F.pad(feat, (0, 1), value=1.0) / 7**0.5
    weight = torch.linalg.solve(wide.T @ wide + 0.3 * torch.eye(5).double(), wide.T @ (target / 7**0.5))
    theirs = 10 * F.pad(feat, (0, 1), value=1.0) @ weight
    learner = kshot.learners.r2d2(nn.Flatten(), l2=0.3 * 7, scale=10.0, normalize=False).double()
    torch.testing.assert_close(learner.predict(learner.adapt(support_of(feat, target)), feat), theirs)


def test_matching_averages_targets_by_attention():
    feat, target, _ = features(6, 4, 3)
    weight = torch.tensor([1.0, 1.0, 2.0, 1.0, 0.0, 1.0]).double()
    learner = kshot.learners.matching_net(nn.Flatten(), scale=2.0).double()
    query = torch.randn(2, 4, dtype=torch.float64)
    near = weight * (2 * F.cosine_similarity(query[:, None], feat, dim=2)).exp()
    found = learner.predict(learner.adapt(support_of(feat, target, weight)), query)
    torch.testing.assert_close(found.exp(), near @ target / near.sum(1, keepdim=True))


def test_full_context_does_not_read_padding_however_large_it_is():
    feat, target, _ = features(6, 4, 3)
    learner = kshot.learners.matching_net(nn.Flatten(), context_steps=2, features=4).double()
    support, garbage = support_of(feat, target), torch.full((2, 4), 1e3, dtype=torch.float64)
    zeros = torch.zeros(2, dtype=torch.float64)
    padded = support_of(torch.cat([feat, garbage]), torch.cat([target, target[:2]]), torch.cat([support.weight, zeros]))
    torch.testing.assert_close(*(learner.predict(learner.adapt(batch), feat) for batch in (padded, support)))


def test_full_context_is_an_lstm_that_reads_by_attention():
    feat, target, _ = features(6, 4, 3)
    learner = kshot.learners.matching_net(nn.Flatten(), context_steps=2, features=4).double()
    own, other = learner.head.contexts
    cell = nn.LSTMCell(4, 8).double()  # the state h is [h, r]; of its 8 outputs the paper keeps the first 4

    def by_cell(context, feat, memory):
        forget, take, give, new = context.gates.weight.chunk(4)
        bias = dict(zip("ftgn", context.gates.bias.chunk(4)))
        zeros = torch.zeros(4, 12, dtype=torch.float64)
        blocks = [torch.cat([each, zeros]) for each in (take, forget, new, give)]  # PyTorch's order: i, f, g, o
        joint, h, c = torch.cat(blocks), feat, feat.new_zeros(len(feat), 8)
        shift = torch.cat([torch.cat([bias[name], zeros[:, 0]]) for name in "tfng"])
        with torch.no_grad():
            for name, value in (("weight_ih", joint[:, :4]), ("weight_hh", joint[:, 4:]), ("bias_ih", shift)):
                getattr(cell, name).copy_(value)
            cell.bias_hh.zero_()
        for _ in range(2):
            read = (h @ memory.T).softmax(1) @ memory
            moved, c = cell(feat, (torch.cat([h, read], 1), c))
            h = moved[:, :4] + feat
        return h

    state = learner.adapt(support_of(feat, target))
    torch.testing.assert_close(state["head"]["features"], by_cell(own, feat, feat))
    query = torch.randn(2, 4, dtype=torch.float64)
    met = by_cell(other, query, state["head"]["features"])
    near = (10 * F.cosine_similarity(met[:, None], state["head"]["features"], dim=2)).softmax(1)
    torch.testing.assert_close(learner.predict(state, query).exp(), near @ target)


def test_a_relation_scores_each_pair_and_learns_by_squares():
    feat, target, _ = features(6, 4, 3)
    module = nn.Linear(8, 1).double()
    learner = kshot.learners.relation_net(nn.Flatten(), features=4, relation=module)
    support = support_of(feat, target)
    found = learner.predict(learner.adapt(support), feat)
    means = torch.stack([feat[target[:, c] > 0].mean(0) for c in range(3)])
    expected = torch.stack([module(torch.cat([mean.expand_as(feat), feat], 1))[:, 0] for mean in means], 1)
    torch.testing.assert_close(found, expected)
    squares = F.mse_loss(expected.sigmoid(), target, reduction="sum") / len(feat)
    torch.testing.assert_close(learner(kshot.Task(support, support)), squares)


def test_feat_is_attention_among_prototypes_with_a_contrast_within_classes():
    feat, target, labels = features(9, 4, 3)
    learner = kshot.learners.feat(nn.Flatten(), features=4, temperature=2.0, contrast=0.3).double().eval()
    layer = learner.head.transformer

    def transformed(x):
        read = F.scaled_dot_product_attention(*(part(x)[None] for part in (layer.query, layer.key, layer.value)))[0]
        return F.layer_norm(x + layer.out(read), (4,), layer.scale, layer.shift)

    def logits(centres):
        return -torch.cdist(feat, centres).square() / 2

    support = support_of(feat, target)
    adapted = transformed(torch.stack([feat[labels == c].mean(0) for c in range(3)]))
    torch.testing.assert_close(learner.predict(learner.adapt(support), feat), logits(adapted))
    both = torch.cat([feat, feat])
    own = torch.stack([transformed(both[torch.cat([labels, labels]) == c]).mean(0) for c in range(3)])
    expected = F.cross_entropy(logits(adapted), labels) + 0.3 * F.cross_entropy(logits(own), labels)
    torch.testing.assert_close(learner(kshot.Task(support, support)), expected)


def test_feat_drops_attention_weights_and_then_what_they_read():
    feat, target, labels = features(9, 4, 3)
    learner = kshot.learners.feat(nn.Flatten(), features=4).double()
    layer, means = learner.head.transformer, torch.stack([feat[labels == c].mean(0) for c in range(3)])
    torch.manual_seed(2)
    found = learner.adapt(support_of(feat, target))["head"]["prototypes"]
    torch.manual_seed(2)
    attention = F.dropout((layer.query(means) @ layer.key(means).T / 2).softmax(1), 0.1)
    read = F.dropout(layer.out(attention @ layer.value(means)), 0.5)
    torch.testing.assert_close(found, F.layer_norm(means + read, (4,), layer.scale, layer.shift))
    wide = kshot.learners.feat(nn.Flatten(), features=400).head.transformer
    for part in (wide.query, wide.key, wide.value, wide.out):
        assert float(part.weight.detach().std()) == pytest.approx(400**-0.5, rel=0.02)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kshot.protonet(nn.Flatten(), distance="manhattan"), "distance must be 'euclidean', 'cosine' or a"),
        (lambda: kshot.learners.r2d2(nn.Flatten(), l2=0.0), "l2 must be above 0, got 0"),
        (lambda: kshot.learners.r2d2(nn.Flatten(), scale=-1.0), "scale must be above 0"),
        (lambda: kshot.learners.metaoptnet(nn.Flatten(), base="lasso"), "base must be one of svm, ridge, got 'lasso'"),
        (lambda: kshot.learners.matching_net(nn.Flatten(), context_steps=1), "full-context embeddings need features"),
        (
            lambda: kshot.learners.relation_net(nn.Flatten(), features=4, loss="hinge"),
            "loss must be one of squared, objective",
        ),
        (lambda: kshot.learners.feat(nn.Flatten(), features=4, temperature=0.0), "temperature must be above 0"),
        (lambda: kshot.learners.feat(nn.Flatten(), features=4, contrast=-1.0), "contrast must be at least 0"),
        (lambda: kshot.learners.simpleshot(nn.Flatten(), features=0), "features must be at least 1"),
        (
            lambda: fit_feature_statistics(kshot.protonet(nn.Flatten()), kshot.sources.sinusoids()),
            "no feature statistics",
        ),
    ],
)
def test_bad_arguments_say_what_to_do(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def measured_plda(sure: float = 1e-6):
    """PLDA on classes that are drawn from the model itself, and what they were drawn with."""
    random = torch.Generator().manual_seed(3)
    within, between = (torch.randn(3, 3, generator=random, dtype=torch.float64) for _ in range(2))
    means = torch.randn(400, 3, generator=random, dtype=torch.float64) @ between.T + 2
    classes = torch.arange(400).repeat(10)
    feat = means[classes] + torch.randn(4000, 3, generator=random, dtype=torch.float64) @ within.T
    learner = kshot.learners.plda(nn.Flatten(), features=3, within=sure, between=sure).double()
    learner.head.measure(feat, F.one_hot(classes).double(), torch.ones(len(feat), dtype=torch.float64))
    return learner, within @ within.T, between @ between.T + within @ within.T / 10


def test_plda_scores_by_the_joint_density_of_a_query_and_the_support():
    """Against p(query, support) / (p(query) p(support)) of Gaussians written out, for 1 and 4 examples a class."""
    learner, within, between = measured_plda()
    mean = learner.head.centre
    torch.testing.assert_close(mean, torch.full_like(mean, 2.0), atol=0.3, rtol=0)
    found_axes = learner.head.axes
    torch.testing.assert_close(found_axes.T @ within @ found_axes, torch.eye(3).double(), atol=0.05, rtol=0)
    measured_within = torch.linalg.inv(found_axes @ found_axes.T)  # what it measured, for an exact comparison
    half = torch.linalg.inv(found_axes.T)
    measured_between = half @ torch.diag(learner.head.spread) @ half.T
    torch.testing.assert_close(measured_between, between, atol=0.4, rtol=0.2)
    random = torch.Generator().manual_seed(4)
    support = torch.randn(5, 3, generator=random, dtype=torch.float64) + 2
    query = torch.randn(6, 3, generator=random, dtype=torch.float64) * 2 + 2
    labels = torch.tensor([0, 1, 1, 1, 1])
    found = learner.predict(learner.adapt(support_of(support, F.one_hot(labels).double())), query)

    def density(rows):
        count = len(rows)
        block = torch.kron(torch.ones(count, count).double(), measured_between.contiguous())
        covariance = block + torch.kron(torch.eye(count).double(), measured_within.contiguous())
        joint = torch.distributions.MultivariateNormal(mean.repeat(count), covariance)
        return joint.log_prob(rows.flatten())

    for m, row in enumerate(query):
        for c in range(2):
            own = support[labels == c]
            ratio = density(torch.cat([row[None], own])) - density(row[None]) - density(own)
            torch.testing.assert_close(found[m, c].detach(), ratio)


def test_plda_needs_classes_with_several_examples_and_shares_in_bounds():
    learner = kshot.learners.plda(nn.Flatten(), features=2)
    with pytest.raises(ValueError, match="at least two training classes with two examples"):
        learner.head.measure(torch.randn(3, 2), torch.eye(3), torch.ones(3))
    with pytest.raises(ValueError, match=r"within must be above 0 and at most 1, got 0"):
        kshot.learners.plda(nn.Flatten(), features=2, within=0)
