"""Small synthetic tasks for the checks of learners: class patterns, linear functions, texts, and series.

Shape legend: n examples, L symbols of a window.
"""

from __future__ import annotations

import math

import torch

from kshot import objectives
from kshot.objectives import Objective
from kshot.types import Batch, Task

SYMBOLS, WINDOW = 8, 3
"""Vocabulary size and window length of the texts."""
CONTEXT, HORIZON, SEASON = 12, 3, 4
"""Steps of the context, of the forecast and of the season of the series."""


def make_task(
    objective: Objective = objectives.classification,
    ways: int = 3,
    shots: int = 2,
    queries: int = 3,
    *,
    inputs: tuple[int, ...] | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Task:
    """A small task that a learner of the objective can solve.

    It follows what the objective predicts. Classes: a random pattern for each class, with noise. Labels: sums of such
    patterns, each in half of the examples. Masks: a square of each class on noise, (n, 2, 8, 8). Tokens: a text that
    counts modulo 6 in steps of a random size, windows (n, 3) of 8 symbols. Forecasts: windows (n, 12, 1) of a series
    with a season of 4 steps, each 3 steps after the one before, and the 3 values that follow. Else regression: a linear
    function of random slope, targets (n, 1).

    Args:
        objective: loss and metrics of the learner.
        ways: number of classes or labels; elsewhere it multiplies `shots` and `queries`.
        shots: support examples of each class.
        queries: query examples of each class.
        inputs: shape of one example; (1, 8, 8) for classes and labels, and (1,) for regression by default.
        seed: random seed of the task.
        dtype: type of the floating-point tensors.

    Example:
        >>> make_task(ways=5, shots=1).support.inputs.shape
        torch.Size([5, 1, 8, 8])
    """
    random = torch.Generator().manual_seed(seed)
    if objective.predicts == "tokens":
        return _text(shots * ways, queries * ways, random, dtype)
    if objective.predicts == "labels":
        return _sums_of_patterns(ways, shots, queries, inputs or (1, 8, 8), random, dtype)
    if objective.predicts == "masks":
        return _squares(shots * ways, queries * ways, inputs or (1, 8, 8), random, dtype)
    if objective.classifies:
        return _patterns(ways, shots, queries, inputs or (1, 8, 8), random, dtype)
    if objective.name and objective.name.startswith("forecast"):
        return _series(shots * ways, queries * ways, random, dtype)
    return _line(shots * ways, queries * ways, inputs or (1,), random, dtype)


def _patterns(
    ways: int, shots: int, queries: int, shape: tuple[int, ...], random: torch.Generator, dtype: torch.dtype
) -> Task:
    patterns = torch.randn(ways, *shape, generator=random)

    def batch(count: int) -> Batch:
        labels = torch.arange(ways).repeat(count)
        noise = 0.3 * torch.randn(len(labels), *shape, generator=random)
        return Batch(*(leaf.to(dtype) for leaf in Batch.of(patterns[labels] + noise, labels, ways=ways)))

    return Task(batch(shots), batch(queries))


def _sums_of_patterns(
    ways: int, shots: int, queries: int, shape: tuple[int, ...], random: torch.Generator, dtype: torch.dtype
) -> Task:
    patterns = torch.randn(ways, *shape, generator=random)

    def batch(count: int) -> Batch:
        labels = (torch.rand(count * ways, ways, generator=random) < 0.5).to(patterns.dtype)
        labels[torch.arange(ways), torch.arange(ways)] = 1  # each label is true of some example
        noise = 0.3 * torch.randn(len(labels), *shape, generator=random)
        inputs = torch.tensordot(labels, patterns, 1) + noise
        return Batch(*(leaf.to(dtype) for leaf in Batch.of(inputs, labels)))

    return Task(batch(shots), batch(queries))


def _squares(support: int, query: int, shape: tuple[int, ...], random: torch.Generator, dtype: torch.dtype) -> Task:
    count, (_, height, width) = support + query, shape
    y, x = (torch.randint(0, side // 2 + 1, (count, 1, 1), generator=random) for side in (height, width))
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    inside = (rows >= y) & (rows < y + height // 2) & (columns >= x) & (columns < x + width // 2)
    shade = 2 * (torch.rand((), generator=random) < 0.5) - 1  # brighter or darker than the rest of this task's images
    inputs = shade * inside[:, None] + 0.2 * torch.randn(count, *shape, generator=random)
    targets = torch.stack([~inside, inside], 1)
    examples = Batch(inputs.to(dtype), targets.to(dtype), torch.ones(count, dtype=dtype))
    return Task(examples.rows(slice(support)), examples.rows(slice(support, None)))


def _line(support: int, query: int, shape: tuple[int, ...], random: torch.Generator, dtype: torch.dtype) -> Task:
    slope = torch.randn(math.prod(shape), generator=random)
    x = torch.randn(support + query, *shape, generator=random)
    y = (slope * x.flatten(1)).sum(1, keepdim=True)
    examples = Batch.of(x.to(dtype), y.to(dtype), weight=torch.ones(len(x), dtype=dtype))
    return Task(examples.rows(slice(support)), examples.rows(slice(support, None)))


def _series(support: int, query: int, random: torch.Generator, dtype: torch.dtype) -> Task:
    windows = support + query
    steps = torch.arange((windows - 1) * HORIZON + CONTEXT + HORIZON)
    season = 3 * torch.randn(SEASON, generator=random)
    level = torch.randn(len(steps), generator=random).cumsum(0) + 20 * torch.randn((), generator=random)
    cut = (level + season[steps % SEASON]).to(dtype).unfold(0, CONTEXT + HORIZON, HORIZON)
    weight = torch.ones(windows, dtype=dtype)
    examples = Batch(cut[:, :CONTEXT, None].contiguous(), cut[:, CONTEXT:].contiguous(), weight)
    return Task(examples.rows(slice(support)), examples.rows(slice(support, None)))


def _text(support: int, query: int, random: torch.Generator, dtype: torch.dtype) -> Task:
    windows = support + query
    step = int(torch.randint(1, SYMBOLS - 2, (), generator=random))
    text = 2 + torch.arange(windows * WINDOW + 1) * step % (SYMBOLS - 2)
    rare = torch.rand(len(text), generator=random) < 0.1
    text = torch.where(rare, torch.randint(2, SYMBOLS, text.shape, generator=random), text)
    examples = Batch.of(
        text[:-1].view(windows, -1), text[1:].view(windows, -1), weight=torch.ones(windows, dtype=dtype)
    )
    return Task(examples.rows(slice(support)), examples.rows(slice(support, None)))
