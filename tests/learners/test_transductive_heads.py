"""TIM, BD-CSPN and PT-MAP against their papers' formulas, written out in numpy."""

import numpy as np
import pytest
import torch
from features import features, support_of
from scipy.special import softmax
from torch import nn

import kshot
from kshot import Batch
from kshot.learner import predict_query
from kshot.learners.heads.pt_map import power_transform

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def problem(ways=3, queries=11, width=6, *, positive=False):
    """Features and targets of a support set with weights, and those of queries."""
    feat, target, _ = features(2 * ways + queries, width, ways)
    feat = feat.abs() if positive else feat
    rows, weight = 2 * ways, torch.rand(2 * ways, generator=torch.Generator().manual_seed(1)).double() + 0.5
    return support_of(feat[:rows], target[:rows], weight), feat[rows:]


def class_means(rows, target, weight):
    return np.stack([np.average(rows, 0, weight * target[:, c]) for c in range(target.shape[1])])


def squared(rows, centres):
    return ((rows[:, None] - centres) ** 2).sum(-1)


@pytest.mark.parametrize("marginal", [1.0, 0.25, 0.0])
def test_tim_alternates_between_labels_and_weights(marginal):
    support, query = problem()
    weights = {"support": 0.3, "conditional": 0.2, "marginal": marginal}
    learner = kshot.learners.tim(nn.Flatten(), temperature=12, steps=4, **weights)
    found = learner.double().predict(learner.adapt(support), query)
    target, weight = support.targets.numpy(), support.weight.numpy()
    z, q = unit(support.inputs.numpy()), unit(query.numpy())
    means = class_means(z, target, weight)
    for _ in range(4):
        of_z, of_q = (softmax(-6 * squared(rows, means), 1) for rows in (z, q))
        labels = of_q**1.2 / (of_q**1.2).sum(0) ** (marginal / (1 + marginal))
        labels /= labels.sum(1, keepdims=True)
        share, ratio, old = 0.3 / 1.2, weight.sum() / len(q), means.copy()
        for c in range(3):
            total, count = np.zeros(6), 0.0
            for w, y, p, row in zip(share * weight, target[:, c], of_z[:, c], z):
                total, count = total + w * (y * row + p * (old[c] - row)), count + w * y
            for y, p, row in zip(labels[:, c], of_q[:, c], q):
                total, count = total + ratio * (y * row + p * (old[c] - row)), count + ratio * y
            means[c] = total / count
    np.testing.assert_allclose(found.detach(), -6 * squared(q, means), **EXACT)


def test_tim_raises_the_mutual_information_that_it_is_named_after():
    support, query = problem(queries=30)

    def objective(steps):
        learner = kshot.learners.tim(nn.Flatten(), steps=steps).double()
        state = learner.adapt(support)
        prob = learner.predict(state, query).softmax(1)
        marginal = prob.mean(0)
        entropies = -(marginal * marginal.log()).sum(), -(prob * prob.log()).sum(1).mean()
        return float(entropies[0] - 0.1 * entropies[1])

    assert objective(20) > objective(1) > objective(0)


def test_bd_cspn_rectifies_means_by_confident_queries():
    support, query = problem()
    learner = kshot.learners.bd_cspn(nn.Flatten(), confident=2, sharpness=4, scale=3).double()
    found = learner.predict(learner.adapt(support), query)
    target, weight = support.targets.numpy(), support.weight.numpy()
    z, q = unit(support.inputs.numpy()), unit(query.numpy())
    means = class_means(z, target, weight)
    q = q + np.average(z, 0, weight) - q.mean(0)
    near, near_q = z @ unit(means).T, unit(q) @ unit(means).T
    sums = np.stack([(weight * target[:, c] * np.exp(4 * near[:, c])) @ z for c in range(3)])
    for c in range(3):
        own = np.flatnonzero(near_q.argmax(1) == c)
        assert len(own) > 2
        for m in own[np.argsort(-softmax(4 * near_q[own], 1)[:, c])[:2]]:
            sums[c] += np.exp(4 * near_q[m, c]) * unit(q)[m]
    scale = learner.head.log_scale.detach().exp().numpy()  # 3 but for the rounding of its logarithm
    np.testing.assert_allclose(found.detach(), scale * unit(q) @ unit(sums).T, **EXACT)


def test_bd_cspn_with_more_confident_queries_than_there_are_takes_all():
    support, query = problem()
    few, all_of_them = (kshot.learners.bd_cspn(nn.Flatten(), confident=count).double() for count in (len(query), 1000))
    torch.testing.assert_close(
        few.predict(few.adapt(support), query), all_of_them.predict(all_of_them.adapt(support), query)
    )


