"""Class means, distances to them, and learned scales.

Shape legend: N support rows, M query rows, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kshot.inner.precision import at_least_float32, widest_float
from kshot.types import Tree

Distance = Callable[[Tensor, Tensor], Tensor]
"""(feat_MD, proto_CD) -> logits (M, C), larger for nearer features. A module's Parameters are meta-parameters."""


def class_means(feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tensor:
    r"""The mean of each class's features (N, ...), as (C, ...) in their type; 0 for a class without examples.

    $$ p_c = \frac{\sum_i w_i y_{ic} f_i}{\sum_i w_i y_{ic}} $$
    """
    dtype, feat_ND = feat_ND.dtype, at_least_float32(feat_ND)
    share_NC = (target_NC * weight_N[:, None]).to(feat_ND.dtype)
    mean_NC = share_NC / share_NC.sum(0).clamp_min(1e-12)
    return torch.tensordot(mean_NC.mT, feat_ND, 1).to(dtype)


def reference_point(feat_ND: Tensor, weight_N: Tensor) -> Tensor:
    """The mean (D,) of features under weights, without a derivative: a point to which features are taken relative.

    What does not depend on the choice of the point loses no digits then where features are far from the origin, and has
    the derivative that it has for a constant point.
    """
    wide = widest_float(feat_ND.device)
    wide_ND, wide_N = feat_ND.detach().to(wide), weight_N.detach().to(wide)
    return (wide_N @ wide_ND / wide_N.sum().clamp_min(1e-12)).to(feat_ND.dtype)


def relative(feat_ND: Tensor, state: Tree) -> Tensor:
    """Features relative to the point that a state keeps as "reference", or as they are if it keeps none."""
    return feat_ND - state["reference"] if "reference" in state else feat_ND


def reference_of(state: Tree) -> Tree:
    """The part of a state that `relative` needs."""
    return {name: state[name] for name in ("reference",) if name in state}


def euclidean(feat_MD: Tensor, proto_CD: Tensor) -> Tensor:
    r"""Minus the squared Euclidean distance, $-\lVert f_m - p_c \rVert^2$.

    It is computed as $2 f_m^\top p_c - \lVert p_c \rVert^2 - \lVert f_m \rVert^2$ relative to the mean of the $p_c$, so
    that its rounding error is relative to the distances and not to the distance from the origin.
    """
    centre_D = proto_CD.detach().mean(0)
    feat_MD, proto_CD = feat_MD - centre_D, proto_CD - centre_D
    return 2 * feat_MD @ proto_CD.mT - proto_CD.square().sum(1) - feat_MD.square().sum(1, keepdim=True)


def unit(feat_MD: Tensor) -> Tensor:
    r"""Rows at unit length, $f / \lVert f \rVert$; a row of zeros stays zero, and all its derivatives are finite."""
    square_M1 = feat_MD.square().sum(1, keepdim=True)
    return feat_MD * square_M1.where(square_M1 > 0, 1.0).rsqrt()


def cosine(feat_MD: Tensor, proto_CD: Tensor) -> Tensor:
    r"""The cosine similarity, $\cos(f_m, p_c)$; 0 for a row of zeros."""
    return unit(feat_MD) @ unit(proto_CD).mT


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
        return exp_as(feat_MD, self.log_scale) * self.distance(feat_MD, proto_CD)


def is_translation_invariant(distance: Distance) -> bool:
    """Whether a distance is known to depend on differences only, as `euclidean` does."""
    return distance is euclidean or (isinstance(distance, Scaled) and is_translation_invariant(distance.distance))


def log_parameter(name: str, value: float) -> nn.Parameter:
    """A Parameter () that holds the logarithm of a learned positive number; `name` is for the error message."""
    if not value > 0:
        raise ValueError(f"{name} must be above 0, got {value}")
    return nn.Parameter(torch.tensor(float(value)).log())


def exp_as(values: Tensor, log_value: Tensor) -> Tensor:
    """The positive number (), for its logarithm, in the type of the values; a narrow type could not hold 1e-9."""
    return log_value.to(values.dtype).exp()


def log_weight(weight_N: Tensor) -> Tensor:
    r"""$\log w$ (N,); where $w = 0$ a finite number so low that the row has no share in a softmax."""
    finfo = torch.finfo(weight_N.dtype)
    return torch.where(weight_N > 0, weight_N.clamp_min(finfo.tiny).log(), finfo.min / 4)
