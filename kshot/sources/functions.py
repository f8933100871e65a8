"""Tasks made of mathematics: no data needed, every answer known."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any, Literal, get_args

import numpy as np
import torch

from kshot import objectives
from kshot.annotations import NonNegativeFloat, PositiveFloat, PositiveFloatPair, PositiveInt
from kshot.tasks.sampling import Range, Size
from kshot.tasks.source import TaskSource, generator
from kshot.types import Batch, Split, Task, Tree, tree_map

Kernel = Literal["rbf", "matern52", "periodic"]
TargetType = Literal["mean", "spread"]


class Sinusoids(TaskSource):
    r"""Regress a sine wave from K points; a task is one amplitude and phase.

    $$ y = a \sin(x - \varphi), \quad a \sim U[0.1, 5], \; \varphi \sim U[0, \pi], \; x \sim U[-5, 5]. $$

    Inputs and targets are (shots, 1) in the support and (queries, 1) in the query.

    Args:
        shots: support points of a task.
        queries: query points of a task.
        noise: standard deviation of what is added to each target.
        ask: for the "mean" (`objectives.mse`), or for a mean and its "spread" (`objectives.gaussian`).
        seed: names the sequence of tasks.

    Example:
        >>> task = Sinusoids(shots=10).task("train", 0)
        >>> task.support.inputs.shape
        torch.Size([10, 1])

    References:
        Finn, Abbeel, Levine: Model-Agnostic Meta-Learning, ICML 2017, arXiv:1703.03400, section 5.1.
    """

    def __init__(
        self,
        *,
        shots: PositiveInt = 10,
        queries: PositiveInt = 10,
        noise: NonNegativeFloat = 0.0,
        target_type: TargetType = "mean",
        seed: int = 0,
    ) -> None:
        if shots < 1 or queries < 1:
            raise ValueError(f"a task needs at least one support and one query point, got {shots=}, {queries=}")
        if noise < 0:
            raise ValueError(f"noise must be at least 0, got {noise}")
        if target_type not in get_args(TargetType):
            raise ValueError(f"target_type must be one of {', '.join(get_args(TargetType))}, got {target_type!r}")
        self.shots, self.queries, self.noise, self.target_type, self.seed = shots, queries, noise, target_type, seed
        self.objective = objectives.mse if target_type == "mean" else objectives.gaussian

    def task(self, split: Split, index: int) -> Task:
        return tree_map(lambda leaf: leaf[0], self.stack(split, [index]))

    def stack(self, split: Split, indices: Sequence[int]) -> Task:
        points = self.shots + self.queries
        random = [generator(self.seed, split, index) for index in indices]
        draws = np.stack([each.random(2 + points) for each in random])
        amplitude, phase = 0.1 + 4.9 * draws[:, :1], np.pi * draws[:, 1:2]
        at = 10 * draws[:, 2:] - 5
        y = amplitude * np.sin(at - phase)
        if self.noise:
            y = y + self.noise * np.stack([each.normal(size=points) for each in random])
        return _tasks(at, y, np.ones(at.shape), self.shots)

    def with_shots(self, shots: int) -> Sinusoids:
        return Sinusoids(
            shots=shots, queries=self.queries, noise=self.noise, target_type=self.target_type, seed=self.seed
        )

    def describe(self) -> dict[str, Any]:
        about = {"source": "sinusoids", "shots": self.shots, "queries": self.queries, "seed": self.seed}
        return about | ({"noise": self.noise} if self.noise else {})


sinusoids = Sinusoids  # sources are made by lower-case names throughout


class GaussianProcesses(TaskSource):
    r"""Regress a function from a Gaussian process; a task is one function, with a length scale of its own.

    $$ f \sim \mathrm{GP}(0, k), \quad y = f(x) + \epsilon, \quad x \sim U[-2, 2], \quad
       \epsilon \sim N(0, \sigma^2), \quad \ell \sim U[\text{length\_scale}] $$

    with $k(r)$, of the distance $r = |x - x'|$:

    - rbf: $\exp(-r^2 / 2 \ell^2)$
    - matern52: $(1 + s + s^2 / 3) e^{-s}$ with $s = \sqrt5\, r / \ell$
    - periodic: $\exp(-2 \sin^2(\pi r / p) / \ell^2)$, with the period $p \sim U[\text{period}]$

    Inputs and targets are (shots' upper end, 1) in the support, ending in rows of weight 0, and (queries, 1) in the
    query.

    Args:
        kernel: "rbf", "matern52" or "periodic".
        length_scale: (low, high) of $\ell$.
        period: (low, high) of $p$; for the periodic kernel alone.
        noise: $\sigma$, above 0.
        shots: support points of a task; an int or (low, high), drawn anew for each task.
        queries: query points of a task.
        seed: names the sequence of tasks.

    Example:
        >>> source = GaussianProcesses(kernel="matern52", shots=(3, 20))
        >>> source.task("train", 0).support.inputs.shape
        torch.Size([20, 1])
        >>> sorted(source.posterior("train", 0))
        ['mean', 'std']

    References:
        Rasmussen, Williams: Gaussian Processes for Machine Learning, 2006, chapters 2 and 4.
    """

    objective = objectives.gaussian

    def __init__(
        self,
        *,
        kernel: Kernel = "rbf",
        length_scale: PositiveFloatPair = (0.2, 1.0),
        period: PositiveFloatPair = (1.0, 2.0),
        noise: PositiveFloat = 0.05,
        shots: Size = (3, 30),
        queries: PositiveInt = 50,
        seed: int = 0,
    ) -> None:
        if kernel not in get_args(Kernel):
            raise ValueError(f"kernel must be one of {', '.join(get_args(Kernel))}, got {kernel!r}")
        for name, ends in (("length_scale", length_scale), ("period", period)):
            if len(ends) != 2 or not 0 < ends[0] <= ends[1]:
                raise ValueError(f"{name} must be two numbers above 0 that do not fall, got {ends!r}")
        if noise <= 0 or queries < 1:
            raise ValueError(f"noise must be above 0, and queries at least 1, got {noise=}, {queries=}")
        self.kernel, self.noise, self.queries, self.seed = kernel, noise, queries, seed
        self.length_scale, self.period, self.shots = tuple(length_scale), tuple(period), Range.of(shots, "shots", 1)

    def task(self, split: Split, index: int) -> Task:
        return tree_map(lambda leaf: leaf[0], self.stack(split, [index]))

    def stack(self, split: Split, indices: Sequence[int]) -> Task:
        at, covariance, draws, shots = self._drawn(split, indices)
        y = (np.linalg.cholesky(covariance) @ draws[..., None])[..., 0]
        weight = np.arange(at.shape[1]) < shots[:, None]
        weight[:, self.shots.high :] = True
        return _tasks(at, y, weight.astype(np.float64), self.shots.high)

    def posterior(self, split: Split, index: int) -> Tree:
        r"""What is known of a task's query targets by whoever knows its kernel: {"mean": (m, 1), "std": (m, 1)}.

        $$ \mu_* = K_{*n} (K_{nn} + \sigma^2 I)^{-1} y, \qquad
           \sigma^2_* = \mathrm{diag}\bigl(K_{**} + \sigma^2 I - K_{*n} (K_{nn} + \sigma^2 I)^{-1} K_{n*}\bigr) $$

        No learner's log-likelihood is better, but by chance.
        """
        _, (covariance,), _, (shots,) = self._drawn(split, [index])
        seen, asked = slice(0, shots), slice(self.shots.high, None)
        factor = np.linalg.cholesky(covariance[seen, seen])
        half = np.linalg.solve(factor, covariance[seen, asked])
        targets = self.task(split, index).support.targets[seen, 0].double().numpy()
        mean = half.T @ np.linalg.solve(factor, targets)
        std = np.sqrt(np.diag(covariance)[asked] - (half**2).sum(0))
        return {name: torch.from_numpy(leaf).float()[:, None] for name, leaf in (("mean", mean), ("std", std))}

    def with_shots(self, shots: int) -> GaussianProcesses:
        other = copy(self)
        other.shots = Range.of(shots, "shots", 1)
        return other

    def describe(self) -> dict[str, Any]:
        about = {"source": "gaussian_processes", "kernel": self.kernel, "length_scale": list(self.length_scale)}
        about |= {"period": list(self.period)} if self.kernel == "periodic" else {}
        return about | {"noise": self.noise, "shots": self.shots.plain(), "queries": self.queries, "seed": self.seed}

    def _drawn(self, split: Split, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Inputs (T, n), the covariance of the targets (T, n, n), normal draws (T, n), and the shots (T,)."""
        points = self.shots.high + self.queries
        random = [generator(self.seed, split, index) for index in indices]
        draws = np.stack([each.random(3 + points) for each in random])
        normal = np.stack([each.normal(size=points) for each in random])
        scale, period = (
            (low + (high - low) * draws[:, place])[:, None, None]
            for place, (low, high) in enumerate((self.length_scale, self.period))
        )
        at = 4 * draws[:, 3:] - 2
        apart = np.abs(at[:, :, None] - at[:, None, :])
        covariance = _covariance(self.kernel, apart, scale, period) + self.noise**2 * np.eye(points)
        return at, covariance, normal, self.shots.at(draws[:, 2])


gaussian_processes = GaussianProcesses


def _covariance(kernel: Kernel, apart: np.ndarray, scale: np.ndarray, period: np.ndarray) -> np.ndarray:
    if kernel == "rbf":
        return np.exp(-((apart / scale) ** 2) / 2)
    if kernel == "periodic":
        return np.exp(-2 * (np.sin(np.pi * apart / period) / scale) ** 2)
    steps = np.sqrt(5) * apart / scale
    return (1 + steps + steps**2 / 3) * np.exp(-steps)


def _tasks(at: np.ndarray, y: np.ndarray, weight: np.ndarray, support: int) -> Task:
    """A stack of tasks of points (T, n), of which the first are the support set."""
    x, targets, rows = (torch.from_numpy(leaf.astype(np.float32)) for leaf in (at, y, weight))
    parts = slice(0, support), slice(support, None)
    return Task(*(Batch(x[:, part, None], targets[:, part, None], rows[:, part]) for part in parts))
