"""Baselines for segmentation: what needs no features, random forests on colours and edges, and frozen feature maps.

Shape legend: n images, C channels, K classes with the background first, H × W pixels, F features of a pixel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from kshot import objectives
from kshot.learner import Learner
from kshot.learners.baselines.feature_heads import ClassMeans, Opponent, with_temperature
from kshot.objectives import Objective
from kshot.tasks.read_log import during
from kshot.tasks.source import TaskSource
from kshot.types import Batch, Tree

SCALES = (1.0, 2.0)  # standard deviations of the filters, in pixels
MOST_PIXELS = 4000  # of the support set of a task that a classifier is fitted to, of each class
FLOOR = 1e-3  # least probability of a class


def baselines(source: TaskSource) -> dict[str, Callable[[], list[Learner]]]:
    """The baselines for segmentation, by name; {} for a source of other tasks.

    Each function gives the candidates among which validation tasks choose. Those on pixels need images of 1 or 3
    channels, and "prototype" feature maps.

    Example:
        >>> import kshot
        >>> baselines(kshot.sources.sinusoids())
        {}
    """
    if source.objective.predicts != "masks":
        return {}
    found: dict[str, Callable[[], list[Learner]]] = {
        "all_background": lambda: [MeanMask(source.objective, of_support=False)],
        "mean_mask": lambda: [MeanMask(source.objective)],
    }
    with during(source, "training"):
        channels = source.task("train", 0).support.inputs.shape[1]
    if channels in (1, 3):
        found["pixel_logistic"] = lambda: [PixelClassifier(source.objective, "logistic")]
        found["pixel_forest"] = lambda: [PixelClassifier(source.objective, "forest")]
    else:
        found["prototype"] = lambda: [with_temperature(Opponent(nn.Identity(), ClassMeans(), source.objective), source)]
    return found


class MeanMask(Learner):
    r"""Predict the support's mean mask, pixel by pixel, whatever the image shows: $\log \max(\bar y_{kp}, 10^{-3})$.

    Args:
        objective: objective of the tasks.
        of_support: False to predict background everywhere, with the same floor.

    Example:
        >>> mask = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])
        >>> learner = MeanMask(objectives.segmentation)
        >>> learner.predict(learner.adapt(Batch.of(torch.zeros(1, 3, 1, 2), mask)), torch.zeros(1, 3, 1, 2)).argmax(1)
        tensor([[[0, 1]]])
    """

    def __init__(self, objective: Objective = objectives.segmentation, *, of_support: bool = True) -> None:
        super().__init__(objective)
        self.of_support = of_support

    def _adapt(self, support: Batch) -> Tree:
        mean_KHW = torch.tensordot(support.weight.to(support.targets.dtype), support.targets, 1)
        if not self.of_support:
            mean_KHW = torch.zeros_like(mean_KHW)
            mean_KHW[0] = 1
        return {"logits": (mean_KHW / mean_KHW.sum(0).clamp_min(1e-12)).clamp_min(FLOOR).log()}

    def predict(self, state: Tree, inputs: Tree) -> Tree:
        return state["logits"].expand(len(inputs), *state["logits"].shape)


class PixelClassifier(Learner):
    """A classifier of scikit-learn on colours and edges of single pixels, fitted to the support images of each task.

    The features are, for each channel, its value, and its Gaussian blur, gradient magnitude and Laplacian at two
    scales: a part of those of ilastik, whose pixel classification this is with "forest". Classes are balanced.

    The state is the pixels that are fitted, `{"features": (N, F), "classes": (N,)}`, with the number of classes; the
    classifier is fitted anew to predict.

    Args:
        objective: objective of the tasks.
        kind: "forest" of 100 trees, or "logistic" regression on standardised features.

    References:
        Berg et al.: ilastik: interactive machine learning for (bio)image analysis, Nature Methods 16, 2019.
    """

    def __init__(
        self, objective: Objective = objectives.segmentation, kind: Literal["forest", "logistic"] = "forest"
    ) -> None:
        super().__init__(objective)
        self.kind = kind

    def _adapt(self, support: Batch) -> Tree:
        real = support.weight > 0
        targets = support.targets[real].movedim(1, -1).flatten(0, 2)
        features = torch.from_numpy(pixel_features(support.inputs[real])).flatten(0, 2)
        chosen = []
        for k in range(targets.shape[1]):
            of_class = (targets[:, k] > 0.5).nonzero()[:, 0]
            chosen.append(of_class[:: max(1, -(-len(of_class) // MOST_PIXELS))])
        rows = torch.cat(chosen)
        return {"features": features[rows], "classes": targets[rows].argmax(1), "count": torch.zeros(targets.shape[1])}

    def predict(self, state: Tree, inputs: Tree) -> Tree:
        n, _, height, width = inputs.shape
        probability = np.full((n * height * width, len(state["count"])), FLOOR, np.float32)
        classes = state["classes"].numpy()
        classifier = self._classifier().fit(state["features"].numpy(), classes)
        rows = pixel_features(inputs).reshape(n * height * width, -1)
        probability[:, classifier.classes_] = np.maximum(classifier.predict_proba(rows), FLOOR)
        logits = torch.from_numpy(np.log(probability)).view(n, height, width, -1).movedim(-1, 1)
        return logits.to(inputs.dtype)

    def _classifier(self) -> Any:
        from sklearn.ensemble import RandomForestClassifier
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        if self.kind == "forest":
            return RandomForestClassifier(100, class_weight="balanced", min_samples_leaf=5, random_state=0)
        return make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))


def pixel_features(images: Tensor) -> np.ndarray:
    """The features (n, H, W, F) of the pixels of images (n, C, H, W), F = 7 C."""
    filters = (ndimage.gaussian_filter, ndimage.gaussian_gradient_magnitude, ndimage.gaussian_laplace)
    found = []
    for image in images.detach().cpu().double().numpy():
        channels = []
        for channel in image:
            channels += [channel, *(each(channel, scale) for each in filters for scale in SCALES)]
        found.append(np.stack(channels, -1))
    return np.stack(found).astype(np.float32)
