"""The table that the contract tests go through: one row a learner."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

import kshot
from kshot import Batch, Learner, Task, objectives
from kshot.learners import SupportMean


class Row(NamedTuple):
    """A learner under test.

    Attributes:
        make: ways -> learner, for inputs (n, 1, 8, 8) and one-hot targets, or (n, 1) to (n, 1) for regression.
        exact: whether the meta-gradient is the exact derivative; an approximation is tested against its formula.
        regression: whether the tasks are sinusoids.
        transductive: declared so.
        trains: whether it has meta-parameters.
    """

    make: Callable[[int], Learner]
    exact: bool = True
    regression: bool = False
    transductive: bool = False
    trains: bool = True


def small_conv(outputs: int | None, *, norm: bool = True) -> nn.Module:
    """A convolutional net that is smooth (Softplus), so that finite differences hold."""
    layers = [nn.Conv2d(1, 3, 3, stride=2, padding=1), nn.BatchNorm2d(3) if norm else nn.Identity(), nn.Softplus()]
    layers += [nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4) if norm else nn.Identity(), nn.Softplus()]
    body = nn.Sequential(*layers, nn.Flatten())
    return nn.Sequential(body, nn.Linear(16, outputs)) if outputs else body


def wave() -> nn.Module:
    return nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))


ZOO = {
    "maml": Row(lambda ways: kshot.maml(small_conv(ways), inner_lr=0.2, steps=2)),
    "maml, running BatchNorm": Row(lambda ways: kshot.maml(small_conv(ways), inner_lr=0.2, batchnorm="running")),
    "maml, transductive": Row(
        lambda ways: kshot.maml(small_conv(ways), inner_lr=0.2, batchnorm="query"), transductive=True
    ),
    "maml, head only": Row(lambda ways: kshot.maml(small_conv(ways), inner_lr=0.2, steps=2, adaptable="1.*")),
    "maml, regression": Row(
        lambda ways: kshot.maml(wave(), inner_lr=0.05, steps=3, objective=objectives.mse), regression=True
    ),
    "fomaml": Row(lambda ways: kshot.maml(small_conv(ways), inner_lr=0.2, steps=2, order=1), exact=False),
    "protonet": Row(lambda ways: kshot.protonet(small_conv(None))),
    "protonet, cosine": Row(lambda ways: kshot.protonet(small_conv(None, norm=False), distance="cosine")),
    "from scratch": Row(lambda ways: kshot.from_scratch(small_conv(ways), inner_lr=0.1, steps=5), exact=False),
    "fine-tune": Row(lambda ways: kshot.fine_tune(small_conv(ways), inner_lr=0.1, steps=5), exact=False),
    "nearest centroid": Row(lambda ways: kshot.nearest_centroid(), trains=False),
    "support mean": Row(lambda ways: SupportMean(objectives.mse), regression=True, trains=False),
}


def make_task(row: Row, ways: int = 3, shots: int = 2, queries: int = 3, *, seed: int = 0, dtype=torch.float32) -> Task:
    """A task that the row's learner can solve: noisy class patterns, or a line with a random slope."""
    random = torch.Generator().manual_seed(seed)
    if row.regression:
        slope = torch.randn((), generator=random)
        x = torch.randn(shots * ways + queries * ways, 1, generator=random)
        split = shots * ways
        parts = [(x[:split], slope * x[:split]), (x[split:], slope * x[split:])]
        return Task(
            *(Batch.of(inputs.to(dtype), y.to(dtype), weight=torch.ones(len(y), dtype=dtype)) for inputs, y in parts)
        )
    patterns = torch.randn(ways, 1, 8, 8, generator=random)

    def batch(count: int) -> Batch:
        labels = torch.arange(ways).repeat(count)
        noise = 0.3 * torch.randn(len(labels), 1, 8, 8, generator=random)
        made = Batch.of(patterns[labels] + noise, labels, ways=ways)
        return Batch(*(leaf.to(dtype) for leaf in made))

    return Task(batch(shots), batch(queries))
