"""What learners estimate from the training split in closed form, before meta-training or instead of it."""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import nn

from kshot.learner import Learner, evaluation_mode
from kshot.learners.heads.head import FeatureStatistics
from kshot.learners.heads.head_learner import HeadLearner
from kshot.learners.pooling.fitted import FittedToTraining
from kshot.tasks.read_log import during
from kshot.tasks.source import TaskSource, check_source
from kshot.types import to


def fit_closed_form(learner: Learner, source: TaskSource, *, after_training: bool | None = None) -> bool:
    """Fit in closed form whatever a learner estimates from the training split: the statistics of `FeatureStatistics` of
    its head, and a learner that is `FittedToTraining`, such as `partial_pooling`; and so for learners within it.

    `fit` calls it for a learner that is `FittedToTraining` and was not fitted yet; a run calls it for every learner.

    Args:
        learner: changed in place.
        source: source of the examples; only the split "train" is read.
        after_training: True for those estimates alone that depend on trained parameters, such as those of `choose`;
            False for the others alone.

    Returns:
        Whether the learner estimates anything so.

    Example:
        >>> fit_closed_form(kshot.protonet(nn.Flatten()), kshot.sources.sinusoids())
        False
    """
    check_source(source)
    parts = [part for part in _estimating(learner) if after_training in (None, _after_training(part))]
    with during(source, "pretraining"):
        for part in parts:
            if isinstance(part, FittedToTraining):
                part.fit_to_training(source)
            else:
                fit_feature_statistics(part, source)
    return bool(parts)


def is_unfitted(learner: Learner) -> bool:
    """Whether a learner is to be fitted to the training split in closed form before it is trained, and was not."""
    parts = [part for part in _estimating(learner) if isinstance(part, FittedToTraining)]
    return any(not part.after_training and not bool(part.fitted) for part in parts)


def _estimating(learner: Learner) -> list[FittedToTraining | HeadLearner]:
    """The learner and those within it that estimate something in closed form, the innermost first."""
    found = [part for part in learner.modules() if isinstance(part, FittedToTraining) or _has_statistics(part)]
    return found[::-1]


def _has_statistics(part: nn.Module) -> TypeGuard[HeadLearner]:
    """Whether a module is a learner with a head that estimates statistics of training features."""
    return isinstance(part, HeadLearner) and any(isinstance(each, FeatureStatistics) for each in part.modules())


def _after_training(part: Learner) -> bool:
    return isinstance(part, FittedToTraining) and part.after_training


def fit_feature_statistics(
    learner: HeadLearner, source: TaskSource, *, batches: int | None = None, batch: int = 128
) -> None:
    r"""Compute the statistics of training features that a learner's head uses: for SimpleShot their mean,

    $$ \mu = \frac{\sum_i w_i f_\theta(x_i)}{\sum_i w_i}, $$

    for PLDA also the covariances within and between classes. Call it again after further training of the embedding.

    Args:
        learner: changed in place; ValueError is raised unless its head is, or contains, a `FeatureStatistics`.
        source: source of the examples; only the split "train" is read.
        batches, batch: number of batches, by default that of the head, and examples per batch.

    Example:
        >>> learner = kshot.learners.simpleshot(nn.Flatten(), features=1)
        >>> fit_feature_statistics(learner, kshot.sources.sinusoids())
        >>> learner.head.centre.shape
        torch.Size([1])
    """
    heads = [part for part in learner.modules() if isinstance(part, FeatureStatistics)]
    if not heads:
        raise ValueError(
            "this learner's head uses no feature statistics; those of simpleshot, laplacian_shot and plda do"
        )
    device = next(heads[0].buffers()).device
    count = max(head.batches for head in heads) if batches is None else batches
    with evaluation_mode(learner):
        examples = [to(source.pretraining_batch(step, batch), device) for step in range(count)]
        features = torch.cat([learner.embed(each)[0] for each in examples])
        targets, weight = (torch.cat([getattr(each, name) for each in examples]) for name in ("targets", "weight"))
        for head in heads:
            try:
                head.measure(features, targets, weight)
            except torch.linalg.LinAlgError as error:
                raise ValueError(
                    f"the features of the training examples have no statistics to use ({str(error).splitlines()[0]}): "
                    "give more examples or classes, a model with fewer features, or take a learner such as protonet"
                ) from error
