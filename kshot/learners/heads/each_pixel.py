"""Segmentation by heads of classes: a pixel of a feature map is an example.

Shape legend: n images, K classes with the background first, D features, h × w pixels of a feature map, N = n h w.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kshot.learners.heads.head import Head
from kshot.types import Tree

ABSENT = 30.0
"""How far the logit of a class without support pixels is below the highest, in nats."""


class EachPixel(Head):
    r"""Fits a head of classes to the pixels of feature maps, each with the classes that its part of the mask has.

    A mask (n, K, H, W) is averaged over the parts of the image that the h × w pixels of the map stand for, which gives
    a share $y_{ik}$ of each class and a weight $w_i$, the part that is scored. Small classes count as much as large
    ones: each pixel's weight is multiplied by $\sum_k y_{ik} / m_k$, with $m_k = \sum_i w_i y_{ik}$.

    With `Prototypes` this is masked average pooling, of the objects and of the background, and the distance to both;
    with a ridge regression the closed form of R2-D2 for each pixel, with balanced classes.

    The state is `{"head": …, "present": (K,)}`, of the head and of the classes that the support set has.

    Args:
        head: fitted to features (N, D) and targets (N, K); `fits_parts` must be true.

    References:
        Wang, Liew, Zou, Zhou, Feng: PANet, ICCV 2019, arXiv:1908.06391, section 3.2, for masked average pooling.
    """

    takes_maps = True
    scores_absent = True

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head
        self.transductive = head.transductive

    def fit(self, feat_nDhw: Tensor, target_nKHW: Tensor, weight_n: Tensor) -> Tree:
        _check_maps(feat_nDhw)
        share_NK = _pixels(F.adaptive_avg_pool2d(target_nKHW, (feat_nDhw.shape[-2], feat_nDhw.shape[-1])))
        scored_N = share_NK.sum(1)
        share_NK = share_NK / scored_N.clamp_min(1e-12)[:, None]
        weight_N = scored_N * weight_n.repeat_interleave(feat_nDhw.shape[-1] * feat_nDhw.shape[-2])
        mass_K = weight_N @ share_NK
        present_K = mass_K > 0
        balance_K = torch.where(present_K, mass_K.sum() / (present_K.sum() * mass_K.clamp_min(1e-12)), 0.0)
        weight_N = weight_N * (share_NK @ balance_K)
        return {"head": self.head.fit(_pixels(feat_nDhw), share_NK, weight_N), "present": present_K}

    def predict(self, state: Tree, feat_nDhw: Tensor) -> Tensor:
        _check_maps(feat_nDhw)
        logits_NK = self.head.predict(state["head"], _pixels(feat_nDhw))
        present_K = state["present"]
        lowest = torch.finfo(logits_NK.dtype).min
        highest_N1 = torch.where(present_K, logits_NK, lowest).amax(1, keepdim=True)
        logits_NK = torch.where(present_K, logits_NK, highest_N1 - ABSENT)
        n, _, h, w = feat_nDhw.shape
        return logits_NK.view(n, h, w, -1).movedim(-1, 1)


def _check_maps(features: Tensor) -> None:
    if features.ndim != 4:
        raise ValueError(
            f"segmentation needs feature maps (n, D, h, w), and these features are {tuple(features.shape)}: take a "
            "model that gives maps, such as segmenter, or features: encoder of the source masks"
        )


def _pixels(maps_nDhw: Tensor) -> Tensor:
    """The pixels of maps as rows, (n h w, D)."""
    return maps_nDhw.movedim(1, -1).flatten(0, 2)
