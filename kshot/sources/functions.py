"""Tasks from mathematical functions: no data needed, and the true function is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from kshot import objectives
from kshot.annotations import NonNegativeFloat, PositiveFloat, PositiveFloatPair, PositiveInt, Size
from kshot.argument_checks import check_arguments
from kshot.objectives import Objective
from kshot.supplied import Seed
from kshot.tasks.sampling import Range
from kshot.tasks.source import StackedSource, generator, if_any
from kshot.types import Batch, Split, Task, Tree

Kernel = Literal["rbf", "matern52", "periodic"]


@check_arguments
def sinusoids(
    *,
    shots: PositiveInt = 10,
    queries: PositiveInt = 10,
    noise: NonNegativeFloat = 0.0,
    target_type: Literal["regression", "distribution"] = "regression",
    seed: Seed = 0,
) -> Sinusoids:
    r"""Regress a sine wave from a few points; a task is an amplitude and a phase.

    $$ y = a \sin(x - \varphi), \quad a \sim U[0.1, 5], \; \varphi \sim U[0, \pi], \; x \sim U[-5, 5]. $$

    Inputs and targets are (shots, 1) in the support and (queries, 1) in the query.

    Args:
        shots, queries: number of points.
        noise: standard deviation of Gaussian noise on the targets.
        target_type: "regression" of the target (`objectives.mse`), or prediction of its "distribution", a mean and a
            standard deviation (`objectives.gaussian`).
        seed: random seed of task sampling.

    Example:
        >>> task = sinusoids(shots=10).task("train", 0)
        >>> task.support.inputs.shape
        torch.Size([10, 1])

    References:
        Finn, Abbeel, Levine: Model-Agnostic Meta-Learning, ICML 2017, arXiv:1703.03400, section 5.1.
    """
    objective = objectives.mse if target_type == "regression" else objectives.gaussian
    return Sinusoids(shots, queries, noise, objective, seed)


@dataclass(eq=False)
class Sinusoids(StackedSource):
    """Tasks of `sinusoids`."""

    shots: int
    queries: int
    noise: float
    objective: Objective
    seed: int

    def stack(self, split: Split, indices: Sequence[int]) -> Task:
        num_points = self.shots + self.queries
        generators = [generator(self.seed, split, index) for index in indices]
        draws = np.stack([random.random(2 + num_points) for random in generators])
        amplitude, phase = 0.1 + 4.9 * draws[:, :1], np.pi * draws[:, 1:2]
        x = 10 * draws[:, 2:] - 5
        y = amplitude * np.sin(x - phase)
        if self.noise:
            y = y + self.noise * np.stack([random.normal(size=num_points) for random in generators])
        return _tasks(x, y, np.ones(x.shape), self.shots)

    @property
    def training_settings(self) -> dict[str, Any]:
        """The numbers of `shots` and `queries`."""
        return {"shots": self.shots, "queries": self.queries}

    @check_arguments
    def with_training(self, *, shots: PositiveInt | None = None, queries: PositiveInt | None = None) -> Sinusoids:
        return replace(self, shots=shots or self.shots, queries=queries or self.queries)

    def with_shots(self, shots: int) -> Sinusoids:
        return replace(self, shots=shots)

    def describe(self) -> dict[str, Any]:
        about = {"source": "sinusoids", "shots": self.shots, "queries": self.queries, "seed": self.seed}
        return about | if_any(noise=self.noise)


@check_arguments
def gaussian_processes(
    *,
    kernel: Kernel = "rbf",
    length_scale: PositiveFloatPair = (0.2, 1.0),
    period: PositiveFloatPair = (1.0, 2.0),
    noise: PositiveFloat = 0.05,
    shots: Size = (3, 30),
    queries: PositiveInt = 50,
    seed: Seed = 0,
) -> GaussianProcesses:
    r"""Regress a function from a Gaussian process; a task is a function with its own length scale.

    $$ f \sim \mathrm{GP}(0, k), \quad y = f(x) + \epsilon, \quad x \sim U[-2, 2], \quad
       \epsilon \sim N(0, \sigma^2), \quad \ell \sim U[\text{length\_scale}] $$

    Inputs and targets are (largest number of shots, 1) in the support, padded with rows of weight 0, and (queries, 1)
    in the query.

    Args:
        kernel: $k(r)$ of the distance $r = |x - x'|$: "rbf" is $\exp(-r^2 / 2 \ell^2)$, "matern52" is
            $(1 + s + s^2 / 3) e^{-s}$ with $s = \sqrt5\, r / \ell$, and "periodic" is
            $\exp(-2 \sin^2(\pi r / p) / \ell^2)$ with the period $p \sim U[\text{period}]$.
        length_scale, period: (low, high) of $\ell$ and $p$.
        noise: $\sigma$, positive.
        shots: number of support points, an int or (low, high), drawn for each task.
        queries, seed: as in `sinusoids`.

    Example:
        >>> source = gaussian_processes(kernel="matern52", shots=(3, 20))
        >>> source.task("train", 0).support.inputs.shape
        torch.Size([20, 1])
        >>> sorted(source.posterior("train", 0))
        ['mean', 'std']

    References:
        Rasmussen, Williams: Gaussian Processes for Machine Learning, 2006, chapters 2 and 4.
    """
    for name, ends in (("length_scale", length_scale), ("period", period)):
        if ends[0] > ends[1]:
            raise ValueError(f"{name} must be a range (low, high) that does not fall, got {ends!r}")
    sizes = Range.of(shots, "shots", 1), queries, seed
    return GaussianProcesses(kernel, tuple(length_scale), tuple(period), noise, *sizes)


@dataclass(eq=False)
class GaussianProcesses(StackedSource):
    """Tasks of `gaussian_processes`."""

    kernel: Kernel
    length_scale: tuple[float, ...]
    period: tuple[float, ...]
    noise: float
    shots: Range
    queries: int
    seed: int
    objective = objectives.gaussian

    def stack(self, split: Split, indices: Sequence[int]) -> Task:
        x, covariance, normal, shots = self._draw(split, indices)
        y = (np.linalg.cholesky(covariance) @ normal[..., None])[..., 0]
        weight = np.arange(x.shape[1]) < shots[:, None]
        weight[:, self.shots.high :] = True
        return _tasks(x, y, weight.astype(np.float64), self.shots.high)

    def posterior(self, split: Split, index: int) -> Tree:
        r"""The exact posterior of the query targets of a task: {"mean": (m, 1), "std": (m, 1)}.

        $$ \mu_* = K_{*n} (K_{nn} + \sigma^2 I)^{-1} y, \qquad
           \sigma^2_* = \mathrm{diag}\bigl(K_{**} + \sigma^2 I - K_{*n} (K_{nn} + \sigma^2 I)^{-1} K_{n*}\bigr), $$

        whose expected log-likelihood is an upper bound for every learner.
        """
        _, (covariance,), _, (shots,) = self._draw(split, [index])
        support, query = slice(0, shots), slice(self.shots.high, None)
        factor = np.linalg.cholesky(covariance[support, support])
        half = np.linalg.solve(factor, covariance[support, query])
        targets = self.task(split, index).support.targets[support, 0].double().numpy()
        mean = half.T @ np.linalg.solve(factor, targets)
        std = np.sqrt(np.diag(covariance)[query] - (half**2).sum(0))
        return {name: torch.from_numpy(leaf).float()[:, None] for name, leaf in (("mean", mean), ("std", std))}

    @property
    def training_settings(self) -> dict[str, Any]:
        """The numbers of `shots` and `queries`."""
        return {"shots": self.shots.plain(), "queries": self.queries}

    @check_arguments
    def with_training(self, *, shots: Size | None = None, queries: PositiveInt | None = None) -> GaussianProcesses:
        range_ = self.shots if shots is None else Range.of(shots, "shots", 1)
        return replace(self, shots=range_, queries=queries or self.queries)

    def with_shots(self, shots: int) -> GaussianProcesses:
        return replace(self, shots=Range.of(shots, "shots", 1))

    def describe(self) -> dict[str, Any]:
        about = {"source": "gaussian_processes", "kernel": self.kernel, "length_scale": list(self.length_scale)}
        about |= {"period": list(self.period)} if self.kernel == "periodic" else {}
        return about | {"noise": self.noise, "shots": self.shots.plain(), "queries": self.queries, "seed": self.seed}

    def _draw(self, split: Split, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Inputs (T, n), covariance of the targets (T, n, n), standard normal draws (T, n), and shots (T,)."""
        num_points = self.shots.high + self.queries
        generators = [generator(self.seed, split, index) for index in indices]
        draws = np.stack([random.random(3 + num_points) for random in generators])
        normal = np.stack([random.normal(size=num_points) for random in generators])
        scale, period = (
            (low + (high - low) * draws[:, column])[:, None, None]
            for column, (low, high) in enumerate((self.length_scale, self.period))
        )
        x = 4 * draws[:, 3:] - 2
        distance = np.abs(x[:, :, None] - x[:, None, :])
        covariance = _covariance(self.kernel, distance, scale, period) + self.noise**2 * np.eye(num_points)
        return x, covariance, normal, self.shots.at(draws[:, 2])


def _covariance(kernel: Kernel, distance: np.ndarray, scale: np.ndarray, period: np.ndarray) -> np.ndarray:
    if kernel == "rbf":
        return np.exp(-((distance / scale) ** 2) / 2)
    if kernel == "periodic":
        return np.exp(-2 * (np.sin(np.pi * distance / period) / scale) ** 2)
    scaled = np.sqrt(5) * distance / scale
    return (1 + scaled + scaled**2 / 3) * np.exp(-scaled)


def _tasks(x: np.ndarray, y: np.ndarray, weight: np.ndarray, shots: int) -> Task:
    """A stack of tasks from points (T, n), of which the first `shots` are the support set."""
    inputs, targets, weights = (torch.from_numpy(leaf.astype(np.float32)) for leaf in (x, y, weight))
    parts = slice(0, shots), slice(shots, None)
    return Task(*(Batch(inputs[:, part, None], targets[:, part, None], weights[:, part]) for part in parts))
