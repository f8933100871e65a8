"""Features of overlapping classes, for the tests of heads."""

import torch
import torch.nn.functional as F

from kshot import Batch


def features(rows, width, ways, *, seed=0):
    """Features (n, D) of overlapping classes with their one-hot targets, in float64."""
    random = torch.Generator().manual_seed(seed)
    centres = torch.randn(ways, width, generator=random, dtype=torch.float64)
    labels = torch.arange(rows) % ways
    noise = torch.randn(rows, width, generator=random, dtype=torch.float64)
    return centres[labels] + noise, F.one_hot(labels, ways).double(), labels


def support_of(feat, target, weight=None):
    return Batch(feat, target, feat.new_ones(len(feat)) if weight is None else weight)
