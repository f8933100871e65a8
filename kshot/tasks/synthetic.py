"""Tasks made of mathematics: no data needed, every answer known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from kshot import objectives
from kshot.tasks.source import TaskSource, generator
from kshot.types import Batch, Split, Task, tree_map


class Sinusoids(TaskSource):
    r"""Regress a sine wave from K points; a task is one amplitude and phase.

    $$ y = a \sin(x - \varphi), \quad a \sim U[0.1, 5], \; \varphi \sim U[0, \pi], \; x \sim U[-5, 5]. $$

    Inputs and targets are (shots, 1) in the support and (queries, 1) in the query.

    Args:
        shots: support points of a task.
        queries: query points of a task.
        seed: names the sequence of tasks.

    Example:
        >>> task = Sinusoids(shots=10).task("train", 0)
        >>> task.support.inputs.shape
        torch.Size([10, 1])

    References:
        Finn, Abbeel, Levine: Model-Agnostic Meta-Learning, ICML 2017, arXiv:1703.03400, section 5.1.
    """

    objective = objectives.mse

    def __init__(self, *, shots: int = 10, queries: int = 10, seed: int = 0) -> None:
        if shots < 1 or queries < 1:
            raise ValueError(f"a task needs at least one support and one query point, got {shots=}, {queries=}")
        self.shots, self.queries, self.seed = shots, queries, seed

    def task(self, split: Split, index: int) -> Task:
        return tree_map(lambda leaf: leaf[0], self.stack(split, [index]))

    def stack(self, split: Split, indices: Sequence[int]) -> Task:
        points = self.shots + self.queries
        draws = np.stack([generator(self.seed, split, index).random(2 + points) for index in indices])
        amplitude, phase = 0.1 + 4.9 * draws[:, :1], np.pi * draws[:, 1:2]
        at = 10 * draws[:, 2:] - 5
        x, y = (torch.from_numpy(a.astype(np.float32))[..., None] for a in (at, amplitude * np.sin(at - phase)))
        weight = torch.ones(x.shape[:2])
        parts = slice(0, self.shots), slice(self.shots, None)
        return Task(*(Batch(x[:, part], y[:, part], weight[:, part]) for part in parts))

    def describe(self) -> dict[str, Any]:
        return {"source": "sinusoids", "shots": self.shots, "queries": self.queries, "seed": self.seed}


sinusoids = Sinusoids  # sources are made by lower-case names throughout
