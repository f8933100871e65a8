"""Baselines where training and test have the same classes: a plain classifier of all training examples.

A support set then only states which of the known classes each label of a task stands for.

Shape legend: N support rows, M query rows, D features, C classes of a task, K classes of the source.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot.learner import Learner, evaluation_mode
from kshot.learners.baselines.feature_heads import device_of, features_of
from kshot.learners.baselines.pool import unwatched
from kshot.objectives import Objective, classes_present, only_present
from kshot.tasks.class_tasks import ClassTasks
from kshot.tasks.source import TaskSource
from kshot.types import SPLITS, Batch, Tree, to

MOST_ROWS, MOST_EMBEDDED = 20_000, 5_000
"""Training examples that are read, as many of each class: as they are, and through a module."""
CHUNK = 256
"""Examples that are embedded at once."""
SIDE = 32
"""Pixels of the side of images, larger ones of which are averaged."""
PENALTIES = (0.01, 0.1, 1.0, 10.0)
"""C of logistic regression on standardised features."""
TREES = 200
SMOOTHING = 0.001
"""Share of the uniform distribution in predicted probabilities, so that no class has the probability 0."""


def baselines(source: TaskSource, embedding: nn.Module | None = None) -> dict[str, Callable[[], list[Learner]]]:
    """The plain classifiers, by name; {} for a source whose splits have classes of their own.

    Args:
        source: of classes, whose inputs are one tensor: rows of features, or images.
        embedding: inputs (n, ...) to features (n, D), not changed; None for the inputs themselves.

    Returns:
        For each name a function that fits to the training split, and returns the candidates among which validation
        tasks choose.
    """
    tasks = unwatched(source)
    if not isinstance(tasks, ClassTasks) or not tasks.same_classes:
        return {}
    train = set(tasks.members("train"))
    inputs = tasks.examples.take(np.zeros(1, np.int64))
    readable = embedding is not None or (isinstance(inputs, Tensor) and inputs.is_floating_point())
    if len(train) < 2 or not readable or not all(train >= set(tasks.members(split)) for split in SPLITS):
        return {}
    features = _Features(embedding)
    return {
        "supervised_logistic": lambda: logistic_candidates(tasks, features),
        "supervised_forest": lambda: forest_candidates(tasks, features),
    }


def logistic_candidates(tasks: ClassTasks, features: _Features) -> list[Learner]:
    """scikit-learn's logistic regression of all training examples on standardised features, for each C of a grid."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    feat_ND, label_N = features.of_training(tasks)
    models = [make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=300)) for C in PENALTIES]
    return [KnownClasses(features, _fitted(model, feat_ND, label_N), tasks.objective) for model in models]


def forest_candidates(tasks: ClassTasks, features: _Features) -> list[Learner]:
    """scikit-learn's random forest of all training examples."""
    from sklearn.ensemble import RandomForestClassifier

    model = RandomForestClassifier(n_estimators=TREES, random_state=0)
    return [KnownClasses(features, _fitted(model, *features.of_training(tasks)), tasks.objective)]


def _fitted(model: Any, feat_ND: np.ndarray, label_N: np.ndarray) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a solver that stops early where classes are separable
        return model.fit(feat_ND, label_N)


class _Features:
    """The features of inputs as float64 rows (n, D); missing and infinite values count as 0.

    Args:
        embedding: inputs to features; None for the inputs themselves, of images averages of `SIDE` by `SIDE`.
    """

    def __init__(self, embedding: nn.Module | None) -> None:
        self.embedding, self.averages = (nn.Flatten() if embedding is None else embedding), embedding is None
        self.most_rows = MOST_ROWS if embedding is None else MOST_EMBEDDED

    def __call__(self, inputs: Tree) -> np.ndarray:
        if self.averages and inputs.ndim == 4 and max(inputs.shape[2:]) > SIDE:
            inputs = F.adaptive_avg_pool2d(inputs, SIDE)
        count = len(inputs) if isinstance(inputs, Tensor) else len(next(iter(inputs.values())))
        blank = torch.ones(count)
        batch = to(Batch(inputs, F.one_hot(blank.long(), 2).float(), blank), device_of(self.embedding))
        with evaluation_mode(self.embedding):
            feat_ND = features_of(self.embedding, batch).cpu().double()
        return torch.where(feat_ND.isfinite(), feat_ND, 0.0).numpy()

    def of_training(self, tasks: ClassTasks) -> tuple[np.ndarray, np.ndarray]:
        """The features (N, D) of training examples, and the numbers (N,) of their classes."""
        members = list(tasks.members("train").values())
        random, most = np.random.default_rng(0), max(self.most_rows // len(members), 1)
        chosen = [rows if len(rows) <= most else random.choice(rows, most, replace=False) for rows in members]
        rows, label_N = np.concatenate(chosen), np.repeat(np.arange(len(chosen)), [len(each) for each in chosen])
        parts = [self(tasks.examples.take(rows[start : start + CHUNK])) for start in range(0, len(rows), CHUNK)]
        return np.concatenate(parts), label_N


class KnownClasses(Learner):
    r"""Names the labels of a task by a classifier of all classes, and then predicts by it alone.

    $$ \pi = \arg\max_\pi \sum_i w_i \sum_c y_{ic} \log p(\pi(c) \mid x_i), \qquad
       P(y = c \mid x) \propto p(\pi(c) \mid x) $$

    $\pi$ gives each label a class of its own, by the Hungarian method. The state is `{"classes": (C,), "present":
    (C,)}`.

    Args:
        features: inputs to rows of features.
        classifier: of scikit-learn, fitted to the numbers 0 to K - 1.
        objective: of the tasks.
    """

    def __init__(self, features: Callable[[Tree], np.ndarray], classifier: Any, objective: Objective) -> None:
        super().__init__(objective)
        self.features, self.classifier = features, classifier

    def _adapt(self, support: Batch) -> Tree:
        from scipy.optimize import linear_sum_assignment

        weight_NC = (support.targets * support.weight[:, None]).double().cpu()
        score_CK = weight_NC.mT @ self._log_probabilities(support.inputs, weight_NC.shape[1])
        _, class_C = linear_sum_assignment(score_CK.numpy(), maximize=True)
        return {"classes": torch.from_numpy(class_C).to(support.weight.device), "present": classes_present(support)}

    def predict(self, state: Tree, inputs: Tree) -> Tree:
        log_MK = self._log_probabilities(inputs, len(state["classes"]))
        log_MC = log_MK[:, state["classes"].cpu()]  # normalised by the loss, over the classes that are present
        return only_present(log_MC.to(state["present"].device, torch.get_default_dtype()), state["present"])

    def _log_probabilities(self, inputs: Tree, ways: int) -> Tensor:
        """(n, K), at least (n, ways): labels beyond the classes of the source stand for classes that nothing is of."""
        probability_NK = torch.from_numpy(self.classifier.predict_proba(self.features(inputs))).double()
        unknown = max(ways - probability_NK.shape[1], 0)
        return F.pad((1 - SMOOTHING) * probability_NK, (0, unknown)).add(SMOOTHING / probability_NK.shape[1]).log()
