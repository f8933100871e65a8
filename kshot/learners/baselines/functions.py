"""What an expert would use to learn a function of a few inputs from a few points: a Gaussian process.

Shape legend: T tasks, n rows, F inputs, D targets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from kshot.inner.precision import widest_float, without_autocast
from kshot.learner import Learner
from kshot.objectives import Objective
from kshot.tasks.read_log import during
from kshot.tasks.source import TaskSource, draw
from kshot.types import Batch, Tree, tree_map

Kernel = Literal["rbf", "matern52"]
NUM_TASKS = 64  # training tasks of which the marginal likelihood is maximised
MAX_INPUTS = 8
KERNELS: tuple[Kernel, ...] = ("rbf", "matern52")
LENGTH_FACTORS = (
    1.0,
    0.7,
    0.5,
)  # many points prefer longer length scales than few where the kernel is not the true one
LEAST_NOISE = 1e-6  # variance, relative to that of the function


class GaussianProcess(Learner):
    r"""Gaussian-process regression with a zero mean function and one length scale for each input.

    $$ \hat y(x) = k(x, X) \, (k(X, X) + \sigma^2 W^{-1})^{-1} y, \qquad
       k(x, x') = a^2 \kappa\bigl(\textstyle\sum_f (x_f - x'_f)^2 / \ell_f^2\bigr) $$

    with $\kappa(r^2) = e^{-r^2/2}$, or Matérn's of smoothness 5/2, and $W$ the row weights. Predictions are the mean
    (m, D), or for `objectives.gaussian` also the standard deviation of a new observation.

    Args:
        objective: a regression.
        length: length scales (F,).
        amplitude, noise: $a^2$ and $\sigma^2$.

    Example:
        >>> learner = GaussianProcess(kshot.objectives.mse, torch.ones(1), torch.tensor(4.0), torch.tensor(1e-6))
        >>> state = learner.adapt(Batch.of(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [2.0]])))
        >>> learner.predict(state, torch.tensor([[0.0], [1.0]])).round(decimals=3)[:, 0]
        tensor([0., 2.])

    References:
        Rasmussen, Williams: Gaussian Processes for Machine Learning, MIT Press 2006, algorithm 2.1.
    """

    length: Tensor
    amplitude: Tensor
    noise: Tensor

    def __init__(
        self, objective: Objective, length: Tensor, amplitude: Tensor, noise: Tensor, *, kernel: Kernel = "rbf"
    ) -> None:
        super().__init__(objective)
        self.kernel = kernel
        for name, value in (("length", length), ("amplitude", amplitude), ("noise", noise)):
            self.register_buffer(name, value.detach().clone())

    def rescaled(self, factor: float) -> GaussianProcess:
        """The same with other length scales."""
        length = factor * self.length
        return GaussianProcess(self.objective, length, self.amplitude, self.noise, kernel=self.kernel)

    def _adapt(self, support: Batch) -> Tree:
        wide = widest_float(support.weight.device)
        inputs, targets, root = support.inputs.to(wide), support.targets.to(wide), support.weight.to(wide).sqrt()
        with without_autocast(support.weight.device):
            factor = cholesky(self._covariance(inputs, inputs), root, self.noise.to(wide))
            coefficient = torch.cholesky_solve(root[:, None] * targets, factor)
        return {"inputs": inputs, "root": root, "factor": factor, "coefficient": coefficient}

    def predict(self, state: Tree, inputs: Tree) -> Tree:
        with without_autocast(inputs.device):
            cross = self._covariance(inputs.to(state["inputs"].dtype), state["inputs"]) * state["root"]
            mean = (cross @ state["coefficient"]).to(self.length.dtype)
            if self.objective.predicts != "distribution":
                return mean
            explained = torch.linalg.solve_triangular(state["factor"], cross.mT, upper=False).square().sum(0)
            variance = (self.amplitude - explained).clamp_min(0) + self.noise
        return {"mean": mean, "std": variance.sqrt().to(mean.dtype)[:, None].expand_as(mean)}

    def _covariance(self, one: Tensor, other: Tensor) -> Tensor:
        return covariance(one, other, self.length.to(one.dtype), self.amplitude.to(one.dtype), self.kernel)


def covariance(one: Tensor, other: Tensor, length: Tensor, amplitude: Tensor, kernel: Kernel) -> Tensor:
    """The covariances (..., n, m) of the function at inputs (..., n, F) and (..., m, F)."""
    square = ((one[..., :, None, :] - other[..., None, :, :]) / length).square().sum(-1)
    if kernel == "rbf":
        return amplitude * torch.exp(-0.5 * square)
    distance = (5 * square + 1e-12).sqrt()
    return amplitude * (1 + distance + distance.square() / 3) * torch.exp(-distance)


def cholesky(covariance: Tensor, root: Tensor, noise: Tensor) -> Tensor:
    """The Cholesky factor of $W^{1/2} K W^{1/2} + \\sigma^2 I$, with the square roots of the row weights."""
    eye = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    return torch.linalg.cholesky(root[..., :, None] * covariance * root[..., None, :] + noise * eye)


def gaussian_process(
    objective: Objective, tasks: Sequence[Batch], *, kernel: Kernel = "rbf", steps: int = 60
) -> GaussianProcess:
    r"""A Gaussian process whose hyperparameters maximise the marginal likelihood of training tasks.

    $$ \max_{\ell, a, \sigma} \sum_t \log N\bigl(y_t \mid 0, \, k(X_t, X_t) + \sigma^2 I\bigr) $$

    by L-BFGS on the logarithms, from the standard deviations of inputs and targets.

    Args:
        tasks: the examples of each training task: inputs (n, F), targets (n, D); their sizes may differ.

    Example:
        >>> source = kshot.sources.sinusoids()
        >>> learner = gaussian_process(source.objective, [source.task("train", index).query for index in range(20)])
        >>> float(kshot.evaluate(learner, source, num_tasks=20).metrics["mse"].mean) < 1.0
        True
    """
    wide = widest_float("cpu")
    inputs, targets = (torch.cat([getattr(each, name) for each in tasks]).to("cpu", wide) for name in Batch._fields[:2])
    scale = inputs.std(0).clamp_min(1e-6)
    variance = targets.square().mean().clamp_min(1e-12)
    length, amplitude, noise = scale.log(), variance.log(), (0.01 * variance).log()
    logs = [each.clone().requires_grad_() for each in (length, amplitude, noise)]
    optimizer = torch.optim.LBFGS(logs, max_iter=steps, line_search_fn="strong_wolfe")
    stacks = [tree_map(lambda leaf: leaf.to("cpu", wide), each) for each in _stacks_of_equal_size(tasks)]

    def parameters() -> tuple[Tensor, Tensor, Tensor]:
        length, amplitude, noise = (each.exp() for each in logs)
        return length, amplitude, noise + LEAST_NOISE * amplitude

    def loss() -> Tensor:
        optimizer.zero_grad()
        length, amplitude, noise = parameters()
        total, count = torch.zeros((), dtype=wide), 0.0
        for x, y, weight in stacks:
            root, outputs = weight.sqrt(), y.shape[-1]
            factor = cholesky(covariance(x, x, length, amplitude, kernel), root, noise)
            explained = torch.linalg.solve_triangular(factor, root[..., None] * y, upper=False)
            log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum()
            total = total + 0.5 * explained.square().sum() + outputs * log_det
            total = total - 0.5 * outputs * (root == 0).sum() * noise.log()  # padding adds nothing
            count += float(weight.sum()) * outputs
        mean = total / count + 1e-3 * sum((each - start).square().mean() for each, start in zip(logs, starts))
        mean.backward()
        return mean

    starts = (length, amplitude, noise)
    with torch.enable_grad():
        optimizer.step(loss)
    finite = all(math.isfinite(float(each.detach().sum())) for each in logs)
    fitted = parameters() if finite else [each.exp() for each in starts]
    return GaussianProcess(objective, *(each.to(torch.float32) for each in fitted), kernel=kernel)


def _stacks_of_equal_size(tasks: Sequence[Batch]) -> list[Batch]:
    """The tasks with n rows each as one batch (T, n, ...), for each n."""
    by_size: dict[int, list[Batch]] = {}
    for task in tasks:
        by_size.setdefault(len(task.weight), []).append(task)
    return [tree_map(lambda *leaves: torch.stack(leaves), *same) for same in by_size.values()]


def baselines(source: TaskSource) -> dict[str, Callable[[], list[Learner]]]:
    """The baselines of tasks that are functions of a few numbers, such as `sources.sinusoids`, by name."""
    objective = source.objective
    if source.member != "task" or source.forecasts or objective.predicts not in ("values", "distribution"):
        return {}
    with during(source, "training"):
        support, *others = (source.task("train", index).support for index in range(4))
    inputs = support.inputs
    if not isinstance(inputs, Tensor) or inputs.ndim != 2 or inputs.shape[1] > MAX_INPUTS or support.targets.ndim != 2:
        return {}
    if any(other.inputs.shape[1] != inputs.shape[1] for other in others):
        return {}

    def candidates(source: TaskSource) -> list[Learner]:
        with during(source, "training"):
            tasks = draw(source, "train", range(NUM_TASKS))
        examples = [tree_map(lambda support, query: torch.cat([support, query]), *task) for task in tasks]
        fitted = [gaussian_process(objective, examples, kernel=kernel) for kernel in KERNELS]
        return [each.rescaled(factor) for each in fitted for factor in LENGTH_FACTORS]

    return {"gaussian_process": partial(candidates, source)}
