"""Baselines that read the names of the classes: zero-shot classification, and class means shrunken to the names.

Shape legend: N support rows, M query rows, D features, C classes of a task, K names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot.annotations import PositiveOrInfinite
from kshot.argument_checks import check_arguments
from kshot.checking.duplicates import content_hashes
from kshot.data.text.labelled import phrase
from kshot.data.text.text_tower import has_text_tower, text_features
from kshot.inner.functional import Statistics
from kshot.learner import Learner, evaluation_mode
from kshot.learners.baselines.feature_heads import (
    ClassMeans,
    Opponent,
    Preparation,
    Prepared,
    Preparer,
    device_of,
    features_of,
    with_temperature,
)
from kshot.learners.baselines.pool import unwatched
from kshot.objectives import Objective
from kshot.sources.image_files import ImagePreprocessor
from kshot.sources.image_names import prompt
from kshot.sources.text_preprocessor import TextPreprocessor
from kshot.tasks.class_tasks import ClassTasks
from kshot.tasks.preprocessor import Preprocessor
from kshot.tasks.source import TaskSource
from kshot.types import SPLITS, Batch, Tree, to, tree_map

STRENGTHS = (0.5, 1.0, 2.0, 4.0)
"""Numbers of support rows that a name counts as."""
CHUNK = 1024  # rows that are hashed at once


def baselines(source: TaskSource, embedding: nn.Module | None = None) -> dict[str, Callable[[], list[Learner]]]:
    """The baselines that compare examples with the names of their classes, by name; {} for a source of other tasks.

    Args:
        source: of texts by class, as features, or as the inputs of the embedding; or of images as features of an
            encoder that has a text tower.
        embedding: inputs (n, ...) to features (n, D), not changed; None if the inputs are features.
    """
    tasks = unwatched(source)
    if not isinstance(tasks, ClassTasks) or not _reads_names(tasks.preprocessor, embedding):
        return {}
    body = nn.Flatten() if embedding is None else embedding
    return {
        "zero_shot": lambda: named_candidates(source, body, [math.inf]),
        "class_mean_and_name": lambda: named_candidates(source, body, STRENGTHS),
    }


def named_candidates(source: TaskSource, embedding: nn.Module, strengths: Sequence[float]) -> list[Learner]:
    """Class means shrunken to the names of the classes, for each strength and preparation of the features."""
    tasks, prepared = unwatched(source), Preparer(source, embedding)
    assert isinstance(tasks, ClassTasks)
    names = ClassNames(tasks)
    inputs = to(_inputs_of(names.names, tasks.preprocessor), device_of(embedding))
    blank = torch.ones(len(names.names), device=device_of(embedding))
    with evaluation_mode(embedding):
        feat_KD = features_of(embedding, Batch(inputs, F.one_hot(blank.long(), 2).float(), blank))
    train = names.of_split("train")
    learners = []
    kinds: Sequence[Preparation] = ("unit", "centred")
    for kind, strength in product(kinds, strengths):
        like = Prepared(ClassMeans(), feat_KD.shape[1], kind).to(feat_KD.device)
        like.measure(feat_KD[train], feat_KD[train], blank[train])  # names are centred by the names of training classes
        head = Prepared(ClassMeans(), feat_KD.shape[1], kind).to(feat_KD.device)
        head.measure(prepared.features, prepared.features, prepared.weight)
        learner = NamedMeans(embedding, head, names, like._normalize(feat_KD), strength, source.objective)
        learners.append(with_temperature(learner.to(feat_KD.device).eval(), source))
    return list(learners)


def _reads_names(preprocessor: Preprocessor | None, embedding: nn.Module | None) -> bool:
    """Whether names become inputs as texts do, or features of the text tower of the encoder of images."""
    if isinstance(preprocessor, TextPreprocessor):
        return embedding is not None or preprocessor.features not in ("ids", "tokens")
    if not isinstance(preprocessor, ImagePreprocessor) or preprocessor.features != "encoder" or embedding is not None:
        return False
    return has_text_tower(preprocessor.encoder)


def _inputs_of(names: Sequence[str], preprocessor: Preprocessor | None) -> Tree:
    """The inputs (K, ...) of the names of classes."""
    if isinstance(preprocessor, ImagePreprocessor):
        return torch.from_numpy(text_features(preprocessor.encoder, [prompt(name) for name in names]))
    assert isinstance(preprocessor, TextPreprocessor)
    return preprocessor.examples([phrase(name) for name in names]).take(np.arange(len(names)))


class ClassNames:
    """The name of the class of each example of a source, found by the content of the example.

    A support set states which of its rows belong together, and not what their class is called. Examples in several
    classes have several names.

    Attributes:
        names: of all classes of all splits.
    """

    def __init__(self, source: ClassTasks) -> None:
        members = {split: source.members(split) for split in SPLITS if split in source.class_names}
        self.names = list(dict.fromkeys(name for classes in members.values() for name in classes))
        self._splits: Mapping[str, Sequence[str]] = {split: list(classes) for split, classes in members.items()}
        self._of_content: dict[bytes, set[int]] = {}
        number = {name: position for position, name in enumerate(self.names)}
        for classes in members.values():
            for name, rows in classes.items():
                for start in range(0, len(rows), CHUNK):
                    for key in _keys(source.examples.take(np.asarray(rows)[start : start + CHUNK])):
                        self._of_content.setdefault(key, set()).add(number[name])

    def of_split(self, split: str) -> list[int]:
        """The numbers of the names of a split."""
        return [self.names.index(name) for name in self._splits.get(split, ())]

    def shares(self, inputs: Tree) -> Tensor:
        """(n, K), the shares of the names in each row of inputs (n, ...); 0 for a row that is not known."""
        keys = _keys(inputs)
        share_NK = torch.zeros(len(keys), len(self.names))
        for row, key in enumerate(keys):
            found = list(self._of_content.get(key, ()))
            share_NK[row, found] = 1 / max(len(found), 1)
        return share_NK


def _keys(inputs: Tree) -> list[bytes]:
    return content_hashes(tree_map(lambda leaf: leaf.float() if leaf.is_floating_point() else leaf, inputs))


class NamedMeans(Opponent):
    r"""The cosine to the mean of each class, where its name counts as $\kappa$ rows:

    $$ p_c = \frac{\sum_i w_i y_{ic} f_i + \kappa \, g_c}{\sum_i w_i y_{ic} + \kappa} $$

    $g_c$ are the features of the name of the class, by `ClassNames` the mean over its support rows. A class without a
    known name has its mean. The state is that of `HeadLearner`.

    Args:
        embedding, head, objective: as in `Opponent`; the head is of `ClassMeans`.
        names: of examples.
        feat_KD: the prepared features of the names.
        strength: $\kappa$; infinite for the names alone, which is zero-shot classification.
    """

    name_features: Tensor

    @check_arguments
    def __init__(
        self,
        embedding: nn.Module,
        head: Prepared,
        names: ClassNames,
        feat_KD: Tensor,
        strength: PositiveOrInfinite,
        objective: Objective,
    ) -> None:
        super().__init__(embedding, head, objective)
        self.names, self.strength = names, strength
        self.register_buffer("name_features", feat_KD)

    def fit(self, support: Batch, features: Tensor, statistics: Statistics) -> Tree:
        state = super().fit(support, features, statistics)
        mean_CD = state["head"]["means"]
        share_NK = self.names.shares(support.inputs).to(mean_CD)
        share_NC = (support.targets * support.weight[:, None]).to(mean_CD)
        share_CK = share_NC.mT @ share_NK
        known_C1, count_C1 = share_CK.sum(1, keepdim=True), share_NC.sum(0)[:, None]
        name_CD = share_CK @ self.name_features.to(mean_CD) / known_C1.clamp_min(1e-12)
        part_C1 = 1 / (1 + count_C1 / self.strength)  # of the name; 1 for an infinite strength
        means = torch.where(known_C1 > 0, (1 - part_C1) * mean_CD + part_C1 * name_CD, mean_CD)
        return state | {"head": {"means": means}}

    def extend(self, state: Tree, support: Batch) -> Tree:
        return Learner.extend(self, state, support)
