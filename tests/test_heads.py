"""Heads on features against scikit-learn, closed forms and their papers' formulas."""

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge
from sklearn.neighbors import NearestCentroid
from torch import nn

import kshot
from kshot import Batch, objectives
from kshot.learners.closed_form import ridge_fit
from kshot.training.pretrain import fit_centre


def features(rows, width, ways, *, seed=0):
    """Features (n, D) of overlapping classes with their one-hot targets, in float64."""
    random = torch.Generator().manual_seed(seed)
    centres = torch.randn(ways, width, generator=random, dtype=torch.float64)
    labels = torch.arange(rows) % ways
    noise = torch.randn(rows, width, generator=random, dtype=torch.float64)
    return centres[labels] + noise, F.one_hot(labels, ways).double(), labels


def support_of(feat, target, weight=None):
    return Batch(feat, target, feat.new_ones(len(feat)) if weight is None else weight)


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
    found = ridge_fit(feat, target, weight, torch.tensor(0.7).double())
    peer = Ridge(0.7, fit_intercept=False, solver="cholesky").fit(feat, target, weight)
    torch.testing.assert_close(found, torch.from_numpy(peer.coef_.T))


def test_r2d2_regresses_with_an_intercept_and_a_scale():
    feat, target, _ = features(7, 4, 3)
    learner = kshot.r2d2(nn.Flatten(), l2=0.3, scale=2.0).double()
    wide = F.pad(feat, (0, 1), value=1.0)
    expected = 2 * wide @ torch.linalg.solve(wide.T @ wide + 0.3 * torch.eye(5).double(), wide.T @ target)
    found = learner.predict(learner.adapt(support_of(feat, target)), feat)
    torch.testing.assert_close(found, expected)
    assert sorted(name for name, _ in learner.named_parameters()) == ["head.log_l2", "head.log_scale"]


def test_shared_classes_keep_a_score_from_ridge_and_none_from_prototypes():
    feat, target, _ = features(6, 4, 2)
    support = support_of(feat, F.pad(target, (0, 1)))
    ridge = kshot.r2d2(nn.Flatten(), objective=objectives.shared_classification).double()
    assert (ridge.predict(ridge.adapt(support), feat).softmax(1)[:, 2] > 0).all()
    proto = kshot.protonet(nn.Flatten(), objective=objectives.shared_classification)
    assert (proto.predict(proto.adapt(support), feat).softmax(1)[:, 2] == 0).all()


def test_simpleshot_is_the_nearest_centroid_of_centred_unit_features():
    feat, target, labels = features(12, 6, 3)
    query, _, _ = features(30, 6, 3, seed=0)
    learner = kshot.simpleshot(nn.Flatten(), features=6).double()
    learner.head.centre.copy_(feat.mean(0) + 1)
    found = learner.predict(learner.adapt(support_of(feat, target)), query)
    made = [F.normalize(each - learner.head.centre, dim=1) for each in (feat, query)]
    peer = NearestCentroid().fit(made[0], labels)
    assert (found.argmax(1).numpy() == peer.predict(made[1])).all()
    centroids = torch.from_numpy(peer.centroids_)
    torch.testing.assert_close(found, -10 * torch.cdist(made[1], centroids).square())


def test_the_centre_is_the_mean_of_training_features_and_is_kept_in_a_checkpoint():
    tasks = kshot.tasks.sinusoids()
    learner = kshot.simpleshot(nn.Linear(1, 3), features=3).train()
    fit_centre(learner, tasks, batches=2, batch=40)
    seen = torch.cat([tasks.pretraining_batch(step, 40).inputs for step in range(2)])
    torch.testing.assert_close(learner.head.centre, learner.embedding(seen).mean(0).detach())
    assert "head.centre" in learner.state_dict()
    assert learner.training


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kshot.protonet(nn.Flatten(), distance="manhattan"), "distance must be 'euclidean', 'cosine' or a"),
        (lambda: kshot.r2d2(nn.Flatten(), l2=0.0), "l2 must be above 0, got 0"),
        (lambda: kshot.r2d2(nn.Flatten(), scale=-1.0), "scale must be above 0"),
        (lambda: kshot.simpleshot(nn.Flatten(), features=0), "features must be the width"),
        (lambda: fit_centre(kshot.protonet(nn.Flatten()), kshot.tasks.sinusoids()), "have no centre"),
    ],
)
def test_bad_arguments_say_what_to_do(make, message):
    with pytest.raises(ValueError, match=message):
        make()
