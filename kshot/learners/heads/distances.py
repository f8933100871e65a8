"""Class means, distances to them, and learned scales.

Shape legend: N support rows, M query rows, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

Distance = Callable[[Tensor, Tensor], Tensor]
"""(feat_MD, proto_CD) -> logits (M, C), larger for nearer features. A module's Parameters are meta-parameters."""


def class_means(feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tensor:
    r"""The mean of each class's features (N, ...), as (C, ...); 0 for a class without examples.

    $$ p_c = \frac{\sum_i w_i y_{ic} f_i}{\sum_i w_i y_{ic}} $$
    """
    share_NC = target_NC * weight_N[:, None]
    mean_NC = share_NC / share_NC.sum(0).clamp_min(1e-12)
    return torch.tensordot(mean_NC.mT, feat_ND, 1)


def euclidean(feat_MD: Tensor, proto_CD: Tensor) -> Tensor:
    r"""Minus the squared Euclidean distance, $-\lVert f_m - p_c \rVert^2$."""
    return 2 * feat_MD @ proto_CD.mT - proto_CD.square().sum(1) - feat_MD.square().sum(1, keepdim=True)


def cosine(feat_MD: Tensor, proto_CD: Tensor) -> Tensor:
    r"""The cosine similarity, $\cos(f_m, p_c)$."""
    return normalize(feat_MD, dim=1) @ normalize(proto_CD, dim=1).mT


class Scaled(nn.Module):
    r"""A distance times a learned scale, $s \, d(f_m, p_c)$; useful for bounded distances.

    Args:
        distance: $d$.
        scale: initial value of $s > 0$.
    """

    def __init__(self, distance: Distance, scale: float = 10.0) -> None:
        super().__init__()
        self.distance = distance
        self.log_scale = log_parameter("scale", scale)

    def forward(self, feat_MD: Tensor, proto_CD: Tensor) -> Tensor:
        return self.log_scale.exp() * self.distance(feat_MD, proto_CD)


def log_parameter(name: str, value: float) -> nn.Parameter:
    """A Parameter () that holds the logarithm of a learned positive number; `name` is for the error message."""
    if not value > 0:
        raise ValueError(f"{name} must be above 0, got {value}")
    return nn.Parameter(torch.tensor(float(value)).log())
