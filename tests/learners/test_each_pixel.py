"""Heads of classes fitted to the pixels of feature maps, against NumPy and scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import nn

import kshot
from kshot import Batch, objectives
from kshot.learners.heads.each_pixel import ABSENT

objective = objectives.segmentation


def example(n=3, features=4, side=4, factor=2, classes=3, *, seed=0):
    """Maps (n, D, side, side), and masks of `factor` times their size, some pixels of which are not scored."""
    random = np.random.default_rng(seed)
    maps = random.normal(size=(n, features, side, side))
    chosen = random.integers(0, classes, (n, side * factor, side * factor))
    masks = np.moveaxis(np.eye(classes)[chosen], -1, 1) * (random.random((n, 1, side * factor, side * factor)) < 0.9)
    weight = np.array([1.0, 2.0, 0.0])[:n]
    batch = Batch.of(*map(torch.from_numpy, (maps, masks)), weight=torch.from_numpy(weight))
    parts = masks.reshape(n, classes, side, factor, side, factor).mean((3, 5))
    share = np.moveaxis(parts, 1, -1).reshape(-1, classes)
    row_weight = share.sum(1) * np.repeat(weight, side * side)
    share = share / np.maximum(share.sum(1, keepdims=True), 1e-12)
    rows = np.moveaxis(maps, 1, -1).reshape(-1, features)
    balance = row_weight.sum() / (classes * (row_weight @ share))
    return batch, rows, share, row_weight * (share @ balance)


def logits_of(learner, batch):
    found = learner.predict(learner.adapt(batch), batch.inputs).detach()
    return found.movedim(1, -1).flatten(0, 2).numpy()


def test_prototypes_are_masked_means():
    batch, rows, share, weight = example()
    means = (weight[:, None] * share).T @ rows / (weight @ share)[:, None]
    expected = -((rows[:, None] - means) ** 2).sum(-1)
    np.testing.assert_allclose(
        logits_of(kshot.protonet(nn.Identity(), objective=objective), batch), expected, rtol=1e-9
    )


def test_with_whole_masks_the_prototypes_are_masked_average_pooling():
    """As PANet pools: the features of the pixels of each class, whatever their number."""
    batch, rows, share, _ = example(factor=1, n=2)
    hard = share.argmax(1)
    scored = (share.sum(1) > 0) * np.repeat(batch.weight.numpy(), 16)
    means = np.stack([np.average(rows, axis=0, weights=scored * (hard == k)) for k in range(3)])
    expected = -((rows[:, None] - means) ** 2).sum(-1)
    np.testing.assert_allclose(
        logits_of(kshot.protonet(nn.Identity(), objective=objective), batch), expected, rtol=1e-9
    )


def test_ridge_is_that_of_scikit_learn_with_balanced_pixels():
    batch, rows, share, weight = example()
    learner = kshot.learners.r2d2(nn.Identity(), l2=0.7, scale=None, normalize=False, objective=objective).double()
    wide = np.c_[rows, np.ones(len(rows))]
    fitted = Ridge(0.7, fit_intercept=False, tol=1e-12).fit(wide, share, sample_weight=weight)
    np.testing.assert_allclose(logits_of(learner, batch), fitted.predict(wide), rtol=1e-6, atol=1e-8)


def test_a_class_without_support_pixels_gets_no_probability():
    batch, *_ = example()
    only_two = batch.targets.clone()
    only_two[:, 0] += only_two[:, 2]
    only_two[:, 2] = 0
    found = logits_of(kshot.protonet(nn.Identity(), objective=objective), batch._replace(targets=only_two))
    np.testing.assert_allclose(found[:, 2], found[:, :2].max(1) - ABSENT)


def test_an_extended_state_is_that_of_all_images():
    batch, *_ = example(n=2)
    learner = kshot.learners.r2d2(nn.Identity(), objective=objective).double()
    first, rest = batch.rows(slice(1)), batch.rows(slice(1, None))
    extended = learner.extend(learner.adapt(first, extendable=True), rest)
    for found, expected in zip(extended["head"]["head"].values(), learner.adapt(batch)["head"]["head"].values()):
        torch.testing.assert_close(found, expected)


def test_features_without_places_are_refused():
    batch, *_ = example()
    with pytest.raises(ValueError, match=r"feature maps \(n, D, h, w\), and these features are \(3, 64\)"):
        kshot.protonet(nn.Flatten(), objective=objective).adapt(batch)
