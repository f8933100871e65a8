"""Opponents on frozen features: heads, how features are prepared for them, and the learner that they make.

Shape legend: N support rows, M query rows, D features, C classes.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot import objectives
from kshot.annotations import PositiveFloat, PositiveInt
from kshot.argument_checks import check_arguments
from kshot.learner import evaluation_mode
from kshot.learners.heads.distances import class_means, cosine
from kshot.learners.heads.head import Head
from kshot.learners.heads.head_learner import HeadLearner, predict_head
from kshot.learners.heads.simpleshot import Centred
from kshot.objectives import Objective, only_present
from kshot.tasks.read_log import during
from kshot.tasks.source import TaskSource
from kshot.types import Batch, Tree, to

Preparation = Literal["unit", "centred", "standardised"]
"""Features at unit length; less the training mean, at unit length; or each less its training mean, by its deviation."""

BATCHES, BATCH = 16, 128  # of training examples that preparations are measured on
TASKS = 20  # training tasks that a temperature is fitted on
SCALES = tuple(float(scale) for scale in np.logspace(-1, 3, 41))


class Opponent(HeadLearner):
    """A head learner with a fixed factor on its scores; nothing in it is meta-trained.

    Attributes:
        scale: (), the factor, 1 until `with_temperature` fits it.
    """

    scale: Tensor

    def __init__(self, embedding: nn.Module, head: Head, objective: Objective) -> None:
        super().__init__(embedding, head, objective, batchnorm="running")
        self.register_buffer("scale", torch.tensor(1.0))

    def score(self, state: Tree, features: Tensor) -> Tensor:
        return _scored(self.scale * predict_head(self.head, state["head"], features), state)


def _scored(logits: Tensor, state: Tree) -> Tensor:
    """The logits, without those of classes that a support set lacks; labels have no such classes."""
    return only_present(logits, state["present"]) if "present" in state else logits


def with_temperature(learner: Opponent, source: TaskSource, *, num_tasks: PositiveInt = TASKS) -> Opponent:
    r"""The learner, its `scale` now that of `SCALES` with the lowest query loss on the first training tasks.

    Scores that are no log-probabilities, such as cosines and the values of a regression, become probabilities by it.
    """
    device, losses = learner.scale.device, torch.zeros(len(SCALES))
    with during(source, "training"), evaluation_mode(learner):
        for index in range(num_tasks):
            support, query = to(source.task("train", index), device)
            state = learner.adapt(support)
            logits = predict_head(learner.head, state["head"], learner.embed_query(state, query.inputs))
            for number, scale in enumerate(SCALES):
                losses[number] += float(learner.objective.loss(_scored(scale * logits, state), query))
        learner.scale.fill_(SCALES[int(losses.argmin())])
    return learner


class Prepared(Centred):
    r"""Fits a head to features in a `Preparation`. Missing and infinite values count as the training mean.

    Args:
        head, features: as in `Centred`.
        kind: the preparation.

    Attributes:
        deviation: (D,), of each feature over the training examples.
    """

    deviation: Tensor

    def __init__(self, head: Head, features: int, kind: Preparation) -> None:
        super().__init__(head, features)
        self.kind, self.fits_parts = kind, head.fits_parts
        self.register_buffer("deviation", torch.ones(features))

    def measure(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> None:
        real_ND = feat_ND.isfinite() & (weight_N > 0)[:, None]
        feat_ND, count_D = feat_ND.double().where(real_ND, 0.0), real_ND.sum(0).clamp(min=1)
        mean_D = feat_ND.sum(0) / count_D
        self.centre.copy_(mean_D)
        deviation_D = ((feat_ND - mean_D).square().where(real_ND, 0.0).sum(0) / count_D).sqrt()
        self.deviation.copy_(torch.where(deviation_D > 1e-6 * deviation_D.max(), deviation_D, 1.0))

    def _normalize(self, feat_ND: Tensor) -> Tensor:
        centre_D = self.centre.to(feat_ND.dtype)
        feat_ND = torch.where(feat_ND.isfinite(), feat_ND, centre_D)
        if self.kind == "unit":
            return F.normalize(feat_ND, dim=1)
        if self.kind == "centred":
            return super()._normalize(feat_ND)
        return (feat_ND - centre_D) / self.deviation.to(feat_ND.dtype)


class ClassMeans(Head):
    """The cosine to the mean of each class; the state is `{"means": (C, D)}`."""

    fits_parts = True

    def fit(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        return {"means": class_means(feat_ND, target_NC, weight_N)}

    def predict(self, state: Tree, feat_MD: Tensor) -> Tensor:
        return cosine(feat_MD, state["means"])


class Neighbours(Head):
    r"""The votes of the k nearest support rows by the cosine, each weighted by its similarity.

    $$ \hat y_c = \log \Bigl(\sum_{i \in \text{nearest}} w_i y_{ic} \tfrac{1 + \cos(f, f_i)}{2} + \tfrac1C\Bigr) $$

    Args:
        k: number of neighbours; all, if there are fewer.
    """

    fits_parts = True

    @check_arguments
    def __init__(self, k: PositiveInt) -> None:
        super().__init__()
        self.k = k

    def fit(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        return {"features": feat_ND, "targets": target_NC, "weight": weight_N}

    def predict(self, state: Tree, feat_MD: Tensor) -> Tensor:
        target_NC, weight_N = state["targets"], state["weight"]
        similar_MN = cosine(feat_MD, state["features"]).clamp(-1, 1)
        near_MN = torch.where(weight_N > 0, similar_MN, -torch.inf)
        nearest_Mk = near_MN.topk(min(self.k, len(weight_N)), 1).indices
        vote_Mk = weight_N[nearest_Mk] * (1 + similar_MN.gather(1, nearest_Mk)) / 2
        present_C = (target_NC * weight_N[:, None]).sum(0) > 0
        return ((vote_Mk[..., None] * target_NC[nearest_Mk]).sum(1) + 1 / present_C.sum()).log()


class ScikitLinear(Head):
    """A linear classifier of scikit-learn; the state is `{"weight": (C, D), "bias": (C,)}`.

    It is fitted to the coordinates of the support rows in the space that they span, which changes no penalised solution
    and saves time where D is above N.
    """

    fits_parts = True

    @abstractmethod
    def make(self) -> Any:
        """The classifier, not fitted."""

    def fit(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        feat, share = (each.detach().cpu().double().numpy() for each in (feat_ND, target_NC * weight_N[:, None]))
        row, label = np.nonzero(share > 0)  # soft labels are rows of several labels
        classes = np.unique(label)
        weight_CD, bias_C = np.zeros((share.shape[1], feat.shape[1])), np.zeros(share.shape[1])
        if len(classes) > 1:
            left, size, right = np.linalg.svd(feat[np.unique(row)], full_matrices=False)
            coordinates = (left * size)[np.searchsorted(np.unique(row), row)]
            fitted = self.make().fit(coordinates, label, sample_weight=share[row, label])
            coefficients, intercepts = np.atleast_2d(fitted.coef_), np.atleast_1d(fitted.intercept_)
            if len(classes) == 2:  # one row, the score of the second class
                coefficients, intercepts = self.of_two(coefficients), self.of_two(intercepts[:, None])[:, 0]
            weight_CD[classes], bias_C[classes] = coefficients @ right, intercepts
        return {"weight": feat_ND.new_tensor(weight_CD), "bias": feat_ND.new_tensor(bias_C)}

    def of_two(self, second: np.ndarray) -> np.ndarray:
        """The scores of two classes from that of the second."""
        return np.concatenate([0 * second, second])

    def predict(self, state: Tree, feat_MD: Tensor) -> Tensor:
        return F.linear(feat_MD, state["weight"], state["bias"])


class LogisticRegression(ScikitLinear):
    """scikit-learn's `LogisticRegression`, with an intercept that is not penalised.

    Args:
        C: inverse of the strength of the penalty.
    """

    @check_arguments
    def __init__(self, C: PositiveFloat) -> None:
        super().__init__()
        self.C = C

    def make(self) -> Any:
        from sklearn.linear_model import LogisticRegression as Scikit

        return _Quiet(Scikit(C=self.C, max_iter=1000, tol=1e-5))


class RidgeClassifier(ScikitLinear):
    """scikit-learn's `RidgeClassifier`: a ridge regression of 1 for a row's class and -1 for the others.

    Args:
        alpha: strength of the penalty.
    """

    @check_arguments
    def __init__(self, alpha: PositiveFloat) -> None:
        super().__init__()
        self.alpha = alpha

    def make(self) -> Any:
        from sklearn.linear_model import RidgeClassifier as Scikit

        return _Quiet(Scikit(alpha=self.alpha, solver="svd"))  # exact also for features of any size

    def of_two(self, second: np.ndarray) -> np.ndarray:
        return np.concatenate([-second, second])


class _Quiet:
    """A classifier whose fit does not warn of steps that ran out, near the minimum of a hardly penalised loss.

    Nor that many classes with one row each could be a regression.
    """

    def __init__(self, classifier: Any) -> None:
        self.classifier = classifier

    def fit(self, *args: Any, **options: Any) -> Any:
        from sklearn.exceptions import ConvergenceWarning

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            warnings.filterwarnings("ignore", "The number of unique classes is greater than 50%")
            return self.classifier.fit(*args, **options)


class Preparer:
    """Makes learners on features in a preparation that is measured on training examples, embedded once.

    Args:
        source: source of the examples.
        embedding: inputs to features.
    """

    def __init__(self, source: TaskSource, embedding: nn.Module) -> None:
        self.embedding, self.objective = embedding, source.objective
        device = device_of(embedding)
        with during(source, "training"), evaluation_mode(embedding):
            batches = [to(each, device) for each in _examples(source)]
            self.features = torch.cat([features_of(embedding, each) for each in batches])
            self.weight = torch.cat([each.weight for each in batches])

    def __call__(self, head: Head, kind: Preparation) -> Opponent:
        prepared = Prepared(head, self.features.shape[1], kind).to(self.features.device)
        prepared.measure(self.features, self.features, self.weight)
        return Opponent(self.embedding, prepared, self.objective).to(self.features.device).eval()


def features_of(embedding: nn.Module, batch: Batch) -> Tensor:
    """The features (n, D) of a batch."""
    return HeadLearner(embedding, ClassMeans(), objectives.classification, batchnorm="running").embed(batch)[0]


def _examples(source: TaskSource) -> list[Batch]:
    """Training examples: those of pretraining, or of training tasks where a source has none."""
    try:
        return [source.pretraining_batch(step, BATCH) for step in range(BATCHES)]
    except ValueError:
        return [batch for index in range(TASKS) for batch in source.task("train", index)]


def has_features(source: TaskSource) -> bool:
    """Whether the inputs are feature vectors: one tensor of floating-point numbers (n, D)."""
    with during(source, "training"):
        inputs = source.task("train", 0).support.inputs
    return isinstance(inputs, Tensor) and inputs.is_floating_point() and inputs.ndim == 2


def device_of(module: nn.Module) -> torch.device:
    return next((each.device for each in (*module.parameters(), *module.buffers())), torch.device("cpu"))
