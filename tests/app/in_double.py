"""A source and a model of float64 for run files, so that figures of several processes can be compared closely."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from kshot import Task, models, objectives
from kshot.sources.functions import Sinusoids
from kshot.supplied import InputShape, NumOutputs, Seed
from kshot.types import Split, tree_map


class Doubled(Sinusoids):
    def task(self, split: Split, index: int) -> Task:
        return tree_map(lambda leaf: leaf.double(), super().task(split, index))

    def stack(self, split: Split, indices: Sequence[int]) -> Task:
        return tree_map(lambda leaf: leaf.double(), super().stack(split, indices))


def sinusoids(*, seed: Seed = 0) -> Doubled:
    return Doubled(10, 10, 0.0, objectives.mse, seed)


def mlp(inputs: InputShape, outputs: NumOutputs, seed: Seed) -> nn.Module:
    return models.mlp(inputs[0], outputs, hidden=(8,)).double()
