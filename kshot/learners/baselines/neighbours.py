"""Rows of numbers on one scale, and which of them are near: what classifiers and regressors of a support set share.

Shape legend: N support rows, M query rows, F features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kshot.learner import Learner
from kshot.types import Batch, Tree

FARTHEST = 10.0
"""Bound of standardised inputs."""


class KeptSupport(Learner):
    """A learner that fits anew to each query set: its state is the support set without rows of weight 0.

    The state is `{"inputs": (N, F), "targets": (N, D), "weight": (N,)}`.
    """

    def _adapt(self, support: Batch) -> Tree:
        real = support.weight > 0
        leaves = {"inputs": support.inputs, "targets": support.targets, "weight": support.weight}
        return {name: leaf.detach()[real].clone() for name, leaf in leaves.items()}


def standardised(support: Batch, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Support and query inputs as float64, standardised by the support and clipped; constant features become 0."""
    weight_N1, row_NF = support.weight.cpu().double()[:, None], support.inputs.cpu().double()
    mean_F = (weight_N1 * row_NF).sum(0) / weight_N1.sum()
    std_F = ((weight_N1 * (row_NF - mean_F).square()).sum(0) / weight_N1.sum()).sqrt()
    std_F = torch.where(std_F > 1e-6 * mean_F.abs().clamp_min(1e-6), std_F, torch.inf)
    scaled_NF, scaled_MF = (((rows - mean_F) / std_F).clamp(-FARTHEST, FARTHEST) for rows in (row_NF, inputs.cpu()))
    return scaled_NF, scaled_MF


def is_near(row_NF: Tensor, row_MF: Tensor, k: int) -> Tensor:
    """1 for the k nearest rows of each query, else 0, (M, N); rows at the distance of the k-th count too.

    Ties thus do not depend on the order of rows.
    """
    distance_MN = torch.cdist(row_MF, row_NF, compute_mode="donot_use_mm_for_euclid_dist")
    farthest_M1 = distance_MN.kthvalue(min(k, len(row_NF)), 1).values[:, None]
    return (distance_MN <= farthest_M1 * (1 + 1e-9)).double()