@pytest.mark.parametrize("prior", ["uniform", "support", [1.0, 2.0, 5.0]])
def test_pt_map_moves_centres_to_what_is_transported_to_them(prior, monkeypatch):
    support, query = problem(positive=True)
    learner = kshot.learners.pt_map(nn.Flatten(), sharpness=5, rate=0.3, steps=10, prior=prior).double()
    of_few_scalings = learner.predict(learner.adapt(support), query).softmax(1)
    monkeypatch.setattr("kshot.learners.heads.pt_map.SINKHORN", 400)
    found = learner.predict(learner.adapt(support), query).softmax(1)
    torch.testing.assert_close(of_few_scalings, found, rtol=0, atol=1e-3)
    target, weight = support.targets.numpy(), support.weight.numpy()
    z, q = (unit((rows.numpy() + 1e-6) ** 0.5) for rows in (support.inputs, query))
    z, q = unit(z - np.average(z, 0, weight)), unit(q - q.mean(0))
    centres, count = class_means(z, target, weight), weight @ target
    shares = {"uniform": np.ones(3), "support": count}.get(prior if isinstance(prior, str) else "", prior)
    shares = np.asarray(shares) / np.sum(shares)

    def plan():
        mass = np.exp(-5 * squared(q, centres))
        for _ in range(500):
            mass /= mass.sum(1, keepdims=True)
            mass *= len(q) * shares / mass.sum(0)
        return mass

    for _ in range(10):
        received = count + plan().sum(0)
        target_centres = ((target * weight[:, None]).T @ z + plan().T @ q) / received[:, None]
        centres = centres + 0.3 * (target_centres - centres)
    np.testing.assert_allclose(found.detach(), plan(), rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(found.detach().sum(0), len(q) * shares, rtol=1e-9)


def test_pt_map_without_a_prior_assigns_each_query_for_itself():
    support, query = problem(positive=True)
    learner = kshot.learners.pt_map(nn.Flatten(), steps=0, prior=None).double()
    z, q = (unit((rows.numpy() + 1e-6) ** 0.5) for rows in (support.inputs, query))
    z, q = unit(z - np.average(z, 0, support.weight)), unit(q - q.mean(0))
    means = class_means(z, support.targets.numpy(), support.weight.numpy())
    found = learner.predict(learner.adapt(support), query)
    np.testing.assert_allclose(found.detach(), -10 * squared(q, means), **EXACT)


def test_the_power_transform_is_smooth_for_features_of_either_sign():
    feat = torch.tensor([[-4.0, -1e-7, 0.0, 1e-7, 9.0]], dtype=torch.float64, requires_grad=True)
    found = power_transform(feat, 0.5)
    raised = np.array([2e-3 - np.sqrt(4 + 1e-6), 2e-3 - np.sqrt(1.1e-6), 1e-3, np.sqrt(1.1e-6), np.sqrt(9 + 1e-6)])
    np.testing.assert_allclose(found.detach()[0], unit(raised), rtol=1e-9)
    (slope,) = torch.autograd.grad(found.sum(), feat)
    assert torch.isfinite(slope).all()


def test_pt_map_says_that_its_prior_has_the_wrong_number_of_shares():
    support, query = problem()
    learner = kshot.learners.pt_map(nn.Flatten(), prior=[0.5, 0.5]).double()
    with pytest.raises(ValueError, match="prior has 2 shares, and the task has 3 classes"):
        learner.predict(learner.adapt(support), query)


LEARNERS = {
    "tim": lambda: kshot.learners.tim(nn.Flatten()),
    "bd_cspn": lambda: kshot.learners.bd_cspn(nn.Flatten()),
    "pt_map": lambda: kshot.learners.pt_map(nn.Flatten()),
}


@pytest.mark.parametrize("kind", LEARNERS)
def test_queries_help_where_classes_are_apart_and_examples_few(kind):
    """One example a class, far from its mean, and many queries around the means."""
    random = torch.Generator().manual_seed(0)
    centres = 2 * torch.eye(3, 6) + 1
    labels = torch.arange(60) % 3
    query = centres[labels] + 0.5 * torch.randn(60, 6, generator=random)
    support = Batch.of(centres + 0.9 * torch.randn(3, 6, generator=random), torch.arange(3), ways=3)
    accuracies = []
    for learner in (kshot.protonet(nn.Flatten()), LEARNERS[kind]()):
        predicted = learner.predict(learner.adapt(support), query).argmax(1)
        accuracies.append(float((predicted == labels).float().mean()))
    assert accuracies[1] > accuracies[0] + 0.02


@pytest.mark.parametrize("kind", LEARNERS)
def test_narrow_features_and_many_padding_rows(kind):
    support, query = problem()
    learner, narrow = LEARNERS[kind](), Batch(*(part.float() for part in support))
    expected = learner.predict(learner.adapt(narrow), query.float())
    garbage = torch.cat([query.float(), torch.full((50, 6), 1e3)])
    weight = torch.cat([torch.ones(len(query)), torch.zeros(50)])
    padded = Batch(garbage, torch.zeros(len(weight), 3), weight)
    found = predict_query(learner, learner.adapt(narrow), padded)[: len(query)]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kshot.learners.tim(nn.Flatten(), temperature=0), "temperature must be above 0"),
        (lambda: kshot.learners.tim(nn.Flatten(), support=0), "support must be above 0"),
        (lambda: kshot.learners.bd_cspn(nn.Flatten(), confident=-1), "confident must be at least 0"),
        (lambda: kshot.learners.pt_map(nn.Flatten(), power=0), "power must be above 0"),
        (lambda: kshot.learners.pt_map(nn.Flatten(), prior="equal"), "prior must be"),
    ],
)
def test_bad_arguments_say_what_to_do(make, message):
    with pytest.raises(ValueError, match=message):
        make()
