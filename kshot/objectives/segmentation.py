r"""Segmentation: a class for each pixel of an image.

Shape legend: n images, K classes with the background as the first, H rows and W columns of a mask, h × w of logits.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kshot.conversion import to_numpy
from kshot.objectives.base import CERTAIN_LOGIT, Objective
from kshot.objectives.outputs import the_tensor
from kshot.types import Batch


def check_masks(targets: Tensor) -> None:
    """Raise ValueError unless the targets have the shape and dtype of one-hot masks."""
    if targets.ndim != 4 or not targets.is_floating_point() or targets.shape[1] < 2:
        raise ValueError(
            f"targets must be masks (n, classes, H, W), one-hot floating-point numbers with the background as the "
            f"first of at least two classes, got {str(targets.dtype).removeprefix('torch.')} {tuple(targets.shape)}"
        )


def check_one_hot_pixels(batch: Batch) -> None:
    """Raise ValueError unless targets (..., n, K, H, W) are one-hot, or zeros for pixels that are not scored."""
    targets = to_numpy(batch.targets)
    total = targets.sum(-3)
    wrong = ((targets < 0).any(-3) | ((np.abs(total - 1) > 1e-3) & (total != 0))) & (
        to_numpy(batch.weight)[..., None, None] > 0
    )
    if wrong.any():
        *_, row, y, x = np.argwhere(wrong)[0].tolist()
        raise ValueError(
            f"targets: image {row} has the classes {np.moveaxis(targets, -3, -1)[wrong][0].tolist()} in the pixel "
            f"({y}, {x}); a pixel is 1 in its class and 0 elsewhere, or 0 in all classes if it is not scored"
        )


def upsampled(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits (n, K, h, w) at the size of the masks, bilinearly; as they are if they have it."""
    if logits.shape[-2:] == size:
        return logits
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def _at_masks(logits: Tensor, targets: Tensor) -> Tensor:
    check_masks(targets)
    the_tensor(logits, "is scored")
    if logits.ndim != 4 or logits.shape[:2] != targets.shape[:2]:
        raise ValueError(
            f"the model predicts {tuple(logits.shape)} but the targets are {tuple(targets.shape)} (n, classes, H, W): "
            "segmentation needs logits (n, classes, h, w), as of model segmenter; their size may differ"
        )
    return upsampled(logits, (targets.shape[-2], targets.shape[-1]))


def _pixel_cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    """The weighted mean (), in nats, over the pixels that are scored."""
    each_nHW = -(batch.targets * _at_masks(logits, batch.targets).log_softmax(1)).sum(1)
    scored_nHW = batch.targets.sum(1) * batch.weight[:, None, None]
    total = (each_nHW * batch.weight[:, None, None]).sum()
    return total / scored_nHW.sum().clamp_min(torch.finfo(scored_nHW.dtype).tiny)


def intersection_over_union(predicted: Tensor, true: Tensor, weight_n: Tensor) -> tuple[Tensor, Tensor]:
    r"""The intersection and the union of masks (n, K, H, W), of 0 and 1, summed over images under weights: (K,), (K,).

    $$ I_k = \sum_{ip} w_i \hat y_{ikp} y_{ikp}, \qquad U_k = \sum_{ip} w_i \max(\hat y_{ikp}, y_{ikp}) $$
    """
    both = torch.tensordot(weight_n, predicted * true, 1).sum((1, 2))
    either = torch.tensordot(weight_n, torch.maximum(predicted, true), 1).sum((1, 2))
    return both, either


def _metrics(logits: Tensor, batch: Batch) -> dict[str, Tensor]:
    logits, targets, weight_n = _at_masks(logits, batch.targets), batch.targets, batch.weight
    scored = targets.sum(1, keepdim=True).to(weight_n.dtype)
    number = targets.shape[1]
    predicted = F.one_hot(logits.argmax(1), number).movedim(-1, 1).to(weight_n.dtype) * scored
    true = F.one_hot(targets.argmax(1), number).movedim(-1, 1).to(weight_n.dtype) * scored
    both_K, either_K = intersection_over_union(predicted, true, weight_n)
    exists_K = (either_K[1:] > 0).to(weight_n.dtype)
    of_classes = (_ratio(both_K, either_K)[1:] * exists_K).sum()
    object_both, object_either = intersection_over_union(_object(predicted), _object(true), weight_n)
    pixels = torch.tensordot(weight_n, scored, 1).sum()
    return {
        "mean_iou": torch.where(exists_K.sum() > 0, of_classes / exists_K.sum().clamp_min(1), 1.0),
        "fb_iou": (_ratio(both_K, either_K)[0] + _ratio(object_both, object_either)[0]) / 2,
        "pixel_accuracy": _ratio(both_K.sum(), pixels),
    }


def _object(masks: Tensor) -> Tensor:
    """The mask of all classes but the background, (n, 1, H, W)."""
    return masks[:, 1:].sum(1, keepdim=True)


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """A quotient, 1 where nothing was to be found and nothing was."""
    return torch.where(whole > 0, part / whole.clamp_min(torch.finfo(whole.dtype).tiny), 1.0)


def _certain_logits(targets: Tensor) -> Tensor:
    return CERTAIN_LOGIT * targets


segmentation = Objective(
    _pixel_cross_entropy,
    _metrics,
    as_prediction=_certain_logits,
    predicts="masks",
    check_targets=check_masks,
    check_values=check_one_hot_pixels,
    name="segmentation",
)
r"""Segmentation: the mean over pixels p of the cross-entropy of their classes,
$-\sum_{ipk} w_i y_{ikp} \log \mathrm{softmax}(\hat y_{ip})_k / \sum_{ipk} w_i y_{ikp}$.

Logits (n, K, h, w) are scaled to the size of the masks bilinearly; targets are one-hot masks (n, K, H, W) with the
background as the first class, and 0 in all classes for a pixel that is not scored. Metrics, each over all queries of a
task together and then, as all metrics, a mean over tasks: mean_iou, the intersection over union of a class, averaged
over the classes without the background that are there or predicted; fb_iou, the mean of those of the background and of
all other classes as one; pixel_accuracy, the share of pixels with the right class. The literature's mIoU sums over the
tasks of a class before it divides, which differs a little."""
