"""Baselines on frozen features: what a practitioner fits to the outputs of an encoder, or to feature vectors.

Shape legend: N support rows, D features, C classes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from kshot.learner import Learner, evaluation_mode
from kshot.learners.baselines.feature_heads import (
    ClassMeans,
    LogisticRegression,
    Neighbours,
    Preparation,
    Preparer,
    RidgeClassifier,
    device_of,
    features_of,
    has_features,
    with_temperature,
)
from kshot.tasks.read_log import during
from kshot.tasks.source import TaskSource
from kshot.types import to

PENALTIES: dict[Preparation, tuple[float, ...]] = {
    "unit": (1.0, 10.0, 100.0, 1000.0),
    "centred": (1.0, 10.0, 100.0),
    "standardised": (1e-4, 1e-3, 1e-2, 0.1),
}
"""The grid of C, the inverse of the penalty's strength, for each preparation of features."""
NEIGHBOURS = (1, 3, 5, 10)


def baselines(
    source: TaskSource, embedding: nn.Module | None = None, *, contrast: Callable[[nn.Module], object] | None = None
) -> dict[str, Callable[[], list[Learner]]]:
    """The baselines for tasks with classes or labels of their own on features, by name; {} for other tasks.

    Each function fits to the training split and gives the candidates among which validation tasks choose.

    Args:
        source: source of the tasks.
        embedding: inputs (n, ...) to features (n, D), not changed; None if the inputs are features.
        contrast: trains a module that gives features, in place, by plain supervised contrast on the training classes,
            such as `lambda model: kshot.pretrain(model, source, steps=100, objective="contrastive", outer_lr=1e-4)`.
            With it, "contrast_then_probe" is among the baselines: it trains a copy of the embedding, or a linear map of
            the features where the embedding has nothing to train.

    Example:
        >>> import kshot
        >>> baselines(kshot.sources.sinusoids())
        {}
    """
    of_labels = source.objective.predicts == "labels"
    suits = source.objective.task_specific_classes or of_labels
    if not suits or (embedding is None and not has_features(source)):
        return {}
    body = nn.Flatten() if embedding is None else embedding
    found: dict[str, Callable[[], list[Learner]]] = {
        "class_mean_cosine": lambda: class_mean_candidates(source, body),
        "logistic_regression": lambda: logistic_candidates(source, body),
        "ridge": lambda: ridge_candidates(source, body),
        "knn": lambda: neighbour_candidates(source, body),
    }
    if contrast is not None:
        found["contrast_then_probe"] = lambda: logistic_candidates(source, contrasted(source, body, contrast))
    return found


def pretrained_baselines(
    source: TaskSource, model: nn.Module, *, contrast: bool = False
) -> dict[str, Callable[[], list[Learner]]]:
    """The baselines on the features of a model that was pretrained on the training classes, by name.

    Args:
        source: source of the tasks.
        model: gives features; it has no last layer of classes.
        contrast: whether it was pretrained by contrast, after which the probe is "contrast_then_probe".
    """
    if not source.objective.task_specific_classes:
        return {}
    return {
        "pretrained_centroid": lambda: class_mean_candidates(source, model),
        "contrast_then_probe" if contrast else "pretrained_probe": lambda: logistic_candidates(source, model),
    }


def class_mean_candidates(source: TaskSource, embedding: nn.Module) -> list[Learner]:
    """Nearest class means by the cosine, of the features as they are and minus their training mean."""
    prepared = Preparer(source, embedding)
    return [with_temperature(prepared(ClassMeans(), kind), source) for kind in ("unit", "centred")]


def logistic_candidates(source: TaskSource, embedding: nn.Module) -> list[Learner]:
    """scikit-learn's logistic regression, for each preparation of the features and each C of a grid."""
    prepared = Preparer(source, embedding)
    return [prepared(LogisticRegression(C), kind) for kind, grid in PENALTIES.items() for C in grid]


def ridge_candidates(source: TaskSource, embedding: nn.Module) -> list[Learner]:
    """scikit-learn's ridge classifier, for each preparation of the features and each penalty of a grid."""
    prepared = Preparer(source, embedding)
    found = [prepared(RidgeClassifier(1 / C), kind) for kind, grid in PENALTIES.items() for C in grid]
    return [with_temperature(learner, source) for learner in found]


def neighbour_candidates(source: TaskSource, embedding: nn.Module) -> list[Learner]:
    """The k nearest support rows by the cosine, for several k."""
    prepared = Preparer(source, embedding)
    return [prepared(Neighbours(k), "unit") for k in NEIGHBOURS]


def contrasted(source: TaskSource, embedding: nn.Module, contrast: Callable[[nn.Module], object]) -> nn.Module:
    """A copy of an embedding that `contrast` has trained; with a linear map after it if it has nothing to train."""
    trained = copy.deepcopy(embedding)
    if not any(parameter.requires_grad for parameter in trained.parameters()):
        with during(source, "training"), evaluation_mode(trained):
            width = features_of(trained, to(source.task("train", 0).support, device_of(trained))).shape[1]
        trained = nn.Sequential(trained, Finite(), _identity(width).to(device_of(trained)))
    contrast(trained)
    return trained.eval()


class Finite(nn.Module):
    """Features with 0 in place of missing and infinite values."""

    def forward(self, feat_ND: Tensor) -> Tensor:
        return torch.where(feat_ND.isfinite(), feat_ND, 0.0)


def _identity(width: int) -> nn.Linear:
    layer = nn.Linear(width, width, bias=False)
    nn.init.eye_(layer.weight)
    return layer
