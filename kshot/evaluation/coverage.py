"""How much of a catalogue is recommended to anybody: what a figure a user does not see."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kshot.learner import Learner
from kshot.objectives import ranking
from kshot.sources.ratings.tasks import RatingTasks
from kshot.types import Task, Tree, to, tree_map

TOP = 10
"""How many items a user is thought to be shown."""


class Coverage(NamedTuple):
    """The share of a catalogue that is among the first `top` items of one user or another."""

    share: float
    top: int
    users: int
    items: int

    def __str__(self) -> str:
        return f"{self.share:.2%} of {self.items:,} items are among the first {self.top} of one of {self.users:,} users"


class Covering:
    """Ranks the whole catalogue for one task after another; `result` says how much of it was recommended.

    A task's user is shown the items with the highest ratings to expect, those of the support left out. A user who comes
    again counts as another.

    Args:
        learner: that adapted.
        source: of the tasks.
    """

    def __init__(self, learner: Learner, source: RatingTasks) -> None:
        self.learner, self.preprocessor = learner, source.preprocessor
        self.top = min(TOP, len(source.preprocessor.items))
        self.shown: list[Tensor] = []

    def add(self, task: Task, state: Tree) -> None:
        """Rank for the user of a task, after adapting to it."""
        inputs, real = task.support.inputs, task.support.weight > 0
        of_user = inputs.get("user_features")
        whole = self.preprocessor.all_items(None if of_user is None else of_user[:1].cpu())
        prediction = self.learner.predict(state, to(whole, task.support.weight.device))
        scores = self.preprocessor.expected(tree_map(lambda leaf: leaf.cpu(), prediction))
        given = inputs["item"][real].cpu()
        scores[given[given > 0] - 1] = -torch.inf
        self.shown.append(scores.argsort(descending=True, stable=True)[: self.top])

    def result(self) -> Coverage | None:
        """What came of it; None without a task."""
        if not self.shown:
            return None
        items = len(self.preprocessor.items)
        return Coverage(float(ranking.coverage(torch.stack(self.shown), items)), self.top, len(self.shown), items)
