"""FRN: classify by the class whose support feature maps reconstruct the query's best.

Shape legend: N support rows, M query rows, R positions of a map, D channels, C classes, K vectors.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kshot import objectives
from kshot.annotations import PositiveFloat
from kshot.inner.functional import BatchNorm
from kshot.inner.precision import widest_float
from kshot.learners.heads.closed_form import solve_ridge
from kshot.learners.heads.distances import exp_as, log_parameter
from kshot.learners.heads.head import Head
from kshot.learners.heads.head_learner import HeadLearner
from kshot.objectives import Objective
from kshot.supplied import MapEmbedding
from kshot.types import Tree


class Reconstruction(Head):
    r"""The ridge regression of a query's feature vectors on all those of a class, and its squared error; see `frn`.

    The state is the matrix $(S_c^\top S_c + \lambda_c I)^{-1} S_c^\top S_c$ (C, D, D) by which a class reconstructs
    a vector; all vectors are features divided by $\sqrt D$.

    Args:
        scale: initial value of $\gamma$.
    """

    takes_maps = True

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.log_scale = log_parameter("scale", scale)
        self.alpha, self.beta = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    def fit(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        vector_NRD = _vectors(feat_ND)
        positions, channels = vector_NRD.shape[1:]
        share_NC = target_NC * weight_N[:, None]
        count_C = share_NC.sum(0)
        l2_C = count_C.where(count_C > 0, 1.0) * (positions / channels) * exp_as(feat_ND, self.alpha) + 1e-6
        vector_CKD = (share_NC.sqrt().mT[:, :, None, None] * vector_NRD).flatten(1, 2)  # 0 for rows of other classes
        # in float64, which costs little next to the embedding: maps have a mean far from 0, against a small penalty
        wide_CKD = vector_CKD.to(widest_float(feat_ND.device))
        return {"rebuild": solve_ridge(wide_CKD, wide_CKD, l2_C.to(wide_CKD.dtype)).to(feat_ND.dtype)}

    def predict(self, state: Tree, feat_MD: Tensor) -> Tensor:
        vector_MRD = _vectors(feat_MD)
        rebuilt_MCRD = exp_as(feat_MD, self.beta) * vector_MRD[:, None] @ state["rebuild"]
        error_MC = (vector_MRD[:, None] - rebuilt_MCRD).square().sum(3).mean(2)
        return -exp_as(feat_MD, self.log_scale) * error_MC


def _vectors(feat_ND: Tensor) -> Tensor:
    """Feature maps (N, D, ...) as vectors of their positions (N, R, D), divided by the root of D."""
    return feat_ND.flatten(2).mT / feat_ND.shape[1] ** 0.5 if feat_ND.ndim > 2 else _vectors(feat_ND[..., None])


def frn(
    embedding: MapEmbedding,
    *,
    scale: PositiveFloat = 1.0,
    objective: Objective = objectives.classification,
    batchnorm: BatchNorm = "support",
) -> HeadLearner:
    r"""Feature map reconstruction network: reconstruct a query's map from each class's support by ridge regression.

    $$ \bar Q_c = \rho \, Q (S_c^\top S_c + \lambda_c I)^{-1} S_c^\top S_c, \qquad
       \hat y_c = -\frac{\gamma}{r} \lVert Q - \bar Q_c \rVert^2, \qquad
       \lambda_c = \tfrac{k_c r}{d} e^\alpha + 10^{-6}, \quad \rho = e^\beta $$

    Q (r, d) are the r vectors of the query's map, divided by $\sqrt d$; $S_c$ ($k_c r$, d) are those of the $k_c$
    support examples of the class, likewise. $\alpha$ and $\beta$, 0 at first, and $\gamma$ are learned. Positions of
    one map are not matched to those of another.

    Args:
        embedding: any module: inputs (n, ...) to feature maps (n, d, H, W); one without positions has r = 1.
        scale: initial value of $\gamma$.
        objective, batchnorm: as in `protonet`.

    Example:
        >>> learner = frn(nn.Identity())
        >>> support = kshot.Batch.of(torch.eye(4).reshape(2, 2, 2, 2), torch.tensor([0, 1]), ways=2)
        >>> learner.predict(learner.adapt(support), torch.zeros(3, 2, 2, 2)).shape
        torch.Size([3, 2])

    References:
        Wertheimer, Tang, Hariharan: Few-Shot Classification with Feature Map Reconstruction Networks, CVPR 2021,
        arXiv:2012.01506.

    Deviations:
        The auxiliary loss, which keeps the classes' subspaces apart, is omitted, and so is the paper's pretraining with
        a learned matrix of vectors for each training class. All features are divided by $\sqrt d$, where the authors'
        code divides those of ResNet-12 only. $\gamma$ is learned by its logarithm.
    """
    return HeadLearner(embedding, Reconstruction(scale), objective, batchnorm=batchnorm)
