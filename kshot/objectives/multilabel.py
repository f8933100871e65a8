r"""Multi-label classification: any number of labels of an example are true.

Shape legend: n examples, C labels.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kshot.conversion import to_numpy
from kshot.objectives.base import CERTAIN_LOGIT, Objective, weighted_mean
from kshot.objectives.outputs import the_tensor
from kshot.types import Batch


def check_multi_hot(targets: Tensor) -> None:
    """Raise ValueError unless the targets have the shape and dtype of multi-hot rows."""
    if targets.ndim != 2 or not targets.is_floating_point():
        raise ValueError(
            f"targets must be multi-hot (n, labels), floating-point numbers that are 1 where a label is true, got "
            f"{str(targets.dtype).removeprefix('torch.')} {tuple(targets.shape)}; convert integers by targets.float()"
        )


def check_probabilities(batch: Batch) -> None:
    """Raise ValueError unless targets (..., n, C) are from 0 to 1."""
    targets = to_numpy(batch.targets)
    if targets.min(initial=0) >= 0 and targets.max(initial=1) <= 1:
        return
    outside_nC = (targets < 0) | (targets > 1)
    outside_n = outside_nC.any(-1) & (to_numpy(batch.weight) > 0)
    if outside_n.any():
        index = tuple(np.argwhere(outside_n)[0].tolist())
        value = targets[index][outside_nC[index]][0]
        of_task = f" of task {index[0]}" if len(index) > 1 else ""
        raise ValueError(
            f"targets: row {index[-1]}{of_task} has the value {float(value):.3g}; multi-hot targets are 1 where a "
            "label is true and 0 elsewhere"
        )


def _check_logits(logits: Tensor, targets: Tensor) -> None:
    check_multi_hot(targets)
    the_tensor(logits, "is scored")
    if logits.shape != targets.shape:
        raise ValueError(
            f"the model predicts {tuple(logits.shape)} but the targets are {tuple(targets.shape)} (n, labels): "
            "give its last layer as many outputs as there are labels"
        )


def _binary_cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    """Weighted mean (), in nats, of the mean binary cross-entropy over labels, for logits (n, C)."""
    _check_logits(logits, batch.targets)
    each_nC = F.binary_cross_entropy_with_logits(logits, batch.targets, reduction="none")
    return weighted_mean(each_nC.mean(1), batch.weight)


def f1(predicted_nC: Tensor, true_nC: Tensor, weight_n: Tensor) -> tuple[Tensor, Tensor]:
    r"""F1 over all labels together, and its mean over labels: micro and macro, (), (); true is 1, false is 0.

    $$ F_1 = \frac{2 \, TP}{2 \, TP + FP + FN}, \qquad TP = \sum_i w_i \hat y_{ic} y_{ic} $$

    The mean leaves out labels that are nowhere true and nowhere predicted; without any other label both are 1. So does
    `sklearn.metrics.f1_score` with `zero_division=np.nan`, except in the last case.
    """
    hits_C = weight_n @ (predicted_nC * true_nC)
    size_C = weight_n @ (predicted_nC + true_nC)  # 2 TP + FP + FN
    each_C = torch.where(size_C > 0, 2 * hits_C / size_C, 1.0)
    micro = torch.where(size_C.sum() > 0, 2 * hits_C.sum() / size_C.sum(), 1.0)
    return micro, _mean_where(each_C, size_C > 0)


def mean_average_precision(score_nC: Tensor, true_nC: Tensor, weight_n: Tensor) -> Tensor:
    r"""Mean over labels of the average precision of the examples, ranked by score, ():

    $$ \text{AP} = \sum_k (R_k - R_{k-1}) P_k $$

    with precision $P_k$ and recall $R_k$ above the k-th highest threshold; equal scores are one threshold. The mean
    leaves out labels without a true example, as torchmetrics does; `sklearn.metrics.average_precision_score` counts
    them as 0. Without any true label it is 1.
    """
    positive_nC = weight_n[:, None] * true_nC
    ranked_nC = _at_least(score_nC.T, weight_n.expand_as(score_nC.T)).T
    precision_nC = _at_least(score_nC.T, positive_nC.T).T / ranked_nC.clamp_min(torch.finfo(weight_n.dtype).tiny)
    # the examples of one threshold have equal precision, so that a sum over examples is one over thresholds
    total_C = positive_nC.sum(0)
    each_C = (positive_nC * precision_nC).sum(0) / total_C.clamp_min(torch.finfo(weight_n.dtype).tiny)
    return _mean_where(each_C, total_C > 0)


def label_ranking_average_precision(score_nC: Tensor, true_nC: Tensor, weight_n: Tensor) -> Tensor:
    r"""Weighted mean over examples of the share of true labels among those ranked at least as high as a true label, ():

    $$ \frac{1}{\lvert Y_i \rvert} \sum_{c \in Y_i} \frac{\lvert Y_i \cap A_{ic} \rvert}{\lvert A_{ic} \rvert},
       \qquad A_{ic} = \{ d : \hat y_{id} \ge \hat y_{ic} \} $$

    It is 1 for an example without a true label, as of `sklearn.metrics.label_ranking_average_precision_score`.
    """
    share_nC = _at_least(score_nC, true_nC) / _at_least(score_nC, torch.ones_like(true_nC))
    count_n = true_nC.sum(1)
    each_n = torch.where(count_n > 0, (share_nC * true_nC).sum(1) / count_n.clamp_min(1), 1.0)
    return weighted_mean(each_n, weight_n)


def _at_least(score: Tensor, mass: Tensor) -> Tensor:
    """For each score along the last axis, the mass of the scores that are at least as high, both (..., n)."""
    descending = (-score).contiguous()
    falling, order = descending.sort(-1)
    last = torch.searchsorted(falling, descending, right=True) - 1  # of those with an equal score
    return mass.gather(-1, order).cumsum(-1).gather(-1, last)


def _mean_where(values: Tensor, counted: Tensor) -> Tensor:
    """The mean of the values that are counted, 1 if none is."""
    total = torch.where(counted, values, 0.0).sum()
    return torch.where(counted.any(), total / counted.sum().clamp_min(1), 1.0)


def _metrics(logits: Tensor, batch: Batch) -> dict[str, Tensor]:
    _check_logits(logits, batch.targets)
    weight_n = batch.weight
    true_nC = (batch.targets >= 0.5).to(weight_n.dtype)
    predicted_nC = (logits > 0).to(weight_n.dtype)
    micro, macro = f1(predicted_nC, true_nC, weight_n)
    wrong_nC = (predicted_nC != true_nC).to(weight_n.dtype)
    return {
        "micro_f1": micro,
        "macro_f1": macro,
        "mean_average_precision": mean_average_precision(logits, true_nC, weight_n),
        "label_ranking_average_precision": label_ranking_average_precision(logits, true_nC, weight_n),
        "subset_accuracy": weighted_mean(1 - wrong_nC.amax(1), weight_n),
        "hamming_loss": weighted_mean(wrong_nC.mean(1), weight_n),
    }


def _certain_logits(targets: Tensor) -> Tensor:
    return CERTAIN_LOGIT * (2 * targets - 1)


multilabel = Objective(
    _binary_cross_entropy,
    _metrics,
    as_prediction=_certain_logits,
    predicts="labels",
    check_targets=check_multi_hot,
    check_values=check_probabilities,
    name="multilabel",
)
r"""Multi-label classification: $-\frac{1}{\sum w} \sum_i \frac{w_i}{C} \sum_c y_{ic} \log \sigma(\hat y_{ic}) +
(1 - y_{ic}) \log (1 - \sigma(\hat y_{ic}))$; logits (n, C), multi-hot targets (n, C), any number of which are 1.

A label is predicted where its logit is above 0. Metrics, as scikit-learn defines them: micro_f1 and macro_f1;
mean_average_precision, over labels; label_ranking_average_precision, over examples; subset_accuracy, the share of
examples with all labels right; hamming_loss, the share of labels that are wrong (lower is better). Labels that are
nowhere true among the queries are left out of means over labels (see `f1` and `mean_average_precision`).

A label without true support examples stays a label of the task: `task_specific_classes` is False. It suits learners
that adapt a model with one output for each label by gradient steps, such as `maml` or `fine_tune`, and those with a
head that fits each label by itself, `protonet`, `r2d2`, `metaoptnet` and `logistic_regression` (see `EachLabel`).
Others refuse it, because they expect one class for each example."""
