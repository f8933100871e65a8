"""Regression: values, values in units, normal distributions, and forecasts of a time series.

Shape legend: n examples, d dimensions of a target; of forecasts C steps of context, V covariates, H steps ahead.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kshot.objectives.base import Objective, name_with_options, weighted_mean
from kshot.objectives.outputs import the_tensor
from kshot.types import Batch, Tree

LOG_2PI = math.log(2 * math.pi)


def check_values(targets: Tensor) -> None:
    """Raise ValueError unless the targets are floating-point numbers (n, ...) with at least two axes."""
    if targets.ndim < 2 or not targets.is_floating_point():
        raise ValueError(
            f"targets must be floating-point numbers (n, ...) with at least two axes, got {targets.dtype} "
            f"{tuple(targets.shape)}; one number per example is (n, 1)"
        )


def squared_error(prediction: Tensor, batch: Batch) -> Tensor:
    """Weighted mean squared error (), a mean over the dimensions of each target."""
    the_tensor(prediction, "is scored")
    if prediction.shape != batch.targets.shape:
        raise ValueError(
            f"the model predicts {tuple(prediction.shape)} but the targets are {tuple(batch.targets.shape)}; "
            "they must agree, or broadcasting would silently average over the wrong pairs"
        )
    return weighted_mean((prediction - batch.targets).square().flatten(1).mean(1), batch.weight)


def _mean_squared_error(prediction: Tensor, batch: Batch) -> dict[str, Tensor]:
    return {"mse": squared_error(prediction, batch)}


mse = Objective(
    squared_error,
    _mean_squared_error,
    predicts="values",
    check_targets=check_values,
    name="mse",
)
r"""Regression: $\frac{1}{\sum w} \sum_i w_i \lVert \hat y_i - y_i \rVert^2 / d$; prediction and targets (n, ...)."""


@dataclass(frozen=True)
class InUnits:
    """The metrics of `in_units`; comparable, so that equal objectives are equal."""

    scales: tuple[float, ...]
    names: tuple[str, ...]

    def __call__(self, prediction: Tensor, batch: Batch) -> dict[str, Tensor]:
        metrics = {}
        for column, (scale, name) in enumerate(zip(self.scales, self.names)):
            error = scale * (prediction[:, column] - batch.targets[:, column])
            suffix = "" if len(self.names) == 1 else "_" + re.sub(r"\W", "_", name)
            metrics[f"mse{suffix}"] = weighted_mean(error.square(), batch.weight)
            metrics[f"mae{suffix}"] = weighted_mean(error.abs(), batch.weight)
        return metrics


def in_units(scales: Sequence[float], names: Sequence[str]) -> Objective:
    r"""Regression of targets that were each divided by a scale: the loss is `mse`, the metrics are in original units.

    $$ \text{mse} = \frac{s^2}{\sum w} \sum_i w_i (\hat y_i - y_i)^2, \qquad
       \text{mae} = \frac{s}{\sum w} \sum_i w_i \lvert \hat y_i - y_i \rvert $$

    Args:
        scales: $s$ of each target, in the target's unit.
        names: names of the targets; if there are several, each has its own metrics, such as `mse_price`.

    Example:
        >>> batch = Batch.of(torch.zeros(2, 1), torch.tensor([[0.0], [2.0]]))
        >>> metrics = in_units([10.0], ["price"]).metrics(torch.zeros(2, 1), batch)
        >>> {name: float(value) for name, value in metrics.items()}
        {'mse': 200.0, 'mae': 10.0}
    """
    metrics = InUnits(tuple(scales), tuple(names))
    return mse._replace(metrics=metrics, name=name_with_options("in_units", vars(metrics)))


def _log_likelihood(prediction: Tree, batch: Batch) -> Tensor:
    """Weighted mean log-likelihood (), in nats, a mean over the dimensions of each target."""
    if not isinstance(prediction, dict) or prediction.keys() != {"mean", "std"}:
        got = sorted(prediction) if isinstance(prediction, dict) else type(prediction).__name__
        raise ValueError(
            f'a gaussian prediction is {{"mean": (n, ...), "std": (n, ...)}}, got {got}: '
            "choose a learner that predicts standard deviations, such as cnp, or a model that ends in models.Spread"
        )
    mean, std = prediction["mean"], prediction["std"]
    if not mean.shape == std.shape == batch.targets.shape:
        raise ValueError(
            f"the model predicts means {tuple(mean.shape)} and deviations {tuple(std.shape)} "
            f"but the targets are {tuple(batch.targets.shape)}; the three must agree"
        )
    log_density = -0.5 * (LOG_2PI + ((batch.targets - mean) / std).square()) - std.log()
    return weighted_mean(log_density.flatten(1).mean(1), batch.weight)


def _gaussian_metrics(prediction: Tree, batch: Batch) -> dict[str, Tensor]:
    likelihood = _log_likelihood(prediction, batch)
    mean, std = prediction["mean"], prediction["std"]
    error = batch.targets - mean
    z = error / std
    density = (-0.5 * (LOG_2PI + z.square())).exp()
    crps = std * (z * torch.special.erf(z / math.sqrt(2)) + 2 * density - 1 / math.sqrt(math.pi))
    covered = (z.abs() <= 1.959964).to(z.dtype)
    values = {"mse": error.square(), "crps": crps, "coverage": covered}
    means = {name: weighted_mean(value.flatten(1).mean(1), batch.weight) for name, value in values.items()}
    return {"log_likelihood": likelihood} | means


def _negative_log_likelihood(prediction: Tree, batch: Batch) -> Tensor:
    return -_log_likelihood(prediction, batch)


def _unit_normal(targets: Tensor) -> dict[str, Tensor]:
    """Normal distributions around the targets, of standard deviation 1."""
    return {"mean": targets, "std": torch.ones_like(targets)}


gaussian = Objective(
    _negative_log_likelihood,
    _gaussian_metrics,
    as_prediction=_unit_normal,
    predicts="distribution",
    check_targets=check_values,
    name="gaussian",
)
r"""Probabilistic regression: $-\frac{1}{\sum w} \sum_i w_i \frac1d \sum_j \log N(y_{ij}; \mu_{ij}, \sigma^2_{ij})$. A
prediction is `{"mean": (n, ...), "std": (n, ...)}`, both of the targets' shape. Metrics: log_likelihood, in nats per
predicted number; mse of the mean; crps, the continuous ranked probability score, in the targets' unit (lower is
better); coverage, the fraction of targets inside the central 95 % interval of the prediction."""


MIN_NAIVE_ERROR = 1e-3


@dataclass(frozen=True)
class ScaledError:
    """The metrics of `forecast`; comparable, so that equal objectives are equal."""

    season: int
    unit: float

    def __call__(self, prediction: Tensor, batch: Batch) -> dict[str, Tensor]:
        past = batch.inputs[..., 0]
        naive_error = (past[:, self.season :] - past[:, : -self.season]).abs().mean(1)
        error = (prediction - batch.targets).abs().mean(1)
        naive = weighted_mean(naive_error, batch.weight).clamp_min(MIN_NAIVE_ERROR)
        squared = self.unit**2 * squared_error(prediction, batch)
        return {"mase": weighted_mean(error, batch.weight) / naive, "mse": squared}


def forecast(season: int = 1, unit: float = 1.0) -> Objective:
    r"""Forecasts of H values (n, H) from inputs (n, C, 1 + V), the series' past first: the loss is `mse`.

    $$ \text{mase} = \frac{\text{mean} \; |\hat y - y|}{\text{mean} \; |x_t - x_{t-\text{season}}|} $$

    over the horizons and contexts of a query, with a denominator of at least 0.001; a value below 1 is better than
    repeating the last season.

    Args:
        season: period of the season in steps, fewer than C.
        unit: scale by which the values were divided; the metric mse is in original units.

    Example:
        >>> batch = Batch.of(torch.tensor([[[0.0], [2.0], [4.0]]]), torch.tensor([[6.0]]))
        >>> {name: float(value) for name, value in forecast().metrics(torch.tensor([[5.0]]), batch).items()}
        {'mase': 0.5, 'mse': 1.0}

    References:
        Hyndman, Koehler: Another look at measures of forecast accuracy, International Journal of Forecasting 22, 2006.
        There the denominator of mase is computed on the whole history, here on the contexts, all that a model sees.
    """
    metrics = ScaledError(season, unit)
    return mse._replace(metrics=metrics, name=name_with_options("forecast", vars(metrics)))
