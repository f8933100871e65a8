"""FRN: a query belongs to the class whose support maps its own is best rebuilt from.

Shape legend: N support rows, M query rows, R positions of a map, D channels, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kshot import objectives
from kshot.annotations import PositiveFloat
from kshot.inner.functional import BatchNorm
from kshot.learners.heads.protonet import Head, HeadLearner, log_parameter
from kshot.objectives import Objective
from kshot.types import Tree


class Reconstruction(Head):
    r"""The ridge regression of a query's feature vectors on all those of a class, and its squared error; see `frn`.

    The state is the matrix $H_c$ (C, D, D) by which a class rebuilds a feature vector.

    Args:
        scale: $\gamma$, where it starts.
    """

    takes_maps = True

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.log_scale = log_parameter("scale", scale)
        self.alpha, self.beta = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    def fit(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        part_NRD = _parts(feat_ND)
        positions, width = part_NRD.shape[1:]
        share_NC = target_NC * weight_N[:, None]
        count_C = share_NC.sum(0)
        l2_C = count_C.where(count_C > 0, 1.0) * (positions / width) * self.alpha.exp()
        own_CKD = (share_NC.sqrt().mT[:, :, None, None] * part_NRD).flatten(1, 2)  # other classes' rows are 0
        return {"rebuild": hat_matrix(own_CKD, l2_C)}

    def predict(self, state: Tree, feat_MD: Tensor) -> Tensor:
        part_MRD = _parts(feat_MD)
        rebuilt_MCRD = self.beta.exp() * part_MRD[:, None] @ state["rebuild"]
        away_MC = (part_MRD[:, None] - rebuilt_MCRD).square().sum(3).mean(2)
        return -self.log_scale.exp() * away_MC


def hat_matrix(feat_KD: Tensor, l2: Tensor) -> Tensor:
    r"""The matrix (..., D, D) by which ridge regression on rows (..., K, D) rebuilds a vector, for $\lambda$ (...,):

    $$ H = (S^\top S + \lambda I)^{-1} S^\top S = S^\top (S S^\top + \lambda I)^{-1} S $$

    The second form (Woodbury) solves K equations in place of D, and is taken where K < D.
    """
    inner = feat_KD.shape[-2] < feat_KD.shape[-1]
    square = feat_KD @ feat_KD.mT if inner else feat_KD.mT @ feat_KD
    ridged = square + l2[..., None, None] * torch.eye(square.shape[-1], dtype=square.dtype, device=square.device)
    return feat_KD.mT @ torch.linalg.solve(ridged, feat_KD) if inner else torch.linalg.solve(ridged, square)


def _parts(feat_ND: Tensor) -> Tensor:
    """Feature maps (N, D, ...) as vectors of their positions (N, R, D), scaled to a length of about 1."""
    return feat_ND.flatten(2).mT / feat_ND.shape[1] ** 0.5 if feat_ND.ndim > 2 else _parts(feat_ND[..., None])


def frn(
    embedding: nn.Module,
    *,
    scale: PositiveFloat = 10.0,
    objective: Objective = objectives.classification,
    batchnorm: BatchNorm = "support",
) -> HeadLearner:
    r"""Feature map reconstruction network: rebuild a query's map from each class's support maps by ridge regression.

    $$ \bar Q_c = \rho \, Q (S_c^\top S_c + \lambda I)^{-1} S_c^\top S_c, \qquad
       \hat y_c = -\frac{\gamma}{r} \lVert Q - \bar Q_c \rVert^2, \qquad
       \lambda = \tfrac{k r}{d} e^\alpha, \quad \rho = e^\beta $$

    Q (r, d) are the r vectors of the query's map, $S_c$ (k r, d) those of the k support examples of the class;
    $\alpha$, $\beta$ and $\gamma$ are learned. No position is bound to one in another map.

    Args:
        embedding: any module: inputs (n, ...) to feature maps (n, d, H, W); one without positions has r = 1.
        scale: $\gamma$, where it starts.
        objective: what the tasks ask.
        batchnorm: "support" (inductive), "query" (transductive) or "running".

    Returns:
        A learner for any number of ways and shots.

    Raises:
        ValueError: a scale that is not above 0.

    Example:
        >>> learner = frn(nn.Identity())
        >>> support = kshot.Batch.of(torch.eye(4).reshape(2, 2, 2, 2), torch.tensor([0, 1]), ways=2)
        >>> learner.predict(learner.adapt(support), torch.zeros(3, 2, 2, 2)).shape
        torch.Size([3, 2])

    References:
        Wertheimer, Tang, Hariharan: Few-Shot Classification with Feature Map Reconstruction Networks, CVPR 2021,
        arXiv:2012.01506.

    Deviations:
        The auxiliary loss, that keeps the classes' subspaces apart, is left out.
    """
    return HeadLearner(embedding, Reconstruction(scale), objective, batchnorm=batchnorm)
