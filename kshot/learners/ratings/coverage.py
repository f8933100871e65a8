"""Catalogue coverage: the share of all items that is recommended to at least one user."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kshot.learner import Learner
from kshot.objectives import ranking
from kshot.sources.ratings.source import RatingTasks
from kshot.types import Task, Tree, to, tree_map

TOP = 10
"""Length of the list recommended to a user."""


class Coverage(NamedTuple):
    """The share of a catalogue's `items` that is among the first `top` recommended to one of `users` users."""

    share: float
    top: int
    users: int
    items: int

    def __str__(self) -> str:
        return f"{self.share:.2%} of {self.items:,} items are among the first {self.top} of one of {self.users:,} users"


class CoverageMeter:
    """Ranks the whole catalogue for the user of one task after another; `result` is the coverage of those lists.

    A user is recommended the items with the highest expected ratings, without those of the support. Each task counts as
    a user.

    Args:
        learner: recommender.
        source: source of the tasks.
    """

    def __init__(self, learner: Learner, source: RatingTasks) -> None:
        self.learner, self.preprocessor = learner, source.preprocessor
        self.top = min(TOP, len(source.preprocessor.items))
        self.lists: list[Tensor] = []

    def add(self, task: Task, state: Tree) -> None:
        """Rank the catalogue for a task's user, from the state adapted to its support."""
        inputs, real = task.support.inputs, task.support.weight > 0
        features = inputs.get("user_features")
        catalogue = self.preprocessor.whole(None if features is None else features[:1].cpu())
        with torch.no_grad():
            prediction = self.learner.predict(state, to(catalogue, task.support.weight.device))
        scores = self.preprocessor.expected(tree_map(lambda leaf: leaf.cpu(), prediction))
        rated = inputs["item"][real].cpu()
        scores[rated[rated > 0] - 1] = -torch.inf
        self.lists.append(scores.argsort(descending=True, stable=True)[: self.top])

    def result(self) -> Coverage | None:
        """The coverage of all lists; None if there are none."""
        if not self.lists:
            return None
        items = len(self.preprocessor.items)
        return Coverage(float(ranking.coverage(torch.stack(self.lists), items)), self.top, len(self.lists), items)
